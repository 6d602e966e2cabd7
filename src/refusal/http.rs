use std::{
    fmt::{self, Write as _},
    sync::Arc,
};

use bytes::Bytes;
use http::{HeaderValue, Response, Uri, header::CONTENT_TYPE, request::Parts};

use super::{Asked, Dialect, Figures, Refusal, escape, json::Object, negotiate::Format};
use crate::{cause::Resource, config::ConfigError};

/// The dialect of plain HTTP: hears every request, and answers in the format that its `Accept` selects.
///
/// | format | content |
/// |---|---|
/// | `application/json` | `error` (the phrase of the status), `message`, `reason`, `resource`, `temporary` |
/// | `application/problem+json` | RFC 9457, with `reason`, `resource`, `temporary` |
/// | `text/plain` | the message, and a line with the figures for people, such as `57.0 MiB` |
/// | `text/html` | a page for browsers |
///
/// JSON is the default, and is also used if no format is acceptable. If there are [`Figures`], both kinds of JSON end
/// in `limit`, `used` and `required`. Refusals other than a storage fault have no `resource`.
#[derive(Clone, Debug, Default)]
pub struct Http {
    problem_types: Option<Arc<str>>,
}

impl Http {
    /// Makes the `type` of an `application/problem+json` from this URI followed by the reason.
    ///
    /// It should lead to a page about the reason (RFC 9457, section 3.1.1). Defaults to `about:blank` for all
    /// refusals.
    ///
    /// # Errors
    ///
    /// If the URI is not absolute, with a scheme and a host.
    ///
    /// ```
    /// use http::Request;
    /// use tower_storage_guard::refusal::{Asked, Dialect, Http, Refusal};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let http = Http::default().problem_types("https://example.com/problems/")?;
    ///
    /// let request = Request::put("/")
    ///     .header("accept", "application/problem+json")
    ///     .body(())?;
    /// let response = http.render(&Refusal::unavailable(), &Asked::from(&request));
    /// let body = str::from_utf8(response.body())?;
    /// assert!(body.contains(r#""type":"https://example.com/problems/capacity_unknown""#));
    ///
    /// assert!(Http::default().problem_types("problems").is_err());
    /// # Ok(())
    /// # }
    /// ```
    pub fn problem_types(mut self, base: &str) -> Result<Self, ConfigError> {
        match base.parse::<Uri>() {
            Ok(uri) if uri.scheme().is_some() && uri.host().is_some() => {}
            _ => return Err(ConfigError::ProblemTypes(base.to_owned())),
        }
        self.problem_types = Some(base.into());
        Ok(self)
    }

    fn body(&self, refusal: &Refusal, format: Format) -> Result<String, fmt::Error> {
        match format {
            Format::Json => json(refusal),
            Format::Problem => problem(refusal, self.problem_types.as_deref()),
            Format::Plain => plain(refusal),
            Format::Html => html(refusal),
        }
    }
}

impl Dialect for Http {
    fn hears(&self, _: &Parts) -> bool {
        true
    }

    fn render(&self, refusal: &Refusal, asked: &Asked) -> Response<Bytes> {
        let format = Format::choose(asked.accept().map(HeaderValue::as_bytes));
        let body = self
            .body(refusal, format)
            .expect("writing to a String cannot fail");
        let mut response = Response::new(body.into());
        *response.status_mut() = refusal.status();
        let content_type = HeaderValue::from_static(format.content_type());
        response.headers_mut().insert(CONTENT_TYPE, content_type);
        response
    }
}

fn json(refusal: &Refusal) -> Result<String, fmt::Error> {
    let mut object = Object::default();
    object.text("error", phrase(refusal))?;
    object.text("message", refusal.message())?;
    details(&mut object, refusal)?;
    Ok(object.end())
}

