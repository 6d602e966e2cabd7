-- Quotas in PostgreSQL, in the first schema of the search path. Amounts are bytes and objects; times are the server's, less
-- what its clock was set ahead.
-- Run as a whole whenever something is missing. What exists stays.
--
-- Names of scopes are bytes, because text cannot contain a NUL and depends on the encoding of the database. Read them with
-- `convert_from(scope, 'UTF8')`. Rows are found by a digest, as an index has no room for long names.

BEGIN;
SET LOCAL client_min_messages = warning;
-- One at a time: IF NOT EXISTS races with itself.
SELECT pg_advisory_xact_lock(507, 1);

-- The usage of each scope, and its limits if it has its own. Usage may be below zero by what is held; what was given back
-- beyond that is unmatched. A limit of NULL is unlimited, and a negative one stands for the number above 2^63 with the same bits.
-- The grace is in milliseconds. The timers of soft limits are the times since when usage has been above them, or NULL:
-- milliseconds since 1970.
-- The row that is named '\xff', which is no UTF-8 and so no scope, has the baseline in `hard_bytes`.
CREATE TABLE IF NOT EXISTS storage_guard_accounts (
    key bytea GENERATED ALWAYS AS (sha256(scope)) STORED PRIMARY KEY,
    scope bytea NOT NULL,
    used_bytes bigint NOT NULL DEFAULT 0,
    used_objects bigint NOT NULL DEFAULT 0,
    has_limits boolean NOT NULL DEFAULT false,
    hard_bytes bigint,
    hard_objects bigint,
    soft_bytes bigint,
    soft_objects bigint,
    unmatched_bytes bigint NOT NULL DEFAULT 0,
    unmatched_objects bigint NOT NULL DEFAULT 0
);
-- Since version 2.
ALTER TABLE storage_guard_accounts ADD COLUMN IF NOT EXISTS grace bigint,
    ADD COLUMN IF NOT EXISTS over_bytes bigint, ADD COLUMN IF NOT EXISTS over_objects bigint;

-- What each hold has reserved in each of its scopes. Expired rows do not count, and are deleted some time later.
CREATE TABLE IF NOT EXISTS storage_guard_holds (
    key bytea GENERATED ALWAYS AS (sha256(scope)) STORED,
    id uuid NOT NULL,
    scope bytea NOT NULL,
    bytes bigint NOT NULL,
    objects bigint NOT NULL,
    expires timestamptz NOT NULL,
    PRIMARY KEY (key, id)
);
CREATE INDEX IF NOT EXISTS storage_guard_holds_expires ON storage_guard_holds (expires);

-- The tombstones of settlements, so that each id is charged once. Numbered in their order, and kept for a day, but no more than
-- the last million.
CREATE TABLE IF NOT EXISTS storage_guard_settled (
    number bigint GENERATED ALWAYS AS IDENTITY UNIQUE,
    id uuid PRIMARY KEY,
    settled timestamptz NOT NULL
);

-- How far the server's clock was set ahead, in milliseconds, as one row. None if it was not. Calls read it without a lock.
CREATE TABLE IF NOT EXISTS storage_guard_clock (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    ahead bigint NOT NULL
);

-- Function names contain a version, so that processes of an older and a newer version can share the database.
--
-- Why there are no deadlocks: a function that changes holds or usage locks the accounts first, in the order of their keys, then
-- the row of the clock if it changes it, and then ids in their order. A function that renews or sweeps holds without those locks
-- waits for no lock: renewing skips locked rows, which are being ended or prolonged, and sweeping skips them too, as the last
-- step.

-- How far the clock is ahead.
CREATE OR REPLACE FUNCTION storage_guard_2_ahead() RETURNS bigint
LANGUAGE sql AS $$
    SELECT coalesce((SELECT ahead FROM storage_guard_clock), 0)
$$;

-- The time for a step that only reads.
CREATE OR REPLACE FUNCTION storage_guard_2_now() RETURNS timestamptz
LANGUAGE sql AS $$
    SELECT clock_timestamp() - storage_guard_2_ahead() * interval '1 millisecond'
$$;

