//! Events as [`tracing`] events, with feature `tracing`.
//!
//! ```
//! use tower_storage_guard::{StorageGuardLayer, Volume, tracing::Tracing};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let volume = Volume::open(std::env::temp_dir())?.named("uploads");
//! let guard = StorageGuardLayer::new(volume).observer(Tracing::new());
//! # drop(guard);
//! # Ok(())
//! # }
//! ```
//!
//! Each event has the target `storage_guard`, and is inside of the request's span if there is one. Its name is in the field `event`,
//! so that logs can be searched by it whatever their text is. Names and fields are stable.
//!
//! | `event` | level | fields | what |
//! |---|---|---|---|
//! | `admitted` | TRACE | `volume`, `bytes`, `objects`, `waited_ms` | [`Event::Admitted`] |
//! | `refused` | DEBUG by a quota, otherwise WARN | `volume`, `cause`, `resource`, `needed`, `scope` | [`Event::Refused`] |
//! | `cut` | the same | the same, `received` | [`Event::Cut`] |
//! | `stalled` | DEBUG | `volume`, `received` | [`Event::Stalled`] |
//! | `settled` | TRACE | `volume`, `reserved`, `stored` | [`Event::Settled`] |
//! | `released` | TRACE | `volume`, `reserved`, `received` | [`Event::Released`] |
//! | `drained` | TRACE | `bytes` | [`Event::Drained`] |
//! | `fault` | DEBUG of a quota, otherwise WARN | `cause`, `resource`, `error` | [`Event::Fault`] |
//! | `suspect` | WARN | `error` | [`Event::Suspect`] |
//! | `probed` | TRACE | `volume`, `total`, `available`, `claimed`, `headroom`, `took_ms` | [`Event::Probed`] |
//! | `full` | WARN | `volume`, `resource` | [`Event::Full`] |
//! | `resumed` | WARN | `volume` | [`Event::Resumed`] |
//! | `horizon` | WARN | `volume`, `horizon_s`, `full_in_s` | [`Event::Horizon`], unless the volume is full |
//! | `stale` | ERROR | `volume` | [`Event::Stale`] |
//! | `moved` | ERROR | `volume` | [`Event::Moved`] |
//! | `fresh` | WARN | `volume` | [`Event::Fresh`] |
//! | `soft_limit` | DEBUG | `resource`, `limit`, `used`, `grace_s`, `scope` | [`Event::SoftLimit`] |
//! | `quota_slow` | WARN | `took_ms` | [`Event::QuotaSlow`] |
//! | `quota_away` | ERROR | `error` | [`Event::QuotaAway`] |
//! | `quota_back` | WARN | `after_s` | [`Event::QuotaBack`] |
//! | `store_answered` | TRACE | `operation`, `took_ms`, `error` | [`Event::StoreAnswered`] |
//! | `store_away` | ERROR | `error` | [`Event::StoreAway`] |
//! | `store_back` | WARN | `after_s` | [`Event::StoreBack`] |
//! | `journal_away` | ERROR | | [`Event::JournalAway`] |
//! | `journal_back` | WARN | `after_s` | [`Event::JournalBack`] |
//! | `leased` | TRACE | `is_hit` | [`Event::Leased`] |
//!
//! `bytes`, `reserved`, `stored`, `received`, `total`, `available`, `claimed` and `headroom` are bytes. `needed`, `limit` and `used` are
//! bytes or objects, as `resource` says. `volume` is the [name](crate::Volume::named) of the volume.
//!
//! # What is left out
//!
//! `scope` is there only if it is [disclosed](crate::Scope::is_disclosed), so no more than what the client is told. The text of an
//! error may name paths or hosts of the server, and what a client has sent: `error` is there only
//! [on demand](Tracing::with_errors).

use std::{error::Error, time::Duration};

use ::tracing::{Level, event};

use crate::{
    cause::{Cause, Fault},
    observer::{Event, Observer},
    refused::{Internal, Reason},
};

const TARGET: &str = "storage_guard";

/// Sends an event.
macro_rules! send {
    ($level:ident, $event:literal, $text:literal $(, $field:ident = $value:expr)* $(,)?) => {
        event!(target: TARGET, Level::$level, event = $event, $($field = $value,)* $text)
    };
}

/// Sends an event at the level of its reason.
macro_rules! send_by {
    ($reason:expr, $($event:tt)+) => {
        match level_of($reason) {
            Level::DEBUG => send!(DEBUG, $($event)+),
            _ => send!(WARN, $($event)+),
        }
    };
}

