//! The contract of quota sources, on each of them: what is set aside is what the model of it says.

use std::{convert::Infallible, time::Duration};

use proptest::prelude::*;
use tokio::time::sleep;
use tower_storage_guard::{
    Amount, Scopes,
    quota::{
        AnyQuota, Change, Limits, MemoryQuota, OpenQuota, Quota, QuotaError, QuotaHold,
        QuotaSource, quota_fn,
    },
};

const LIMIT: Amount = Amount::new(1_000, 20);

#[derive(Clone, Copy, Debug)]
enum Op {
    Reserve(Amount),
    Grow(usize, Amount),
    /// To this many tenths.
    Shrink(usize, u64),
    Commit(usize, Amount),
    Drop(usize),
}

fn any_op() -> impl Strategy<Value = Op> {
    let amount = || (0..300_u64, 0..4_u64).prop_map(|(bytes, objects)| Amount::new(bytes, objects));
    let at = || any::<usize>();
    prop_oneof![
        amount().prop_map(Op::Reserve),
        (at(), amount()).prop_map(|(at, more)| Op::Grow(at, more)),
        (at(), 0..=10_u64).prop_map(|(at, tenths)| Op::Shrink(at, tenths)),
        (at(), amount()).prop_map(|(at, stored)| Op::Commit(at, stored)),
        at().prop_map(Op::Drop),
    ]
}

/// A source, of which nothing else has reserved anything in these scopes.
struct Source {
    name: &'static str,
    quota: AnyQuota,
    scopes: Scopes,
    /// Whether it counts what is committed by itself.
    counts: bool,
}

impl Source {
    fn new(name: &'static str, quota: impl QuotaSource, scopes: Scopes) -> Self {
        Self {
            name,
            quota: AnyQuota::new(quota),
            scopes,
            counts: true,
        }
    }

    /// After each round of operations.
    async fn agrees_with_the_model(&self, rounds: &[Vec<Op>]) {
        let mut holds = Vec::new();
        let mut used = Amount::ZERO;
        for ops in rounds {
            self.is_busy().await;
            for op in ops {
                let pick = |at: usize| (!holds.is_empty()).then(|| at % holds.len());
                match *op {
                    Op::Reserve(amount) => {
                        let reserved = self.quota.reserve(&self.scopes, amount, Amount::ZERO).await;
                        holds.extend(reserved.ok().map(|hold| (hold, amount)));
                    }
                    Op::Grow(at, more) => {
                        let Some(at) = pick(at) else { continue };
                        let (hold, held) = &mut holds[at];
                        if hold.grow(more).await.is_ok() {
                            *held = *held + more;
                        }
                    }
                    Op::Shrink(at, tenths) => {
                        let Some(at) = pick(at) else { continue };
                        let (hold, held) = &mut holds[at];
                        *held = Amount::new(held.bytes * tenths / 10, held.objects * tenths / 10);
                        hold.shrink_to(*held);
                    }
                    Op::Commit(at, stored) => {
                        let Some(at) = pick(at) else { continue };
                        let (hold, held) = holds.swap_remove(at);
                        if self.counts {
                            let stored = held - (held - stored);
                            used = used + stored;
                            hold.commit(Change::from(stored)).await;
                        }
                    }
                    Op::Drop(at) => {
                        let Some(at) = pick(at) else { continue };
                        drop(holds.swap_remove(at));
                    }
                }
            }
            let held = holds
                .iter()
                .fold(Amount::ZERO, |sum, (_, held)| sum + *held);
            self.has_room(LIMIT - used - held, ops).await;
        }
    }

    /// Without a refusal for a while, so that there are leases.
    async fn is_busy(&self) {
        sleep(Duration::from_secs(2)).await;
        for _ in 0..16 {
            drop(
                self.quota
                    .reserve(&self.scopes, Amount::bytes(1), Amount::ZERO)
                    .await,
            );
            sleep(Duration::from_millis(10)).await;
        }
    }

    /// Exactly this fits.
    async fn has_room(&self, room: Amount, after: &[Op]) {
        for (more, fits) in [
            (Amount::ZERO, true),
            (Amount::bytes(1), false),
            (Amount::new(0, 1), false),
        ] {
            let asked = self.quota.reserve(&self.scopes, room + more, Amount::ZERO);
            let said = match asked.await {
                Ok(_) => true,
                Err(QuotaError::Exceeded(_)) => false,
                Err(error) => panic!("{}: {error}", self.name),
            };
            assert_eq!(
                said, fits,
                "{} {room:?} and {more:?} after {after:?}",
                self.name
            );
        }
    }
}

async fn sources() -> Vec<Source> {
    let scopes = || Scopes::from(["tenant:a", "user:b"]);
    let limits = Limits::bytes(LIMIT.bytes).objects(LIMIT.objects);
    let quota = Quota {
        limits,
        used: Amount::ZERO,
    };
    #[allow(unused_mut, reason = "not every feature is there")]
    let mut sources = vec![
        Source::new("memory", MemoryQuota::new(limits), scopes()),
        Source {
            counts: false,
            ..Source::new(
                "function",
                quota_fn(move |_| Ok::<_, Infallible>(quota)),
                scopes(),
            )
        },
        Source::new(
            "open over memory",
            OpenQuota::new(Limits::UNLIMITED).over(MemoryQuota::new(limits)),
            scopes(),
        ),
    ];
    #[cfg(feature = "webdav")]
    {
        use tower_storage_guard::dav::{CollectionQuota, Folder};
        let folder = tempfile::tempdir().unwrap();
        let collections = CollectionQuota::builder(Folder::new(folder.path()))
            // The folder itself is an object too.
            .limit("", limits.objects(LIMIT.objects + 1))
            .unwrap()
            .rescan_every(Duration::MAX)
            .build();
        collections.rescan().await.unwrap();
        let in_collection = collections.scopes("a");
        sources.push(Source::new("collections", collections, in_collection));
    }
    #[cfg(feature = "conformance")]
    {
        use tower_storage_guard::store::{LeasedQuota, StoredQuota, conformance::ReferenceStore};
        let stored = || StoredQuota::builder(ReferenceStore::default(), limits).build();
        let open = OpenQuota::new(Limits::UNLIMITED).over(stored());
        sources.push(Source::new("open over stored", open, scopes()));
        sources.push(Source::new("stored", stored(), scopes()));
        sources.push(Source::new("leased", LeasedQuota::new(stored()), scopes()));
    }
    sources
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(test_support::times(60)) })]
    #[test]
    fn each_source_agrees_with_the_model(rounds in prop::collection::vec(prop::collection::vec(any_op(), 1..10), 1..6)) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(async {
            for source in sources().await {
                source.agrees_with_the_model(&rounds).await;
            }
        });
    }
}
