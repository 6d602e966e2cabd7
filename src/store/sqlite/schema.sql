-- Quotas in an SQLite file. Amounts are bytes and objects; times are milliseconds since 1970 by the machine's clock, less what
-- it is ahead.
-- Run whenever the file is opened. What exists stays.

-- The usage of each scope, and its limits if it has its own. Usage may be below zero by what is held; what was given back
-- beyond that is unmatched. A limit of NULL is unlimited, and a negative one stands for the number above 2^63 with the same
-- bits. The grace is in milliseconds. The timers of soft limits are the times since when usage has been above them, or NULL.
-- The row that is named x'FF', which is no UTF-8 and so no scope, has the baseline in `hard_bytes`.
CREATE TABLE IF NOT EXISTS accounts (
    scope TEXT NOT NULL PRIMARY KEY,
    used_bytes INTEGER NOT NULL DEFAULT 0,
    used_objects INTEGER NOT NULL DEFAULT 0,
    has_limits INTEGER NOT NULL DEFAULT 0,
    hard_bytes INTEGER,
    hard_objects INTEGER,
    soft_bytes INTEGER,
    soft_objects INTEGER,
    unmatched_bytes INTEGER NOT NULL DEFAULT 0,
    unmatched_objects INTEGER NOT NULL DEFAULT 0,
    grace INTEGER,
    over_bytes INTEGER,
    over_objects INTEGER
) STRICT, WITHOUT ROWID;

-- What each hold has reserved in each of its scopes. Expired rows do not count, and are deleted some time later.
-- The key begins with the scope, as every request adds up what is held in its scopes.
CREATE TABLE IF NOT EXISTS holds (
    scope TEXT NOT NULL,
    id TEXT NOT NULL,
    bytes INTEGER NOT NULL,
    objects INTEGER NOT NULL,
    expires INTEGER NOT NULL,
    PRIMARY KEY (scope, id)
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS holds_expires ON holds (expires);

-- How far the machine's clock was set ahead since the file was made, as one row. None if it was not.
CREATE TABLE IF NOT EXISTS clock (
    one INTEGER NOT NULL PRIMARY KEY CHECK (one = 1),
    ahead INTEGER NOT NULL
) STRICT;

-- The tombstones of settlements, so that each id is charged once. Numbered in their order, and kept for a day, but no more than
-- the last million.
CREATE TABLE IF NOT EXISTS settled (
    number INTEGER NOT NULL PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    settled INTEGER NOT NULL
) STRICT;
