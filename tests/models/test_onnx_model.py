from __future__ import annotations

import json
import shutil

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from qcnode.errors import ManifestError, ModelError
from qcnode.manifest import FILE_NAME, digest
from qcnode.picture import read_picture
from qcnode.runtime.onnx import OnnxModel


@pytest.fixture
def release(plate_release, tmp_path):
    return shutil.copytree(plate_release, tmp_path / "release")


def edit(release, change):
    path = release / FILE_NAME
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def replace_model(release, data):
    """Put another model in place, with a manifest that vouches for it."""
    (release / "model.onnx").write_bytes(data)

    def vouch(manifest):
        for file in manifest["files"]:
            if file["path"] == "model.onnx":
                file.update(sha256=digest(data), bytes=len(data))

    edit(release, vouch)


def make_model(*, score, heat_shape=(32, 32), kind=TensorProto.UINT8):
    """Return a model that answers every picture with `score`."""
    value = numpy_helper.from_array(np.array(score, np.float32), "value")
    heat = numpy_helper.from_array(np.full(heat_shape, score, np.float32), "heat")
    graph = helper.make_graph(
        [
            helper.make_node("Identity", ["value"], ["score"]),
            helper.make_node("Identity", ["heat"], ["map"]),
        ],
        "constant",
        [helper.make_tensor_value_info("image", kind, ["h", "w", 3])],
        [
            helper.make_tensor_value_info("score", TensorProto.FLOAT, []),
            helper.make_tensor_value_info("map", TensorProto.FLOAT, list(heat_shape)),
        ],
        [value, heat],
    )
    opset = [helper.make_opsetid("", 18)]
    return helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString()


def test_a_scratched_part_scores_higher_than_a_good_one(plates, plate_release, make_frame):
    model = OnnxModel(plate_release)
    good = model.predict(make_frame(read_picture(plates / "test" / "good" / "000.png")))
    bad = model.predict(make_frame(read_picture(plates / "test" / "scratch" / "000.png")))

    assert good.score < bad.score
    assert bad.model == model.version == model.manifest.version
    assert bad.heat.shape == (32, 32)
    assert bad.heat.dtype == np.float32
    assert np.isfinite(bad.heat).all()


def test_the_heat_map_peaks_on_the_scratch(plates, plate_release, make_frame):
    model = OnnxModel(plate_release)
    hits = 0
    for number in range(10):
        picture = read_picture(plates / "test" / "scratch" / f"{number:03d}.png")
        mask = read_picture(plates / "ground_truth" / "scratch" / f"{number:03d}_mask.png")[:, :, 0]
        heat = model.predict(make_frame(picture)).heat
        row, column = np.unravel_index(heat.argmax(), heat.shape)
        y, x = int(row * 2), int(column * 3)  # 64x96 pixels over 32x32 cells
        hits += mask[max(y - 6, 0) : y + 8, max(x - 6, 0) : x + 9].any()
    assert hits >= 9


def test_the_same_picture_always_scores_the_same(plates, plate_release, make_frame):
    picture = read_picture(plates / "test" / "good" / "001.png")
    scores = {
        OnnxModel(plate_release, threads=threads).predict(make_frame(picture)).score
        for threads in (1, 1, 2)
    }
    assert max(scores) - min(scores) < 1e-4


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((64, 95, 3), np.uint8),
        np.zeros((96, 64, 3), np.uint8),
        np.zeros((64, 96), np.uint8),
        np.zeros((64, 96, 4), np.uint8),
        np.zeros((64, 96, 3), np.float32),
        np.zeros((0, 96, 3), np.uint8),
    ],
)
def test_a_picture_of_another_kind_gets_no_score(plate_release, make_frame, pixels):
    with pytest.raises(ModelError, match=r"p1\.png: "):
        OnnxModel(plate_release).predict(make_frame(pixels))


@pytest.mark.parametrize("score", [np.nan, np.inf, -np.inf])
def test_a_model_that_answers_no_number_is_not_let_in(release, score):
    replace_model(release, make_model(score=score))
    with pytest.raises(ModelError, match="not a finite number"):
        OnnxModel(release)


def test_a_model_that_scores_golden_frames_otherwise_is_not_let_in(release):
    replace_model(release, make_model(score=1.0))
    with pytest.raises(ModelError, match=r"golden frame golden/0\.png gives 1 and not"):
        OnnxModel(release)


def test_a_model_with_another_map_input_or_output_is_not_let_in(release):
    replace_model(release, make_model(score=1.0, heat_shape=(16, 32)))
    with pytest.raises(ModelError, match="answered in shapes"):
        OnnxModel(release)
    replace_model(release, make_model(score=1.0, kind=TensorProto.FLOAT))
    with pytest.raises(ModelError, match="not those of its manifest"):
        OnnxModel(release)
    edit(release, lambda manifest: manifest["outputs"].update(score="likelihood"))
    replace_model(release, make_model(score=1.0))
    with pytest.raises(ModelError, match="likelihood is missing"):
        OnnxModel(release)


@pytest.mark.parametrize("data", [b"", b"no model", onnx.ModelProto().SerializeToString()])
def test_bytes_that_are_no_model_are_refused_in_one_line(release, data):
    replace_model(release, data)
    with pytest.raises(ModelError, match="no model that runs here") as caught:
        OnnxModel(release)
    assert "\n" not in str(caught.value)


def test_a_release_without_golden_frames_proves_nothing(release):
    edit(release, lambda manifest: manifest.update(golden=[]))
    with pytest.raises(ModelError, match="no golden frame"):
        OnnxModel(release)


def test_a_folder_that_is_no_release_is_named(tmp_path):
    with pytest.raises(ManifestError, match="made by `qcnode teach`"):
        OnnxModel(tmp_path)
