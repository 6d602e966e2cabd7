//! Which remote procedure calls are guarded, and how they are refused.

use std::sync::Arc;

use http::request;

use crate::{config::ConfigError, layer::StorageGuardLayer, protocol::Select, refusal::Grpc};

/// Settings for gRPC, gRPC-Web and Connect.
impl<Q, P> StorageGuardLayer<Q, P> {
    /// Adds calls that write: `package.Service/Method` for one, `package.Service` for all of a service. These are
    /// guarded, and no other call is ever refused. For gRPC, gRPC-Web and Connect: each of their calls is a POST, so
    /// the method does not identify those that write. Calls added earlier are kept.
    ///
    /// A call is a POST with the content type of a call, to a path such as `/package.Service/Method`. A client can send
    /// that to any handler. If handlers of plain HTTP behind the same layer accept a POST at such a path, give them a
    /// layer of their own. A clone made before the calls were added will do.
    ///
    /// Defaults to none: then a call is guarded like any POST, including calls that only read. If
    /// [`Self::applies_when`] is set, that decides instead.
    ///
    /// # Errors
    ///
    /// If a name does not have that form.
    pub fn calls<T: AsRef<str>>(
        self,
        names: impl IntoIterator<Item = T>,
    ) -> Result<Self, ConfigError> {
        let mut calls = Calls::default();
        for name in names {
            calls.name(name.as_ref())?;
        }
        if calls.0.is_empty() {
            return Ok(self);
        }
        Ok(self.set(|http| http.applies.selects.push(Arc::new(calls))))
    }

    /// Sets how [`Grpc`] answers.
    ///
    /// Defaults to [`Grpc::default`].
    pub fn grpc(self, grpc: Grpc) -> Self {
        self.set_answers(|answers| answers.set_grpc(grpc))
    }
}

/// The calls that are guarded: a service, and one of its methods or all.
#[derive(Default)]
struct Calls(Vec<(Box<str>, Option<Box<str>>)>);

impl Calls {
    fn name(&mut self, name: &str) -> Result<(), ConfigError> {
        let plain = name.strip_prefix('/').unwrap_or(name);
        let (service, method) = match plain.split_once('/') {
            Some((service, method)) => (service, Some(method)),
            None => (plain, None),
        };
        if !service.split('.').all(is_identifier) || method.is_some_and(|name| !is_identifier(name))
        {
            return Err(ConfigError::Call(name.to_owned()));
        }
        self.0.push((service.into(), method.map(Into::into)));
        Ok(())
    }

    /// Whether a call of this path is guarded. None if the path is not a call's: a client chooses the content type,
    /// and could use it to bypass the guard.
    fn guard(&self, path: &str) -> Option<bool> {
        let (service, method) = path.strip_prefix('/')?.split_once('/')?;
        if !is_identifier(method) {
            return None;
        }
        let mut is_known = service.contains('.') && service.split('.').all(is_identifier);
        for (named, methods) in &self.0 {
            if **named == *service {
                match methods {
                    None => return Some(true),
                    Some(named) if **named == *method => return Some(true),
                    Some(_) => is_known = true,
                }
            }
        }
        is_known.then_some(false)
    }
}

impl Select for Calls {
    fn guards(&self, head: &request::Parts) -> Option<bool> {
        self.guard(head.uri.path())
    }
}

/// An identifier of the protobuf language.
fn is_identifier(name: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    name.bytes().all(is_word) && !name.is_empty() && !name.as_bytes()[0].is_ascii_digit()
}

#[cfg(test)]
mod tests {
    use http::{Method, Request, header::CONTENT_TYPE};

    use super::*;
    use crate::refusal::Asked;

    #[test]
    fn calls_are_named_by_service_or_method() {
        let mut calls = Calls::default();
        calls.name("upload.v1.Uploads/Put").unwrap();
        calls.name("/Plain").unwrap();
        calls.name("Mixed/Write").unwrap();
        for (path, guard) in [
            ("/upload.v1.Uploads/Put", Some(true)),
            ("/upload.v1.Uploads/PutSmall", Some(false)),
            ("/grpc.health.v1.Health/Check", Some(false)),
            ("/Plain/Anything", Some(true)),
            ("/Mixed/Write", Some(true)),
            ("/Mixed/Read", Some(false)),
            // These are not calls, whatever their content type is.
            ("/PlainToo/Anything", None),
            ("/files/a", None),
            ("/files/a.b", None),
            ("/v1.0/files", None),
            ("/a.b/c/d", None),
            ("/a..b/c", None),
            ("/upload.v1.Uploads/", None),
            ("/upload.v1.Uploads", None),
            ("/", None),
        ] {
            assert_eq!(calls.guard(path), guard, "{path:?}");
        }
        for name in [
            "",
            "/",
            "a/",
            "a/b/c",
            "a b",
            "a/b?c",
            "a..b",
            "upload.v1.Uploads/*",
        ] {
            let refused = Calls::default().name(name);
            assert_eq!(refused, Err(ConfigError::Call(name.to_owned())));
        }
    }

    /// A client cannot exempt a request by the path alone.
    #[test]
    fn a_path_of_a_call_exempts_nothing_without_its_content_type() {
        let layer = StorageGuardLayer::quota_only(crate::quota::NoQuota);
        let layer = layer.calls(["upload.v1.Uploads/Put"]).unwrap();
        for (method, content_type, path, applies) in [
            (Method::POST, "application/grpc", "Put", true),
            (Method::POST, "application/grpc", "Get", false),
            (Method::PUT, "application/grpc", "Get", true),
            (Method::POST, "application/json", "Get", true),
        ] {
            let request = Request::builder()
                .method(method)
                .uri(format!("/upload.v1.Uploads/{path}"))
                .header(CONTENT_TYPE, content_type);
            let (head, ()) = request.body(()).unwrap().into_parts();
            let to = layer
                .http_settings()
                .applies
                .to(&head, &Asked::from(&head), false, || false);
            assert_eq!(to, applies, "{content_type} {path}");
        }
    }

    #[test]
    fn calls_that_are_named_in_turn_are_all_guarded() {
        let layer = StorageGuardLayer::quota_only(crate::quota::NoQuota)
            .calls(["a.B/Put"])
            .unwrap()
            .calls(["a.B/Post", "C"])
            .unwrap();
        for (path, guards) in [
            ("/a.B/Put", Some(true)),
            ("/a.B/Post", Some(true)),
            ("/a.B/Get", Some(false)),
            ("/C/Any", Some(true)),
            ("/D/Any", None),
        ] {
            let request = Request::post(path).header(CONTENT_TYPE, "application/grpc");
            let (head, ()) = request.body(()).unwrap().into_parts();
            assert_eq!(
                layer.http_settings().applies.select(&head),
                guards,
                "{path}"
            );
        }
    }
}
