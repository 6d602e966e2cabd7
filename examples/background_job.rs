//! A job and a layer on one guard: neither of them takes the room that is reserved for the other.
//!
//! ```sh
//! cargo run --example background_job
//! curl -i -T README.md http://127.0.0.1:3017/readme # 201
//! ```

use std::{env, time::Duration};

use axum::{Router, body::Bytes, extract::Path, http::StatusCode, routing::put};
use tokio::{fs, net::TcpListener, time::sleep};
use tower_storage_guard::quota::{Limits, MemoryQuota};
use tower_storage_guard::{BoxError, Demand, Guard, StorageGuardLayer, Volume};

/// The size of each of the job's files, in bytes.
const REPORT: usize = 256 << 10;

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let quota = MemoryQuota::new(Limits::bytes(1 << 20));
    let guard = Guard::new(Volume::open(".")?).quota(quota);
    tokio::spawn(write_reports(guard.clone()));

    let store = async |Path(name): Path<String>, body: Bytes| {
        let is_plain = !name.starts_with('.') && !name.contains(['/', '\\', ':']);
        let stored = match is_plain {
            true => fs::write(name, body).await,
            false => return StatusCode::BAD_REQUEST,
        };
        stored.map_or(StatusCode::INTERNAL_SERVER_ERROR, |()| StatusCode::CREATED)
    };
    let layer = StorageGuardLayer::new(guard).scope_by(|_| "all");
    let app = Router::new().route("/{name}", put(store)).layer(layer);
    let addr = env::args().nth(1).unwrap_or("127.0.0.1:3017".into());
    let listener = TcpListener::bind(addr).await?;
    println!("listening on http://{}", listener.local_addr()?);
    Ok(axum::serve(listener, app).await?)
}

/// Writes one file after the other while there is room.
async fn write_reports(guard: Guard<MemoryQuota>) {
    for number in 0.. {
        if let Err(error) = write_report(&guard, number).await {
            eprintln!("no report {number}: {error}");
            sleep(Duration::from_secs(1)).await;
        }
    }
}

async fn write_report(guard: &Guard<MemoryQuota>, number: u32) -> Result<(), BoxError> {
    let reservation = guard.reserve("all", Demand::known(REPORT as u64)).await?;
    // If an error drops it, the reservation gives everything back.
    fs::write(format!("report-{number}"), vec![b'.'; REPORT]).await?;
    reservation.commit().await;
    Ok(())
}
