"""Changing the model of a node in service, as a person types it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qcnode.manifest import load_manifest
from qcnode.picture import encode_png
from tests.variants import draw, make_release

START_S = 60.0


@pytest.fixture
def service(tmp_path):
    """A node that judges pictures of a folder, one after the other and over again."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(400):
        brightness = (0.1, 0.2, 0.15, 0.9, 0.12, 0.8)[number % 6]
        (pictures / f"{number:04d}.png").write_bytes(encode_png(draw(brightness, seed=number)))
    first = make_release(tmp_path / "first", tag="first", number=1)
    config = tmp_path / "node.toml"
    config.write_text(
        f"""
        [node]
        home = "{tmp_path}/home"
        [panel]
        port = 0
        [line]
        period_ms = 40.0
        [camera]
        kind = "folder"
        source = "{pictures}"
        [model]
        dir = "{first}"
        [change]
        shadow_parts = 5
        canary_share = 0.5
        canary_parts = 3
        watched_parts = 5
        """
    )
    log = tmp_path / "log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "qcnode.cli.app", "run", "--config", config],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            env={key: value for key, value in os.environ.items() if not key.startswith("QCNODE_")},
        )
    yield config, process
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0, log.read_text()


def version(release: Path) -> str:
    return load_manifest(release).version


def test_a_model_is_loaded_watched_and_rolled_back_by_commands(service, qcnode, tmp_path):
    config, process = service

    def until(holds):
        deadline = time.monotonic() + START_S
        while True:
            said = qcnode("model", "status", "--config", config, "--json")
            if said.code == 0 and holds(json.loads(said.out)):
                return json.loads(said.out)
            assert process.poll() is None
            assert time.monotonic() < deadline, said
            time.sleep(0.05)

    first = version(tmp_path / "first")
    until(lambda said: said["in_service"] == first)
    second = make_release(tmp_path / "second", tag="second", number=2)

    done = qcnode("model", "load", second, "--config", config, "--by", "anna")
    assert done.code == 0, done.err
    assert version(second) in done.out
    said = until(lambda said: said["in_service"] == version(second) and said["change"] is None)
    assert [step["what"] for step in said["steps"]][-5:] == [
        "asked for",
        "shadow",
        "canary",
        "watched",
        "in service",
    ]

    blind = make_release(tmp_path / "blind", tag="blind", number=3, factor=-1.0)
    assert qcnode("model", "load", blind, "--config", config).code == 0
    said = until(lambda said: said["last"] is not None and not said["last"]["ok"])
    assert "which is labelled" in said["last"]["words"]
    assert said["in_service"] == version(second)

    assert qcnode("model", "rollback", "--config", config, "--by", "anna").code == 0
    until(lambda said: said["in_service"] == first)
    shown = qcnode("model", "status", "--config", config)
    assert "rolled back" in shown.out
    assert "by anna" in shown.out


def test_a_node_that_never_ran_has_nothing_to_show(qcnode, tmp_path):
    config = tmp_path / "node.toml"
    config.write_text(f'[node]\nhome = "{tmp_path}/home"\n')
    done = qcnode("model", "status", "--config", config)
    assert done.code == 2
    assert "has this node run?" in done.err
    release = make_release(tmp_path / "release", tag="x")
    done = qcnode("model", "load", release, "--config", config)
    assert done.code == 2
    assert "has run" in done.err
