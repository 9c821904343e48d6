"""The kill switch: what sets it, what it holds back, and who clears it."""

import threading
from datetime import UTC, datetime, timedelta

import pytest

from qcnode.errors import KillSwitchError
from qcnode.kill import KillSwitch, clear, record_of, stop, stops_in

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
MS = 1_000_000


class Clock:
    def __init__(self):
        self.ns = 0

    def __call__(self):
        return self.ns


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def switch(tmp_path, clock):
    switch = KillSwitch(tmp_path / "kill", clock_ns=clock, now=lambda: NOW)
    yield switch
    switch.close()


@pytest.mark.parametrize(
    ("file", "stopped", "running"),
    [
        ("all", ("line", "agent:m", "provider:p"), ()),
        ("line", ("line",), ("agent:m", "provider:p")),
        ("agent:m", ("agent:m",), ("agent:n", "line", "provider:m")),
        ("agent:qwen%2Fqwen2.5", ("agent:qwen/qwen2.5",), ("agent:qwen",)),
        ("provider:p", ("provider:p",), ("provider:q", "line", "agent:p")),
        ("alll", ("line", "agent:m"), ()),  # what cannot be understood stops everything
        ("agent:", ("line",), ()),
    ],
)
def test_a_file_stops_what_it_is_named_after_without_the_thread_ever_running(
    tmp_path, clock, file, stopped, running
):
    switch = KillSwitch(tmp_path / "kill", clock_ns=clock, now=lambda: NOW)
    (tmp_path / "kill" / file).touch()
    # The watching thread was never started: 60 ms later whoever asks has looked for itself.
    clock.ns += 60 * MS
    assert all(switch.stopped(scope) for scope in stopped)
    assert not any(switch.stopped(scope) for scope in running)


def test_between_two_looks_asking_reads_memory(tmp_path, switch, clock):
    (tmp_path / "kill" / "all").touch()
    clock.ns += 50 * MS
    assert not switch.stopped("line")
    clock.ns += 1
    assert switch.stopped("line")


def test_files_of_editors_and_of_the_switch_itself_stop_nothing(tmp_path, switch, clock):
    for name in (".all.swp", ".asked-line", ".record"):
        (tmp_path / "kill" / name).touch()
    clock.ns += 60 * MS
    assert not switch.stopped("line")


def test_a_stop_survives_a_restart_and_says_by_whom(tmp_path, clock):
    stop(tmp_path / "kill", "line", who="ana", reason="smoke", now=NOW)
    again = KillSwitch(tmp_path / "kill", clock_ns=clock, now=lambda: NOW)
    assert again.stopped("line")
    (one,) = again.stops()
    assert (one.scope, one.who, one.reason) == ("line", "ana", "smoke")


def test_a_switch_that_cannot_be_read_counts_as_pressed(tmp_path, switch, clock):
    (tmp_path / "kill").rename(tmp_path / "gone")
    clock.ns += 60 * MS
    assert switch.stopped("agent:m")
    (tmp_path / "gone").rename(tmp_path / "kill")
    clock.ns += 60 * MS
    assert switch.stopped("agent:m"), "nobody has cleared it"


def test_a_disk_that_takes_no_file_stops_it_until_the_node_ends(tmp_path, switch):
    (tmp_path / "kill" / "all").mkdir()  # as good as a disk that refuses
    switch.stop("provider:p", who="ana", reason="leak")
    assert switch.stopped("provider:p")
    (tmp_path / "kill" / "all").rmdir()
    (tmp_path / "kill").rename(tmp_path / "gone")
    (tmp_path / "kill").touch()
    switch.stop("agent:m", who="ana", reason="leak")
    assert switch.stopped("agent:m")


@pytest.mark.parametrize("scope", ["", "everything", "agent:", "../all", "agent:\n", "line "])
def test_there_are_no_other_scopes(tmp_path, switch, scope):
    with pytest.raises(KillSwitchError, match="no such scope"):
        switch.stop(scope, who="ana", reason="")
    assert stops_in(tmp_path / "kill", NOW) == ()


# -- clearing ---------------------------------------------------------------------------


def test_clearing_takes_two_people_and_is_on_record(tmp_path, switch):
    switch.stop("all", who="ana", reason="smoke")
    assert not switch.clear("all", who="ana", reason="no fire")
    assert switch.stopped("line")
    with pytest.raises(KillSwitchError, match="a second person"):
        switch.clear("all", who=" ANA ", reason="no fire")
    assert switch.clear("all", who="bo", reason="no fire")
    assert not switch.stopped("line")
    assert [(row["what"], row["who"]) for row in record_of(tmp_path / "kill")] == [
        ("stopped", "ana"),
        ("asked", "ana"),
        ("cleared", "bo"),
    ]


@pytest.mark.parametrize(("who", "reason"), [("", "no fire"), ("ana", ""), ("ana", "ok")])
def test_nobody_clears_without_a_name_and_a_reason(switch, who, reason):
    switch.stop("all", who="ana", reason="smoke")
    with pytest.raises(KillSwitchError, match="a name and a reason"):
        switch.clear("all", who=who, reason=reason)


def test_the_first_persons_word_runs_out_and_a_new_stop_ends_it(tmp_path):
    folder = tmp_path / "kill"
    stop(folder, "line", who="ana", reason="", now=NOW)
    assert not clear(folder, "line", who="ana", reason="no fire", now=NOW)
    late = NOW + timedelta(minutes=15)
    assert not clear(folder, "line", who="bo", reason="no fire", now=late)
    stop(folder, "line", who="cy", reason="fire", now=late)
    assert not clear(folder, "line", who="ana", reason="no fire", now=late)
    assert clear(folder, "line", who="bo", reason="no fire", now=late)


def test_what_is_not_stopped_cannot_be_cleared(switch):
    with pytest.raises(KillSwitchError, match="nothing is stopped"):
        switch.clear("line", who="ana", reason="no fire")


def test_a_file_that_vanishes_without_two_peoples_word_is_put_back(tmp_path, switch, clock):
    file = tmp_path / "kill" / "agent:m"
    file.touch()
    switch.look()
    assert switch.stopped("agent:m")
    file.unlink()
    clock.ns += 60 * MS
    assert switch.stopped("agent:m")
    switch.look()
    assert file.exists()
    # Another process clears it, with two people's word.
    clear(tmp_path / "kill", "agent:m", who="ana", reason="no fire", now=NOW)
    clear(tmp_path / "kill", "agent:m", who="bo", reason="no fire", now=NOW)
    switch.look()
    assert not switch.stopped("agent:m")
    assert [row["what"] for row in record_of(tmp_path / "kill")] == ["stopped", "asked", "cleared"]


def test_whoever_listens_hears_of_a_stop_and_of_its_end(tmp_path, clock):
    switch = KillSwitch(tmp_path / "kill", clock_ns=clock, now=lambda: NOW)
    heard = threading.Semaphore(0)
    switch.add_listener(heard.release)
    switch.start()
    (tmp_path / "kill" / "line").touch()
    assert heard.acquire(timeout=10)
    switch.clear("line", who="ana", reason="no fire")
    switch.clear("line", who="bo", reason="no fire")
    assert heard.acquire(timeout=10)
    switch.close()
    switch.close()
