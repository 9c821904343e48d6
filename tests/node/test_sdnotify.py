import asyncio
import os
import socket
import uuid

import pytest
from structlog.testing import capture_logs

from qcnode.sdnotify import Supervisor, feed_watchdog


@pytest.fixture
def inbox(tmp_path):
    address = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(address))
        listening.settimeout(5)
        yield listening


def supervisor_of(inbox, **environ):
    return Supervisor({"NOTIFY_SOCKET": str(inbox.getsockname()), **environ})


def test_ready_alive_status_and_stopping_arrive_as_systemd_spells_them(inbox):
    supervisor = supervisor_of(inbox)

    supervisor.ready("line a judging")
    supervisor.alive()
    supervisor.status("camera lost")
    supervisor.stopping()

    assert [inbox.recv(4096) for _ in range(4)] == [
        b"READY=1\nSTATUS=line a judging",
        b"WATCHDOG=1",
        b"STATUS=camera lost",
        b"STOPPING=1",
    ]


def test_a_status_with_line_breaks_cannot_smuggle_in_another_field(inbox):
    supervisor_of(inbox).status("camera lost\nWATCHDOG=trigger\r\nagain")

    assert inbox.recv(4096) == b"STATUS=camera lost WATCHDOG=trigger again"


def test_an_abstract_socket_is_reached_too():
    name = f"qcnode-{uuid.uuid4().hex}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind("\0" + name)
        listening.settimeout(5)

        Supervisor({"NOTIFY_SOCKET": "@" + name}).ready()

        assert listening.recv(4096) == b"READY=1"


def test_without_a_supervisor_no_socket_is_ever_made(monkeypatch):
    monkeypatch.setattr(socket, "socket", lambda *_: pytest.fail("a socket was made"))
    supervisor = Supervisor({})

    supervisor.ready()
    supervisor.alive()
    supervisor.stopping()

    assert supervisor.watchdog_every_s is None


def test_a_supervisor_that_is_gone_is_logged_once_and_again_after_it_was_back(tmp_path):
    address = tmp_path / "notify"
    supervisor = Supervisor({"NOTIFY_SOCKET": str(address)})

    with capture_logs() as logs:
        supervisor.alive()
        supervisor.alive()
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
            listening.bind(str(address))
            supervisor.alive()
        supervisor.alive()

    assert [entry["event"] for entry in logs] == ["supervisor cannot be told"] * 2


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"WATCHDOG_USEC": "10000000"}, 5.0),
        ({"WATCHDOG_USEC": "10000000", "WATCHDOG_PID": str(os.getpid())}, 5.0),
        ({"WATCHDOG_USEC": "10000000", "WATCHDOG_PID": "1"}, None),  # meant for another
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({}, None),
    ],
)
def test_the_watchdog_is_fed_twice_an_interval_and_only_if_it_is_ours(environ, expected):
    assert Supervisor(environ).watchdog_every_s == expected


async def test_a_node_that_is_not_alive_lets_the_watchdog_starve(inbox):
    lives = iter([True, False, False, True])
    rounds = 0

    async def next_round(_seconds):
        nonlocal rounds
        rounds += 1
        if rounds == 4:
            raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await feed_watchdog(
            supervisor_of(inbox, WATCHDOG_USEC="10000000"),
            alive=lambda: next(lives),
            sleep=next_round,
        )

    inbox.setblocking(False)
    assert [inbox.recv(64), inbox.recv(64)] == [b"WATCHDOG=1"] * 2
    with pytest.raises(BlockingIOError):
        inbox.recv(64)


async def test_feeding_a_watchdog_that_is_not_set_ends_at_once(inbox):
    await feed_watchdog(supervisor_of(inbox), alive=lambda: pytest.fail("asked for nothing"))
