//! Resolves `Location`, and normalises paths.

use std::borrow::Cow;

use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, percent_encode};

/// The path and the query that `location` refers to, in an answer to a request for `base` (RFC 3986, section 5.2).
pub(super) fn resolve(location: &str, base: &str) -> String {
    let location = location.split('#').next().unwrap_or_default();
    let (relative, base) = match location.split_once("://") {
        // An absolute URI: nothing of `base` applies to it.
        Some((scheme, rest)) if scheme.bytes().all(is_of_scheme) => (behind_host(rest), "/"),
        _ => match location.strip_prefix("//") {
            Some(rest) => (behind_host(rest), "/"),
            None => (location, base),
        },
    };
    let (path, query) = split_query(relative);
    let (base, base_query) = split_query(base);
    let merged = match path {
        "" => base.to_owned(),
        path if path.starts_with('/') => path.to_owned(),
        path => {
            let folder = base.rfind('/').map_or("/", |slash| &base[..=slash]);
            format!("{folder}{path}")
        }
    };
    let mut resolved = without_dots(&merged);
    let query = query.or(base_query.filter(|_| path.is_empty()));
    if let Some(query) = query {
        resolved.push('?');
        resolved.push_str(query);
    }
    resolved
}

fn is_of_scheme(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"+-.".contains(&byte)
}

fn behind_host(rest: &str) -> &str {
    rest.find(['/', '?']).map_or("/", |end| &rest[end..])
}

fn split_query(reference: &str) -> (&str, Option<&str>) {
    match reference.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (reference, None),
    }
}

/// RFC 3986, section 5.2.4.
fn without_dots(path: &str) -> String {
    let mut kept: Vec<&str> = Vec::new();
    let mut segments = path.trim_start_matches('/').split('/').peekable();
    while let Some(segment) = segments.next() {
        let is_last = segments.peek().is_none();
        match segment {
            "." | ".." => {
                if segment == ".." {
                    kept.pop();
                }
                if is_last {
                    kept.push("");
                }
            }
            segment => kept.push(segment),
        }
    }
    format!("/{}", kept.join("/"))
}

/// Encoded delimiters, which are distinct from plain ones, and the double encoding that keeps them so.
const ENCODED_DELIMITERS: [(&str, &str); 6] = [
    // First, because the others contain it.
    ("%25", "%2525"),
    ("%2F", "%252F"),
    ("%2f", "%252F"),
    ("%3F", "%253F"),
    ("%3f", "%253F"),
    ("%23", "%2523"),
];

/// Bytes that are not printable ASCII.
const ENCODED: &AsciiSet = &CONTROLS.add(b' ');

/// Normalises a path, so that all equivalent forms of it are equal: percent-encoded only where the encoding changes
/// the meaning (RFC 3986, section 6.2.2), or where it is not ASCII.
pub(super) fn in_one_way(path: &str) -> Cow<'_, str> {
    if path.is_ascii() && !path.contains('%') {
        return Cow::Borrowed(path);
    }
    let mut path = path.to_owned();
    for (encoded, twice) in ENCODED_DELIMITERS {
        path = path.replace(encoded, twice);
    }
    let decoded: Vec<u8> = percent_decode_str(&path).collect();
    Cow::Owned(percent_encode(&decoded, ENCODED).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_location_leads_to_its_path() {
        for (location, base, path) in [
            ("/files/a", "/files", "/files/a"),
            ("http://example.org/files/a", "/files", "/files/a"),
            ("https://example.org:8443/files/a#top", "/", "/files/a"),
            ("//example.org/files/a", "/", "/files/a"),
            ("http://example.org", "/files", "/"),
            ("http://example.org?id=1", "/files", "/?id=1"),
            ("a", "/files/", "/files/a"),
            ("a", "/files", "/a"),
            ("files/a", "/files", "/files/a"),
            ("./a", "/files/", "/files/a"),
            ("../up/a", "/files/new/", "/files/up/a"),
            ("../../../a", "/files/", "/a"),
            ("?id=7", "/files?x=1", "/files?id=7"),
            ("/files/a?to=b://c", "/", "/files/a?to=b://c"),
            ("/files/a/..", "/", "/files/"),
            ("", "/files?x=1", "/files?x=1"),
        ] {
            assert_eq!(resolve(location, base), path, "{location:?} at {base:?}");
        }
    }

    #[test]
    fn paths_that_mean_the_same_are_written_alike() {
        for (path, written) in [
            ("/a/.file", "/a/.file"),
            ("/%61/%2Efile", "/a/.file"),
            ("/ann%40example.org", "/ann@example.org"),
            ("/%c3%a9", "/%C3%A9"),
            ("/é", "/%C3%A9"),
            // These are different paths.
            ("/a%2fb", "/a%2Fb"),
            ("/%2541", "/%2541"),
            ("/a%3fb?c", "/a%3Fb?c"),
            ("/%zz%4", "/%zz%4"),
        ] {
            assert_eq!(in_one_way(path), written);
            assert_eq!(in_one_way(written), written, "once and for all");
        }
    }
}
