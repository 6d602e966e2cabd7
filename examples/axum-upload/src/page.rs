//! The page for browsers, which works without scripts.
//!
//! Markup and words are here, and in the files of the folder `page`. Its script asks for them again, and merges what has changed.

use std::fmt::{self, Display, Write as _};

use axum::{
    Extension, Form,
    body::{Body, Bytes},
    extract::State,
    http::{
        HeaderMap, HeaderName, HeaderValue, StatusCode,
        header::{
            ACCEPT, AUTHORIZATION, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, COOKIE,
            SET_COOKIE, WWW_AUTHENTICATE,
        },
    },
    response::{IntoResponse, Redirect, Response},
    routing::{Router, get, post},
};
use bytesize::ByteSize;
use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use serde::Deserialize;
use tower_storage_guard::{
    axum::Failure,
    fault::Resource,
    refusal::{Asked, Refusal, RefusalKind},
};

use example_support::store::{Entry, Folder, Name, Store};

use crate::room::{self, user_of};

/// Nothing of another site, and nothing in the markup itself, is loaded or run.
const POLICY: &str = "default-src 'none'; base-uri 'none'; connect-src 'self'; form-action 'self'; frame-ancestors 'none'; \
                      img-src 'self'; script-src 'self'; style-src 'self'";
/// Clients without a browser sign in with each request.
const CHALLENGE: [(HeaderName, &str); 1] = [(WWW_AUTHENTICATE, "Bearer")];
/// The cookie of a browser that has signed in: its token. Behind a proxy that speaks TLS, it should be `Secure` too.
const COOKIE_NAME: &str = "axum-upload-token";

/// What a browser gets before it has signed in.
pub(crate) fn routes() -> Router<Store> {
    let file =
        |media_type, content| get(move || async move { ([(CONTENT_TYPE, media_type)], content) });
    Router::new()
        .route("/", get(index))
        .route("/sign-in", post(sign_in))
        .route("/sign-out", post(sign_out))
        .route(
            "/page.css",
            file("text/css; charset=utf-8", include_str!("page/page.css")),
        )
        .route(
            "/page.js",
            file(
                "text/javascript; charset=utf-8",
                include_str!("page/page.js"),
            ),
        )
        .route(
            "/icon.svg",
            file("image/svg+xml", include_str!("page/icon.svg")),
        )
}

/// The folder of a client: by its Authorization, or by the cookie of a browser that has signed in.
pub(crate) fn folder_of<'s>(store: &'s Store, headers: &HeaderMap) -> Option<&'s Folder> {
    let authorization = headers.get(AUTHORIZATION);
    let authorization = authorization.and_then(|value| value.to_str().ok());
    match authorization {
        Some(_) => store.folder(authorization),
        None => store.folder(signed_in(headers).as_deref()),
    }
}

/// The Authorization that the cookie stands for.
fn signed_in(headers: &HeaderMap) -> Option<String> {
    let cookies = headers.get_all(COOKIE).iter();
    let mut cookies = cookies
        .filter_map(|line| line.to_str().ok())
        .flat_map(|line| line.split("; "));
    let token = cookies.find_map(|cookie| cookie.strip_prefix(COOKIE_NAME)?.strip_prefix('='))?;
    Some(bearer(&percent_decode_str(token).decode_utf8().ok()?))
}

fn bearer(token: &str) -> String {
    format!("Bearer {token}")
}

#[derive(Deserialize)]
struct SignIn {
    token: String,
}

async fn sign_in(State(store): State<Store>, Form(SignIn { token }): Form<SignIn>) -> Response {
    let token = token.trim();
    if store.folder(Some(&bearer(token))).is_none() {
        let error = "There is no user with this token. Check it, and try again.";
        let page = sign_in_page(StatusCode::UNAUTHORIZED, Some(error));
        return (CHALLENGE, page).into_response();
    }
    let token = utf8_percent_encode(token, NON_ALPHANUMERIC);
    leading_back(&format!(
        "{COOKIE_NAME}={token}; Path=/; HttpOnly; SameSite=Lax"
    ))
}

async fn sign_out() -> Response {
    leading_back(&format!(
        "{COOKIE_NAME}=; Path=/; HttpOnly; SameSite=Lax; Max-Age=0"
    ))
}

fn leading_back(cookie: &str) -> Response {
    ([(SET_COOKIE, cookie)], Redirect::to("/")).into_response()
}

/// The answer to a client that is not known.
pub(crate) fn stranger(headers: &HeaderMap) -> Response {
    let answer = match accepts_html(headers) {
        true => sign_in_page(StatusCode::UNAUTHORIZED, None),
        false => (StatusCode::UNAUTHORIZED, "who are you?").into_response(),
    };
    (CHALLENGE, answer).into_response()
}

