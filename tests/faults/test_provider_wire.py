"""What a provider, or somebody in its place, can do on the wire, against real servers.

Whatever it is: the deadline is kept, no attempt ends twice or as less than it may have
cost, the fifth failure opens the circuit, and the part waits for a person.
"""

import asyncio
import contextlib
import itertools
import json
import socket
import struct
import threading
import time
from datetime import timedelta

import numpy as np
import pytest
from pydantic import SecretStr

from qcbridge.agent import FAILURES_MAX
from qcnode.books.chain import fact_of
from qcnode.books.ledger import SqliteLedger
from qcnode.errors import (
    BudgetExceededError,
    LedgerUnavailableError,
    ProviderRefusedError,
    ProviderUnavailableError,
    UnpricedError,
)
from qcnode.health import HealthBoard
from qcnode.money import Indeterminate, Intent, NotBilled, Settled
from qcnode.picture import encode_png
from qcnode.settings import AgentSettings, ProviderSettings, Settings
from qcnode.wiring.agents import build_agent
from qcnode.wiring.machine import now
from tests.bridge.metering import OPINION, USAGE, escalation
from tests.certificates import Authority
from tests.scripted import KEY

PICTURE = encode_png(np.full((300, 400, 3), 90, np.uint8))
PORT_ERRORS = (
    ProviderUnavailableError,
    ProviderRefusedError,
    BudgetExceededError,
    UnpricedError,
    LedgerUnavailableError,
)
TIMEOUT_S = 0.5
PATIENCE_S = 10.0
"""How long a review may take at most with two attempts; far more than its own deadline."""
RESET = struct.pack("ii", 1, 0)
HOST = "api.acme.test"


def completion(usage=USAGE, said=OPINION):
    choice = {"index": 0, "message": {"content": said}, "finish_reason": "stop"}
    answer = {"id": "r-1", "model": "m-1", "choices": [choice], "usage": usage}
    return json.dumps({name: value for name, value in answer.items() if value != "absent"}).encode()


def response(body, *, status="200 OK"):
    head = f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
    return f"{head}\r\n\r\n".encode() + body


class Peer:
    """A server at the level of bytes: reads one request on each connection, then `acts`."""

    def __init__(self, acts, *, tls=None):
        self.acts = acts
        self.tls = tls
        self.requests = []
        """The bytes that reached the application, by connection."""
        self.over = threading.Event()
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self._threads = [threading.Thread(target=self._accept)]

    def __enter__(self):
        self._threads[0].start()
        return self

    def __exit__(self, *_):
        self.over.set()
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        for thread in self._threads:
            thread.join(timeout=PATIENCE_S)
            assert not thread.is_alive()

    def _accept(self):
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            connection.settimeout(PATIENCE_S)
            thread = threading.Thread(target=self._serve, args=(connection,))
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection):
        with contextlib.suppress(OSError):
            if self.tls is not None:
                connection = self.tls.wrap_socket(connection, server_side=True)
            with connection:
                while request := _read_request(connection):
                    self.requests.append(request)
                    if not self.acts(connection, self.over):
                        return


def _read_request(connection):
    """Return one whole request, or nothing where the other side has gone."""
    got = b""
    while b"\r\n\r\n" not in got:
        more = connection.recv(65_536)
        if not more:
            return b""
        got += more
    head, _, body = got.partition(b"\r\n\r\n")
    length = next(
        int(line.split(b":")[1])
        for line in head.split(b"\r\n")
        if line.lower().startswith(b"content-length")
    )
    while len(body) < length:
        body += connection.recv(65_536)
    return head + body


