//! What parts of files add is charged, however freely a service reads the headers that tell where they belong.
#![no_main]

use std::{convert::Infallible, path::Path};

use fuzz::{Ask, Content, Files, Node, USER, asks, call, check, in_url, read, reply, run};
use http::{HeaderMap, HeaderValue, Request, StatusCode, request::Parts};
use libfuzzer_sys::fuzz_target;
use tower::{Layer, service_fn};
use tower_storage_guard::{
    Amount, MeteredBody, StorageGuardLayer,
    dav::WebDav,
    quota::{Limits, MemoryQuota},
};

const METHODS: [&str; 3] = ["DELETE", "PATCH", "PUT"];

fuzz_target!(|input: &[u8]| {
    let asks = asks(input).into_iter();
    run(several(
        asks.filter(|ask| METHODS.contains(&ask.method.as_str())),
    ));
});

async fn several(asks: impl Iterator<Item = Ask>) {
    let quota = MemoryQuota::new(Limits::bytes(10_000).objects(5));
    let files = Files::default();
    let service = {
        let files = files.clone();
        service_fn(move |request| write(files.clone(), request))
    };
    let dav = WebDav::new(files.clone()).scope_by(|_, _: &Path| USER);
    let service = StorageGuardLayer::quota_only(quota.clone())
        .webdav(dav)
        .layer(service);
    for ask in asks {
        call(service.clone(), ask).await;
        check(&quota, USER, files.stored(|_| true));
        assert_eq!(quota.unmatched(), Amount::ZERO);
    }
}

async fn write(
    files: Files,
    request: Request<MeteredBody<Content>>,
) -> Result<fuzz::Reply, Infallible> {
    let (head, body) = request.into_parts();
    let (bytes, is_whole) = read(body).await;
    Ok(reply(write_part(&files, &head, bytes, is_whole), &[]))
}

fn write_part(files: &Files, head: &Parts, bytes: u64, is_whole: bool) -> StatusCode {
    // There are no collections.
    let path = in_url(head.uri.path()).filter(|path| path.iter().count() == 1);
    let Some(path) = path else {
        return StatusCode::CONFLICT;
    };
    if !is_whole {
        return StatusCode::INTERNAL_SERVER_ERROR;
    }
    let mut files = files.lock();
    let old = match files.get(&path) {
        Some(Node::File(bytes)) => Some(*bytes),
        _ => None,
    };
    if head.method == "DELETE" {
        return match files.remove(&path) {
            Some(_) => StatusCode::NO_CONTENT,
            None => StatusCode::NOT_FOUND,
        };
    }
    let old = old.unwrap_or(0);
    let new = match first(&head.headers, old) {
        Some(first) => old.max(first.saturating_add(bytes)),
        None if head.method == "PATCH" => old.max(bytes),
        None => bytes,
    };
    files.insert(path, Node::File(new));
    StatusCode::CREATED
}

/// Where a part begins in a file of this length, by the header that has the later place.
fn first(headers: &HeaderMap, length: u64) -> Option<u64> {
    let values = ["content-range", "x-update-range"].map(|name| headers.get_all(name));
    let values = values.into_iter().flatten().map(HeaderValue::as_bytes);
    values.filter_map(|value| first_in(value, length)).max()
}

/// Takes everything for a range that has a number.
fn first_in(value: &[u8], length: u64) -> Option<u64> {
    let value = value.to_ascii_lowercase();
    let text = str::from_utf8(&value).ok()?.trim();
    if text.starts_with("append") {
        return Some(length);
    }
    let range = text.trim_start_matches(|char: char| char.is_ascii_alphabetic());
    let range = range.trim_start_matches(['=', ' ', '\t', ':']);
    let (range, _) = range.split_once('/').unwrap_or((range, ""));
    match range.split_once('-') {
        // The last bytes.
        Some((first, last)) if first.trim().is_empty() => {
            Some(length.saturating_sub(last.trim().parse().ok()?))
        }
        Some((first, _)) => first.trim().parse().ok(),
        None => range.trim().parse().ok(),
    }
}