-- The time, and how far the clock is ahead. Given what time the process expects, and how far the clock was ahead when it was
-- told so; NULL if it was not told. Who has not heard of the last correction makes none.
CREATE OR REPLACE FUNCTION storage_guard_2_time(
    expected bigint, told_ahead bigint, OUT moment timestamptz, OUT now bigint, OUT ahead bigint
)
LANGUAGE plpgsql AS $$
DECLARE
    clock timestamptz := clock_timestamp();
    beyond bigint;
BEGIN
    ahead := storage_guard_2_ahead();
    beyond := floor(extract(epoch FROM clock) * 1000) - ahead - expected;
    -- What was expected is older than this step by how long the last answer and this call were under way: ten seconds at the
    -- most, as callers wait for five. Nothing makes it newer.
    IF told_ahead = ahead AND beyond NOT BETWEEN -1000 AND 15000 THEN
        -- Of steps that notice it at the same time, the first one counts.
        INSERT INTO storage_guard_clock AS kept (ahead) VALUES (told_ahead + beyond)
        ON CONFLICT (one) DO UPDATE SET ahead = excluded.ahead WHERE kept.ahead = told_ahead;
        ahead := storage_guard_2_ahead();
    END IF;
    moment := clock - ahead * interval '1 millisecond';
    now := storage_guard_2_milliseconds(moment);
END
$$;

-- The time of a step, in milliseconds since 1970.
CREATE OR REPLACE FUNCTION storage_guard_2_milliseconds(moment timestamptz) RETURNS bigint
LANGUAGE sql IMMUTABLE AS $$
    SELECT floor(extract(epoch FROM moment) * 1000)::bigint
$$;

-- The most that a scope may use: its soft limit once usage has been above that for the grace.
CREATE OR REPLACE FUNCTION storage_guard_2_in_force(
    hard bigint, soft bigint, grace bigint, used bigint, since bigint, now bigint
) RETURNS bigint
LANGUAGE sql IMMUTABLE AS $$
    SELECT least(
        CASE WHEN hard >= 0 THEN hard ELSE 9223372036854775807 END,
        -- Without a timer `greatest` would be zero, and no NULL.
        CASE WHEN soft >= 0 AND used > soft AND since IS NOT NULL AND greatest(now - since, 0) >= grace THEN soft END
    )
$$;

-- Locks accounts until the transaction ends, and creates those that are missing.
CREATE OR REPLACE FUNCTION storage_guard_2_lock(names bytea[]) RETURNS void
LANGUAGE sql AS $$
    -- The update changes nothing, and locks all the same. In one statement, so that the row cannot be removed before it is
    -- locked.
    INSERT INTO storage_guard_accounts AS account (scope)
    SELECT DISTINCT ON (sha256(name)) name FROM unnest(names) AS name ORDER BY sha256(name)
    ON CONFLICT (key) DO UPDATE SET used_bytes = account.used_bytes WHERE false
$$;

-- Stops usage of locked accounts where it is as far below zero as is held.
CREATE OR REPLACE FUNCTION storage_guard_2_stop(names bytea[], moment timestamptz) RETURNS void
LANGUAGE sql AS $$
    UPDATE storage_guard_accounts AS account SET
        used_bytes = greatest(account.used_bytes, -held.bytes),
        used_objects = greatest(account.used_objects, -held.objects),
        unmatched_bytes = least(
            account.unmatched_bytes + greatest(-held.bytes - account.used_bytes, 0), 9223372036854775807),
        unmatched_objects = least(
            account.unmatched_objects + greatest(-held.objects - account.used_objects, 0), 9223372036854775807)
    FROM (
        -- These sums are numeric, and have no bounds.
        SELECT below.key, coalesce(sum(hold.bytes), 0) AS bytes, coalesce(sum(hold.objects), 0) AS objects
        FROM storage_guard_accounts AS below
        LEFT JOIN storage_guard_holds AS hold ON hold.key = below.key AND hold.expires > moment
        WHERE below.key IN (SELECT sha256(name) FROM unnest(names) AS name)
            AND (below.used_bytes < 0 OR below.used_objects < 0)
        GROUP BY below.key
    ) AS held
    WHERE account.key = held.key AND (account.used_bytes < -held.bytes OR account.used_objects < -held.objects)
$$;

