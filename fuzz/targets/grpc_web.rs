//! A call of gRPC-Web passes unchanged in both directions, wherever it is cut, and is charged if its last frame says OK.
#![no_main]

use std::{
    convert::Infallible,
    sync::{Arc, Mutex},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use fuzz::{Ask, Content, USER, call, check, run};
use http::{HeaderValue, Request, Response, header::CONTENT_TYPE};
use http_body_util::BodyExt;
use libfuzzer_sys::fuzz_target;
use tower::{Layer, service_fn};
use tower_storage_guard::{
    Amount, MeteredBody, StorageGuardLayer,
    quota::{Limits, MemoryQuota},
};

const BINARY: &str = "application/grpc-web+proto";
const TEXT: &str = "application/grpc-web-text+proto";

// The first line has the form and the sizes of pieces. The others are frames, or bytes that may be none.
fuzz_target!(|input: &[u8]| {
    let mut lines = input.split(|byte| *byte == b'\n');
    let words = String::from_utf8_lossy(lines.next().unwrap_or_default()).into_owned();
    let is_text = words.starts_with('t');
    let numbers = words
        .split_whitespace()
        .filter_map(|word| word.parse().ok());
    let sizes: Vec<usize> = numbers.take(16).collect();
    let (mut content, mut frames, mut is_known) = (Vec::new(), Vec::new(), true);
    for line in lines {
        let (frame, is_frame) = match line {
            [b'm', message @ ..] => (frame(0, message), true),
            [b't', trailers @ ..] => (frame(0x80, trailers), true),
            b"." => (frame(0x80, b"grpc-status:0|"), true),
            _ => (line.to_vec(), false),
        };
        is_known &= is_frame || !is_text;
        content.extend(match is_text && is_frame {
            true => STANDARD.encode(&frame).into_bytes(),
            false => frame.clone(),
        });
        frames.extend(frame);
    }
    let form = if is_text { TEXT } else { BINARY };
    let is_ok = is_known.then(|| is_ok(&frames));
    run(one(form, &content, &sizes, is_ok));
});

/// A message, or trailers whose lines are separated by `|`.
fn frame(flags: u8, text: &[u8]) -> Vec<u8> {
    let lines: Vec<_> = text.split(|byte| *byte == b'|').collect();
    let text = match flags {
        0 => text.to_vec(),
        _ => lines.join(&b"\r\n"[..]),
    };
    let length = text.len() as u32;
    [&[flags][..], &length.to_be_bytes(), &text].concat()
}

async fn one(form: &'static str, content: &[u8], sizes: &[usize], is_ok: Option<bool>) {
    let quota = MemoryQuota::new(Limits::UNLIMITED);
    let guard = StorageGuardLayer::quota_only(quota.clone()).scope_by(|_| USER);
    let guard = guard.calls(["test.v1.Store"]).expect("it is a name");
    let got = Arc::new(Mutex::new(None));
    let service = {
        let (got, content, sizes) = (Arc::clone(&got), content.to_vec(), sizes.to_vec());
        service_fn(move |request: Request<MeteredBody<Content>>| {
            let (got, answer) = (Arc::clone(&got), cut(&content, &sizes));
            async move {
                let all = request.into_body().collect().await;
                *got.lock().expect("no panic is caught") = all.ok().map(|all| all.to_bytes());
                let mut answer = Response::new(answer);
                let form = HeaderValue::from_static(form);
                answer.headers_mut().insert(CONTENT_TYPE, form);
                Ok::<_, Infallible>(answer)
            }
        })
    };
    let mut ask = Ask::new(b"POST /test.v1.Store/Put").expect("it is a request");
    ask.headers
        .insert(CONTENT_TYPE, HeaderValue::from_static(form));
    ask.content = cut(content, sizes);
    let client_got = call(guard.layer(service), ask).await.into_body();

    let service_got = got.lock().expect("no panic is caught").take();
    assert_eq!(
        service_got.as_deref(),
        Some(content),
        "the service gets all"
    );
    assert_eq!(client_got, content, "the client gets all");
    let all = Amount::new(content.len() as u64, 1);
    let used = quota.usage(USER).used;
    let is_charged = used == all;
    assert!(
        is_charged || used == Amount::ZERO,
        "{used:?} of {all:?} are charged"
    );
    if let Some(is_ok) = is_ok {
        assert_eq!(is_charged, is_ok, "the frame of trailers decides");
    }
    check(&quota, USER, used);
}

fn cut(mut bytes: &[u8], sizes: &[usize]) -> Content {
    let mut content = Content::default();
    let mut sizes = sizes.iter().cycle();
    // Some are empty, but not all.
    while let Some(size) = sizes.next().filter(|_| !bytes.is_empty()) {
        let other = sizes.next().unwrap_or(size);
        for size in [*size, (*other).max(1)] {
            let (piece, rest) = bytes.split_at(size.min(bytes.len()));
            content.push(Bytes::copy_from_slice(piece));
            bytes = rest;
        }
    }
    if !bytes.is_empty() {
        content.push(Bytes::copy_from_slice(bytes));
    }
    content
}

/// Whether the first frame of trailers is whole, and reports success.
fn is_ok(answer: &[u8]) -> bool {
    let [flags, a, b, c, d, rest @ ..] = answer else {
        return false;
    };
    let length = u32::from_be_bytes([*a, *b, *c, *d]) as usize;
    let Some((content, rest)) = rest.split_at_checked(length) else {
        return false;
    };
    if flags & 0x80 == 0 {
        return is_ok(rest);
    }
    content.split(|byte| *byte == b'\n').any(|line| {
        let mut parts = line.splitn(2, |byte| *byte == b':');
        let name = parts.next().unwrap_or_default().trim_ascii();
        let value = parts.next().unwrap_or_default().trim_ascii();
        name.eq_ignore_ascii_case(b"grpc-status") && value == b"0"
    })
}
