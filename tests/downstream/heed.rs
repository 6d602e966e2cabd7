//! heed.

use std::path::Path;

use super::{
    Items, create,
    heed::{self, Env, EnvOpenOptions, PutFlags},
};
use test_support::mounts::{fill_but, in_runtime, tmpfs, with_own_mounts, with_small_files};
use tower_storage_guard::fault::Cause;

use crate::shared::{Engine, limit_files};
use crate::support::{FORMS, assert_not_refused, assert_refused, assert_too_large};

struct Store {
    env: Env,
    items: Items,
}

impl Store {
    fn open(folder: &Path, map_size: usize) -> Self {
        // SAFETY: the files are in a temporary folder of this process, and no other process writes to them.
        let env = unsafe { EnvOpenOptions::new().map_size(map_size).open(folder) }.unwrap();
        let items = create(&env);
        Self { env, items }
    }

    fn put(&self, key: &str, size: usize) -> heed::Result<()> {
        self.put_with(PutFlags::empty(), key, size)
    }

    fn put_with(&self, flags: PutFlags, key: &str, size: usize) -> heed::Result<()> {
        let mut write = self.env.write_txn()?;
        self.items
            .put_with_flags(&mut write, flags, key, &vec![7; size])?;
        write.commit()
    }
}

#[tokio::test]
async fn a_full_map_and_a_key_that_is_there() {
    let folder = tempfile::tempdir().unwrap();
    let store = Engine::new(Store::open(folder.path(), 1 << 20));
    let put = store.each_time(|store| store.put("large", 2 << 20));
    assert_refused(Cause::DatabaseFull, put).await;

    let twice = store.each_time(|store| {
        store.put("key", 1)?;
        store.put_with(PutFlags::NO_OVERWRITE, "key", 1)
    });
    assert_not_refused(twice).await;
    assert_eq!(store.errors()[FORMS], "Mdb(KeyExist)");
}

/// For a write that is cut short, LMDB only reports an I/O error.
#[test]
#[ignore = "mounts filesystems: run by `make test`"]
fn a_full_disk_and_one_that_fills_up() {
    with_own_mounts(|| {
        in_runtime(async {
            let folder = tempfile::tempdir().unwrap();
            let disk = tmpfs(folder.path(), "size=8m");
            let store = Store::open(&disk, 1 << 30);
            store.put("small", 1 << 10).unwrap();
            fill_but(&disk, 0);
            let store = Engine::new(store);
            let put = store.each_time(|store| store.put("large", 1 << 20));
            assert_refused(Cause::DiskFull, put.clone()).await;

            std::fs::remove_file(disk.join("filler")).unwrap();
            put().await.unwrap();
            fill_but(&disk, 64 << 10);
            assert_not_refused(store.each_time(|store| store.put("larger", 2 << 20))).await;
            let errors = store.errors();
            assert!(errors[FORMS].contains("code: 5"), "{errors:?}");
        });
    });
}

#[test]
fn a_limit_of_the_process_is_no_fault() {
    with_small_files(|| {
        in_runtime(async {
            let folder = tempfile::tempdir().unwrap();
            let store = Engine::new(Store::open(folder.path(), 1 << 30));
            limit_files("4096");
            assert_too_large(false, store.each_time(|store| store.put("large", 1 << 20))).await;
            let errors = store.errors();
            assert!(errors[0].contains("FileTooLarge"), "{errors:?}");
        });
    });
}
