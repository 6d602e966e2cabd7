//! Uploads, refusals, cancelling and deleting.

use std::{fs, process::Command};

use serde_json::{Value, json};
use test_support::{
    example::{Server, path_of},
    mounts::{fill_but, in_runtime, tmpfs, with_own_mounts},
    redis,
};

use crate::{
    browser::Browser,
    visit::{MIB, Visit, row},
};

#[tokio::test]
#[ignore = "needs chromium: run by `make test`"]
async fn an_upload_shows_its_progress_and_what_is_reserved() {
    let visit = Visit::to(&["--quota", "64MiB"]).await;
    let browser = &visit.browser;
    assert!(
        browser
            .text("#empty")
            .await
            .contains("Nothing is stored yet")
    );
    visit.wire.allow(4 * MIB);
    visit.choose(&[("film.mkv", 48 * MIB)]).await;
    let progress = "document.querySelector('#queue progress').value";
    browser
        .until(&format!("{progress} > 0 && {progress} < 1"))
        .await;
    let before = visit.number(progress).await;
    // The figures of the server, while it is being sent.
    browser
        .until("document.querySelector('#everyone .reserved').textContent === '48.0 MiB reserved'")
        .await;
    assert_eq!(
        visit
            .number("document.querySelector('#everyone').dataset.left")
            .await,
        16.0 * MIB as f64
    );
    assert_eq!(
        visit
            .number("document.querySelector('#everyone .held').value")
            .await,
        48.0 * MIB as f64
    );
    assert_eq!(
        visit
            .number("document.querySelector('#everyone .held + meter').value")
            .await,
        0.0
    );

    visit.wire.allow(24 * MIB);
    browser
        .until(&format!("{progress} > {before} + 0.3 && {progress} < 1"))
        .await;
    let state = browser.text("#queue .state").await;
    assert!(
        state.contains(" of 48.0 MiB, ") && state.contains(" MiB/s"),
        "{state}"
    );
    // It falls when nothing moves any more.
    browser
        .until("/, 0 B\\/s$/.test(document.querySelector('#queue .state').textContent)")
        .await;

    visit.wire.allow(u64::MAX);
    visit.until_stored("film.mkv").await;
    browser
        .until("document.querySelector('#said').textContent === 'film.mkv is stored.'")
        .await;
    assert_eq!(
        browser.text("#stored-title").await,
        "Stored 1 file, 48.0 MiB"
    );
    assert_eq!(
        visit
            .number("document.querySelector('#everyone .held + meter').value")
            .await,
        48.0 * MIB as f64
    );
    assert_eq!(visit.server.names(), ["film.mkv"]);
    assert_eq!(
        fs::metadata(visit.server.dir.path().join("film.mkv"))
            .unwrap()
            .len(),
        48 * MIB
    );
}

#[tokio::test]
#[ignore = "needs chromium: run by `make test`"]
async fn what_does_not_fit_is_refused_before_it_is_sent() {
    let visit = Visit::to(&["--quota", "20MiB"]).await;
    let browser = &visit.browser;
    visit.put("old.zip", 12 * MIB).await;
    browser.open(&visit.wire.addr).await;
    let before = visit.wire.sent();
    visit
        .choose(&[("large.iso", 57 * MIB), ("new.zip", 10 * MIB)])
        .await;
    browser
        .until("document.querySelectorAll('#queue [data-state=refused]').length === 2")
        .await;
    let said = async |nth| {
        browser
            .text(&format!("#queue li:nth-child({nth}) .state"))
            .await
    };
    assert_eq!(
        said(1).await,
        "It has 57.0 MiB, and the quota has 8.0 MiB left, so it was not sent. It can never fit: choose a smaller file."
    );
    let why = "It has 10.0 MiB, and the quota has 8.0 MiB left, so it was not sent. \
               Delete files that are no longer needed and retry, or choose a smaller file.";
    assert_eq!(said(2).await, why);
    browser
        .until(
            "document.querySelector('#warned').textContent.startsWith('new.zip is not stored. ')",
        )
        .await;
    // Neither a byte of them, nor a request.
    let sent = visit.wire.sent() - before;
    assert!(sent < 64 << 10, "{sent}");
    let requests = browser.value("performance.getEntriesByType('resource').filter((it) => it.name.includes('/files/')).length");
    assert_eq!(requests.await, 0);

    // As the advice says.
    delete(browser, "old.zip").await;
    browser.until(&format!("!{}", row("old.zip"))).await;
    browser.click("#queue li:nth-child(2) .retry").await;
    browser.until(&row("new.zip")).await;
    browser.click("#queue .dismiss").await;
    browser
        .until("document.querySelector('#uploads').hidden")
        .await;
    assert_eq!(visit.server.names(), ["new.zip"]);
    // What is replaced is given back.
    visit.choose(&[("new.zip", 19 * MIB)]).await;
    browser
        .until(&format!("{}.dataset.size == {}", row("new.zip"), 19 * MIB))
        .await;
}

