//! fjall.

use std::path::Path;

use super::{
    AFTER_A_FAILURE, Database, Keyspace, MISUSED,
    fjall::{self, PersistMode},
    keyspace, misuse, open,
};
use test_support::mounts::{fill_but, in_runtime, tmpfs, with_own_mounts, with_small_files};
use tower_storage_guard::fault::Cause;

use crate::shared::{Engine, limit_files, noise_of};
use crate::support::{assert_not_refused, assert_refused, assert_too_large};

struct Store {
    items: Keyspace,
    db: Database,
}

impl Store {
    fn open(folder: &Path) -> fjall::Result<Self> {
        let db = open(&folder.join("fjall"))?;
        let items = keyspace(&db)?;
        Ok(Self { items, db })
    }

    fn put(&self, key: &str, size: usize) -> fjall::Result<()> {
        self.items.insert(key, noise_of(size))?;
        self.db.persist(PersistMode::SyncAll)
    }
}

#[test]
#[ignore = "mounts filesystems: run by `make test`"]
fn a_full_disk_until_there_is_room_and_the_database_is_reopened() {
    with_own_mounts(|| {
        in_runtime(async {
            let folder = tempfile::tempdir().unwrap();
            let disk = tmpfs(folder.path(), "size=16m");
            let store = Store::open(&disk).unwrap();
            store.put("small", 1 << 10).unwrap();
            fill_but(&disk, 64 << 10);

            let store = Engine::new(store);
            let put = store.each_time(|store| store.put("large", 4 << 20));
            assert_refused(Cause::DiskFull, put.clone()).await;
            let errors = store.errors();
            assert!(errors[0].contains("StorageFull"), "{errors:?}");
            assert!(errors[1].starts_with(AFTER_A_FAILURE), "{errors:?}");

            std::fs::remove_file(disk.join("filler")).unwrap();
            assert_eq!(put().await.is_err(), AFTER_A_FAILURE == "Poisoned");
            store.close();
            let store = Store::open(&disk).unwrap();
            store.put("large", 4 << 20).unwrap();
            for key in ["small", "large"] {
                assert!(store.items.contains_key(key).unwrap());
            }
        });
    });
}

#[test]
fn a_limit_of_the_process_is_no_fault_and_neither_is_what_follows() {
    with_small_files(|| {
        in_runtime(async {
            let folder = tempfile::tempdir().unwrap();
            limit_files("unlimited");
            let store = Engine::new(Store::open(folder.path()).unwrap());
            limit_files("4096");
            let stays_failed = AFTER_A_FAILURE == "Poisoned";
            let put = store.each_time(|store| store.put("large", 4 << 20));
            assert_too_large(stays_failed, put).await;
            let errors = store.errors();
            assert!(errors[0].contains("FileTooLarge"), "{errors:?}");
            assert!(errors[1].starts_with(AFTER_A_FAILURE), "{errors:?}");
        });
    });
}

#[tokio::test]
async fn a_usage_error_is_no_fault() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("fjall");
    let store = Engine::new(Store::open(folder.path()).unwrap());
    assert_not_refused(store.each_time(move |store| misuse(&store.db, &path))).await;
    assert_eq!(store.errors()[0], MISUSED);
}
