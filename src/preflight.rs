//! A route for clients that ask before they send, with feature `preflight`.
//!
//! A refusal on a slow line comes late: a browser shows it when all is sent. A [`Preflight`] answers beforehand whether an upload
//! would be admitted. It reserves nothing, so it is advice: the [layer](crate::StorageGuardLayer) around the upload itself decides.
//!
//! ```
//! use axum::{Router, body::{Body, to_bytes}, http::{Request, StatusCode}, routing::put};
//! use tower::ServiceExt;
//! use tower_storage_guard::{
//!     Guard, StorageGuardLayer,
//!     preflight::Preflight,
//!     quota::{Limits, MemoryQuota},
//! };
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let guard = Guard::quota_only(MemoryQuota::new(Limits::bytes(1_000)));
//! let app = Router::new()
//!     .route("/files/{name}", put(async |_: String| StatusCode::CREATED))
//!     .layer(StorageGuardLayer::new(guard.clone()).scope_by(|_| "user:42"))
//!     .route_service("/preflight", Preflight::new(guard, |_| "user:42"));
//!
//! let one = |bytes: u64| Request::head("/preflight").header("upload-length", bytes).body(Body::empty());
//! assert_eq!(app.clone().oneshot(one(1_000)?).await?.status(), StatusCode::NO_CONTENT);
//! assert_eq!(app.clone().oneshot(one(1_001)?).await?.status(), StatusCode::INSUFFICIENT_STORAGE);
//!
//! let several = r#"{"files": [{"size": 600}, {"size": 600}, {"size": 400}]}"#;
//! let answer = app.oneshot(Request::post("/preflight").body(Body::from(several))?).await?;
//! let answer = to_bytes(answer.into_body(), 1_000).await?;
//! assert_eq!(
//!     answer,
//!     r#"{"files":[{"fits":true},{"fits":false,"reason":"quota_exceeded"},{"fits":true}]}"#
//! );
//! # Ok(())
//! # }
//! ```
//!
//! # Requests and answers
//!
//! | request | answer |
//! |---|---|
//! | HEAD or GET with `Upload-Length`: bytes | 204 if it would be admitted, otherwise a refusal as a layer without settings of its own answers |
//! | POST with JSON: `files`, an array of objects with a `size` in bytes, and with a `name` if they may replace others | 200 with `files`: for each whether it `fits`, and if not the `reason`. Those that fit before it count, as if they were stored one after the other |
//! | the same with more than 1,000 files, or more than 128 KiB | 413 |
//! | a length that is missing, is there twice, or is no number; JSON of another form | 400 |
//! | another method | 405 |
//!
//! Each file is taken for a new object, unless [`Preflight::replaced_by`] says what it replaces. Answers must not be stored by
//! caches.
//!
//! Mount it inside of authentication, as the upload itself: it tells how much room a scope has. Mount it outside of the layer: a POST
//! would be refused there when the disk is full. The example `axum-upload` in the repository does so, and its page asks before it
//! sends.

use std::{
    collections::HashSet,
    convert::Infallible,
    fmt,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{
    HeaderValue, Method, Request, Response, StatusCode,
    header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE},
    request::Parts,
};
use http_body::Body;
use http_body_util::{BodyExt, Full, Limited};
use serde_json::Value;
use tower::{BoxError, Service};

use crate::{
    amount::Amount,
    demand::Demand,
    guard::Guard,
    head::number,
    quota::QuotaSource,
    refusal::{
        Answers, Asked, Refusal,
        json::{Object, array},
    },
    refused::{Reason, Refused},
    reservation::BoxFuture,
    scope::Scopes,
    time::within,
};

/// The longest list of files, in bytes.
const LONGEST: usize = 128 << 10;
/// The most files in a list: each may be a question to the quota source.
const MOST: usize = 1_000;
/// The shortest time between two looks at whether the volume hangs.
const PAUSE: Duration = Duration::from_millis(50);

type ScopesBy = dyn Fn(&Parts) -> Scopes + Send + Sync;
type ReplacedBy = dyn Fn(&Parts, Option<&str>) -> BoxFuture<Amount> + Send + Sync;

/// Answers whether uploads would be admitted, and reserves nothing. See the [module](self).
///
/// A Tower service: mount it with axum's `route_service`, or call it from any other router. Cheap to clone.
#[must_use]
pub struct Preflight<Q> {
    guard: Guard<Q>,
    scopes: Arc<ScopesBy>,
    replaced: Option<Arc<ReplacedBy>>,
}