/// RFC 9457, section 3. With `about:blank`, the title is the phrase of the status (section 4.2.1).
fn problem(refusal: &Refusal, types: Option<&str>) -> Result<String, fmt::Error> {
    let mut object = Object::default();
    match types {
        Some(base) => object.text("type", &format!("{base}{}", refusal.reason()))?,
        None => object.text("type", "about:blank")?,
    }
    object.text("title", phrase(refusal))?;
    object.value("status", refusal.status().as_u16())?;
    object.text("detail", refusal.message())?;
    details(&mut object, refusal)?;
    Ok(object.end())
}

/// The members that both kinds of JSON share.
fn details(object: &mut Object, refusal: &Refusal) -> fmt::Result {
    object.text("reason", refusal.reason())?;
    if let Some(resource) = refusal.resource() {
        object.text("resource", resource.as_str())?;
    }
    object.value("temporary", refusal.is_temporary())?;
    if let Some(figures) = refusal.figures() {
        object.value("limit", figures.limit)?;
        object.value("used", figures.used)?;
        object.value("required", figures.required)?;
    }
    Ok(())
}

fn plain(refusal: &Refusal) -> Result<String, fmt::Error> {
    let mut out = refusal.message().to_owned();
    if let Some(figures) = in_words(refusal) {
        write!(out, "\n{figures}")?;
    }
    Ok(out)
}

fn html(refusal: &Refusal) -> Result<String, fmt::Error> {
    let mut out = String::from(concat!(
        "<!doctype html>\n",
        "<html lang=\"en\">\n",
        "<head>\n",
        "<meta charset=\"utf-8\">\n",
        "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n",
        "<meta name=\"color-scheme\" content=\"light dark\">\n",
        "<style>body{font:1rem/1.5 system-ui,sans-serif;margin:4rem auto;max-width:36rem;padding:0 1rem}</style>\n",
    ));
    element(
        &mut out,
        "title",
        &format!("{} {}", refusal.status().as_u16(), phrase(refusal)),
    )?;
    out.write_str("</head>\n<body>\n")?;
    element(&mut out, "h1", phrase(refusal))?;
    element(&mut out, "p", &format!("{}.", refusal.message()))?;
    if let Some(figures) = in_words(refusal) {
        element(&mut out, "p", &figures)?;
    }
    let outlook = if refusal.is_temporary() {
        "This is temporary. Trying again later may help."
    } else {
        "Trying the same again will not help."
    };
    element(&mut out, "p", outlook)?;
    out.write_str("</body>\n</html>\n")?;
    Ok(out)
}

fn element(out: &mut String, name: &str, text: &str) -> fmt::Result {
    write!(out, "<{name}>")?;
    escape::html(out, text)?;
    writeln!(out, "</{name}>")
}

/// The phrase of the status that is sent.
fn phrase(refusal: &Refusal) -> &'static str {
    // An unregistered status, such as 599, has no phrase: use the message.
    refusal
        .status()
        .canonical_reason()
        .unwrap_or(refusal.message())
}

fn in_words(refusal: &Refusal) -> Option<String> {
    let (
        Figures {
            limit,
            used,
            required,
        },
        resource,
    ) = (refusal.figures()?, refusal.resource()?);
    Some(match resource {
        Resource::Bytes => {
            let [used, limit, required] = [used, limit, required].map(|bytes| readable(*bytes));
            format!("{used} of {limit} are used, and {required} more are needed.")
        }
        Resource::Objects => {
            format!("{used} of {limit} objects are used, and {required} more are needed.")
        }
    })
}

/// Bytes as people read them, such as `57.0 MiB`: rounded down to a tenth of the unit.
fn readable(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let power = bytes.checked_ilog2().unwrap_or(0) / 10;
    let Some(name) = (power as usize).checked_sub(1).map(|place| UNITS[place]) else {
        return format!("{bytes} bytes");
    };
    let unit = 1 << (10 * power);
    let tenths = bytes % unit * 10 / unit;
    format!("{}.{tenths} {name}", bytes / unit)
}

#[cfg(test)]
mod tests {
    use http::{Request, StatusCode, header::ACCEPT};
    use proptest::prelude::*;

    use super::*;
    use crate::cause::{Cause, Fault};

