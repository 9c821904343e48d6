"""What a power cut can leave of the ledger: opened by the real code, in hundreds of states."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.crash_states import record, run
from tests.sim.quiet import quiet

GROUPS = 12


@pytest.mark.parametrize("states", [300, pytest.param(2_000, marks=pytest.mark.long)])
def test_no_power_cut_loses_what_was_acknowledged(tmp_path, states):
    report = run(tmp_path, states=states)

    assert report.states == states
    assert not report.found, report.first


@pytest.mark.parametrize("synchronous", ["NORMAL", "OFF"])
def test_with_less_than_full_syncing_the_same_check_finds_losses(tmp_path, synchronous):
    """The control: a check that finds nothing here would find nothing anywhere."""
    report = run(tmp_path, states=60, synchronous=synchronous)

    assert report.found["lost"] > 15, report.found


def test_the_recording_is_what_the_system_is_asked_for(tmp_path, program):
    """The model stands on SQLite's file layer; the kernel must see the same, in that order."""
    trace = tmp_path / "trace"
    words = (
        "from pathlib import Path; from tests.faults.crash_states import Recording, work;"
        "from tests.sim.quiet import quiet\n"
        f"with quiet(): work(Path({str(tmp_path / 'traced')!r}), Recording(), groups={GROUPS})"
    )
    (tmp_path / "traced").mkdir()
    calls = "trace=pwrite64,write,ftruncate,fsync,fdatasync,unlink,rename"
    traced = subprocess.run(
        [
            *(program("strace"), "-f", "-y", "-s", "0", "-e", calls, "-o", trace),
            *(sys.executable, "-c", words),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    if "ptrace" in traced.stderr:
        pytest.skip("strace may not trace here")
    assert traced.returncode == 0, traced.stderr
    with quiet():
        recorded = record(tmp_path / "recorded", groups=GROUPS)

    asked = [
        (what, name, (more.offset, len(more.data or b"")) if what == "write" else more)
        for what, name, more in recorded.events
        if what not in ("said", "make")
    ]
    assert len(asked) > 100
    assert system_calls(trace, tmp_path / "traced") == asked


def system_calls(trace, folder):
    """Read what a trace says of the files in `folder`, in the words of a recording."""
    read, ends = [], {}
    for line in trace.read_text().splitlines():
        found = re.search(r" (\w+)\((?:\d+<(.*?)>|\"(.*?)\")(.*?)(?:\) += | <unfinished)", line)
        if found is None:
            continue
        call, opened, named, rest = found.groups()
        path = Path(opened or named)
        name = path.name
        if path == folder:
            read.append(("folder", "", None))
        elif path.parent != folder or name.endswith(("-shm", ".lock")):
            continue
        elif call == "pwrite64":
            size, offset = (int(number) for number in rest.split(", ")[-2:])
            read.append(("write", name, (offset, size)))
        elif call == "write":
            size = int(rest.split(", ")[-1])
            read.append(("write", name, (ends.get(name, 0), size)))
            ends[name] = ends.get(name, 0) + size
        elif call == "ftruncate":
            read.append(("write", name, (int(rest.split(", ")[-1]), 0)))
        elif call in ("fsync", "fdatasync"):
            read.append(("sync", name, None))
        elif call == "rename":
            read.append(("move", name, Path(rest.split('"')[1]).name))
            ends.pop(name, None)
        else:
            assert call == "unlink", line
            read.append(("delete", name, None))
    return read
