"""The first ledger file: made from `ledger.sql` of its time, never by a migration."""

revision = "1"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    raise NotImplementedError("a ledger is made directly in its newest version")