    const FIGURES: Figures = Figures {
        limit: 1000,
        used: 900,
        required: 200,
    };

    fn disk_full() -> Refusal {
        Fault::new(Cause::DiskFull, Resource::Bytes).into()
    }

    fn quota_exceeded() -> Refusal {
        Refusal::from(Fault::new(Cause::QuotaExceeded, Resource::Objects)).with_figures(FIGURES)
    }

    fn render(http: &Http, refusal: &Refusal, accept: &'static str) -> Response<Bytes> {
        let request = Request::put("/").header(ACCEPT, accept).body(()).unwrap();
        http.render(refusal, &Asked::from(&request))
    }

    fn body(refusal: &Refusal, accept: &'static str) -> String {
        String::from_utf8(render(&Http::default(), refusal, accept).into_body().into()).unwrap()
    }

    #[test]
    fn json_exactly() {
        assert_eq!(
            body(&disk_full(), "application/json"),
            r#"{"error":"Insufficient Storage","message":"Server storage capacity reached","reason":"disk_full","resource":"bytes","temporary":true}"#
        );
        assert_eq!(
            body(&quota_exceeded().with_temporary(false), "application/json"),
            r#"{"error":"Insufficient Storage","message":"Storage quota exceeded","reason":"quota_exceeded","resource":"objects","temporary":false,"limit":1000,"used":900,"required":200}"#
        );
        assert_eq!(
            body(&Refusal::unavailable(), "application/json"),
            r#"{"error":"Service Unavailable","message":"Storage capacity cannot be determined right now","reason":"capacity_unknown","temporary":true}"#
        );
        assert_eq!(
            body(&Refusal::invalid_length(), "application/json"),
            r#"{"error":"Bad Request","message":"Content-Length is not a valid number of bytes","reason":"invalid_content_length","temporary":false}"#
        );
    }

    #[test]
    fn people_read_sizes_in_units() {
        let figures = Figures {
            limit: 1 << 30,
            used: 1_062_207_488,
            required: 59_768_832,
        };
        let fault = Fault::new(Cause::QuotaExceeded, Resource::Bytes);
        let refusal = Refusal::from(fault).with_figures(figures);
        let words = "1013.0 MiB of 1.0 GiB are used, and 57.0 MiB more are needed.";
        assert_eq!(
            body(&refusal, "text/plain"),
            format!("Storage quota exceeded\n{words}")
        );
        assert!(body(&refusal, "text/html").contains(&format!("<p>{words}</p>")));
        for (bytes, words) in [
            (0, "0 bytes"),
            (1023, "1023 bytes"),
            (1024, "1.0 KiB"),
            (1535, "1.4 KiB"),
            ((1 << 20) - 1, "1023.9 KiB"),
            (u64::MAX, "15.9 EiB"),
        ] {
            assert_eq!(readable(bytes), words);
        }
    }

    #[test]
    fn problem_exactly() {
        assert_eq!(
            body(&disk_full(), "application/problem+json"),
            r#"{"type":"about:blank","title":"Insufficient Storage","status":507,"detail":"Server storage capacity reached","reason":"disk_full","resource":"bytes","temporary":true}"#
        );
        assert_eq!(
            body(&quota_exceeded(), "application/problem+json"),
            r#"{"type":"about:blank","title":"Insufficient Storage","status":507,"detail":"Storage quota exceeded","reason":"quota_exceeded","resource":"objects","temporary":true,"limit":1000,"used":900,"required":200}"#
        );
        assert_eq!(
            body(&Refusal::unavailable(), "application/problem+json"),
            r#"{"type":"about:blank","title":"Service Unavailable","status":503,"detail":"Storage capacity cannot be determined right now","reason":"capacity_unknown","temporary":true}"#
        );
    }

    #[test]
    fn plain_exactly() {
        assert_eq!(
            body(&disk_full(), "text/plain"),
            "Server storage capacity reached"
        );
        assert_eq!(
            body(&quota_exceeded(), "text/plain"),
            "Storage quota exceeded\n900 of 1000 objects are used, and 200 more are needed."
        );
    }

