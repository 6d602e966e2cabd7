//! What the head of a success tells clients of their quotas: soft limits that they are above, and what is left.

use std::fmt::Write;

use http::{HeaderName, HeaderValue, Response};

use crate::{
    quota::{OverSoftLimit, QuotaSource},
    refusal::{LARGEST, add_rate_limits, quoted},
    scope::Scopes,
    settings::Settings,
};

const STORAGE_WARNING: HeaderName = HeaderName::from_static("storage-warning");

/// Tells in the head of an answer what the layer tells of these scopes.
#[cold]
pub(super) fn advise<Q: QuotaSource, R>(
    settings: &Settings<Q>,
    scopes: &Scopes,
    response: &mut Response<R>,
) {
    let (quota, advice) = (&settings.guard.context.quota, settings.http.advice);
    if advice.soft_limits
        && let Some(warning) = header(&quota.over_soft_limits(scopes))
    {
        response.headers_mut().insert(STORAGE_WARNING, warning);
    }
    if advice.rate_limit {
        let usage = quota.usage_now(scopes);
        let left = usage.iter().filter_map(|(scope, usage)| {
            let limit = usage.in_force().bytes?;
            let taken = usage.used.bytes.saturating_add(usage.held.bytes);
            Some((scope, limit, limit.saturating_sub(taken)))
        });
        add_rate_limits(response.headers_mut(), left);
    }
}

/// A list of strings with parameters (RFC 9651). None if there is nothing that the client may know.
fn header(over: &[OverSoftLimit]) -> Option<HeaderValue> {
    let may_know = over.iter().filter(|over| over.scope.is_disclosed());
    let warnings: Vec<_> = may_know.map(warning).collect();
    if warnings.is_empty() {
        return None;
    }
    HeaderValue::try_from(warnings.join(", ")).ok()
}

fn warning(over: &OverSoftLimit) -> String {
    let (resource, limit, used) = (over.resource, over.limit, over.used);
    let [limit, used] = [limit, used].map(|figure| figure.min(LARGEST));
    let mut text = format!("\"quota-soft-limit\";resource={resource};limit={limit};used={used}");
    if let Some(grace) = over.grace {
        let seconds = grace.as_secs().min(LARGEST);
        write!(text, ";grace={seconds}").expect(STRING);
    }
    text.push_str(";scope=");
    write_text(&mut text, over.scope.as_str());
    text
}

/// As a string, or as a display string if it is not plain ASCII (RFC 9651, sections 4.1.6 and 4.1.11).
fn write_text(to: &mut String, text: &str) {
    let is_plain = |byte: &u8| matches!(byte, b' '..=b'~');
    if text.bytes().all(|byte| is_plain(&byte)) {
        return to.push_str(&quoted(text));
    }
    to.push_str("%\"");
    for byte in text.bytes() {
        match is_plain(&byte) && !matches!(byte, b'%' | b'"') {
            true => to.push(char::from(byte)),
            false => write!(to, "%{byte:02x}").expect(STRING),
        }
    }
    to.push('"');
}

const STRING: &str = "a string takes all that is written";

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{cause::Resource, scope::Scope};

    fn over(scope: impl Into<Scope>) -> OverSoftLimit {
        OverSoftLimit::new(scope.into(), Resource::Bytes, 80, u64::MAX)
    }

    #[test]
    fn a_warning_is_a_structured_field() {
        let header =
            |over: &[OverSoftLimit]| header(over).map(|it| it.to_str().unwrap().to_owned());
        assert_eq!(header(&[]), None);
        assert_eq!(header(&[over(Scope::from("user:1").undisclosed())]), None);
        let grace = over(r#"a "b" \c"#).with_grace(Duration::from_millis(2_999));
        let objects = OverSoftLimit::new("Zoë 100%".into(), Resource::Objects, 2, 3);
        assert_eq!(
            header(&[grace, objects]).unwrap(),
            "\"quota-soft-limit\";resource=bytes;limit=80;used=999999999999999;grace=2;\
             scope=\"a \\\"b\\\" \\\\c\", \
             \"quota-soft-limit\";resource=objects;limit=2;used=3;scope=%\"Zo%c3%ab 100%25\""
        );
    }
}
