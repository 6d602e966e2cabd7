//! redb.

use std::path::Path;

use super::redb::{self, Database, TableDefinition};
#[allow(unused_imports, reason = "traits that not every version has")]
use super::*;
use test_support::mounts::{fill_but, in_runtime, tmpfs, with_own_mounts, with_small_files};
use tower_storage_guard::fault::Cause;

use crate::shared::{Engine, limit_files};
use crate::support::{assert_not_refused, assert_refused, assert_too_large};

const TABLE: TableDefinition<u64, &[u8]> = TableDefinition::new("table");

fn put(db: &Database, key: u64, size: usize) -> Result<(), redb::Error> {
    let write = db.begin_write()?;
    write
        .open_table(TABLE)?
        .insert(key, vec![7; size].as_slice())?;
    Ok(write.commit()?)
}

fn has(db: &Database, key: u64) -> bool {
    let table = db.begin_read().unwrap().open_table(TABLE).unwrap();
    table.get(key).unwrap().is_some()
}

fn open(folder: &Path) -> Database {
    Database::create(folder.join("redb")).unwrap()
}

#[test]
#[ignore = "mounts filesystems: run by `make test`"]
fn a_full_disk_until_there_is_room_and_the_database_is_reopened() {
    with_own_mounts(|| {
        in_runtime(async {
            let folder = tempfile::tempdir().unwrap();
            let disk = tmpfs(folder.path(), "size=16m");
            let db = open(&disk);
            put(&db, 1, 1 << 10).unwrap();
            fill_but(&disk, 64 << 10);

            let db = Engine::new(db);
            assert_refused(Cause::DiskFull, db.each_time(|db| put(db, 2, 4 << 20))).await;
            let errors = db.errors();
            assert!(errors[0].contains("StorageFull"), "{errors:?}");
            assert_eq!(errors[1], "PreviousIo");

            std::fs::remove_file(disk.join("filler")).unwrap();
            let still = db.each_time(|db| put(db, 2, 4 << 20));
            assert!(still().await.is_err());
            db.close();
            let db = open(&disk);
            put(&db, 2, 4 << 20).unwrap();
            assert!(has(&db, 1) && has(&db, 2));
        });
    });
}

#[test]
fn a_limit_of_the_process_is_no_fault_and_neither_is_what_follows() {
    with_small_files(|| {
        in_runtime(async {
            let folder = tempfile::tempdir().unwrap();
            limit_files("unlimited");
            let db = Engine::new(open(folder.path()));
            limit_files("4096");
            assert_too_large(true, db.each_time(|db| put(db, 1, 4 << 20))).await;
            let errors = db.errors();
            assert!(errors[0].contains("FileTooLarge"), "{errors:?}");
            assert_eq!(errors[1], "PreviousIo");
        });
    });
}

#[tokio::test]
async fn a_table_that_is_missing_is_no_fault() {
    let folder = tempfile::tempdir().unwrap();
    let db = Engine::new(open(folder.path()));
    assert_not_refused(db.each_time(|db| db.begin_read().unwrap().open_table(TABLE).map(drop)))
        .await;
    assert!(db.errors()[0].contains("TableDoesNotExist"));
}