impl<Q: QuotaSource> Preflight<Q> {
    /// Asks this guard, in the scopes that the request's upload would be charged to. Without quotas, give
    /// [`Scopes::NONE`](crate::Scopes::NONE).
    pub fn new<T: Into<Scopes>>(
        guard: Guard<Q>,
        scopes: impl Fn(&Parts) -> T + Send + Sync + 'static,
    ) -> Self {
        Self {
            guard,
            scopes: Arc::new(move |head| scopes(head).into()),
            replaced: None,
        }
    }

    /// Sets what an upload replaces, by the head of the request and, for a file of a list, by its `name`. With HEAD and GET there is
    /// no such name, and the head has to tell what is asked about. It is not called for a file of a list without a name.
    ///
    /// Give the bytes and objects that the pricing of the upload itself gives to [`Demand::replacing`], and
    /// [`Amount::ZERO`] for a name that is new or not valid. As there, scopes are asked for the difference, and the volume
    /// for the whole, because what is replaced stays until the upload is complete. A name that occurs in a list again, after a
    /// file that fits, is not asked about again, and replaces nothing.
    ///
    /// The function runs at once, and its future is awaited. As with
    /// [`price_by_async`](crate::StorageGuardLayer::price_by_async), it is not called if the volume's last reading is too
    /// old, and dropped if the volume hangs meanwhile. The answer is `capacity_unknown` then.
    ///
    /// ```
    /// use std::collections::HashMap;
    /// # use axum::body::Body;
    /// # use http::{Request, StatusCode};
    /// # use tower::ServiceExt;
    /// use tower_storage_guard::{Amount, Demand, Guard, preflight::Preflight, quota::{Limits, MemoryQuota}};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let guard = Guard::quota_only(MemoryQuota::new(Limits::bytes(1_000)));
    /// let stored = guard.reserve("user:42", Demand::known(900)).await?;
    /// stored.stored(900);
    /// stored.commit().await;
    ///
    /// let sizes = HashMap::from([("a", 900)]);
    /// let preflight = Preflight::new(guard, |_| "user:42").replaced_by(move |head, name| {
    ///     let name = name.or(head.uri.path().strip_prefix("/preflight/"));
    ///     let size = name.and_then(|name| sizes.get(name).copied());
    ///     async move { size.map_or(Amount::ZERO, |size| Amount::new(size, 1)) }
    /// });
    ///
    /// for (name, status) in [("a", StatusCode::NO_CONTENT), ("b", StatusCode::INSUFFICIENT_STORAGE)] {
    ///     let request = Request::head(format!("/preflight/{name}")).header("upload-length", 1_000);
    ///     let answer = preflight.clone().oneshot(request.body(Body::empty())?).await?;
    ///     assert_eq!(answer.status(), status);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// Defaults to nothing.
    pub fn replaced_by<F, T>(mut self, replaced: F) -> Self
    where
        F: Fn(&Parts, Option<&str>) -> T + Send + Sync + 'static,
        T: Future<Output = Amount> + Send + 'static,
    {
        let replaced = move |head: &Parts, name: Option<&str>| -> BoxFuture<Amount> {
            Box::pin(replaced(head, name))
        };
        self.replaced = Some(Arc::new(replaced));
        self
    }

    async fn answer<B>(self, request: Request<B>) -> Response<Full<Bytes>>
    where
        B: Body<Error: Into<BoxError>>,
    {
        let (head, body) = request.into_parts();
        let scopes = (self.scopes)(&head);
        match head.method {
            Method::HEAD | Method::GET => self.answer_one(&head, scopes).await,
            Method::POST => self.answer_several(&head, scopes, body).await,
            _ => {
                let mut response = answer(StatusCode::METHOD_NOT_ALLOWED, "");
                let allow = HeaderValue::from_static("GET, HEAD, POST");
                response.headers_mut().insert(ALLOW, allow);
                response
            }
        }
    }

