//! What it looks like: in light and dark, and on a phone.

use std::{fs, io::Write, path::Path};

use serde_json::Value;
use test_support::{
    example::Server,
    mounts::{in_runtime, tmpfs, with_own_mounts},
};

use crate::{
    browser::Browser,
    users::sign_in,
    visit::{MIB, Visit},
};

/// Files of a user, in KiB.
const STORED: [(&str, usize); 5] = [
    ("Budget 2026.ods", 412),
    (
        "Concert in Riga, both evenings, uncut, camera 2.mov",
        58_000,
    ),
    ("Interview.wav", 21_340),
    ("Norway.zip", 33_900),
    ("Thesis (final, really).pdf", 3_187),
];

/// A page with everything on it: files, an upload under way, one that waits, and one that was refused. To be called where the test has
/// mounts of its own: its disk is small.
pub(crate) async fn scene() -> Visit {
    let dir = tempfile::tempdir().unwrap();
    tmpfs(dir.path(), "size=512m");
    fs::create_dir(dir.path().join("ann")).unwrap();
    for (name, kibibytes) in STORED {
        write(&dir.path().join("ann").join(name), kibibytes << 10);
    }
    let flags = ["--user", "ann:token:200MiB", "--quota", "300MiB"];
    let visit = Visit::to_server(Server::start_in(dir, "axum-upload", &flags)).await;
    sign_in(&visit, "token").await;
    visit.wire.allow(6 * MIB);
    let names = [
        ("Mountain huts.mp4", 44 * MIB),
        ("backup-2026-11-30.tar.zst", 96 * MIB),
        ("notes.md", 9_100),
    ];
    visit.choose(&names).await;
    visit
        .browser
        .until("document.querySelector('#queue [data-state=refused]')")
        .await;
    visit
        .browser
        .until("document.querySelector('#user .reserved').textContent === '44.0 MiB reserved'")
        .await;
    visit
}

fn write(path: &Path, size: usize) {
    fs::File::create(path)
        .unwrap()
        .write_all(&vec![0; size])
        .unwrap();
}

/// Looks at all that is shown, and returns what is wrong with it.
const LOOK: &str = r#"
const wrong = []
const numbers = (color) => color.match(/[\d.]+/g).map(Number)
const luminance = (color) => {
  const [r, g, b] = numbers(color).map((value) => value / 255).map((value) => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4)
  return 0.2126 * r + 0.7152 * g + 0.0722 * b
}
const contrast = (one, other) => {
  const [dark, light] = [luminance(one), luminance(other)].sort((a, b) => a - b)
  return (light + 0.05) / (dark + 0.05)
}
const behind = (element) => {
  for (let at = element; at; at = at.parentElement) {
    const [, , , alpha = 1] = numbers(getComputedStyle(at).backgroundColor)
    if (alpha === 1) return getComputedStyle(at).backgroundColor
    if (alpha > 0) wrong.push(`${at.tagName} is translucent`)
  }
}
const isShown = (element) => element.checkVisibility({ visibilityProperty: true }) && !element.closest(".heard") && getComputedStyle(element).clipPath === "none"
let texts = 0
for (const element of document.body.querySelectorAll("*")) {
  if (!isShown(element)) continue
  const text = [...element.childNodes].filter((node) => node.nodeType === 3).map((node) => node.data.trim()).join("")
  if (text) {
    texts += 1
    const ratio = contrast(getComputedStyle(element).color, behind(element))
    if (ratio < 4.5) wrong.push(`contrast ${ratio.toFixed(2)}: ${text}`)
  }
  if (element.matches(".name, .size, button, label, h2, .gauge p")) {
    const range = document.createRange()
    range.selectNodeContents(element)
    const texts = [...range.getClientRects()].filter((rect) => rect.width > 0)
    const top = Math.max(...texts.map((rect) => rect.top)), bottom = Math.min(...texts.map((rect) => rect.bottom))
    if (top >= bottom) wrong.push(`wraps: ${element.textContent}`)
  }
  if (element.matches("button, a, label[for=chosen], input")) {
    const { width, height } = element.getBoundingClientRect()
    const least = PHONE ? 44 : 32
    if (height < least || width < least) wrong.push(`${width} x ${height}: ${element.outerHTML}`)
    if (!(element.getAttribute("aria-label") || element.textContent.trim() || element.labels?.length)) wrong.push(`without a name: ${element.outerHTML}`)
  }
  const { right } = element.getBoundingClientRect()
  if (right > document.documentElement.clientWidth + 0.5) wrong.push(`beyond the edge: ${element.outerHTML}`)
}
const { scrollWidth, clientWidth } = document.documentElement
if (scrollWidth > clientWidth) wrong.push(`scrolls sideways: ${scrollWidth} of ${clientWidth}`)
if (texts < LEAST) wrong.push(`only ${texts} texts`)
return wrong
"#;

pub(crate) async fn look(
    browser: &Browser,
    width: u32,
    scheme: &str,
    least_texts: u32,
    what: &str,
) {
    browser.resize(width, 900).await;
    browser.color_scheme(scheme).await;
    let script = LOOK.replace("PHONE", if width < 500 { "true" } else { "false" });
    let wrong = browser
        .run(&script.replace("LEAST", &least_texts.to_string()))
        .await;
    assert_eq!(
        wrong,
        Value::Array(vec![]),
        "{what}, {width} pixels, {scheme}: {wrong:#}"
    );
}

#[test]
#[ignore = "needs chromium, and mounts a filesystem: run by `make test`"]
fn it_can_be_read_and_touched_everywhere() {
    with_own_mounts(|| {
        in_runtime(async {
            let visit = scene().await;
            let browser = &visit.browser;
            let background = "getComputedStyle(document.body).backgroundColor";
            let mut backgrounds = Vec::new();
            for scheme in ["light", "dark"] {
                for width in [1000, 500, 360] {
                    look(browser, width, scheme, 30, "files").await;
                    browser.click("#files li:nth-child(2) > button").await;
                    look(browser, width, scheme, 30, "question").await;
                    browser.click("dialog:popover-open [type=button]").await;
                }
                backgrounds.push(browser.value(background).await);
            }
            assert_ne!(backgrounds[0], backgrounds[1]);
            // A name is too long for a phone.
            let is_cut = "[...document.querySelectorAll('.name')].some((it) => it.scrollWidth > it.clientWidth)";
            assert_eq!(browser.value(is_cut).await, true);
            visit.wire.allow(u64::MAX);
            browser
                .until("document.querySelectorAll('#queue li').length === 1")
                .await;
            browser.click("#queue .dismiss").await;
            browser.click("header button").await;
            sign_in(&visit, "wrong").await;
            browser.until("document.querySelector('#wrong')").await;
            for (scheme, width) in [("light", 360), ("dark", 360), ("dark", 1000)] {
                look(browser, width, scheme, 4, "sign-in").await;
            }
        });
    });
}
