-- The ledger file, version 1. Entries are added and never changed; whoever tries is
-- stopped here, and whoever removes these triggers first is found by the hash chain.
-- Beside the entries stand marks that may move: the head, and how far each reader is.

CREATE TABLE ledger (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    epoch TEXT NOT NULL CHECK (length(epoch) > 0),
    created_us INTEGER NOT NULL
) STRICT;

CREATE TABLE entry (
    seq INTEGER PRIMARY KEY CHECK (seq > 0),
    kind TEXT NOT NULL,
    attempt_id TEXT NOT NULL,
    at_us INTEGER NOT NULL,
    body BLOB NOT NULL,
    prev_hash BLOB NOT NULL CHECK (length(prev_hash) = 32),
    hash BLOB NOT NULL CHECK (length(hash) = 32)
) STRICT;

CREATE UNIQUE INDEX entry_one_intent ON entry (attempt_id) WHERE kind = 'intent';

-- Where the entries end, so that a missing tail is seen without a witness.
CREATE TABLE head (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    seq INTEGER NOT NULL,
    hash BLOB NOT NULL
) STRICT;

CREATE TABLE cursor (
    reader TEXT PRIMARY KEY,
    seq INTEGER NOT NULL,
    hash BLOB NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TRIGGER entry_is_next BEFORE INSERT ON entry
WHEN NEW.seq <> (SELECT coalesce(max(seq), 0) + 1 FROM entry)
BEGIN
    SELECT RAISE(ABORT, 'an entry follows the last one, without a gap');
END;

CREATE TRIGGER entry_not_changed BEFORE UPDATE ON entry
BEGIN
    SELECT RAISE(ABORT, 'entries are never changed');
END;

CREATE TRIGGER entry_not_removed BEFORE DELETE ON entry
BEGIN
    SELECT RAISE(ABORT, 'entries are never removed');
END;

CREATE TRIGGER ledger_not_changed BEFORE UPDATE ON ledger
BEGIN
    SELECT RAISE(ABORT, 'the epoch is never changed');
END;

CREATE TRIGGER ledger_not_removed BEFORE DELETE ON ledger
BEGIN
    SELECT RAISE(ABORT, 'the epoch is never removed');
END;
