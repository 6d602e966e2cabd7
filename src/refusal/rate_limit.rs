//! The fields of the RateLimit draft (draft-ietf-httpapi-ratelimit-headers), which tell clients what is left.

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::scope::Scope;

const POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
/// The largest integer of a structured field (RFC 9651, section 3.3.1).
pub(crate) const LARGEST: u64 = 999_999_999_999_999;

/// Adds the fields for these scopes, each with its limit in bytes and what is left of it. Adds nothing of scopes that the client may
/// not know.
pub(crate) fn add_rate_limits<'a>(
    headers: &mut HeaderMap,
    scopes: impl IntoIterator<Item = (&'a Scope, u64, u64)>,
) {
    let (mut policies, mut limits) = (Vec::new(), Vec::new());
    for (scope, limit, left) in scopes {
        // The name of a policy is a string, which has no other characters.
        let is_plain = scope
            .as_str()
            .bytes()
            .all(|byte| matches!(byte, b' '..=b'~'));
        if scope.is_disclosed() && is_plain {
            let name = quoted(scope.as_str());
            let [limit, left] = [limit, left].map(|figure| figure.min(LARGEST));
            policies.push(format!("{name};q={limit};qu=\"content-bytes\""));
            limits.push(format!("{name};r={left}"));
        }
    }
    for (name, items) in [(POLICY, policies), (RATE_LIMIT, limits)] {
        if let (false, Ok(value)) = (items.is_empty(), HeaderValue::try_from(items.join(", "))) {
            headers.insert(name, value);
        }
    }
}

/// As a string (RFC 9651, section 4.1.6). The text must be plain ASCII.
pub(crate) fn quoted(text: &str) -> String {
    let escaped = text.replace('\\', "\\\\").replace('"', "\\\"");
    format!("\"{escaped}\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_scope_that_may_be_known_is_an_item() {
        let scopes = [
            Scope::from(r#"a "b" \c"#),
            Scope::from("secret").undisclosed(),
            Scope::from("Zoë"),
            Scope::from("tenant:acme"),
        ];
        let figures = scopes.iter().zip([(10, 3), (5, 5), (7, 7), (u64::MAX, 0)]);
        let mut headers = HeaderMap::new();
        add_rate_limits(
            &mut headers,
            figures.map(|(scope, (limit, left))| (scope, limit, left)),
        );
        assert_eq!(
            headers["ratelimit-policy"],
            r#""a \"b\" \\c";q=10;qu="content-bytes", "tenant:acme";q=999999999999999;qu="content-bytes""#
        );
        assert_eq!(
            headers["ratelimit"],
            r#""a \"b\" \\c";r=3, "tenant:acme";r=0"#
        );
    }

    #[test]
    fn nothing_to_tell_adds_nothing() {
        let mut headers = HeaderMap::new();
        let secret = Scope::from("secret").undisclosed();
        add_rate_limits(&mut headers, [(&secret, 1, 1)]);
        assert!(headers.is_empty());
    }
}
