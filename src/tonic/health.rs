//! The guard's state as `grpc.health.v1`, the health checks of gRPC.
//!
//! ```
//! use tonic_health::{
//!     pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient},
//!     server::health_reporter,
//! };
//! use tower_storage_guard::{Headroom, Volume, tonic::health};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // Everything has to stay free here, so that nothing is taken.
//! let volume = Volume::open(std::env::temp_dir())?.keep_free(Headroom::percent(100));
//!
//! let (reporter, service) = health_reporter();
//! tokio::spawn(health::report(reporter, "upload.v1.Uploads", volume.clone()));
//! // And then: Server::builder().add_service(service).add_service(uploads)
//!
//! # tokio::task::yield_now().await;
//! # let mut client = HealthClient::new(service);
//! # let mut check = async |service: &str| {
//! #     let request = HealthCheckRequest { service: service.into() };
//! #     client.check(request).await.map(|response| response.into_inner().status())
//! # };
//! assert_eq!(check("upload.v1.Uploads").await?, ServingStatus::NotServing);
//! // The whole server: reads go on.
//! assert_eq!(check("").await?, ServingStatus::Serving);
//! # Ok(())
//! # }
//! ```

use std::convert::Infallible;

use tonic_health::{ServingStatus, server::HealthReporter};

use crate::volume::Readiness;

/// Keeps the status of a service by what its volumes say: SERVING while [all of them take
/// writes](Readiness::takes_writes), otherwise NOT_SERVING.
///
/// Spawn it. It sets the status at once, then with each change and at no other time, and it never returns. When
/// it is dropped, the status stays as it is. Before it is first polled, the name is not known to the health
/// service, which answers NOT_FOUND.
///
/// The name is what those ask for who are about to write: a service that writes, or any other word. Leave the
/// empty one, which is the whole server, unless it only writes: reads and deletes go on when the disk is full.
/// Nobody else should set the status of the same name.
///
/// `volumes` is a [`Volume`](crate::Volume) or a [`Readiness`] of several.
///
/// # Panics
///
/// Within a runtime whose timer is not enabled.
pub async fn report(
    reporter: HealthReporter,
    service: impl Into<String>,
    volumes: impl Into<Readiness>,
) -> Infallible {
    let (service, readiness) = (service.into(), volumes.into());
    let mut writes = readiness.takes_writes();
    loop {
        let is_ready = writes.is_ok();
        let status = if is_ready {
            ServingStatus::Serving
        } else {
            ServingStatus::NotServing
        };
        reporter.set_service_status(&service, status).await;
        // From one reason to another is no change.
        while writes.is_ok() == is_ready {
            writes = readiness.changed(writes).await;
        }
    }
}
