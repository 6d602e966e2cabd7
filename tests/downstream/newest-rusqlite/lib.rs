//! The newest rusqlite, which lock files without sqlx's SQLite driver may resolve to.
#![cfg(test)]

use rusqlite::Connection;
use tower_storage_guard::fault::{self, Cause};

#[test]
fn a_full_database_and_a_unique_violation() {
    let db = Connection::open_in_memory().unwrap();
    let setup = "PRAGMA max_page_count = 4; CREATE TABLE items (key UNIQUE);";
    db.execute_batch(setup).unwrap();
    let fail = |insert| db.execute_batch(insert).unwrap_err();
    let cause_of = |insert| fault::classify(&fail(insert)).map(|fault| fault.cause);
    let large = "INSERT INTO items VALUES (zeroblob(100000))";
    assert_eq!(cause_of(large), Some(Cause::DatabaseFull));
    let twice = "INSERT INTO items VALUES (1), (1)";
    assert_eq!(cause_of(twice), None);
    // The codes are extended ones.
    let error = format!("{:?}", fail(twice));
    assert!(error.contains("extended_code: 2067"), "{error}");
}
