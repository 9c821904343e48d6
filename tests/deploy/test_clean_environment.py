"""The package as somebody installs it: the wheel, the node's lock, and nothing else."""

import json
import subprocess
import sys
import time

import pytest

ENTRIES_LISTED = """
import importlib.util, json, pathlib, sys
site = pathlib.Path(sys.prefix)
print(json.dumps({
    "torch": importlib.util.find_spec("torch") is not None,
    "megabytes": sum(p.stat().st_size for p in site.rglob("*") if p.is_file()) // 1_000_000,
}))
"""


@pytest.fixture(scope="module")
def installed(repository, tmp_path_factory):
    """A virtual environment with the wheel and what the node's lock names."""
    folder = tmp_path_factory.mktemp("clean")
    python = folder / "venv" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True, timeout=120)
    pip = [python, "-m", "pip", "--disable-pip-version-check", "--no-input", "-q"]
    lock = repository / "requirements" / "node.lock"
    subprocess.run([*pip, "install", "--require-hashes", "-r", lock], check=True, timeout=600)
    subprocess.run(
        [*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", folder, repository],
        check=True,
        timeout=120,
    )
    (wheel,) = folder.glob("qcnode-*.whl")
    subprocess.run([*pip, "install", "--no-deps", wheel], check=True, timeout=120)
    return python


def test_a_node_teaches_judges_and_bills_without_torch(installed, tmp_path):
    about = json.loads(
        subprocess.run(
            [installed, "-c", ENTRIES_LISTED], check=True, capture_output=True, timeout=60
        ).stdout
    )
    assert not about["torch"]

    started = time.monotonic()
    subprocess.run([installed, "-c", "import qcnode.main"], check=True, timeout=60)
    took_s = time.monotonic() - started
    demo = subprocess.run(
        [installed.with_name("qcnode"), "demo", "--parts", "20", "--home", tmp_path, "--json"],
        check=True,
        capture_output=True,
        timeout=300,
        cwd=tmp_path,
    )
    summary = json.loads(demo.stdout)

    assert summary["parts"] == 20
    assert summary["ledger"]["verified"]
    assert summary["billing"]["matches"]
    print(  # noqa: T201  # the figures in the README; pytest shows them with -s
        f"\ninstalled {about['megabytes']} MB, node imported in {took_s:.1f} s"
    )
