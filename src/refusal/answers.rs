use std::{collections::HashMap, fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, Method, Response, StatusCode, header::RETRY_AFTER, request::Parts};

use super::{Asked, Dialect, Grpc, Http, Refusal, add_rate_limits};
use crate::{
    cause::{Cause, Resource},
    config::ConfigError,
    head::Lines,
};

/// Tells what is left of the quota that was exceeded, if the client may know it.
fn tell_rate_limit(refusal: &Refusal, headers: &mut HeaderMap) {
    let is_of_bytes = (refusal.fault()).is_some_and(|fault| fault.resource == Resource::Bytes);
    if let (true, Some(scope), Some(figures)) = (is_of_bytes, refusal.scope(), refusal.figures()) {
        let left = figures.limit.saturating_sub(figures.used);
        add_rate_limits(headers, [(scope, figures.limit, left)]);
    }
}

/// How refusals are answered: the settings, and the code that applies them.
#[derive(Clone, Default)]
pub(crate) struct Answers {
    statuses: HashMap<Cause, StatusCode>,
    retries: HashMap<Cause, Duration>,
    dialects: Vec<Arc<dyn Dialect>>,
    /// The dialect that is asked after all others.
    last_dialect: Option<Arc<dyn Dialect>>,
    grpc: Grpc,
    http: Http,
    renderer: Option<Arc<Renderer>>,
    /// Whether refusals by a quota tell what is left of it.
    pub(crate) tells_rate_limit: bool,
}

type Renderer = dyn Fn(&Refusal, &Asked) -> Option<Response<Bytes>> + Send + Sync;

impl Answers {
    /// Answers this cause with this status. Defaults to 507 for all causes.
    pub(crate) fn set_status(
        &mut self,
        cause: Cause,
        status: StatusCode,
    ) -> Result<(), ConfigError> {
        if !status.is_client_error() && !status.is_server_error() {
            return Err(ConfigError::Status(status));
        }
        self.statuses.insert(cause, status);
        Ok(())
    }

    /// Sets the `Retry-After` of refusals with this cause: in whole seconds, rounded up, at least one. Defaults to
    /// none (RFC 4918, section 11.5).
    pub(crate) fn set_retry_after(&mut self, cause: Cause, after: Duration) {
        // Round up, because a client that retries too early is refused again; and 0 would mean "at once".
        let started = u64::from(after.subsec_nanos() > 0);
        let seconds = after.as_secs().saturating_add(started).max(1);
        self.retries.insert(cause, Duration::from_secs(seconds));
    }

    /// Adds a dialect, after those that were added before, and before gRPC and HTTP.
    pub(crate) fn push_dialect(&mut self, dialect: impl Dialect) {
        self.dialects.push(Arc::new(dialect));
    }

    /// Sets the dialect that comes after all that are added, and before gRPC and HTTP.
    #[cfg(feature = "webdav")]
    pub(crate) fn set_last_dialect(&mut self, dialect: impl Dialect) {
        self.last_dialect = Some(Arc::new(dialect));
    }

    /// Sets how gRPC, gRPC-Web and Connect are answered.
    pub(crate) fn set_grpc(&mut self, grpc: Grpc) {
        self.grpc = grpc;
    }

    /// Sets how HTTP is answered.
    pub(crate) fn set_http(&mut self, http: Http) {
        self.http = http;
    }

    /// Calls `renderer` before any dialect; if it returns None, the dialect answers.
    pub(crate) fn set_renderer<F>(&mut self, renderer: F)
    where
        F: Fn(&Refusal, &Asked) -> Option<Response<Bytes>> + Send + Sync + 'static,
    {
        self.renderer = Some(Arc::new(renderer));
    }

    /// The index of the first dialect that accepts the request, of those that were added.
    #[inline]
    pub(super) fn dialect_for(&self, head: &Parts) -> Option<u32> {
        // Called for every request, and most layers have none.
        if self.dialects.is_empty() && self.last_dialect.is_none() {
            return None;
        }
        self.added_dialect_for(head)
    }

