//! What the benches share: exact counts, and the tables and plots that `BENCHMARKS.md` shows.

pub mod callgrind;

/// NaN if there is no value, for example if no two threads ran at once. No budget holds then.
pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    if values.is_empty() {
        return f64::NAN;
    }
    let middle = values.len() / 2;
    *values.select_nth_unstable_by(middle, f64::total_cmp).1
}
