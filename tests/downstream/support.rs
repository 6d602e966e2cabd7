//! A guarded axum handler that fails, and servers that make it fail.

use std::error::Error;

use axum::{Router, http::StatusCode, routing::post};
use serde_json::Value;
use tower_storage_guard::{
    StorageGuardLayer,
    axum::Failure,
    fault::{Cause, Classifier},
    quota::NoQuota,
};

pub(crate) use test_support::running::{Running, free_port, listens};

/// In how many forms a handler returns an error.
pub(crate) const FORMS: usize = 4;

/// Asserts that a handler whose `work` fails is answered 507 with this cause: with the error as it is, in a report of anyhow
/// and of eyre, and in the context that anyhow puts around it.
pub(crate) async fn assert_refused<T, E, Fut>(
    cause: Cause,
    work: impl Fn() -> Fut + Clone + Send + Sync + 'static,
) where
    T: Send,
    E: Error + Send + Sync + 'static,
    Fut: Future<Output = Result<T, E>> + Send + 'static,
{
    assert_refused_by(Classifier::default(), cause, work).await;
}

/// As [`assert_refused`], by a classifier other than the default one.
pub(crate) async fn assert_refused_by<T, E, Fut>(
    classifier: Classifier,
    cause: Cause,
    work: impl Fn() -> Fut + Clone + Send + Sync + 'static,
) where
    T: Send,
    E: Error + Send + Sync + 'static,
    Fut: Future<Output = Result<T, E>> + Send + 'static,
{
    for (status, reason) in answers(classifier, work).await {
        assert_eq!(
            (status, reason.as_deref()),
            (StatusCode::INSUFFICIENT_STORAGE, Some(cause.reason()))
        );
    }
}

/// Asserts that a handler whose `work` fails is answered 500 in all forms, because its failure is not for want of
/// storage.
pub(crate) async fn assert_not_refused<T, E, Fut>(
    work: impl Fn() -> Fut + Clone + Send + Sync + 'static,
) where
    T: Send,
    E: Error + Send + Sync + 'static,
    Fut: Future<Output = Result<T, E>> + Send + 'static,
{
    assert_not_refused_by(Classifier::default(), work).await;
}

/// As [`assert_not_refused`], by a classifier other than the default one.
pub(crate) async fn assert_not_refused_by<T, E, Fut>(
    classifier: Classifier,
    work: impl Fn() -> Fut + Clone + Send + Sync + 'static,
) where
    T: Send,
    E: Error + Send + Sync + 'static,
    Fut: Future<Output = Result<T, E>> + Send + 'static,
{
    for (status, reason) in answers(classifier, work).await {
        assert_eq!((status, reason), (StatusCode::INTERNAL_SERVER_ERROR, None));
    }
}

/// Asserts that a handler whose `work` writes more than a file may have is answered 413. An engine that stays failed says
/// afterwards only that, which is 500.
pub(crate) async fn assert_too_large<T, E, Fut>(
    stays_failed: bool,
    work: impl Fn() -> Fut + Clone + Send + Sync + 'static,
) where
    T: Send,
    E: Error + Send + Sync + 'static,
    Fut: Future<Output = Result<T, E>> + Send + 'static,
{
    let too_large = (StatusCode::PAYLOAD_TOO_LARGE, Some("file_too_large".into()));
    let [first, later @ ..] = answers(Classifier::default(), work).await;
    assert_eq!(first, too_large);
    let expected = match stays_failed {
        true => (StatusCode::INTERNAL_SERVER_ERROR, None),
        false => too_large,
    };
    for answer in later {
        assert_eq!(answer, expected);
    }
}

/// Asserts [`assert_refused`], or without a cause [`assert_not_refused`].
pub(crate) async fn assert_becomes<T, E, Fut>(
    cause: Option<Cause>,
    work: impl Fn() -> Fut + Clone + Send + Sync + 'static,
) where
    T: Send,
    E: Error + Send + Sync + 'static,
    Fut: Future<Output = Result<T, E>> + Send + 'static,
{
    match cause {
        Some(cause) => assert_refused(cause, work).await,
        None => assert_not_refused(work).await,
    }
}

/// The status and the reason of the answers: to an error as it is, in bare reports, and in anyhow's context. Each is sent
/// over HTTP by a guarded axum handler.
async fn answers<T, E, Fut>(
    classifier: Classifier,
    work: impl Fn() -> Fut + Clone + Send + Sync + 'static,
) -> [(StatusCode, Option<String>); FORMS]
where
    T: Send,
    E: Error + Send + Sync + 'static,
    Fut: Future<Output = Result<T, E>> + Send + 'static,
{
    let (in_context, in_anyhow, in_eyre) = (work.clone(), work.clone(), work.clone());
    let plain = post(async move || -> Result<StatusCode, Failure> {
        work().await?;
        Ok(StatusCode::CREATED)
    });
    let wrapped = post(async move || -> Result<StatusCode, Failure> {
        let done = in_context().await.map_err(anyhow::Error::from);
        done.map_err(|error| error.context("while storing").context("in the handler"))?;
        Ok(StatusCode::CREATED)
    });
    let anyhow = post(async move || -> Result<StatusCode, Failure> {
        in_anyhow().await.map_err(anyhow::Error::from)?;
        Ok(StatusCode::CREATED)
    });
    let eyre = post(async move || -> Result<StatusCode, Failure> {
        in_eyre().await.map_err(eyre::Report::from)?;
        Ok(StatusCode::CREATED)
    });
    let guard = StorageGuardLayer::quota_only(NoQuota);
    let guard = guard.classifier(classifier);
    let app = Router::new()
        .route("/plain", plain)
        .route("/wrapped", wrapped)
        .route("/anyhow", anyhow)
        .route("/eyre", eyre)
        .layer(guard);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let server = tokio::spawn(async move { axum::serve(listener, app).await });
    let ask = async |path: &str| {
        let answer = reqwest::Client::new()
            .post(format!("http://{addr}{path}"))
            .send()
            .await
            .unwrap();
        let status = answer.status();
        let text = answer.text().await.unwrap();
        let content: Option<Value> = serde_json::from_str(&text).ok();
        let reason = content.and_then(|content| content["reason"].as_str().map(str::to_owned));
        (status, reason)
    };
    let answers = [
        ask("/plain").await,
        ask("/wrapped").await,
        ask("/anyhow").await,
        ask("/eyre").await,
    ];
    server.abort();
    answers
}

/// Work that is done with a new copy of a client each time.
pub(crate) fn with<C, W, Fut>(
    client: &C,
    work: W,
) -> impl Fn() -> Fut + Clone + Send + Sync + use<C, W, Fut>
where
    C: Clone + Send + Sync,
    W: Fn(C) -> Fut + Clone + Send + Sync,
{
    let client = client.clone();
    move || work(client.clone())
}
