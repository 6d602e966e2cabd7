//! What a layer reserves from, and how it does so over HTTP.

use std::{fmt, pin::Pin, sync::Arc};

use http::{request, response};

use crate::{
    body::Responder, demand::Demand, fault::Classifier, guard::Guard, head::Hints, price::Price,
    rpc::Calls, scope::Scopes, steps::Steps,
};

/// Decides by a request's head.
type Choose<T> = Arc<dyn Fn(&request::Parts) -> T + Send + Sync>;
/// Decides by an answer's head.
type Judge = Arc<dyn Fn(&response::Parts) -> bool + Send + Sync>;
/// Prices a request, given what its head declares.
type Pricing<T> = Arc<dyn Fn(&request::Parts, Demand) -> T + Send + Sync>;
/// A price that takes a while.
pub(crate) type Priced = Pin<Box<dyn Future<Output = Price> + Send>>;

/// What a layer reserves from, and how it does so over HTTP.
pub(crate) struct Settings<Q> {
    pub(crate) guard: Guard<Q>,
    pub(crate) http: HttpSettings,
}

/// What is HTTP's own among the settings.
#[derive(Clone, Default)]
pub(crate) struct HttpSettings {
    pub(crate) scopes: Option<Choose<Scopes>>,
    pub(crate) applies: Option<Choose<bool>>,
    pub(crate) calls: Calls,
    pub(crate) price: Option<PriceBy>,
    pub(crate) hints: Hints,
    pub(crate) steps: Option<Arc<dyn Steps>>,
    pub(crate) success: Option<Judge>,
    pub(crate) classifier: Classifier,
    pub(crate) responder: Arc<Responder>,
}

/// How a request is priced, where its headers do not decide.
#[derive(Clone)]
pub(crate) enum PriceBy {
    At(Pricing<Price>),
    Later(Pricing<Priced>),
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
