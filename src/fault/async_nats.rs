//! `async-nats`: JetStream, with the key-value and object stores that are made of it.
//!
//! The codes are those of `errors.json` in the sources of nats-server; what each is used for was read there too
//! (`stream.go`, `jetstream.go`, `jetstream_api.go`), and seen with nats-server 2.9.
//!
//! | error code | cause |
//! |---|---|
//! | 10077 "maximum bytes exceeded", "maximum messages exceeded": a stream's own limit, with `discard: new` | `CollectionFull` |
//! | 10002 resource limits exceeded for account | `QuotaExceeded` |
//! | 10023 insufficient resources, of a publish: the server's `max_file_store` or `max_memory_store` | `DatabaseFull` |
//! | 10047 insufficient storage resources: the server cannot reserve the space that a stream asks for | `DatabaseFull` |
//! | 10012, 10049, 10062, 10069, 10077, 10104 ending in ": no space left on device" | `DiskFull` |
//! | the same ending in ": disk quota exceeded" | `QuotaExceeded` |
//!
//! Not storage:
//! - 10023 of anything but a publish: the server also returns it when it has too many API requests to process.
//! - 10028 insufficient memory resources, 10026 and 10027 too many consumers and streams.
//! - 10054 message size exceeds maximum, 10122 and 10113 `max_bytes` that the account does not allow: making room
//!   does not help.
//! - 10077 "maximum messages per subject exceeded": streams refuse duplicates that way.
//! - 10049 and 10012 "error creating store": the server keeps the reason in its log.
//! - No reply at all, and 10076 not enabled: nats-server 2.9 hangs when the disk under a stream fills up, other
//!   versions turn JetStream off. Neither reports a reason.

use std::error::Error;

use super::{
    Cause, Fault, Resource, Verdict,
    library::{Library, of_type},
};

