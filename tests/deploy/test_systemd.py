"""The units of `deploy/systemd`: no complaint, little exposure, commands that exist."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.systemd

INSTALLED = "/opt/qcnode/venv/bin/qcnode"
UNITS = ["qcnode", "qcnode-billing"]
DROP_INS = ["camera", "gpu", "credentials"]


@pytest.fixture
def analyze(program, repository, tmp_path):
    """Check a unit, with drop-ins, as if it were installed with the command in its place."""
    command = tmp_path / "qcnode"
    command.write_text("#!/bin/sh\n")
    command.chmod(0o755)

    def run(unit, *arguments, drop_ins=()):
        for source in [f"{unit}.service", *(f"drop-ins/{name}.conf" for name in drop_ins)]:
            text = (repository / "deploy" / "systemd" / source).read_text()
            target = tmp_path / f"{unit}.service"
            if source.startswith("drop-ins"):
                target = tmp_path / f"{unit}.service.d" / Path(source).name
                target.parent.mkdir(exist_ok=True)
            target.write_text(text.replace(INSTALLED, str(command)))
        return subprocess.run(
            [program("systemd-analyze"), *arguments, tmp_path / f"{unit}.service"],
            capture_output=True,
            text=True,
            check=False,
        )

    return run


@pytest.mark.parametrize(
    ("unit", "drop_ins"), [*((unit, ()) for unit in UNITS), *(("qcnode", (d,)) for d in DROP_INS)]
)
def test_systemd_has_nothing_to_say_against_it(analyze, unit, drop_ins):
    done = analyze(unit, "verify", drop_ins=drop_ins)

    assert done.stderr == ""  # an unknown key leaves the exit code 0
    assert done.returncode == 0


@pytest.mark.parametrize(
    ("unit", "drop_ins"), [*((unit, ()) for unit in UNITS), *(("qcnode", (d,)) for d in DROP_INS)]
)
def test_its_exposure_is_2_of_10_at_most(analyze, unit, drop_ins):
    done = analyze(unit, "security", "--offline=yes", "--threshold=20", drop_ins=drop_ins)

    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("unit", UNITS)
def test_the_command_it_starts_exists_with_its_options(repository, unit):
    text = (repository / "deploy" / "systemd" / f"{unit}.service").read_text()
    [line] = [line for line in text.splitlines() if line.startswith("ExecStart=")]
    words = shlex.split(line.removeprefix("ExecStart="))
    options = [word for word in words[1:] if not word.startswith("$")]

    done = subprocess.run(
        [Path(sys.executable).with_name("qcnode"), *options, "--help"],
        capture_output=True,
        text=True,
        check=False,
    )

    assert words[0] == INSTALLED
    assert done.returncode == 0, done.stderr
    for option in (word for word in options if word.startswith("--")):
        assert option in done.stdout


@pytest.mark.skipif(shutil.which("systemd-sysusers") is None, reason="systemd-sysusers is missing")
def test_the_users_of_the_units_are_made(repository, tmp_path):
    (tmp_path / "etc").mkdir()
    subprocess.run(
        [
            "systemd-sysusers",
            f"--root={tmp_path}",
            repository / "deploy" / "systemd" / "qcnode.sysusers.conf",
        ],
        check=True,
        env={**os.environ, "SYSTEMD_LOG_LEVEL": "err"},
    )

    users = (tmp_path / "etc" / "passwd").read_text()
    for unit in UNITS:
        text = (repository / "deploy" / "systemd" / f"{unit}.service").read_text()
        assert f"User={unit}\n" in text
        assert f"{unit}:" in users
