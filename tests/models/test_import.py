"""Foreign models: what is found out, what is refused, and that nothing wrong slips through."""

import json
import os
from dataclasses import replace

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from qcnode.errors import ModelError
from qcnode.picture import encode_png
from qcnode.runtime.foreign import (
    Wanted,
    compose,
    read_foreign,
    read_golden,
    understand,
)
from qcnode.runtime.graph import IMAGE, alone
from qcnode.runtime.preprocess import Preparation, prepare
from qcnode.runtime.session import open_session
from tests.models.exports import (
    COLUMNS,
    EXPORTS,
    ROWS,
    SIDE,
    draw_part,
    letterbox,
    pillow,
    plain,
)
from tests.models.mismatches import Exported, wrong_things


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Every export, written and read once when it is first needed."""
    made = {}

    def get(name):
        if name not in made:
            made[name] = Exported(EXPORTS[name](0), tmp_path_factory.mktemp("export") / "it")
        return made[name]

    return get


@pytest.mark.parametrize("name", EXPORTS)
def test_an_export_is_understood_and_one_graph_answers_as_the_training_side(exported, name):
    one = exported(name)
    said = one.trained.asks if name in ("torchvision", "timm") else {}
    if name in ("torchvision", "timm", "plain"):  # Nobody wrote down how: see the next test.
        said = {**one.trained.truth}
    match = understand(one.foreign, one.golden, Wanted(**said))

    assert match.difference <= 1e-3
    session = open_session(compose(one.foreign, match, (ROWS, COLUMNS)))
    scores = {}
    for golden in one.golden:
        score, heat = session.run(None, {IMAGE: golden.pixels})
        assert match.meaning.turned(float(score)) == pytest.approx(golden.expected, abs=1e-3)
        assert heat.shape == match.meaning.heat
        scores[golden.name] = float(score)
    good = [scores[one.name] for one in one.golden if one.label == "good"]
    bad = [scores[one.name] for one in one.golden if one.label != "good"]
    assert max(good) < min(bad)  # Whatever the training side called high.


def test_what_nobody_wrote_down_is_found_by_the_golden_pictures(exported):
    one = exported("plain")
    match = understand(one.foreign, one.golden, Wanted())

    how = match.how
    assert (how.colour, how.fit, how.kernel, how.antialias) == ("bgr", "stretch", "linear", False)
    assert (how.norm, how.layout, match.meaning.higher) == ("raw", "nhwc", "good")


QUICK = ("ultralytics detect", "anomalib", "plain")


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name in QUICK else pytest.mark.long) for name in EXPORTS],
)
def test_nothing_wrong_that_is_said_of_an_export_slips_through(exported, name):
    one = exported(name)
    slipped = []
    for kind, said in wrong_things(one.trained):
        try:
            one.understand(said)
        except ModelError:
            continue
        slipped.append((kind, said))
    assert slipped == []


def test_a_refusal_names_what_would_fit(exported):
    with pytest.raises(ModelError, match="with colour bgr, and fit with rgb"):
        exported("anomalib").understand({"colour": "bgr"})


def test_class_names_in_the_wrong_order_are_noticed_in_the_file_too(tmp_path):
    trained = EXPORTS["ultralytics classify"](0)
    swapped = onnx.ModelProto.FromString(trained.model.SerializeToString())
    for prop in swapped.metadata_props:
        if prop.key == "names":
            prop.value = "{0: 'scratch', 1: 'good'}"
    file, golden = replace(trained, model=swapped).write(tmp_path)
    # The training side's number is that of the class it calls scratch.
    foreign = read_foreign(file, Wanted())
    with pytest.raises(ModelError, match=r"differ|no way"):
        understand(foreign, read_golden(golden), Wanted(classes=("scratch", "good")))


def test_grey_pictures_do_not_tell_colours_apart_and_that_is_a_doubt(tmp_path):
    trained = EXPORTS["timm"](0)  # Its scale is the same for all colours.
    file, folder = trained.write(tmp_path)
    said = {}
    rng = np.random.default_rng(5)
    for number in range(6):
        picture = draw_part(rng, scratched=number % 2 == 1)[:, :, 2:] * (0.3 + 0.14 * number)
        grey = np.repeat(picture, 3, axis=2).astype(np.uint8)
        (folder / f"{number}.png").write_bytes(encode_png(grey))
        label = "scratch" if number % 2 else "good"
        said[f"{number}.png"] = {"score": trained.score(grey), "label": label}
    (folder / "expected.json").write_text(json.dumps({"pictures": said}))
    wanted = Wanted(**{**trained.truth, "colour": None, "higher": "defective"})
    foreign = read_foreign(file, wanted)
    golden = tuple(replace(one, label=None) for one in read_golden(folder))

    with pytest.raises(ModelError, match=r"do not tell colour .* from .*: say --colour"):
        understand(foreign, golden, wanted)
    assert understand(foreign, golden, replace(wanted, colour="rgb")).how.colour == "rgb"


def test_unlabelled_golden_pictures_leave_the_direction_in_doubt(exported):
    one = exported("plain")
    unlabelled = tuple(replace(golden, label=None) for golden in one.golden)
    truth = {**one.trained.truth, "higher": None}
    with pytest.raises(ModelError, match="--higher-is"):
        understand(one.foreign, unlabelled, Wanted(**truth))
    found = understand(one.foreign, unlabelled, Wanted(**{**truth, "higher": "good"}))
    assert found.meaning.higher == "good"


# -- the preparation, against the libraries people train with ---------------------------


def seen(how, picture):
    """What a graph would get to see of a picture."""
    size = picture.shape[:2]
    nodes, feeds = prepare(how, size)
    (value,) = open_session(alone(nodes, feeds, size=size)).run(None, {IMAGE: picture})
    return value


@settings(max_examples=25)
@given(
    rows=st.integers(8, 90),
    columns=st.integers(8, 90),
    seed=st.integers(0, 1000),
    kernel=st.sampled_from(["linear", "cubic"]),
)
def test_resizing_is_pillows_or_opencvs_own_but_for_single_levels(rows, columns, seed, kernel):
    picture = np.random.default_rng(seed).integers(0, 256, (40, 56, 3)).astype(np.uint8)
    how = Preparation(height=rows, width=columns, kernel=kernel, norm="raw")
    smooth = seen(how, picture)[0].transpose(1, 2, 0)
    sharp = seen(replace(how, antialias=False), picture)[0].transpose(1, 2, 0)

    off = np.abs(smooth - pillow(picture, rows, columns, kernel))
    assert off.max() <= 2
    # At nearly the same size, where many values lie half way; a thousandth where it shrinks. Small
    # pictures have few bytes.
    share = 0.09 if kernel == "linear" else 0.002
    assert (off > 0).sum() <= share * off.size + 4.0 * (share * off.size) ** 0.5
    off = np.abs(sharp - plain(picture, rows, columns, kernel))
    assert off.max() <= 1
    assert (off > 0).mean() < 0.03  # Only where it grows.


@settings(max_examples=25)
@given(rows=st.integers(5, 200), columns=st.integers(5, 200))
def test_a_letterbox_is_that_of_ultralytics_for_every_shape(rows, columns):
    picture = np.random.default_rng(rows * columns).integers(0, 256, (rows, columns, 3))
    picture = picture.astype(np.uint8)
    how = Preparation(
        height=SIDE, width=SIDE, fit="letterbox", antialias=False, kernel="linear", norm="raw"
    )
    off = np.abs(seen(how, picture)[0].transpose(1, 2, 0) - letterbox(picture))
    assert off.max() <= 1
    assert (off > 0).mean() < 0.03


# -- files that are wrong ---------------------------------------------------------------


def graph(inputs, outputs, *, nodes=None, constants=()):
    """Return a model of given inputs and outputs: (name, type, shape) each."""
    made = nodes or [
        helper.make_node("ReduceMax", [inputs[0][0]], [outputs[0][0]], keepdims=0),
    ]
    infos = [
        [helper.make_tensor_value_info(*port) for port in ports] for ports in (inputs, outputs)
    ]
    whole = helper.make_graph(made, "g", *infos, list(constants))
    opset = [helper.make_opsetid("", 18)]
    return helper.make_model(whole, opset_imports=opset, ir_version=8)


F = TensorProto.FLOAT


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (
            graph([("a", F, [1, 3, 8, 8]), ("b", F, [1, 3, 8, 8])], [("y", F, None)]),
            "2 inputs",
        ),
        (graph([("a", F, [3, 8, 8])], [("y", F, None)]), "3 dimensions"),
        (graph([("a", F, [4, 3, 8, 8])], [("y", F, None)]), "for one picture"),
        (graph([("a", F, [1, 3, 3, 3])], [("y", F, None)]), "--layout"),
        (graph([("a", F, [1, 5, 8, 8])], [("y", F, None)]), "--layout"),
        (graph([("a", F, [1, 3, "h", "w"])], [("y", F, None)]), "--size"),
        (
            graph(
                [("a", F, [1, 3, 8, 8])],
                [("y", TensorProto.INT64, None)],
                nodes=[helper.make_node("Shape", ["a"], ["y"])],
            ),
            "no output that can be a score",
        ),
        (
            graph(
                [("a", F, [1, 3, 8, 8])],
                [("y", F, None)],
                nodes=[helper.make_node("Identity", ["a"], ["y"])],
            ),
            "no output that can be a score",
        ),
    ],
)
def test_a_model_that_cannot_be_a_judge_is_refused_in_one_line(tmp_path, exported, model, words):
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match=words) as refused:
        understand(read_foreign(path, Wanted()), exported("plain").golden, Wanted())
    assert "\n" not in str(refused.value)


def with_weights_at(location, trained):
    model = onnx.ModelProto.FromString(trained.model.SerializeToString())
    weight = next(one for one in model.graph.initializer if one.name == "kernels")
    data = numpy_helper.to_array(weight).tobytes()
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", str(len(data)))):
        weight.external_data.add(key=key, value=value)
    return model, data


def test_weights_in_a_file_beside_the_model_are_brought_in(tmp_path, exported):
    trained = EXPORTS["plain"](0)
    model, data = with_weights_at("model.onnx.data", trained)
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    (tmp_path / "model.onnx.data").write_bytes(data)
    foreign = read_foreign(tmp_path / "model.onnx", Wanted())

    match = understand(foreign, exported("plain").golden, Wanted(**trained.truth))
    assert match.difference <= 1e-3

    (tmp_path / "model.onnx.data").write_bytes(data[:-1])
    with pytest.raises(ModelError, match="beyond the end"):
        read_foreign(tmp_path / "model.onnx", Wanted())


@pytest.mark.parametrize("location", ["../secret", "/etc/hostname", "sub/weights", ".hidden", ""])
def test_weights_from_anywhere_else_are_refused(tmp_path, location):
    model, _ = with_weights_at(location, EXPORTS["plain"](0))
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match="no file beside it"):
        read_foreign(tmp_path / "model.onnx", Wanted())


@pytest.mark.parametrize("which", ["model.onnx", "model.onnx.data"])
def test_links_are_not_followed(tmp_path, which):
    model, data = with_weights_at("model.onnx.data", EXPORTS["plain"](0))
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    (tmp_path / "model.onnx.data").write_bytes(data)
    path = tmp_path / which
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ModelError, match="cannot be read"):
        read_foreign(tmp_path / "model.onnx", Wanted())
    path.unlink()
    os.link(tmp_path / "elsewhere", path)
    with pytest.raises(ModelError, match="not a file of its own"):
        read_foreign(tmp_path / "model.onnx", Wanted())


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("", "expected.json"),
        ("[]", "not"),
        ('{"pictures": {"a.png": 1}}', "not"),
        ('{"pictures": {"../a.png": {"score": 1}}}', "a picture beside it"),
        ('{"pictures": {"a.png": {"score": NaN}}}', "finite"),
        ('{"pictures": {"a.png": {"score": 1, "label": 3}}}', "a label is a word"),
        ('{"pictures": {"a.png": {"score": 1}}}', "too few"),
        ('{"pictures": {"missing.png": {"score": 1}}}', "missing.png"),
        (
            '{"pictures": {"a.png": {"score": 1}, "b.png": {"score": 1}, "c.png": {"score": 1}}}',
            "too few different",
        ),
        (
            '{"pictures": {"a.png": {"score": 1}, "b.png": {"score": 2}, "d.png": {"score": 3}}}',
            "2 sizes",
        ),
    ],
)
def test_golden_pictures_that_prove_nothing_are_refused(tmp_path, said, words):
    picture = np.zeros((8, 8, 3), np.uint8)
    for name in "abc":
        (tmp_path / f"{name}.png").write_bytes(encode_png(picture))
    (tmp_path / "d.png").write_bytes(encode_png(np.zeros((9, 8, 3), np.uint8)))
    (tmp_path / "expected.json").write_text(said)
    with pytest.raises(ModelError, match=words) as refused:
        read_golden(tmp_path)
    assert "\n" not in str(refused.value)
