//! Judges the inner service's answer.

use std::mem;

use http::{Response, StatusCode, response};

use crate::{
    cause::Fault,
    fault,
    observer::{Event, Observed},
    refusal::{Asked, Refusal},
    refused::Refused,
    settings::Settings,
};

/// The status of an answer that says nothing of a fault. None for any other, and for an error.
#[inline]
pub(super) fn plain_status<R, E>(answered: &Result<Response<R>, E>) -> Option<StatusCode> {
    let response = answered.as_ref().ok()?;
    let status = response.status();
    let is_plain = response.extensions().is_empty() && status != StatusCode::INSUFFICIENT_STORAGE;
    is_plain.then_some(status)
}

/// The refusal for a service's error, or the error itself.
pub(super) fn of_error<E: 'static, Q>(settings: &Settings<Q>, error: E) -> Result<Refusal, E> {
    let classifier = &settings.http.classifier;
    let judged = classifier
        .open(&error)
        .and_then(|error| classifier.judge(error, observer(settings)));
    let Some(refusal) = judged.and_then(Refusal::of_verdict) else {
        return Err(error);
    };
    Ok(match fault::kept(error, |error| classifier.open(error)) {
        Some(error) => refusal.with_error(error),
        None => refusal,
    })
}

/// The refusal of a request whose body was cut, or for an answer.
pub(super) fn refusal_of<R, Q>(
    settings: &Settings<Q>,
    cut: Option<Refused>,
    response: &Response<R>,
) -> Option<Refusal> {
    match cut {
        Some(refused) => Some(refused.into()),
        None => of_response(settings, response),
    }
}

/// The refusal for an answer, unless the guard has made it.
fn of_response<R, Q>(settings: &Settings<Q>, response: &Response<R>) -> Option<Refusal> {
    let is_507 = response.status() == StatusCode::INSUFFICIENT_STORAGE;
    if response.extensions().is_empty() && !is_507 {
        return None;
    }
    // Each part has a status of its own (RFC 4918, section 13). One refusal for all of them would deny the parts that
    // succeeded.
    if response.status() == StatusCode::MULTI_STATUS {
        return None;
    }
    let extensions = response.extensions();
    if extensions.get::<Refusal>().is_some() {
        return None;
    }
    if let Some(fault) = extensions.get::<Fault>() {
        return Some(told(settings, *fault));
    }
    if let Some(error) = fault::error_behind(extensions) {
        if let Some(refused) = fault::find::<Refused>(&*error) {
            return Some(refused.clone().into());
        }
        let judged = settings.http.classifier.judge(&*error, observer(settings));
        if let Some(refusal) = judged.and_then(Refusal::of_verdict) {
            return Some(refusal.with_error(error));
        }
    }
    // The answer has no reason. A full disk is the most frequent one.
    is_507.then(|| told(settings, Fault::DISK_FULL))
}

fn observer<Q>(settings: &Settings<Q>) -> Option<&Observed> {
    settings.guard.context.rules.observer.as_ref()
}

/// The refusal for a fault that the service has named itself.
fn told<Q>(settings: &Settings<Q>, fault: Fault) -> Refusal {
    if let Some(observer) = observer(settings) {
        observer.observe(&Event::Fault { fault, error: None });
    }
    fault.into()
}

/// Whether a request with this answer was carried out. For a procedure call it only means that nothing has failed
/// yet.
pub(super) fn success<R, Q>(
    settings: &Settings<Q>,
    asked: &Asked,
    response: &mut Response<R>,
) -> bool {
    // An inner guard has refused it, in a protocol that has another form of refusal.
    let is_refused = response.extensions().get::<Refusal>().is_some();
    let protocol = asked.protocol();
    if is_refused || protocol.is_some_and(|protocol| protocol.has_failed(response.headers())) {
        return false;
    }
    match &settings.http.success {
        None => response.status().is_success() || response.status() == StatusCode::SEE_OTHER,
        Some(judge) => look_at_head(response, |head| judge(head)),
    }
}

/// Shows the head of a response, which has it in parts only when it is taken apart.
#[cold]
pub(super) fn look_at_head<R, T>(
    response: &mut Response<R>,
    look: impl FnOnce(&mut response::Parts) -> T,
) -> T {
    let (mut head, ()) = Response::new(()).into_parts();
    head.status = response.status();
    head.version = response.version();
    head.headers = mem::take(response.headers_mut());
    head.extensions = mem::take(response.extensions_mut());
    let seen = look(&mut head);
    *response.headers_mut() = head.headers;
    *response.extensions_mut() = head.extensions;
    seen
}
