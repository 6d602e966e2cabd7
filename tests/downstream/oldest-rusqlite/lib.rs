//! The oldest rusqlite that is classified. Its test is that of the newest.
#![cfg(test)]

#[path = "../newest-rusqlite/lib.rs"]
mod newest;
