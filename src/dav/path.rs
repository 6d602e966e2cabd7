//! Maps URLs to paths of a tree.

use std::{
    iter,
    path::{Component, Path, PathBuf},
};

use http::Uri;
use percent_encoding::percent_decode_str;

use crate::head::Malformed;

/// The path prefix of a tree in URLs: its decoded segments.
#[derive(Clone, Debug, Default)]
pub(super) struct Prefix(Vec<PathBuf>);

impl Prefix {
    /// A prefix is the application's own: segments that are no plain names stay as they are, and match no path.
    pub(super) fn new(path: &str) -> Self {
        let segments = path.split('/').filter(|segment| !segment.is_empty());
        Self(
            segments
                .map(|segment| decoded(segment).unwrap_or_else(|Malformed| segment.into()))
                .collect(),
        )
    }

    /// Whether no decoding makes a path one of the tree: it belongs to another service.
    pub(super) fn is_plainly_outside(&self, path: &str) -> bool {
        let decoded = percent_decode_str(path).decode_utf8_lossy();
        let segments = || {
            decoded
                .split(['/', '\\'])
                .filter(|segment| !segment.is_empty())
        };
        let begins_elsewhere = || {
            let others = segments().filter(|segment| *segment != ".");
            let mut pairs = self
                .0
                .iter()
                .zip(others.map(Some).chain(iter::repeat(None)));
            pairs.any(|(own, other)| other.map(Path::new) != Some(own))
        };
        !segments().any(|segment| segment == "..") && begins_elsewhere()
    }

    /// The path in the tree for a URL's path, decoded and without dot segments (RFC 3986, section 5.2.4). None if it is
    /// outside of the tree.
    ///
    /// A path that leaves the tree by dot segments is malformed, because a router may compare the prefix before the service
    /// removes them.
    pub(super) fn strip(&self, path: &str) -> Result<Option<PathBuf>, Malformed> {
        if !path.starts_with('/') || path.contains('\\') {
            return Err(Malformed);
        }
        let mut found: Vec<PathBuf> = Vec::new();
        for segment in path.split('/') {
            let segment = decoded(segment)?;
            let mut components = segment.components();
            match (components.next(), components.next()) {
                (None, _) | (Some(Component::CurDir), None) => {}
                (Some(Component::ParentDir), None) => {
                    if found == self.0 || found.pop().is_none() {
                        return Err(Malformed);
                    }
                }
                // One plain name, as the operating system sees it.
                (Some(Component::Normal(name)), None) if name == segment.as_os_str() => {
                    found.push(segment);
                }
                _ => return Err(Malformed),
            }
        }
        let is_inside = found.starts_with(&self.0);
        Ok(is_inside.then(|| found[self.0.len()..].iter().collect()))
    }
}

/// The path in a `Destination`: a URL, or its path alone (RFC 4918, section 10.3).
pub(super) fn in_header(value: &[u8]) -> Result<String, Malformed> {
    let text = str::from_utf8(value).map_err(|_| Malformed)?;
    // `//host/path` is a reference that some resolve, and others take for a path.
    if text.starts_with("//") || text.contains('#') {
        return Err(Malformed);
    }
    let uri = Uri::try_from(text).map_err(|_| Malformed)?;
    if uri.scheme().is_none() && !text.starts_with('/') {
        return Err(Malformed);
    }
    Ok(uri.path().to_owned())
}

