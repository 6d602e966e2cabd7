//! The newest rusqlite, which lock files without sqlx's SQLite driver may resolve to.
#![cfg(test)]

use rusqlite::Connection;
use tower_storage_guard::fault::{self, Cause};

#[test]
fn a_full_database_and_a_unique_violation() {
    let db = Connection::open_in_memory().unwrap();
    let setup = "PRAGMA max_page_count = 4; CREATE TABLE items (key UNIQUE);";
    db.execute_batch(setup).unwrap();
    let cause_of = |insert| {
        let error = db.execute_batch(insert).unwrap_err();
        fault::classify(&error).map(|fault| fault.cause)
    };
    let large = "INSERT INTO items VALUES (zeroblob(100000))";
    assert_eq!(cause_of(large), Some(Cause::DatabaseFull));
    let twice = "INSERT INTO items VALUES (1), (1)";
    assert_eq!(cause_of(twice), None);
}
