//! What a WebDAV service has is charged to its owners after every request, and nothing is held, however requests overlap.
#![no_main]

use std::{
    collections::BTreeMap,
    convert::Infallible,
    path::{Path, PathBuf},
    time::Duration,
};

use fuzz::{Content, Files, Node, Reply, asks, call, check, in_url, read, reply, run};
use http::{Request, StatusCode, Uri, request::Parts};
use libfuzzer_sys::fuzz_target;
use tokio::{task::JoinSet, time::sleep};
use tower::{Layer, service_fn};
use tower_storage_guard::{
    Amount, MeteredBody, StorageGuardLayer,
    dav::WebDav,
    quota::{Limits, MemoryQuota},
};

const METHODS: [&str; 7] = [
    "COPY",
    "DELETE",
    "LOCK",
    "MKCOL",
    "MOVE",
    "PROPPATCH",
    "PUT",
];
const LIMIT: Amount = Amount::new(1_000, 8);
const OWNERS: [&str; 2] = ["ann", "all"];

/// A collection is its owner's.
fn owner(path: &Path) -> &'static str {
    match path.starts_with("a") {
        true => OWNERS[0],
        false => OWNERS[1],
    }
}

fuzz_target!(|input: &[u8]| run(several(input)));

async fn several(input: &[u8]) {
    let quota = MemoryQuota::new(Limits::bytes(LIMIT.bytes).objects(LIMIT.objects));
    let files = Files::default();
    let service = {
        let files = files.clone();
        service_fn(move |request| serve(files.clone(), request))
    };
    let dav = WebDav::new(files.clone()).scope_by(|_, path| owner(path));
    let service = StorageGuardLayer::quota_only(quota.clone())
        // A copy is priced when it is carried out.
        .patience(Duration::ZERO)
        .webdav(dav)
        .layer(service);
    let mut asks = asks(input);
    asks.retain(|ask| METHODS.contains(&ask.method.as_str()));
    let mut asks = asks.into_iter().peekable();
    let mut running = JoinSet::new();
    while let Some(ask) = asks.next() {
        running.spawn(call(service.clone(), ask));
        sleep(Duration::from_secs(1)).await;
        for scope in OWNERS {
            let usage = quota.usage(scope);
            let counted = usage.used + usage.held;
            assert_eq!(counted.max(LIMIT), LIMIT, "{scope} is above its limit");
        }
        if asks.peek().is_some_and(|next| next.is_beside) {
            continue;
        }
        while let Some(ended) = running.join_next().await {
            ended.expect("no panic is caught");
        }
        for scope in OWNERS {
            check(&quota, scope, files.stored(|path| owner(path) == scope));
        }
        assert_eq!(quota.unmatched(), Amount::ZERO);
    }
}

async fn serve(files: Files, request: Request<MeteredBody<Content>>) -> Result<Reply, Infallible> {
    let (head, body) = request.into_parts();
    let (bytes, is_whole) = read(body).await;
    let done = match is_whole {
        true => carry_out(&mut files.lock(), &head, bytes),
        false => Err(StatusCode::INTERNAL_SERVER_ERROR),
    };
    Ok(reply(done.err().unwrap_or(StatusCode::CREATED), &[]))
}

type Nodes = BTreeMap<PathBuf, Node>;

fn carry_out(nodes: &mut Nodes, head: &Parts, bytes: u64) -> Result<(), StatusCode> {
    let path = in_url(head.uri.path()).ok_or(StatusCode::BAD_REQUEST)?;
    let Some(above) = path.parent() else {
        return Err(StatusCode::FORBIDDEN);
    };
    let has_parent = is_collection(nodes, above);
    let old = nodes.get(&path).copied();
    match head.method.as_str() {
        "PUT" if old == Some(Node::Collection) => return Err(StatusCode::METHOD_NOT_ALLOWED),
        "MKCOL" if old.is_some() => return Err(StatusCode::METHOD_NOT_ALLOWED),
        "MKCOL" if bytes > 0 => return Err(StatusCode::UNSUPPORTED_MEDIA_TYPE),
        "PUT" | "MKCOL" | "LOCK" if !has_parent => return Err(StatusCode::CONFLICT),
        "PUT" => drop(nodes.insert(path, Node::File(bytes))),
        "MKCOL" => drop(nodes.insert(path, Node::Collection)),
        "LOCK" => drop(nodes.entry(path).or_insert(Node::File(0))),
        _ if old.is_none() => return Err(StatusCode::NOT_FOUND),
        "DELETE" => nodes.retain(|other, _| !other.starts_with(&path)),
        "COPY" | "MOVE" => return transfer(nodes, head, &path),
        // Properties grow the file, and are lost with its content.
        "PROPPATCH" => grow(nodes, &path, bytes),
        _ => {}
    }
    Ok(())
}

fn is_collection(nodes: &Nodes, path: &Path) -> bool {
    path.as_os_str().is_empty() || nodes.get(path) == Some(&Node::Collection)
}

fn grow(nodes: &mut Nodes, path: &Path, bytes: u64) {
    if let Some(Node::File(length)) = nodes.get_mut(path) {
        *length += bytes;
    }
}

/// COPY and MOVE.
fn transfer(nodes: &mut Nodes, head: &Parts, from: &Path) -> Result<(), StatusCode> {
    let header = |name: &str| head.headers.get(name).and_then(|value| value.to_str().ok());
    let to = header("destination").and_then(|to| to.parse::<Uri>().ok());
    let to = to
        .and_then(|to| in_url(to.path()))
        .ok_or(StatusCode::BAD_REQUEST)?;
    let above = to.parent().ok_or(StatusCode::FORBIDDEN)?;
    if to.starts_with(from) {
        return Err(StatusCode::FORBIDDEN);
    }
    if !is_collection(nodes, above) {
        return Err(StatusCode::CONFLICT);
    }
    if nodes.contains_key(&to)
        && header("overwrite").is_some_and(|value| value.contains(['F', 'f']))
    {
        return Err(StatusCode::PRECONDITION_FAILED);
    }
    let is_move = head.method == "MOVE";
    let is_alone = !is_move && header("depth").is_some_and(|depth| depth.trim() == "0");
    let source = nodes.iter().filter(|(path, _)| match is_alone {
        true => *path == from,
        false => path.starts_with(from),
    });
    let source: Vec<_> = source.map(|(path, node)| (path.clone(), *node)).collect();
    // Some services keep the members of a collection over which another is copied alone.
    let keeps_members = is_alone && header("x-keep").is_some();
    nodes.retain(|path, _| match keeps_members {
        true => *path != to,
        false => !path.starts_with(&to) && (!is_move || !path.starts_with(from)),
    });
    for (path, node) in source {
        let below = path.strip_prefix(from).map_err(|_| StatusCode::CONFLICT)?;
        let path = match below.as_os_str().is_empty() {
            true => to.clone(),
            false => to.join(below),
        };
        nodes.insert(path, node);
    }
    Ok(())
}