    #[cold]
    fn added_dialect_for(&self, head: &Parts) -> Option<u32> {
        (0..)
            .zip(self.added())
            .find(|(_, dialect)| dialect.hears(head))
            .map(|(index, _)| index)
    }

    fn added(&self) -> impl Iterator<Item = &Arc<dyn Dialect>> {
        self.dialects.iter().chain(&self.last_dialect)
    }

    /// Whether a user-defined renderer sees every refusal.
    pub(super) fn has_renderer(&self) -> bool {
        self.renderer.is_some()
    }

    /// Makes the response to a refused request.
    ///
    /// Its extensions contain the refusal, whatever code renders it.
    pub(crate) fn answer(&self, refusal: Refusal, asked: &Asked) -> Response<Bytes> {
        let refusal = self.settle(refusal);
        let own = self
            .renderer
            .as_ref()
            .and_then(|renderer| renderer(&refusal, asked));
        let mut response = own.unwrap_or_else(|| self.dialect(asked).render(&refusal, asked));

        // A dialect that answers 2xx reports the delay in its own way, if it has one.
        if let Some(after) = refusal.retry_after()
            && !response.status().is_success()
        {
            let headers = response.headers_mut();
            headers
                .entry(RETRY_AFTER)
                .or_insert_with(|| after.as_secs().into());
        }
        if self.tells_rate_limit {
            tell_rate_limit(&refusal, response.headers_mut());
        }
        for (name, value) in asked.to_answer() {
            let headers = response.headers_mut();
            headers.insert(name.clone(), value.clone());
        }
        // The head of an answer to GET, and no content (RFC 9110, section 9.3.2).
        if asked.method() == Method::HEAD {
            *response.body_mut() = Bytes::new();
        }
        response.extensions_mut().insert(refusal);
        response
    }

    /// Applies the settings for the refusal's cause to the refusal.
    fn settle(&self, mut refusal: Refusal) -> Refusal {
        let Some(fault) = refusal.fault() else {
            return refusal;
        };
        if let Some(status) = self.statuses.get(&fault.cause) {
            refusal = refusal.with_status(*status);
        }
        if let Some(after) = self.retries.get(&fault.cause) {
            refusal = refusal.with_retry_after(*after);
        }
        refusal
    }

    fn dialect(&self, asked: &Asked) -> &dyn Dialect {
        let heard = asked
            .dialect
            .and_then(|index| self.added().nth(index as usize));
        match heard {
            Some(dialect) => &**dialect,
            None if asked.rpc().is_some() => &self.grpc,
            None => &self.http,
        }
    }
}

impl Asked {
    /// Keeps the parts of the request that its answer needs.
    ///
    /// Every request passes through here, and few are refused. So costly steps are deferred: `Accept` is not parsed,
    /// and the content type is not looked up for plain HTTP, which does not use it. The URI consists of several
    /// reference-counted parts, and only user-defined renderers can see it.
    #[inline(always)]
    pub(crate) fn hear(head: &Parts, lines: &Lines<'_>, answers: &Answers) -> Self {
        match answers.dialect_for(head) {
            None => {
                let asked = Self::keep(&head.method, head.version, &head.headers, lines);
                match answers.has_renderer() {
                    false => asked,
                    true => asked.with_uri(&head.uri),
                }
            }
            dialect => Self::from(head).for_dialect(dialect),
        }
    }
}

