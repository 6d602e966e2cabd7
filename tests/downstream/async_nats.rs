//! NATS JetStream with full streams, accounts, stores and disks.

use std::{path::Path, process::Command};

use super::async_nats::{
    ConnectOptions,
    jetstream::{
        self, Context,
        context::{CreateObjectStoreError, CreateStreamError, PublishError},
        kv,
        object_store::{self, ObjectStore},
        stream::{Config, DiscardPolicy, StorageType},
    },
};
use bytes::Bytes;
use tower_storage_guard::fault::Cause;

use crate::support::{Running, assert_not_refused, assert_refused, free_port, listens, with};

/// A server that stores its files in `store`, with the further JetStream settings in `config`, and a client of it.
async fn server(folder: &Path, store: &Path, config: &str) -> (Running, Context) {
    let port = free_port();
    let config = format!(
        "listen: \"127.0.0.1:{port}\"\n\
        jetstream {{ store_dir: \"{}\", max_file_store: 4MB, max_memory_store: 1MB }}\n\
        {config}",
        store.display()
    );
    let file = folder.join("config");
    std::fs::write(&file, config).unwrap();
    let mut command = Command::new("nats-server");
    command.arg("--config").arg(&file);
    let running = Running::start(&mut command, &folder.join("log"), || listens(port));
    let options = ConnectOptions::with_user_and_password("a".to_owned(), "a".to_owned());
    let client = options.connect(format!("127.0.0.1:{port}")).await.unwrap();
    (running, jetstream::new(client))
}

/// A stream that refuses new messages when it is full, with one subject of the same name.
fn stream(name: &str) -> Config {
    Config {
        name: name.to_owned(),
        subjects: vec![name.to_owned()],
        discard: DiscardPolicy::New,
        ..Config::default()
    }
}

async fn publish(
    context: Context,
    subject: &'static str,
    bytes: usize,
) -> Result<(), PublishError> {
    let content = Bytes::from(vec![b'x'; bytes]);
    context.publish(subject, content).await?.await.map(drop)
}

/// Publishes until that fails, which has to happen within a hundred attempts.
async fn fill(context: &Context, subject: &'static str, bytes: usize) {
    for _ in 0..100 {
        if publish(context.clone(), subject, bytes).await.is_err() {
            return;
        }
    }
    panic!("{subject} does not fill up");
}

async fn create(context: Context, config: Config) -> Result<(), CreateStreamError> {
    context.create_stream(config).await.map(drop)
}

async fn put_value(values: kv::Store, key: &'static str) -> Result<u64, kv::PutError> {
    values.put(key, vec![b'x'; 60_000].into()).await
}

async fn create_value(values: kv::Store, key: &'static str) -> Result<u64, kv::CreateError> {
    values.create(key, vec![b'x'; 60_000].into()).await
}

async fn put_object(objects: ObjectStore, bytes: usize) -> Result<(), object_store::PutError> {
    let content = vec![b'x'; bytes];
    objects.put("object", &mut &content[..]).await.map(drop)
}

