//! RocksDB.
#![cfg(test)]

#[path = "../shared.rs"]
mod shared;
#[path = "../support.rs"]
mod support;

use std::path::Path;

use rocksdb::{DB, Options};
use test_support::mounts::{fill_but, in_runtime, tmpfs, with_own_mounts, with_small_files};
use tower_storage_guard::fault::{self, Cause, Classifier};

use crate::{
    shared::{Engine, limit_files, noise_of},
    support::{assert_not_refused, assert_not_refused_by, assert_refused_by},
};

/// As in the documentation of `fault::rocksdb`.
fn classifier() -> Classifier {
    Classifier::default()
        .with(|error| fault::rocksdb(error.downcast_ref::<rocksdb::Error>()?.as_ref()))
}

fn open(folder: &Path) -> DB {
    DB::open_default(folder.join("rocksdb")).unwrap()
}

fn put(db: &DB, size: usize) -> Result<(), rocksdb::Error> {
    db.put("key", noise_of(size))
}

#[test]
fn a_full_disk_until_there_is_room_and_the_database_is_reopened() {
    with_own_mounts(|| {
        in_runtime(async {
            let folder = tempfile::tempdir().unwrap();
            let disk = tmpfs(folder.path(), "size=16m");
            let db = open(&disk);
            put(&db, 1 << 10).unwrap();
            fill_but(&disk, 64 << 10);
            let db = Engine::new(db);
            let put_large = db.each_time(|db| put(db, 4 << 20));
            assert_refused_by(classifier(), Cause::DiskFull, put_large.clone()).await;
            println!("{:#?}", db.errors());
            // No other classifier knows this text.
            assert_not_refused(put_large).await;

            std::fs::remove_file(disk.join("filler")).unwrap();
            db.close();
            let db = open(&disk);
            put(&db, 4 << 20).unwrap();
        });
    });
}

#[test]
fn a_limit_of_the_process_is_no_fault() {
    with_small_files(|| {
        in_runtime(async {
            let folder = tempfile::tempdir().unwrap();
            limit_files("unlimited");
            let db = Engine::new(open(folder.path()));
            limit_files("4096");
            assert_not_refused_by(classifier(), db.each_time(|db| put(db, 1 << 20))).await;
            let errors = db.errors();
            assert!(errors[0].contains("IO error: "), "{errors:?}");
        });
    });
}

#[test]
fn a_database_that_is_missing_is_no_fault() {
    in_runtime(async {
        let folder = tempfile::tempdir().unwrap();
        let missing = Engine::new(folder.path().join("rocksdb"));
        let open = missing.each_time(|path| DB::open(&Options::default(), path).map(drop));
        assert_not_refused_by(classifier(), open).await;
    });
}
