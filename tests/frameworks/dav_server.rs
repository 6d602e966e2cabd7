//! dav-server under the guard, with requests in forms that two parsers may read differently: nothing that it carries out is
//! charged less than it stores.

use std::{
    cell::RefCell, collections::BTreeMap, convert::Infallible, fs, io, path::Path, sync::Arc,
};

use bytes::Bytes;
use dav_server::{DavHandler, DavMethodSet, body::Body, localfs::LocalFs, memls::MemLs};
use futures_util::future::{BoxFuture, join_all};
use http::{HeaderValue, Method, Request, Response, Uri, header::HeaderName};
use http_body_util::{BodyExt, Full};
use proptest::{prelude::*, sample::select, test_runner::TestRunner};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tower::{Layer, ServiceExt, service_fn};
use tower_storage_guard::{
    Amount, MeteredBody, StorageGuardLayer,
    dav::{CollectionQuota, Depth, Folder, Tree, Walk, WebDav},
    quota::{Limits, MemoryQuota, QuotaSource},
    setup::ByDav,
};

const LOCK: &str = r#"<?xml version="1.0"?><D:lockinfo xmlns:D="DAV:"><D:lockscope><D:exclusive/></D:lockscope><D:locktype><D:write/></D:locktype></D:lockinfo>"#;

/// A request as a client writes it.
#[derive(Clone, Debug)]
struct Form {
    method: &'static str,
    target: String,
    headers: Vec<(&'static str, String)>,
    bytes: usize,
}

impl Form {
    fn new(method: &'static str, target: &str, headers: &[(&'static str, &str)]) -> Self {
        let headers = headers.iter();
        Self {
            method,
            target: target.to_owned(),
            headers: headers
                .map(|(name, value)| (*name, (*value).to_owned()))
                .collect(),
            bytes: 300,
        }
    }

    /// None where not even the `http` crate takes it.
    fn request(&self) -> Option<Request<Full<Bytes>>> {
        let body = match self.method {
            "LOCK" => Bytes::from_static(LOCK.as_bytes()),
            "PUT" | "PATCH" | "POST" => vec![7; self.bytes].into(),
            _ => Bytes::new(),
        };
        let mut request = Request::new(Full::from(body.clone()));
        *request.method_mut() = self.method.parse::<Method>().unwrap();
        *request.uri_mut() = self.target.parse::<Uri>().ok()?;
        let headers = request.headers_mut();
        headers.insert("content-length", body.len().into());
        for (name, value) in &self.headers {
            let value = HeaderValue::from_bytes(value.as_bytes()).ok()?;
            headers.append(HeaderName::from_static(name), value);
        }
        Some(request)
    }
}

type Service = Arc<dyn Fn(Request<Full<Bytes>>) -> BoxFuture<'static, u16> + Send + Sync>;

/// dav-server on the files in a folder, under the guard. Returns statuses.
fn guarded<Q: QuotaSource>(
    layer: StorageGuardLayer<Q, ByDav>,
    root: &Path,
    prefix: &str,
) -> Service {
    let handler = DavHandler::builder()
        .filesystem(LocalFs::new(root, false, false, false))
        .locksystem(MemLs::new())
        .methods(DavMethodSet::all())
        .strip_prefix(prefix)
        .build_handler();
    let inner = service_fn(move |request: Request<MeteredBody<Full<Bytes>>>| {
        let handler = handler.clone();
        let request = request.map(|body| body.map_err(io::Error::other));
        async move {
            // A COPY or MOVE to the root panics in its locks.
            let answer = tokio::spawn(async move { handler.handle(request).await }).await;
            let failed = |_| Response::builder().status(500).body(Body::empty()).unwrap();
            Ok::<Response<Body>, Infallible>(answer.unwrap_or_else(failed))
        }
    });
    let service = layer.layer(inner);
    Arc::new(move |request| {
        let answer = service.clone().oneshot(request);
        Box::pin(async move {
            let answer = answer.await.unwrap();
            let status = answer.status().as_u16();
            // What a 207 says is in its content.
            let _ = answer.into_body().collect().await;
            status
        })
    })
}

