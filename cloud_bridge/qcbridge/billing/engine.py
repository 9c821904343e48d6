"""The billing database itself: its address, its connections, its schema and its troubles.

SQLite or PostgreSQL by the URL. Whoever reads or writes the books does it over a
`Database`, whose errors tell a database that is away, which passes, from one that says
no, which does not. Any thread may use one.
"""

from __future__ import annotations

import sqlite3
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import event
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import (
    ArgumentError,
    DBAPIError,
    InterfaceError,
    NoSuchModuleError,
    OperationalError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.pool import NullPool

from qcbridge.billing.tables import LEDGER
from qcnode.errors import BillingError

if TYPE_CHECKING:
    from collections.abc import Iterator

MIGRATIONS = Path(__file__).parent / "migrations"
CONNECT_TIMEOUT_S = 5
LOCK_TIMEOUT_S = 10
_MIGRATION_LOCK = 0x71636269  # Any number, the same for all servers of one database.


class StoreUnavailableError(BillingError):
    """The database cannot be reached or is busy; the same again later may succeed."""


class Database:
    """One billing database, by its URL."""

    def __init__(self, url: str) -> None:
        self._engine = _make_engine(url)
        self.is_sqlite = self._engine.dialect.name == "sqlite"
        # Batches take SQLite's write lock at once, instead of failing half-way for it;
        # readers of several statements see one moment of the books.
        self._writer = self._engine.execution_options(sqlite_begin="IMMEDIATE")
        self._reader = (
            self._engine
            if self.is_sqlite
            else self._engine.execution_options(isolation_level="REPEATABLE READ")
        )

    @property
    def name(self) -> str:
        """The database's address without its password."""
        return self._engine.url.render_as_string(hide_password=True)

    @property
    def file(self) -> Path | None:
        """The file it is, or None when a server keeps it."""
        return Path(self._engine.url.database or "") if self.is_sqlite else None

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """Lend a connection that sees one moment of the books."""
        with plain_errors(), self._reader.connect() as db:
            yield db

    @contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        """Lend a connection in a transaction of its own; leaving without a commit rolls back."""
        with plain_errors(), self._writer.connect() as db:
            yield db

    @contextmanager
    def driving(self, db: sa.Connection) -> Iterator[Any]:
        """Lend the driver's own connection under `db`, in the same transaction."""
        driver = db.dialect.loaded_dbapi
        try:
            yield db.connection.driver_connection
        except (driver.OperationalError, driver.InterfaceError) as error:
            raise StoreUnavailableError(
                f"the billing database does not answer: {_line(error)}"
            ) from error
        except driver.Error as error:
            raise BillingError(f"the billing database says no: {_line(error)}") from error

    def close(self) -> None:
        """Let go of all connections; closing twice is harmless."""
        self._engine.dispose()

    def ping(self) -> None:
        """Return when the database answers; raises `StoreUnavailableError`."""
        with self.reading() as db:
            db.execute(sa.select(LEDGER.c.id).limit(1)).all()

    def migrate(self) -> None:
        """Bring the schema up to date; several servers may do this at the same time.

        A database that holds something else is refused before anything is written to it.
        """
        self._look()
        with self.writing() as db:
            if not self.is_sqlite:
                db.execute(sa.select(sa.func.pg_advisory_xact_lock(_MIGRATION_LOCK)))
            config = _alembic_config()
            config.attributes["connection"] = db
            command.upgrade(config, "head")
            db.commit()

    def check_schema(self) -> None:
        """Raise `BillingError` when this is no billing database of this version."""
        if self.file is not None and not self.file.is_file():
            raise BillingError(
                f"no billing database at {self.file}: name one with --url,"
                " or make it with `qcnode billing serve`"
            )
        current = self._look()
        wanted = ScriptDirectory.from_config(_alembic_config()).get_current_head()
        if current != wanted:
            raise BillingError(
                f"the billing database {self.name} is at version {current or 'none'}, not"
                f" {wanted}: start `qcnode billing serve` on it once"
            )

    def _look(self) -> str | None:
        """Return the version that is there, and refuse what is no billing database.

        A file is opened for reading only: it may be one that another program is writing.
        """
        engine = self._reader
        if self.file is not None:
            file = self.file
            if not file.is_file():
                return None
            engine = sa.create_engine(
                "sqlite://", creator=lambda: _connect_reading(file), poolclass=NullPool
            )
        with plain_errors(), engine.connect() as db:
            tables = set(sa.inspect(db).get_table_names())
            current = MigrationContext.configure(db).get_current_revision()
        if current is None and tables - {"alembic_version"}:
            raise BillingError(
                f"{self.name}: this is no billing database (a node's ledger?): give the one"
                " that `qcnode billing serve` keeps"
            )
        known = ScriptDirectory.from_config(_alembic_config()).walk_revisions()
        if current is not None and current not in {script.revision for script in known}:
            raise BillingError(
                f"{self.name}: at version {current}, which this qcnode does not know: install"
                " a newer one, or give the database that `qcnode billing serve` keeps"
            )
        return current


def insert_into(db: sa.Connection, table: sa.Table) -> sqlite.Insert | postgresql.Insert:
    """Begin an insert that may say what to do on a conflict."""
    return sqlite.insert(table) if db.dialect.name == "sqlite" else postgresql.insert(table)


@contextmanager
def plain_errors() -> Iterator[None]:
    """Tell apart a database that is away, which passes, from one that says no, which does not."""
    try:
        yield
    except (OperationalError, InterfaceError, PoolTimeoutError) as error:
        raise StoreUnavailableError(
            f"the billing database does not answer: {_first_line(error)}"
        ) from error
    except DBAPIError as error:
        raise BillingError(f"the billing database says no: {_first_line(error)}") from error


def _first_line(error: DBAPIError | PoolTimeoutError) -> str:
    return _line(error.orig if isinstance(error, DBAPIError) else error)


def _line(error: BaseException | None) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _make_engine(url: str) -> sa.Engine:
    try:
        parsed = sa.make_url(url)
        if parsed.drivername in ("postgres", "postgresql"):
            parsed = parsed.set(drivername="postgresql+psycopg")
        if parsed.drivername == "sqlite":
            return _make_sqlite(parsed)
        if parsed.drivername == "postgresql+psycopg":
            return sa.create_engine(
                parsed,
                pool_size=5,
                max_overflow=5,
                pool_timeout=CONNECT_TIMEOUT_S,
                pool_pre_ping=True,
                connect_args={
                    "connect_timeout": CONNECT_TIMEOUT_S,
                    "application_name": "qcnode-billing",
                },
            )
    except (ArgumentError, NoSuchModuleError, ValueError) as error:
        raise BillingError(
            "the database address cannot be read: write sqlite:///FILE"
            " or postgresql+psycopg://USER@HOST/DATABASE"
        ) from error
    except ModuleNotFoundError as error:
        raise BillingError(
            f"PostgreSQL needs {error.name}: install qcnode with the extra 'postgres'"
        ) from error
    raise BillingError(
        f"a database of kind {parsed.drivername!r} is not known here: write sqlite:///FILE"
        " or postgresql+psycopg://USER@HOST/DATABASE"
    )


def _make_sqlite(url: sa.URL) -> sa.Engine:
    if not url.database or url.database == ":memory:":
        raise BillingError("bills are kept on disk: write sqlite:///FILE")
    engine = sa.create_engine(url, connect_args={"timeout": LOCK_TIMEOUT_S})

    @event.listens_for(engine, "connect")
    def _on_connect(connection: sqlite3.Connection, _record: Any) -> None:
        # Transactions are begun by the listener below, so the driver must begin none.
        connection.isolation_level = None
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA foreign_keys=ON")

    @event.listens_for(engine, "begin")
    def _on_begin(connection: sa.Connection) -> None:
        mode = connection.get_execution_options().get("sqlite_begin", "DEFERRED")
        connection.exec_driver_sql(f"BEGIN {mode}")

    return engine


def _connect_reading(file: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{file.resolve().as_uri()}?mode=ro", uri=True, timeout=LOCK_TIMEOUT_S)


def _alembic_config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    return config
