//! Handles the inner service's answer: a refusal, a commit, a watch over its body, or nothing more to do.

use http::{HeaderMap, Request, Response, StatusCode, header::CONTENT_LENGTH};
use http_body::Body;
use tower::Service;

use super::{
    Advised, Guarded, State,
    advice::advise,
    charged, close_after,
    verdict::{look_at_head, of_error, refusal_of, success},
};
use crate::{
    body::{Ending, MeteredBody, ResponseBody, Unread, Watch},
    quota::{Answer, QuotaHold, QuotaSource},
    refusal::{Asked, Refusal},
    reservation::{BoxFuture, Ended},
    settings::Settings,
};

/// The next step after an answer.
pub(super) enum Next<S, B, Q, R>
where
    S: Service<Request<MeteredBody<B>>>,
    B: Body,
    Q: QuotaSource,
{
    Wait(State<S, B, Q>),
    Done(Result<Response<ResponseBody<R>>, S::Error>),
}

impl<S, B, R, Q> State<S, B, Q>
where
    S: Service<Request<MeteredBody<B>>, Response = Response<R>>,
    S::Error: 'static,
    B: Body,
    R: Body,
    Q: QuotaSource,
{
    #[cold]
    pub(super) fn by_answer(
        settings: &Settings<Q>,
        asked: &Asked,
        guarded: Option<Guarded<Q>>,
        answered: Result<Response<R>, S::Error>,
    ) -> Next<S, B, Q, R> {
        // Handlers may map a body error to any response, so a cut is detected through the reservation, not the response.
        let cut = guarded
            .as_ref()
            .and_then(|guarded| guarded.reservation.why_cut());
        let fail = |guarded: Option<&Guarded<Q>>, refusal: Refusal, headers: HeaderMap| {
            let reservation = guarded.map(|guarded| &guarded.reservation);
            Next::Wait(Self::failed(settings, reservation, refusal, headers))
        };
        let mut response = match answered {
            Ok(response) => response,
            Err(error) => {
                let cut = cut.map(|refused| Ok(refused.into()));
                return match cut.unwrap_or_else(|| of_error(settings, error)) {
                    Ok(refusal) => fail(guarded.as_ref(), refusal, HeaderMap::new()),
                    Err(error) => Next::Done(Err(error)),
                };
            }
        };
        if let Some(refusal) = refusal_of(settings, cut, &response) {
            return fail(guarded.as_ref(), refusal, without_body(response));
        }
        let Some(guarded) = guarded else {
            return as_it_is(response);
        };
        let success = success(settings, asked, &mut response);
        if let Some(visit) = &guarded.visit {
            look_at_head(&mut response, |head| visit.answered(head, success));
        }
        if !success {
            close_after(&mut response, guarded.is_early());
            if let Some(unread) = guarded.reservation.take_unread() {
                finish_early(settings, &mut response, unread);
            }
            // Dropping it releases.
            return as_it_is(response);
        }
        if response.status() == StatusCode::MULTI_STATUS {
            // RFC 4918, section 13: some of the resources of a DELETE or a MOVE still exist.
            guarded.reservation.state().keep_all();
        }
        if let Some(ending) = Ending::of_protocol(asked, response.headers()) {
            // A refusal instead of it would have another length.
            response.headers_mut().remove(CONTENT_LENGTH);
            close_after(&mut response, guarded.is_early());
            return watched(settings, response, guarded, ending);
        }
        let mut unread = None;
        let ended = match guarded.reservation.end_if_read(&mut unread) {
            // Another thread has just cut the body.
            Err(refused) => return fail(Some(&guarded), refused.into(), without_body(response)),
            Ok(ended) => ended,
        };
        let Some(ended) = ended else {
            // The body is still being read while the answer is sent. Both have to end.
            close_after(&mut response, guarded.is_http_1);
            let ending = Ending::of_content(&response.body().size_hint());
            return watched(settings, response, guarded, ending);
        };
        if let Some(unread) = unread {
            finish_early(settings, &mut response, unread);
        }
        let settled = guarded.visit.as_ref().and_then(|visit| visit.settling());
        let advised = guarded.advised(settings);
        Self::after_end(settings, ended, settled, response, advised)
    }

    /// A success whose reservation has ended: what it stored is charged before it is answered.
    fn after_end(
        settings: &Settings<Q>,
        ended: Ended<Q::Hold>,
        settled: Option<BoxFuture<bool>>,
        response: Response<R>,
        advised: Advised,
    ) -> Next<S, B, Q, R> {
        let commit = ended
            .into_commit()
            .map(|(hold, change)| hold.commit(change));
        match (commit, settled) {
            (Some(Answer::Later(commit)), _) => {
                Next::Wait(Self::commit(settings, commit, Some(response), advised))
            }
            (Some(Answer::Now(())), _) => {
                settings.guard.context.rules.quota_queue.notify();
                Next::Done(Ok(charged(settings, response, &advised)))
            }
            (None, Some(settled)) => Next::Wait(Self::Complete {
                settled,
                response: Some(response),
                advised,
            }),
            (None, None) => Next::Done(Ok(charged(settings, response, &advised))),
        }
    }
}

/// The answer comes before the end of its request: over HTTP/1 the rest is read beside it, and the connection closes.
#[cold]
fn finish_early<Q, R>(settings: &Settings<Q>, response: &mut Response<R>, unread: Unread) {
    if unread.closes() {
        close_after(response, true);
        settings.http.responder.drains.start(unread);
    }
}

fn as_it_is<S, B, R, Q>(response: Response<R>) -> Next<S, B, Q, R>
where
    S: Service<Request<MeteredBody<B>>>,
    B: Body,
    Q: QuotaSource,
{
    Next::Done(Ok(response.map(ResponseBody::inner)))
}

fn watched<S, B, R, Q>(
    settings: &Settings<Q>,
    mut response: Response<R>,
    guarded: Guarded<Q>,
    ending: Ending,
) -> Next<S, B, Q, R>
where
    S: Service<Request<MeteredBody<B>>>,
    B: Body,
    Q: QuotaSource,
{
    if let Some(scopes) = guarded.advised(settings) {
        advise(settings, &scopes, &mut response);
    }
    let watch = Watch::new(guarded.hand_on(), ending);
    Next::Done(Ok(response.map(|body| ResponseBody::watched(body, watch))))
}

/// The inner service's answer by its headers. Its content is dropped.
fn without_body<R>(response: Response<R>) -> HeaderMap {
    response.into_parts().0.headers
}
