//! The locks. They are kept in memory, so there is a limit on their number, size and time.

use std::{
    collections::HashMap,
    io,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use dav_server::{
    davpath::DavPath,
    ls::{DavLock, DavLockSystem, LsFuture},
    memls::MemLs,
};
use futures_util::FutureExt;
use tower_storage_guard::fault::Source;
use xmltree::{Element, XMLNode};

/// How many there are at once.
const MOST: usize = 1_000;
/// How many bytes the owner of one takes, about.
const LARGEST_OWNER: usize = 4_096;
/// How long one lasts, unless it is refreshed.
const LONGEST: Duration = Duration::from_secs(600);

/// The locks, as one request sees them.
#[derive(Clone, Debug)]
pub(crate) struct Locks {
    all: MemLs,
    /// By token: where each is, and when it ends. `all` never ends one by itself.
    known: Arc<Mutex<HashMap<String, (DavPath, Instant)>>>,
    failure: Arc<OnceLock<Source>>,
}

impl Locks {
    pub(crate) fn new() -> Self {
        Self {
            all: *MemLs::new(),
            known: Arc::default(),
            failure: Arc::default(),
        }
    }

    /// For a request that keeps its error here.
    pub(crate) fn for_request(&self, failure: Arc<OnceLock<Source>>) -> Self {
        Self {
            failure,
            ..self.clone()
        }
    }

    /// Those that have not ended.
    fn known(&self) -> MutexGuard<'_, HashMap<String, (DavPath, Instant)>> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        known.retain(|token, (path, ends)| {
            let lasts = *ends > now;
            if !lasts {
                // It does not wait for anything, and may have been removed with its resource.
                let _ = self.all.unlock(path, token).now_or_never();
            }
            lasts
        });
        known
    }
}

impl DavLockSystem for Locks {
    fn lock(
        &self,
        path: &DavPath,
        principal: Option<&str>,
        owner: Option<&Element>,
        timeout: Option<Duration>,
        shared: bool,
        deep: bool,
    ) -> LsFuture<'_, Result<DavLock, DavLock>> {
        let mut known = self.known();
        let timeout = shortened(timeout);
        if known.len() >= MOST || owner.map_or(0, size) > LARGEST_OWNER {
            let error = io::Error::new(io::ErrorKind::QuotaExceeded, "no room for this lock");
            let _ = self.failure.set(Source::new(error));
            let refused = DavLock {
                token: String::new(),
                path: Box::new(path.clone()),
                principal: None,
                owner: None,
                timeout_at: None,
                timeout,
                shared,
                deep,
            };
            return async { Err(refused) }.boxed();
        }
        let locked = self
            .all
            .lock(path, principal, owner, timeout, shared, deep)
            .now_or_never();
        if let Some(Ok(lock)) = &locked {
            let ends = Instant::now() + LONGEST.min(lock.timeout.unwrap_or(LONGEST));
            known.insert(lock.token.clone(), (path.clone(), ends));
        }
        async { locked.expect("it waits for nothing") }.boxed()
    }

    fn unlock(&self, path: &DavPath, token: &str) -> LsFuture<'_, Result<(), ()>> {
        let unlocked = self.all.unlock(path, token).now_or_never();
        let unlocked = unlocked.unwrap_or(Err(()));
        // Where it is not, as at another path, the lock stays, and has to end some time.
        if unlocked.is_ok() {
            self.known().remove(token);
        }
        async move { unlocked }.boxed()
    }

    fn refresh(
        &self,
        path: &DavPath,
        token: &str,
        timeout: Option<Duration>,
    ) -> LsFuture<'_, Result<DavLock, ()>> {
        let timeout = shortened(timeout);
        if let Some((_, ends)) = self.known().get_mut(token) {
            *ends = Instant::now() + LONGEST.min(timeout.unwrap_or(LONGEST));
        }
        self.all.refresh(path, token, timeout)
    }

    fn check(
        &self,
        path: &DavPath,
        principal: Option<&str>,
        ignore_principal: bool,
        deep: bool,
        submitted_tokens: &[String],
    ) -> LsFuture<'_, Result<(), DavLock>> {
        drop(self.known());
        self.all
            .check(path, principal, ignore_principal, deep, submitted_tokens)
    }

    fn discover(&self, path: &DavPath) -> LsFuture<'_, Vec<DavLock>> {
        drop(self.known());
        self.all.discover(path)
    }

    fn delete(&self, path: &DavPath) -> LsFuture<'_, Result<(), ()>> {
        let gone = path.as_rel_ospath();
        self.known()
            .retain(|_, (path, _)| !path.as_rel_ospath().starts_with(gone));
        self.all.delete(path)
    }
}

/// RFC 4918, section 10.7: the server chooses the timeout.
fn shortened(asked: Option<Duration>) -> Option<Duration> {
    Some(asked.unwrap_or(LONGEST).min(LONGEST))
}

/// How much memory an element takes, about.
fn size(element: &Element) -> usize {
    let namespaces = element.namespaces.iter().flat_map(|all| all.0.iter());
    let names = namespaces.map(|(name, value)| 64 + name.len() + value.len());
    let attributes = &element.attributes;
    let attributes = attributes
        .iter()
        .map(|(name, value)| 64 + name.to_string().len() + value.len());
    let children = element.children.iter().map(|child| match child {
        XMLNode::Element(child) => size(child),
        XMLNode::Text(text) | XMLNode::CData(text) | XMLNode::Comment(text) => 64 + text.len(),
        XMLNode::ProcessingInstruction(name, content) => {
            64 + name.len() + content.as_ref().map_or(0, String::len)
        }
    });
    size_of::<Element>() + names.chain(attributes).chain(children).sum::<usize>()
}
