//! Signing in and out.

use crate::visit::{Visit, row};

const USERS: [&str; 4] = ["--user", "ann:to:k;en%:2MiB", "--user", "bob:secret:1MiB"];
const LEFT: &str = "document.querySelector('#user').dataset.left";

#[tokio::test]
#[ignore = "needs chromium: run by `make test`"]
async fn a_user_signs_in_and_another_after_them() {
    let visit = Visit::to(&USERS).await;
    let browser = &visit.browser;
    sign_in(&visit, "wrong").await;
    browser
        .until_says("#wrong", "There is no user with this token.")
        .await;
    sign_in(&visit, "to:k;en%").await;
    browser.until_says("header .name", "ann").await;
    visit.choose(&[("hers.txt", 500_000)]).await;
    visit.until_stored("hers.txt").await;
    assert!(visit.server.dir.path().join("ann/hers.txt").exists());
    assert_eq!(visit.number(LEFT).await, f64::from((2 << 20) - 500_000));
    // A link says who asks, too.
    let status = "fetch('/files/hers.txt').then((answer) => answer.status)";
    assert_eq!(browser.value(status).await, 200);

    browser.click("header button").await;
    browser.until("document.querySelector('#token')").await;
    assert_eq!(browser.value(status).await, 401);
    // What was seen before is not kept.
    browser.back().await;
    browser
        .until(&format!(
            "document.querySelector('#token') && !{}",
            row("hers.txt")
        ))
        .await;
    sign_in(&visit, "secret").await;
    browser.until_says("header .name", "bob").await;
    browser.until_says("#empty", "Nothing is stored yet.").await;
    assert_eq!(visit.number(LEFT).await, f64::from(1 << 20));
    assert_eq!(browser.value(status).await, 404);

    // Signed out in another tab: the queue stays, and says what to do.
    browser
        .run("return fetch('/sign-out', { method: 'POST' })")
        .await;
    visit.choose(&[("his.txt", 5)]).await;
    browser
        .until_says("#queue [data-state=refused] .state", "You are signed out.")
        .await;
    browser
        .run("return fetch('/sign-in', { method: 'POST', body: new URLSearchParams({ token: 'secret' }) })")
        .await;
    browser.click("#queue .retry").await;
    visit.until_stored("his.txt").await;
    assert!(visit.server.dir.path().join("bob/his.txt").exists());
}

pub(crate) async fn sign_in(visit: &Visit, token: &str) {
    visit.browser.fill("#token", token).await;
    visit.browser.click("#sign-in button").await;
}
