//! Types that record how requests are priced and charged: the second parameter of a [`StorageGuardLayer`].
//!
//! Name one of them in the type of a field, or of a function that takes a layer, such as
//! `StorageGuardLayer<MemoryQuota, Scoped>`. Other code needs none of them. They make three mistakes compile errors:
//!
//! - a quota that no request is charged to, because neither [`scope_by`] nor `webdav` says what to charge;
//! - [`price_by`], [`scope_by`] or [`quota`] after `webdav`, which prices and charges by itself;
//! - `webdav` after any of the first two, which it would replace.
//!
//! [`StorageGuardLayer`]: crate::StorageGuardLayer
//! [`scope_by`]: crate::StorageGuardLayer::scope_by
//! [`price_by`]: crate::StorageGuardLayer::price_by
//! [`quota`]: crate::StorageGuardLayer::quota

use crate::quota::NoQuota;

/// The state of a new layer: the head of a request declares its cost, and no scope is charged.
#[derive(Clone, Copy, Debug)]
pub enum Unscoped {}

/// The state after [`price_by`](crate::StorageGuardLayer::price_by): a function prices requests, and no scope is
/// charged unless the price names one.
#[derive(Clone, Copy, Debug)]
pub enum Priced {}

/// The state after [`scope_by`](crate::StorageGuardLayer::scope_by): a function names the scopes that requests are
/// charged to.
#[derive(Clone, Copy, Debug)]
pub enum Scoped {}

/// The state after `webdav`: requests are priced and charged as WebDAV.
#[cfg(feature = "webdav")]
#[derive(Clone, Copy, Debug)]
pub enum ByDav {}

/// States in which the scopes to charge in a quota `Q` are known. A layer in another state does not guard a service.
#[diagnostic::on_unimplemented(
    message = "nothing is charged to the quota of this layer",
    label = "the scopes of requests are not known",
    note = "say which scopes a request is charged to, with `scope_by`, or use `webdav`",
    note = "if `price_by` names the scopes of every request, add `scope_by(|_| Scopes::NONE)`"
)]
pub trait Charges<Q>: sealed::Sealed {}

impl Charges<NoQuota> for Unscoped {}
impl Charges<NoQuota> for Priced {}
impl<Q> Charges<Q> for Scoped {}
#[cfg(feature = "webdav")]
impl<Q> Charges<Q> for ByDav {}

/// States in which a layer takes a quota, a pricing and scopes.
#[diagnostic::on_unimplemented(
    message = "`webdav` prices and charges the requests of this layer already",
    label = "this would be ignored",
    note = "set the quota before `webdav`; its `WebDav` takes the scopes"
)]
pub trait ByHead: sealed::Sealed {
    /// The state with a pricing.
    type Priced;
}

impl ByHead for Unscoped {
    type Priced = Priced;
}

impl ByHead for Priced {
    type Priced = Priced;
}

impl ByHead for Scoped {
    type Priced = Scoped;
}

mod sealed {
    pub trait Sealed {}

    impl Sealed for super::Unscoped {}
    impl Sealed for super::Priced {}
    impl Sealed for super::Scoped {}
    #[cfg(feature = "webdav")]
    impl Sealed for super::ByDav {}
}