/// Opens the question, and answers it.
async fn delete(browser: &Browser, name: &str) {
    browser
        .click(&format!("#files [data-name=\"{name}\"] > button"))
        .await;
    browser
        .click(&format!("#files [data-name=\"{name}\"] .danger"))
        .await;
}

#[tokio::test]
#[ignore = "needs chromium: run by `make test`"]
async fn a_cancelled_upload_leaves_nothing_and_can_be_repeated() {
    let visit = Visit::to(&[]).await;
    let browser = &visit.browser;
    visit.wire.allow(4 * MIB);
    visit
        .choose(&[("film.mkv", 32 * MIB), ("next.txt", 5)])
        .await;
    visit.server.until_received(MIB).await;
    browser
        .run("document.querySelector('#queue .cancel').focus()")
        .await;
    browser.click("#queue .cancel").await;
    browser
        .until("document.querySelector('#queue [data-state=cancelled]')")
        .await;
    assert_eq!(
        browser
            .value("document.activeElement.getAttribute('aria-label')")
            .await,
        "Retry film.mkv"
    );
    // The next one is sent meanwhile, and nothing is left of the first.
    browser.until(&row("next.txt")).await;
    // What is held back hides that the browser has left.
    visit.wire.allow(u64::MAX);
    visit.server.until_nothing_is_left_behind().await;
    let is_released =
        |status: &Value| status["everyone"]["held"] == 0 && status["volume"]["claimed"] == 0;
    let status = visit.server.status_when("", is_released).await;
    assert_eq!(status["everyone"]["used"], 5);
    assert_eq!(visit.server.names(), ["next.txt"]);

    browser.click("#queue .retry").await;
    visit.until_stored("film.mkv").await;
    // Its buttons are gone, and focus is on what came of it.
    assert_eq!(
        browser.value("document.activeElement.textContent").await,
        "film.mkv"
    );
}

