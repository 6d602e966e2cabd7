//! The format of a refusal depends on what `Accept` says, however its list is cut into lines or spaced, and its content is
//! well-formed.
#![no_main]

use std::{convert::Infallible, fmt::Debug};

use bytes::Bytes;
use fuzz::{Ask, Content, Reply, USER, call, run};
use http::{
    HeaderValue, Request, StatusCode,
    header::{ACCEPT, CONTENT_TYPE},
};
use libfuzzer_sys::fuzz_target;
use quick_xml::{Reader, events::Event};
use serde_json::Value;
use tower::{Layer, service_fn};
use tower_storage_guard::{
    MeteredBody, StorageGuardLayer,
    quota::{Limits, MemoryQuota},
    refusal::Dav,
    setup::Scoped,
};

type Guard = StorageGuardLayer<MemoryQuota, Scoped>;

fuzz_target!(|input: &[u8]| {
    let lines = input.split(|byte| *byte == b'\n').take(16);
    let lines: Vec<_> = lines
        .filter_map(|line| HeaderValue::from_bytes(line).ok())
        .collect();
    let quota = MemoryQuota::new(Limits::bytes(0));
    let guard = StorageGuardLayer::quota_only(quota).scope_by(|_| USER);
    run(async {
        let plain = check(&guard, &lines).await;
        assert!(!plain.contains("xml"), "{plain} is no format of HTTP");
        check(&guard.dialect(Dav::default()), &lines).await;
    });
});

/// Returns the chosen content type.
async fn check(guard: &Guard, lines: &[HeaderValue]) -> String {
    let chosen = answer(guard, lines).await;
    let joined = lines.iter().map(HeaderValue::as_bytes);
    let joined = joined.collect::<Vec<_>>().join(&b", "[..]);
    // In quotes, white space and commas have no meaning.
    if !joined.contains(&b'"') {
        let mut spaced = Vec::new();
        for byte in &joined {
            match byte {
                b',' | b';' => spaced.extend([b' ', *byte, b'\t']),
                _ => spaced.push(*byte),
            }
        }
        for line in [joined, spaced] {
            let line = HeaderValue::from_bytes(&line).expect("all of it was in values");
            let other = answer(guard, &[line]).await;
            assert_eq!(other, chosen, "the list is the same");
        }
    }
    chosen.0
}

/// The content type and the content.
async fn answer(guard: &Guard, accept: &[HeaderValue]) -> (String, Bytes) {
    let service = guard.layer(service_fn(async |_: Request<MeteredBody<Content>>| {
        Ok::<_, Infallible>(Reply::default())
    }));
    let mut ask = Ask::new(b"POST /files").expect("it is a request");
    ask.content.push(Bytes::from_static(b"content"));
    ask.content.set_exact();
    for line in accept {
        ask.headers.append(ACCEPT, line.clone());
    }
    let answer = call(service, ask).await;
    assert_eq!(answer.status(), StatusCode::INSUFFICIENT_STORAGE);
    let kind = answer.headers()[CONTENT_TYPE].to_str().map(str::to_owned);
    let kind = kind.expect("the content type is a text");
    let text = str::from_utf8(answer.body()).expect("the content is a text");
    match &*kind {
        "application/json" => read_json(text, "message"),
        "application/problem+json" => read_json(text, "detail"),
        "text/plain; charset=utf-8" => {
            assert!(text.starts_with("Storage quota exceeded"), "{text}")
        }
        "text/html; charset=utf-8" => assert!(
            text.starts_with("<!doctype html>\n") && text.ends_with("</body>\n</html>\n"),
            "{text}"
        ),
        "application/xml; charset=\"utf-8\"" => read_xml(text),
        _ => panic!("{kind} is not documented"),
    }
    (kind, answer.into_body())
}

fn read_json(text: &str, message: &str) {
    let json: Value = ok(serde_json::from_str(text));
    assert_eq!(json[message], "Storage quota exceeded");
    assert_eq!(json["reason"], "quota_exceeded");
    assert_eq!((&json["limit"], &json["required"]), (&0.into(), &7.into()));
}

fn read_xml(text: &str) {
    let (mut reader, mut names) = (Reader::from_str(text), Vec::new());
    loop {
        match ok(reader.read_event()) {
            Event::Start(tag) | Event::Empty(tag) => names.push(tag.name().as_ref().to_owned()),
            Event::Eof => break,
            _ => {}
        }
    }
    assert_eq!(names[..2], ["D:error", "D:quota-not-exceeded"]);
}

fn ok<T, E: Debug>(read: Result<T, E>) -> T {
    read.expect("the content is well-formed")
}