/// dav-server on real files, of which those in `/photos` are limited, and in `/photos/2024` once more.
struct Server {
    root: TempDir,
    collections: CollectionQuota,
    service: Service,
}

const COLLECTIONS: [&str; 2] = ["photos", "photos/2024"];

impl Server {
    async fn new(prefix: &'static str) -> Self {
        let root = tempfile::tempdir().unwrap();
        let file =
            |path: &str, bytes: usize| fs::write(root.path().join(path), vec![7; bytes]).unwrap();
        fs::create_dir_all(root.path().join("photos/2024/deep")).unwrap();
        fs::create_dir_all(root.path().join("a/sub")).unwrap();
        file("photos/x", 1_000);
        file("photos/2024/y", 500);
        file("photos/2024/deep/z", 50);
        file("a/x", 2_000);
        file("a/sub/y", 700);
        let tree = Folder::new(root.path());
        let mut builder = CollectionQuota::builder(tree.clone());
        for path in COLLECTIONS {
            builder = builder.limit(path, Limits::UNLIMITED).unwrap();
        }
        let collections = builder.build();
        collections.rescan().await.unwrap();
        let layer = StorageGuardLayer::quota_only(collections.clone())
            .webdav(WebDav::new(tree).prefix(prefix));
        Self {
            service: guarded(layer, root.path(), prefix),
            root,
            collections,
        }
    }

    /// Sends a request. None where it cannot be sent.
    async fn send(&self, form: &Form) -> Option<u16> {
        Some((self.service)(form.request()?).await)
    }

    /// What is charged, and what is there.
    async fn figures(&self, path: &str) -> (Amount, Amount) {
        // Unknown only after a COPY or MOVE that has brought the collection along: a scan tells then.
        if self.collections.usage(path).is_none() {
            self.collections.rescan().await.unwrap();
        }
        let usage = self
            .collections
            .usage(path)
            .expect("no request is in flight");
        let folder = Folder::new(self.root.path());
        let stored = folder
            .measure(Path::new(path), Depth::Infinity, &Walk::whole())
            .unwrap();
        (usage.used, stored.unwrap_or_default())
    }
}

/// Sends requests one after the other. Returns the statuses.
async fn check(prefix: &'static str, forms: &[Form]) -> Result<Vec<Option<u16>>, String> {
    let server = Server::new(prefix).await;
    let mut statuses = Vec::new();
    for form in forms {
        let status = server.send(form).await;
        statuses.push(status);
        for path in COLLECTIONS {
            let (charged, stored) = server.figures(path).await;
            if charged.bytes < stored.bytes || charged.objects < stored.objects {
                return Err(format!(
                    "{form:?} was answered {status:?}: {stored:?} stored in {path}, {charged:?} charged"
                ));
            }
        }
    }
    Ok(statuses)
}

/// A path of the tree, often with a segment that is not plain.
fn any_path() -> impl Strategy<Value = String> {
    let plain = select(vec![
        "photos",
        "photos/x",
        "photos/new",
        "photos/2024",
        "photos/2024/y",
        "photos/2024/new",
        "photos/2024/deep",
        "a",
        "a/x",
        "a/sub",
        "a/sub/y",
        "a/new",
        "new",
    ]);
    let odd = select(vec![
        ".",
        "..",
        "%2e",
        "%2E%2e",
        "",
        "a/..",
        "photos/%2e%2E",
        "%70hotos",
        "ph%6ftos",
        "%2F",
        "photos%2F2024",
        "photos%2fx",
        "%zz",
        "%",
        "x%00",
        "Photos",
        "x;y",
        "photos\\x",
        "a b",
        "a\tb",
        "%5c..%5cphotos",
        "%252e%252e",
        "ü",
        "x?y",
        "x#y",
    ]);
    (plain, prop::option::weighted(0.4, (odd, 0..4_usize))).prop_map(|(plain, odd)| {
        let mut segments: Vec<_> = plain.split('/').collect();
        if let Some((odd, at)) = odd {
            segments.insert(at.min(segments.len()), odd);
        }
        segments.join("/")
    })
}

