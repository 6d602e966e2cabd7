//! ClickHouse on a full disk, and the answers of its newer versions.

use std::{path::Path, process::Command};

use super::{
    READS_HEADERS,
    clickhouse::{self, Client, Row, error::Error},
    insert_into, with_setting, without_validation,
};
use axum::{Router, http::StatusCode};
use serde::Serialize;
use tower_storage_guard::fault::Cause;

use crate::support::{
    Running, assert_becomes, assert_not_refused, assert_refused, free_port, listens, with,
};

/// A server of the current version that answers every query with `status`, a code in the header and a text.
async fn answering(code: u32, text: &'static str) -> Client {
    let answer = (
        StatusCode::INTERNAL_SERVER_ERROR,
        [("X-ClickHouse-Exception-Code", code.to_string())],
        text,
    );
    let app = Router::new().fallback(async move || answer.clone());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, app).await });
    Client::default().with_url(format!("http://{address}"))
}

#[derive(Row, Serialize)]
struct Number {
    a: u64,
}

/// Inserts this many generated rows, which hardly compress.
async fn insert(client: Client, rows: u64) -> Result<(), Error> {
    let mut insert = insert_into::<Number>(&client, "t").await?;
    for number in 0..rows {
        let a = number.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        insert.write(&Number { a }).await?;
    }
    insert.end().await
}

async fn execute(client: Client, query: &'static str) -> Result<(), Error> {
    client.query(query).execute().await
}

#[tokio::test]
async fn too_little_room_to_reserve_is_a_fault() {
    let text = "Code: 243. DB::Exception: Cannot reserve 1.00 MiB, not enough space. (NOT_ENOUGH_SPACE) (version 25.8.1.1)\n";
    let full = Some(Cause::DiskFull);
    for (text, cause) in [(text, full), ("", full.filter(|_| READS_HEADERS))] {
        let client = answering(243, text).await;
        assert_becomes(cause, move || {
            execute(client.clone(), "INSERT INTO t SELECT 1")
        })
        .await;
    }
}

#[tokio::test]
async fn a_quota_of_queries_and_too_many_parts_are_no_fault() {
    for (code, text) in [
        (
            201,
            "Code: 201. DB::Exception: Quota for user `u` for 3600s has been exceeded: queries = 2/1. (QUOTA_EXCEEDED)",
        ),
        (
            252,
            "Code: 252. DB::Exception: Too many parts (3000 with average size of 1.00 KiB). (TOO_MANY_PARTS)",
        ),
    ] {
        let client = answering(code, text).await;
        assert_not_refused(with(&client, |it| execute(it, "INSERT INTO t SELECT 1"))).await;
    }
}

/// Starts a server that stores its data in `data`.
fn server(folder: &Path, data: &Path) -> (Running, Client) {
    let [http, tcp, between] = [(); 3].map(|()| free_port());
    let (folder, data) = (folder.display(), data.display());
    let users = "<default><password></password><networks><ip>::/0</ip></networks>\
        <profile>default</profile><quota>default</quota></default>";
    let config = format!(
        "<yandex><logger><level>warning</level><console>1</console></logger>\
        <listen_host>127.0.0.1</listen_host><http_port>{http}</http_port><tcp_port>{tcp}</tcp_port>\
        <interserver_http_port>{between}</interserver_http_port><path>{data}/</path>\
        <tmp_path>{folder}/tmp/</tmp_path><format_schema_path>{folder}/schemas/</format_schema_path>\
        <mark_cache_size>5368709120</mark_cache_size><users_config>config.xml</users_config>\
        <default_profile>default</default_profile><default_database>default</default_database>\
        <profiles><default></default></profiles><users>{users}</users><quotas><default></default></quotas></yandex>"
    );
    let file = format!("{folder}/config.xml");
    std::fs::write(&file, config).unwrap();
    let mut command = Command::new("clickhouse-server");
    command
        .arg(format!("--config-file={file}"))
        .current_dir(folder.to_string());
    let log = format!("{folder}/log");
    let running = Running::start(&mut command, Path::new(&log), || listens(http));
    // Debian's version cannot describe a table in the way that the client asks for.
    let client = Client::default().with_url(format!("http://127.0.0.1:{http}"));
    (running, without_validation(client))
}

#[cfg(target_os = "linux")]
#[test]
#[ignore = "needs clickhouse-server, and mounts"]
fn a_full_disk() {
    use test_support::mounts::{fill_but, in_runtime, tmpfs, with_own_mounts};

    with_own_mounts(|| {
        let folder = tempfile::tempdir().unwrap();
        let data = tmpfs(&folder.path().join("data"), "size=24m");
        in_runtime(async {
            let (_server, client) = server(folder.path(), &data);
            let create = "CREATE TABLE t (a UInt64) ENGINE = MergeTree ORDER BY a";
            execute(client.clone(), create).await.unwrap();
            fill_but(&data, 1 << 20);
            assert_refused(Cause::DiskFull, with(&client, |it| insert(it, 500_000))).await;
            let doing = |query| with(&client, move |it| execute(it, query));
            let many = "INSERT INTO t SELECT cityHash64(number) FROM system.numbers LIMIT 500000";
            assert_refused(Cause::DiskFull, doing(many)).await;
            assert_not_refused(doing("INSERT INTO missing VALUES (1)")).await;
            let with_limit = |limit, query| {
                let client = with_setting(client.clone(), limit, "1");
                with(&client, move |it| execute(it, query))
            };
            let grouping = "INSERT INTO t SELECT number FROM system.numbers GROUP BY number";
            assert_not_refused(with_limit("max_memory_usage", grouping)).await;
            let sleeping = "INSERT INTO t SELECT sleep(2)";
            assert_not_refused(with_limit("max_execution_time", sleeping)).await;
            insert(client, 10).await.unwrap();
        });
    });
}
