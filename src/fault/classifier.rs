use std::{
    any::Any,
    error::Error,
    fmt, iter,
    sync::{Arc, LazyLock},
};

use tower::BoxError;

use super::{
    libraries::{LIBRARIES, STICKY},
    library::{Library, OfType, of_type},
    memory::{Memory, Said, Sticky},
    suspect::names_full_storage,
    verdict::Verdict,
};
use crate::{
    cause::Fault,
    observer::{Event, Observed},
    quota::QuotaError,
};

/// Finds the storage failure in an error, if there is one.
///
/// An error is walked from the outside in. Each error on the way is shown to all functions, in this
/// order:
///
/// 1. those given to [`with`](Self::with), the newest first;
/// 2. the built-in ones: first a [`Fault`] is taken as it is, then there is one function for each supported library.
///
/// The first verdict ends the walk. So an outer error is judged before the errors inside of it, and a function of your
/// own can overrule a built-in one. The walk also ends after 64 errors: no real chain is that long, and one may be
/// cyclic.
///
/// Cloning is cheap.
///
/// # Engines that stay failed
///
/// redb and fjall accept no more writes after one has failed. Their later errors only say that an earlier write
/// failed (`PreviousIo`, `Poisoned`), and the cause is in the first error. So a classifier remembers, for each of the
/// two engines, its verdict on the last failure, and repeats it for these errors.
///
/// - Clones share the memory, also those that [`with`](Self::with) has changed. Two classifiers do not.
/// - A failure that the classifier has not seen is not remembered. If a thread of the engine's own fails first, no
///   later error of that engine is a fault.
/// - The errors of two databases of one engine cannot be distinguished. Give each database a layer and a classifier
///   of its own.
/// - A classifier does not notice that an engine works again. If the engine then fails in a way that is not
///   classified, its later errors are still reported with the earlier verdict.
///
/// When there is room again, the engine has to be reopened. Until then it accepts no writes, and requests that write
/// are refused. Drop every handle first (of redb the `Database` and its transactions, of fjall the `Database` and its
/// `Keyspace`s), then open it as at startup. Committed data is intact. A tantivy `IndexWriter` whose commit has
/// failed must be reopened too, although it reports no error: it accepts documents and loses them.
///
/// # Panics
///
/// A panic in a function of your own is not caught, and neither is one in a callback of [`on_suspect`](Self::on_suspect) or
/// [`on_fault`](Self::on_fault).
#[derive(Clone)]
pub struct Classifier {
    inner: Arc<Inner>,
}

#[derive(Clone)]
struct Inner {
    /// Oldest first.
    custom: Vec<Arc<Custom>>,
    built_in: &'static [Library],
    types: Vec<OfType>,
    /// Oldest first.
    on_suspect: Vec<Arc<OnSuspect>>,
    memory: Arc<Memory>,
    on_fault: Vec<Arc<OnFault>>,
}

