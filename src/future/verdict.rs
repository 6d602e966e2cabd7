//! Judges the inner service's answer.

use http::{Response, StatusCode};

use crate::{
    cause::Fault,
    fault,
    refusal::{Asked, Refusal},
    refused::Refused,
    settings::Settings,
};

/// The refusal for a service's error.
pub(super) fn of_error<E: 'static, Q>(settings: &Settings<Q>, error: &E) -> Option<Refusal> {
    let fault = settings.http.classifier.classify_any(error)?;
    Some(fault.into())
}

/// The refusal for an answer, unless the guard has made it.
pub(super) fn of_response<R, Q>(settings: &Settings<Q>, response: &Response<R>) -> Option<Refusal> {
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
        return Some((*fault).into());
    }
    if let Some(error) = fault::error_behind(extensions) {
        if let Some(refused) = fault::find::<Refused>(error) {
            return Some(refused.clone().into());
        }
        if let Some(fault) = settings.http.classifier.classify(error) {
            return Some(fault.into());
        }
    }
    // The answer has no reason. A full disk is the most frequent one.
    is_507.then(|| Fault::DISK_FULL.into())
}

/// Whether a request with this answer was carried out. For a procedure call it only means that nothing has failed
/// yet.
#[inline]
pub(super) fn success<R, Q>(
    settings: &Settings<Q>,
    asked: &Asked,
    response: Response<R>,
) -> (Response<R>, bool) {
    // An inner guard has refused it, in a protocol that has another form of refusal.
    let is_refused = response.extensions().get::<Refusal>().is_some();
    let protocol = asked.protocol();
    if is_refused || protocol.is_some_and(|protocol| protocol.has_failed(response.headers())) {
        return (response, false);
    }
    let Some(judge) = &settings.http.success else {
        let status = response.status();
        let success = status.is_success() || status == StatusCode::SEE_OTHER;
        return (response, success);
    };
    let (head, body) = response.into_parts();
    let success = judge(&head);
    (Response::from_parts(head, body), success)
}
