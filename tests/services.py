"""Real services for the tests, each started for them and stopped by its process id."""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import psycopg
import pytest

from tests.programs import find_postgres


@pytest.fixture(scope="session")
def postgres():
    """A PostgreSQL server on a socket of its own; the value makes an empty database's URL."""
    programs = find_postgres()
    if programs is None:
        pytest.skip("PostgreSQL's server programs are missing here")
    user = None
    if os.geteuid() == 0:
        try:
            user = pwd.getpwnam("postgres").pw_name
        except KeyError:
            pytest.skip("PostgreSQL does not run as root, and there is no user postgres")
    # Not under tmp_path: that is closed to every user but its own.
    home = Path(tempfile.mkdtemp(prefix="qcpg"))
    if user is not None:
        shutil.chown(home, user)
    try:
        subprocess.run(
            [programs / "initdb", "-D", home / "data", "-U", "postgres", "-A", "trust", "-N"],
            check=True,
            user=user,
            cwd=home,
            stdout=subprocess.DEVNULL,
            timeout=120,
        )
        with (home / "log").open("wb") as server_log:
            server = subprocess.Popen(
                [programs / "postgres", "-D", home / "data", "-k", home, "-h", "", "-F"],
                user=user,
                cwd=home,
                stdout=server_log,
                stderr=subprocess.STDOUT,
            )
        try:
            yield _databases(home, server)
        finally:
            server.send_signal(signal.SIGINT)  # its fast shutdown
            server.wait(30)
    finally:
        shutil.rmtree(home)


def _databases(home, server):
    address = f"host={home} user=postgres"
    deadline = time.monotonic() + 30
    while True:
        try:
            psycopg.connect(f"{address} dbname=postgres").close()
            break
        except psycopg.OperationalError:
            if server.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"PostgreSQL did not start: {(home / 'log').read_text()}")
            time.sleep(0.05)
    made = 0

    def make_database():
        nonlocal made
        made += 1
        with psycopg.connect(f"{address} dbname=postgres", autocommit=True) as db:
            db.execute(f"CREATE DATABASE test{made}".encode())
        return f"postgresql+psycopg://postgres@/test{made}?host={home}"

    return make_database


class Mosquitto:
    """A broker that keeps its sessions on disk, and can be killed and started again."""

    def __init__(self, program, home, port):
        self.port = port
        self._program = program
        self._config = home / "mosquitto.conf"
        self._config.write_text(
            f"listener {self.port} 127.0.0.1\n"
            "allow_anonymous true\n"
            "persistence true\n"
            f"persistence_location {home}/\n"
            "autosave_interval 1\n"
            "autosave_on_changes true\n"
            "max_queued_messages 0\n"
            f"user {pwd.getpwuid(os.geteuid()).pw_name}\n"
        )
        self._process = None

    def start(self):
        """Return when the broker accepts connections."""
        self._process = subprocess.Popen(
            [self._program, "-c", self._config],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 15
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
            except OSError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    pytest.fail(f"Mosquitto did not start: {self._config}")
                time.sleep(0.02)
            else:
                return

    def kill(self):
        """End it as a power cut would."""
        self._process.kill()
        self._process.wait(10)

    def stop(self):
        """End it, whatever state it is in."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            self._process.wait(10)


@pytest.fixture
def mosquitto(program, free_port, tmp_path):
    """A Mosquitto broker on a free port of the loopback interface."""
    home = tmp_path / "mosquitto"
    home.mkdir()
    broker = Mosquitto(program("mosquitto"), home, free_port())
    broker.start()
    yield broker
    broker.stop()
