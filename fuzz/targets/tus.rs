//! What a tus server stores is charged or held at every moment, and nothing is held any more once its uploads have ended.
#![no_main]

use std::{
    collections::HashMap,
    convert::Infallible,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use fuzz::{Content, Reply, USER, asks, call, check, in_url, read, reply, run};
use http::{Request, StatusCode, request::Parts};
use libfuzzer_sys::fuzz_target;
use tokio::time::sleep;
use tower::{Layer, service_fn};
use tower_storage_guard::{
    Amount, MeteredBody, StorageGuardLayer,
    quota::{Limits, MemoryQuota},
    upload::{Resumable, Uploads},
};

const LIMIT: Amount = Amount::new(1_000, 6);
const METHODS: [&str; 6] = ["DELETE", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"];

#[derive(Default)]
struct Server {
    uploads: HashMap<PathBuf, Upload>,
    begun: usize,
    /// What came in ordinary requests.
    others: Amount,
}

#[derive(Default)]
struct Upload {
    length: Option<u64>,
    offset: u64,
    is_closed: bool,
}

fuzz_target!(|input: &[u8]| run(several(input)));

async fn several(input: &[u8]) {
    let quota = MemoryQuota::new(Limits::bytes(LIMIT.bytes).objects(LIMIT.objects));
    let server = Arc::new(Mutex::new(Server::default()));
    let uploads = {
        let server = Arc::clone(&server);
        // Later requests would be charged one by one, and not at all if they fail: the service ends what the guard forgets.
        let protocol = Resumable::new().max_size(LIMIT.bytes);
        Uploads::new(protocol).on_expiry(move |key| {
            let is_removed = lock(&server).expire(&key);
            async move { is_removed }
        })
    };
    let guard = StorageGuardLayer::quota_only(quota.clone()).scope_by(|_| USER);
    let service = {
        let server = Arc::clone(&server);
        service_fn(move |request| serve(Arc::clone(&server), request))
    };
    let service = guard.uploads(&uploads).layer(service);
    let stored = || lock(&server).stored();
    let asks = asks(input);
    let ends_by_itself = asks.len().is_multiple_of(2);
    for ask in asks {
        if METHODS.contains(&ask.method.as_str()) {
            call(service.clone(), ask).await;
        }
        let usage = quota.usage(USER);
        let (counted, stored) = (usage.used + usage.held, stored());
        assert_eq!(counted.max(stored), counted, "{stored:?} are stored");
        assert_eq!(counted.max(LIMIT), LIMIT, "it is above the limit");
        assert_eq!(quota.unmatched(), Amount::ZERO);
    }
    if ends_by_itself {
        sleep(Duration::from_secs(2 * 3_600)).await;
        check(&quota, USER, stored());
    } else {
        let begun = lock(&server).begun;
        for number in 0..begun {
            uploads.release(&format!("/files/{number}"));
        }
        check(&quota, USER, Amount::ZERO);
    }
    assert!(uploads.is_empty());
}

fn lock(server: &Mutex<Server>) -> MutexGuard<'_, Server> {
    server.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn serve(
    server: Arc<Mutex<Server>>,
    request: Request<MeteredBody<Content>>,
) -> Result<Reply, Infallible> {
    let (head, body) = request.into_parts();
    if let Some(refused) = lock(&server).refuse(&head) {
        return Ok(refused);
    }
    let (bytes, is_whole) = read(body).await;
    Ok(lock(&server).keep(&head, bytes, is_whole))
}

fn number(head: &Parts, name: &str) -> Option<u64> {
    head.headers.get(name)?.to_str().ok()?.trim().parse().ok()
}

fn is_tus(head: &Parts) -> bool {
    head.headers.contains_key("tus-resumable")
}

/// tus, section "Method overriding". tusd overrides nothing but POST; this server, OPTIONS too.
fn method(head: &Parts) -> String {
    let other = head.headers.get("x-http-method-override");
    let other =
        other.filter(|_| is_tus(head) && matches!(head.method.as_str(), "OPTIONS" | "POST"));
    let other = other.map(|other| other.to_str());
    let own = head.method.as_str();
    other.and_then(Result::ok).unwrap_or(own).to_uppercase()
}

fn is_creation(head: &Parts) -> bool {
    number(head, "upload-length").is_some() || head.headers.contains_key("upload-defer-length")
}

/// An answer in the words of tus.
fn answer(status: StatusCode, more: &[(&'static str, String)]) -> Reply {
    let version = ("tus-resumable", "1.0.0".to_owned());
    reply(status, &[&[version][..], more].concat())
}

impl Server {
    fn stored(&self) -> Amount {
        let uploads = self.uploads.values();
        uploads.fold(self.others, |sum, one| sum + Amount::new(one.offset, 1))
    }

    /// Removes every other upload that expires, and closes the rest. Returns whether it is removed.
    fn expire(&mut self, key: &str) -> bool {
        let path = in_url(key).unwrap_or_default();
        if let Some(upload) = self.uploads.get_mut(&path) {
            upload.is_closed = true;
        }
        key.ends_with(['0', '2', '4']) && self.uploads.remove(&path).is_some()
    }

    /// The answer to a head, before the body is read.
    fn refuse(&mut self, head: &Parts) -> Option<Reply> {
        let method = method(head);
        let is_of_tus = method == "POST" && is_creation(head)
            || matches!(&*method, "DELETE" | "HEAD" | "PATCH");
        if head.method == "OPTIONS" && !is_of_tus {
            return Some(answer(StatusCode::NO_CONTENT, &[]));
        }
        if !matches!(&*method, "DELETE" | "HEAD" | "PATCH") {
            return None;
        }
        if !is_tus(head) {
            return Some(answer(StatusCode::PRECONDITION_FAILED, &[]));
        }
        let Some(upload) = in_url(head.uri.path()).and_then(|path| self.uploads.get_mut(&path))
        else {
            return Some(answer(StatusCode::NOT_FOUND, &[]));
        };
        if upload.is_closed {
            return Some(answer(StatusCode::GONE, &[]));
        }
        let offset = ("upload-offset", upload.offset.to_string());
        match &*method {
            "HEAD" => Some(answer(StatusCode::OK, &[offset])),
            "PATCH" if number(head, "upload-offset") != Some(upload.offset) => {
                Some(answer(StatusCode::CONFLICT, &[]))
            }
            _ => None,
        }
    }

    fn keep(&mut self, head: &Parts, bytes: u64, is_whole: bool) -> Reply {
        let path = in_url(head.uri.path()).unwrap_or_default();
        let length = number(head, "upload-length");
        match &*method(head) {
            "DELETE" => {
                self.uploads.remove(&path);
                answer(StatusCode::NO_CONTENT, &[])
            }
            "PATCH" => match self.uploads.get_mut(&path) {
                Some(upload) => upload.append(length, bytes, is_whole),
                None => answer(StatusCode::GONE, &[]),
            },
            // What has failed leaves nothing, because its client does not know where it is.
            _ if !is_whole => answer(StatusCode::INTERNAL_SERVER_ERROR, &[]),
            "POST" if is_tus(head) && is_creation(head) => {
                let mut upload = Upload::default();
                let mut created = upload.append(length, bytes, true);
                if created.status() == StatusCode::NO_CONTENT {
                    let place = format!("/files/{}", self.begun);
                    let offset = ("upload-offset", bytes.to_string());
                    self.begun += 1;
                    self.uploads.insert(place[1..].into(), upload);
                    created = answer(StatusCode::CREATED, &[("location", place), offset]);
                }
                created
            }
            _ => {
                self.others = self.others + Amount::new(bytes, 1);
                reply(StatusCode::CREATED, &[])
            }
        }
    }
}

impl Upload {
    fn append(&mut self, length: Option<u64>, bytes: u64, is_whole: bool) -> Reply {
        let length = self.length.or(length);
        let end = self.offset + bytes;
        if length.is_some_and(|length| end > length) {
            return answer(StatusCode::PAYLOAD_TOO_LARGE, &[]);
        }
        (self.length, self.offset) = (length, end);
        match is_whole {
            true => answer(
                StatusCode::NO_CONTENT,
                &[("upload-offset", end.to_string())],
            ),
            false => answer(StatusCode::INTERNAL_SERVER_ERROR, &[]),
        }
    }
}
