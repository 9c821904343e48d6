"""GigE Vision: whatever the camera, its cable or its process does, no wrong picture passes."""

import itertools
import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime

import numpy as np
import pytest

from qcnode.cameras.features import read_features, trigger_of
from qcnode.cameras.genicam import GenicamCamera
from qcnode.errors import CameraError, SettingsError
from tests.aravis import ADDRESS, SIZE, FakeProgram, counted_pictures, my_turn, showing
from tests.fakes import make_ids, make_trigger

pytestmark = pytest.mark.aravis
WAIT_S = 30
SMALL = (("Width", "64"), ("Height", "48"), ("AcquisitionFrameRate", "100"))


@pytest.fixture
def open_camera():
    opened = []

    def make(*, features=SIZE, **options):
        options.setdefault("timeout_s", 5.0)  # a busy machine is no fault
        opened.append(
            GenicamCamera(
                ADDRESS,
                name="gige",
                now=lambda: datetime.now(UTC),
                new_id=make_ids("frame"),
                features=features,
                **options,
            )
        )
        return opened[-1]

    yield make
    for camera in opened:
        camera.close()


@pytest.fixture
def program():
    made = []

    def make(*options):
        made.append(FakeProgram(*options))
        return made[-1]

    with my_turn():
        yield make
        for fake in made:
            fake.kill()


def again_and_again(camera, numbers):
    """Grab one after the other, and return frames and errors."""
    frames, errors = [], []
    for number in numbers:
        try:
            frames.append(camera.grab(make_trigger(number)))
        except CameraError as error:
            errors.append(str(error))
    return frames, errors


def until(holds, why="it did not come to that"):
    deadline = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < deadline, why
        time.sleep(0.02)


def test_each_trigger_gets_the_picture_that_was_taken_for_it(open_camera):
    lies, shown = [0], np.random.default_rng(1).integers(0, 255, (40, 48, 64, 3), np.uint8)

    def picture():
        return shown[lies[0]].tobytes()

    with showing(picture):
        camera = open_camera()
        camera.until_ready(WAIT_S)
        for number in range(40):
            lies[0] = number
            frame = camera.grab(make_trigger(number + 1))
            assert np.array_equal(frame.pixels, shown[number])


def test_the_cameras_number_wraps_and_nothing_is_lost(open_camera, program):
    program()
    camera = open_camera(features=SMALL)
    camera.until_ready(WAIT_S)

    frames, errors = again_and_again(camera, range(1, 145))

    numbers = [int(frame.name.rpartition("/")[2]) for frame in frames]
    assert errors == []
    assert 65_535 in numbers
    assert numbers[numbers.index(65_535) + 1] == 1


def test_pictures_with_missing_packets_never_pass(open_camera, program):
    program("-r", "5")
    camera = open_camera(features=(("Width", "512"), ("Height", "512")))
    camera.until_ready(WAIT_S)

    frames, errors = again_and_again(camera, range(1, 50))

    assert sum("damaged picture" in words for words in errors) > 5
    assert len(frames) > 5
    assert all(frame.pixels.any() for frame in frames)
    assert all(row.any() for frame in frames for row in frame.pixels)  # no part is left black


def test_a_camera_that_dies_is_told_at_once_and_opened_again(open_camera, program):
    fake = program()
    camera = open_camera(features=SMALL, timeout_s=0.5)
    camera.until_ready(WAIT_S)
    fake.kill()

    errors = again_and_again(camera, range(2, 12))[1]

    assert len(errors) == 10
    assert all("is not there" in words for words in errors[1:])  # nobody waited for it again
    fake.start()
    until(lambda: camera.opened == 2)
    assert camera.grab(make_trigger(20)).part_id == "P0000020"


def test_a_process_that_is_killed_takes_nothing_along(open_camera, program):
    program()
    camera = open_camera(features=SMALL)
    camera.until_ready(WAIT_S)
    os.kill(camera._child.pid, signal.SIGKILL)

    until(lambda: not camera._ready or camera.opened == 2)
    until(lambda: camera.opened == 2)
    camera.until_ready(WAIT_S)
    assert camera.grab(make_trigger(3)).part_id == "P0000003"