-- Sets an amount aside in all of these scopes, or in none. Returns a row for each, in their order: whether it was done, and
-- the account before, the baseline, and the time. A need of NULL is more than can be counted.
CREATE OR REPLACE FUNCTION storage_guard_2_reserve(
    hold_id uuid, names bytea[], milliseconds bigint,
    more_bytes bigint, more_objects bigint,
    need_bytes bigint, need_objects bigint,
    default_bytes bigint[], default_objects bigint[],
    default_soft_bytes bigint[], default_soft_objects bigint[], default_graces bigint[],
    expected bigint, told_ahead bigint
) RETURNS TABLE (
    is_reserved boolean,
    used_bytes bigint, used_objects bigint, has_limits boolean,
    hard_bytes bigint, hard_objects bigint, soft_bytes bigint, soft_objects bigint, grace bigint,
    unmatched_bytes bigint, unmatched_objects bigint, held_bytes bigint, held_objects bigint,
    over_bytes bigint, over_objects bigint, baseline bigint, now bigint, ahead bigint
)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    countable CONSTANT bigint := 9223372036854775807;
    moment timestamptz;
    told record;
BEGIN
    PERFORM storage_guard_2_lock(names);
    -- Read after the wait for the lock. From here on each statement sees everything that was done before.
    told := storage_guard_2_time(expected, told_ahead);
    moment := told.moment;
    PERFORM storage_guard_2_stop(names, moment);
    RETURN QUERY
    WITH standing AS (
        SELECT place, name, account.*, held.bytes AS held_bytes, held.objects AS held_objects,
            -- These sums are numeric, and have no bounds.
            greatest(account.used_bytes, 0) + held.bytes AS counted_bytes,
            greatest(account.used_objects, 0) + held.objects AS counted_objects,
            storage_guard_2_in_force(
                CASE WHEN account.has_limits THEN account.hard_bytes ELSE asked.hard_bytes END,
                CASE WHEN account.has_limits THEN account.soft_bytes ELSE asked.soft_bytes END,
                CASE WHEN account.has_limits THEN account.grace ELSE asked.grace END,
                account.used_bytes, account.over_bytes, told.now
            ) AS most_bytes,
            storage_guard_2_in_force(
                CASE WHEN account.has_limits THEN account.hard_objects ELSE asked.hard_objects END,
                CASE WHEN account.has_limits THEN account.soft_objects ELSE asked.soft_objects END,
                CASE WHEN account.has_limits THEN account.grace ELSE asked.grace END,
                account.used_objects, account.over_objects, told.now
            ) AS most_objects
        FROM unnest(
            names, default_bytes, default_objects, default_soft_bytes, default_soft_objects, default_graces
        ) WITH ORDINALITY AS asked (name, hard_bytes, hard_objects, soft_bytes, soft_objects, grace, place)
        JOIN storage_guard_accounts AS account ON account.key = sha256(name)
        CROSS JOIN LATERAL (
            SELECT coalesce(sum(hold.bytes), 0) AS bytes, coalesce(sum(hold.objects), 0) AS objects
            FROM storage_guard_holds AS hold WHERE hold.key = account.key AND hold.expires > moment
        ) AS held
    ), verdict AS (
        SELECT bool_and(coalesce(
            (need_bytes = 0 OR counted_bytes + need_bytes <= most_bytes)
            AND (need_objects = 0 OR counted_objects + need_objects <= most_objects),
            false
        )) AS fits FROM standing
    ), made AS (
        INSERT INTO storage_guard_holds AS hold (id, scope, bytes, objects, expires)
        SELECT hold_id, name, more_bytes, more_objects, moment + milliseconds * interval '1 millisecond'
        FROM standing, verdict WHERE fits
        -- An expired hold is gone, and does not grow.
        ON CONFLICT (key, id) DO UPDATE SET
            bytes = CASE WHEN hold.expires > moment THEN hold.bytes ELSE 0 END + excluded.bytes,
            objects = CASE WHEN hold.expires > moment THEN hold.objects ELSE 0 END + excluded.objects,
            expires = excluded.expires
    )
    SELECT fits, used_bytes, used_objects, has_limits, hard_bytes, hard_objects, soft_bytes, soft_objects, grace,
        unmatched_bytes, unmatched_objects, least(held_bytes, countable)::bigint, least(held_objects, countable)::bigint,
        told.now - over_bytes, told.now - over_objects,
        (SELECT of_all.hard_bytes FROM storage_guard_accounts AS of_all WHERE of_all.key = sha256('\xff')),
        told.now, told.ahead
    FROM standing, verdict ORDER BY place;