fn any_url() -> impl Strategy<Value = String> {
    let odd = select(vec![
        "http://host/",
        "https://other:1/",
        "//host/",
        "",
        "/x/../",
        "/dav/",
        "//",
        " /",
        "http:/",
    ]);
    let start = prop_oneof![4 => Just("/"), 1 => odd];
    let end = prop_oneof![9 => Just(""), 1 => select(vec!["/", " ", "?q", "#f"])];
    (start, any_path(), end).prop_map(|(start, path, end)| format!("{start}{path}{end}"))
}

/// A header with one of these values: mostly not there, or there once.
fn header(
    name: &'static str,
    share: f64,
    values: &'static [&'static str],
) -> impl Strategy<Value = Vec<(&'static str, String)>> {
    let line = move || select(values).prop_map(move |value| (name, value.to_owned()));
    let lines =
        prop_oneof![5 => prop::collection::vec(line(), 1), 1 => prop::collection::vec(line(), 2)];
    prop::option::weighted(share, lines).prop_map(Option::unwrap_or_default)
}

fn any_headers() -> impl Strategy<Value = Vec<(&'static str, String)>> {
    let overwrite = &["T", "F", "T", "F", "t", "f", "", "true", "F, T", "T ", "0"];
    let depth = &[
        "0",
        "0",
        "infinity",
        "1",
        "Infinity",
        "INFINITY",
        "",
        "00",
        " 0",
        "0, infinity",
        "-1",
    ];
    let content = &[
        "bytes 0-299/*",
        "bytes 5000-5299/*",
        "bytes +9000-9299/*",
        "bytes 7-3/*",
        "bytes */9",
        "items 0-1/2",
        "",
    ];
    let update = &[
        "append",
        "bytes=4000-4299",
        "bytes=4000-",
        "bytes=+9000-",
        "bytes=-5",
        "Append",
    ];
    (
        header("overwrite", 0.3, overwrite),
        header("depth", 0.3, depth),
        header("content-range", 0.1, content),
        header("x-update-range", 0.7, update),
        prop::bool::weighted(0.8),
    )
        .prop_map(|(overwrite, depth, content, update, is_sabre)| {
            let mut headers = [overwrite, depth, content, update].concat();
            if is_sabre {
                headers.push((
                    "content-type",
                    "application/x-sabredav-partialupdate".into(),
                ));
            }
            headers
        })
}

fn any_form() -> impl Strategy<Value = Form> {
    let method = select(vec![
        "PUT",
        "PUT",
        "COPY",
        "COPY",
        "COPY",
        "MOVE",
        "MOVE",
        "MOVE",
        "DELETE",
        "MKCOL",
        "LOCK",
        "PROPPATCH",
        "PATCH",
        "POST",
    ]);
    let destinations = prop_oneof![
        9 => any_url().prop_map(|url| vec![url]),
        1 => prop::collection::vec(any_url(), 0..3),
    ];
    (
        method,
        any_url(),
        destinations,
        any_headers(),
        prop_oneof![Just(300), 0..3_000_usize],
    )
        .prop_map(|(method, target, destinations, mut headers, bytes)| {
            if method != "PATCH" {
                headers.retain(|(name, _)| *name != "x-update-range" && *name != "content-type");
            }
            if matches!(method, "COPY" | "MOVE") {
                headers.extend(destinations.into_iter().map(|url| ("destination", url)));
            }
            Form {
                method,
                target,
                headers,
                bytes,
            }
        })
}

/// How many sequences of requests are tried: four each.
const SEQUENCES: u32 = 1_000;

