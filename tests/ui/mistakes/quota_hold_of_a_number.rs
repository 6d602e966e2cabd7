//! A source of quotas has to say how its holds grow and end.

use std::future::Ready;

use tower_storage_guard::{
    Amount, Scopes,
    quota::{Answer, Change, QuotaError, QuotaSource},
};

struct Database;

impl QuotaSource for Database {
    type Hold = u64;
    type Future = Ready<Result<u64, QuotaError>>;

    fn reserve(&self, _: &Scopes, demand: Amount, _: Amount) -> Answer<Self::Future> {
        Answer::Later(std::future::ready(Ok(demand.bytes)))
    }

    fn charge(&self, _: &Scopes, _: Change) {}
}

fn main() {}
