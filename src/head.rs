//! The demand that a request's head declares.

use http::{
    HeaderMap, HeaderValue, Method,
    header::{ACCEPT, AsHeaderName, CONTENT_ENCODING, CONTENT_LENGTH, EXPECT, HeaderName},
};

use crate::demand::Demand;

/// Headers that announce the length of an upload, in addition to Content-Length.
///
/// `x-expected-entity-length` is sent by macOS, `oc-total-length` by ownCloud and Nextcloud,
/// `x-amz-decoded-content-length` with aws-chunked bodies, and `upload-length` by tus 1.0 and the IETF's
/// resumable uploads. `x-upload-length` is for gRPC, where no call has a Content-Length.
const HINTS: [HeaderName; 5] = [
    HeaderName::from_static("x-expected-entity-length"),
    HeaderName::from_static("oc-total-length"),
    HeaderName::from_static("x-amz-decoded-content-length"),
    HeaderName::from_static("upload-length"),
    HeaderName::from_static("x-upload-length"),
];

/// The relevant headers of a request, found in one pass, because each lookup by name costs about as much.
pub(crate) struct Lines<'a> {
    headers: &'a HeaderMap,
    hints: &'a Hints,
    /// The first line of Content-Length.
    length: Option<&'a HeaderValue>,
    /// The first line of Accept, and how many there are.
    pub(crate) accept: Option<&'a HeaderValue>,
    pub(crate) accepts: usize,
    /// Whether there is a second Content-Length, Expect or a hint, so that it needs a closer look.
    is_unusual: bool,
}

impl<'a> Lines<'a> {
    #[inline(always)]
    pub(crate) fn read(headers: &'a HeaderMap, hints: &'a Hints) -> Self {
        let (mut length, mut accept, mut accepts, mut is_unusual) = (None, None, 0, false);
        for (name, value) in headers {
            if bit(name) & hints.lengths == 0 {
                continue;
            }
            if *name == CONTENT_LENGTH {
                is_unusual |= length.is_some();
                length = length.or(Some(value));
            } else if *name == ACCEPT {
                accept = accept.or(Some(value));
                accepts += 1;
            } else {
                is_unusual |= *name == EXPECT || hints.names.contains(name);
            }
        }
        Self {
            headers,
            hints,
            length,
            accept,
            accepts,
            is_unusual: is_unusual || hints.decodes_aws_chunked,
        }
    }

    /// Whether the client waits for `100 Continue` (RFC 9110, section 10.1.1).
    #[inline]
    pub(crate) fn expects_continue(&self) -> bool {
        self.is_unusual && expects_continue(self.headers)
    }

    /// The demand that these headers declare, of a body that may know its exact length.
    #[inline(always)]
    pub(crate) fn demand(
        &self,
        method: &Method,
        exact: impl FnOnce() -> Option<u64>,
    ) -> Result<Demand, InvalidLength> {
        let demand = match self.length.map(|line| digits(line.as_bytes())) {
            Some(Some(bytes)) if !self.is_unusual => Demand::known(bytes),
            _ => self.unusual_demand(exact())?,
        };
        let mut objects = objects_made_by(method);
        if objects == 0 {
            objects = objects_of_overrides(self.headers);
        }
        Ok(demand.with_objects(objects))
    }

    /// The demand of a body whose length is not one number, or that is announced by hints.
    #[cold]
    fn unusual_demand(&self, exact: Option<u64>) -> Result<Demand, InvalidLength> {
        let mut length = content_length(self.headers)?.or(exact);
        let mut framing = 0;
        if self.hints.decodes_aws_chunked
            && let Some(decoded) = aws_decoded(self.headers, length)
        {
            length = Some(decoded.length);
            framing = decoded.framing;
        }
        let demand = match length {
            Some(bytes) => Demand::known(bytes),
            None => Demand::unknown(),
        };
        let hints = self.hints.names.iter();
        let hints = hints.flat_map(|name| self.headers.get_all(name));
        let hint = hints.filter_map(|value| decimal(value.as_bytes())).max();
        let expected = hint.map_or(0, |hint| hint.saturating_sub(before(self.headers)));
        Ok(demand.expecting(expected).with_framing(framing))
    }
}