/// An observer that sends `tracing` events. See the [module](self) for their names, levels and fields.
///
/// Give it to [`Guard::observer`](crate::Guard::observer) or [`StorageGuardLayer::observer`](crate::StorageGuardLayer::observer).
#[derive(Clone, Copy, Debug, Default)]
#[must_use]
pub struct Tracing {
    errors: bool,
}

impl Tracing {
    /// Sends no texts of errors.
    pub const fn new() -> Self {
        Self { errors: false }
    }

    /// Sends the texts of errors too.
    ///
    /// Use it where the logs are as well guarded as the server: such a text may name its paths, or repeat what a client has sent.
    pub const fn with_errors(self) -> Self {
        Self { errors: true }
    }

    fn error<'a>(
        self,
        error: Option<&'a (dyn Error + 'static)>,
    ) -> Option<&'a (dyn Error + 'static)> {
        error.filter(|_| self.errors)
    }
}

impl Observer for Tracing {
    fn observe(&self, event: &Event<'_>) {
        match *event {
            Event::Admitted { .. }
            | Event::Refused { .. }
            | Event::Cut { .. }
            | Event::Stalled { .. } => of_demand(event),
            Event::Settled { .. } | Event::Released { .. } | Event::Drained { .. } => of_end(event),
            Event::Fault { fault, error } => {
                let (cause, resource) = (fault.cause.reason(), fault.resource.as_str());
                send_by!(
                    Reason::Storage(fault),
                    "fault",
                    "the service has failed for want of storage",
                    cause = cause,
                    resource = resource,
                    error = self.error(error)
                );
            }
            Event::Suspect { error } => send!(
                WARN,
                "suspect",
                "an error that was not classified names full storage",
                error = self.error(Some(error))
            ),
            Event::QuotaSlow { .. }
            | Event::QuotaAway { .. }
            | Event::QuotaBack { .. }
            | Event::SoftLimit { .. } => self.of_quota(event),
            Event::Probed { .. }
            | Event::Full { .. }
            | Event::Resumed { .. }
            | Event::Horizon { .. }
            | Event::Stale { .. }
            | Event::Moved { .. }
            | Event::Fresh { .. } => of_volume(event),
            Event::StoreAnswered { .. }
            | Event::StoreAway { .. }
            | Event::StoreBack { .. }
            | Event::JournalAway
            | Event::JournalBack { .. }
            | Event::Leased { .. } => self.of_store(event),
        }
    }
}

impl Tracing {
    /// What has become of the quota source.
    fn of_quota(self, event: &Event<'_>) {
        match *event {
            Event::QuotaSlow { took } => send!(
                WARN,
                "quota_slow",
                "the quota source answers late",
                took_ms = ms(took)
            ),
            Event::QuotaAway { error } => send!(
                ERROR,
                "quota_away",
                "the quota source does not answer",
                error = self.error(Some(error))
            ),
            Event::QuotaBack { after } => send!(
                WARN,
                "quota_back",
                "the quota source answers again",
                after_s = after.as_secs_f64()
            ),
            Event::SoftLimit {
                scope,
                resource,
                limit,
                used,
                grace,
            } => send!(
                DEBUG,
                "soft_limit",
                "a soft limit was crossed",
                resource = resource.as_str(),
                limit = limit,
                used = used,
                grace_s = grace.map(|grace| grace.as_secs_f64()),
                scope = scope.is_disclosed().then_some(scope.as_str())
            ),
            _ => {}
        }
    }

    /// What a store has answered, or a lease.
    fn of_store(self, event: &Event<'_>) {
        match *event {
            Event::StoreAnswered {
                operation,
                took,
                error,
            } => send!(
                TRACE,
                "store_answered",
                "the store of the quotas has answered",
                operation = operation,
                took_ms = ms(took),
                error = self.error(error)
            ),
            Event::StoreAway { error } => send!(
                ERROR,
                "store_away",
                "the store of the quotas fails",
                error = self.error(Some(error))
            ),
            Event::StoreBack { after } => send!(
                WARN,
                "store_back",
                "the store of the quotas answers again",
                after_s = after.as_secs_f64()
            ),
            Event::JournalAway => send!(ERROR, "journal_away", "the journal cannot be written"),
            Event::JournalBack { after } => send!(
                WARN,
                "journal_back",
                "the journal is written again",
                after_s = after.as_secs_f64()
            ),
            Event::Leased { is_hit } => send!(
                TRACE,
                "leased",
                "a lease was asked for room",
                is_hit = is_hit
            ),
            _ => {}
        }
    }
}

