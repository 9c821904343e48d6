"""One rule of what a model sees of a picture: taught, proven, evaluated and asked on the line."""

from __future__ import annotations

import json
import shutil
from datetime import UTC, datetime

import cv2
import numpy as np
import pytest

from qcmodels.data import open_dataset, read_sample
from qcnode.cameras.folder import FolderCamera, FolderPictures
from qcnode.domain import Frame, Trigger
from qcnode.errors import ModelError
from qcnode.manifest import FILE_NAME
from qcnode.picture import decode_picture, seen_of
from qcnode.runtime.onnx import OnnxModel
from qcnode.sight import look
from tests.models.conftest import draw_part
from tests.variants import COLUMNS, ROWS, draw, make_release

NOW = datetime(2026, 11, 22, 6, 0, tzinfo=UTC)
SIDE = 256


def draw_jpeg(rng: np.random.Generator, *, scratched: bool) -> bytes:
    """Return a picture of 864x576, which is halved once, with grain that does not survive that."""
    picture, _ = draw_part(rng, scratched=scratched)
    large = cv2.resize(picture, (864, 576), interpolation=cv2.INTER_CUBIC).astype(np.int16)
    grain = rng.integers(-25, 26, large.shape)
    done, data = cv2.imencode(".jpg", np.clip(large + grain, 0, 255).astype(np.uint8))
    assert done
    return data.tobytes()


@pytest.fixture(scope="module")
def large_plates(tmp_path_factory):
    folder = tmp_path_factory.mktemp("large") / "plates"
    rng = np.random.default_rng(5)
    for part, label, count in (
        ("train", "good", 12),
        ("train", "scratch", 2),
        ("test", "good", 2),
        ("test", "scratch", 2),
    ):
        place = folder / part / label
        place.mkdir(parents=True)
        for number in range(count):
            encoded = draw_jpeg(rng, scratched=label != "good")
            (place / f"{number:03d}.jpg").write_bytes(encoded)
    return folder


@pytest.fixture(scope="module")
def large_release(large_plates, tmp_path_factory, teach_quietly):
    out = tmp_path_factory.mktemp("release") / "plates"
    teach_quietly(large_plates, out)
    return out


def on_the_line(folder, side):
    """Return what a folder camera makes of each picture, when it is asked for `side`."""
    pictures = FolderPictures(folder)
    camera = FolderCamera(
        pictures, name="line", now=lambda: NOW, new_id=lambda: "f", side=lambda: side
    )
    return [
        camera.grab(Trigger(seq=seq, part_id=f"P{seq}", position=seq, at_ns=0, deadline_ns=10**9))
        for seq in range(1, len(pictures) + 1)
    ]


def test_a_release_names_how_fine_it_looks_and_keeps_a_jpeg_as_it_came(large_plates, large_release):
    model = OnnxModel(large_release)
    kept = {(large_release / golden.path).read_bytes() for golden in model.manifest.golden}

    assert (model.side, model.manifest.input.height, model.manifest.input.width) == (SIDE, 576, 864)
    assert kept <= {path.read_bytes() for path in large_plates.glob("train/*/*.jpg")}


@pytest.mark.parametrize("unpacked_for", [SIDE, None, 100])
def test_a_part_gets_the_score_on_the_line_that_it_gets_in_evaluation(
    large_plates, large_release, unpacked_for
):
    model = OnnxModel(large_release)
    data = open_dataset(large_plates)
    samples = sorted((*data.test_good, *data.test_defects), key=lambda sample: sample.path)

    evaluated = [
        model.predict(read_sample(sample, side=model.side).frame("part", NOW)).score
        for sample in samples
    ]
    judged = [
        model.predict(frame).score for frame in on_the_line(large_plates / "test", unpacked_for)
    ]

    assert judged == evaluated
    assert len(set(judged)) == len(judged)


def test_light_and_focus_are_held_against_pictures_seen_the_same_way(large_plates, large_release):
    norm = OnnxModel(large_release).manifest.pictures

    for unpacked_for in (SIDE, None):
        frames = on_the_line(large_plates / "train" / "good", unpacked_for)
        looks = [look(seen_of(frame, SIDE)) for frame in frames]
        assert {one.focus for one in looks} == set(norm.focus)
        assert {one.brightness for one in looks} == set(norm.brightness)


def test_a_part_of_another_size_is_refused_however_it_was_unpacked(large_release):
    model = OnnxModel(large_release)
    done, data = cv2.imencode(".jpg", np.full((288, 432, 3), 90, np.uint8))
    assert done  # As large as what is seen of the right ones.
    frame = Frame(
        id="f",
        part_id="p",
        camera="c",
        name="small.jpg",
        captured_at=NOW,
        pixels=decode_picture(data.tobytes(), name="small.jpg"),
        encoded=data.tobytes(),
    )

    with pytest.raises(ModelError, match="432x288 pixels, taught on 864x576"):
        model.predict(frame)


def test_a_model_that_is_shown_more_than_it_was_taught_on_is_not_let_in(large_release, tmp_path):
    release = shutil.copytree(large_release, tmp_path / "release")
    path = release / FILE_NAME
    manifest = json.loads(path.read_text())
    manifest["input"]["side"] = None
    path.write_text(json.dumps(manifest))

    with pytest.raises(ModelError, match="golden frame"):
        OnnxModel(release)


def test_a_release_that_names_no_fineness_sees_every_pixel(tmp_path):
    model = OnnxModel(make_release(tmp_path / "release", tag="old"))
    picture = draw(0.5, seed=3)
    assert picture.shape[:2] == (ROWS, COLUMNS)
    done, data = cv2.imencode(".jpg", picture[:, :, ::-1])
    assert done
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "0.jpg").write_bytes(data.tobytes())

    whole, coarse = (on_the_line(tmp_path / "parts", side)[0] for side in (None, ROWS // 2))

    assert coarse.pixels.shape[0] == ROWS // 2
    assert model.predict(coarse).score == model.predict(whole).score
