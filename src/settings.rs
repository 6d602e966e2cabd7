//! The settings of a layer: its guard, and how it applies to HTTP.

use std::{fmt, sync::Arc};

use http::{request, response};

use crate::{
    body::Responder,
    demand::Demand,
    fault::Classifier,
    guard::Guard,
    head::{self, Hints},
    price::Price,
    protocol::Select,
    refusal::Asked,
    reservation::BoxFuture,
    scope::Scopes,
    steps::Steps,
};

/// Decides by a request's head.
type Choose<T> = Arc<dyn Fn(&request::Parts) -> T + Send + Sync>;
/// Decides by an answer's head.
type Judge = Arc<dyn Fn(&response::Parts) -> bool + Send + Sync>;
/// Prices a request, given the demand that its head declares.
type Pricing<T> = Arc<dyn Fn(&request::Parts, Demand) -> T + Send + Sync>;

/// The settings of a layer: its guard, and how it applies to HTTP.
pub(crate) struct Settings<Q> {
    pub(crate) guard: Guard<Q>,
    pub(crate) http: HttpSettings,
}

/// The settings that only concern HTTP.
#[derive(Clone, Default)]
pub(crate) struct HttpSettings {
    pub(crate) scopes: Option<ScopeBy>,
    pub(crate) applies: Applies,
    pub(crate) price: Option<PriceBy>,
    pub(crate) hints: Hints,
    pub(crate) steps: Option<Arc<dyn Steps>>,
    pub(crate) success: Option<Judge>,
    pub(crate) classifier: Classifier,
    pub(crate) responder: Arc<Responder>,
    pub(crate) advice: Advice,
}

/// What successes tell clients of their quotas.
#[derive(Clone, Copy, Default)]
pub(crate) struct Advice {
    /// The soft limits that they are above.
    pub(crate) soft_limits: bool,
    /// What is left.
    pub(crate) rate_limit: bool,
}

impl Advice {
    #[inline]
    pub(crate) const fn is_any(self) -> bool {
        self.soft_limits | self.rate_limit
    }
}

/// Which requests are guarded.
#[derive(Clone, Default)]
pub(crate) struct Applies {
    /// The user's own choice.
    pub(crate) chosen: Option<Choose<bool>>,
    /// Consulted if that is not set. Without any, and for other requests than theirs, the method decides.
    pub(crate) selects: Vec<Arc<dyn Select>>,
}

impl Applies {
    /// `writes` tells of a request that writes whatever its method is.
    #[inline]
    pub(crate) fn to(
        &self,
        head: &request::Parts,
        asked: &Asked,
        writes: bool,
        has_content: impl FnOnce() -> bool,
    ) -> bool {
        match &self.chosen {
            Some(chosen) => chosen(head),
            None => {
                let selected = match asked.protocol() {
                    Some(_) => self.select(head),
                    None => None,
                };
                selected.unwrap_or_else(|| {
                    writes
                        || head::is_write(&head.method)
                        || has_content() && head::is_overridden(&head.headers)
                })
            }
        }
    }

    /// Whether the request is a call that was named: by its path, because a client chooses the content type.
    #[inline]
    pub(crate) fn is_named_call(&self, head: &request::Parts, asked: &Asked) -> bool {
        asked.protocol().is_some() && self.select(head) == Some(true)
    }

    /// The protocols' decision. None if the request belongs to none of them.
    pub(crate) fn select(&self, head: &request::Parts) -> Option<bool> {
        let guards = self.selects.iter().filter_map(|select| select.guards(head));
        guards.reduce(|one, other| one || other)
    }
}

/// Which scopes a request is charged to.
#[derive(Clone)]
pub(crate) enum ScopeBy {
    At(Choose<Scopes>),
    Later(Choose<BoxFuture<Scopes>>),
}

/// How a request is priced if its headers do not decide.
#[derive(Clone)]
pub(crate) enum PriceBy {
    At(Pricing<Price>),
    Later(Pricing<BoxFuture<Price>>),
}

impl<Q> Clone for Settings<Q> {
    fn clone(&self) -> Self {
        Self {
            guard: self.guard.clone(),
            http: self.http.clone(),
        }
    }
}

impl<Q> fmt::Debug for Settings<Q> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StorageGuardLayer")
            .field("guard", &self.guard)
            .finish_non_exhaustive()
    }
}
