//! The page without scripts.

use std::fs::File;

use test_support::example::Server;

use crate::{browser::Browser, looks::look, visit::MIB};

#[tokio::test]
#[ignore = "needs chromium: run by `make test`"]
async fn it_works_without_scripts() {
    let flags = ["--user", "ann:a:8MiB", "--quota", "20MiB"];
    let server = Server::start("axum-upload", &flags);
    let browser = Browser::without_scripts().await;
    let own = tempfile::tempdir().unwrap();
    let upload = async |files: &[(&str, u64)]| {
        let paths = files.iter().map(|(name, size)| {
            let path = own.path().join(name);
            File::create(&path).unwrap().set_len(*size).unwrap();
            path.into_os_string().into_string().unwrap()
        });
        let paths: Vec<_> = paths.collect();
        browser.fill("#chosen", &paths.join("\n")).await;
        browser.click("#send button").await;
    };
    browser.open(&server.addr).await;
    browser.fill("#token", "b").await;
    browser.click("#sign-in button").await;
    browser
        .until_says("#wrong", "There is no user with this token.")
        .await;
    browser.fill("#token", "a").await;
    browser.click("#sign-in button").await;
    browser.until_says("#empty", "Nothing is stored yet.").await;
    for scheme in ["light", "dark"] {
        look(&browser, 360, scheme, 10, "empty").await;
    }

    upload(&[("a b.txt", 5), ("c.txt", 3 * MIB)]).await;
    browser
        .until_says("#stored-title", "Stored 2 files, 3.0 MiB")
        .await;
    browser.until_says("#user p", "5.0 MiB left").await;

    // A form is refused as a whole, in figures that a person reads, with advice and a way back.
    upload(&[("film.mkv", 57 * MIB), ("d.txt", 5)]).await;
    browser.until_says("h1", "Not stored").await;
    let why =
        "Storage quota exceeded: 57.0 MiB more are needed, and 5.0 MiB of 8.0 MiB are left.\n\n";
    browser
        .until_says(
            ".refused",
            &format!("{why}That can never be stored here: choose smaller files."),
        )
        .await;
    for (scheme, width) in [("light", 360), ("dark", 360), ("dark", 1000)] {
        look(&browser, width, scheme, 4, "refusal").await;
    }
    browser.click(".back").await;
    upload(&[("e.bin", 6 * MIB)]).await;
    let why =
        "Storage quota exceeded: 6.0 MiB more are needed, and 5.0 MiB of 8.0 MiB are left.\n\n";
    browser
        .until_says(
            ".refused",
            &format!("{why}Delete files that are no longer needed, or choose smaller ones."),
        )
        .await;
    browser.click(".back").await;
    upload(&[(".hidden", 6)]).await;
    browser
        .until_says(".refused", "A name must have 1 to 255 bytes")
        .await;
    browser.click(".back").await;

    // The question needs no script either.
    browser.click("#files li:nth-child(2) > button").await;
    browser.click("#files li:nth-child(2) .danger").await;
    browser
        .until_says("#stored-title", "Stored 1 file, 5 B")
        .await;
    assert!(!server.dir.path().join("ann/c.txt").exists());
    browser.click("header button").await;
    browser.until_says("#sign-in label", "Your token").await;
}
