"""What every camera keeps to, the fake one included."""

import contextlib
from datetime import timedelta

import cv2
import numpy as np
import pytest

from qcnode.cameras.folder import FolderCamera, FolderPictures
from qcnode.cameras.genicam import GenicamCamera
from qcnode.cameras.opencv import OpenCvCamera
from qcnode.cameras.virtual import RenderedCamera, RenderedParts
from qcnode.errors import CameraError
from tests.aravis import ADDRESS, SIZE, counted_pictures, showing
from tests.fakes import FakeCamera, FakeClock, make_ids, make_trigger


def make_fake(_tmp_path, clock):
    return FakeCamera(clock)


def make_rendered(_tmp_path, clock):
    parts = RenderedParts(seed=1, defect_share=0.5)
    return RenderedCamera(parts, name="virtual", now=clock.now, new_id=make_ids("frame"))


def make_folder(tmp_path, clock):
    for number in range(3):
        cv2.imwrite(str(tmp_path / f"{number}.png"), np.full((20, 30), 50 * number, np.uint8))
    return FolderCamera(
        FolderPictures(tmp_path), name="folder", now=clock.now, new_id=make_ids("frame")
    )


def make_video(tmp_path, clock):
    path = str(tmp_path / "parts.avi")
    writer = cv2.VideoWriter(path, cv2.VideoWriter.fourcc(*"MJPG"), 10.0, (32, 24))
    for number in range(3):
        writer.write(np.full((24, 32, 3), 60 * number, np.uint8))
    writer.release()
    return OpenCvCamera(path, name="video", timeout_s=1.0, now=clock.now, new_id=make_ids("frame"))


def make_gige(_tmp_path, clock):
    camera = GenicamCamera(
        ADDRESS,
        name="gige",
        timeout_s=2.0,
        now=clock.now,
        new_id=make_ids("frame"),
        features=SIZE,
    )
    camera.until_ready(20)
    return camera


CAMERAS = {
    "fake": make_fake,
    "rendered": make_rendered,
    "folder": make_folder,
    "opencv": make_video,
    "gige": make_gige,
}


@pytest.fixture(
    params=[
        pytest.param(name, marks=pytest.mark.aravis) if name == "gige" else name for name in CAMERAS
    ]
)
def camera(request, tmp_path):
    served = showing(counted_pictures()) if request.param == "gige" else contextlib.nullcontext()
    with served:
        camera = CAMERAS[request.param](tmp_path, FakeClock())
        try:
            yield camera
        finally:
            camera.close()


def test_a_frame_is_an_rgb_picture_of_the_triggers_part(camera):
    frame = camera.grab(make_trigger(1, part_id="P-1"))

    assert frame.part_id == "P-1"
    assert frame.pixels.dtype == np.uint8
    assert frame.pixels.ndim == 3
    assert frame.pixels.shape[2] == 3
    assert frame.pixels.flags["C_CONTIGUOUS"]
    assert frame.name
    assert frame.captured_at.utcoffset() == timedelta(0)


def test_no_two_frames_share_an_id(camera):
    frames = [camera.grab(make_trigger(seq)) for seq in (1, 2, 3)]

    assert len({frame.id for frame in frames}) == 3


def test_a_closed_camera_sees_nothing_and_closing_twice_is_harmless(camera):
    camera.grab(make_trigger(1))
    camera.close()
    camera.close()

    with pytest.raises(CameraError):
        camera.grab(make_trigger(2))
