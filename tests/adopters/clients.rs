//! Eight clients at once, and what they leave.

use std::{
    fs,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use futures_util::{future::join_all, stream};
use reqwest::{Body, Client, RequestBuilder};
use test_support::{
    eventually,
    mounts::{in_runtime, tmpfs},
};
use tower_storage_guard::Volume;

pub(crate) const CLIENTS: u8 = 8;
/// What each uploads, in bytes.
pub(crate) const SIZE: usize = 2 << 20;
/// How many find room on the [small disk](on_a_small_disk), beside the files that were there before.
const FIT: usize = 4;

/// The content of files that were there before.
pub(crate) const OLD: &[u8] = b"old";

pub(crate) fn content(client: u8) -> Vec<u8> {
    (0..SIZE).map(|at| (at % 251) as u8 ^ client).collect()
}

/// A request with this content, in pieces of which the server is not told the length, or with a length.
pub(crate) fn with(request: RequestBuilder, content: Vec<u8>, is_chunked: bool) -> RequestBuilder {
    if !is_chunked {
        return request.body(content);
    }
    let content = Bytes::from(content);
    let pieces = (0..content.len()).step_by(60_000);
    let pieces: Vec<_> = pieces
        .map(|at| Ok::<_, std::io::Error>(content.slice(at..content.len().min(at + 60_000))))
        .collect();
    request.body(Body::wrap_stream(stream::iter(pieces)))
}

/// The status of an answer. None where the connection has ended without one.
pub(crate) async fn status_of(request: RequestBuilder) -> Option<u16> {
    let answer = request.send().await.ok()?;
    let status = answer.status().as_u16();
    answer.bytes().await.ok()?;
    Some(status)
}

/// Each client overwrites a file of its own. Returns the answers.
pub(crate) async fn stampede(url: &str, is_chunked: bool) -> Vec<Option<u16>> {
    let uploads = (0..CLIENTS).map(async |client| {
        // A connection of its own.
        let request = Client::new().put(format!("{url}/files/{client}"));
        let request = request.bearer_auth("secret");
        status_of(with(request, content(client), is_chunked)).await
    });
    join_all(uploads).await
}

/// Runs a test on a disk with a small file for each client.
pub(crate) fn on_a_small_disk<F: Future<Output = ()>>(test: impl FnOnce(PathBuf) -> F) {
    let folder = tempfile::tempdir().unwrap();
    let disk = tmpfs(folder.path(), "size=8256k");
    for client in 0..CLIENTS {
        fs::write(disk.join(client.to_string()), OLD).unwrap();
    }
    in_runtime(test(disk));
}

/// What a client's file is after a stampede.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Left {
    Whole,
    Old,
    Nothing,
    Torn,
}

pub(crate) fn left(folder: &Path) -> Vec<Left> {
    let left = |client: u8| match fs::read(folder.join(client.to_string())) {
        Err(_) => Left::Nothing,
        Ok(found) if found == content(client) => Left::Whole,
        Ok(found) if found == OLD => Left::Old,
        Ok(_) => Left::Torn,
    };
    (0..CLIENTS).map(left).collect()
}

/// All that fits is stored whole, and is acknowledged. The rest is 507, and is not torn.
pub(crate) fn assert_all_that_fit(answers: &[Option<u16>], left: &[Left]) {
    let what = format!("{answers:?} {left:?}");
    let whole = left.iter().filter(|left| **left == Left::Whole).count();
    assert_eq!(whole, FIT, "{what}");
    for (answer, left) in answers.iter().zip(left) {
        match answer {
            Some(201) => assert_eq!(*left, Left::Whole, "{what}"),
            Some(507) => assert!(matches!(left, Left::Old | Left::Nothing), "{what}"),
            _ => panic!("{what}"),
        }
    }
}

/// Without the guard, uploads take each other's room.
pub(crate) fn assert_some_are_torn(answers: &[Option<u16>], left: &[Left]) {
    let what = format!("{answers:?} {left:?}");
    assert!(left.contains(&Left::Torn), "{what}");
    assert!(!answers.contains(&Some(507)), "{what}");
}

/// Waits until the guard has seen all that is on the disk.
pub(crate) async fn settled(volume: &Volume) {
    eventually("settled", || {
        volume.refresh();
        volume.status().claimed == 0
    })
    .await;
}
