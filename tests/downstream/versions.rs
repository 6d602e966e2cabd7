//! The libraries that are classified in several versions. All versions of a library run the same file, to which the
//! version's module gives the library under its own name, and what differs.
#![allow(clippy::duplicate_mod, reason = "this is the point of it")]

#[path = "."]
mod async_nats046 {
    use async_nats046 as async_nats;
    #[path = "async_nats.rs"]
    mod tests;
}
#[path = "."]
mod async_nats049 {
    use async_nats049 as async_nats;
    #[path = "async_nats.rs"]
    mod tests;
}
#[path = "."]
mod async_nats051 {
    use ::async_nats;
    #[path = "async_nats.rs"]
    mod tests;
}

/// What differs between the versions of clickhouse: whether an insert begins with a request, and the name of a setter.
macro_rules! clickhouse {
    ($clickhouse:ident, insert: [$($awaited:tt)?], setter: $with:ident) => {
        use ::$clickhouse::{self as clickhouse, Client, Row, error::Result, insert::Insert};

        async fn insert_into<T: Row>(client: &Client, table: &str) -> Result<Insert<T>> {
            client.insert(table)$(.$awaited)?
        }

        fn with_setting(client: Client, name: &str, value: &str) -> Client {
            client.$with(name, value)
        }
    };
}
#[path = "."]
mod clickhouse013 {
    clickhouse!(clickhouse013, insert: [], setter: with_option);

    /// It reads the content of an answer, and not its headers.
    const READS_HEADERS: bool = false;

    /// Describes no table.
    fn without_validation(client: Client) -> Client {
        client
    }

    #[path = "clickhouse.rs"]
    mod tests;
}
#[path = "."]
mod clickhouse014 {
    clickhouse!(clickhouse014, insert: [await], setter: with_option);

    const READS_HEADERS: bool = true;

    fn without_validation(client: Client) -> Client {
        client.with_validation(false)
    }

    #[path = "clickhouse.rs"]
    mod tests;
}
#[path = "."]
mod clickhouse015 {
    clickhouse!(clickhouse, insert: [await], setter: with_setting);

    const READS_HEADERS: bool = true;

    fn without_validation(client: Client) -> Client {
        client.with_validation(false)
    }

    #[path = "clickhouse.rs"]
    mod tests;
}

#[cfg(target_os = "linux")]
#[path = "."]
mod fjall2 {
    use std::path::Path;

    use fjall2::{self as fjall, Config, PartitionCreateOptions, Result};
    type Database = fjall::Keyspace;
    type Keyspace = fjall::PartitionHandle;

    fn open(folder: &Path) -> Result<Database> {
        Config::new(folder).open()
    }

    fn keyspace(database: &Database) -> Result<Keyspace> {
        database.open_partition("items", PartitionCreateOptions::default())
    }

    /// It does not notice a second instance.
    fn misuse(database: &Database, _: &Path) -> Result<()> {
        let items = keyspace(database)?;
        database.delete_partition(items.clone())?;
        items.insert("key", "value")
    }
    const MISUSED: &str = "PartitionDeleted";
    /// A failed write to its journal may be tried again.
    const AFTER_A_FAILURE: &str = "Io(";

    #[path = "fjall.rs"]
    mod tests;
}
#[cfg(target_os = "linux")]
#[path = "."]
mod fjall3 {
    use std::path::Path;

    use fjall::{self, Database, Keyspace, KeyspaceCreateOptions, Result};

    fn open(folder: &Path) -> Result<Database> {
        Database::builder(folder).open()
    }

    fn keyspace(database: &Database) -> Result<Keyspace> {
        database.keyspace("items", KeyspaceCreateOptions::default)
    }

    /// Opens it a second time.
    fn misuse(_: &Database, folder: &Path) -> Result<()> {
        open(folder).map(drop)
    }
    const MISUSED: &str = "Locked";
    const AFTER_A_FAILURE: &str = "Poisoned";

    #[path = "fjall.rs"]
    mod tests;
}

/// Of heed before 0.23.
#[cfg(target_os = "linux")]
macro_rules! heed {
    ($heed:ident) => {
        use ::$heed::{
            self as heed, Database, Env,
            types::{Bytes, Str},
        };
        type Items = Database<Str, Bytes>;

        fn create(env: &Env) -> Items {
            let mut write = env.write_txn().unwrap();
            let items = env.create_database(&mut write, None).unwrap();
            write.commit().unwrap();
            items
        }
    };
}
#[cfg(target_os = "linux")]
#[path = "."]
mod heed020 {
    heed!(heed020);
    #[path = "heed.rs"]
    mod tests;
}
#[cfg(target_os = "linux")]
#[path = "."]
mod heed021 {
    heed!(heed021);
    #[path = "heed.rs"]
    mod tests;
}
#[cfg(target_os = "linux")]
#[path = "."]
mod heed022 {
    heed!(heed022);
    #[path = "heed.rs"]
    mod tests;
}
#[cfg(target_os = "linux")]
#[path = "."]
mod heed023 {
    use heed::{
        self, CommitOrAbort, Database, Env,
        types::{Bytes, Str},
    };
    type Items = Database<'static, Str, Bytes>;

    fn create(env: &Env) -> Items {
        let write = env.write_txn().unwrap();
        let items: heed::Result<_> = env.create_databases_and_commit(write, |opener, write| {
            let items = opener.create_database(write, None)?;
            Ok(CommitOrAbort::<_, ()>::Commit(items))
        });
        items.unwrap().unwrap_commit()
    }

    #[path = "heed.rs"]
    mod tests;
}