#[test]
fn nothing_that_is_carried_out_is_charged_less_than_it_stores() {
    let runtime = Runtime::new().unwrap();
    let mut carried_out = BTreeMap::<&str, usize>::new();
    for prefix in ["", "/dav"] {
        let forms = prop::collection::vec(any_form(), 4);
        let config = ProptestConfig {
            cases: test_support::times(SEQUENCES / 2),
            failure_persistence: None,
            ..ProptestConfig::default()
        };
        let counts = RefCell::new(&mut carried_out);
        TestRunner::new(config)
            .run(&forms, |mut forms| {
                for form in &mut forms {
                    // Most are meant for the tree.
                    let is_plain = form.target.starts_with('/') && !form.target.starts_with("//");
                    if is_plain && !form.target.starts_with("/dav") {
                        form.target.insert_str(0, prefix);
                    }
                    for (_, value) in form
                        .headers
                        .iter_mut()
                        .filter(|(name, _)| *name == "destination")
                    {
                        if value.starts_with('/') && !value.starts_with("/dav") {
                            value.insert_str(0, prefix);
                        }
                    }
                }
                let statuses = runtime.block_on(check(prefix, &forms));
                let statuses = statuses.map_err(TestCaseError::fail)?;
                for (form, status) in forms.iter().zip(statuses) {
                    if matches!(status, Some(200..300)) {
                        *counts.borrow_mut().entry(form.method).or_default() += 1;
                    }
                }
                Ok(())
            })
            .unwrap();
    }
    // Otherwise nothing would have been tested.
    for method in ["PUT", "COPY", "MOVE", "DELETE", "MKCOL", "LOCK", "PATCH"] {
        let count = carried_out.get(method).copied().unwrap_or(0);
        assert!(
            count > 5,
            "{method} was carried out {count} times: {carried_out:?}"
        );
    }
}