    async fn answer_one(&self, head: &Parts, scopes: Scopes) -> Response<Full<Bytes>> {
        let Ok(Some(bytes)) = number(&head.headers, "upload-length") else {
            return answer(
                StatusCode::BAD_REQUEST,
                "Upload-Length must be a number of bytes",
            );
        };
        let replaced = self.replaced(head, None).await;
        let taken = Taken::default();
        match self.would_fit(&scopes, taken, bytes, replaced).await {
            Ok(_) => answer(StatusCode::NO_CONTENT, ""),
            Err(refused) => {
                let asked = Asked::from(head);
                let refusal = Answers::default().answer(Refusal::from(refused), &asked);
                not_stored(refusal.map(Full::new))
            }
        }
    }

    async fn answer_several<B>(
        &self,
        head: &Parts,
        scopes: Scopes,
        body: B,
    ) -> Response<Full<Bytes>>
    where
        B: Body<Error: Into<BoxError>>,
    {
        let content = match Limited::new(body, LONGEST).collect().await {
            Ok(content) => content.to_bytes(),
            Err(error) if error.is::<http_body_util::LengthLimitError>() => {
                return answer(StatusCode::PAYLOAD_TOO_LARGE, "the list is too long");
            }
            Err(_) => return answer(StatusCode::BAD_REQUEST, "the content was not received"),
        };
        let Some(files) = listed(&content) else {
            let form = "the content must be like {\"files\": [{\"name\": \"a\", \"size\": 1024}]}";
            return answer(StatusCode::BAD_REQUEST, form);
        };
        if files.len() > MOST {
            return answer(StatusCode::PAYLOAD_TOO_LARGE, "the list is too long");
        }
        let refused = self.refused_of(head, &scopes, &files).await;
        let mut json = Object::default();
        let written = json.value("files", array(refused.into_iter().map(told)));
        written.expect("a string takes all that is written to it");
        let mut response = answer(StatusCode::OK, json.end());
        let kind = HeaderValue::from_static("application/json");
        response.headers_mut().insert(CONTENT_TYPE, kind);
        response
    }
}

impl<Q: QuotaSource> Preflight<Q> {
    /// Why each of these files would be refused, behind those that fit before it. None if it fits.
    async fn refused_of(
        &self,
        head: &Parts,
        scopes: &Scopes,
        files: &[Listed],
    ) -> Vec<Option<Refused>> {
        let all = files
            .iter()
            .fold(0, |sum: u64, file| sum.saturating_add(file.size));
        let all = Demand::known(all).with_objects(files.len() as u64);
        // An upload would wait for what it replaces, and be refused if that hangs.
        let has_to_look = self.replaced.is_some() && self.guard.context.is_in_doubt();
        // Mostly everything fits, even if nothing is replaced, and one question is enough.
        if !has_to_look && self.guard.would_fit(scopes, all).await.is_ok() {
            return vec![None; files.len()];
        }
        let mut refused = Vec::with_capacity(files.len());
        let mut taken = Taken::default();
        let mut stored = HashSet::new();
        for Listed { name, size } in files {
            let replaced = match name.as_deref() {
                Some(name) if !stored.contains(name) => self.replaced(head, Some(name)).await,
                _ => Ok(Amount::ZERO),
            };
            match self.would_fit(scopes, taken, *size, replaced).await {
                Ok(more) => {
                    taken = more;
                    stored.extend(name.as_deref());
                    refused.push(None);
                }
                // Each answer may take as long as the guard waits for its quota source.
                Err(unknown) if unknown.reason() == Reason::Unavailable => {
                    refused.resize(files.len(), Some(unknown));
                    return refused;
                }
                Err(other) => refused.push(Some(other)),
            }
        }
        refused
    }

    /// What is taken if a file fits beside what was taken before.
    async fn would_fit(
        &self,
        scopes: &Scopes,
        taken: Taken,
        size: u64,
        replaced: Result<Amount, Refused>,
    ) -> Result<Taken, Refused> {
        let replaced = replaced?;
        let demand = taken.demand(size, replaced);
        self.guard.would_fit(scopes, demand).await?;
        Ok(taken.with(size, replaced))
    }

    /// What an upload replaces.
    async fn replaced(&self, head: &Parts, name: Option<&str>) -> Result<Amount, Refused> {
        let Some(replaced) = &self.replaced else {
            return Ok(Amount::ZERO);
        };
        // The function may look at the filesystem, and would hang with it.
        let context = &self.guard.context;
        if context.refuses_unseen() {
            return Err(Refused::unavailable());
        }
        let pause = context.rules.patience.max(PAUSE);
        let mut replaced = pin!(replaced(head, name));
        loop {
            match within(pause, replaced.as_mut()).await {
                Some(replaced) => return Ok(replaced),
                None if context.is_in_doubt() => return Err(Refused::unavailable()),
                None => {}
            }
        }
    }
}

