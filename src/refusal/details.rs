//! The standard details of a gRPC error, for programs (AIP-193).

use std::{collections::HashMap, fmt};

use http::HeaderValue;
use prost::Message as _;
use tonic::{Code, Status, metadata::BinaryMetadataValue};
use tonic_types::{ErrorDetails, StatusExt as _, pb};

use super::{Refusal, code::Code as OurCode, json::Object};

/// The default `domain` of reasons.
const DOMAIN: &str = env!("CARGO_PKG_NAME");

/// A refusal as a tonic `Status`.
pub(crate) fn status(refusal: &Refusal, domain: Option<&str>) -> Status {
    let mut details = ErrorDetails::new();
    details.set_error_info(
        refusal.reason().to_ascii_uppercase(),
        domain.unwrap_or(DOMAIN),
        metadata(refusal),
    );
    if let Some(scope) = refusal.scope() {
        details.add_quota_failure_violation(scope.as_str(), refusal.message());
    }
    if let Some(after) = refusal.retry_after() {
        details.set_retry_info(Some(after));
    }
    let code = Code::from(OurCode::of(refusal).number as i32);
    Status::with_error_details(code, refusal.message(), details)
}

/// The keys include their unit.
fn metadata(refusal: &Refusal) -> HashMap<String, String> {
    let mut metadata =
        HashMap::from([("temporary".to_owned(), refusal.is_temporary().to_string())]);
    let Some(resource) = refusal.resource() else {
        return metadata;
    };
    metadata.insert("resource".to_owned(), resource.to_string());
    if let Some(figures) = refusal.figures() {
        let all = [
            ("limit", figures.limit),
            ("used", figures.used),
            ("required", figures.required),
        ];
        metadata.extend(all.map(|(name, value)| (format!("{name}_{resource}"), value.to_string())));
    }
    metadata
}

/// Encoded details for an answer.
pub(super) struct Details(Status);

impl Details {
    pub(super) fn new(refusal: &Refusal, domain: Option<&str>) -> Self {
        Self(status(refusal, domain))
    }

    /// For `grpc-status-details-bin`.
    pub(super) fn in_header(&self) -> HeaderValue {
        let value = BinaryMetadataValue::from_bytes(self.0.details());
        HeaderValue::from_bytes(value.as_encoded_bytes()).expect("Base64 can stand in a header")
    }

    /// For an error of Connect: a list with an object for each.
    pub(super) fn in_json(&self) -> Result<String, fmt::Error> {
        let status = pb::Status::decode(self.0.details()).expect("it has just been encoded");
        let details = status.details.iter().map(|detail| {
            let mut object = Object::default();
            let name = detail.type_url.rsplit('/').next().unwrap_or_default();
            object.text("type", name)?;
            let value = BinaryMetadataValue::from_bytes(&detail.value);
            let value = str::from_utf8(value.as_encoded_bytes()).expect("Base64 is ASCII");
            object.text("value", value)?;
            Ok(object.end())
        });
        let details: Result<Vec<_>, _> = details.collect();
        Ok(format!("[{}]", details?.join(",")))
    }
}
