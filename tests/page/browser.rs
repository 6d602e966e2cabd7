//! A headless Chromium, driven by WebDriver.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use fantoccini::{
    Client, ClientBuilder, Locator, elements::Element, wd::WebDriverCompatibleCommand,
};
use hyper_util::client::legacy::connect::HttpConnector;
use serde_json::{Value, json};
use tempfile::TempDir;
use test_support::{
    mounts::unshare,
    running::{Running, free_port, listens},
};

/// The maximum time for anything that a test waits for.
const BOUND: Duration = Duration::from_secs(20);
/// Between two looks at what is waited for.
const PAUSE: Duration = Duration::from_millis(20);

/// A browser with a profile of its own, which ends with all of its processes when this is dropped.
pub(crate) struct Browser {
    client: Client,
    _driver: Running,
    _profile: TempDir,
}

impl Browser {
    pub(crate) async fn start() -> Self {
        Self::start_with(json!({})).await
    }

    /// One that runs no scripts of pages.
    pub(crate) async fn without_scripts() -> Self {
        Self::start_with(json!({ "profile.managed_default_content_settings.javascript": 2 })).await
    }

    async fn start_with(prefs: Value) -> Self {
        let profile = tempfile::tempdir().unwrap();
        let port = free_port();
        let _driver = driver(port, profile.path());
        let capabilities = json!({
            "goog:chromeOptions": {
                // Root has no sandbox, and the tests load one page, which is ours.
                "args": ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
                    "--force-color-profile=srgb", "--disable-background-networking", "--no-first-run"],
                "prefs": prefs,
            },
        });
        let Value::Object(capabilities) = capabilities else {
            unreachable!("it is an object")
        };
        let client = ClientBuilder::new(HttpConnector::new())
            .capabilities(capabilities)
            .connect(&format!("http://127.0.0.1:{port}"))
            .await
            .unwrap();
        let browser = Self {
            client,
            _driver,
            _profile: profile,
        };
        browser.resize(1000, 900).await;
        browser
    }

    pub(crate) async fn open(&self, addr: &str) {
        self.client.goto(&format!("http://{addr}/")).await.unwrap();
    }

    /// A screen of this size, in CSS pixels. Below 500 it is a phone.
    pub(crate) async fn resize(&self, width: u32, height: u32) {
        let is_phone = width < 500;
        let metrics = json!({ "width": width, "height": height, "deviceScaleFactor": 1.5, "mobile": is_phone });
        self.command("Emulation.setDeviceMetricsOverride", metrics)
            .await;
        self.command(
            "Emulation.setTouchEmulationEnabled",
            json!({ "enabled": is_phone }),
        )
        .await;
    }

    pub(crate) async fn color_scheme(&self, scheme: &str) {
        let features = json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
        self.command("Emulation.setEmulatedMedia", features).await;
    }

    /// Sends a command of the DevTools.
    pub(crate) async fn command(&self, name: &'static str, params: Value) {
        self.client.issue_cmd(DevTools(name, params)).await.unwrap();
    }

    /// Waits for an element: the page that has it may still be loading.
    pub(crate) async fn find(&self, selector: &str) -> Element {
        let wait = self.client.wait().at_most(BOUND).every(PAUSE);
        let found = wait.for_element(Locator::Css(selector)).await;
        found.unwrap_or_else(|error| panic!("{selector}: {error}"))
    }

    pub(crate) async fn click(&self, selector: &str) {
        let clicked = self.find(selector).await.click().await;
        clicked.unwrap_or_else(|error| panic!("{selector}: {error}"));
    }

    /// Chooses files in a field, or writes into it.
    pub(crate) async fn fill(&self, selector: &str, text: &str) {
        self.find(selector).await.send_keys(text).await.unwrap();
    }

    pub(crate) async fn text(&self, selector: &str) -> String {
        self.find(selector).await.text().await.unwrap()
    }

    /// The value of an expression in the page.
    pub(crate) async fn value(&self, expression: &str) -> Value {
        let script = format!("return ({expression})");
        let value = self.client.execute(&script, vec![]).await;
        value.unwrap_or_else(|error| panic!("{expression}: {error}"))
    }

    /// Runs statements in the page.
    pub(crate) async fn run(&self, statements: &str) -> Value {
        let value = self.client.execute(statements, vec![]).await;
        value.unwrap_or_else(|error| panic!("{statements}: {error}"))
    }

    /// Waits until an expression in the page is true. It may be another page than at first.
    pub(crate) async fn until(&self, expression: &str) {
        let start = Instant::now();
        let script = format!("return !!({expression})");
        while !matches!(
            self.client.execute(&script, vec![]).await,
            Ok(Value::Bool(true))
        ) {
            if start.elapsed() > BOUND {
                let page = self.value("document.body.innerText").await;
                panic!("not yet: {expression}\n{page:#}");
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Waits until an element of the page has this text, or begins with it.
    pub(crate) async fn until_says(&self, selector: &str, text: &str) {
        let (selector, text) = (json!(selector), json!(text));
        self.until(&format!(
            "document.querySelector({selector})?.innerText.startsWith({text})"
        ))
        .await;
    }

    pub(crate) async fn screenshot(&self) -> Vec<u8> {
        self.client.screenshot().await.unwrap()
    }

    pub(crate) async fn back(&self) {
        self.client.back().await.unwrap();
    }
}

/// In a namespace of processes whose first is the driver: the kernel ends all of them with it, in whatever way the test ends.
fn driver(port: u16, profile: &Path) -> Running {
    let mut command = unshare(&["--pid", "--fork", "--kill-child", "--mount-proc"]);
    command.arg("chromedriver").arg(format!("--port={port}"));
    // Profiles are made there.
    command.env("TMPDIR", profile).env("HOME", profile);
    Running::start(&mut command, &profile.join("log"), || listens(port))
}

/// A command of the DevTools protocol, which the driver passes on.
#[derive(Debug)]
struct DevTools(&'static str, Value);

impl WebDriverCompatibleCommand for DevTools {
    fn endpoint(
        &self,
        base: &url::Url,
        session: Option<&str>,
    ) -> Result<url::Url, url::ParseError> {
        base.join(&format!(
            "session/{}/goog/cdp/execute",
            session.unwrap_or_default()
        ))
    }

    fn method_and_body(&self, _: &url::Url) -> (http::Method, Option<String>) {
        let body = json!({ "cmd": self.0, "params": self.1 });
        (http::Method::POST, Some(body.to_string()))
    }
}
