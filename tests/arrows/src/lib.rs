//! Checks that imports between the modules of a crate go down only.
//!
//! [`Crate::read`] follows the `mod` declarations from `src/lib.rs` and keeps every reference from one module to
//! another: `use` items, and paths in expressions, types, patterns, bounds and macro tokens. [`Crate::check`]
//! compares them with an [`Order`]:
//!
//! 1. Each top-level module is in one layer.
//! 2. A module imports from lower layers only. Modules of one layer import each other only by an [`Exception`].
//! 3. No name is imported through the crate root, which re-exports everything and so hides where an import goes.
//! 4. The files of a folder do not import each other in a cycle. A file may use items that its own `mod.rs` defines.
//!
//! A folder is one room, named by its top-level module. A name that room `x` re-exports counts as an import of `x`,
//! whose own `use` is checked as well. An order may list a submodule by its path, such as `quota::stored`: it is then
//! a room of its own, and what its parent re-exports from it counts as an import of the submodule.
//!
//! # What it does not see
//!
//! - References without a path: method calls, field accesses, and traits found by inference.
//! - Attributes, derive macros, and what a macro expands to beyond the tokens at its call.
//! - Doc links and strings, including `serde(with = "…")`.
//! - `cfg` other than `test`: both sides of `cfg(unix)` are read. Inside macro tokens not even `cfg(test)` is seen.
//!
//! Code that it cannot follow is a [violation](Rule::Unreadable), so that it is not overlooked: a module declared in
//! a function, `include!`, and a `path` inside `cfg_attr`.

mod check;
mod cycles;
mod layers;
mod names;
mod order;
mod references;
mod report;
mod resolve;
mod test_only;
mod tokens;
mod tree;

pub use self::{
    cycles::cycles,
    layers::{EXCEPTIONS, LAYERS},
    order::{Exception, Order},
    report::{Arrow, Report, Rule, Violation},
    tree::{Crate, ReadError},
};
