//! Quota sources.
