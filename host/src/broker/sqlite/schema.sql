-- Layout 2 of a task database. `PRAGMA user_version` is its number, `application_id` says whose it is.

-- One row a task, waiting, running or ended. `seq` is the order of arrival.
CREATE TABLE task (
    seq            INTEGER PRIMARY KEY,
    uuid           BLOB NOT NULL UNIQUE,
    name           TEXT NOT NULL,
    priority       INTEGER NOT NULL,
    args           TEXT NOT NULL,
    kwargs         TEXT NOT NULL,
    created_at     REAL NOT NULL,
    updated_at     REAL NOT NULL,
    status         INTEGER NOT NULL,            -- 0 new, 1 process, 2 success, 3 error, 4 retry, 5 cancel
    attempt        INTEGER NOT NULL,
    attempts       INTEGER,
    max_time       REAL,
    due            REAL,                        -- not before; NULL once it may run
    delivery       INTEGER NOT NULL DEFAULT 0,  -- goes up with each lease; only the last one can finish the task
    losses         INTEGER NOT NULL DEFAULT 0,  -- workers that were lost with it
    begun          INTEGER,                     -- the delivery that a worker said it begins; of tasks that were lost before
    worker         BLOB,                        -- who has it, while it is in process
    result         TEXT,
    error          TEXT,
    traceback      TEXT,
    cancel_asked   TEXT,                        -- why somebody wanted it cancelled while a worker had it
    cancel_reason  TEXT,
    dead_letter    TEXT,
    original_error TEXT,
    resolved_by    TEXT,
    extras         TEXT
) STRICT;

-- Partial, so that each holds only what it is asked for.
CREATE INDEX task_ready ON task (priority DESC, seq) WHERE status = 0 AND due IS NULL;
CREATE INDEX task_due ON task (due) WHERE status = 0 AND due IS NOT NULL;
CREATE INDEX task_held ON task (worker) WHERE status = 1;
CREATE INDEX task_ended ON task (updated_at) WHERE status >= 2;

-- One row for each attempt that raised an error, with the decisions about it as a JSON list. It outlives its task.
CREATE TABLE attempt (
    id        INTEGER PRIMARY KEY,
    uuid      BLOB NOT NULL,
    task_name TEXT NOT NULL,
    attempt   INTEGER NOT NULL,
    at        REAL NOT NULL,
    seconds   REAL NOT NULL,
    error     TEXT NOT NULL,
    decisions TEXT NOT NULL
) STRICT;
CREATE INDEX attempt_uuid ON attempt (uuid);

-- The workers that are there. Each counts its `beat` up; one that stands still is taken for dead by whoever watches it.
CREATE TABLE worker (
    id      BLOB PRIMARY KEY,
    beat    INTEGER NOT NULL,
    seen_at REAL NOT NULL
) STRICT, WITHOUT ROWID;

-- Requests to cancel what runs, until its worker has read them.
CREATE TABLE cancellation (
    uuid   BLOB PRIMARY KEY,
    worker BLOB NOT NULL,
    reason TEXT NOT NULL
) STRICT, WITHOUT ROWID;

-- The global config. `qtasks-host` `project` is the name of the project.
CREATE TABLE config (
    name  TEXT NOT NULL,
    key   TEXT NOT NULL,
    value TEXT NOT NULL,
    PRIMARY KEY (name, key)
) STRICT, WITHOUT ROWID;
