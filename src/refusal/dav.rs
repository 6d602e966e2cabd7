use std::io;

use bytes::Bytes;
use http::{
    HeaderName, HeaderValue, Method, Response,
    header::{ACCEPT, CONTENT_TYPE, USER_AGENT},
    request::Parts,
};
use quick_xml::{
    Writer,
    events::{BytesDecl, BytesText, Event},
};

use super::{
    Asked, Dialect, Refusal,
    negotiate::{asks_for_other_than_xml, likes_xml_best},
};
use crate::{cause::Cause, rpc::Rpc};

/// The dialect of WebDAV: a `DAV:error` with the violated condition (RFC 4918, section 16; RFC 4331, section 6).
///
/// | refusal | condition |
/// |---|---|
/// | a quota, a limit of a collection | `DAV:quota-not-exceeded` |
/// | a full disk or database | `DAV:sufficient-disk-space` |
/// | an outage, an invalid Content-Length | none, because storage is not short |
///
/// After the condition come the same values as in the JSON of [`Http`](super::Http), in elements of
/// [`Self::NAMESPACE`]: `message`, `reason`, `resource`, `temporary`, and with [`Figures`](super::Figures) `limit`,
/// `used` and `required`. Clients must ignore unknown elements. rclone shows the `message`; ownCloud's and Nextcloud's
/// desktop clients read it.
///
/// A 207 Multi-Status of the inner service is not rewritten, with or without this dialect.
///
/// `StorageGuardLayer::webdav` uses this dialect by default. For other services, add it with
/// [`dialect`](crate::StorageGuardLayer::dialect). It then answers a request that is not a remote procedure call if one
/// of these identifies WebDAV:
///
/// - its method, if WebDAV or one of its extensions defines it;
/// - a header that only clients of WebDAV send, such as `If`, `Depth`, `Translate` or `X-OC-Mtime`;
/// - its `User-Agent`, because many clients upload with a plain PUT: macOS, Windows, GNOME, rclone, and all clients
///   that use neon, such as davfs2 and cadaver;
/// - its `Accept`, if it prefers XML to every format of [`Http`](super::Http).
///
/// ```
/// use std::convert::Infallible;
/// use bytes::Bytes;
/// use http::{Request, Response};
/// use http_body_util::{BodyExt, Full};
/// use tower::{Layer, ServiceExt, service_fn};
/// use tower_storage_guard::{Headroom, MeteredBody, StorageGuardLayer, Volume, refusal::Dav};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// async fn store(_: Request<MeteredBody<Full<Bytes>>>) -> Result<Response<Full<Bytes>>, Infallible> {
///     Ok(Response::default())
/// }
///
/// // The whole volume is headroom here, so that nothing fits.
/// let volume = Volume::open(std::env::temp_dir())?.keep_free(Headroom::percent(100));
/// let service = StorageGuardLayer::new(volume).dialect(Dav::default()).layer(service_fn(store));
///
/// let upload = Request::put("/photos/1")
///     .header("user-agent", "davfs2/1.6.1 neon/0.32.5")
///     .body(Full::from("content"))?;
/// let answer = service.oneshot(upload).await?;
/// assert_eq!(answer.status(), 507);
/// assert_eq!(answer.headers()["content-type"], "application/xml; charset=\"utf-8\"");
///
/// let body = answer.into_body().collect().await.unwrap().to_bytes();
/// assert!(str::from_utf8(&body)?.contains("<D:sufficient-disk-space/>"));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Dav {}

impl Dav {
    /// The namespace of the elements that WebDAV does not define. It never changes.
    // A UUID, because a URL would need a domain that the project owns.
    pub const NAMESPACE: &str = "urn:uuid:4f42084b-3ad2-4500-8dc8-7d0df0566058";

    /// Whether a request to a WebDAV service is answered in this dialect: unless it is a remote procedure call, or its
    /// `Accept` names a format of [`Http`](super::Http) that has a greater weight than XML.
    pub(crate) fn is_default_for(head: &Parts) -> bool {
        let accept = head.headers.get_all(ACCEPT).iter();
        Rpc::of(&head.method, &head.headers).is_none()
            && !asks_for_other_than_xml(accept.map(HeaderValue::as_bytes))
    }
}

impl Dialect for Dav {
    fn hears(&self, head: &Parts) -> bool {
        let (method, headers) = (&head.method, &head.headers);
        // The metadata of a call may have any name, such as `depth` or `destination`.
        if Rpc::of(method, headers).is_some() {
            return false;
        }
        let accept = || {
            let lines = headers.get_all(ACCEPT).iter();
            lines.map(HeaderValue::as_bytes)
        };
        is_method(method)
            || headers.keys().any(is_header)
            || headers.get(USER_AGENT).is_some_and(is_client)
            || likes_xml_best(accept)
    }

