//! Random steps on a store and on the reference, whose results must be the same.

use std::time::Duration;

use super::{
    super::{HoldId, Keep, Reserve, Settlement, Store},
    check::{Handle, LONG, change, in_order, reserve, timeless},
    reference::ReferenceStore,
};
use crate::{
    amount::Amount,
    quota::{Limits, QuotaError},
    scope::{Scope, Scopes},
};

const NAMES: [&str; 3] = ["{model}a", "{model}b", "{model}c"];

pub(super) async fn steps(stores: [Handle; 2]) {
    let mut steps = Steps {
        reference: ReferenceStore::default(),
        dice: Dice(7),
        open: Vec::new(),
    };
    let baseline = stores[0].done("baseline", stores[0].store.baseline().await);
    if let Some(baseline) = baseline {
        let _ = steps.reference.set_baseline(baseline).await;
    }
    for step in 0..300 {
        let store = &stores[steps.dice.roll(2) as usize];
        match steps.dice.roll(10) {
            0..4 => steps.reserve(store, step).await,
            4 if !steps.open.is_empty() => steps.grow(store, step).await,
            5..8 if !steps.open.is_empty() => steps.settle(store, step).await,
            8 => steps.set_used(store).await,
            _ => steps.set_limits(store).await,
        }
        for name in NAMES {
            let expected = steps.reference.account(&name.into()).await;
            store.expect(
                &format!("the account of `{name}` after step {step}"),
                timeless(store.account(name).await),
                timeless(store.done("account", expected)),
            );
        }
    }
}

struct Steps {
    reference: ReferenceStore,
    dice: Dice,
    /// The holds that have not been settled.
    open: Vec<(HoldId, Scopes)>,
}

impl Steps {
    async fn reserve(&mut self, store: &Handle, step: usize) {
        let scopes = match self.dice.roll(2) {
            0 => self.scope().into(),
            _ => Scopes::from([self.scope(), self.scope()]),
        };
        let asked = Reserve::new(HoldId::unique(), scopes.clone(), self.amount())
            .with_expected(Amount::bytes(self.dice.roll(60)))
            .with_default(default())
            .with_time_to_live(LONG);
        self.compare(store, &asked, step).await;
        self.open.push((asked.id, scopes));
    }

    async fn grow(&mut self, store: &Handle, step: usize) {
        let (id, scopes) = self.open[self.dice.roll(self.open.len() as u64) as usize].clone();
        let more = reserve(id, scopes, self.dice.roll(30), 200);
        self.compare(store, &more, step).await;
    }

    /// Reserves in the store and in the reference.
    async fn compare(&self, store: &Handle, asked: &Reserve, step: usize) {
        let found = store.store.reserve(asked).await;
        match (found, self.reference.reserve(asked).await) {
            (Ok(mut found), Ok(mut expected)) => {
                found.over = in_order(found.over);
                expected.over = in_order(expected.over);
                store.expect(&format!("the answer to step {step}"), found, expected);
            }
            (Err(QuotaError::Exceeded(found)), Err(QuotaError::Exceeded(expected))) => {
                // Of several limits that are passed, any may be named.
                store.expect_that(
                    found.used + found.required > found.limit,
                    format!(
                        "step {step}: the refusal passes no limit: {found:?}, not {expected:?}"
                    ),
                );
            }
            (found, expected) => store.fail(format!(
                "the answer to step {step}: expected {expected:?}, found {found:?}"
            )),
        }
    }

    async fn settle(&mut self, store: &Handle, step: usize) {
        let index = self.dice.roll(self.open.len() as u64) as usize;
        let (id, scopes) = self.open.swap_remove(index);
        let change = change(self.dice.roll(80) as i64 - 20, self.dice.roll(3) as i64 - 1);
        let mut settlement = Settlement::new(id, scopes.clone(), change);
        if self.dice.roll(2) == 0 {
            let keep = Keep::new(HoldId::unique(), self.amount(), LONG);
            self.open.push((keep.id, scopes));
            settlement = settlement.with_keep(keep);
        }
        if self.dice.roll(4) > 0 {
            settlement = settlement.with_defaults(|_| default());
        }
        let settlements = [settlement];
        // Once or twice, which must make no difference.
        for _ in 0..=self.dice.roll(2) {
            let found = store.settle_all(&settlements).await;
            let expected = store.done("settle", self.reference.settle(&settlements).await);
            let what = format!("the soft limits that are passed after step {step}");
            store.expect(&what, found, in_order(expected));
        }
    }

    async fn set_used(&mut self, store: &Handle) {
        let (scope, used) = (
            self.scope(),
            Amount::new(self.dice.roll(150), self.dice.roll(5)),
        );
        store.done("set_used", store.store.set_used(&scope, used).await);
        store.done("set_used", self.reference.set_used(&scope, used).await);
    }

    async fn set_limits(&mut self, store: &Handle) {
        let scope = self.scope();
        let own = match self.dice.roll(2) {
            0 => None,
            _ => {
                let soft = Limits::bytes(self.dice.roll(300)).soft_bytes(self.dice.roll(200));
                let soft = soft.soft_objects(self.dice.roll(9));
                let grace = (self.dice.roll(2) == 0).then_some(Duration::ZERO);
                Some(Limits { grace, ..soft })
            }
        };
        store.done("set_limits", store.store.set_limits(&scope, own).await);
        store.done("set_limits", self.reference.set_limits(&scope, own).await);
    }

    fn scope(&mut self) -> Scope {
        Scope::from(NAMES[self.dice.roll(3) as usize])
    }

    fn amount(&mut self) -> Amount {
        Amount::new(self.dice.roll(60), self.dice.roll(3))
    }
}

/// The limits of a scope that has none of its own. A grace of zero has passed, whatever the clock says.
fn default() -> Limits {
    let limits = Limits::bytes(200).objects(9);
    limits.soft_percent(50).grace(Duration::ZERO)
}

/// Numbers that look random, and are the same in every run. This is SplitMix64.
struct Dice(u64);

impl Dice {
    /// A number below `end`.
    fn roll(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut number = self.0;
        number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (number ^ (number >> 31)) % end
    }
}