/// What was decided of a demand.
fn of_demand(event: &Event<'_>) {
    match *event {
        Event::Admitted {
            volume,
            reserved,
            waited,
            ..
        } => send!(
            TRACE,
            "admitted",
            "storage was reserved",
            volume = volume,
            bytes = reserved.bytes,
            objects = reserved.objects,
            waited_ms = ms(waited)
        ),
        Event::Refused {
            volume,
            reason,
            internal,
        } => send_by!(
            reason,
            "refused",
            "a request for storage was refused",
            volume = volume,
            cause = reason.as_str(),
            resource = resource_of(reason),
            needed = internal.needed(),
            scope = scope_of(internal)
        ),
        Event::Cut {
            volume,
            reason,
            internal,
            received,
            ..
        } => send_by!(
            reason,
            "cut",
            "an upload was cut for want of room",
            volume = volume,
            cause = reason.as_str(),
            resource = resource_of(reason),
            needed = internal.needed(),
            scope = scope_of(internal),
            received = received
        ),
        Event::Stalled {
            volume, received, ..
        } => send!(
            DEBUG,
            "stalled",
            "a client has stopped sending",
            volume = volume,
            received = received
        ),
        _ => {}
    }
}

/// How a reservation has ended, or the rest of a body.
fn of_end(event: &Event<'_>) {
    match *event {
        Event::Settled {
            volume,
            reserved,
            stored,
            ..
        } => send!(
            TRACE,
            "settled",
            "a reservation has ended with success",
            volume = volume,
            reserved = reserved,
            stored = stored
        ),
        Event::Released {
            volume,
            reserved,
            received,
            ..
        } => send!(
            TRACE,
            "released",
            "a reservation has ended without success",
            volume = volume,
            reserved = reserved,
            received = received
        ),
        Event::Drained { bytes } => send!(
            TRACE,
            "drained",
            "the rest of a refused request was discarded",
            bytes = bytes
        ),
        _ => {}
    }
}

/// What has become of a volume.
fn of_volume(event: &Event<'_>) {
    match *event {
        Event::Probed {
            volume,
            status,
            took,
            ..
        } => send!(
            TRACE,
            "probed",
            "a volume was read",
            volume = volume,
            total = status.total,
            available = status.available,
            claimed = status.claimed,
            headroom = status.headroom,
            took_ms = ms(took)
        ),
        Event::Full { volume, fault } => send!(
            WARN,
            "full",
            "a volume is full, and takes no writes",
            volume = volume,
            resource = fault.resource.as_str()
        ),
        Event::Resumed { volume } => send!(
            WARN,
            "resumed",
            "a volume takes writes again",
            volume = volume
        ),
        Event::Horizon {
            volume,
            horizon,
            forecast,
        } => {
            // That it is full is an event of its own.
            if let Some(left) = forecast.time_to_full().filter(|left| !left.is_zero()) {
                send!(
                    WARN,
                    "horizon",
                    "a volume will be full soon",
                    volume = volume,
                    horizon_s = horizon.as_secs_f64(),
                    full_in_s = left.as_secs_f64()
                );
            }
        }
        Event::Stale { volume } => {
            send!(ERROR, "stale", "a volume cannot be read", volume = volume)
        }
        Event::Moved { volume } => send!(
            ERROR,
            "moved",
            "a volume is no longer mounted at its path",
            volume = volume
        ),
        Event::Fresh { volume } => {
            send!(WARN, "fresh", "a volume can be read again", volume = volume)
        }
        _ => {}
    }
}

/// A user who has reached a quota is no event for an operator, and a full disk is one.
fn level_of(reason: Reason) -> Level {
    match reason {
        Reason::Storage(Fault {
            cause: Cause::QuotaExceeded | Cause::CollectionFull,
            ..
        }) => Level::DEBUG,
        _ => Level::WARN,
    }
}

fn resource_of(reason: Reason) -> Option<&'static str> {
    match reason {
        Reason::Storage(fault) => Some(fault.resource.as_str()),
        _ => None,
    }
}

fn scope_of(internal: &Internal) -> Option<&str> {
    let scope = internal.scope().filter(|scope| scope.is_disclosed());
    scope.map(|scope| scope.as_str())
}