/// Forms by which storage was free once.
#[tokio::test]
async fn forms_that_were_free_are_charged_or_refused() {
    let copy = |destination, more: &[(&'static str, &str)]| {
        let headers = [&[("destination", destination)], more].concat();
        Form::new("COPY", "/a/x", &headers)
    };
    let to = "/photos/new";
    for (form, status) in [
        (Form::new("PUT", "/a/../photos/new", &[]), 201),
        (Form::new("PUT", "/a/%2e%2e/photos/new", &[]), 201),
        (Form::new("PUT", "http://host/a/../photos/new", &[]), 201),
        (Form::new("PUT", "/%70hotos/new", &[]), 201),
        (Form::new("PUT", "/photos/%zz", &[]), 400),
        (Form::new("PUT", "/photos%2Fnew", &[]), 400),
        (Form::new("PUT", "/../photos/new", &[]), 400),
        (copy("/a/../photos/new", &[]), 201),
        (copy("http://host/a/%2E./photos/new", &[]), 201),
        (copy("/photos/a new", &[]), 400),
        (copy("http://host/photos/a new", &[]), 400),
        (copy("//host/photos/new", &[]), 400),
        (copy("photos/new", &[]), 400),
        (copy("/photos/x", &[("overwrite", "f")]), 204),
        (copy("/photos/x", &[("overwrite", "F")]), 412),
        (copy(to, &[("overwrite", "F"), ("overwrite", "F")]), 400),
        (copy(to, &[("overwrite", "no")]), 400),
        (copy(to, &[("depth", "0"), ("depth", "0")]), 400),
        (copy(to, &[("depth", "0, 0")]), 400),
        (copy(to, &[("destination", to)]), 400),
        (Form::new("COPY", "/a/x", &[]), 400),
        (
            Form::new("MOVE", "/a", &[("destination", "/photos/2024/./a")]),
            201,
        ),
        (
            Form::new(
                "DELETE",
                "/photos/x",
                &[("depth", "infinity"), ("depth", "0")],
            ),
            400,
        ),
        (
            Form::new(
                "PUT",
                "/photos/x",
                &[("content-range", "bytes 9000-9299/*")],
            ),
            204,
        ),
    ] {
        let statuses = check("", std::slice::from_ref(&form)).await.unwrap();
        assert_eq!(statuses, [Some(status)], "{form:?}");
    }
}

/// dav-server follows them.
#[cfg(unix)]
#[tokio::test]
async fn what_is_behind_a_symbolic_link_is_refused() {
    use std::os::unix::fs::symlink;

    let server = Server::new("").await;
    let outside = tempfile::tempdir().unwrap();
    let file = outside.path().join("file");
    fs::write(&file, vec![7; 6 << 20]).unwrap();
    symlink(&file, server.root.path().join("photos/link")).unwrap();
    symlink(outside.path(), server.root.path().join("photos/folder")).unwrap();
    server.collections.rescan().await.unwrap();
    let before = server.figures("photos").await;
    let to =
        |method, path: &str, destination| Form::new(method, path, &[("destination", destination)]);
    for form in [
        to("COPY", "/photos/link", "/photos/copy"),
        to("COPY", "/photos/folder", "/photos/copy"),
        to("COPY", "/a/x", "/photos/folder/x"),
        to("MOVE", "/photos/link", "/a/link"),
        to("MOVE", "/a/x", "/photos/link"),
        Form::new("PUT", "/photos/link", &[]),
        Form::new("PUT", "/photos/folder/new", &[]),
        Form::new("MKCOL", "/photos/folder/new", &[]),
        Form::new("LOCK", "/photos/folder/new", &[]),
    ] {
        assert_eq!(server.send(&form).await, Some(400), "{form:?}");
    }
    let names: Vec<_> = fs::read_dir(outside.path()).unwrap().collect();
    assert_eq!(names.len(), 1);
    assert_eq!(fs::metadata(&file).unwrap().len(), 6 << 20);
    assert_eq!(server.figures("photos").await, before);
    // A removal is never refused.
    let delete = Form::new("DELETE", "/photos/link", &[]);
    assert_eq!(server.send(&delete).await, Some(204));
    assert_eq!(fs::metadata(&file).unwrap().len(), 6 << 20);
    server.collections.rescan().await.unwrap();
    let (used, stored) = server.figures("photos").await;
    assert_eq!(used, stored);
}

/// Removals and overwrites of one file at once are credited once. Otherwise usage would fall below what is stored, and more
/// than the limit could be stored afterwards.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_several_remove_at_once_is_credited_once() {
    const LIMIT: u64 = 100_000;
    let root = tempfile::tempdir().unwrap();
    let quota = MemoryQuota::new(Limits::bytes(LIMIT));
    let tree = Folder::new(root.path());
    let dav = WebDav::new(tree.clone()).scope_by(|_, _| "user:42");
    let layer = StorageGuardLayer::quota_only(quota.clone()).webdav(dav);
    let service = guarded(layer, root.path(), "");
    let send = async |form: Form| service(form.request().unwrap()).await;
    let put = |path: &str, bytes| Form {
        bytes,
        ..Form::new("PUT", path, &[])
    };
    assert_eq!(send(put("/kept", 30_000)).await, 201);
    let mut both = 0;
    for _ in 0..60 {
        send(Form::new("MKCOL", "/c", &[])).await;
        for name in ["1", "2", "3", "4"] {
            send(put(&format!("/c/{name}"), 5_000)).await;
        }
        let at_once = [
            put("/c/1", 0),
            put("/c/1", 1),
            Form::new("DELETE", "/c/2", &[]),
            Form::new("DELETE", "/c/2", &[]),
            Form::new("MOVE", "/c/3", &[("destination", "/c/4")]),
            Form::new("DELETE", "/c", &[]),
            Form::new("DELETE", "/c/4", &[]),
            put("/c/3", 2),
        ];
        let statuses =
            join_all(at_once.map(|form| tokio::spawn(service(form.request().unwrap())))).await;
        let done = statuses
            .into_iter()
            .filter(|status| matches!(status, Ok(200..300)));
        both += usize::from(done.count() > 2);
        let stored = tree
            .measure(Path::new(""), Depth::Infinity, &Walk::whole())
            .unwrap()
            .unwrap();
        let used = quota.usage("user:42").used;
        // The root itself came in beside the guard.
        assert!(
            used.bytes >= stored.bytes && used.objects + 1 >= stored.objects,
            "{used:?} {stored:?}"
        );
    }
    assert!(both > 20, "{both} rounds with several successes");
    assert_eq!(quota.unmatched(), Amount::ZERO);
    let mut number = 0;
    while send(put(&format!("/fill{number}"), 7_000)).await == 201 {
        number += 1;
    }
    let stored = tree
        .measure(Path::new(""), Depth::Infinity, &Walk::whole())
        .unwrap()
        .unwrap();
    assert!(stored.bytes <= LIMIT, "{stored:?}");
}
