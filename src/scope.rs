//! Who is charged.