type OnSuspect = dyn Fn(&(dyn Error + 'static)) + Send + Sync;
type OnFault = dyn Fn(&(dyn Error + 'static), Fault) + Send + Sync;

type Custom = dyn Fn(&(dyn Error + 'static)) -> Option<Verdict> + Send + Sync;

/// The error types of services that have no error type of their own.
const TYPES: &[OfType] = &[boxed, of_type::<Fault>];

/// Longer than any real chain, and a bound for cyclic ones.
const MOST_ERRORS: usize = 64;

impl Classifier {
    /// Creates a classifier that knows no library. A [`Fault`] is still a fault; functions for all other errors are
    /// added by [`with`](Self::with).
    ///
    /// ```
    /// use std::io;
    ///
    /// use tower_storage_guard::fault::Classifier;
    ///
    /// let full = io::Error::from(io::ErrorKind::StorageFull);
    /// assert_eq!(Classifier::empty().classify(&full), None);
    /// assert!(Classifier::default().classify(&full).is_some());
    /// ```
    pub fn empty() -> Self {
        Self::of(&[], &[])
    }

    /// Runs `classify` on every error, before all functions that were added earlier.
    ///
    /// It is shown one error at a time, and need not look inside. `None` means that the function cannot decide, and
    /// the next function is asked.
    ///
    /// A classifier does not know where an error comes from. In this example a full disk is not the guarded server's,
    /// because it is at the other end of an outbound call:
    ///
    /// ```
    /// use std::io;
    ///
    /// use tower_storage_guard::fault::{Classifier, Verdict};
    ///
    /// #[derive(Debug, thiserror::Error)]
    /// #[error("the upstream failed")]
    /// struct Upstream(#[source] io::Error);
    ///
    /// let classifier = Classifier::default()
    ///     .with(|error| error.is::<Upstream>().then_some(Verdict::NotOurs));
    ///
    /// let full = || io::Error::from(io::ErrorKind::StorageFull);
    /// assert_eq!(classifier.classify(&Upstream(full())), None);
    /// assert!(classifier.classify(&full()).is_some());
    /// ```
    #[must_use]
    pub fn with<F>(mut self, classify: F) -> Self
    where
        F: Fn(&(dyn Error + 'static)) -> Option<Verdict> + Send + Sync + 'static,
    {
        Arc::make_mut(&mut self.inner)
            .custom
            .push(Arc::new(classify));
        self
    }

    /// Classifies errors of type `E` when `E` is the service's error type.
    ///
    /// A service's error can be any type, and an error that is no storage failure has to be passed on unchanged. So
    /// the guard has to be told which types implement `Error`. It knows [`BoxError`], [`io::Error`](std::io::Error),
    /// `Arc<io::Error>`, [`Fault`], and the errors of the libraries whose features are on.
    #[must_use]
    pub fn error_type<E: Error + 'static>(mut self) -> Self {
        Arc::make_mut(&mut self.inner).types.push(of_type::<E>);
        self
    }

    /// Calls `report` with each error that no function has classified, although its text names a full disk or an exceeded
    /// quota.
    ///
    /// Such an error may come from a library, or a version of one, whose feature is not enabled. The text decides
    /// nothing, because it may repeat input of the client. So the request is answered as without the callback, which is
    /// 500 in most services.
    ///
    /// `report` is called once for each error, with the outermost one. The text of every error in the chain is searched,
    /// in upper and lower case, for: `no space left on`, `ENOSPC`, `os error 28`, `errno 28`, `errno: 28`, `errcode: 28`,
    /// `disk quota exceeded`, `disc quota exceeded`, `EDQUOT`, `there is not enough space on the disk`, `disk full`, `disk
    /// is full`, `insufficient disk space`, `not enough disk space`, `out of disk space`, `insufficient storage`, `storage
    /// full`, `storage is full`, `StorageFull`, `storage quota`, `space quota`, `MDB_MAP_FULL`. The list may grow.
    ///
    /// It is not called:
    ///
    /// - for an error that any function has judged, [`Verdict::NotOurs`] included;
    /// - for a service's error whose type the classifier does not [know](Self::error_type);
    /// - by `tonic::status_by`. The guard classifies that status again when the response passes it, and calls `report`
    ///   then. It does not see a status that ends a stream.
    ///
    /// Several callbacks are called in the order in which they were added. They run on the request's task, and no lock is
    /// held. Without a callback, no error is formatted. A panic in a callback is not caught.
    ///
    /// ```
    /// use std::{io, sync::{Arc, atomic::{AtomicU32, Ordering}}};
    ///
    /// use tower_storage_guard::fault::Classifier;
    ///
    /// let suspects = Arc::new(AtomicU32::new(0));
    /// let counted = suspects.clone();
    /// let classifier = Classifier::default().on_suspect(move |error| {
    ///     eprintln!("not classified: {error}");
    ///     counted.fetch_add(1, Ordering::Relaxed);
    /// });
    ///
    /// let unknown = io::Error::other("ENOSPC: no space left on device, write");
    /// assert_eq!(classifier.classify(&unknown), None);
    /// assert_eq!(suspects.load(Ordering::Relaxed), 1);
    /// ```
    #[must_use]
    pub fn on_suspect<F>(mut self, report: F) -> Self
    where
        F: Fn(&(dyn Error + 'static)) + Send + Sync + 'static,
    {
        Arc::make_mut(&mut self.inner)
            .on_suspect
            .push(Arc::new(report));
        self
    }

    /// Adds a hook that is called with each error in which a fault was found, and with that fault.
    ///
    /// Use it for work that has to happen once storage has failed: an alarm, a connection to close, an engine to open
    /// again. The layer calls it for the errors of its service and for those behind answers (`axum::Failure`,
    /// [`Source`](super::Source), `tonic::status`), before the answer is sent. [`classify`](Self::classify) calls it
    /// for its callers. One failure may be classified more than once, and the handler that met it has returned by then.
    /// It is not called for a `Fault` that a handler puts into the extensions of its answer.
    ///
    /// It must not block. All hooks are called, the oldest first.
    ///
    /// ```
    /// use std::io;
    /// use std::sync::atomic::{AtomicU64, Ordering};
    ///
    /// use tower_storage_guard::fault::Classifier;
    ///
    /// static FAULTS: AtomicU64 = AtomicU64::new(0);
    ///
    /// let classifier = Classifier::default().on_fault(|_, _| {
    ///     FAULTS.fetch_add(1, Ordering::Relaxed);
    /// });
    /// classifier.classify(&io::Error::from(io::ErrorKind::StorageFull));
    /// classifier.classify(&io::Error::from(io::ErrorKind::NotFound));
    /// assert_eq!(FAULTS.load(Ordering::Relaxed), 1);
    /// ```
    #[must_use]
    pub fn on_fault<F>(mut self, hook: F) -> Self
    where
        F: Fn(&(dyn Error + 'static), Fault) + Send + Sync + 'static,
    {
        Arc::make_mut(&mut self.inner).on_fault.push(Arc::new(hook));
        self
    }

    /// Returns the storage failure in `error`, or none.
    ///
    /// ```
    /// use tower_storage_guard::fault::{Cause, Classifier, Fault, Resource, Verdict};
    ///
    /// #[derive(Debug, thiserror::Error)]
    /// #[error("table {0} is full")]
    /// struct TableFull(&'static str);
    ///
    /// let fault = Fault::new(Cause::DatabaseFull, Resource::Bytes);
    /// let classifier = Classifier::default()
    ///     .with(move |error| error.is::<TableFull>().then_some(Verdict::Fault(fault)));
    ///
    /// assert_eq!(classifier.classify(&TableFull("photos")), Some(fault));
    /// ```
    pub fn classify(&self, error: &(dyn Error + 'static)) -> Option<Fault> {
        self.judge(error, None)?.fault()
    }

    /// Like [`classify`](Self::classify), with the verdicts that are no faults. Tells an observer too.
    pub(crate) fn judge(
        &self,
        error: &(dyn Error + 'static),
        observer: Option<&Observed>,
    ) -> Option<Verdict> {
        let verdict = self.judge_unreported(error);
        match verdict {
            Some(Verdict::Fault(fault)) => self.report_fault(error, fault, observer),
            Some(Verdict::TooLarge | Verdict::NotOurs) => {}
            None => self.report_suspect(error, observer),
        }
        verdict
    }

    /// Like [`judge`](Self::judge), for an error that the guard will judge again.
    pub(crate) fn judge_unreported(&self, error: &(dyn Error + 'static)) -> Option<Verdict> {
        let mut failing = None;
        let verdict = walk(error).find_map(|error| {
            let said = self.inner.memory.said(error);
            if let Some((engine, Said::Fails)) = said {
                failing = Some(engine);
            }
            self.look(error).or_else(|| match said {
                Some((engine, Said::FailedBefore)) => engine.recall().map(Verdict::Fault),
                _ => None,
            })
        });
        if let Some(engine) = failing {
            engine.remember(verdict.and_then(Verdict::fault));
        }
        verdict
    }

    fn report_fault(
        &self,
        error: &(dyn Error + 'static),
        fault: Fault,
        observer: Option<&Observed>,
    ) {
        for report in &self.inner.on_fault {
            report(error, fault);
        }
        if let Some(observer) = observer {
            let error = Some(error);
            observer.observe(&Event::Fault { fault, error });
        }
    }

    fn report_suspect(&self, error: &(dyn Error + 'static), observer: Option<&Observed>) {
        let reports = &self.inner.on_suspect;
        let is_heard = !reports.is_empty() || observer.is_some();
        if !is_heard || !walk(error).any(|error| names_full_storage(&error.to_string())) {
            return;
        }
        for report in reports {
            report(error);
        }
        if let Some(observer) = observer {
            observer.observe(&Event::Suspect { error });
        }
    }

    /// The error in a value that may not implement `Error`: `S::Error`.
    pub(crate) fn open<'a>(&self, error: &'a dyn Any) -> Option<&'a (dyn Error + 'static)> {
        TYPES
            .iter()
            .chain(LIBRARIES.iter().flat_map(|library| library.types))
            .chain(&self.inner.types)
            .find_map(|open| open(error))
    }

    #[cfg(test)]
    pub(crate) fn classify_any(&self, error: &dyn Any) -> Option<Fault> {
        self.classify(self.open(error)?)
    }

    fn of(built_in: &'static [Library], sticky: &[Sticky]) -> Self {
        Self {
            inner: Arc::new(Inner {
                custom: Vec::new(),
                built_in,
                types: Vec::new(),
                on_suspect: Vec::new(),
                memory: Arc::new(Memory::of(sticky)),
                on_fault: Vec::new(),
            }),
        }
    }

    fn look(&self, error: &(dyn Error + 'static)) -> Option<Verdict> {
        let Inner {
            custom, built_in, ..
        } = &*self.inner;
        (custom.iter().rev().find_map(|look| look(error)))
            .or_else(|| error.downcast_ref().copied().map(Verdict::Fault))
            .or_else(|| is_outage(error).then_some(Verdict::NotOurs))
            .or_else(|| built_in.iter().find_map(|library| (library.look)(error)))
    }
}

/// A failed quota lookup says nothing about the client's storage, whatever the quota store failed with.
fn is_outage(error: &(dyn Error + 'static)) -> bool {
    matches!(error.downcast_ref(), Some(QuotaError::Unavailable(_)))
}

/// Knows every supported library.
impl Default for Classifier {
    fn default() -> Self {
        Self::of(LIBRARIES, STICKY)
    }
}

impl fmt::Debug for Classifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Inner {
            custom,
            built_in,
            types,
            on_suspect,
            memory: _,
            on_fault: _,
        } = &*self.inner;
        f.debug_struct("Classifier")
            .field("custom", &custom.len())
            .field("built_in", &built_in.len())
            .field("types", &types.len())
            .field("on_suspect", &on_suspect.len())
            .finish()
    }
}

/// Returns the storage failure in `error`, by a default [`Classifier`] that all callers share, with its memory.
///
/// ```
/// use std::io;
///
/// use tower_storage_guard::fault::{self, Cause, Fault, Resource};
///
/// let error = io::Error::from(io::ErrorKind::QuotaExceeded);
/// assert_eq!(fault::classify(&error), Some(Fault::new(Cause::QuotaExceeded, Resource::Bytes)));
/// ```
pub fn classify(error: &(dyn Error + 'static)) -> Option<Fault> {
    common().classify(error)
}

/// The classifier used by callers that have none of their own.
pub(crate) fn common() -> &'static Classifier {
    static COMMON: LazyLock<Classifier> = LazyLock::new(Classifier::default);
    &COMMON
}

/// Returns the first error of type `E` in `error`.
pub(crate) fn find<'a, E: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a E> {
    walk(error).find_map(|error| error.downcast_ref())
}

/// An error, and those inside of it, from the outside in.
fn walk<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    iter::successors(Some(error), |&error| inside(error)).take(MOST_ERRORS)
}

/// The next error on the way in.
///
/// Every error has at most one: where `source()` skips the error inside, it goes on to that one's
/// source, which the walk reaches anyway.
fn inside<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a (dyn Error + 'static)> {
    let opened = LIBRARIES.iter().find_map(|library| (library.inside)(error));
    if opened.is_some() {
        opened
    } else if let Some(shared) = error.downcast_ref::<Arc<dyn Error + Send + Sync>>() {
        Some(&**shared)
    } else if let Some(shared) = error.downcast_ref::<Arc<dyn Error>>() {
        Some(&**shared)
    } else {
        error.source()
    }
}

/// A `Box<dyn Error>` is not itself an `Error`.
fn boxed(error: &dyn Any) -> Option<&(dyn Error + 'static)> {
    error.downcast_ref::<BoxError>().map(|error| &**error as _)
}

#[cfg(test)]
mod tests {
    use std::{io, sync::Mutex};

    use super::*;
    use crate::cause::{Cause, Resource};

    const DISK_FULL: Fault = Fault::new(Cause::DiskFull, Resource::Bytes);
    const TABLE_FULL: Fault = Fault::new(Cause::DatabaseFull, Resource::Bytes);

    fn io_error(kind: io::ErrorKind) -> io::Error {
        kind.into()
    }

    /// Wraps an error as anyhow does: a context whose source is the rest.
    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Context {
        text: &'static str,
        source: BoxError,
    }

    fn context(source: impl Into<BoxError>) -> Context {
        Context {
            text: "while storing",
            source: source.into(),
        }
    }

    #[derive(Debug, thiserror::Error)]
    #[error("shared")]
    struct Holder<E: Error + 'static>(#[source] E);

    /// Wraps an `io::Error` of one kind in every way that errors are wrapped.
    fn wrapped(kind: io::ErrorKind) -> Vec<(&'static str, BoxError)> {
        let e = || io_error(kind);
        let shared: Arc<dyn Error + Send + Sync> = Arc::new(e());
        let nested: Arc<dyn Error + Send + Sync> =
            Arc::new(context(io::Error::other(Arc::new(e()))));
        vec![
            ("bare", e().into()),
            ("other", io::Error::other(e()).into()),
            (
                "other in other",
                io::Error::other(io::Error::other(e())).into(),
            ),
            (
                "another kind around it",
                io::Error::new(io::ErrorKind::UnexpectedEof, e()).into(),
            ),
            (
                "a context in an io::Error",
                io::Error::other(context(e())).into(),
            ),
            ("context", context(e()).into()),
            ("context in context", context(context(context(e()))).into()),
            ("Arc", Arc::new(e()).into()),
            (
                "Arc in an io::Error",
                io::Error::other(Arc::new(e())).into(),
            ),
            ("source in an Arc", Holder(Arc::new(e())).into()),
            ("source in a Box", Holder(Box::new(e())).into()),
            ("Arc<dyn Error>", Holder(shared.clone()).into()),
            (
                "Arc<dyn Error> in an io::Error",
                io::Error::other(shared).into(),
            ),
            ("all of it", Holder(nested).into()),
        ]
    }

    #[test]
    fn found_in_every_wrapping() {
        for (name, error) in wrapped(io::ErrorKind::StorageFull) {
            assert_eq!(classify(&*error), Some(DISK_FULL), "{name}");
        }
    }

    #[test]
    fn wrapping_does_not_make_a_fault_of_another_error() {
        for kind in [
            io::ErrorKind::NotFound,
            io::ErrorKind::FileTooLarge,
            io::ErrorKind::OutOfMemory,
        ] {
            for (name, error) in wrapped(kind) {
                assert_eq!(classify(&*error), None, "{kind:?}, {name}");
            }
        }
    }

    #[test]
    fn found_in_an_arc_that_cannot_be_sent() {
        let error: Arc<dyn Error> = Arc::new(io_error(io::ErrorKind::StorageFull));
        assert_eq!(classify(&Holder(error)), Some(DISK_FULL));
        let error: Arc<dyn Error> = Arc::new(io_error(io::ErrorKind::NotFound));
        assert_eq!(classify(&Holder(error)), None);
    }

    #[test]
    fn the_text_of_an_error_is_ignored() {
        assert_eq!(
            classify(&io::Error::other("No space left on device (os error 28)")),
            None
        );
    }

    #[test]
    fn a_fault_is_taken_as_it_is() {
        assert_eq!(classify(&TABLE_FULL), Some(TABLE_FULL));
        assert_eq!(classify(&context(TABLE_FULL)), Some(TABLE_FULL));
        assert_eq!(classify(&io::Error::other(TABLE_FULL)), Some(TABLE_FULL));
        assert_eq!(
            Classifier::empty().classify(&context(TABLE_FULL)),
            Some(TABLE_FULL)
        );
    }

    #[test]
    fn the_outermost_verdict_wins() {
        let outer = io::Error::new(
            io::ErrorKind::QuotaExceeded,
            io_error(io::ErrorKind::StorageFull),
        );
        assert_eq!(
            classify(&outer).map(|fault| fault.cause),
            Some(Cause::QuotaExceeded)
        );
        let vetoed = io::Error::new(
            io::ErrorKind::FileTooLarge,
            io_error(io::ErrorKind::StorageFull),
        );
        assert_eq!(classify(&vetoed), None);
    }

    #[test]
    fn a_veto_ends_the_walk() {
        let classifier =
            Classifier::default().with(|error| error.is::<Context>().then_some(Verdict::NotOurs));
        let full = || io_error(io::ErrorKind::StorageFull);
        assert_eq!(classifier.classify(&context(full())), None);
        assert_eq!(
            classifier.classify(&io::Error::other(context(full()))),
            None
        );
        assert_eq!(
            classifier.classify(&io::Error::other(full())),
            Some(DISK_FULL)
        );
    }

    #[test]
    fn a_full_quota_store_is_an_outage() {
        let full = io_error(io::ErrorKind::StorageFull);
        let outage = context(QuotaError::Unavailable(full.into()));
        assert_eq!(Classifier::default().classify(&outage), None);
    }

    #[test]
    fn custom_before_built_in_and_newest_first() {
        let says = |verdict| {
            move |error: &(dyn Error + 'static)| error.is::<io::Error>().then_some(verdict)
        };
        let full = io_error(io::ErrorKind::StorageFull);

        let one = Classifier::default().with(says(Verdict::Fault(TABLE_FULL)));
        assert_eq!(one.classify(&full), Some(TABLE_FULL));
        let two = one.clone().with(says(Verdict::NotOurs));
        assert_eq!(two.classify(&full), None);
        // The clone that `two` was made from has not changed.
        assert_eq!(one.classify(&full), Some(TABLE_FULL));

        let silent = two.with(|_| None);
        assert_eq!(silent.classify(&full), None);
        let vetoed =
            Classifier::default().with(|error| error.is::<Fault>().then_some(Verdict::NotOurs));
        assert_eq!(vetoed.classify(&DISK_FULL), None);
    }

    #[test]
    fn every_error_is_seen_once_from_the_outside_in() {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let log = seen.clone();
        let classifier = Classifier::empty().with(move |error| {
            log.lock().unwrap().push(error.to_string());
            None
        });
        let error = io::Error::other(Context {
            text: "a",
            source: io::Error::other(Context {
                text: "b",
                source: "c".into(),
            })
            .into(),
        });
        assert_eq!(classifier.classify(&error), None);
        // An io::Error displays the text of its inner error, hence the pairs.
        assert_eq!(*seen.lock().unwrap(), ["a", "a", "b", "b", "c"]);
    }

    /// Is its own source.
    #[derive(Debug)]
    struct Ring;

    impl fmt::Display for Ring {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("ring")
        }
    }

    impl Error for Ring {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            Some(self)
        }
    }

    #[test]
    fn a_cyclic_chain_ends() {
        assert_eq!(classify(&Ring), None);
    }

    #[test]
    fn the_walk_is_bounded_in_depth() {
        let deep = |contexts| {
            let mut error: BoxError = DISK_FULL.into();
            for _ in 0..contexts {
                error = context(error).into();
            }
            error
        };
        assert_eq!(classify(&*deep(MOST_ERRORS - 1)), Some(DISK_FULL));
        assert_eq!(classify(&*deep(MOST_ERRORS)), None);
    }

    #[derive(Debug, thiserror::Error)]
    enum HandlerError {
        #[error("cannot store")]
        Store(#[source] io::Error),
        #[error("not found")]
        NotFound,
    }

    #[test]
    fn any_error_of_a_known_type_is_looked_into() {
        let classifier = Classifier::default();
        let any = |error: &dyn Any| classifier.classify_any(error);
        let full = || io_error(io::ErrorKind::StorageFull);
        let missing = || io_error(io::ErrorKind::NotFound);

        assert_eq!(any(&full()), Some(DISK_FULL));
        assert_eq!(any(&missing()), None);
        assert_eq!(any(&Arc::new(full())), Some(DISK_FULL));
        assert_eq!(any(&Arc::new(missing())), None);
        assert_eq!(any(&TABLE_FULL), Some(TABLE_FULL));
        assert_eq!(any(&BoxError::from(context(full()))), Some(DISK_FULL));
        assert_eq!(any(&BoxError::from(context(missing()))), None);
        assert_eq!(
            any(&BoxError::from(HandlerError::Store(full()))),
            Some(DISK_FULL)
        );
        // Types that are not errors at all.
        assert_eq!(any(&()), None);
        assert_eq!(any(&"No space left on device"), None);
    }

    #[test]
    fn an_error_type_of_the_users_own() {
        let error = HandlerError::Store(io_error(io::ErrorKind::StorageFull));
        assert_eq!(Classifier::default().classify_any(&error), None);

        let classifier = Classifier::default()
            .error_type::<Holder<io::Error>>()
            .error_type::<HandlerError>();
        assert_eq!(classifier.classify_any(&error), Some(DISK_FULL));
        assert_eq!(classifier.classify_any(&HandlerError::NotFound), None);
        let missing = HandlerError::Store(io_error(io::ErrorKind::NotFound));
        assert_eq!(classifier.classify_any(&missing), None);
    }

    #[test]
    fn hooks_hear_of_faults_and_of_nothing_else() {
        let heard = Arc::new(Mutex::new(Vec::new()));
        let hook = |name: &'static str| {
            let heard = Arc::clone(&heard);
            move |error: &(dyn Error + 'static), fault: Fault| {
                let is_outermost = error.is::<Context>();
                heard.lock().unwrap().push((name, is_outermost, fault));
            }
        };
        let silent = Classifier::default();
        let classifier = silent.clone().on_fault(hook("a")).on_fault(hook("b"));
        classifier.classify(&context(io_error(io::ErrorKind::NotFound)));
        let full = context(io_error(io::ErrorKind::StorageFull));
        silent.classify(&full);
        assert_eq!(*heard.lock().unwrap(), []);
        classifier.classify_any(&BoxError::from(full));
        let expected = [("a", true, DISK_FULL), ("b", true, DISK_FULL)];
        assert_eq!(*heard.lock().unwrap(), expected);
        // A function of the user's own may say that it is none.
        let not_ours = classifier.with(|error| error.is::<Context>().then_some(Verdict::NotOurs));
        not_ours.classify(&context(io_error(io::ErrorKind::StorageFull)));
        assert_eq!(heard.lock().unwrap().len(), 2);
    }

    /// Errors of an engine that stays failed.
    #[derive(Debug, thiserror::Error)]
    enum EngineError {
        #[error("failed")]
        Now(#[source] io::Error),
        #[error("has failed before")]
        Before,
        #[error("used wrongly")]
        Misused,
    }

    fn said(error: &(dyn Error + 'static)) -> Option<Said> {
        match error.downcast_ref()? {
            EngineError::Now(_) => Some(Said::Fails),
            EngineError::Before => Some(Said::FailedBefore),
            EngineError::Misused => None,
        }
    }

    fn with_engine() -> Classifier {
        Classifier::of(LIBRARIES, &[|_| None, said])
    }

    fn fails(kind: io::ErrorKind) -> Context {
        context(EngineError::Now(io_error(kind)))
    }

    #[test]
    fn an_engine_that_stays_failed_repeats_its_verdict() {
        let classifier = with_engine();
        let before = || classifier.classify(&context(EngineError::Before));
        assert_eq!(before(), None);
        classifier.classify(&fails(io::ErrorKind::StorageFull));
        assert_eq!(before(), Some(DISK_FULL));
        // Usage errors and errors of other engines do not change that.
        assert_eq!(classifier.classify(&EngineError::Misused), None);
        classifier.classify(&io_error(io::ErrorKind::QuotaExceeded));
        assert_eq!(before(), Some(DISK_FULL));
        classifier.classify(&fails(io::ErrorKind::QuotaExceeded));
        assert_eq!(before().unwrap().cause, Cause::QuotaExceeded);
        classifier.classify(&fails(io::ErrorKind::NotFound));
        assert_eq!(before(), None);
    }

    #[test]
    fn memory_is_shared_by_clones_only() {
        let classifier = with_engine();
        let relatives = [classifier.clone(), classifier.clone().with(|_| None)];
        classifier.classify(&fails(io::ErrorKind::StorageFull));
        for relative in &relatives {
            assert_eq!(relative.classify(&EngineError::Before), Some(DISK_FULL));
        }
        relatives[1].classify(&fails(io::ErrorKind::NotFound));
        assert_eq!(classifier.classify(&EngineError::Before), None);

        classifier.classify(&fails(io::ErrorKind::StorageFull));
        assert_eq!(with_engine().classify(&EngineError::Before), None);
    }

    #[test]
    fn the_final_verdict_is_remembered() {
        let classifier = with_engine().with(|error| {
            let error = error.downcast_ref::<EngineError>()?;
            matches!(error, EngineError::Now(_)).then_some(Verdict::NotOurs)
        });
        classifier.classify(&fails(io::ErrorKind::StorageFull));
        assert_eq!(classifier.classify(&EngineError::Before), None);

        let classifier = with_engine().with(|error| {
            error
                .is::<io::Error>()
                .then_some(Verdict::Fault(TABLE_FULL))
        });
        classifier.classify(&fails(io::ErrorKind::NotFound));
        assert_eq!(classifier.classify(&EngineError::Before), Some(TABLE_FULL));
        // A function of the user's own can overrule the memory too.
        let classifier =
            classifier.with(|error| error.is::<EngineError>().then_some(Verdict::NotOurs));
        assert_eq!(classifier.classify(&EngineError::Before), None);
    }

    /// The texts that a callback is called with, for an error that the classifier of `made_of` judges.
    fn suspects(
        made_of: impl FnOnce(Classifier) -> Classifier,
        errors: &[&(dyn Error + 'static)],
    ) -> Vec<String> {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let log = seen.clone();
        let classifier = made_of(Classifier::default())
            .on_suspect(move |error| log.lock().unwrap().push(error.to_string()));
        for error in errors {
            classifier.classify(*error);
        }
        let seen = seen.lock().unwrap();
        seen.clone()
    }

    #[test]
    fn a_text_that_names_a_full_disk_is_reported_once_and_decides_nothing() {
        let unknown = || io::Error::other("No space left on device (os error 28)");
        assert_eq!(classify(&unknown()), None);
        // Each error of the chain has the text.
        let deep = context(context(io::Error::other(unknown())));
        let missing = io_error(io::ErrorKind::NotFound);
        let reported = suspects(|it| it, &[&unknown(), &deep, &missing]);
        assert_eq!(
            reported,
            ["No space left on device (os error 28)", "while storing"]
        );
    }

    #[test]
    fn an_error_that_was_judged_is_no_suspect() {
        let of_text = |kind| io::Error::new(kind, "No space left on device");
        let outage = context(QuotaError::Unavailable("disk quota exceeded".into()));
        let judged: [&(dyn Error + 'static); 5] = [
            &of_text(io::ErrorKind::StorageFull),
            &of_text(io::ErrorKind::FileTooLarge),
            &context(of_text(io::ErrorKind::FileTooLarge)),
            &DISK_FULL,
            &outage,
        ];
        assert!(suspects(|it| it, &judged).is_empty());
        let of_others = context(io::Error::other("disk full"));
        let not_ours =
            |it: Classifier| it.with(|error| error.is::<Context>().then_some(Verdict::NotOurs));
        assert!(suspects(not_ours, &[&of_others]).is_empty());
        assert_eq!(suspects(|it| it.with(|_| None), &[&of_others]).len(), 1);
    }

    #[test]
    fn every_callback_is_called_and_a_clone_keeps_its_own() {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let log = |name| {
            let seen = seen.clone();
            move |_: &(dyn Error + 'static)| seen.lock().unwrap().push(name)
        };
        let first = Classifier::empty().on_suspect(log("first"));
        let second = first.clone().on_suspect(log("second"));
        let full = io::Error::other("disk is full");
        second.classify(&full);
        first.classify(&full);
        assert_eq!(second.classify_any(&"disk is full"), None);
        second.classify_any(&full);
        assert_eq!(
            *seen.lock().unwrap(),
            ["first", "second", "first", "first", "second"]
        );
    }

    /// Counts how often it is formatted.
    #[derive(Debug)]
    struct Counted(Arc<Mutex<u32>>);

    impl fmt::Display for Counted {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            *self.0.lock().unwrap() += 1;
            f.write_str("disk full")
        }
    }

    impl Error for Counted {}

    #[test]
    fn nothing_is_formatted_without_a_callback() {
        let formatted = Arc::new(Mutex::new(0));
        let error = Counted(formatted.clone());
        assert_eq!(Classifier::empty().classify(&error), None);
        assert_eq!(*formatted.lock().unwrap(), 0);
        Classifier::empty().on_suspect(|_| {}).classify(&error);
        assert_eq!(*formatted.lock().unwrap(), 1);
    }

    #[test]
    fn debug_counts() {
        let classifier = Classifier::default()
            .with(|_| None)
            .error_type::<HandlerError>();
        assert_eq!(
            format!("{classifier:?}"),
            format!(
                "Classifier {{ custom: 1, built_in: {}, types: 1, on_suspect: 0 }}",
                LIBRARIES.len()
            )
        );
    }
}