class Rig:
    """A router over one provider, a ledger on disk, and what came of each review."""

    def __init__(self, folder, base_url, *, ca_file=None, attempts_max=1):
        ids = itertools.count(1)
        self.ledger = SqliteLedger(
            folder / "ledger.db", now_us=lambda: time.time_ns() // 1000, new_epoch=lambda: "e" * 32
        )
        settings = Settings(
            provider=(
                ProviderSettings(
                    base_url=base_url,
                    api_key=SecretStr(KEY),
                    timeout_s=TIMEOUT_S,
                    ca_file=ca_file,
                    name="acme" if HOST in base_url else "scripted",
                    region="cn",
                    entity="Acme",
                    filing="none",
                    data_classes=("part-image",),
                    prices=folder / "acme.toml" if HOST in base_url else None,
                ),
            ),
            agent=AgentSettings(enabled=True, attempts_max=attempts_max),
            egress={"regions": ("cn",)},
        )
        (folder / "acme.toml").write_text(
            '[[price]]\nprovider = "acme"\nmodel = "scripted-provider"\ncurrency = "USD"\n'
            "micro_per_mtok = { input = 300_000, cache_read = 1, output = 1 }\n"
            'valid_from = 2020-01-01T00:00:00Z\nsource = "a test"\nchecked_at = 2026-11-01\n'
        )
        self.router = build_agent(
            settings,
            ledger=self.ledger,
            health=HealthBoard(now),
            new_id=lambda: f"a{next(ids)}",
        )

    async def review(self, part="P-1"):
        """Ask; None means that the part waits for a person."""
        async with asyncio.timeout(PATIENCE_S):
            try:
                return await self.router.review(escalation(part), PICTURE, None)
            except PORT_ERRORS:
                return None

    async def fail_until_open(self):
        """Ask again and again; return how many questions it took until nobody asks any more."""
        for number in range(1, 3 * FAILURES_MAX):
            assert await self.review(f"P-{number}") is None
            if not self.router.reachable():
                return number
        return None

    def ends(self):
        """What each attempt that was about to leave ended as, in order; each ends once."""
        facts = [fact_of(entry) for entry in self.ledger.read(0, 10_000)]
        intents = [fact.attempt.id for fact in facts if isinstance(fact, Intent)]
        ends = [fact for fact in facts if isinstance(fact, Settled | NotBilled | Indeterminate)]
        assert sorted(fact.attempt_id for fact in ends) == sorted(intents)
        return ends

    async def close(self):
        await self.router.close()
        self.ledger.close()


@contextlib.asynccontextmanager
async def asking(folder, acts, **changes):
    with Peer(acts) as peer:
        rig = Rig(folder, f"http://127.0.0.1:{peer.port}/v1", **changes)
        try:
            yield peer, rig
        finally:
            await rig.close()


def says(body, *, status="200 OK", times=1):
    def acts(connection, _over):
        connection.sendall(response(body, status=status) * times)
        return True

    return acts


def in_turn(several):
    """Do one thing after the other, a request each."""

    def acts(connection, over):
        return next(several)(connection, over)

    return acts


def a_byte_at_a_time(connection, over):
    """Answer so slowly that each byte comes in time and the whole never does."""
    with contextlib.suppress(OSError):
        for byte in response(completion()):
            connection.sendall(bytes([byte]))
            if over.wait(TIMEOUT_S / 4):
                break
    return False


def reset_mid_body(connection, _over):
    whole = response(completion())
    connection.sendall(whole[: len(whole) - 20])
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    return False


def after_the_deadline(connection, over):
    over.wait(3 * TIMEOUT_S)
    with contextlib.suppress(OSError):
        connection.sendall(response(completion()))
    return False


def hangs_up(_connection, _over):
    return False


FAULTS = {
    "429": (says(b"{}", status="429 Too Many Requests"), NotBilled),
    "500": (says(b"{}", status="500 Internal Server Error"), Indeterminate),
    "one byte at a time": (a_byte_at_a_time, Indeterminate),
    "reset mid-body": (reset_mid_body, Indeterminate),
    "after the deadline": (after_the_deadline, Indeterminate),
    "hangs up": (hangs_up, Indeterminate),
    "no HTTP": (says(b"", status="??? \x00"), Indeterminate),
    "prose": (says(completion(said="It looks fine to me!")), Settled),
}