END
$$;

-- Ends holds, charges what was not charged before, sets the holds to keep, and reviews the timers of what is charged. The
-- arrays have one element for each settlement and scope. An id has one change and one hold to keep, or neither. Those from
-- `scopes` on have one element for each scope, and its default limits if they are known.
-- Returns the time, and the soft limits that usage in a scope is above: rows with a scope.
CREATE OR REPLACE FUNCTION storage_guard_2_settle(
    ids uuid[], names bytea[], change_bytes bigint[], change_objects bigint[],
    kept_ids uuid[], kept_bytes bigint[], kept_objects bigint[], kept_milliseconds bigint[],
    scopes bytea[], are_charged boolean[], are_known boolean[],
    default_soft_bytes bigint[], default_soft_objects bigint[], default_graces bigint[],
    expected bigint, told_ahead bigint
) RETURNS TABLE (
    now bigint, ahead bigint, scope bytea, used_bytes bigint, used_objects bigint,
    soft_bytes bigint, soft_objects bigint, grace bigint, over_bytes bigint, over_objects bigint,
    crossed_bytes boolean, crossed_objects boolean
)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    most CONSTANT numeric := 9223372036854775807;
    least_of_all CONSTANT numeric := -9223372036854775808;
    moment timestamptz;
    told record;
