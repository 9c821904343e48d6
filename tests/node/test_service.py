"""The service as systemd runs it: one process, its probes, its logs, its end, its refusals."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest

from qcnode.books.ledger import SqliteLedger
from tests.faults.corner import Zygote, check_parts, facts
from tests.scripted import KEY, scripted_provider

START_S = 60.0
STOP_S = 10.0
CANARIES = {
    "QCNODE_PROVIDER_API_KEY": "canary-of-the-provider",
    "QCNODE_BILLING_TOKEN": "canary-of-the-billing-server",
    "QCNODE_PANEL_TOKEN": "canary-of-the-panel",
    "QCNODE_MQTT_PASSWORD": "canary-of-the-broker",
}


class Service:
    """`qcnode run` as a process of its own."""

    def __init__(self, config, port, *, log, environ):
        self.port = port
        self._log = log
        self._token = environ.get("QCNODE_PANEL_TOKEN")
        with log.open("ab") as out:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "qcnode.cli.app", "run", "--config", config],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env=clean_environ(**environ),
            )

    def get(self, path, *, token=None):
        """Return status and body of a request, whatever they are."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}")
        if token is not None:
            request.add_header("Authorization", f"Bearer {token}")
        try:
            with urllib.request.urlopen(request, timeout=START_S) as answer:  # noqa: S310  # our own
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def metric(self, name):
        """Return one sample of `/metrics`."""
        status, text = self.get("/metrics", token=self._token)
        assert status == 200
        values = [line.rpartition(" ")[2] for line in text.splitlines() if line.startswith(name)]
        return float(values[0]) if values else None

    def until(self, holds):
        """Wait until something holds of the running service."""
        deadline = time.monotonic() + START_S
        while True:
            try:
                if holds():
                    return
            except OSError:  # Nobody listens yet.
                assert self._process.poll() is None, self.logs()
            assert time.monotonic() < deadline, self.logs()
            time.sleep(0.05)

    def until_ready(self):
        self.until(lambda: self.get("/readyz")[0] == 200)

    def stop(self):
        """Ask it to end, and return its exit code."""
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(STOP_S)

    def wait(self):
        return self._process.wait(START_S)

    def kill(self):
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait(STOP_S)

    def logs(self):
        return self._log.read_text()


def clean_environ(**more):
    """Return this environment without any of qcnode's own variables, and with `more`."""
    rest = {name: value for name, value in os.environ.items() if not name.startswith("QCNODE_")}
    return rest | more


@pytest.fixture
def configure(tmp_path, doubtful_model, free_port):
    """Write a configuration and return its path and the panel's port."""

    def configure(*, model=doubtful_model, panel="", more=""):
        port = free_port()
        config = tmp_path / "node.toml"
        config.write_text(
            f'[node]\nhome = "home"\n[model]\ndir = "{model}"\n'
            f"[panel]\nport = {port}\n{panel}\n[line]\nperiod_ms = 40.0\ngate_mm = 400.0\n{more}"
        )
        return config, port

    return configure


@pytest.fixture
def serve(tmp_path):
    """Start services, and end what is left of them."""
    started = []

    def serve(configured, **environ):
        started.append(Service(*configured, log=tmp_path / "node.log", environ=environ))
        return started[-1]

    yield serve
    for service in started:
        service.kill()


@pytest.fixture(scope="module")
def zygote():
    made = Zygote(clean_environ())
    yield made
    made.close()


@pytest.fixture
def refused(zygote, tmp_path):
    """Run a service that must not start, and return its one line."""

    def refused(config, **environ):
        log = tmp_path / "refused.log"
        code = zygote.reap(zygote.start(config, log, **environ))
        words = [line for line in log.read_text().splitlines() if not line.startswith("{")]
        assert code == 2, log.read_text()
        assert len(words) == 1, log.read_text()
        return words[0]

    return refused


# -- running and ending --------------------------------------------------------------


def test_probes_and_metrics_answer_and_the_logs_hold_no_secret(
    configure, serve, tmp_path, free_port
):
    with scripted_provider(tmp_path, world=tmp_path / "home" / "world.log") as provider:
        configured = configure(
            more=(
                f'[agent]\nenabled = true\n[provider]\nbase_url = "{provider.base_url}"\n'
                # Nobody is there, so there is something to complain of.
                f'[metering]\nchannel = "http"\nurl = "http://127.0.0.1:{free_port()}"\n'
            )
        )
        service = serve(configured, **CANARIES)
        service.until_ready()
        # The provider knows another key: every request is turned away at the door.
        service.until(lambda: service.metric('qcnode_attempts{state="not_billed"}') > 2)
        service.until(lambda: service.metric('qcnode_component_ok{component="billing"') == 0)

        assert service.get("/livez")[0] == 200
        assert json.loads(service.get("/readyz")[1]) == {"ready": True}
        known = json.loads(service.get("/readyz", token=CANARIES["QCNODE_PANEL_TOKEN"])[1])
        assert {one["component"] for one in known["components"]} >= {"line", "ledger", "provider"}
        assert service.get("/metrics")[0] == 403
        assert service.metric("qcnode_ready ") == 1
        assert service.stop() == 0

    for line in service.logs().splitlines():
        assert {"event", "level", "timestamp"} <= json.loads(line).keys()
    kept = [path for path in (tmp_path / "home").rglob("*") if path.is_file()]
    assert len(kept) > 3
    for path in (tmp_path / "node.log", *kept):
        found = [name for name, canary in CANARIES.items() if canary.encode() in path.read_bytes()]
        assert not found, f"{found} in {path}"