/// Percent-decodes (RFC 3986, section 2.1). Malformed if a `%` is not followed by two hex digits, or if the result contains
/// a NUL.
fn decoded(segment: &str) -> Result<PathBuf, Malformed> {
    let is_escape = |after: &str| after.bytes().take(2).filter(u8::is_ascii_hexdigit).count() == 2;
    if !segment.split('%').skip(1).all(is_escape) {
        return Err(Malformed);
    }
    let bytes: Vec<u8> = percent_decode_str(segment).collect();
    if bytes.contains(&0) {
        return Err(Malformed);
    }
    #[cfg(unix)]
    {
        use std::os::unix::ffi::OsStringExt;
        Ok(std::ffi::OsString::from_vec(bytes).into())
    }
    #[cfg(not(unix))]
    Ok(String::from_utf8(bytes).map_err(|_| Malformed)?.into())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn urls_are_paths_of_the_tree() {
        for (url, prefix, path) in [
            ("/", "", Some("")),
            ("/a/b", "", Some("a/b")),
            ("/a//b/", "", Some("a/b")),
            ("/a/./b/%2E", "", Some("a/b")),
            ("/%C3%A9%20%25", "", Some("é %")),
            ("/a/../b", "", Some("b")),
            ("/a/b/%2e%2E/../c", "", Some("c")),
            ("/dav/a", "/dav", Some("a")),
            ("/%64av/a", "/dav", Some("a")),
            ("/x/../dav/a", "/dav", Some("a")),
            ("/dav", "/dav/", Some("")),
            ("/my%20dav/a", "/my%20dav", Some("a")),
            ("/dave/a", "/dav", None),
            ("/other", "/dav", None),
            ("/other/../else", "/dav", None),
        ] {
            let found = Prefix::new(prefix).strip(url);
            assert_eq!(found, Ok(path.map(PathBuf::from)), "{url}");
        }
    }

    #[test]
    fn what_two_may_read_differently_is_malformed() {
        for (url, prefix) in [
            ("/..", ""),
            ("/a/../..", ""),
            ("/%2e%2e/a", ""),
            ("/a%2Fb", ""),
            ("/a%2f..%2fb", ""),
            ("/a%00", ""),
            ("/a%zz", ""),
            ("/a%2", ""),
            ("/a\\..\\b", ""),
            ("*", ""),
            ("", ""),
            // A router that compares the prefix first hands `/../other` on.
            ("/dav/../other", "/dav"),
            ("/dav/a/../../dav/b", "/dav"),
        ] {
            assert_eq!(Prefix::new(prefix).strip(url), Err(Malformed), "{url}");
        }
    }

    #[test]
    fn paths_of_other_services_are_theirs() {
        let prefix = Prefix::new("/my%20dav");
        for (path, is_outside) in [
            ("/api/projects/group%2Fname", true),
            ("/api/%zz%00", true),
            ("/my", true),
            ("/", true),
            ("/my%20davx/a", true),
            ("/my%20dav/a", false),
            ("/.//my dav/a", false),
            ("/%6dy%20dav%2fa", false),
            ("/api/../my%20dav/a", false),
            ("/api/%2e%2e%5cmy%20dav/a", false),
        ] {
            assert_eq!(prefix.is_plainly_outside(path), is_outside, "{path}");
        }
        assert!(!Prefix::default().is_plainly_outside("/anything"));
    }

    #[test]
    fn a_destination_is_a_url_or_a_path() {
        for (value, path) in [
            ("http://example.com:8080/a%20b", Ok("/a%20b")),
            ("https://example.com/a?query", Ok("/a")),
            ("/a", Ok("/a")),
            ("", Err(Malformed)),
            (" /a", Err(Malformed)),
            ("a", Err(Malformed)),
            ("a/b", Err(Malformed)),
            ("//example.com/a", Err(Malformed)),
            ("/a#b", Err(Malformed)),
            ("/a b", Err(Malformed)),
            ("/a\tb", Err(Malformed)),
            ("http://exa mple/a", Err(Malformed)),
            ("http://example.com/a b", Err(Malformed)),
        ] {
            let found = in_header(value.as_bytes());
            assert_eq!(found.as_deref(), path.as_ref().copied(), "{value:?}");
        }
    }

    proptest! {
        /// The same as removing dot segments from the decoded path by RFC 3986, section 5.2.4, in its own words.
        #[test]
        fn dot_segments_are_removed_as_the_rfc_does(
            segments in prop::collection::vec(prop::sample::select(vec!["a", "b", "%61", ".", "..", "%2e", "%2E%2e", ""]), 0..8)
        ) {
            let url: String = segments.iter().flat_map(|segment| ["/", segment]).collect();
            let mut output: Vec<String> = Vec::new();
            let mut leaves = false;
            for segment in &segments {
                match percent_decode_str(segment).decode_utf8().unwrap().as_ref() {
                    "" | "." => {}
                    ".." => leaves |= output.pop().is_none(),
                    name => output.push(name.to_owned()),
                }
            }
            let found = Prefix::default().strip(if url.is_empty() { "/" } else { &url });
            if leaves {
                prop_assert_eq!(found, Err(Malformed));
            } else {
                prop_assert_eq!(found, Ok(Some(output.iter().collect())));
            }
        }
    }
}
