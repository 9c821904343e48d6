"""The camera file, rendered, set on Aravis' fake camera by the node's own camera, and read back."""

from datetime import UTC, datetime

import pytest

from qcnode.cameras.features import read_features, trigger_of
from qcnode.cameras.genicam import GenicamCamera
from qcnode.errors import CameraError
from qcnode.firmware.manifest import read_manifest
from qcnode.firmware.render import render
from tests.aravis import ADDRESS, FakeProgram, my_turn
from tests.fakes import make_ids, make_trigger

pytestmark = pytest.mark.aravis
WAIT_S = 30


@pytest.fixture
def written(repository, tmp_path):
    """Write a camera's file as `qcnode firmware push` does."""

    def write(name, **values):
        folder = repository / "firmware_configs"
        manifest = read_manifest(folder)
        made = render(folder, manifest, manifest[name], {**manifest.defaults(), **values})
        path = tmp_path / "camera.yaml"
        path.write_bytes(made.main)
        return path

    return write


@pytest.fixture
def open_camera():
    opened = []

    def make(path):
        features = read_features(path)
        opened.append(
            GenicamCamera(
                ADDRESS,
                name="gige",
                timeout_s=2.0,
                now=lambda: datetime.now(UTC),
                new_id=make_ids("frame"),
                trigger=trigger_of(features),
                features=features,
            )
        )
        return opened[-1]

    with my_turn():
        fake = FakeProgram()
        yield make
        for camera in opened:
            camera.close()
        fake.kill()


def test_every_feature_of_the_file_is_set_and_read_back(written, open_camera):
    path = written("camera-fake", exposure_us=4321.0)
    camera = open_camera(path)

    back = camera.until_ready(WAIT_S)

    wanted = dict(read_features(path))
    assert {name: back[name] for name in wanted} == {
        **wanted,
        "ExposureTimeAbs": back["ExposureTimeAbs"],
    }
    assert float(back["ExposureTimeAbs"]) == 4321.0
    assert camera.grab(make_trigger(1)).pixels.shape == (512, 512, 3)


def test_a_file_for_another_camera_is_refused_by_name(written, open_camera):
    camera = open_camera(written("camera-gige"))

    with pytest.raises(CameraError, match=r"ExposureAuto|ExposureTime|TriggerSelector|Gain"):
        camera.until_ready(2.0)