#[tokio::test]
#[ignore = "needs chromium: run by `make test`"]
async fn a_delete_asks_first_and_focus_survives() {
    let visit = Visit::to(&[]).await;
    let browser = &visit.browser;
    for name in ["a", "c", "d"] {
        visit.put(name, 10).await;
    }
    browser.open(&visit.wire.addr).await;
    let focused = "document.activeElement.getAttribute('aria-label')";
    browser.click("#files [data-name=c] > button").await;
    assert_eq!(
        browser
            .value("document.querySelectorAll('dialog:popover-open').length")
            .await,
        1
    );
    assert_eq!(
        browser.value("document.activeElement.textContent").await,
        "Keep"
    );
    assert!(
        browser
            .text("dialog:popover-open")
            .await
            .contains("cannot be brought back")
    );
    browser.click("dialog:popover-open [type=button]").await;
    browser
        .until("!document.querySelector('dialog:popover-open')")
        .await;
    assert_eq!(browser.value(focused).await, "Delete c");
    assert_eq!(visit.server.names(), ["a", "c", "d"]);

    // A file that arrives before it changes neither the element nor its focus.
    browser.run("document.activeElement.isTheSame = true").await;
    browser.run(
        "const data = new DataTransfer(); data.items.add(new File(['hello'], 'b'))\n\
         document.body.dispatchEvent(new DragEvent('drop', { dataTransfer: data, bubbles: true, cancelable: true }))",
    ).await;
    visit.until_stored("b").await;
    assert_eq!(
        browser.value("document.activeElement.isTheSame").await,
        true
    );
    assert_eq!(
        browser
            .value(
                "[...document.querySelectorAll('#files a')].map((link) => link.textContent).join()"
            )
            .await,
        "a,b,c,d"
    );
    assert_eq!(
        visit.server.get("/files/b").await.text().await.unwrap(),
        "hello"
    );

    delete(browser, "c").await;
    browser.until(&format!("!{}", row("c"))).await;
    browser.until(&format!("{focused} === 'Delete d'")).await;
    browser
        .until("document.querySelector('#said').textContent === 'c is deleted.'")
        .await;
    assert_eq!(visit.server.names(), ["a", "b", "d"]);
}

#[tokio::test]
#[ignore = "needs chromium: run by `make test`"]
async fn what_the_server_says_is_shown() {
    let visit = Visit::to(&[]).await;
    let browser = &visit.browser;
    visit.choose(&[(".hidden", 10)]).await;
    browser
        .until("document.querySelector('#queue [data-state=refused]')")
        .await;
    let said = browser.text("#queue .state").await;
    assert_eq!(
        said,
        "A name must have 1 to 255 bytes and no slash, and not begin with a dot."
    );
    // A name that is markup, and one that is a path.
    let name = "<b>&amp; 100% \"x\" ?#é.txt";
    visit.choose(&[(name, 10)]).await;
    browser
        .until(&format!(
            "[...document.querySelectorAll('#files a')].some((it) => it.textContent === {})",
            json!(name)
        ))
        .await;
    assert_eq!(visit.server.names(), [name]);
    let link = browser.value("fetch(document.querySelector('#files a').href).then((answer) => answer.headers.get('content-length'))");
    assert_eq!(link.await, "10");
    browser.click("#files button").await;
    browser.click("dialog:popover-open .danger").await;
    browser.until("document.querySelector('#empty')").await;
    assert!(visit.server.names().is_empty());
    // While it is away.
    let dir = visit.server.killed();
    browser
        .until(
            "document.querySelector('#notice').textContent.includes('The server does not answer.')",
        )
        .await;
    drop(dir);
}

/// How often the page has asked the server whether there is room.
const ASKED: &str = "performance.getEntriesByType('resource').filter((it) => it.name.endsWith('/preflight')).length";

#[tokio::test]
#[ignore = "needs chromium: run by `make test`"]
async fn the_preflight_decides_what_is_sent() {
    let visit = Visit::to(&["--quota", "20MiB"]).await;
    let browser = &visit.browser;
    // By another client: the page knows how much room is left, but not what would be replaced.
    visit.put("theirs.zip", 14 * MIB).await;
    visit.choose(&[("theirs.zip", 16 * MIB)]).await;
    visit.until_stored("theirs.zip").await;
    assert_eq!(browser.value(ASKED).await, 2);

    // Each of them would fit alone.
    visit
        .choose(&[
            ("one.zip", 3 * MIB),
            ("two.zip", 2 * MIB),
            ("theirs.zip", 18 * MIB),
        ])
        .await;
    browser
        .until(&format!(
            "{} && document.querySelectorAll('#queue li').length === 2",
            row("one.zip")
        ))
        .await;
    let (two, theirs) = ("#queue li:first-child", "#queue li:last-child");
    let after = "MiB left after the files before it, so it was not sent. Delete files";
    for (upload, needed, left) in [(two, 2, 1), (theirs, 18, 17)] {
        let why = format!("It has {needed}.0 MiB, and the quota has {left}.0 {after}");
        browser.until_says(&format!("{upload} .state"), &why).await;
    }
    let sent = "performance.getEntriesByType('resource').filter((it) => it.name.includes('/files/')).length";
    assert_eq!(browser.value(sent).await, 2);
    assert_eq!(browser.value(ASKED).await, 4);
    browser.click(&format!("{two} .retry")).await;
    browser
        .until_says(
            &format!("{two} .state"),
            "It has 2.0 MiB, and the quota has 1.0 MiB left, so it was not sent. Delete files",
        )
        .await;
    assert_eq!(browser.value(sent).await, 2);
    assert_eq!(browser.value(ASKED).await, 5);
    assert_eq!(visit.server.names(), ["one.zip", "theirs.zip"]);
}