async def test_a_server_that_is_well_is_believed_and_billed_once(tmp_path):
    async with asking(tmp_path, says(completion())) as (peer, rig):
        opinion = await rig.review()
        (end,) = rig.ends()

    assert opinion.finding == "good"
    assert isinstance(end, Settled)
    assert len(peer.requests) == 1


@pytest.mark.parametrize("fault", FAULTS)
async def test_the_fifth_failure_opens_the_circuit_and_every_attempt_ends_as_it_may_have_cost(
    tmp_path, fault
):
    acts, ends_as = FAULTS[fault]
    async with asking(tmp_path, acts) as (peer, rig):
        taken = await rig.fail_until_open()
        asked = len(peer.requests)
        assert await rig.review("P-after") is None
        ends = rig.ends()

    assert taken == FAILURES_MAX == 5
    assert len(peer.requests) == asked == 5  # Nobody is asked while it is open.
    assert [type(end) for end in ends] == [ends_as] * 5


@pytest.mark.parametrize(
    "usage",
    [
        "absent",
        None,
        [],
        {},
        {"prompt_tokens": -900, "completion_tokens": 50, "total_tokens": -850},
        {"prompt_tokens": 900, "completion_tokens": -50, "total_tokens": 850},
        {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0},
        {"prompt_tokens": 900, "completion_tokens": 50, "total_tokens": 10_000},
        {"prompt_tokens": 10**12, "completion_tokens": 50, "total_tokens": 10**12 + 50},
        {"prompt_tokens": 900.5, "completion_tokens": 50},
        {"prompt_tokens": "900", "completion_tokens": 50},
        {"prompt_tokens": True, "completion_tokens": 50},
        {
            "prompt_tokens": 900,
            "completion_tokens": 50,
            "prompt_tokens_details": {"cached_tokens": 901},
        },
    ],
)
async def test_usage_nobody_can_believe_is_held_at_the_worst_case_and_never_billed(tmp_path, usage):
    async with asking(tmp_path, says(completion(usage))) as (_, rig):
        opinion = await rig.review()
        (end,) = rig.ends()
        totals = rig.ledger.totals()
        worst = rig.router.worst().hold.pico

    assert opinion.finding == "good"  # The words are worth having; their count is not.
    assert isinstance(end, Indeterminate)
    assert "no usage to believe" in end.reason
    assert 0 < end.hold.pico <= worst
    assert totals.cost_pico == {}
    assert totals.held_pico == {"USD": end.hold.pico}


async def test_an_answer_that_comes_twice_is_billed_once_and_never_taken_for_the_next(tmp_path):
    other = OPINION.replace("P-1", "P-2")
    replies = iter([says(completion(), times=2), says(completion(said=other))])
    async with asking(tmp_path, in_turn(replies)) as (peer, rig):
        first = await rig.review("P-1")
        second = await rig.review("P-2")
        ends = rig.ends()

    assert (first is not None, second is not None) == (True, True)
    assert len(peer.requests) == len(ends) == 2
    assert all(isinstance(end, Settled) for end in ends)


async def test_an_answer_about_another_part_is_no_ruling_on_this_one(tmp_path):
    async with asking(tmp_path, says(completion())) as (_, rig):
        assert await rig.review("P-2") is None
        (end,) = rig.ends()

    assert isinstance(end, Settled)


async def test_asking_again_is_another_attempt_and_each_is_held(tmp_path):
    replies = iter([reset_mid_body, says(completion())])
    async with asking(tmp_path, in_turn(replies), attempts_max=2) as (
        peer,
        rig,
    ):
        opinion = await rig.review()
        ends = rig.ends()

    assert opinion is not None
    assert [type(end) for end in ends] == [Indeterminate, Settled]
    # The same question, so that a provider that heeds it bills it once.
    keys = {
        line
        for request in peer.requests
        for line in request.split(b"\r\n")
        if line.lower().startswith(b"idempotency-key")
    }
    assert len(keys) == 1