    fn render(&self, refusal: &Refusal, _: &Asked) -> Response<Bytes> {
        let body = body(refusal).expect("writing to a Vec cannot fail");
        let mut response = Response::new(body.into());
        *response.status_mut() = refusal.status();
        let content_type = HeaderValue::from_static("application/xml; charset=\"utf-8\"");
        response.headers_mut().insert(CONTENT_TYPE, content_type);
        response
    }
}

/// A method of RFC 4918, or of an extension of it.
fn is_method(method: &Method) -> bool {
    matches!(
        method.as_str(),
        "PROPFIND" | "PROPPATCH" | "MKCOL" | "COPY" | "MOVE" | "LOCK" | "UNLOCK"
            // RFC 3253, versions
            | "REPORT" | "VERSION-CONTROL" | "CHECKOUT" | "CHECKIN" | "UNCHECKOUT" | "MKWORKSPACE"
            | "UPDATE" | "LABEL" | "MERGE" | "BASELINE-CONTROL" | "MKACTIVITY"
            // RFC 3648, 3744, 4437, 4791, 5323, 5842
            | "ORDERPATCH" | "ACL" | "MKREDIRECTREF" | "UPDATEREDIRECTREF" | "MKCALENDAR" | "SEARCH"
            | "BIND" | "UNBIND" | "REBIND"
    )
}

/// A header that only WebDAV clients send.
fn is_header(name: &HeaderName) -> bool {
    matches!(
        name.as_str(),
        // RFC 4918, section 10. Without `Timeout`, which accompanies LOCK only, and which other protocols use too.
        // Office sends its `Lock-Token` with PUT.
        "dav" | "depth" | "destination" | "if" | "lock-token" | "overwrite"
            // Windows and Office (MS-WDV)
            | "translate"
            // macOS
            | "x-expected-entity-length"
            // ownCloud and Nextcloud; rclone, when it talks to one of them
            | "oc-checksum" | "oc-total-length" | "x-oc-mtime"
    )
}

/// Whether a `User-Agent` is that of a WebDAV client whose PUT may have no other mark.
fn is_client(agent: &HeaderValue) -> bool {
    const CLIENTS: [&[u8]; 4] = [
        b"Microsoft-WebDAV-MiniRedir/",
        b"WebDAVFS/",
        b"gvfs/",
        b"rclone/",
    ];
    let agent = agent.as_bytes();
    // `davfs2/1.6.1 neon/0.32.5`
    let mut products = agent.split(|&byte| byte == b' ');
    CLIENTS.iter().any(|client| agent.starts_with(client))
        || products
            .nth(1)
            .is_some_and(|library| library.starts_with(b"neon/"))
}

fn body(refusal: &Refusal) -> io::Result<Vec<u8>> {
    let mut writer = Writer::new(Vec::new());
    let declaration = BytesDecl::new("1.0", Some("utf-8"), None);
    writer.write_event(Event::Decl(declaration))?;
    // The prefix is `s`, because scripts written for sabre/dav look for `s:message` by that name.
    writer
        .create_element("D:error")
        .with_attributes([("xmlns:D", "DAV:"), ("xmlns:s", Dav::NAMESPACE)])
        .write_inner_content(|writer| content(writer, refusal))?;
    Ok(writer.into_inner())
}

/// This crate's elements follow the condition, where rclone and the sync clients look for `message`.
///
/// sabre/dav's `exception` is left out, because its clients treat that of a 503 as maintenance, and stop.
fn content(writer: &mut Writer<Vec<u8>>, refusal: &Refusal) -> io::Result<()> {
    if let Some(fault) = refusal.fault() {
        writer
            .create_element(condition(fault.cause))
            .write_empty()?;
    }
    let mut text = |name: &str, text: &str| {
        let element = writer.create_element(name);
        element.write_text_content(BytesText::new(text)).map(drop)
    };
    text("s:message", refusal.message())?;
    text("s:reason", refusal.reason())?;
    if let Some(resource) = refusal.resource() {
        text("s:resource", resource.as_str())?;
    }
    text("s:temporary", &refusal.is_temporary().to_string())?;
    if let Some(figures) = refusal.figures() {
        text("s:limit", &figures.limit.to_string())?;
        text("s:used", &figures.used.to_string())?;
        text("s:required", &figures.required.to_string())?;
    }
    Ok(())
}

/// The violated condition (RFC 4331, section 6): one is about a quota, the other about the server's resources. A
/// database is one of the server's resources.
const fn condition(cause: Cause) -> &'static str {
    match cause {
        Cause::QuotaExceeded | Cause::CollectionFull => "D:quota-not-exceeded",
        Cause::DiskFull | Cause::DatabaseFull => "D:sufficient-disk-space",
    }
}