    #[test]
    fn html_exactly() {
        assert_eq!(
            body(&quota_exceeded(), "text/html"),
            "<!doctype html>\n\
             <html lang=\"en\">\n\
             <head>\n\
             <meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
             <meta name=\"color-scheme\" content=\"light dark\">\n\
             <style>body{font:1rem/1.5 system-ui,sans-serif;margin:4rem auto;max-width:36rem;padding:0 1rem}</style>\n\
             <title>507 Insufficient Storage</title>\n\
             </head>\n\
             <body>\n\
             <h1>Insufficient Storage</h1>\n\
             <p>Storage quota exceeded.</p>\n\
             <p>900 of 1000 objects are used, and 200 more are needed.</p>\n\
             <p>This is temporary. Trying again later may help.</p>\n\
             </body>\n\
             </html>\n"
        );
        let invalid = body(&Refusal::invalid_length(), "text/html");
        assert!(invalid.contains("<h1>Bad Request</h1>"), "{invalid}");
        assert!(
            invalid.contains("<p>Trying the same again will not help.</p>"),
            "{invalid}"
        );
    }

    #[test]
    fn html_text_is_escaped() {
        let teapot = disk_full().with_status(StatusCode::IM_A_TEAPOT);
        assert!(body(&teapot, "text/html").contains("<h1>I&#39;m a teapot</h1>"));
    }

    #[test]
    fn the_head_fits_the_body() {
        for (accept, content_type) in [
            ("*/*", "application/json"),
            ("application/problem+json", "application/problem+json"),
            ("text/plain", "text/plain; charset=utf-8"),
            ("text/html", "text/html; charset=utf-8"),
        ] {
            let response = render(&Http::default(), &disk_full(), accept);
            assert_eq!(response.status(), 507);
            assert_eq!(response.headers()[CONTENT_TYPE], content_type);
            assert_eq!(response.headers().len(), 1);
        }
    }

    #[test]
    fn the_error_is_the_phrase_of_the_status_sent() {
        let error = |status| {
            let refusal = disk_full().with_status(StatusCode::from_u16(status).unwrap());
            let json: serde_json::Value = serde_json::from_str(&body(&refusal, "*/*")).unwrap();
            json["error"].as_str().unwrap().to_owned()
        };
        assert_eq!(error(413), "Payload Too Large");
        assert_eq!(error(403), "Forbidden");
        assert_eq!(error(599), "Server storage capacity reached");
    }

    #[test]
    fn problem_types_are_absolute() {
        for base in [
            "",
            "problems",
            "/problems/",
            "example.com",
            "https://",
            "https://a b/",
            "mailto:a@b.c",
        ] {
            let error = Http::default().problem_types(base).unwrap_err();
            assert_eq!(error, ConfigError::ProblemTypes(base.to_owned()), "{base}");
        }
        let http = Http::default()
            .problem_types("https://example.com/p#")
            .unwrap();
        let response = render(&http, &disk_full(), "application/problem+json");
        let json: serde_json::Value = serde_json::from_slice(response.body()).unwrap();
        assert_eq!(json["type"], "https://example.com/p#disk_full");
    }

    proptest! {
        #[test]
        fn both_kinds_of_json_parse(limit: u64, used: u64, required: u64, temporary: bool) {
            let refusal = quota_exceeded()
                .with_figures(Figures { limit, used, required })
                .with_temporary(temporary);
            for accept in ["application/json", "application/problem+json"] {
                let json: serde_json::Value = serde_json::from_str(&body(&refusal, accept)).unwrap();
                prop_assert_eq!(json["limit"].as_u64(), Some(limit));
                prop_assert_eq!(json["used"].as_u64(), Some(used));
                prop_assert_eq!(json["required"].as_u64(), Some(required));
                prop_assert_eq!(json["temporary"].as_bool(), Some(temporary));
            }
        }
    }
}