# -- somebody else in its place ------------------------------------------------------------


@pytest.fixture
def authority(tmp_path):
    return Authority.make(tmp_path / "plant")


@pytest.fixture
def resolved(monkeypatch):
    """Have the provider's name lead to this machine, as a poisoned resolver would."""
    real = socket.getaddrinfo

    def getaddrinfo(host, *rest, **more):
        there = host.decode() if isinstance(host, bytes) else host
        return real("127.0.0.1" if there == HOST else host, *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


@pytest.mark.usefixtures("resolved")
async def test_the_provider_itself_is_asked_under_its_own_name_and_certificate(tmp_path, authority):
    with Peer(says(completion()), tls=authority.server(HOST)) as peer:
        rig = Rig(tmp_path, f"https://{HOST}:{peer.port}/v1", ca_file=authority.file)
        opinion = await rig.review()
        (end,) = rig.ends()
        await rig.close()

    assert opinion is not None
    assert isinstance(end, Settled)
    assert b"image_url" in peer.requests[0]


@pytest.mark.parametrize("wrong", ["name", "authority", "expired"])
@pytest.mark.usefixtures("resolved")
async def test_where_its_name_leads_to_somebody_else_no_byte_of_a_picture_is_sent(
    tmp_path, authority, wrong
):
    stranger = Authority.make(tmp_path / "stranger")
    shown = {
        "name": lambda: authority.server("elsewhere.test"),  # Honest, and not who was meant.
        "authority": lambda: stranger.server(HOST),
        "expired": lambda: authority.server(HOST, age=timedelta(days=30)),
    }[wrong]()
    with Peer(says(completion()), tls=shown) as peer:
        rig = Rig(tmp_path, f"https://{HOST}:{peer.port}/v1", ca_file=authority.file)
        if wrong == "none":
            # Whoever speaks no TLS gets the first words of it, and no request.
            peer.acts = hangs_up
        taken = await rig.fail_until_open()
        ends = rig.ends()
        totals = rig.ledger.totals()
        await rig.close()

    assert peer.requests == []
    assert taken == FAILURES_MAX
    assert all(isinstance(end, NotBilled) for end in ends)
    assert len(ends) == FAILURES_MAX
    assert (totals.cost_pico, totals.held_pico, totals.open) == ({}, {}, 0)


@pytest.mark.usefixtures("resolved")
async def test_one_that_speaks_no_tls_gets_no_picture_either(tmp_path, authority):
    got = []

    class Plain(Peer):
        def _serve(self, connection):
            with connection:
                got.append(connection.recv(65_536))
                connection.sendall(response(completion()))

    with Plain(hangs_up) as peer:
        rig = Rig(tmp_path, f"https://{HOST}:{peer.port}/v1", ca_file=authority.file)
        taken = await rig.fail_until_open()
        await rig.close()

    assert taken == len(got) == FAILURES_MAX
    # A greeting of TLS and nothing else: no head of HTTP, no key, no picture.
    assert all(words.startswith(b"\x16\x03") and len(words) < 2_000 for words in got)
    assert not any(KEY.encode() in words or b"POST" in words for words in got)


async def test_a_server_that_sends_us_elsewhere_is_not_followed(tmp_path):
    with Peer(says(completion())) as elsewhere:
        moved = f"307 Temporary Redirect\r\nlocation: http://127.0.0.1:{elsewhere.port}/v1"
        async with asking(tmp_path, says(b"{}", status=moved)) as (peer, rig):
            assert await rig.review() is None
            (end,) = rig.ends()

    assert len(peer.requests) == 1
    assert elsewhere.requests == []
    assert isinstance(end, NotBilled)
