"""Runs the migrations over the connection that `store` brings; opens none of its own."""

from alembic import context

import qcbridge.billing.paper_tables  # noqa: F401  # its tables belong to METADATA
from qcbridge.billing.tables import METADATA

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=METADATA,
    render_as_batch=True,
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
