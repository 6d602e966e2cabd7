//! What a request wants to store.

use std::ops::{Add, Sub};

use http::{
    HeaderMap, Method,
    header::{CONTENT_LENGTH, HeaderName},
};
use http_body::SizeHint;

/// Headers that tell how long an upload will be, beside Content-Length.
///
/// `x-expected-entity-length` is sent by macOS, `oc-total-length` by ownCloud and Nextcloud,
/// `x-amz-decoded-content-length` with aws-chunked bodies, and `upload-length` by tus 1.0 and the IETF's
/// resumable uploads.
pub(crate) const HINTS: [HeaderName; 4] = [
    HeaderName::from_static("x-expected-entity-length"),
    HeaderName::from_static("oc-total-length"),
    HeaderName::from_static("x-amz-decoded-content-length"),
    HeaderName::from_static("upload-length"),
];

/// Bytes and objects (files): what is asked for, held, stored or given back.
///
/// Arithmetic on it saturates.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub struct Amount {
    /// Bytes of content.
    pub bytes: u64,
    /// Objects: files, collections, rows; whatever the scope counts.
    pub objects: u64,
}

impl Amount {
    /// Nothing at all.
    pub const ZERO: Self = Self {
        bytes: 0,
        objects: 0,
    };

    /// An amount of both.
    pub const fn new(bytes: u64, objects: u64) -> Self {
        Self { bytes, objects }
    }

    /// Bytes alone.
    pub const fn bytes(bytes: u64) -> Self {
        Self::new(bytes, 0)
    }

    /// Objects alone.
    pub const fn objects(objects: u64) -> Self {
        Self::new(0, objects)
    }

    /// The larger of each.
    #[must_use]
    pub fn max(self, other: Self) -> Self {
        Self::new(self.bytes.max(other.bytes), self.objects.max(other.objects))
    }

    /// Whether this is nothing at all.
    pub const fn is_zero(self) -> bool {
        self.bytes == 0 && self.objects == 0
    }
}

impl Add for Amount {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            bytes: self.bytes.saturating_add(other.bytes),
            objects: self.objects.saturating_add(other.objects),
        }
    }
}

impl Sub for Amount {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        Self {
            bytes: self.bytes.saturating_sub(other.bytes),
            objects: self.objects.saturating_sub(other.objects),
        }
    }
}

/// What a request wants to store, and what that replaces.
///
/// ```
/// use tower_storage_guard::{Amount, Demand};
///
/// let overwrite = Demand::known(4 << 20).replacing(Amount::new(3 << 20, 1));
/// assert_eq!(overwrite.bytes(), Some(4 << 20));
/// ```
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Demand {
    bytes: Option<u64>,
    expected: u64,
    objects: u64,
    replaced: Amount,
}

impl Demand {
    /// A known number of bytes, and one object.
    pub const fn known(bytes: u64) -> Self {
        Self {
            bytes: Some(bytes),
            expected: bytes,
            objects: 1,
            replaced: Amount::ZERO,
        }
    }

    /// A number of bytes that shows only when the body is read, and one object.
    pub const fn unknown() -> Self {
        Self {
            bytes: None,
            expected: 0,
            objects: 1,
            replaced: Amount::ZERO,
        }
    }

    /// Sets what is to come in all, in bytes, as far as the client says. It must fit, but only the known
    /// bytes are set aside; where they are unknown, this is, up to the layer's cap.
    #[must_use]
    pub const fn expecting(mut self, bytes: u64) -> Self {
        if bytes > self.expected {
            self.expected = bytes;
        }
        self
    }

    /// Sets how many objects it makes.
    #[must_use]
    pub const fn with_objects(mut self, objects: u64) -> Self {
        self.objects = objects;
        self
    }

    /// Sets what it replaces. Scopes are charged for the difference only.
    ///
    /// The volume is asked for all of it: the old content stays on the disk until the new is there.
    #[must_use]
    pub const fn replacing(mut self, replaced: Amount) -> Self {
        self.replaced = replaced;
        self
    }

    /// Bytes. None where the length is unknown.
    pub const fn bytes(&self) -> Option<u64> {
        self.bytes
    }

    /// Bytes that the client announces in all. At least the known ones.
    pub const fn expected(&self) -> u64 {
        self.expected
    }

    /// How many objects it makes.
    pub const fn objects(&self) -> u64 {
        self.objects
    }

    /// What it replaces.
    pub const fn replaced(&self) -> Amount {
        self.replaced
    }

    /// Reads the demand from a request's head.
    pub(crate) fn declared(
        method: &Method,
        headers: &HeaderMap,
        body: &SizeHint,
        hints: &[HeaderName],
    ) -> Result<Self, InvalidLength> {
        let demand = match content_length(headers)?.or(body.exact()) {
            Some(bytes) => Self::known(bytes),
            None => Self::unknown(),
        };
        Ok(demand
            .expecting(longest_hint(headers, hints).unwrap_or(0))
            .with_objects(objects_made_by(method)))
    }
}

/// Whether a method is guarded unless the user decides: those that write.
///
/// DELETE is not: it is how people make room.
#[inline]
pub(crate) fn is_write(method: &Method) -> bool {
    match *method {
        Method::GET | Method::HEAD | Method::OPTIONS | Method::DELETE => false,
        Method::POST | Method::PUT | Method::PATCH => true,
        // RFC 4918 (WebDAV), RFC 4791 (CalDAV).
        _ => matches!(
            method.as_str(),
            "MKCOL" | "MKCALENDAR" | "COPY" | "MOVE" | "PROPPATCH" | "LOCK"
        ),
    }
}

fn objects_made_by(method: &Method) -> u64 {
    match *method {
        Method::PUT | Method::POST => 1,
        _ => u64::from(matches!(method.as_str(), "MKCOL" | "MKCALENDAR" | "COPY")),
    }
}

/// A Content-Length that is not a number. It cannot be trusted to mean anything, so it is answered 400
/// (RFC 9110, section 8.6).
#[derive(Debug, Eq, PartialEq)]
pub(crate) struct InvalidLength;

/// RFC 9110, section 8.6: a list of one and the same number counts as that number.
fn content_length(headers: &HeaderMap) -> Result<Option<u64>, InvalidLength> {
    let mut length = None;
    for value in headers.get_all(CONTENT_LENGTH) {
        for part in value.as_bytes().split(|byte| *byte == b',') {
            let part = decimal(part).ok_or(InvalidLength)?;
            if *length.get_or_insert(part) != part {
                return Err(InvalidLength);
            }
        }
    }
    Ok(length)
}

/// The largest of the hints that are numbers.
fn longest_hint(headers: &HeaderMap, hints: &[HeaderName]) -> Option<u64> {
    // Hardly any request has one, and a glance at its names is quicker than a lookup for each hint.
    if !headers.keys().any(|name| hints.contains(name)) {
        return None;
    }
    hints
        .iter()
        .flat_map(|name| headers.get_all(name))
        .filter_map(|value| decimal(value.as_bytes()))
        .max()
}

/// Digits and nothing else, white space around them aside. A number too large for us is still one: it
/// saturates, and fits nowhere.
fn decimal(value: &[u8]) -> Option<u64> {
    let digits = value.trim_ascii();
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0u64, |number, digit| {
        let digit = char::from(*digit).to_digit(10)?;
        Some(number.saturating_mul(10).saturating_add(u64::from(digit)))
    })
}
