//! What the benches share: exact counts, and the tables and plots that `BENCHMARKS.md` shows.

pub mod callgrind;
mod plot;
mod results;

pub use self::{
    plot::{Bar, Bars},
    results::{plot, section},
};

/// NaN if there is no value, for example if no two threads ran at once. No budget holds then.
pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    quantiles(values)[1]
}

/// The quartiles, as [`median`].
pub fn quantiles(values: impl IntoIterator<Item = f64>) -> [f64; 3] {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_unstable_by(f64::total_cmp);
    [1, 2, 3].map(|quarter| {
        let last = values.len().saturating_sub(1);
        values.get(last * quarter / 4).copied().unwrap_or(f64::NAN)
    })
}