impl fmt::Debug for Answers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Answers")
            .field("statuses", &self.statuses)
            .field("retries", &self.retries)
            .field("dialects", &self.added().count())
            .field("grpc", &self.grpc)
            .field("http", &self.http)
            .field("renderer", &self.renderer.is_some())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderValue, Request, header::CONTENT_TYPE};

    use super::*;
    use crate::{
        cause::{Fault, Resource},
        head::Hints,
        refusal::RefusalKind,
    };

    fn disk_full() -> Refusal {
        Fault::new(Cause::DiskFull, Resource::Bytes).into()
    }

    fn quota_exceeded() -> Refusal {
        Fault::new(Cause::QuotaExceeded, Resource::Bytes).into()
    }

    fn ask(method: &str) -> Parts {
        let request = Request::builder().method(method);
        request.body(()).unwrap().into_parts().0
    }

    fn hear(head: &Parts, answers: &Answers) -> Asked {
        let hints = Hints::default();
        Asked::hear(head, &Lines::read(&head.headers, &hints), answers)
    }

    fn answer(answers: &Answers, refusal: Refusal) -> Response<Bytes> {
        answers.answer(refusal, &hear(&ask("PUT"), answers))
    }

    /// Accepts a method of its name, and answers with a status of its own.
    struct Tongue {
        method: &'static str,
        status: u16,
    }

    impl Dialect for Tongue {
        fn hears(&self, head: &Parts) -> bool {
            head.method.as_str() == self.method
        }

        fn render(&self, refusal: &Refusal, _: &Asked) -> Response<Bytes> {
            Response::builder()
                .status(self.status)
                .body(refusal.reason().into())
                .unwrap()
        }
    }

    #[test]
    fn a_plain_answer() {
        let response = answer(&Answers::default(), disk_full());
        assert_eq!(response.status(), 507);
        assert_eq!(response.headers()[CONTENT_TYPE], "application/json");
        assert!(!response.headers().contains_key(RETRY_AFTER));
        assert_eq!(response.extensions().get(), Some(&disk_full()));
    }

    #[test]
    fn a_status_for_each_cause() {
        let mut answers = Answers::default();
        answers
            .set_status(Cause::QuotaExceeded, StatusCode::FORBIDDEN)
            .unwrap();
        answers
            .set_status(Cause::QuotaExceeded, StatusCode::PAYLOAD_TOO_LARGE)
            .unwrap();

        let response = answer(&answers, quota_exceeded());
        assert_eq!(response.status(), 413);
        assert!(
            response
                .body()
                .starts_with(br#"{"error":"Payload Too Large""#)
        );
        assert_eq!(
            response.extensions().get::<Refusal>().unwrap().status(),
            413
        );

        assert_eq!(answer(&answers, disk_full()).status(), 507);
        assert_eq!(answer(&answers, Refusal::unavailable()).status(), 503);
        assert_eq!(answer(&answers, Refusal::invalid_length()).status(), 400);
    }

    #[test]
    fn a_refusal_is_no_success() {
        let mut answers = Answers::default();
        for status in [100, 200, 204, 302, 399, 600, 999] {
            let status = StatusCode::from_u16(status).unwrap();
            let refused = answers.set_status(Cause::DiskFull, status);
            assert_eq!(refused, Err(ConfigError::Status(status)));
        }
        assert_eq!(answer(&answers, disk_full()).status(), 507);
        for status in [400, 599] {
            let status = StatusCode::from_u16(status).unwrap();
            assert_eq!(answers.set_status(Cause::DiskFull, status), Ok(()));
        }
    }

    #[test]
    fn retry_after_is_rounded_up_and_never_zero() {
        for (after, header) in [
            (Duration::ZERO, "1"),
            (Duration::from_nanos(1), "1"),
            (Duration::from_secs(1), "1"),
            (Duration::from_millis(1001), "2"),
            (Duration::from_secs(60), "60"),
            (Duration::MAX, "18446744073709551615"),
        ] {
            let mut answers = Answers::default();
            answers.set_retry_after(Cause::DiskFull, after);
            let response = answer(&answers, disk_full());
            assert_eq!(response.headers()[RETRY_AFTER], header);
            let told = response
                .extensions()
                .get::<Refusal>()
                .unwrap()
                .retry_after();
            assert_eq!(
                told.map(|after| after.as_secs().to_string()).as_deref(),
                Some(header)
            );
        }
    }

    #[test]
    fn retry_after_only_for_its_cause() {
        let mut answers = Answers::default();
        answers.set_retry_after(Cause::DiskFull, Duration::from_secs(5));
        for refusal in [
            quota_exceeded(),
            Refusal::unavailable(),
            Refusal::invalid_length(),
        ] {
            assert!(
                !answer(&answers, refusal)
                    .headers()
                    .contains_key(RETRY_AFTER)
            );
        }
    }

    #[test]
    fn the_first_dialect_that_hears_answers() {
        let mut answers = Answers::default();
        answers.push_dialect(Tongue {
            method: "MKCOL",
            status: 507,
        });
        answers.push_dialect(Tongue {
            method: "POST",
            status: 200,
        });
        answers.push_dialect(Tongue {
            method: "POST",
            status: 500,
        });
        answers.set_retry_after(Cause::DiskFull, Duration::from_secs(5));

        let ask = |method: &str| answers.answer(disk_full(), &hear(&ask(method), &answers));
        let dav = ask("MKCOL");
        assert_eq!(
            (dav.status().as_u16(), &dav.body()[..]),
            (507, &b"disk_full"[..])
        );
        assert_eq!(dav.headers()[RETRY_AFTER], "5");
        // Reports it in headers of its own, as gRPC does.
        let rpc = ask("POST");
        assert_eq!(
            (rpc.status().as_u16(), &rpc.body()[..]),
            (200, &b"disk_full"[..])
        );
        assert!(!rpc.headers().contains_key(RETRY_AFTER));
        assert!(rpc.extensions().get::<Refusal>().is_some());
        assert_eq!(ask("PUT").headers()[CONTENT_TYPE], "application/json");
    }

    #[test]
    fn a_renderer_answers_or_declines() {
        let mut answers = Answers::default();
        answers
            .set_status(Cause::DiskFull, StatusCode::SERVICE_UNAVAILABLE)
            .unwrap();
        answers.set_retry_after(Cause::DiskFull, Duration::from_secs(5));
        answers.set_renderer(|refusal, asked| {
            assert_eq!(asked.method(), Method::PUT);
            matches!(refusal.kind(), RefusalKind::Storage(_)).then(|| {
                let body = refusal.status().to_string();
                Response::builder().status(418).body(body.into()).unwrap()
            })
        });

        let own = answer(&answers, disk_full());
        assert_eq!(
            (own.status().as_u16(), &own.body()[..]),
            (418, &b"503 Service Unavailable"[..])
        );
        assert_eq!(own.headers()[RETRY_AFTER], "5");
        assert_eq!(own.extensions().get::<Refusal>().unwrap().status(), 503);

        let ours = answer(&answers, Refusal::unavailable());
        assert_eq!(ours.headers()[CONTENT_TYPE], "application/json");
        assert!(ours.extensions().get::<Refusal>().is_some());
    }

    #[test]
    fn the_renderers_own_retry_after_is_kept() {
        let mut answers = Answers::default();
        answers.set_retry_after(Cause::DiskFull, Duration::from_secs(5));
        answers.set_renderer(|_, _| {
            Some(
                Response::builder()
                    .status(507)
                    .header(RETRY_AFTER, "9")
                    .body(Bytes::new())
                    .unwrap(),
            )
        });
        assert_eq!(answer(&answers, disk_full()).headers()[RETRY_AFTER], "9");
    }

    #[test]
    fn head_is_answered_without_content() {
        let answers = Answers::default();
        let ask = |method: Method| {
            let mut head = ask(method.as_str());
            let html = HeaderValue::from_static("text/html");
            head.headers.insert("accept", html);
            answers.answer(disk_full(), &hear(&head, &answers))
        };
        let (head, get) = (ask(Method::HEAD), ask(Method::GET));
        assert_eq!(head.status(), get.status());
        assert_eq!(head.headers(), get.headers());
        assert!(head.body().is_empty());
        assert!(!get.body().is_empty());
    }

    #[test]
    fn problem_types_of_http_are_configurable() {
        let mut answers = Answers::default();
        answers.set_http(
            Http::default()
                .problem_types("https://example.com/")
                .unwrap(),
        );
        let mut head = ask("PUT");
        let problem = HeaderValue::from_static("application/problem+json");
        head.headers.insert("accept", problem);
        let response = answers.answer(disk_full(), &hear(&head, &answers));
        assert!(
            response
                .body()
                .starts_with(br#"{"type":"https://example.com/disk_full""#)
        );
    }

    #[test]
    fn debug_shows_the_settings() {
        let debug = format!("{:?}", Answers::default());
        assert!(debug.starts_with("Answers { statuses: {}"), "{debug}");
    }
}
