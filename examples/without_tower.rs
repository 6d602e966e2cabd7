//! Plain hyper, without a layer: the handler reserves by itself, and sends the guard's refusals.
//!
//! ```sh
//! cargo run --example without_tower
//! curl -i -T README.md http://127.0.0.1:3012/ # 201
//! head -c 2M /dev/zero | curl -i -X PUT --data-binary @- http://127.0.0.1:3012/ # 507
//! ```

use std::{convert::Infallible, env};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Request, Response, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tower_storage_guard::quota::{Limits, MemoryQuota};
use tower_storage_guard::refusal::{Asked, Dialect, Http, Refusal};
use tower_storage_guard::{BoxError, Demand, Guard};

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let guard = Guard::quota_only(MemoryQuota::new(Limits::bytes(1 << 20)));
    let addr = env::args().nth(1).unwrap_or("127.0.0.1:3012".into());
    let listener = TcpListener::bind(addr).await?;
    println!("listening on http://{}", listener.local_addr()?);
    loop {
        let (stream, _) = listener.accept().await?;
        let guard = guard.clone();
        let service = service_fn(move |request| answer(guard.clone(), request));
        tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
    }
}

async fn answer(
    guard: Guard<MemoryQuota>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let asked = Asked::from(&request);
    Ok(match store(&guard, request).await {
        Ok(()) => status(201),
        Err(error) => match error.downcast::<tower_storage_guard::Refused>() {
            Ok(refused) => Http::default()
                .render(&Refusal::from(*refused), &asked)
                .map(Full::new),
            Err(_) => status(500),
        },
    })
}

async fn store(guard: &Guard<MemoryQuota>, request: Request<Incoming>) -> Result<(), BoxError> {
    // Content-Length is the size. For a chunked body, the reservation grows once the size is known.
    let demand = match hyper::body::Body::size_hint(request.body()).exact() {
        Some(bytes) => Demand::known(bytes),
        None => Demand::unknown(),
    };
    let reservation = guard.reserve("all", demand).await?;
    let content = request.into_body().collect().await?.to_bytes();
    let more = (content.len() as u64).saturating_sub(reservation.reserved());
    reservation.grow(more).await?;
    reservation.stored(content.len() as u64);
    reservation.commit().await;
    Ok(())
}

fn status(status: u16) -> Response<Full<Bytes>> {
    let answer = Response::builder().status(status).body(Full::default());
    answer.expect("a valid status")
}