#[path = "."]
mod mongodb2 {
    use mongodb2::{
        self as mongodb, Collection,
        bson::{Document, doc},
        error::Result,
        options::InsertManyOptions,
    };

    async fn insert_one(documents: Collection<Document>) -> Result<()> {
        documents.insert_one(doc! { "a": 1 }, None).await.map(drop)
    }

    async fn insert_many(documents: Collection<Document>) -> Result<()> {
        let (first, second) = (doc! { "a": 1 }, doc! { "a": 2 });
        let unordered = InsertManyOptions::builder().ordered(false).build();
        let inserts = documents.insert_many([first, second], unordered);
        inserts.await.map(drop)
    }

    async fn update(documents: Collection<Document>) -> Result<()> {
        let set = documents.update_one(doc! {}, doc! { "$set": { "a": 1 } }, None);
        set.await.map(drop)
    }

    /// It has none.
    const BULK_WRITE: Option<BulkWrite> = None;
    type BulkWrite = fn(Collection<Document>) -> std::future::Ready<Result<()>>;

    #[path = "mongodb.rs"]
    mod tests;
}
#[path = "."]
mod mongodb3 {
    use futures_util::future::BoxFuture;
    use mongodb::{
        self, Collection, Namespace,
        bson::{Document, doc},
        error::Result,
        options::InsertOneModel,
    };

    async fn insert_one(documents: Collection<Document>) -> Result<()> {
        documents.insert_one(doc! { "a": 1 }).await.map(drop)
    }

    async fn insert_many(documents: Collection<Document>) -> Result<()> {
        let (first, second) = (doc! { "a": 1 }, doc! { "a": 2 });
        let inserts = documents.insert_many([first, second]).ordered(false);
        inserts.await.map(drop)
    }

    async fn update(documents: Collection<Document>) -> Result<()> {
        let set = documents.update_one(doc! {}, doc! { "$set": { "a": 1 } });
        set.await.map(drop)
    }

    async fn bulk_write(documents: Collection<Document>) -> Result<()> {
        let insert = InsertOneModel::builder()
            .namespace(Namespace::new("store", "documents"))
            .document(doc! { "a": 1 })
            .build();
        documents.client().bulk_write([insert]).await.map(drop)
    }

    const BULK_WRITE: Option<BulkWrite> = Some(|documents| Box::pin(bulk_write(documents)));
    type BulkWrite = fn(Collection<Document>) -> BoxFuture<'static, Result<()>>;

    #[path = "mongodb.rs"]
    mod tests;
}

#[cfg(target_os = "linux")]
#[path = "."]
#[allow(clippy::result_large_err, reason = "the size is that of its own error")]
mod redb2 {
    use redb2 as redb;
    #[path = "redb.rs"]
    mod tests;
}
#[cfg(target_os = "linux")]
#[path = "."]
mod redb3 {
    use redb3::{self as redb, ReadableDatabase as _};
    #[path = "redb.rs"]
    mod tests;
}
#[cfg(target_os = "linux")]
#[path = "."]
mod redb4 {
    use redb::{self, ReadableDatabase as _};
    #[path = "redb.rs"]
    mod tests;
}

#[cfg(target_os = "linux")]
#[path = "."]
mod redis027 {
    use redis027 as redis;
    const fn patience(time: std::time::Duration) -> std::time::Duration {
        time
    }
    #[path = "redis.rs"]
    mod tests;
}
#[cfg(target_os = "linux")]
#[path = "."]
mod redis029 {
    use redis029 as redis;
    const fn patience(time: std::time::Duration) -> std::time::Duration {
        time
    }
    #[path = "redis.rs"]
    mod tests;
}
#[cfg(target_os = "linux")]
#[path = "."]
mod redis032 {
    use redis032 as redis;
    const fn patience(time: std::time::Duration) -> std::time::Duration {
        time
    }
    #[path = "redis.rs"]
    mod tests;
}
#[cfg(target_os = "linux")]
#[path = "."]
mod redis1 {
    use ::redis;
    fn patience(time: std::time::Duration) -> Option<std::time::Duration> {
        Some(time)
    }
    #[path = "redis.rs"]
    mod tests;
}

#[path = "."]
mod sea_orm1 {
    use sea_orm1 as sea_orm;
    use sqlx08 as sqlx;
    fn held(error: sqlx::Error) -> sqlx::Error {
        error
    }
    #[path = "sea_orm.rs"]
    mod tests;
}
#[path = "."]
mod sea_orm2 {
    use ::sea_orm;
    use ::sqlx;
    fn held(error: sqlx::Error) -> std::sync::Arc<sqlx::Error> {
        error.into()
    }
    #[path = "sea_orm.rs"]
    mod tests;
}

#[path = "."]
mod sqlx08 {
    use sqlx08 as sqlx;
    #[path = "sqlx.rs"]
    mod tests;
}
#[path = "."]
mod sqlx09 {
    use ::sqlx;
    #[path = "sqlx_sqlite.rs"]
    mod sqlite;
    #[path = "sqlx.rs"]
    mod tests;
}

#[cfg(target_os = "linux")]
#[path = "."]
mod tantivy025 {
    use tantivy025 as tantivy;
    #[path = "tantivy.rs"]
    mod tests;
}
#[cfg(target_os = "linux")]
#[path = "."]
mod tantivy027 {
    use ::tantivy;
    #[path = "tantivy.rs"]
    mod tests;
}

#[path = "."]
mod tiberius012 {
    use tiberius012 as tiberius;
    #[path = "tiberius.rs"]
    mod tests;
}
#[path = "."]
mod tiberius013 {
    use ::tiberius;
    #[path = "tiberius.rs"]
    mod tests;
}