#[cold]
fn expects_continue(headers: &HeaderMap) -> bool {
    let mut lines = headers.get_all(EXPECT).iter();
    lines.any(|line| line.as_bytes().eq_ignore_ascii_case(b"100-continue"))
}

const AWS_DECODED_LENGTH: HeaderName = HeaderName::from_static("x-amz-decoded-content-length");
const AWS_CONTENT_SHA256: HeaderName = HeaderName::from_static("x-amz-content-sha256");

/// A body in `aws-chunked` encoding.
struct AwsDecoded {
    length: u64,
    /// How much longer it may be as it is sent.
    framing: u64,
}

/// Reads what is declared of a body in `aws-chunked` encoding ("Signature Version 4: transferring payload in multiple chunks"), of
/// which so many bytes are sent. None if it is in another encoding, or what frames it is longer than any client's.
#[cold]
fn aws_decoded(headers: &HeaderMap, sent: Option<u64>) -> Option<AwsDecoded> {
    let is_chunked = |(name, value): (&HeaderName, &HeaderValue)| {
        if *name == AWS_CONTENT_SHA256 {
            return value.as_bytes().starts_with(b"STREAMING-");
        }
        let mut codings = value.as_bytes().split(|byte| *byte == b',');
        *name == CONTENT_ENCODING
            && codings.any(|coding| coding.trim_ascii().eq_ignore_ascii_case(b"aws-chunked"))
    };
    if !headers.iter().any(is_chunked) {
        return None;
    }
    let length = number(headers, &AWS_DECODED_LENGTH).ok()??;
    // At most about a hundred bytes for each chunk, of 8 KiB at least, and the trailers.
    let most = 4096 + length / 64;
    let framing = match sent {
        Some(sent) => sent.checked_sub(length)?,
        None => most,
    };
    (framing <= most).then_some(AwsDecoded { length, framing })
}

/// Whether a method is guarded by default: every method that may write.
///
/// DELETE is not, because it makes room.
#[inline]
pub(crate) fn is_write(method: &Method) -> bool {
    match *method {
        Method::GET | Method::HEAD | Method::OPTIONS | Method::DELETE => false,
        Method::POST | Method::PUT | Method::PATCH => true,
        Method::TRACE | Method::CONNECT => false,
        // RFC 4918 (WebDAV), RFC 3253 and RFC 5323. A service may store what a method brings that is not known here.
        _ => !matches!(
            method.as_str(),
            "PROPFIND" | "UNLOCK" | "REPORT" | "SEARCH" | "QUERY"
        ),
    }
}

/// Headers by which clients that can only send GET and POST name a method. Some services go by them.
static OVERRIDES: [HeaderName; 3] = [
    HeaderName::from_static("x-http-method-override"),
    HeaderName::from_static("x-http-method"),
    HeaderName::from_static("x-method-override"),
];

/// The methods that a service may take a request for, beside its own.
fn overrides(headers: &HeaderMap) -> impl Iterator<Item = Method> {
    let values = OVERRIDES.iter().flat_map(|name| headers.get_all(name));
    values.filter_map(|value| {
        let name = value.as_bytes().trim_ascii().to_ascii_uppercase();
        Method::from_bytes(&name).ok()
    })
}

/// Whether a service may take a request for another one, that writes. Only content can be stored then.
pub(crate) fn is_overridden(headers: &HeaderMap) -> bool {
    overrides(headers).any(|method| is_write(&method))
}

#[cold]
fn objects_of_overrides(headers: &HeaderMap) -> u64 {
    let others = overrides(headers).map(|method| objects_made_by(&method));
    others.max().unwrap_or(0)
}