#[cfg(test)]
mod tests {
    use http::{Request, StatusCode};
    use proptest::prelude::*;
    use roxmltree::Document;
    use serde_json::{Map, Value};

    use super::*;
    use crate::{
        cause::{Fault, Resource},
        refusal::Http,
        refused::Figures,
        scope::Scope,
    };

    fn fault(cause: Cause) -> Refusal {
        Fault::new(cause, Resource::Bytes).into()
    }

    fn asked() -> Asked {
        Asked::from(&Request::put("/").body(()).unwrap())
    }

    fn xml(refusal: &Refusal) -> String {
        let response = Dav::default().render(refusal, &asked());
        String::from_utf8(response.into_body().into()).unwrap()
    }

    /// The conditions and this crate's elements in an answer, as an independent parser reads them.
    fn read(xml: &str) -> (Vec<String>, Map<String, Value>) {
        let document = Document::parse(xml).unwrap();
        let root = document.root_element();
        assert!(root.has_tag_name(("DAV:", "error")), "{xml}");
        let (mut conditions, mut ours) = (Vec::new(), Map::new());
        for element in root.children() {
            // "MUST NOT contain text or mixed content" (RFC 4918, section 14.5)
            assert!(element.is_element(), "{xml}");
            let name = element.tag_name().name().to_owned();
            match element.tag_name().namespace() {
                Some("DAV:") => {
                    assert!(!element.has_children(), "{xml}");
                    conditions.push(name);
                }
                namespace => {
                    assert_eq!(namespace, Some(Dav::NAMESPACE));
                    let text = element.text().unwrap();
                    let value = text.parse().unwrap_or_else(|_| text.into());
                    assert_eq!(ours.insert(name, value), None, "{xml}");
                }
            }
        }
        (conditions, ours)
    }

    /// The same values as plain HTTP answers. `error` is the phrase of the status, which WebDAV does not repeat.
    fn json(refusal: &Refusal) -> Map<String, Value> {
        let response = Http::default().render(refusal, &asked());
        let mut json: Map<_, _> = serde_json::from_slice(response.body()).unwrap();
        json.remove("error").unwrap();
        json
    }

    #[test]
    fn xml_exactly() {
        let figures = Figures {
            limit: 1000,
            used: 900,
            required: 200,
        };
        assert_eq!(
            xml(&fault(Cause::QuotaExceeded).with_figures(figures)),
            concat!(
                r#"<?xml version="1.0" encoding="utf-8"?>"#,
                r#"<D:error xmlns:D="DAV:" xmlns:s="urn:uuid:4f42084b-3ad2-4500-8dc8-7d0df0566058">"#,
                "<D:quota-not-exceeded/>",
                "<s:message>Storage quota exceeded</s:message>",
                "<s:reason>quota_exceeded</s:reason>",
                "<s:resource>bytes</s:resource>",
                "<s:temporary>true</s:temporary>",
                "<s:limit>1000</s:limit>",
                "<s:used>900</s:used>",
                "<s:required>200</s:required>",
                "</D:error>",
            )
        );
        assert_eq!(
            xml(&Refusal::unavailable()),
            concat!(
                r#"<?xml version="1.0" encoding="utf-8"?>"#,
                r#"<D:error xmlns:D="DAV:" xmlns:s="urn:uuid:4f42084b-3ad2-4500-8dc8-7d0df0566058">"#,
                "<s:message>Storage capacity cannot be determined right now</s:message>",
                "<s:reason>capacity_unknown</s:reason>",
                "<s:temporary>true</s:temporary>",
                "</D:error>",
            )
        );
    }

    #[test]
    fn every_refusal_has_its_condition() {
        for (refusal, condition) in [
            (fault(Cause::QuotaExceeded), Some("quota-not-exceeded")),
            (fault(Cause::CollectionFull), Some("quota-not-exceeded")),
            (fault(Cause::DiskFull), Some("sufficient-disk-space")),
            (fault(Cause::DatabaseFull), Some("sufficient-disk-space")),
            (Refusal::unavailable(), None),
            (Refusal::invalid_length(), None),
        ] {
            let (conditions, ours) = read(&xml(&refusal));
            assert!(conditions.iter().eq(condition.iter()), "{refusal:?}");
            assert_eq!(ours, json(&refusal));
        }
    }

    #[test]
    fn the_head_fits_the_body() {
        for status in [400, 403, 413, 503, 507, 599] {
            let status = StatusCode::from_u16(status).unwrap();
            let refusal = fault(Cause::QuotaExceeded).with_status(status);
            let response = Dav::default().render(&refusal, &asked());
            assert_eq!(response.status(), status);
            let content_type = &response.headers()[CONTENT_TYPE];
            assert_eq!(content_type, "application/xml; charset=\"utf-8\"");
            assert_eq!(response.headers().len(), 1);
        }
    }

