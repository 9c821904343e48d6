"""Real services for the tests, each started for them and stopped by its process id.

Whatever starts Mosquitto or PostgreSQL for a test does it here; only the tests of the
shipped broker install that one's own files. Each can be killed as a power cut would end
it, and be started again on the same port with what it had on disk.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from tests.programs import find_postgres

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

START_S = 30
LOOK_AGAIN_S = 0.02


class Mosquitto:
    """A broker without TLS on the loopback interface, which keeps its sessions on disk.

    With `users` (their passwords by name) nobody else may connect; with `acl`, a file in
    Mosquitto's own form, they may do what stands there.
    """

    def __init__(
        self,
        program: Callable[[str], Path],
        home: Path,
        port: int,
        *,
        users: Mapping[str, str] | None = None,
        acl: str | None = None,
    ) -> None:
        self.port = port
        self._program = program("mosquitto")
        self._config = home / "mosquitto.conf"
        self._database = home / "mosquitto.db"
        self._process: subprocess.Popen[bytes] | None = None
        lines = [
            f"listener {port} 127.0.0.1",
            # Started by root the broker becomes another user, who may not see this folder.
            f"user {pwd.getpwuid(os.geteuid()).pw_name}",
            "persistence true",
            f"persistence_location {home}/",
            f"persistence_file {self._database.name}",
            "autosave_interval 1",
            "autosave_on_changes true",
            "max_queued_messages 0",
            f"allow_anonymous {'true' if users is None else 'false'}",
        ]
        if users is not None:
            lines.append(f"password_file {_password_file(program, home, users)}")
        if acl is not None:
            (home / "acl").write_text(acl)
            (home / "acl").chmod(0o600)
            lines.append(f"acl_file {home / 'acl'}")
        self._config.write_text("\n".join(lines) + "\n")

    def start(self, *, empty: bool = False) -> None:
        """Return when the broker accepts connections; `empty` takes its database away first."""
        if empty:
            self._database.unlink(missing_ok=True)
        self._process = subprocess.Popen(
            [self._program, "-c", self._config],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + START_S
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
            except OSError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    pytest.fail(f"Mosquitto did not start: {self._config.read_text()}")
                time.sleep(LOOK_AGAIN_S)
            else:
                return

    def kill(self) -> None:
        """End it as a power cut would."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(START_S)

    def stop(self) -> None:
        """End it, whatever state it is in."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            self._process.wait(START_S)


def _password_file(program: Callable[[str], Path], home: Path, users: Mapping[str, str]) -> Path:
    path = home / "passwords"
    path.write_text("".join(f"{user}:{password}\n" for user, password in users.items()))
    path.chmod(0o600)
    subprocess.run([program("mosquitto_passwd"), "-U", path], check=True)
    return path


class Postgres:
    """A PostgreSQL server on a socket of its own, without TCP and without waiting for disks.

    Not waiting is safe here: a killed process loses nothing that the system has taken.
    With `fsync` it waits all the same, as one in earnest does.
    """

    def __init__(self, programs: Path, *, fsync: bool = False) -> None:
        self._programs = programs
        self._options = [] if fsync else ["-F"]
        self._user: str | None = None
        if os.geteuid() == 0:
            try:
                self._user = pwd.getpwnam("postgres").pw_name
            except KeyError:
                pytest.skip("PostgreSQL does not run as root, and there is no user postgres")
        # Not under tmp_path: that is closed to every user but its own.
        self._home = Path(tempfile.mkdtemp(prefix="qcpg"))
        if self._user is not None:
            shutil.chown(self._home, self._user)
        self._server: subprocess.Popen[bytes] | None = None
        self._databases = 0

    def __call__(self) -> str:
        """Make an empty database and return its URL."""
        self._databases += 1
        name = f"test{self._databases}"
        with self._connect() as db:
            db.execute(f"CREATE DATABASE {name}".encode())
        return f"postgresql+psycopg://postgres@/{name}?host={self._home}"

    def start(self) -> None:
        """Return when the server answers; the first time, its data folder is made."""
        data = self._home / "data"
        if not data.exists():
            subprocess.run(
                [self._programs / "initdb", "-D", data, "-U", "postgres", "-A", "trust", "-N"],
                check=True,
                user=self._user,
                cwd=self._home,
                stdout=subprocess.DEVNULL,
                timeout=120,
            )
        deadline = time.monotonic() + START_S
        while True:
            if self._server is None or self._server.poll() is not None:
                # After a kill, children of the old server may hold its memory for a moment.
                self._launch(data)
            try:
                self._connect().close()
            except psycopg.OperationalError:
                if time.monotonic() > deadline:
                    pytest.fail(f"PostgreSQL did not start: {(self._home / 'log').read_text()}")
                time.sleep(5 * LOOK_AGAIN_S)
            else:
                return

    def kill(self) -> None:
        """End the server as a power cut would; its children follow by themselves."""
        assert self._server is not None
        self._server.kill()
        self._server.wait(START_S)

    def remove(self) -> None:
        """End the server, whatever state it is in, and take its folder away."""
        try:
            if self._server is not None and self._server.poll() is None:
                self._server.send_signal(signal.SIGINT)  # its fast shutdown
                self._server.wait(START_S)
        finally:
            shutil.rmtree(self._home)

    def _launch(self, data: Path) -> None:
        with (self._home / "log").open("ab") as log:
            self._server = subprocess.Popen(
                [
                    self._programs / "postgres",
                    *("-D", data, "-k", self._home, "-h", "", *self._options),
                ],
                user=self._user,
                cwd=self._home,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def _connect(self) -> psycopg.Connection[Any]:
        address = f"host={self._home} user=postgres dbname=postgres"
        return psycopg.connect(address, autocommit=True, connect_timeout=START_S)


@pytest.fixture
def make_mosquitto(
    program: Callable[[str], Path], free_port: Callable[[], int], tmp_path: Path
) -> Iterator[Callable[..., Mosquitto]]:
    """Make brokers and start them; all of them are stopped in the end."""
    made: list[Mosquitto] = []

    def make(**options: Any) -> Mosquitto:
        home = tmp_path / f"mosquitto{len(made)}"
        home.mkdir()
        made.append(Mosquitto(program, home, free_port(), **options))
        made[-1].start()
        return made[-1]

    yield make
    for broker in made:
        broker.stop()


@pytest.fixture
def mosquitto(make_mosquitto: Callable[..., Mosquitto]) -> Mosquitto:
    """A broker that takes everybody in."""
    return make_mosquitto()


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL server for all tests; calling it makes an empty database.

    A test that kills it starts it again before it ends.
    """
    programs = find_postgres()
    if programs is None:
        pytest.skip("PostgreSQL's server programs are missing here")
    server = Postgres(programs)
    try:
        server.start()
        yield server
    finally:
        server.remove()
