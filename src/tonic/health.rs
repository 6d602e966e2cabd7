//! Health checks of gRPC (`grpc.health.v1`) that report whether volumes take writes.
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
//! // The whole volume is headroom here, so that it takes no writes.
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
//! // The server as a whole: it still serves reads.
//! assert_eq!(check("").await?, ServingStatus::Serving);
//! # Ok(())
//! # }
//! ```

use std::convert::Infallible;

use tonic_health::{ServingStatus, server::HealthReporter};

use crate::volume::Readiness;

/// Reports the status of a service by its volumes: SERVING while [all of them take writes](Readiness::takes_writes),
/// otherwise NOT_SERVING.
///
/// Spawn it as a task, as in the example of the [module](self). It sets the status at once, then only when the status
/// changes, and it never returns. When it is dropped, the status stays as it is. Before it is first polled, the health
/// service does not know the name, and answers NOT_FOUND.
///
/// `service` is the name that clients check before they write: the name of a service that writes, or any other. Do not
/// use the empty name, which stands for the whole server, unless the server only writes. Reads and deletes still work
/// when the disk is full. No other code may set the status of the same name.
///
/// `volumes` is a [`Volume`](crate::Volume) or a [`Readiness`] of several.
///
/// # Panics
///
/// If it runs in a tokio runtime whose timer is not enabled.
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
        // A change of the reason alone does not change the status.
        while writes.is_ok() == is_ready {
            writes = readiness.changed(writes).await;
        }
    }
}