def test_sigterm_under_load_ends_in_good_order_and_nothing_is_lost(configure, serve, tmp_path):
    home = tmp_path / "home"
    with scripted_provider(tmp_path, world=home / "world.log", latency_ms=60_000.0) as provider:
        configured = configure(
            more=(
                '[agent]\nenabled = true\nlevel = "L3"\n[provider]\n'
                f'base_url = "{provider.base_url}"\ntimeout_s = 300.0\n'
            )
        )
        service = serve(configured, QCNODE_PROVIDER_API_KEY=KEY)
        service.until(lambda: service.metric('qcnode_attempts{state="open"}') == 4)
        assert service.stop() == 0
        asked = {row["attempt"] for row in provider.requests()}

    outcomes = {
        fact.attempt_id: type(fact).__name__ for fact in facts(home) if hasattr(fact, "attempt_id")
    }
    assert len(asked) == 4
    assert {attempt: outcomes[attempt] for attempt in asked} == dict.fromkeys(
        asked, "Indeterminate"
    )

    again = serve(configured, QCNODE_PROVIDER_API_KEY=KEY)
    again.until_ready()
    assert again.metric("qcnode_escalations_waiting") > 0
    assert again.stop() == 0
    check_parts(home)


def test_a_line_that_fails_ends_the_service_with_one_line(configure, serve, tmp_path):
    service = serve(configure())
    service.until(lambda: (service.metric("qcnode_parts_total") or 0) > 3)

    world = tmp_path / "home" / "world.log"
    world.rename(world.with_name("world.old"))
    world.mkdir()  # The line's record can be written no more.

    assert service.wait() == 2
    (words,) = [line for line in service.logs().splitlines() if not line.startswith("{")]
    assert str(world) in words


def test_a_budget_that_allows_no_question_at_all_is_said_at_the_start(configure, serve):
    service = serve(
        configure(
            more=(
                "[agent]\nenabled = true\n"
                '[[budget]]\nname = "day"\ncurrency = "USD"\nlimit_micro = 1\n'
                '[[budget]]\nname = "paint"\ncurrency = "USD"\nlimit_micro = 1\n'
                'scope = { department = "paint" }\n'
            )
        )
    )
    service.until_ready()
    assert service.stop() == 0

    logs = [json.loads(line) for line in service.logs().splitlines()]
    said = [one for one in logs if one["event"] == "this budget allows no question at all"]
    assert [(one["level"], one["budget"]) for one in said] == [("warning", "day")]
    assert "one request may need" in said[0]["why"]


# -- what it refuses to start with ---------------------------------------------------


def test_a_port_in_use_is_one_line(configure, refused):
    config, port = configure()
    with socket.create_server(("127.0.0.1", port)):
        assert f"127.0.0.1:{port}" in refused(config)


def test_books_that_another_node_keeps_are_one_line(configure, refused, tmp_path):
    config, _port = configure()
    (tmp_path / "home").mkdir()
    path = tmp_path / "home" / "ledger.db"
    other = SqliteLedger(path, now_us=lambda: 1, new_epoch=lambda: "e")
    try:
        assert str(path) in refused(config)
    finally:
        other.close()


def test_a_panel_open_to_others_needs_a_token(configure, refused):
    config, _port = configure(panel='host = "0.0.0.0"')

    assert "QCNODE_PANEL_TOKEN" in refused(config)


def test_a_token_that_can_be_guessed_is_refused(configure, refused):
    config, _port = configure()

    said = refused(config, QCNODE_PANEL_TOKEN="short")

    assert "QCNODE_PANEL_TOKEN" in said
    assert "'short'" not in said


def test_a_missing_model_is_one_line_that_says_how_to_get_one(configure, refused, tmp_path):
    config, _port = configure(model=tmp_path / "none")

    assert "qcnode teach" in refused(config)


def test_a_model_that_is_not_the_one_released_is_refused(
    configure, refused, doubtful_model, tmp_path
):
    model = shutil.copytree(doubtful_model, tmp_path / "model")
    with (model / "model.onnx").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))
    config, _port = configure(model=model)

    assert "model.onnx: digest does not match" in refused(config)