/// Judges the errors of one version.
macro_rules! version {
    ($async_nats:ident) => {
        use super::*;

        use ::$async_nats::jetstream::{
            self,
            context::{CreateStreamError, CreateStreamErrorKind, PublishError},
            stream::{
                ConsumerCreateStrictError, ConsumerCreateStrictErrorKind, ConsumerError,
                ConsumerErrorKind, ConsumerUpdateError, ConsumerUpdateErrorKind,
            },
        };

        pub(in crate::fault) const LIBRARY: Library = Library {
            look,
            // The inner errors can only be obtained by copying them out: `look` opens them.
            inside: |_| None,
            types: &[
                of_type::<PublishError>,
                of_type::<CreateStreamError>,
                of_type::<ConsumerError>,
                of_type::<jetstream::Error>,
            ],
        };

        fn look(error: &(dyn Error + 'static)) -> Option<Verdict> {
            if let Some(error) = error.downcast_ref::<PublishError>() {
                let refused: &jetstream::Error = error.source()?.downcast_ref()?;
                judge(&refused.to_string(), Of::Publish)
            } else if let Some(refused) = error.downcast_ref::<jetstream::Error>() {
                judge(&refused.to_string(), Of::Anything)
            } else if let Some(refused) = hidden(error) {
                judge(&refused.to_string(), Of::Anything)
            } else {
                in_object_store(error)
            }
        }

        /// The server's error in an error kind that `source()` does not lead to.
        fn hidden(error: &(dyn Error + 'static)) -> Option<jetstream::Error> {
            if let Some(error) = error.downcast_ref::<CreateStreamError>()
                && let CreateStreamErrorKind::JetStream(refused) = error.kind()
            {
                Some(refused)
            } else if let Some(error) = error.downcast_ref::<ConsumerError>()
                && let ConsumerErrorKind::JetStream(refused) = error.kind()
            {
                Some(refused)
            } else if let Some(error) = error.downcast_ref::<ConsumerCreateStrictError>()
                && let ConsumerCreateStrictErrorKind::JetStream(refused) = error.kind()
            {
                Some(refused)
            } else if let Some(error) = error.downcast_ref::<ConsumerUpdateError>()
                && let ConsumerUpdateErrorKind::JetStream(refused) = error.kind()
            {
                Some(refused)
            } else {
                None
            }
        }

        /// When an object is put, only the text of a failed publish is kept, in an error without a type of its own.
        /// (Naming the type around it needs a feature of `async-nats` that selects a cryptography backend, which this crate
        /// must not select for its users.)
        fn in_object_store(error: &(dyn Error + 'static)) -> Option<Verdict> {
            if error.source().is_some() {
                return None;
            }
            let text = error.to_string();
            let refused = text
                .strip_prefix("failed getting chunk ack: publish failed: ")
                .or_else(|| {
                    text.strip_prefix("failed ack from metadata publish: publish failed: ")
                })?;
            judge(refused, Of::Publish)
        }

        #[cfg(test)]
        mod tests {
            tests!($async_nats);
        }
    };
}

/// The operation that the server refused.
#[derive(Clone, Copy, PartialEq)]
enum Of {
    Publish,
    Anything,
}

/// Judges the server's error by its text, "description (code 503, error code 10077)", because the library does
/// not expose the description in any other way.
fn judge(refused: &str, of: Of) -> Option<Verdict> {
    let (description, codes) = refused.strip_suffix(')')?.rsplit_once(" (code ")?;
    let (_, code) = codes.split_once(", error code ")?;
    match (code, description) {
        ("10002", _) => Some(QUOTA_EXCEEDED),
        ("10047", _) => Some(STORE_FULL),
        ("10023", _) if of == Of::Publish => Some(STORE_FULL),
        ("10077", "maximum bytes exceeded") => Some(stream_full(Resource::Bytes)),
        ("10077", "maximum messages exceeded") => Some(stream_full(Resource::Objects)),
        // Messages that end in an error of the server's operating system, as Go words it.
        ("10012" | "10049" | "10062" | "10069" | "10077" | "10104", _) => {
            if description.ends_with(": no space left on device") {
                Some(Verdict::Fault(Fault::DISK_FULL))
            } else if description.ends_with(": disk quota exceeded") {
                Some(QUOTA_EXCEEDED)
            } else {
                None
            }
        }
        _ => None,
    }
}

const QUOTA_EXCEEDED: Verdict = Verdict::Fault(Fault::new(Cause::QuotaExceeded, Resource::Bytes));
const STORE_FULL: Verdict = Verdict::Fault(Fault::new(Cause::DatabaseFull, Resource::Bytes));

const fn stream_full(resource: Resource) -> Verdict {
    Verdict::Fault(Fault::new(Cause::CollectionFull, resource))
}

#[cfg(test)]
macro_rules! tests {
    ($async_nats:ident) => {
        use ::$async_nats::jetstream::context::PublishErrorKind;

        use super::*;

        /// Formatted as the server sends it.
        fn refused(code: u64, description: &str) -> jetstream::Error {
            serde_json::from_value(
                serde_json::json!({ "code": 503, "err_code": code, "description": description }),
            )
            .unwrap()
        }

        fn publish(code: u64, description: &str) -> PublishError {
            PublishError::with_source(PublishErrorKind::Other, refused(code, description))
        }

        const DISK_FULL: Verdict = Verdict::Fault(Fault::DISK_FULL);

        #[test]
        fn codes_and_descriptions_decide() {
            let on_disk = |errno| format!("write /data/streams/s/msgs/1.blk: {errno}");
            for (code, description, verdict) in [
                (
                    10002,
                    "resource limits exceeded for account",
                    Some(QUOTA_EXCEEDED),
                ),
                (
                    10047,
                    "insufficient storage resources available",
                    Some(STORE_FULL),
                ),
                (
                    10077,
                    "maximum bytes exceeded",
                    Some(stream_full(Resource::Bytes)),
                ),
                (
                    10077,
                    "maximum messages exceeded",
                    Some(stream_full(Resource::Objects)),
                ),
                (10077, &on_disk("no space left on device"), Some(DISK_FULL)),
                (10104, &on_disk("no space left on device"), Some(DISK_FULL)),
                (10077, &on_disk("disk quota exceeded"), Some(QUOTA_EXCEEDED)),
                (10077, &on_disk("permission denied"), None),
                (10077, "maximum messages per subject exceeded", None),
                (10077, "no space left on device: not so", None),
                (10012, "error creating store for consumer", None),
                (10028, "insufficient memory resources available", None),
                (10054, "message size exceeds maximum allowed", None),
                (
                    10122,
                    "stream max bytes exceeds account limit max stream bytes",
                    None,
                ),
                // The description of another code.
                (10052, &on_disk("no space left on device"), None),
                (10060, "maximum bytes exceeded", None),
            ] {
                for error in [
                    &refused(code, description) as &(dyn Error + 'static),
                    &publish(code, description),
                    &CreateStreamError::new(CreateStreamErrorKind::JetStream(refused(
                        code,
                        description,
                    ))),
                    &ConsumerError::new(ConsumerErrorKind::JetStream(refused(code, description))),
                ] {
                    assert_eq!(look(error), verdict, "{error}");
                }
            }
        }

        #[test]
        fn too_few_resources_are_a_fault_of_a_publish_alone() {
            let description = "insufficient resources";
            assert_eq!(look(&publish(10023, description)), Some(STORE_FULL));
            assert_eq!(look(&refused(10023, description)), None);
            let stream = CreateStreamErrorKind::JetStream(refused(10023, description));
            assert_eq!(look(&CreateStreamError::new(stream)), None);
        }

        #[test]
        fn the_text_of_an_object_store_is_matched_completely() {
            let says = |text: &str| {
                let error: tower::BoxError = text.into();
                look(&*error)
            };
            let why = "maximum bytes exceeded (code 503, error code 10077)";
            let full = Some(stream_full(Resource::Bytes));
            assert_eq!(
                says(&format!("failed getting chunk ack: publish failed: {why}")),
                full
            );
            assert_eq!(
                says(&format!(
                    "failed ack from metadata publish: publish failed: {why}"
                )),
                full
            );
            assert_eq!(says(why), None);
            assert_eq!(says(&format!("publish failed: {why}")), None);
            assert_eq!(
                says(&format!("failed getting chunk ack: publish failed: {why}.")),
                None
            );
            assert_eq!(
                says("failed getting chunk ack: publish failed: timed out"),
                None
            );
        }
    };
}

#[cfg(feature = "async-nats049")]
pub(super) mod async_nats049 {
    version!(async_nats049);
}

#[cfg(feature = "async-nats046")]
pub(super) mod async_nats046 {
    version!(async_nats046);
}

#[cfg(feature = "async-nats051")]
pub(super) mod async_nats051 {
    version!(async_nats051);
}