/// What the files of a list that fit would take, less what they would replace. Below zero if that is more.
#[derive(Clone, Copy, Default)]
struct Taken {
    bytes: i128,
    objects: i128,
}

impl Taken {
    /// A demand that fits if one more file does.
    fn demand(self, size: u64, replaced: Amount) -> Demand {
        let bytes = Needed::beside(self.bytes, size, replaced.bytes);
        let objects = Needed::beside(self.objects, 1, replaced.objects);
        Demand::known(bytes.on_volume)
            .with_objects(objects.on_volume)
            .replacing(Amount::new(
                bytes.on_volume - bytes.in_scopes,
                objects.on_volume - objects.in_scopes,
            ))
    }

    fn with(self, size: u64, replaced: Amount) -> Self {
        Self {
            bytes: self.bytes + i128::from(size) - i128::from(replaced.bytes),
            objects: self.objects + 1 - i128::from(replaced.objects),
        }
    }
}

/// What must be free of bytes, or of objects. In scopes, it is not more than on the volume.
struct Needed {
    on_volume: u64,
    in_scopes: u64,
}

impl Needed {
    fn beside(taken: i128, new: u64, replaced: u64) -> Self {
        let needed = |new: u64| match new {
            // It fits, whatever is there.
            0 => 0,
            // Something must be free even if more was replaced before: a scope may be above its limit.
            _ => u64::try_from((taken + i128::from(new)).max(1)).unwrap_or(u64::MAX),
        };
        Self {
            on_volume: needed(new),
            in_scopes: needed(new.saturating_sub(replaced)),
        }
    }
}

/// A file of a list.
struct Listed {
    name: Option<String>,
    size: u64,
}

/// The files of a list.
fn listed(content: &[u8]) -> Option<Vec<Listed>> {
    let list: Value = serde_json::from_slice(content).ok()?;
    let files = list.get("files")?.as_array()?;
    let listed = files.iter().map(|file| {
        let name = match file.get("name") {
            Some(name) => Some(name.as_str()?.to_owned()),
            None => None,
        };
        let size = file.get("size")?.as_u64()?;
        Some(Listed { name, size })
    });
    listed.collect()
}

/// What is answered of one file.
fn told(refused: Option<Refused>) -> String {
    let mut json = Object::default();
    let written = json.value("fits", refused.is_none()).and_then(|()| {
        let reason = refused.map(|refused| refused.reason().as_str());
        reason.map_or(Ok(()), |reason| json.text("reason", reason))
    });
    written.expect("a string takes all that is written to it");
    json.end()
}

fn answer(status: StatusCode, content: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(content.into()));
    *response.status_mut() = status;
    not_stored(response)
}

fn not_stored<T>(mut response: Response<T>) -> Response<T> {
    let value = HeaderValue::from_static("no-store");
    response.headers_mut().insert(CACHE_CONTROL, value);
    response
}

impl<Q, B> Service<Request<B>> for Preflight<Q>
where
    Q: QuotaSource,
    B: Body<Data: Send, Error: Into<BoxError>> + Send + 'static,
{
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let this = self.clone();
        Box::pin(async { Ok(this.answer(request).await) })
    }
}

impl<Q> Clone for Preflight<Q> {
    fn clone(&self) -> Self {
        Self {
            guard: self.guard.clone(),
            scopes: Arc::clone(&self.scopes),
            replaced: self.replaced.clone(),
        }
    }
}