/// In milliseconds.
fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeMap,
        io,
        sync::{Arc, Mutex},
    };

    use ::tracing::{Instrument, Subscriber, field::Visit, info_span, subscriber::set_default};
    use tracing_subscriber::{
        Layer, Registry,
        layer::{Context, SubscriberExt},
        registry::LookupSpan,
    };

    use super::*;
    use crate::{
        amount::Amount,
        cause::Resource,
        demand::Demand,
        forecast::Forecast,
        guard::Guard,
        quota::{Limits, MemoryQuota},
        refused::{Figures, Refused},
        scope::{Scope, Scopes},
        status::VolumeStatus,
    };

    /// An event: its level, its fields, and the span that it is in.
    #[derive(Clone, Debug, Default)]
    struct Seen {
        level: String,
        fields: BTreeMap<String, String>,
        span: Option<&'static str>,
    }

    impl Seen {
        fn of(&self, field: &str) -> Option<&str> {
            self.fields.get(field).map(String::as_str)
        }
    }

    impl Visit for Seen {
        fn record_debug(&mut self, field: &::tracing::field::Field, value: &dyn std::fmt::Debug) {
            let value = format!("{value:?}").trim_matches('"').to_owned();
            self.fields.insert(field.name().to_owned(), value);
        }
    }

    #[derive(Clone, Default)]
    struct All(Arc<Mutex<Vec<Seen>>>);

    impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for All {
        fn on_event(&self, event: &::tracing::Event<'_>, context: Context<'_, S>) {
            let mut seen = Seen {
                level: event.metadata().level().to_string(),
                span: context.lookup_current().map(|span| span.name()),
                ..Seen::default()
            };
            assert_eq!(event.metadata().target(), TARGET);
            event.record(&mut seen);
            self.0.lock().unwrap().push(seen);
        }
    }

    /// What the observer sends for these events.
    fn sent(observer: Tracing, events: &[Event<'_>]) -> Vec<Seen> {
        let all = All::default();
        let set = set_default(Registry::default().with(all.clone()));
        events.iter().for_each(|event| observer.observe(event));
        drop(set);
        Arc::into_inner(all.0).map_or_else(Vec::new, |all| all.into_inner().unwrap())
    }

    /// One of each event. The match has no other arm, so that one that is added is missed here.
    fn each(look: impl FnOnce(&[Event<'_>])) {
        let error = io::Error::other("/srv/files: no space left on device");
        let error = &error as &(dyn Error + 'static);
        let volume = Some("files");
        let scopes = &Scopes::from("user:42");
        let scope = Scope::from("user:42");
        let figures = Figures::new(10, 5, 6);
        let quota = Fault::new(Cause::QuotaExceeded, Resource::Bytes);
        let by_quota = Refused::from(quota).with_figures(figures, Scope::from("user:42"));
        let (reason, internal) = (by_quota.reason(), by_quota.internal());
        let status = &VolumeStatus {
            total: 4,
            available: 3,
            claimed: 2,
            settling: 0,
            headroom: 1,
            inodes_total: None,
            inodes_available: None,
            objects_claimed: 0,
            waiting: 0,
            age: Duration::ZERO,
            is_stale: false,
            is_full: false,
        };
        let (took, fault) = (Duration::from_millis(1_500), Fault::DISK_FULL);
        let (waited, reserved, received, volume_name) = (took, 9, 7, "files");
        let events = [
            Event::Admitted {
                volume,
                scopes,
                reserved: Amount::new(9, 1),
                waited,
            },
            Event::Refused {
                volume,
                reason,
                internal,
            },
            Event::Cut {
                volume,
                scopes,
                reason,
                internal,
                received,
            },
            Event::Stalled {
                volume,
                scopes,
                received,
            },
            Event::Settled {
                volume,
                scopes,
                reserved,
                stored: 8,
            },
            Event::Released {
                volume,
                scopes,
                reserved,
                received,
            },
            Event::Drained { bytes: 5 },
            Event::Fault {
                fault,
                error: Some(error),
            },
            Event::Suspect { error },
            Event::Probed {
                volume: volume_name,
                status,
                took,
                forecast: Forecast::Unknown,
            },
            Event::Full {
                volume: volume_name,
                fault,
            },
            Event::Resumed {
                volume: volume_name,
            },
            Event::Horizon {
                volume: volume_name,
                horizon: Duration::from_secs(3_600),
                forecast: Forecast::FullIn(Duration::from_secs(60)),
            },
            Event::Stale {
                volume: volume_name,
            },
            Event::Moved {
                volume: volume_name,
            },
            Event::Fresh {
                volume: volume_name,
            },
            Event::SoftLimit {
                scope: &scope,
                resource: Resource::Bytes,
                limit: 8,
                used: 9,
                grace: Some(took),
            },
            Event::QuotaSlow { took },
            Event::QuotaAway { error },
            Event::QuotaBack { after: took },
            Event::StoreAnswered {
                operation: "reserve",
                took,
                error: Some(error),
            },
            Event::StoreAway { error },
            Event::StoreBack { after: took },
            Event::JournalAway,
            Event::JournalBack { after: took },
            Event::Leased { is_hit: true },
        ];
        look(&events);
    }

    /// The rows of the table in the docs: event, level and fields.
    fn table() -> Vec<(&'static str, &'static str, Vec<&'static str>)> {
        let rows = include_str!("tracing.rs").lines();
        let rows = rows.filter_map(|line| line.strip_prefix("//! | `"));
        rows.map(|row| {
            let mut columns = row.split('|').map(str::trim);
            let event = columns.next().unwrap().trim_end_matches('`');
            let level = columns.next().unwrap();
            let names = |text: &'static str| text.split('`').skip(1).step_by(2).collect();
            (event, level, names(columns.next().unwrap()))
        })
        .skip(1)
        .collect()
    }

    /// Each event has the level and the fields that the docs say, and there is a row for each.
    #[test]
    fn what_is_sent_is_what_the_docs_say() {
        each(|events| {
            let table = table();
            let sent = sent(Tracing::new().with_errors(), events);
            assert_eq!(sent.len(), events.len());
            assert_eq!(sent.len(), table.len());
            for (seen, (event, level, mut fields)) in sent.iter().zip(table) {
                assert_eq!(seen.of("event"), Some(event));
                let level = if level == "the same" { "DEBUG" } else { level };
                assert!(level.contains(&seen.level), "{event} {level}");
                if event == "cut" {
                    fields.extend(["volume", "cause", "resource", "needed", "scope"]);
                }
                fields.extend(["event", "message"]);
                fields.sort_unstable();
                let sent: Vec<_> = seen.fields.keys().collect();
                assert_eq!(sent, fields, "{event}");
            }
        });
    }

    #[test]
    fn texts_of_errors_are_sent_on_demand_only() {
        each(|events| {
            for seen in sent(Tracing::new(), events) {
                let texts = seen.fields.values();
                assert!(texts.clone().all(|text| !text.contains("/srv")), "{seen:?}");
            }
        });
    }

    #[test]
    fn a_scope_that_is_not_disclosed_is_not_sent() {
        let figures = Figures::new(10, 5, 6);
        let scope = Scope::from("/srv/secret").undisclosed();
        let refused = Refused::from(Fault::new(Cause::CollectionFull, Resource::Bytes));
        let refused = refused.with_figures(figures, scope);
        let event = Event::Refused {
            volume: None,
            reason: refused.reason(),
            internal: refused.internal(),
        };
        let [seen] = &sent(Tracing::new().with_errors(), &[event])[..] else {
            panic!("one event");
        };
        assert_eq!((seen.of("scope"), seen.of("needed")), (None, Some("6")));
        assert_eq!(seen.level, "DEBUG");
    }

    #[test]
    fn a_full_disk_is_a_warning() {
        let refused = Refused::from(Fault::DISK_FULL).with_needed(Amount::new(7, 1));
        let event = Event::Refused {
            volume: Some("files"),
            reason: refused.reason(),
            internal: refused.internal(),
        };
        let [seen] = &sent(Tracing::new(), &[event])[..] else {
            panic!("one event");
        };
        assert_eq!((&*seen.level, seen.of("needed")), ("WARN", Some("7")));
    }

    #[tokio::test]
    async fn events_are_in_the_span_of_the_request() {
        let all = All::default();
        let _guard = set_default(Registry::default().with(all.clone()));
        let quota = MemoryQuota::new(Limits::bytes(10));
        let guard = Guard::quota_only(quota).observer(Tracing::new());
        let request = async {
            let reservation = guard.reserve("user:42", Demand::known(7)).await.unwrap();
            assert!(guard.reserve("user:42", Demand::known(7)).await.is_err());
            reservation.commit().await;
        };
        request.instrument(info_span!("request")).await;
        let seen = all.0.lock().unwrap().clone();
        let events: Vec<_> = seen.iter().map(|seen| seen.of("event").unwrap()).collect();
        assert_eq!(events, ["admitted", "refused", "settled"]);
        assert!(seen.iter().all(|seen| seen.span == Some("request")));
    }
}