def test_a_process_that_hangs_is_given_up_for_the_part_and_ended(open_camera, program):
    program()
    camera = open_camera(features=SMALL, timeout_s=0.2)
    camera.until_ready(WAIT_S)
    # Nine seconds go by between the two triggers.
    camera._monotonic_s = itertools.chain([0.0], itertools.repeat(9.0)).__next__
    child = camera._child
    os.kill(child.pid, signal.SIGSTOP)

    with pytest.raises(CameraError, match="does not answer"):
        camera.grab(make_trigger(1))
    with pytest.raises(CameraError):
        camera.grab(make_trigger(2))
    until(lambda: child.poll() is not None)
    until(lambda: camera.opened == 2)


def test_the_trigger_mode_another_client_left_is_set_anew(open_camera, program):
    program()
    # As line.md found it: the next client saw no frame and no error.
    left = "".join(
        [
            "from qcnode.cameras.aravis import Device;",
            f"d = Device('{ADDRESS}');",
            "d.set('TriggerSelector', 'FrameStart'); d.set('TriggerMode', 'On');",
            "d.set('TriggerSource', 'Line0')",
        ]
    )
    subprocess.run([sys.executable, "-c", left], check=True, timeout=60)
    camera = open_camera(features=SMALL)
    read_back = camera.until_ready(WAIT_S)

    assert (read_back["TriggerMode"], read_back["TriggerSource"]) == ("On", "Software")
    assert camera.grab(make_trigger(1)).part_id == "P0000001"


def test_a_camera_nobody_fires_says_that_no_picture_came(open_camera, program):
    program()
    camera = open_camera(features=SMALL, trigger="Line0", timeout_s=0.2)
    camera.until_ready(WAIT_S)

    with pytest.raises(CameraError, match="no picture within 200 ms of the trigger"):
        camera.grab(make_trigger(1))


def test_a_frozen_camera_passes_no_part(open_camera):
    with showing(lambda: b"\x55" * (64 * 48 * 3)):
        camera = open_camera()
        camera.until_ready(WAIT_S)
        frames, errors = again_and_again(camera, range(1, 7))

    assert len(frames) == 2
    assert all("frozen" in words for words in errors)


@pytest.mark.parametrize(
    ("features", "why"),
    [
        ((("NoSuchThing", "1"),), "has no feature NoSuchThing"),
        ((("PixelFormat", "Nonsense"),), "PixelFormat"),
    ],
)
def test_a_feature_the_camera_does_not_take_is_named(open_camera, features, why):
    with showing(counted_pictures()):
        camera = open_camera(features=features)
        until(lambda: why in camera._why, camera._why)
        with pytest.raises(CameraError, match=why):
            camera.grab(make_trigger(1))


def test_a_process_that_wants_too_much_memory_ends_alone(open_camera):
    with showing(counted_pictures()):
        camera = open_camera(memory_bytes=48 * 1024 * 1024)
        until(lambda: "opened" not in camera._why)
        with pytest.raises(CameraError):
            camera.grab(make_trigger(1))
        assert camera.opened == 0


def test_a_file_of_features_is_read_in_order(tmp_path):
    path = tmp_path / "camera.yaml"
    path.write_text(
        "version: 1\nfeatures:\n  - {set: Width, to: 64}\n  - {set: TriggerSource, to: Line1}\n"
        '  - {set: TriggerMode, to: "On"}\n'
    )

    found = read_features(path)

    assert found == (("Width", "64"), ("TriggerSource", "Line1"), ("TriggerMode", "On"))
    assert trigger_of(found) == "Line1"
    path.write_text("version: 1\nfeatures: [{put: 1}]\n")
    with pytest.raises(SettingsError, match="no list of features"):
        read_features(path)
