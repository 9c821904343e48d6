"""The billing server's books, on each kind of database."""

import pytest

from tests.bridge.books import Books


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def database_url(request, tmp_path):
    """The address of an empty database, once of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/billing.db"
    return request.getfixturevalue("postgres")()


@pytest.fixture
def books(database_url):
    """Billing books with their schema, on each kind of database."""
    opened = Books(database_url).open()
    yield opened
    opened.close()


@pytest.fixture
def sqlite_books(tmp_path):
    """Billing books where the kind of database makes no difference."""
    opened = Books(f"sqlite:///{tmp_path}/billing.db").open()
    yield opened
    opened.close()
