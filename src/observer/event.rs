//! What happens.

use std::{error::Error, time::Duration};

use crate::{
    amount::Amount,
    cause::{Fault, Resource},
    forecast::Forecast,
    refused::{Internal, Reason},
    scope::{Scope, Scopes},
    status::VolumeStatus,
};

/// An event of a guard, of its volume, its quota source or a store. Amounts are in bytes and objects.
///
/// `volume` is the [name](crate::Volume::named) of the volume; none where quotas alone are guarded.
///
/// Scopes and errors are for logs. They may name people and paths of the server, and there may be millions: never make them labels
/// of metrics.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// A demand was admitted.
    #[non_exhaustive]
    Admitted {
        /// The volume, if one is guarded.
        volume: Option<&'a str>,
        /// The scopes that are charged.
        scopes: &'a Scopes,
        /// The reserved amount. It is zero if the price of the request is [free](crate::Price::free).
        reserved: Amount,
        /// The time that it has waited for room, and for the quota source.
        waited: Duration,
    },
    /// A demand was refused, and the inner service was not called; or a reservation could not grow.
    #[non_exhaustive]
    Refused {
        /// The volume, if one is guarded.
        volume: Option<&'a str>,
        /// The reason.
        reason: Reason,
        /// Details for logs, such as the figures and the scope if a quota was exceeded.
        internal: &'a Internal,
    },
    /// A body that was being read was cut, because the reservation could not grow.
    #[non_exhaustive]
    Cut {
        /// The volume, if one is guarded.
        volume: Option<&'a str>,
        /// The scopes that are charged.
        scopes: &'a Scopes,
        /// The reason.
        reason: Reason,
        /// Details for logs.
        internal: &'a Internal,
        /// The bytes that were read of it.
        received: u64,
    },
    /// A client has stopped sending, and its request was ended.
    #[non_exhaustive]
    Stalled {
        /// The volume, if one is guarded.
        volume: Option<&'a str>,
        /// The scopes that are charged.
        scopes: &'a Scopes,
        /// The bytes that were read of the body.
        received: u64,
    },
    /// A reservation has ended with success.
    #[non_exhaustive]
    Settled {
        /// The volume, if one is guarded.
        volume: Option<&'a str>,
        /// The scopes that are charged.
        scopes: &'a Scopes,
        /// The bytes that were reserved at the end. Those that were not stored are available again.
        reserved: u64,
        /// The bytes that were stored.
        stored: u64,
    },
    /// A reservation has ended without success, and nothing is charged.
    #[non_exhaustive]
    Released {
        /// The volume, if one is guarded.
        volume: Option<&'a str>,
        /// The scopes that are charged.
        scopes: &'a Scopes,
        /// The bytes that were reserved at the end.
        reserved: u64,
        /// The bytes that were read of the body.
        received: u64,
    },
    /// The unread rest of a refused request was read and discarded beside the answer, so that the answer arrives.
    #[non_exhaustive]
    Drained {
        /// The bytes that were discarded.
        bytes: u64,
    },
    /// A storage failure was found in an answer of the inner service.
    #[non_exhaustive]
    Fault {
        /// The cause and the resource.
        fault: Fault,
        /// The error in which it was found. None if the service has answered with the fault itself, or with 507.
        error: Option<&'a (dyn Error + 'static)>,
    },
    /// An error that was not classified has a text that names full storage: see
    /// [`Classifier::on_suspect`](crate::fault::Classifier::on_suspect).
    #[non_exhaustive]
    Suspect {
        /// The error.
        error: &'a (dyn Error + 'static),
    },
    /// A volume was read.
    #[non_exhaustive]
    Probed {
        /// The volume.
        volume: &'a str,
        /// The figures of the volume.
        status: &'a VolumeStatus,
        /// How long the reading took.
        took: Duration,
        /// When the volume will be full.
        forecast: Forecast,
    },
    /// A volume takes no writes from now on: as [`takes_writes`](crate::Volume::takes_writes) says.
    #[non_exhaustive]
    Full {
        /// The volume.
        volume: &'a str,
        /// The cause and the resource.
        fault: Fault,
    },
    /// A volume that was full takes writes again.
    #[non_exhaustive]
    Resumed {
        /// The volume.
        volume: &'a str,
    },
    /// The probe of a volume has been hanging or failing for longer than [`max_age`](crate::Volume::max_age).
    #[non_exhaustive]
    Stale {
        /// The volume.
        volume: &'a str,
    },
    /// A volume that was stale was read again.
    #[non_exhaustive]
    Fresh {
        /// The volume.
        volume: &'a str,
    },
    /// Another filesystem is mounted at the path of a volume, or the path is gone.
    #[non_exhaustive]
    Moved {
        /// The volume.
        volume: &'a str,
    },
    /// The [forecast](crate::Volume::forecast) of a volume has fallen below one of its [horizons](crate::Volume::horizons).
    #[non_exhaustive]
    Horizon {
        /// The volume.
        volume: &'a str,
        /// The time to full that it has fallen below.
        horizon: Duration,
        /// The forecast.
        forecast: Forecast,
    },
    /// A charge has crossed a [soft limit](crate::quota::Limits#soft-limits) of a scope. Told once for each crossing: by the request
    /// that crosses it, or with a store, by the process whose charge the store has taken.
    ///
    /// Use it to tell users that they should tidy up, before requests are refused.
    #[non_exhaustive]
    SoftLimit {
        /// Whose limit it is.
        scope: &'a Scope,
        /// What the two figures below count: bytes or objects.
        resource: Resource,
        /// The soft limit.
        limit: u64,
        /// What the scope has stored.
        used: u64,
        /// How long it will take until the soft limit is enforced. `None` if it never will be.
        grace: Option<Duration>,
    },
    /// The quota source has answered late: after more than half of [`quota_timeout`](crate::Guard::quota_timeout).
    #[non_exhaustive]
    QuotaSlow {
        /// How long the answer took.
        took: Duration,
    },
    /// The quota source fails, or has not answered in time. Once, until it is back.
    #[non_exhaustive]
    QuotaAway {
        /// The error.
        error: &'a (dyn Error + 'static),
    },
    /// The quota source answers again.
    #[non_exhaustive]
    QuotaBack {
        /// How long it was away.
        after: Duration,
    },
    /// A store that is [observed](crate::store::ObservedStore) has answered a call, or has failed.
    #[non_exhaustive]
    StoreAnswered {
        /// The name of the method of [`Store`](crate::store::Store).
        operation: &'static str,
        /// How long the answer took.
        took: Duration,
        /// The error, if the store has failed. A quota that is exceeded is an answer.
        error: Option<&'a (dyn Error + 'static)>,
    },
    /// An observed store fails. Once, until it is back.
    #[non_exhaustive]
    StoreAway {
        /// The error.
        error: &'a (dyn Error + 'static),
    },
    /// An observed store answers again.
    #[non_exhaustive]
    StoreBack {
        /// How long it was away.
        after: Duration,
    },
    /// An observed [`Journal`](crate::store::Journal) cannot be written, or takes too long. Charges are kept in memory only. Once,
    /// until it is back.
    #[non_exhaustive]
    JournalAway,
    /// An observed journal is written again, with all that it has missed.
    #[non_exhaustive]
    JournalBack {
        /// How long it was away.
        after: Duration,
    },
    /// A [`LeasedQuota`](crate::store::LeasedQuota) on an observed store was asked for room.
    #[non_exhaustive]
    Leased {
        /// Whether it had leased enough. Otherwise the store was asked.
        is_hit: bool,
    },
}