    type Head = (&'static str, &'static [(&'static str, &'static str)]);

    /// Requests as clients were seen to send them.
    const HEARD: [Head; 16] = [
        ("PROPPATCH", &[]),
        ("MKCOL", &[("user-agent", "Mozilla/5.0")]),
        ("COPY", &[("accept", "text/html")]),
        ("MKCALENDAR", &[]),
        ("VERSION-CONTROL", &[]),
        ("DELETE", &[("depth", "infinity")]),
        ("PUT", &[("accept", "application/xml")]),
        ("POST", &[("accept", "text/xml, */*;q=0.1")]),
        // cadaver 0.24, without a lock and with one
        (
            "PUT",
            &[
                ("user-agent", "cadaver/0.24 neon/0.32.5"),
                ("connection", "TE"),
                ("te", "trailers"),
                ("content-length", "3"),
            ],
        ),
        ("PUT", &[("if", "</f> (<opaquelocktoken:1>)")]),
        // rclone 1.60 from Debian, which does not send its version
        (
            "PUT",
            &[
                ("user-agent", "rclone/"),
                ("content-type", "application/octet-stream"),
                ("referer", "http://localhost/"),
            ],
        ),
        (
            "PUT",
            &[
                ("user-agent", "davfs2/1.6.1 neon/0.32.5"),
                ("if-match", "\"1\""),
            ],
        ),
        (
            "PUT",
            &[
                (
                    "user-agent",
                    "WebDAVFS/3.0.0 (03008000) Darwin/23.2.0 (arm64)",
                ),
                ("accept", "*/*"),
            ],
        ),
        (
            "PUT",
            &[("user-agent", "Microsoft-WebDAV-MiniRedir/10.0.22000")],
        ),
        // Word 2016
        (
            "PUT",
            &[
                ("user-agent", "Microsoft Office Word 2014"),
                ("lock-token", "<opaquelocktoken:1>"),
            ],
        ),
        // Nextcloud
        (
            "PUT",
            &[
                ("user-agent", "Mozilla/5.0 (Linux) mirall/3.7.3"),
                ("accept", "*/*"),
                ("x-oc-mtime", "1795375637"),
            ],
        ),
    ];

    const NOT_HEARD: [Head; 9] = [
        ("PUT", &[]),
        ("PUT", &[("user-agent", "curl/8.5.0"), ("accept", "*/*")]),
        ("PUT", &[("if-match", "*"), ("timeout", "30")]),
        ("PUT", &[("user-agent", "neon")]),
        (
            "POST",
            &[
                (
                    "user-agent",
                    "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0",
                ),
                (
                    "accept",
                    "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
                ),
                ("content-type", "multipart/form-data; boundary=x"),
            ],
        ),
        (
            "PUT",
            &[
                ("accept", "application/json, text/plain, */*"),
                ("user-agent", "axios/1.7.7"),
            ],
        ),
        ("GET", &[("accept", "*/*")]),
        (
            "POST",
            &[
                ("content-type", "application/grpc"),
                ("destination", "mars"),
                ("depth", "3"),
            ],
        ),
        (
            "POST",
            &[
                ("content-type", "application/json"),
                ("connect-protocol-version", "1"),
                ("overwrite", "true"),
                ("accept", "application/xml"),
            ],
        ),
    ];

    fn parts((method, headers): Head) -> Parts {
        let mut request = Request::builder().method(method);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    #[test]
    fn clients_of_webdav_are_heard_and_no_others() {
        let heads = HEARD.map(|head| (head, true));
        let heads = heads.into_iter().chain(NOT_HEARD.map(|head| (head, false)));
        for (head, is_heard) in heads {
            let parts = parts(head);
            let mut heard = None;
            // It is called for every request.
            let counted = allocation_counter::measure(|| {
                heard = Some(Dav::default().hears(&parts));
            });
            assert_eq!(heard, Some(is_heard), "{head:?}");
            assert_eq!(counted.count_total, 0, "{head:?}");
        }
    }

    proptest! {
        #[test]
        fn any_refusal_is_well_formed_and_says_what_json_says(
            limit: u64,
            used: u64,
            required: u64,
            temporary: bool,
            scope: String,
            cause in prop::sample::select(vec![
                Cause::DiskFull,
                Cause::QuotaExceeded,
                Cause::DatabaseFull,
                Cause::CollectionFull,
            ]),
        ) {
            let refusal = Refusal::from(Fault::new(cause, Resource::Objects))
                .with_figures(Figures { limit, used, required })
                .with_temporary(temporary)
                .with_scope(Scope::from(scope));
            let (conditions, ours) = read(&xml(&refusal));
            prop_assert_eq!(conditions.len(), 1);
            prop_assert_eq!(ours, json(&refusal));
        }
    }
}