fn sign_in_page(status: StatusCode, error: Option<&str>) -> Response {
    let (invalid, error) = match error {
        Some(error) => (
            r#"aria-invalid="true" aria-describedby="wrong""#,
            format!(r#"<p id="wrong" class="refused" role="alert">{error}</p>"#),
        ),
        None => ("", String::new()),
    };
    let main = format!(
        include_str!("page/sign-in.html"),
        invalid = invalid,
        error = error
    );
    document(status, "Sign in", &main).map(Body::from)
}

async fn index(State(store): State<Store>, headers: HeaderMap) -> Result<Response, Failure> {
    let Some(folder) = folder_of(&store, &headers) else {
        return Ok(sign_in_page(StatusCode::OK, None));
    };
    let files = folder.list().await?;
    let size: u64 = files.iter().map(|file| file.size).sum();
    let total = match files.len() {
        0 => String::new(),
        1 => format!("1 file, {}", ByteSize(size)),
        count => format!("{count} files, {}", ByteSize(size)),
    };
    let user = user_of(folder).and_then(|user| user.as_str().strip_prefix("user:"));
    let main = format!(
        include_str!("page/files.html"),
        user = user
            .map(|name| format!(include_str!("page/user.html"), name = Escaped(name)))
            .unwrap_or_default(),
        room = room::html(&store, folder).await?,
        total = total,
        rows = files.iter().map(row).collect::<String>(),
        empty = match files.is_empty() {
            true => include_str!("page/empty.html"),
            false => "",
        },
    );
    Ok(document(StatusCode::OK, "Files", &main).map(Body::from))
}

/// The form of a browser that runs no scripts. A DELETE, which the script sends, passes the guard; a POST to a file would not
/// pass it when the disk is full.
pub(crate) async fn delete(
    Extension(folder): Extension<Folder>,
    Extension(name): Extension<Name>,
) -> Result<Redirect, Failure> {
    folder.delete(&name).await?;
    Ok(Redirect::to("/"))
}

fn row(file: &Entry) -> String {
    format!(
        include_str!("page/file.html"),
        id = utf8_percent_encode(&file.name, NON_ALPHANUMERIC),
        name = Escaped(&file.name),
        bytes = file.size,
        size = ByteSize(file.size),
    )
}

/// A refusal for people: why, what to do about it, and a way back. Other clients get the crate's own answers.
pub(crate) fn refusal(refusal: &Refusal, asked: &Asked) -> Option<Response<Bytes>> {
    asked.accept().any(is_html).then(|| {
        let (why, advice) = explain(refusal);
        refused(refusal.status(), &why, advice).map(Bytes::from)
    })
}

fn explain(refusal: &Refusal) -> (String, &'static str) {
    let message = refusal.message();
    let why = match (refusal.figures(), refusal.kind()) {
        (Some(figures), RefusalKind::Storage(fault)) if fault.resource == Resource::Bytes => {
            let left = figures.limit.saturating_sub(figures.used);
            let [required, left, limit] = [figures.required, left, figures.limit].map(ByteSize);
            format!("{message}: {required} more are needed, and {left} of {limit} are left.")
        }
        _ => format!("{message}."),
    };
    let advice = match refusal.kind() {
        RefusalKind::Storage(_) if refusal.is_temporary() => {
            "Delete files that are no longer needed, or choose smaller ones."
        }
        RefusalKind::Storage(_) | RefusalKind::TooLarge => {
            "That can never be stored here: choose smaller files."
        }
        _ if refusal.is_temporary() => "Try again in a moment.",
        _ => "",
    };
    (why, advice)
}

/// An error that is not a refusal: a page for people, and text for other clients.
pub(crate) fn failed(headers: &HeaderMap, status: StatusCode, error: &dyn Display) -> Response {
    let mut error = error.to_string();
    if !accepts_html(headers) {
        return (status, error).into_response();
    }
    if let Some(first) = error.get_mut(..1) {
        first.make_ascii_uppercase();
    }
    refused(status, &format!("{error}."), "").map(Body::from)
}

pub(crate) fn accepts_html(headers: &HeaderMap) -> bool {
    headers.get_all(ACCEPT).iter().any(is_html)
}

fn is_html(accepted: &HeaderValue) -> bool {
    accepted
        .to_str()
        .is_ok_and(|value| value.contains("text/html"))
}

fn refused(status: StatusCode, why: &str, advice: &str) -> Response<String> {
    let main = format!(
        include_str!("page/refused.html"),
        why = Escaped(why),
        advice = Escaped(advice)
    );
    document(status, "Not stored", &main)
}

fn document(status: StatusCode, title: &str, main: &str) -> Response<String> {
    let mut response = Response::new(format!(
        include_str!("page/document.html"),
        title = title,
        main = main
    ));
    *response.status_mut() = status;
    for (name, value) in [
        (CONTENT_TYPE, "text/html; charset=utf-8"),
        (CONTENT_SECURITY_POLICY, POLICY),
        // Nothing of it is left in the browser once its user has signed out.
        (CACHE_CONTROL, "no-store"),
    ] {
        response
            .headers_mut()
            .insert(name, HeaderValue::from_static(value));
    }
    response
}

/// Text in HTML, in an element or in a quoted attribute.
struct Escaped<'a>(&'a str);

impl Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|character| match character {
            '&' => f.write_str("&amp;"),
            '<' => f.write_str("&lt;"),
            '>' => f.write_str("&gt;"),
            '"' => f.write_str("&quot;"),
            '\'' => f.write_str("&#39;"),
            _ => f.write_char(character),
        })
    }
}
