//! sqlx 0.8 on really full SQLite databases.
#![cfg(test)]

#[path = "."]
mod sqlx08 {
    use ::sqlx;
    #[path = "../sqlx_sqlite.rs"]
    mod errors;
}

use std::{
    future::ready,
    path::Path,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use sqlx::{Connection as _, SqliteConnection};
use test_support::mounts::{fill_but, in_runtime, tmpfs, with_own_mounts};
use tower::{Layer as _, ServiceExt as _, service_fn};
use tower_storage_guard::{MeteredBody, StorageGuardLayer, quota::NoQuota};

const LARGE: &str = "INSERT INTO photos VALUES (2, zeroblob(3000000))";
const TWICE: &str = "INSERT INTO photos VALUES (1, ''), (1, '')";

async fn execute(url: &str, sql: &str) -> sqlx::Result<()> {
    let mut connection = SqliteConnection::connect(url).await?;
    let done = sqlx::raw_sql(sql).execute(&mut connection).await;
    // Otherwise a thread closes it later, and keeps the files that the next connection should find missing.
    let closed = connection.close().await;
    done?;
    closed
}

/// The answer of a guarded service that fails with this error: its status and content. The error, if it is no fault.
async fn answer(error: sqlx::Error) -> Result<(StatusCode, String), sqlx::Error> {
    let error = Arc::new(Mutex::new(Some(error)));
    let service = service_fn(move |_: Request<MeteredBody<Full<Bytes>>>| {
        let error = error.lock().unwrap().take().expect("called once");
        ready(Err::<Response<Full<Bytes>>, _>(error))
    });
    let guard = StorageGuardLayer::quota_only(NoQuota);
    let request = Request::put("/").body(Full::default()).unwrap();
    let answer = guard.layer(service).oneshot(request).await?;
    let status = answer.status();
    let content = answer.into_body().collect().await;
    let content = content.map_err(|_| "no content").unwrap().to_bytes();
    Ok((status, String::from_utf8(content.to_vec()).unwrap()))
}

async fn assert_refused(url: &str, sql: &str, reason: &str) {
    let error = execute(url, sql).await.unwrap_err();
    let (status, content) = answer(error).await.unwrap();
    assert_eq!(status, StatusCode::INSUFFICIENT_STORAGE);
    assert!(content.contains(reason), "{content}");
}

async fn create(folder: &Path, journal: &str) -> String {
    let url = format!("sqlite://{}", folder.join("photos.db").display());
    let sql = format!("PRAGMA journal_mode = {journal}; CREATE TABLE photos (id UNIQUE, content)");
    execute(&format!("{url}?mode=rwc"), &sql).await.unwrap();
    url
}

#[test]
#[ignore = "mounts filesystems: run by `make test`"]
fn a_full_filesystem() {
    with_own_mounts(|| {
        in_runtime(async {
            for journal in ["DELETE", "WAL"] {
                let folder = tempfile::tempdir().unwrap();
                let disk = tmpfs(&folder.path().join("small"), "size=1m");
                let url = create(&disk, journal).await;
                assert_refused(&url, LARGE, "database_full").await;
                if journal == "WAL" {
                    // There is no room for the index that readers and writers share.
                    fill_but(&disk, 0);
                    assert_refused(&url, LARGE, "disk_full").await;
                }
            }
        });
    });
}

#[tokio::test]
async fn a_database_at_its_limit_and_a_unique_violation() {
    let folder = tempfile::tempdir().unwrap();
    let url = create(folder.path(), "DELETE").await;
    let limited = format!("PRAGMA max_page_count = 10; {LARGE}");
    assert_refused(&url, &limited, "database_full").await;

    let error = answer(execute(&url, TWICE).await.unwrap_err()).await;
    assert!(error.unwrap_err().to_string().contains("UNIQUE"));
}
