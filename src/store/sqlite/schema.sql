-- Quotas in an SQLite file. Amounts are bytes and objects; times are milliseconds since 1970 by the machine's clock.
-- Run whenever the file is opened: whatever is there stays.

-- What each scope has stored, and its own limits if it has any. Used may be below zero for a while. In a limit NULL is
-- unlimited, and a negative number stands for the one above 2^63 that has the same bits.
CREATE TABLE IF NOT EXISTS accounts (
    scope TEXT NOT NULL PRIMARY KEY,
    used_bytes INTEGER NOT NULL DEFAULT 0,
    used_objects INTEGER NOT NULL DEFAULT 0,
    has_limits INTEGER NOT NULL DEFAULT 0,
    hard_bytes INTEGER,
    hard_objects INTEGER,
    soft_bytes INTEGER,
    soft_objects INTEGER
) STRICT, WITHOUT ROWID;

-- What each hold has set aside in each of its scopes. What has expired counts no more, and is thrown away in time.
-- By scope first, as all that is held in one is added up for every request.
CREATE TABLE IF NOT EXISTS holds (
    scope TEXT NOT NULL,
    id TEXT NOT NULL,
    bytes INTEGER NOT NULL,
    objects INTEGER NOT NULL,
    expires INTEGER NOT NULL,
    PRIMARY KEY (scope, id)
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS holds_expires ON holds (expires);

-- What has been charged, and may be asked for again. Kept for a day.
CREATE TABLE IF NOT EXISTS settled (
    id TEXT NOT NULL PRIMARY KEY,
    settled INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS settled_settled ON settled (settled);