impl<Q> fmt::Debug for Preflight<Q> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Preflight")
            .field("guard", &self.guard)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use tower::ServiceExt;

    use super::*;
    use crate::quota::{Limits, MemoryQuota};

    fn preflight(limit: u64) -> (MemoryQuota, Preflight<MemoryQuota>) {
        let quota = MemoryQuota::new(Limits::bytes(limit).objects(3));
        let guard = Guard::quota_only(quota.clone());
        (quota, Preflight::new(guard, |_| "user:42"))
    }

    async fn ask(preflight: &Preflight<MemoryQuota>, request: Request<String>) -> (u16, String) {
        let answer = preflight.clone().oneshot(request).await.unwrap();
        assert_eq!(answer.headers()[CACHE_CONTROL], "no-store");
        let status = answer.status().as_u16();
        let content = answer.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(content.into()).unwrap())
    }

    fn several(content: impl Into<String>) -> Request<String> {
        Request::post("/").body(content.into()).unwrap()
    }

    #[tokio::test]
    async fn one_file_is_asked_by_its_length() {
        let (quota, preflight) = preflight(10);
        for (length, status) in [
            ("0", 204),
            ("10", 204),
            ("11", 507),
            ("x", 400),
            ("-1", 400),
        ] {
            let request = Request::get("/").header("upload-length", length);
            let (answered, content) = ask(&preflight, request.body(String::new()).unwrap()).await;
            assert_eq!(answered, status, "{length}");
            assert_eq!(
                content.contains("quota_exceeded"),
                status == 507,
                "{content}"
            );
        }
        let usage = quota.usage("user:42");
        assert_eq!((usage.held.bytes, usage.used.bytes), (0, 0));
        let twice = Request::get("/")
            .header("upload-length", 1)
            .header("upload-length", 2);
        assert_eq!(
            ask(&preflight, twice.body(String::new()).unwrap()).await.0,
            400
        );
        let none = Request::get("/").body(String::new()).unwrap();
        assert_eq!(ask(&preflight, none).await.0, 400);
        let put = Request::put("/").body(String::new()).unwrap();
        assert_eq!(ask(&preflight, put).await.0, 405);
    }

    #[tokio::test]
    async fn files_count_that_fit_before() {
        let (quota, preflight) = preflight(10);
        let list =
            r#"{"files":[{"size":4},{"size":7},{"size":0},{"size":6},{"name":"d","size":0}]}"#;
        let (status, content) = ask(&preflight, several(list)).await;
        let full = r#"{"fits":false,"reason":"quota_exceeded"}"#;
        let fits = r#"{"fits":true}"#;
        assert_eq!(status, 200);
        assert_eq!(
            content,
            format!(r#"{{"files":[{fits},{full},{fits},{fits},{full}]}}"#)
        );
        assert_eq!(quota.usage("user:42").held.objects, 0);
        assert_eq!(
            ask(&preflight, several(r#"{"files":[]}"#)).await.1,
            r#"{"files":[]}"#
        );
    }

    /// A source that does not answer is asked twice, not for each file.
    #[cfg(feature = "test-util")]
    #[tokio::test(start_paused = true)]
    async fn a_list_is_not_asked_on_where_the_source_is_away() {
        let quota = crate::test_util::FakeQuota::new(Limits::bytes(10));
        let preflight = Preflight::new(Guard::quota_only(quota.clone()), |_| "user:42");
        quota.wait();
        let began = tokio::time::Instant::now();
        let list = several(r#"{"files":[{"size":4},{"size":7},{"size":1}]}"#);
        let answer = preflight.oneshot(list).await.unwrap();
        let content = answer.into_body().collect().await.unwrap().to_bytes();
        let content = String::from_utf8(content.into()).unwrap();
        assert_eq!(content.matches("capacity_unknown").count(), 3, "{content}");
        assert_eq!(began.elapsed().as_secs(), 4);
    }

    /// Stores this, as an upload does.
    async fn store<Q: QuotaSource>(guard: &Guard<Q>, demand: Demand) -> Result<(), Refused> {
        let reservation = guard.reserve("user:42", demand).await?;
        reservation.stored(demand.bytes().unwrap());
        assert!(reservation.commit().await);
        Ok(())
    }

    /// Files of 6 and of 3 bytes, where 10 bytes and 3 objects may be stored.
    async fn replacing() -> Preflight<MemoryQuota> {
        let (_, preflight) = preflight(10);
        for size in [6, 3] {
            let stored = store(&preflight.guard, Demand::known(size)).await;
            assert!(stored.is_ok());
        }
        preflight.replaced_by(|head, name| {
            let old = match name.or(head.uri.path().strip_prefix('/')) {
                Some("six") => Amount::new(6, 1),
                Some("three") => Amount::new(3, 1),
                Some("all") => Amount::new(u64::MAX, u64::MAX),
                _ => Amount::ZERO,
            };
            async move { old }
        })
    }

    #[tokio::test]
    async fn one_file_costs_the_difference() {
        let preflight = replacing().await;
        for (path, length, status) in [
            ("/new", 1, 204),
            ("/new", 2, 507),
            ("/six", 7, 204),
            ("/six", 8, 507),
            ("/three", 4, 204),
            ("/three", 5, 507),
            ("/all", u64::MAX, 204),
        ] {
            let request = Request::head(path).header("upload-length", length);
            let (answered, _) = ask(&preflight, request.body(String::new()).unwrap()).await;
            assert_eq!(answered, status, "{path}: {length}");
        }
    }

    #[tokio::test]
    async fn files_of_a_list_cost_the_difference() {
        let preflight = replacing().await;
        for (files, fits) in [
            // Each alone would fit.
            (&[("six", 7), ("three", 4)][..], &[true, false][..]),
            (&[("six", 8), ("six", 7), ("new", 1)], &[false, true, false]),
            // What becomes smaller makes room, and what is larger is never owed any.
            (&[("six", 0), ("new", 7), ("new", 1)], &[true, true, false]),
            (&[("all", 5), ("new", 9)], &[true, true]),
            (&[("all", 5), ("all", u64::MAX)], &[true, false]),
            // The third object, and one too many.
            (&[("three", 3), ("a", 0), ("b", 0)], &[true, true, false]),
            // Once it is stored, a name has nothing of before. Without a name there is nothing at all.
            (&[("six", 6), ("six", 6)], &[true, false]),
            (&[("", 2), ("", 1)], &[false, true]),
        ] {
            let files: Vec<_> = files
                .iter()
                .map(|(name, size)| match *name {
                    "" => serde_json::json!({ "size": size }),
                    name => serde_json::json!({ "name": name, "size": size }),
                })
                .collect();
            let list = serde_json::json!({ "files": files }).to_string();
            assert_eq!(fit(&preflight, &list).await, fits, "{list}");
        }
    }

    async fn fit<Q: QuotaSource>(preflight: &Preflight<Q>, list: &str) -> Vec<bool> {
        let answer = preflight.clone().oneshot(several(list)).await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK, "{list}");
        let content = answer.into_body().collect().await.unwrap().to_bytes();
        let answer: Value = serde_json::from_slice(&content).unwrap();
        let files = answer["files"].as_array().unwrap().iter();
        files.map(|file| file["fits"].as_bool().unwrap()).collect()
    }

    /// What is replaced stays on the volume until the upload is complete.
    #[cfg(feature = "test-util")]
    #[tokio::test(start_paused = true)]
    async fn a_volume_is_asked_for_the_whole() {
        let disk = crate::test_util::FakeVolume::new(10);
        let preflight = Preflight::new(disk.volume().into(), |_| Scopes::NONE)
            .replaced_by(|_, _| async { Amount::new(4, 1) });
        let head = |length| Request::head("/").header("upload-length", length);
        for (length, status) in [(10, 204), (11, 507)] {
            let request = head(length).body(String::new()).unwrap();
            let answer = preflight.clone().oneshot(request).await.unwrap();
            assert_eq!(answer.status().as_u16(), status);
        }
        let list =
            r#"{"files":[{"name":"a","size":10},{"name":"b","size":5},{"name":"c","size":4}]}"#;
        assert_eq!(fit(&preflight, list).await, [true, false, true]);
    }

    #[cfg(feature = "test-util")]
    #[tokio::test(start_paused = true)]
    async fn a_function_that_hangs_with_the_volume_is_not_awaited() {
        use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

        let disk = crate::test_util::FakeVolume::new(10);
        let calls = Arc::new(AtomicU64::new(0));
        let (counted, hanging) = (Arc::clone(&calls), disk.clone());
        let preflight =
            Preflight::new(disk.volume().into(), |_| Scopes::NONE).replaced_by(move |_, _| {
                counted.fetch_add(1, Relaxed);
                hanging.lose();
                std::future::pending()
            });
        // It is lost after the first call, and known to be before the second would be made.
        for _ in 0..2 {
            let request = Request::head("/").header("upload-length", 1);
            let request = request.body(String::new()).unwrap();
            let answer = preflight.clone().oneshot(request).await.unwrap();
            assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
        }
        assert_eq!(calls.load(Relaxed), 1);
    }

    #[cfg(feature = "test-util")]
    mod against_uploads {
        use std::{collections::HashMap, sync::Mutex};

        use proptest::prelude::*;

        use super::*;
        use crate::{quota::Change, test_util::FakeVolume};

        proptest! {
            #![proptest_config(ProptestConfig::with_cases(test_support::times(64)))]

            /// Each file that fits is admitted, one after the other, and each that does not is refused. It may be wrongly refused
            /// with or after a name that occurs again, or if there was no room at all.
            #[test]
            fn a_list_is_answered_as_its_uploads_are(
                room in 0u64..60,
                limits in (0u64..60, 0u64..5),
                old in prop::collection::hash_map(0u8..4, 0u64..20, 0..4),
                new in prop::collection::vec((0u8..5, 0u64..30), 1..8),
            ) {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
                runtime.unwrap().block_on(upload(room, limits, old, &new));
            }
        }

        async fn upload(room: u64, limits: (u64, u64), old: HashMap<u8, u64>, new: &[(u8, u64)]) {
            let (bytes, objects) = (old.values().sum::<u64>(), old.len() as u64);
            let total = room + bytes;
            let disk = FakeVolume::new(total);
            disk.set_available(room);
            let quota = MemoryQuota::new(Limits::bytes(limits.0).objects(limits.1));
            quota.adjust("user:42", Change::from(Amount::new(bytes, objects)));
            let mut is_exact = room > 0 && bytes < limits.0 && objects < limits.1;
            let guard = Guard::new(disk.volume())
                .quota(quota)
                .patience(Duration::ZERO);

            let files = Arc::new(Mutex::new(old));
            let size_of = {
                let files = Arc::clone(&files);
                move |name: u8| {
                    let size = files.lock().unwrap().get(&name).copied();
                    size.map_or(Amount::ZERO, |size| Amount::new(size, 1))
                }
            };
            let replaced = size_of.clone();
            let preflight =
                Preflight::new(guard.clone(), |_| "user:42").replaced_by(move |_, name| {
                    let replaced = replaced(name.unwrap().parse().unwrap());
                    async move { replaced }
                });
            let list = new
                .iter()
                .map(|(name, size)| serde_json::json!({ "name": name.to_string(), "size": size }));
            let list = serde_json::json!({ "files": list.collect::<Vec<_>>() }).to_string();

            let mut stored = HashSet::new();
            for (fits, (name, size)) in fit(&preflight, &list).await.into_iter().zip(new) {
                let demand = Demand::known(*size).replacing(size_of(*name));
                is_exact &= !stored.contains(name);
                if fits {
                    let admitted = store(&guard, demand).await;
                    assert!(admitted.is_ok(), "{name}: {size} of {list}");
                    stored.insert(name);
                    files.lock().unwrap().insert(*name, *size);
                    disk.set_available(total - files.lock().unwrap().values().sum::<u64>());
                } else if is_exact {
                    let admitted = guard.reserve("user:42", demand).await;
                    assert!(admitted.is_err(), "{name}: {size} of {list}");
                }
            }
        }
    }

    #[tokio::test]
    async fn what_is_no_list_is_refused() {
        let (_, preflight) = preflight(10);
        for content in [
            "",
            "[1]",
            "{}",
            r#"{"files":[{"size":-1}]}"#,
            r#"{"files":[{"size":1.5}]}"#,
            r#"{"files":[{}]}"#,
            r#"{"files":[{"size":1,"name":2}]}"#,
        ] {
            assert_eq!(ask(&preflight, several(content)).await.0, 400, "{content}");
        }
        let files = |count| {
            format!(
                r#"{{"files":[{}]}}"#,
                vec![r#"{"size":0}"#; count].join(",")
            )
        };
        assert_eq!(ask(&preflight, several(files(MOST))).await.0, 200);
        assert_eq!(ask(&preflight, several(files(MOST + 1))).await.0, 413);
        assert_eq!(
            ask(&preflight, several(" ".repeat(LONGEST + 1))).await.0,
            413
        );
    }

    #[tokio::test]
    async fn lengths_that_add_up_to_more_than_a_number_fit_nowhere() {
        let (_, preflight) = preflight(u64::MAX - 1);
        let most = u64::MAX;
        let list = format!(r#"{{"files":[{{"size":{most}}},{{"size":5}},{{"size":{most}}}]}}"#);
        let (_, content) = ask(&preflight, several(list)).await;
        assert_eq!(content.matches("false").count(), 2, "{content}");
    }
}