BEGIN
    PERFORM storage_guard_2_lock(names);
    told := storage_guard_2_time(expected, told_ahead);
    moment := told.moment;
    PERFORM storage_guard_2_stop(names, moment);
    DELETE FROM storage_guard_holds AS hold
    USING unnest(ids, names) AS asked (id, name)
    WHERE hold.key = sha256(asked.name) AND hold.id = asked.id;

    WITH asked AS (
        SELECT * FROM unnest(
            ids, names, change_bytes, change_objects, kept_ids, kept_bytes, kept_objects, kept_milliseconds
        ) AS asked (id, name, bytes, objects, kept, held_bytes, held_objects, milliseconds)
        WHERE bytes <> 0 OR objects <> 0 OR kept IS NOT NULL
    ), fresh AS (
        INSERT INTO storage_guard_settled (id, settled)
        SELECT DISTINCT asked.id, moment FROM asked ORDER BY asked.id
        ON CONFLICT DO NOTHING RETURNING id
    ), made AS (
        INSERT INTO storage_guard_holds AS hold (id, scope, bytes, objects, expires)
        SELECT asked.kept, asked.name, asked.held_bytes, asked.held_objects,
            moment + asked.milliseconds * interval '1 millisecond'
        FROM asked JOIN fresh ON fresh.id = asked.id WHERE asked.kept IS NOT NULL
        ON CONFLICT (key, id) DO UPDATE SET
            bytes = CASE WHEN hold.expires > moment THEN hold.bytes ELSE 0 END + excluded.bytes,
            objects = CASE WHEN hold.expires > moment THEN hold.objects ELSE 0 END + excluded.objects,
            expires = excluded.expires
    ), change AS (
        SELECT sha256(asked.name) AS key, sum(asked.bytes) AS bytes, sum(asked.objects) AS objects
        FROM asked JOIN fresh ON fresh.id = asked.id GROUP BY 1
    )
    UPDATE storage_guard_accounts AS account SET
        used_bytes = least(greatest(account.used_bytes + change.bytes, least_of_all), most),
        used_objects = least(greatest(account.used_objects + change.objects, least_of_all), most)
    FROM change WHERE account.key = change.key;

    PERFORM storage_guard_2_stop(names, moment);
    RETURN QUERY
    WITH standing AS (
        SELECT account.key, account.scope, account.over_bytes, account.over_objects, asked.is_charged,
            greatest(account.used_bytes, 0) AS used_bytes, greatest(account.used_objects, 0) AS used_objects,
            CASE WHEN account.has_limits THEN account.soft_bytes ELSE asked.soft_bytes END AS soft_bytes,
            CASE WHEN account.has_limits THEN account.soft_objects ELSE asked.soft_objects END AS soft_objects,
            CASE WHEN account.has_limits THEN account.grace ELSE asked.grace END AS grace
        FROM unnest(
            scopes, are_charged, are_known, default_soft_bytes, default_soft_objects, default_graces
        ) AS asked (name, is_charged, is_known, soft_bytes, soft_objects, grace)
        JOIN storage_guard_accounts AS account ON account.key = sha256(asked.name)
        WHERE account.has_limits OR asked.is_known
    ), reviewed AS (
        -- A soft limit of NULL, or one that is too large to be passed, resets the timer.
        SELECT standing.*,
            CASE WHEN NOT is_charged THEN over_bytes
                WHEN soft_bytes >= 0 AND used_bytes > soft_bytes THEN coalesce(over_bytes, told.now)
            END AS since_bytes,
            CASE WHEN NOT is_charged THEN over_objects
                WHEN soft_objects >= 0 AND used_objects > soft_objects THEN coalesce(over_objects, told.now)
            END AS since_objects
        FROM standing
    ), kept AS (
        UPDATE storage_guard_accounts AS account
        SET over_bytes = reviewed.since_bytes, over_objects = reviewed.since_objects
        FROM reviewed WHERE account.key = reviewed.key
            AND (account.over_bytes IS DISTINCT FROM reviewed.since_bytes
                OR account.over_objects IS DISTINCT FROM reviewed.since_objects)
    )
    SELECT told.now, told.ahead, above.scope, used_bytes, used_objects, soft_bytes, soft_objects, grace,
        told.now - since_bytes, told.now - since_objects,
        over_bytes IS NULL AND since_bytes IS NOT NULL, over_objects IS NULL AND since_objects IS NOT NULL
    FROM (SELECT true) AS time
    LEFT JOIN reviewed AS above ON since_bytes IS NOT NULL OR since_objects IS NOT NULL;
    -- A scope that uses nothing, holds nothing and has no limits of its own leaves no row, unless something is unmatched.
    DELETE FROM storage_guard_accounts AS account
    WHERE account.key IN (SELECT sha256(name) FROM unnest(names) AS name)
        AND account.used_bytes = 0 AND account.used_objects = 0 AND NOT account.has_limits
        AND account.unmatched_bytes = 0 AND account.unmatched_objects = 0
        AND account.over_bytes IS NULL AND account.over_objects IS NULL
        AND NOT EXISTS (SELECT FROM storage_guard_holds AS hold WHERE hold.key = account.key);

    -- Deletes some of the rows that no longer count, of any scope: more than one settlement adds.
    DELETE FROM storage_guard_holds WHERE ctid = ANY (ARRAY(
        SELECT ctid FROM storage_guard_holds WHERE expires <= moment
        ORDER BY expires LIMIT 128 FOR UPDATE SKIP LOCKED
    ));
    DELETE FROM storage_guard_settled WHERE ctid = ANY (ARRAY(
        SELECT ctid FROM storage_guard_settled WHERE number = ANY (ARRAY(
            SELECT number FROM (
                SELECT number, settled FROM storage_guard_settled ORDER BY number LIMIT 128
            ) AS oldest
            WHERE settled <= moment - interval '1 day'
                OR number <= (SELECT max(number) FROM storage_guard_settled) - 1000000
        ))
        FOR UPDATE SKIP LOCKED
    ));
END
$$;

-- Prolongs holds that have not expired. The arrays have one element for each hold and scope.
CREATE OR REPLACE FUNCTION storage_guard_2_renew(
    ids uuid[], names bytea[], milliseconds bigint, expected bigint, told_ahead bigint, OUT now bigint, OUT ahead bigint
)
LANGUAGE plpgsql AS $$
DECLARE
    moment timestamptz;
BEGIN
    SELECT * INTO moment, now, ahead FROM storage_guard_2_time(expected, told_ahead);
    UPDATE storage_guard_holds SET expires = moment + milliseconds * interval '1 millisecond'
    WHERE ctid = ANY (ARRAY(
        SELECT hold.ctid FROM unnest(ids, names) AS asked (id, name)
        JOIN storage_guard_holds AS hold ON hold.key = sha256(asked.name) AND hold.id = asked.id
        WHERE hold.expires > moment FOR UPDATE OF hold SKIP LOCKED
    ));
END
$$;

COMMIT;
