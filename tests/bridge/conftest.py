"""The billing server's books, on each kind of database."""

import pytest

from qcbridge.billing.store import BillingStore
from tests.bridge.ledgers import NOW


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def database_url(request, tmp_path):
    """The address of an empty database, once of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/billing.db"
    return request.getfixturevalue("postgres")()


@pytest.fixture
def store(database_url):
    """A billing store with its schema, on each kind of database."""
    opened = BillingStore(database_url, now=lambda: NOW)
    opened.migrate()
    yield opened
    opened.close()


@pytest.fixture
def sqlite_store(tmp_path):
    """A billing store where the kind of database makes no difference."""
    opened = BillingStore(f"sqlite:///{tmp_path}/billing.db", now=lambda: NOW)
    opened.migrate()
    yield opened
    opened.close()
