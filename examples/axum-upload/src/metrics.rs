//! `/metrics`, for Prometheus.

#[cfg(feature = "metrics")]
pub(crate) use self::with::Exporter;
#[cfg(not(feature = "metrics"))]
pub(crate) use self::without::Exporter;

#[cfg(feature = "metrics")]
mod with {
    use std::time::Duration;

    use axum::{Router, http::header::CONTENT_TYPE, routing::get};
    use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
    use tokio::time::interval;
    use tower_storage_guard::{
        BoxError,
        metrics::{BUCKETS, Metrics},
    };

    /// The format of Prometheus.
    const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

    pub(crate) struct Exporter {
        metrics: Metrics,
        handle: PrometheusHandle,
    }

    impl Exporter {
        pub(crate) fn start() -> Result<Self, BoxError> {
            let seconds = Matcher::Suffix("_seconds".to_owned());
            let recorder = PrometheusBuilder::new()
                .set_buckets_for_metric(seconds, &BUCKETS)?
                .build_recorder();
            let handle = recorder.handle();
            tokio::spawn(upkeep(handle.clone()));
            Ok(Self {
                metrics: Metrics::with_recorder(recorder),
                handle,
            })
        }

        /// For the guard.
        pub(crate) fn observer(&self) -> Metrics {
            self.metrics.clone()
        }

        pub(crate) fn route<S: Clone + Send + Sync + 'static>(self) -> Router<S> {
            let metrics = async move || ([(CONTENT_TYPE, TEXT)], self.handle.render());
            Router::new().route("/metrics", get(metrics))
        }
    }

    /// Histograms keep what they were told until they are rendered, or this is called.
    async fn upkeep(handle: PrometheusHandle) {
        let mut turns = interval(Duration::from_secs(5));
        loop {
            turns.tick().await;
            handle.run_upkeep();
        }
    }
}

#[cfg(not(feature = "metrics"))]
mod without {
    use axum::Router;
    use tower_storage_guard::{BoxError, observer::Event};

    /// There is none.
    pub(crate) enum Exporter {}

    impl Exporter {
        /// Always fails.
        pub(crate) fn start() -> Result<Self, BoxError> {
            Err(
                "--metrics: this server was built without it: build it with `--features metrics`"
                    .into(),
            )
        }

        pub(crate) fn observer(&self) -> fn(&Event<'_>) {
            match *self {}
        }

        pub(crate) fn route<S>(self) -> Router<S> {
            match self {}
        }
    }
}
