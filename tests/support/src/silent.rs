//! The model of reservations whose clients are silent: what is taken back from them, and whether it is enough.

/// A reservation, as the model knows it.
#[derive(Clone, Copy, Debug)]
pub struct Kept {
    /// What is reserved for it while nothing is taken back.
    pub length: u64,
    pub received: u64,
    pub reserved: u64,
    /// When its last byte came, or it began.
    pub last: u64,
}

/// Whether `bytes` fit into what is `left`, after the longest silent have given back what is missing. Those whose last byte
/// came after `since` are not silent. Nothing is taken back if all of it is not enough.
pub fn fits<'a>(
    bytes: u64,
    left: u64,
    since: Option<u64>,
    all: impl Iterator<Item = &'a mut Kept>,
) -> bool {
    let mut missing = bytes.saturating_sub(left);
    let is_silent = |it: &&mut Kept| since.is_some_and(|since| it.last <= since);
    let mut silent: Vec<_> = all.filter(is_silent).collect();
    silent.sort_by_key(|it| it.last);
    let offered: u64 = silent.iter().map(|it| it.reserved - it.received).sum();
    if offered < missing {
        return false;
    }
    for it in silent {
        if missing > 0 {
            missing = missing.saturating_sub(it.reserved - it.received);
            it.reserved = it.received;
        }
    }
    true
}
