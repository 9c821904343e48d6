"""Entries may be about more than attempts; checkpoints and a snapshot stand beside them.

No row of `entry` is written: a column is renamed, and an index made anew.
"""

from alembic import op

revision = "2"
down_revision = "1"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.drop_index("entry_one_intent", table_name="entry")
    op.execute("ALTER TABLE entry RENAME COLUMN attempt_id TO subject")
    op.execute(
        "CREATE UNIQUE INDEX entry_step ON entry ("
        " subject, CASE WHEN kind IN ('adjusted', 'outcome', 'leased') THEN seq ELSE kind END )"
    )
    op.execute(
        "CREATE TABLE checkpoint ("
        " seq INTEGER NOT NULL CHECK (seq > 0),"
        " signer TEXT NOT NULL CHECK (signer IN ('node', 'server')),"
        " at_us INTEGER NOT NULL,"
        " note TEXT NOT NULL,"
        " PRIMARY KEY (seq, signer)"
        " ) STRICT, WITHOUT ROWID"
    )
    op.execute(
        "CREATE TABLE snapshot ("
        " id INTEGER PRIMARY KEY CHECK (id = 1),"
        " seq INTEGER NOT NULL CHECK (seq > 0),"
        " note TEXT NOT NULL,"
        " state BLOB NOT NULL"
        " ) STRICT"
    )
