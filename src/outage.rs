//! What happens when the guard itself cannot find out.

/// What happens to requests while the guard cannot know: a probe hangs or fails, a quota source does not
/// answer. Never 507: nothing is known to be full.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub enum Outage {
    /// They are answered 503 Service Unavailable.
    #[default]
    Refuse,
    /// They are let in. What is full then shows when they write.
    Admit,
}
