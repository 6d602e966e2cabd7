//! Headers that must not be read in two ways.

use http::HeaderMap;

use crate::head::decimal;

/// A header that the service may read differently.
#[derive(Clone, Copy, Debug)]
pub(super) struct Malformed;

/// A header that must be there once at most.
pub(super) fn only<'a>(headers: &'a HeaderMap, name: &str) -> Result<Option<&'a [u8]>, Malformed> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (value, None) => Ok(value.map(|value| value.as_bytes())),
        _ => Err(Malformed),
    }
}

/// The same, if it is a number.
pub(super) fn number(headers: &HeaderMap, name: &str) -> Result<Option<u64>, Malformed> {
    only(headers, name)?
        .map(|value| decimal(value).ok_or(Malformed))
        .transpose()
}
