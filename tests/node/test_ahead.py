"""One picture ahead: the station sees what it saw, and the camera is asked at once."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from qcnode.ahead import Ahead
from qcnode.domain import Action
from qcnode.errors import CameraError, LineUnavailableError
from tests.fakes import FakeClock, FakeLine

PATIENCE_S = 30


class Camera:
    """Says when it was asked for whom, and waits to be let go if told to."""

    def __init__(self, *, fails=()):
        self.asked = threading.Semaphore(0)
        self.parts = []
        self.fails = fails
        self.closed = False

    def grab(self, trigger):
        self.parts.append(trigger.seq)
        self.asked.release()
        if trigger.seq in self.fails:
            raise CameraError(f"part {trigger.seq} was not seen")
        return f"picture of {trigger.seq}"

    def close(self):
        self.closed = True


@pytest.fixture
def line():
    return FakeLine(FakeClock(), parts=5)


def test_triggers_and_pictures_come_in_order_and_belong_together(line):
    ahead = Ahead(line, Camera())
    seen = [(trigger.seq, ahead.grab(trigger)) for trigger in ahead.triggers()]
    assert seen == [(seq, f"picture of {seq}") for seq in range(1, 6)]
    assert ahead.last_trigger() == line.last_trigger() == 5


def test_the_next_picture_is_taken_while_this_one_is_judged_and_no_further_one(line):
    camera = Camera()
    ahead = Ahead(line, camera)
    triggers = ahead.triggers()
    first = next(triggers)
    ahead.grab(first)
    for _ in range(2):
        assert camera.asked.acquire(timeout=PATIENCE_S)

    assert camera.parts == [1, 2]
    assert not camera.asked.acquire(blocking=False)
    assert ahead.grab(next(triggers)) == "picture of 2"


def test_what_the_camera_raised_is_raised_for_its_own_part(line):
    ahead = Ahead(line, Camera(fails=(2,)))
    for trigger in ahead.triggers():
        if trigger.seq == 2:
            with pytest.raises(CameraError, match="part 2 was not seen"):
                ahead.grab(trigger)
        else:
            assert ahead.grab(trigger) == f"picture of {trigger.seq}"


def test_a_part_that_is_not_in_hand_has_no_picture_here(line):
    ahead = Ahead(line, Camera())
    triggers = ahead.triggers()
    first = next(triggers)
    next(triggers)
    with pytest.raises(CameraError, match="not in hand"):
        ahead.grab(first)


def test_a_line_that_fails_fails_for_who_fetches(line):
    def broken():
        yield from ()
        raise LineUnavailableError("the belt is on fire")

    line.triggers = broken
    with pytest.raises(LineUnavailableError, match="on fire"):
        list(Ahead(line, Camera()).triggers())


def test_commands_go_to_the_line_and_the_camera_is_let_go(line):
    camera, rolling, parts = Camera(), threading.Event(), line.triggers()

    def one_and_then_none_for_a_while():
        yield next(parts)
        assert rolling.wait(PATIENCE_S)

    line.triggers = one_and_then_none_for_a_while
    ahead = Ahead(line, camera)
    trigger = next(ahead.triggers())
    assert ahead.act(trigger, Action.REJECT)
    line.roll()
    rolling.set()
    assert [passage.action for passage in ahead.passages()] == [Action.REJECT]
    ahead.close()
    assert camera.closed


def test_after_a_stop_what_was_triggered_is_still_fetched_and_then_it_is_over(line):
    camera = Camera()
    ahead = Ahead(line, camera)
    triggers = ahead.triggers()
    next(triggers)
    for _ in range(2):
        assert camera.asked.acquire(timeout=PATIENCE_S)
    with ThreadPoolExecutor(1) as elsewhere:
        elsewhere.submit(ahead.stop).result(PATIENCE_S)
    rest = [trigger.seq for trigger in triggers]
    assert rest[0] == 2
    assert rest == list(range(2, 2 + len(rest)))
