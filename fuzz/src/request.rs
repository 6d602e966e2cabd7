//! Requests from lines of text.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri, Version};
use http_body::SizeHint;

use crate::Content;

/// The most requests of an input.
const MOST: usize = 24;
/// The longest piece of a body, in bytes.
const LONGEST: u64 = 4_096;
/// The longest wait, in seconds.
const LONGEST_WAIT: u64 = 4_096;

/// A request. The lines that it was made from:
///
/// | line | is |
/// |---|---|
/// | `> PUT /path` | the method and the target; begins the next request |
/// | `name: value` | a header |
/// | `< 300` | a piece of the body, with so many bytes |
/// | `~ 5 10` | a size hint: lower and upper bound; one number is exact; `~` is the right one |
/// | `!` | the body breaks off |
/// | `?` | the client falls silent |
/// | `2` | it comes over HTTP/2 |
/// | `. 5` | the body pauses for so many seconds |
/// | `@ 90` | it comes after so many seconds |
/// | `&` | it comes before the earlier ones have ended, where a target has that |
///
/// What does not parse is skipped.
#[derive(Debug)]
pub struct Ask {
    pub method: Method,
    pub uri: Uri,
    pub version: Version,
    pub headers: HeaderMap,
    pub content: Content,
    pub wait: Duration,
    pub is_beside: bool,
}

impl Ask {
    pub fn header(&self, name: &str) -> Option<&[u8]> {
        self.headers.get(name).map(HeaderValue::as_bytes)
    }

    pub fn into_request(self) -> Request<Content> {
        let mut request = Request::new(self.content);
        *request.method_mut() = self.method;
        *request.uri_mut() = self.uri;
        *request.version_mut() = self.version;
        *request.headers_mut() = self.headers;
        request
    }

    /// From a method and a target.
    pub fn new(line: &[u8]) -> Option<Self> {
        let space = line.iter().position(|byte| *byte == b' ')?;
        Some(Self {
            method: Method::from_bytes(&line[..space]).ok()?,
            uri: Uri::try_from(&line[space + 1..]).ok()?,
            version: Version::HTTP_11,
            headers: HeaderMap::new(),
            content: Content::default(),
            wait: Duration::ZERO,
            is_beside: false,
        })
    }

    fn add(&mut self, line: &[u8]) -> Option<()> {
        match line {
            [b'<', rest @ ..] => {
                let length = number(rest)?.min(LONGEST);
                self.content.push(Bytes::from(vec![b'7'; length as usize]));
            }
            [b'~'] => self.content.set_exact(),
            [b'~', rest @ ..] => self.content.set_hint(hint(rest)?),
            b"!" => self.content.break_off(),
            b"?" => self.content.fall_silent(),
            [b'@', rest @ ..] => {
                self.wait = Duration::from_secs(number(rest)?.min(LONGEST_WAIT));
            }
            [b'.', rest @ ..] => self.content.pause(number(rest)?),
            b"&" => self.is_beside = true,
            b"2" => self.version = Version::HTTP_2,
            _ => {
                let colon = line.iter().position(|byte| *byte == b':')?;
                let name = HeaderName::from_bytes(&line[..colon]).ok()?;
                // Servers remove the white space around a value (RFC 9110, section 5.5).
                let value = HeaderValue::from_bytes(line[colon + 1..].trim_ascii()).ok()?;
                self.headers.append(name, value);
            }
        }
        Some(())
    }
}

/// The requests of an input.
pub fn asks(input: &[u8]) -> Vec<Ask> {
    let mut asks: Vec<Ask> = Vec::new();
    for line in input.split(|byte| *byte == b'\n') {
        if let Some(rest) = line.strip_prefix(b"> ") {
            if asks.len() == MOST {
                break;
            }
            asks.extend(Ask::new(rest));
        } else if let Some(ask) = asks.last_mut() {
            ask.add(line);
        }
    }
    asks
}

fn hint(text: &[u8]) -> Option<SizeHint> {
    let mut numbers = text.trim_ascii().split(|byte| *byte == b' ').map(number);
    let lower = numbers.next()??;
    let Some(upper) = numbers.next() else {
        return Some(SizeHint::with_exact(lower));
    };
    let mut hint = SizeHint::new();
    hint.set_lower(lower);
    if let Some(upper) = upper {
        // A smaller one panics.
        hint.set_upper(upper.max(lower));
    }
    Some(hint)
}

fn number(text: &[u8]) -> Option<u64> {
    str::from_utf8(text.trim_ascii()).ok()?.parse().ok()
}
