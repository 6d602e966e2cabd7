//! The rule of admission, as one pure function.
//!
//! The quota sources in memory and the SQLite store apply it in the step that takes what is needed. A volume applies it first,
//! and its ledger compares once more as it takes. PostgreSQL and Redis state it in SQL and Lua, and the
//! conformance suite of stores holds them to it.

use std::time::Duration;

use crate::{amount::Amount, cause::Resource, outage::Outage};

/// What is needed: `amount` is reserved, and `expected` bytes must fit too if that is more.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Need {
    pub(crate) amount: Amount,
    pub(crate) expected: u64,
}

impl Need {
    fn bytes(self) -> u64 {
        self.amount.bytes.max(self.expected)
    }

    fn is_nothing(self) -> bool {
        self.bytes() == 0 && self.amount.objects == 0
    }
}

/// What is known of a volume.
#[derive(Clone, Copy, Debug)]
pub(crate) struct VolumeState {
    /// Whether the probe has hung or failed for too long, and what happens then.
    pub(crate) is_stale: bool,
    pub(crate) outage: Outage,
    /// Whether it was full, and waits for its level to resume.
    pub(crate) waits_to_resume: bool,
    /// Bytes and objects that are neither used nor claimed. Below zero where more is claimed than there is.
    pub(crate) free_bytes: i64,
    pub(crate) free_objects: i64,
    /// What has to stay free.
    pub(crate) floor: Amount,
}

/// What is known of a scope.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ScopeState {
    /// The most that it may use, by [`in_force`]. The largest number is no limit.
    pub(crate) limit: Amount,
    /// What it uses, with what is held there.
    pub(crate) counted: Amount,
}

/// What is known of a soft limit of a scope.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SoftState {
    pub(crate) limit: u64,
    /// How long it may be passed. None is for ever.
    pub(crate) grace: Option<Duration>,
    /// What is stored. What is held does not count, because it may be given back.
    pub(crate) used: u64,
    /// For how long usage has been above it.
    pub(crate) over_for: Option<Duration>,
}

/// The most that a scope may use: the smaller of its limit and of its soft limit, once usage has been above that for its grace.
pub(crate) fn in_force(hard: Option<u64>, soft: Option<SoftState>) -> Option<u64> {
    let enforced = soft.filter(|soft| {
        let has_passed = |(grace, over_for)| over_for >= grace;
        soft.used > soft.limit && soft.grace.zip(soft.over_for).is_some_and(has_passed)
    });
    match (hard, enforced) {
        (Some(hard), Some(soft)) => Some(hard.min(soft.limit)),
        (hard, soft) => hard.or(soft.map(|soft| soft.limit)),
    }
}

/// What is decided of a demand.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Decision {
    Admit,
    /// It is not known whether there is room, and the outage policy is to admit.
    AdmitUnseen,
    Refuse(Lack),
}

/// Why a demand is refused.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Lack {
    /// It is not known whether there is room.
    Unknown,
    /// The volume has no room.
    Volume(Resource),
    /// The scope at this place has no room.
    Scope(usize, Resource),
}

/// Decides whether a demand is admitted, by the list in the crate's documentation:
///
/// 1. A demand for nothing is admitted.
/// 2. The volume's probe has not hung or failed for too long. Otherwise the outage policy decides: refused, or point 3 is
///    skipped.
/// 3. What is needed, and the length that was announced, fit on the volume beside all that is claimed there and the
///    headroom. An exact fit is admitted. A volume that waits to resume admits no bytes.
/// 4. The same fits into each scope beside all that is held there. What is replaced is taken off by the caller. The limit of a
///    scope is the smaller one of those that are [`in_force`].
#[inline]
pub(crate) fn decide(
    need: Need,
    volume: Option<&VolumeState>,
    scopes: impl IntoIterator<Item = ScopeState>,
) -> Decision {
    if need.is_nothing() {
        return Decision::Admit;
    }
    let mut decision = Decision::Admit;
    if let Some(volume) = volume {
        decision = on_volume(need, volume);
        if let Decision::Refuse(_) = decision {
            return decision;
        }
    }
    for (place, scope) in scopes.into_iter().enumerate() {
        if let Some(resource) = lacks_in_scope(need, scope) {
            return Decision::Refuse(Lack::Scope(place, resource));
        }
    }
    decision
}

