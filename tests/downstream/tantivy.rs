//! tantivy.

use std::{path::Path, thread::sleep, time::Duration};

use super::tantivy::{
    self, Index, IndexWriter, TantivyDocument,
    schema::{Field, Schema, TEXT},
};
use test_support::mounts::{fill_but, in_runtime, tmpfs, with_own_mounts, with_small_files};
use tower_storage_guard::fault::Cause;

use crate::shared::{Engine, limit_files, noise};
use crate::support::{assert_not_refused, assert_refused, assert_too_large};

/// Enough for files that are larger than the buffers.
const LARGE: usize = 1 << 20;

struct Store {
    index: Index,
    text: Field,
}

impl Store {
    fn create(folder: &Path) -> Self {
        let mut schema = Schema::builder();
        let text = schema.add_text_field("text", TEXT);
        let index = Index::create_in_dir(folder, schema.build()).unwrap();
        Self { index, text }
    }

    fn writer(&self) -> tantivy::Result<IndexWriter> {
        self.index.writer_with_num_threads(1, 15_000_000)
    }

    fn add(&self, writer: &IndexWriter, size: usize) -> tantivy::Result<()> {
        let words = noise().map(|number| format!("{number:016x}"));
        let words: Vec<_> = words.take(size / 16).collect();
        let mut document = TantivyDocument::new();
        document.add_text(self.text, words.join(" "));
        writer.add_document(document).map(drop)
    }

    fn put(&self, size: usize) -> tantivy::Result<()> {
        let mut writer = self.writer()?;
        self.add(&writer, size)?;
        writer.commit().map(drop)
    }

    fn documents(&self) -> u64 {
        self.index.reader().unwrap().searcher().num_docs()
    }
}

#[test]
#[ignore = "mounts filesystems: run by `make test`"]
fn a_full_disk_until_there_is_room() {
    with_own_mounts(|| {
        in_runtime(async {
            let folder = tempfile::tempdir().unwrap();
            let disk = tmpfs(folder.path(), "size=64m");
            let store = Store::create(&disk);
            store.put(1 << 10).unwrap();
            fill_but(&disk, 64 << 10);
            let store = Engine::new(store);
            let put = store.each_time(|store| store.put(LARGE));
            assert_refused(Cause::DiskFull, put.clone()).await;

            std::fs::remove_file(disk.join("filler")).unwrap();
            put().await.unwrap();
            let documents = store.each_time(|store| tantivy::Result::Ok(store.documents()));
            assert_eq!(documents().await.unwrap(), 2);
        });
    });
}

/// The error that killed the writer is returned by the next commit.
#[test]
#[ignore = "mounts filesystems: run by `make test`"]
fn a_writer_that_a_full_disk_has_killed() {
    with_own_mounts(|| {
        in_runtime(async {
            let folder = tempfile::tempdir().unwrap();
            let disk = tmpfs(folder.path(), "size=64m");
            let store = Store::create(&disk);
            let writer = store.writer().unwrap();
            fill_but(&disk, 64 << 10);
            let writer = Engine::new((store, writer));
            let add_until_killed = writer.each_time(|(store, writer)| -> tantivy::Result<()> {
                loop {
                    store.add(writer, LARGE)?;
                    sleep(Duration::from_millis(10));
                }
            });
            assert_not_refused(add_until_killed).await;
            let errors = writer.errors();
            assert!(errors[0].starts_with("ErrorInThread"), "{errors:?}");
            let commit = writer.each_time(|(_, writer)| writer.commit());
            assert_refused(Cause::DiskFull, commit).await;
        });
    });
}

#[test]
fn a_limit_of_the_process_is_no_fault() {
    with_small_files(|| {
        in_runtime(async {
            let folder = tempfile::tempdir().unwrap();
            let store = Engine::new(Store::create(folder.path()));
            limit_files("65536");
            assert_too_large(false, store.each_time(|store| store.put(LARGE))).await;
            let errors = store.errors();
            assert!(errors[0].contains("FileTooLarge"), "{errors:?}");
        });
    });
}

#[test]
fn a_writer_whose_commit_has_failed_loses_what_it_is_given() {
    with_small_files(|| {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::create(folder.path());
        let mut writer = store.writer().unwrap();
        limit_files("65536");
        store.add(&writer, LARGE).unwrap();
        writer.commit().unwrap_err();

        limit_files("unlimited");
        store.add(&writer, LARGE).unwrap();
        writer.commit().unwrap();
        assert_eq!(store.documents(), 0);
        drop(writer);
        store.put(LARGE).unwrap();
        assert_eq!(store.documents(), 1);
    });
}

#[tokio::test]
async fn a_second_writer_is_no_fault() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::create(folder.path());
    let _first = store.writer().unwrap();
    let store = Engine::new(store);
    assert_not_refused(store.each_time(|store| store.put(1))).await;
    assert!(store.errors()[0].contains("LockBusy"));
}
