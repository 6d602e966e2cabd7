//! Uploads of the AWS SDK, which sends files in the `aws-chunked` encoding, to a guarded service that decodes them.

use std::sync::{Arc, Mutex};

use aws_sdk_s3::primitives::ByteStream;
use axum::{
    Router,
    body::Bytes,
    extract::{DefaultBodyLimit, State},
    http::{HeaderMap, StatusCode, header::CONTENT_LENGTH},
    routing::put,
};
use tower_storage_guard::{
    Amount, StorageGuardLayer,
    quota::{Limits, MemoryQuota},
    setup::Scoped,
};

use crate::object_stores::by_aws_sdk::client;

const ROOM: usize = 1 << 20;

/// The object, and how many bytes were sent for it.
type Stored = Arc<Mutex<(Vec<u8>, u64)>>;

async fn store(
    State(stored): State<Stored>,
    headers: HeaderMap,
    sent: Bytes,
) -> Result<StatusCode, StatusCode> {
    let length = headers[CONTENT_LENGTH].to_str().unwrap().parse().unwrap();
    let object = decoded(&sent).ok_or(StatusCode::BAD_REQUEST)?;
    *stored.lock().unwrap() = (object, length);
    Ok(StatusCode::OK)
}

/// The content of an `aws-chunked` body: chunks that begin with their length, up to an empty one.
fn decoded(mut sent: &[u8]) -> Option<Vec<u8>> {
    let mut object = Vec::new();
    loop {
        let end = sent.windows(2).position(|two| two == b"\r\n")?;
        let line = str::from_utf8(&sent[..end]).ok()?;
        let length = usize::from_str_radix(line.split(';').next()?, 16).ok()?;
        if length == 0 {
            return Some(object);
        }
        object.extend_from_slice(sent.get(end + 2..end + 2 + length)?);
        sent = sent.get(end + 2 + length + 2..)?;
    }
}

/// Uploads a file of this size. Returns whether it was stored, and how many bytes were sent for it.
async fn upload(guard: StorageGuardLayer<MemoryQuota, Scoped>, size: usize) -> Option<u64> {
    let stored = Stored::default();
    let app = Router::new()
        .route("/bucket/key", put(store))
        .layer(guard)
        .layer(DefaultBodyLimit::disable())
        .with_state(Arc::clone(&stored));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let server = tokio::spawn(async { axum::serve(listener, app).await });
    let file = tempfile::NamedTempFile::new().unwrap();
    let content: Vec<_> = (0..size).map(|at| (at % 251) as u8).collect();
    std::fs::write(file.path(), &content).unwrap();
    let body = ByteStream::from_path(file.path()).await.unwrap();
    let put = client(&url)
        .put_object()
        .bucket("bucket")
        .key("key")
        .body(body);
    let answer = put.send().await;
    server.abort();
    let (object, sent) = std::mem::take(&mut *stored.lock().unwrap());
    match answer {
        Ok(_) => assert!(object == content, "the object is torn"),
        Err(error) => {
            let answer = error.raw_response().unwrap();
            assert_eq!(answer.status().as_u16(), 507, "{error:?}");
            return None;
        }
    }
    Some(sent)
}

#[tokio::test]
async fn an_object_that_fits_exactly_is_stored() {
    let guard =
        |quota: &MemoryQuota| StorageGuardLayer::quota_only(quota.clone()).scope_by(|_| "bucket");
    let quota = MemoryQuota::new(Limits::bytes(ROOM as u64));
    let decodes = || guard(&quota).decodes_aws_chunked();
    assert_eq!(upload(decodes(), ROOM + 1).await, None);
    let sent = upload(decodes(), ROOM).await.unwrap();
    // Otherwise this shows nothing.
    assert!(sent > ROOM as u64, "{sent}");
    assert_eq!(quota.usage("bucket").used, Amount::new(ROOM as u64, 1));
    // A service that does not say so is charged for what is sent.
    let other = MemoryQuota::new(Limits::bytes(ROOM as u64));
    assert_eq!(upload(guard(&other), ROOM).await, None);
}