#[inline]
fn objects_made_by(method: &Method) -> u64 {
    match *method {
        Method::PUT | Method::POST => 1,
        Method::PATCH => 0,
        _ => {
            let makes_none = matches!(method.as_str(), "MOVE" | "PROPPATCH" | "LOCK" | "ACL");
            u64::from(is_write(method) && !makes_none)
        }
    }
}

/// A Content-Length that is not a number. Its meaning is undefined, so it is answered 400 (RFC 9110, section 8.6).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct InvalidLength;

/// Reads the lines of Content-Length. A list of identical numbers counts as that number (RFC 9110, section 8.6).
fn content_length(headers: &HeaderMap) -> Result<Option<u64>, InvalidLength> {
    let mut length = None;
    for line in headers.get_all(CONTENT_LENGTH) {
        for part in line.as_bytes().split(|byte| *byte == b',') {
            let part = decimal(part).ok_or(InvalidLength)?;
            if *length.get_or_insert(part) != part {
                return Err(InvalidLength);
            }
        }
    }
    Ok(length)
}

/// The headers that announce the length of an upload.
#[derive(Clone, Debug)]
pub(crate) struct Hints {
    names: Vec<HeaderName>,
    /// A bit for the length of each name that is read, in bytes. It excludes most other headers without comparing their names.
    lengths: u64,
    /// Whether the service decodes `aws-chunked`.
    pub(crate) decodes_aws_chunked: bool,
}

impl Hints {
    pub(crate) fn new(names: impl IntoIterator<Item = HeaderName>) -> Self {
        let names: Vec<_> = names.into_iter().collect();
        let read = names.iter().chain(&[CONTENT_LENGTH, ACCEPT, EXPECT]);
        Self {
            lengths: read.fold(0, |bits, name| bits | bit(name)),
            names,
            decodes_aws_chunked: false,
        }
    }
}

/// How much of an upload came in earlier requests. A hint announces the whole of it.
///
/// `upload-offset` is of tus 1.0 and the IETF's resumable uploads, `oc-chunk-offset` of ownCloud.
#[cold]
fn before(headers: &HeaderMap) -> u64 {
    ["upload-offset", "oc-chunk-offset"]
        .iter()
        .filter_map(|name| headers.get(*name))
        .filter_map(|value| decimal(value.as_bytes()))
        .max()
        .unwrap_or(0)
}

// Not in line: then the table of standard names is, and costs the same wherever a service is compiled.
#[inline(never)]
fn bit(name: &HeaderName) -> u64 {
    1 << (name.as_str().len() % 64)
}

/// The values of [`HINTS`].
impl Default for Hints {
    fn default() -> Self {
        Self::new(HINTS)
    }
}

/// A head that is malformed, or that this crate and a service may read differently. The request is answered 400.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Malformed;

/// The value of a header that must be there once at most.
pub(crate) fn only(
    headers: &HeaderMap,
    name: impl AsHeaderName,
) -> Result<Option<&[u8]>, Malformed> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (value, None) => Ok(value.map(HeaderValue::as_bytes)),
        _ => Err(Malformed),
    }
}

/// The same, if it is a number.
pub(crate) fn number(
    headers: &HeaderMap,
    name: impl AsHeaderName,
) -> Result<Option<u64>, Malformed> {
    only(headers, name)?
        .map(|value| decimal(value).ok_or(Malformed))
        .transpose()
}

/// A number of digits alone, as nearly all are. None for any other, and for one that may be too large.
#[inline]
fn digits(value: &[u8]) -> Option<u64> {
    if value.is_empty() || value.len() > 19 {
        return None;
    }
    let mut number = 0;
    for byte in value {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 {
            return None;
        }
        number = number * 10 + u64::from(digit);
    }
    Some(number)
}