async fn create_bucket(
    context: Context,
    max_bytes: i64,
) -> Result<ObjectStore, CreateObjectStoreError> {
    let config = object_store::Config {
        bucket: format!("of-{max_bytes}"),
        max_bytes,
        ..object_store::Config::default()
    };
    context.create_object_store(config).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs nats-server"]
async fn a_full_stream_or_bucket() {
    let folder = tempfile::tempdir().unwrap();
    let (_server, context) = server(folder.path(), folder.path(), "").await;
    let bytes = Config {
        max_bytes: 100_000,
        ..stream("bytes")
    };
    let messages = Config {
        max_messages: 2,
        ..stream("messages")
    };
    for config in [bytes, messages] {
        create(context.clone(), config).await.unwrap();
    }
    fill(&context, "bytes", 10_000).await;
    assert_refused(
        Cause::CollectionFull,
        with(&context, |it| publish(it, "bytes", 10_000)),
    )
    .await;
    fill(&context, "messages", 1).await;
    assert_refused(
        Cause::CollectionFull,
        with(&context, |it| publish(it, "messages", 1)),
    )
    .await;

    // The client cannot create such a bucket with Debian's version of the server, because it asks for account
    // information that this version does not have.
    let bucket = Config {
        subjects: vec!["$KV.values.>".to_owned()],
        max_bytes: 100_000,
        max_messages_per_subject: 1,
        ..stream("KV_values")
    };
    create(context.clone(), bucket).await.unwrap();
    let values = context.get_key_value("values").await.unwrap();
    put_value(values.clone(), "first").await.unwrap();
    assert_refused(
        Cause::CollectionFull,
        with(&values, |it| put_value(it, "second")),
    )
    .await;
    assert_refused(
        Cause::CollectionFull,
        with(&values, |it| create_value(it, "third")),
    )
    .await;
    // It exists already.
    assert_not_refused(with(&values, |it| create_value(it, "first"))).await;

    let objects = create_bucket(context, 100_000).await.unwrap();
    assert_refused(
        Cause::CollectionFull,
        with(&objects, |it| put_object(it, 200_000)),
    )
    .await;
    put_object(objects, 10_000).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs nats-server"]
async fn other_refusals_of_a_stream_are_no_fault() {
    let folder = tempfile::tempdir().unwrap();
    let (_server, context) = server(folder.path(), folder.path(), "").await;
    let once = Config {
        max_messages: 9,
        max_messages_per_subject: 1,
        discard_new_per_subject: true,
        ..stream("once")
    };
    let small = Config {
        max_message_size: 10,
        ..stream("small")
    };
    for config in [once, small] {
        create(context.clone(), config).await.unwrap();
    }
    publish(context.clone(), "once", 1).await.unwrap();
    assert_not_refused(with(&context, |it| publish(it, "once", 1))).await;
    assert_not_refused(with(&context, |it| publish(it, "small", 11))).await;
    assert_not_refused(with(&context, |it| publish(it, "of.no.stream", 1))).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs nats-server"]
async fn a_full_store() {
    let folder = tempfile::tempdir().unwrap();
    let (_server, context) = server(folder.path(), folder.path(), "").await;
    create(context.clone(), stream("unlimited")).await.unwrap();
    fill(&context, "unlimited", 500_000).await;
    let publishing = with(&context, |it| publish(it, "unlimited", 500_000));
    assert_refused(Cause::DatabaseFull, publishing).await;

    let reserving = |storage| {
        let config = Config {
            max_bytes: 9_000_000,
            storage,
            ..stream("reserved")
        };
        with(&context, move |it| create(it, config.clone()))
    };
    assert_refused(Cause::DatabaseFull, reserving(StorageType::File)).await;
    assert_not_refused(reserving(StorageType::Memory)).await;
    let bucket = with(&context, |it| async {
        create_bucket(it, 9_000_000).await.map(drop)
    });
    assert_refused(Cause::DatabaseFull, bucket).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs nats-server"]
async fn a_full_account() {
    let folder = tempfile::tempdir().unwrap();
    let account = "accounts { A { users: [{ user: a, password: a }], jetstream { max_file: 1MB, max_streams: 1 } } }";
    let (_server, context) = server(folder.path(), folder.path(), account).await;
    create(context.clone(), stream("full")).await.unwrap();
    fill(&context, "full", 200_000).await;
    assert_refused(
        Cause::QuotaExceeded,
        with(&context, |it| publish(it, "full", 200_000)),
    )
    .await;
    assert_not_refused(with(&context, |it| create(it, stream("another")))).await;
}

#[cfg(target_os = "linux")]
#[test]
#[ignore = "needs nats-server, and mounts"]
fn a_full_disk() {
    use test_support::mounts::{fill_but, in_runtime, tmpfs, with_own_mounts};

    with_own_mounts(|| {
        let folder = tempfile::tempdir().unwrap();
        let store = tmpfs(&folder.path().join("store"), "size=4m");
        in_runtime(async {
            let (_server, context) = server(folder.path(), &store, "").await;
            create(context.clone(), stream("full")).await.unwrap();
            fill_but(&store, 0);
            let publishing = with(&context, |it| publish(it, "full", 100));
            assert_refused(Cause::DiskFull, publishing.clone()).await;
            assert_not_refused(with(&context, |it| publish(it, "of.no.stream", 100))).await;
            std::fs::remove_file(store.join("filler")).unwrap();
            publishing().await.unwrap();
        });
    });
}
