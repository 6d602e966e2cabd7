//! What answers tell clients of their quotas.

use std::convert::Infallible;

use http::HeaderMap;
use test_support::service::{full, put, read_all};
use tower::{Layer, ServiceExt, service_fn};
use tower_storage_guard::{
    Amount, Scope, Scopes, StorageGuardLayer,
    quota::{Limits, MemoryQuota, Quota, QuotaSource, quota_fn},
    setup::Charges,
};

/// The status of an upload, with the two fields of its answer.
async fn answer<Q: QuotaSource, P: Charges<Q>>(
    layer: &StorageGuardLayer<Q, P>,
    bytes: usize,
) -> (u16, Option<String>, Option<String>) {
    let service = layer.layer(service_fn(read_all));
    let answer = service.oneshot(put(full(bytes))).await.unwrap();
    let field = |headers: &HeaderMap, name: &str| {
        headers
            .get(name)
            .map(|value| value.to_str().unwrap().to_owned())
    };
    let headers = answer.headers();
    let (policy, limit) = (
        field(headers, "ratelimit-policy"),
        field(headers, "ratelimit"),
    );
    (answer.status().as_u16(), policy, limit)
}

fn both(status: u16, policy: &str, limit: &str) -> (u16, Option<String>, Option<String>) {
    (status, Some(policy.to_owned()), Some(limit.to_owned()))
}

#[tokio::test]
async fn what_is_left_is_told_after_each_upload_and_with_each_refusal() {
    let layer = StorageGuardLayer::quota_only(MemoryQuota::new(Limits::bytes(1_000)))
        .scope_by(|_| ["user:42", "tenant:acme"])
        .rate_limit_fields();
    let policy = r#""user:42";q=1000;qu="content-bytes", "tenant:acme";q=1000;qu="content-bytes""#;
    let stored = r#""user:42";r=400, "tenant:acme";r=400"#;
    assert_eq!(answer(&layer, 600).await, both(201, policy, stored));
    // The scope that has no room, which is the first of the two.
    let refused = both(
        507,
        r#""user:42";q=1000;qu="content-bytes""#,
        r#""user:42";r=400"#,
    );
    assert_eq!(answer(&layer, 401).await, refused);
    let full = r#""user:42";r=0, "tenant:acme";r=0"#;
    assert_eq!(answer(&layer, 400).await, both(201, policy, full));
}

#[tokio::test]
async fn nothing_is_told_by_default_or_of_a_scope_that_is_not_disclosed() {
    let quota = MemoryQuota::new(Limits::bytes(1_000));
    let layer = StorageGuardLayer::quota_only(quota);
    let silent = layer.clone().scope_by(|_| "user:42");
    let secret = layer.scope_by(|_| Scope::from("tenant:acme").undisclosed());
    for layer in [silent, secret.rate_limit_fields()] {
        assert_eq!(answer(&layer, 600).await, (201, None, None));
        assert_eq!(answer(&layer, 600).await, (507, None, None));
    }
}

#[tokio::test]
async fn a_scope_without_a_limit_is_no_item() {
    let layer = StorageGuardLayer::quota_only(MemoryQuota::new(Limits::UNLIMITED));
    let layer = layer.scope_by(|_| "user:42").rate_limit_fields();
    assert_eq!(answer(&layer, 600).await, (201, None, None));
    let none = StorageGuardLayer::quota_only(MemoryQuota::new(Limits::bytes(1)));
    let none = none.scope_by(|_| Scopes::NONE).rate_limit_fields();
    assert_eq!(answer(&none, 600).await, (201, None, None));
}

/// A source that would have to be asked tells with its refusals alone.
#[tokio::test]
async fn a_source_that_has_to_be_asked_tells_with_refusals() {
    let quota = quota_fn(|_: &Scope| {
        Ok::<_, Infallible>(Quota {
            limits: Limits::bytes(1_000),
            used: Amount::ZERO,
        })
    });
    let layer = StorageGuardLayer::quota_only(quota)
        .scope_by(|_| "user:42")
        .rate_limit_fields();
    assert_eq!(answer(&layer, 600).await, (201, None, None));
    let refused = both(
        507,
        r#""user:42";q=1000;qu="content-bytes""#,
        r#""user:42";r=1000"#,
    );
    assert_eq!(answer(&layer, 1_001).await, refused);
}