#[inline]
fn on_volume(need: Need, volume: &VolumeState) -> Decision {
    if volume.is_stale {
        return match volume.outage {
            Outage::Admit => Decision::AdmitUnseen,
            Outage::Refuse => Decision::Refuse(Lack::Unknown),
        };
    }
    let is_closed = volume.waits_to_resume && need.amount.bytes > 0;
    if is_closed || !leaves(volume.free_bytes, need.bytes(), volume.floor.bytes) {
        return Decision::Refuse(Lack::Volume(Resource::Bytes));
    }
    if !leaves(
        volume.free_objects,
        need.amount.objects,
        volume.floor.objects,
    ) {
        return Decision::Refuse(Lack::Volume(Resource::Objects));
    }
    Decision::Admit
}

/// Whether so much can be taken, and the floor stays.
#[inline]
fn leaves(free: i64, taken: u64, floor: u64) -> bool {
    taken == 0
        || free
            .checked_sub_unsigned(taken)
            .is_some_and(|rest| u64::try_from(rest).is_ok_and(|rest| rest >= floor))
}

/// The resource that a scope lacks. Without a limit too, all that is counted must stay countable.
#[inline]
fn lacks_in_scope(need: Need, scope: ScopeState) -> Option<Resource> {
    let lacks = |needed: u64, counted: u64, limit: u64| {
        needed > 0
            && counted
                .checked_add(needed)
                .is_none_or(|total| total > limit)
    };
    if lacks(need.bytes(), scope.counted.bytes, scope.limit.bytes) {
        return Some(Resource::Bytes);
    }
    let (counted, limit) = (scope.counted.objects, scope.limit.objects);
    lacks(need.amount.objects, counted, limit).then_some(Resource::Objects)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        demand::Demand,
        guard::{Guard, TryReserveError},
        quota::{Limits, MemoryQuota},
        refused::Reason,
        volume::{Probe, Reading, Volume},
    };

    struct Disk(Reading);

    impl Probe for Disk {
        fn read(&mut self) -> std::io::Result<Reading> {
            Ok(self.0)
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(test_support::times(64)))]

        /// The real thing decides as the rule says: one demand after another, on what the ones before have left.
        #[test]
        fn a_guard_decides_by_the_rule(
            room in 0u64..40,
            inodes in 1u64..6,
            floor in 0u64..10,
            limits in prop::array::uniform2((0u64..40, 0u64..6)),
            demands in prop::collection::vec((0u64..12, 0u64..3, 0u64..20), 1..24),
        ) {
            let volume = Volume::from_probe(Disk(Reading::new(room, 100).with_inodes(inodes, 10))).unwrap();
            let quota = MemoryQuota::new(Limits::UNLIMITED);
            let scopes = ["user", "tenant"];
            for (scope, (bytes, objects)) in scopes.iter().zip(limits) {
                quota.set_limits(*scope, Limits::bytes(bytes).objects(objects));
            }
            let guard = Guard::new(volume.keep_free(floor)).quota(quota.clone());
            let mut held = Amount::ZERO;
            let mut reservations = Vec::new();
            for (bytes, objects, expected) in demands {
                let amount = Amount::new(bytes, objects);
                let left = |all: u64, held: u64| (all - held) as i64;
                let state = VolumeState {
                    is_stale: false,
                    outage: Outage::Refuse,
                    waits_to_resume: false,
                    free_bytes: left(room, held.bytes),
                    free_objects: left(inodes, held.objects),
                    floor: Amount::bytes(floor),
                };
                let scope_states = limits.map(|(bytes, objects)| ScopeState {
                    limit: Amount::new(bytes, objects),
                    counted: held,
                });
                let need = Need { amount, expected };
                let decision = decide(need, Some(&state), scope_states);
                let demand = Demand::known(bytes).with_objects(objects).expecting(expected);
                match guard.try_reserve(scopes, demand) {
                    Ok(reservation) => {
                        prop_assert_eq!(decision, Decision::Admit);
                        held = held + amount;
                        reservations.push(reservation);
                    }
                    Err(TryReserveError::Refused(refused)) => {
                        let Reason::Storage(fault) = refused.reason() else {
                            panic!("the disk and the quota are there");
                        };
                        match decision {
                            Decision::Refuse(Lack::Volume(resource)) => {
                                prop_assert_eq!((fault.cause.reason(), fault.resource), ("disk_full", resource));
                            }
                            Decision::Refuse(Lack::Scope(place, resource)) => {
                                prop_assert_eq!(fault.resource, resource);
                                prop_assert_eq!(refused.scope().unwrap().as_str(), scopes[place]);
                            }
                            other => panic!("{other:?}, but refused as {fault:?}"),
                        }
                    }
                    Err(error) => panic!("{error}"),
                }
            }
        }

        /// What is admitted never passes what there is, whatever the figures are.
        #[test]
        fn what_is_admitted_fits(
            bytes: u64, objects: u64, expected: u64, free: i64, free_objects: i64, floor: u64,
            limit: u64, counted: u64
        ) {
            let need = Need { amount: Amount::new(bytes, objects), expected };
            let volume = VolumeState {
                is_stale: false, outage: Outage::Admit, waits_to_resume: false,
                free_bytes: free, free_objects, floor: Amount::new(floor, floor),
            };
            let scope = ScopeState { limit: Amount::new(limit, u64::MAX), counted: Amount::bytes(counted) };
            if decide(need, Some(&volume), [scope]) == Decision::Admit {
                let needed = i128::from(bytes.max(expected));
                prop_assert!(needed == 0 || i128::from(free) - needed >= i128::from(floor));
                prop_assert!(objects == 0 || i128::from(free_objects) - i128::from(objects) >= i128::from(floor));
                prop_assert!(needed == 0 || i128::from(counted) + needed <= i128::from(limit));
            }
        }
    }

    #[test]
    fn an_outage_is_decided_by_its_policy() {
        let need = Need {
            amount: Amount::bytes(1),
            expected: 0,
        };
        let stale = |outage| VolumeState {
            is_stale: true,
            outage,
            waits_to_resume: true,
            free_bytes: 0,
            free_objects: 0,
            floor: Amount::ZERO,
        };
        assert_eq!(
            decide(need, Some(&stale(Outage::Admit)), []),
            Decision::AdmitUnseen
        );
        let refused = Decision::Refuse(Lack::Unknown);
        assert_eq!(decide(need, Some(&stale(Outage::Refuse)), []), refused);
        let nothing = Need::default();
        assert_eq!(
            decide(nothing, Some(&stale(Outage::Refuse)), []),
            Decision::Admit
        );
    }

    #[test]
    fn a_volume_that_waits_to_resume_takes_objects_and_no_bytes() {
        let volume = VolumeState {
            is_stale: false,
            outage: Outage::Refuse,
            waits_to_resume: true,
            free_bytes: 100,
            free_objects: 100,
            floor: Amount::ZERO,
        };
        let decided = |amount| {
            decide(
                Need {
                    amount,
                    expected: 0,
                },
                Some(&volume),
                [],
            )
        };
        assert_eq!(decided(Amount::objects(1)), Decision::Admit);
        let refused = Decision::Refuse(Lack::Volume(Resource::Bytes));
        assert_eq!(decided(Amount::bytes(1)), refused);
    }
}
