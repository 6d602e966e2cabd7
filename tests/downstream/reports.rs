//! Reports of anyhow and eyre: how deep the failure is in them, and where they are returned, does not matter.

use std::io;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use tower::{Layer, ServiceExt, service_fn};
use tower_storage_guard::{
    MeteredBody, StorageGuardLayer,
    fault::{Cause, Source, classify},
    quota::NoQuota,
};

fn full() -> io::Error {
    io::ErrorKind::StorageFull.into()
}

fn missing() -> io::Error {
    io::ErrorKind::NotFound.into()
}

#[test]
fn a_report_shows_what_it_was_made_of() {
    let reports = [
        Source::new(anyhow::Error::from(full())),
        Source::new(anyhow::Error::from(full()).context("while storing")),
        Source::new(
            anyhow::Error::from(full())
                .context("below")
                .context("above"),
        ),
        Source::new(eyre::Report::from(full())),
        Source::new(eyre::Report::from(full()).wrap_err("while storing")),
        Source::new(anyhow::Context::context(Err::<(), _>(full()), "by the trait").unwrap_err()),
        Source::new(eyre::WrapErr::wrap_err(Err::<(), _>(full()), "by the trait").unwrap_err()),
    ];
    for report in &reports {
        let fault = classify(report.error()).map(|fault| fault.cause);
        assert_eq!(fault, Some(Cause::DiskFull), "{report:?}");
    }
    for other in [
        Source::new(anyhow::Error::from(missing())),
        Source::new(eyre::Report::from(missing())),
        Source::new(anyhow::anyhow!("no space left on device")),
        Source::new(eyre::eyre!("no space left on device")),
    ] {
        assert_eq!(classify(other.error()), None, "{other:?}");
    }
    // For logs, it is what it was.
    let report = Source::new(anyhow::Error::from(full()).context("while storing"));
    assert_eq!(report.error().to_string(), "while storing");
    assert!(format!("{report:?}").contains("Caused by"), "{report:?}");
}

type Answer = Response<Full<Bytes>>;

/// The status of a service that fails so, or its error.
async fn failing<E>(error: fn() -> E) -> Result<StatusCode, E>
where
    E: Send + Sync + 'static,
{
    let service = service_fn(move |_: Request<MeteredBody<Full<Bytes>>>| {
        std::future::ready(Err::<Answer, E>(error()))
    });
    let service = StorageGuardLayer::quota_only(NoQuota).layer(service);
    let request = Request::put("/").body(Full::default()).unwrap();
    Ok(service.oneshot(request).await?.status())
}

#[tokio::test]
async fn a_service_may_fail_with_a_report() {
    let anyhow = failing(|| anyhow::Error::from(full())).await;
    assert_eq!(anyhow.unwrap(), StatusCode::INSUFFICIENT_STORAGE);
    let eyre = failing(|| eyre::Report::from(full())).await;
    assert_eq!(eyre.unwrap(), StatusCode::INSUFFICIENT_STORAGE);
    let other = failing(|| anyhow::Error::from(missing()))
        .await
        .unwrap_err();
    assert!(other.downcast_ref::<io::Error>().is_some());
    let other = failing(|| eyre::Report::from(missing())).await.unwrap_err();
    assert!(other.downcast_ref::<io::Error>().is_some());
}