/// The gauges show bytes, and what they showed last.
#[tokio::test]
#[ignore = "needs chromium and redis: run by `make test`"]
async fn a_refusal_that_no_gauge_explains() {
    let mut redis = redis::Server::start();
    let visit = Visit::to(&["--quota-store", &redis.url()]).await;
    let browser = &visit.browser;
    visit.put("one", 10).await;
    browser.open(&visit.wire.addr).await;
    let limited = Command::new(path_of("quota-admin"))
        .args(["--store", &redis.url(), "limit", "everyone"])
        .args(["--bytes", "1GiB", "--objects", "1"])
        .output();
    assert!(limited.unwrap().status.success());
    let before = visit.wire.sent();
    visit.choose(&[("two", MIB)]).await;
    browser
        .until_says(
            "#queue [data-state=refused] .state",
            "The quota has no room for it, so it was not sent. Delete files that are no longer needed and retry.",
        )
        .await;
    // As the advice says.
    delete(browser, "one").await;
    browser.until(&format!("!{}", row("one"))).await;

    redis.kill();
    browser.click("#queue .retry").await;
    browser
        .until_says(
            "#queue [data-state=refused] .state",
            "The server cannot tell right now whether there is room for it, so it was not sent. Retry in a moment.",
        )
        .await;
    let sent = visit.wire.sent() - before;
    assert!(sent < 64 << 10, "{sent}");
    redis.start_again();
    browser.click("#queue .retry").await;
    visit.until_stored("two").await;
    assert_eq!(visit.server.names(), ["two"]);
}

/// The disk fills up while a file is sent: only the server can know.
#[test]
#[ignore = "needs chromium, and mounts a filesystem: run by `make test`"]
fn a_disk_that_fills_up_meanwhile() {
    with_own_mounts(|| {
        in_runtime(async {
            let dir = tempfile::tempdir().unwrap();
            tmpfs(dir.path(), "size=48m");
            let at = dir.path().to_owned();
            let server = Server::start_in(dir, "axum-upload", &["--keep-free", "0"]);
            let visit = Visit::to_server(server).await;
            let browser = &visit.browser;
            visit.wire.allow(2 * MIB);
            visit.choose(&[("film.mkv", 24 * MIB)]).await;
            visit.server.until_received(MIB).await;
            fs::create_dir(at.join("other")).unwrap();
            fill_but(&at.join("other"), MIB);
            visit.wire.allow(u64::MAX);
            browser
                .until("document.querySelector('#queue [data-state=refused]')")
                .await;
            assert_eq!(
                browser.text("#queue .state").await,
                "Server storage capacity reached. Delete files that are no longer needed, or choose smaller ones."
            );
            // The figures have followed, so that it is not sent again.
            let sent = visit.wire.sent();
            browser.click("#queue .retry").await;
            browser
                .until(
                    "document.querySelector('#queue .state').textContent.includes('the disk has')",
                )
                .await;
            assert!(visit.wire.sent() - sent < 64 << 10);
            visit.server.until_nothing_is_left_behind().await;
        });
    });
}
