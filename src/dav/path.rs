//! Maps URLs to paths of a tree.

use std::path::{Component, Path, PathBuf};

use http::Uri;
use percent_encoding::percent_decode_str;

/// The path in the tree for a URL's path. None if it is outside of the tree.
pub(super) fn of(path: &str, prefix: &str) -> Option<PathBuf> {
    let path = path.strip_prefix(prefix.trim_end_matches('/'))?;
    if !path.is_empty() && !path.starts_with('/') {
        return None;
    }
    let mut found = PathBuf::new();
    for segment in path.split('/').filter(|segment| !segment.is_empty()) {
        let segment = decoded(segment)?;
        let mut components = Path::new(&segment).components();
        // One plain name, as the operating system sees it. An encoded slash is not allowed.
        match (components.next(), components.next()) {
            (Some(Component::Normal(name)), None) if name == segment.as_os_str() => {
                found.push(name)
            }
            (Some(Component::CurDir), None) => {}
            _ => return None,
        }
    }
    Some(found)
}

/// The path in a `Destination`: a URL, or only its path (RFC 4918, section 10.3).
pub(super) fn in_header(value: &[u8]) -> Option<String> {
    let uri = Uri::try_from(value.trim_ascii()).ok()?;
    Some(uri.path().to_owned())
}

/// Percent-decodes (RFC 3986, section 2.1). None if a `%` is not followed by two hex digits, or if the result
/// contains a NUL.
fn decoded(segment: &str) -> Option<PathBuf> {
    let is_escape = |after: &str| after.bytes().take(2).filter(u8::is_ascii_hexdigit).count() == 2;
    if !segment.split('%').skip(1).all(is_escape) {
        return None;
    }
    let bytes: Vec<u8> = percent_decode_str(segment).collect();
    if bytes.contains(&0) {
        return None;
    }
    #[cfg(unix)]
    {
        use std::os::unix::ffi::OsStringExt;
        Some(std::ffi::OsString::from_vec(bytes).into())
    }
    #[cfg(not(unix))]
    Some(String::from_utf8(bytes).ok()?.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_paths_of_the_tree() {
        for (url, prefix, path) in [
            ("/", "", Some("")),
            ("/a/b", "", Some("a/b")),
            ("/a//b/", "", Some("a/b")),
            ("/a/./b", "", Some("a/b")),
            ("/%C3%A9%20%25", "", Some("é %")),
            ("/dav/a", "/dav", Some("a")),
            ("/dav", "/dav/", Some("")),
            ("/dave/a", "/dav", None),
            ("/other", "/dav", None),
            ("/a/../b", "", None),
            ("/a/%2e%2e/b", "", None),
            ("/a%2Fb", "", None),
            ("/a%00", "", None),
            ("/a%zz", "", None),
            ("/a%2", "", None),
        ] {
            assert_eq!(of(url, prefix).as_deref(), path.map(Path::new), "{url}");
        }
    }

    #[test]
    fn a_destination_is_a_url_or_a_path() {
        for (value, path) in [
            ("http://example.com:8080/a%20b", Some("/a%20b")),
            ("/a", Some("/a")),
            (" /a ", Some("/a")),
            ("", None),
            ("http://exa mple/a", None),
        ] {
            assert_eq!(in_header(value.as_bytes()).as_deref(), path, "{value:?}");
        }
    }
}