/// Digits only, with optional white space around them. A number that is too large saturates, and fits nowhere.
pub(crate) fn decimal(value: &[u8]) -> Option<u64> {
    let digits = value.trim_ascii();
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0u64, |number, digit| {
        let digit = char::from(*digit).to_digit(10)?;
        Some(number.saturating_mul(10).saturating_add(u64::from(digit)))
    })
}

#[cfg(test)]
mod tests {
    use http_body::SizeHint;
    use proptest::prelude::*;

    use super::*;
    use crate::amount::Amount;

    fn declared(headers: &[(&str, &str)], body: SizeHint) -> Result<Demand, InvalidLength> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            let name: HeaderName = name.parse().unwrap();
            map.append(name, HeaderValue::from_str(value).unwrap());
        }
        Lines::read(&map, &Hints::default()).demand(&Method::PUT, || body.exact())
    }

    fn bytes(headers: &[(&str, &str)]) -> Result<(Option<u64>, u64), InvalidLength> {
        declared(headers, SizeHint::default()).map(|demand| (demand.bytes(), demand.expected()))
    }

    #[test]
    fn content_length_is_the_declared_size() {
        assert_eq!(bytes(&[("content-length", "0")]), Ok((Some(0), 0)));
        assert_eq!(bytes(&[("content-length", "42")]), Ok((Some(42), 42)));
        let twice = [("content-length", "42"), ("content-length", "42, 42")];
        assert_eq!(bytes(&twice), Ok((Some(42), 42)));
        // A number that is too large to count is still a number, and fits nowhere.
        let huge = bytes(&[("content-length", "99999999999999999999999")]);
        assert_eq!(huge, Ok((Some(u64::MAX), u64::MAX)));
    }

    #[test]
    fn a_malformed_content_length_is_invalid() {
        for value in [
            "", "-1", "+1", "1.0", "0x10", "ten", "4 2", "42, 43", "42,", "1_000",
        ] {
            let declared = bytes(&[("content-length", value)]);
            assert_eq!(declared, Err(InvalidLength), "{value:?}");
        }
        let two = [("content-length", "42"), ("content-length", "43")];
        assert_eq!(bytes(&two), Err(InvalidLength));
    }

    #[test]
    fn without_one_the_body_may_know() {
        let exact = declared(&[], SizeHint::with_exact(7)).unwrap();
        assert_eq!(exact.bytes(), Some(7));
        let unknown = declared(&[], SizeHint::default()).unwrap();
        assert_eq!(unknown.bytes(), None);
    }

    #[test]
    fn the_largest_hint_counts_and_malformed_ones_do_not() {
        for name in HINTS {
            assert_eq!(bytes(&[(name.as_str(), "9")]), Ok((None, 9)), "{name}");
            for value in ["-9", "", "nine", "+9"] {
                assert_eq!(bytes(&[(name.as_str(), value)]), Ok((None, 0)), "{value:?}");
            }
        }
        let all = [
            ("content-length", "10"),
            ("oc-total-length", "30"),
            ("upload-length", "20"),
            ("x-expected-entity-length", "many"),
        ];
        assert_eq!(bytes(&all), Ok((Some(10), 30)));
        // Content-Length counts in addition to hints, and is the length of this request.
        let smaller = [
            ("content-length", "10"),
            ("x-amz-decoded-content-length", "9"),
        ];
        assert_eq!(bytes(&smaller), Ok((Some(10), 10)));
    }

    #[test]
    fn the_decoded_length_of_an_aws_chunked_body_counts() {
        let hints = Hints {
            decodes_aws_chunked: true,
            ..Hints::default()
        };
        let of = |hints: &Hints, headers: &[(&str, &str)]| {
            let mut map = HeaderMap::new();
            for (name, value) in headers {
                let name: HeaderName = name.parse().unwrap();
                map.append(name, HeaderValue::from_str(value).unwrap());
            }
            let lines = Lines::read(&map, hints);
            let demand = lines.demand(&Method::PUT, || None).unwrap();
            (demand.bytes(), demand.expected(), demand.framing())
        };
        let length = ("content-length", "8388724");
        let decoded = ("x-amz-decoded-content-length", "8388608");
        let encoding = ("content-encoding", "gzip, AWS-chunked");
        let signed = ("x-amz-content-sha256", "STREAMING-UNSIGNED-PAYLOAD-TRAILER");
        let exact = (Some(8_388_608), 8_388_608, 116);
        assert_eq!(of(&hints, &[length, decoded, encoding]), exact);
        assert_eq!(of(&hints, &[length, decoded, signed]), exact);
        let unknown = (Some(8_388_608), 8_388_608, 4096 + 8_388_608 / 64);
        assert_eq!(of(&hints, &[decoded, encoding]), unknown);
        // What is sent counts where it is not decoded, is not in this encoding, or is framed by more than any client does.
        let sent = (Some(8_388_724), 8_388_724, 0);
        assert_eq!(of(&Hints::default(), &[length, decoded, encoding]), sent);
        assert_eq!(of(&hints, &[length, decoded]), sent);
        assert_eq!(of(&hints, &[length, encoding]), sent);
        for lie in ["1", "many", "", "8388725"] {
            let lie = ("x-amz-decoded-content-length", lie);
            let (bytes, _, framing) = of(&hints, &[length, lie, encoding]);
            assert_eq!((bytes, framing), (Some(8_388_724), 0), "{lie:?}");
        }
        let twice = of(&hints, &[length, decoded, decoded, encoding]);
        assert_eq!(twice, sent);
    }

    #[test]
    fn methods_that_write_are_guarded_and_some_make_an_object() {
        let of = |method: &str| {
            let method: Method = method.parse().unwrap();
            (is_write(&method), objects_made_by(&method))
        };
        // What is not known may make an object.
        for method in [
            "PUT",
            "POST",
            "MKCOL",
            "MKCALENDAR",
            "COPY",
            "put",
            "get",
            "STORE",
        ] {
            assert_eq!(of(method), (true, 1), "{method}");
        }
        for method in ["PATCH", "MOVE", "PROPPATCH", "LOCK", "ACL"] {
            assert_eq!(of(method), (true, 0), "{method}");
        }
        for method in [
            "GET", "HEAD", "OPTIONS", "TRACE", "CONNECT", "DELETE", "PROPFIND", "REPORT", "SEARCH",
            "QUERY", "UNLOCK",
        ] {
            assert_eq!(of(method), (false, 0), "{method}");
        }
    }

    proptest! {
        #[test]
        fn any_number_is_read_as_it_is(length: u64, hint: u64) {
            let (length_text, hint_text) = (length.to_string(), hint.to_string());
            let headers = [
                ("content-length", length_text.as_str()),
                ("upload-length", hint_text.as_str()),
            ];
            prop_assert_eq!(bytes(&headers), Ok((Some(length), length.max(hint))));
        }

        #[test]
        fn no_header_is_too_odd(value in proptest::collection::vec(any::<u8>(), 0..40)) {
            let Ok(value) = HeaderValue::from_bytes(&value) else { return Ok(()) };
            let text = String::from_utf8_lossy(value.as_bytes()).trim().to_string();
            let is_list = text.split(',').all(|part| {
                let part = part.trim_matches(['\t', ' ']);
                !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit())
            });
            let mut headers = HeaderMap::new();
            headers.insert(CONTENT_LENGTH, value);
            let demand = Lines::read(&headers, &Hints::default()).demand(&Method::PUT, || None);
            if !is_list {
                prop_assert_eq!(demand, Err(InvalidLength));
            }
        }

        #[test]
        fn amounts_saturate(a: u64, b: u64) {
            let (x, y) = (Amount::new(a, b), Amount::new(b, a));
            prop_assert_eq!((x + y).bytes, a.saturating_add(b));
            prop_assert_eq!((x - y).objects, b.saturating_sub(a));
            prop_assert_eq!(x.max(y).bytes, a.max(b));
        }
    }
}
