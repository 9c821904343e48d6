"""Models made to bring a node down: each is refused in one line, and whoever asked lives on."""

import json
import os
import threading
import time
from datetime import UTC, datetime

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from qcnode.domain import Frame
from qcnode.errors import ManifestError, ModelError, QcError
from qcnode.manifest import FILE_NAME, digest
from qcnode.runtime import cage
from qcnode.runtime.cage import Cage, try_model, try_release
from qcnode.runtime.onnx import OnnxModel
from qcnode.runtime.slot import Slot
from qcnode.runtime.swap import ChangeRule
from tests.variants import draw, make_release

TIGHT = Cage(memory_bytes=2048 * 1024 * 1024, cpu_s=3, wait_s=30.0)
OPSET = [helper.make_opsetid("", 18)]
IMAGE = helper.make_tensor_value_info("image", TensorProto.UINT8, [24, 32, 3])
SCORE = helper.make_tensor_value_info("score", TensorProto.FLOAT, [])
HEAT = helper.make_tensor_value_info("map", TensorProto.FLOAT, [3, 4])


def constant(name, value):
    return numpy_helper.from_array(np.asarray(value), name)


def model(nodes, constants=(), *, functions=(), opsets=OPSET):
    """Return a model with the inputs and outputs of the release it will lie in."""
    graph = helper.make_graph(list(nodes), "hostile", [IMAGE], [SCORE, HEAT], list(constants))
    made = helper.make_model(graph, functions=functions, opset_imports=opsets, ir_version=9)
    return made.SerializeToString()


def answers(score, heat):
    """Return the nodes that give out two values as score and map."""
    return [
        helper.make_node("Identity", [score], ["score"]),
        helper.make_node("Identity", [heat], ["map"]),
    ]


def function_chain():
    """3,000 functions, each calling the next: the loader's own stack ends before they do."""
    opsets = [*OPSET, helper.make_opsetid("deep", 1)]
    calls = [
        helper.make_function(
            "deep",
            f"f{number}",
            ["x"],
            ["y"],
            [helper.make_node(f"f{number + 1}", ["x"], ["y"], domain="deep")],
            opsets,
        )
        for number in range(3_000)
    ]
    end = [helper.make_node("Identity", ["x"], ["y"])]
    calls.append(helper.make_function("deep", "f3000", ["x"], ["y"], end, opsets))
    nodes = [helper.make_node("f0", ["zero"], ["deep"], domain="deep"), *answers("deep", "heat")]
    return model(
        nodes,
        [constant("zero", np.float32(0)), constant("heat", np.zeros((3, 4), np.float32))],
        functions=calls,
        opsets=opsets,
    )


def endless_loop():
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["goes_on"]),
            helper.make_node("Add", ["x", "one"], ["more"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("count", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("x", TensorProto.FLOAT, []),
        ],
        [
            helper.make_tensor_value_info("goes_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("more", TensorProto.FLOAT, []),
        ],
    )
    nodes = [
        # Asked of the picture, so that nothing is worked out before it is run.
        helper.make_node("ReduceMax", ["image"], ["highest"], keepdims=0),
        helper.make_node("Cast", ["highest"], ["number"], to=TensorProto.FLOAT),
        helper.make_node("GreaterOrEqual", ["number", "zero"], ["always"]),
        helper.make_node("Loop", ["", "always", "zero"], ["end"], body=body),
        *answers("end", "heat"),
    ]
    return model(
        nodes,
        [
            constant("zero", np.float32(0)),
            constant("one", np.float32(1)),
            constant("heat", np.zeros((3, 4), np.float32)),
        ],
    )


def endless_folding():
    """The same without the picture: it may be run while the model is being loaded."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["goes_on"]),
            helper.make_node("Add", ["x", "x"], ["more"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("count", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("x", TensorProto.FLOAT, []),
        ],
        [
            helper.make_tensor_value_info("goes_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("more", TensorProto.FLOAT, []),
        ],
    )
    nodes = [helper.make_node("Loop", ["", "yes", "zero"], ["end"], body=body)]
    return model(
        [*nodes, *answers("end", "heat")],
        [
            constant("yes", np.bool_(True)),
            constant("zero", np.float32(0)),
            constant("heat", np.zeros((3, 4), np.float32)),
        ],
    )


def allocation(count):
    """A constant of 100 or 400 GB, asked for by a few bytes."""
    nodes = [
        helper.make_node("Shape", ["image"], ["shape"]),
        helper.make_node("Gather", ["shape", "which"], ["three"], axis=0),
        helper.make_node("Mul", ["three", "many"], ["size"]),
        helper.make_node("ConstantOfShape", ["size"], ["huge"]),
        helper.make_node("ReduceSum", ["huge"], ["sum"], keepdims=0),
        *answers("sum", "heat"),
    ]
    return model(
        nodes,
        [
            constant("which", np.array([2])),
            constant("many", np.array([count])),
            constant("heat", np.zeros((3, 4), np.float32)),
        ],
    )


def fixed(score, heat=0.0):
    return model(
        answers("value", "heat"),
        [
            constant("value", np.float32(score)),
            constant("heat", np.full((3, 4), heat, np.float32)),
        ],
    )


def external(location, *, count=1):
    """A model whose score lies in another file."""
    weight = TensorProto(name="value", data_type=TensorProto.FLOAT)
    weight.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", str(4 * count))):
        weight.external_data.add(key=key, value=value)
    return model(answers("value", "heat"), [weight, constant("heat", np.zeros((3, 4), np.float32))])


def future_opset():
    return model(
        answers("value", "heat"),
        [constant("value", np.float32(0)), constant("heat", np.zeros((3, 4), np.float32))],
        opsets=[helper.make_opsetid("", 99)],
    )


def unknown_operator():
    opsets = [*OPSET, helper.make_opsetid("com.evil", 1)]
    nodes = [helper.make_node("RunShell", ["image"], ["value"], domain="com.evil")]
    return model(
        [*nodes, *answers("value", "heat")],
        [constant("heat", np.zeros((3, 4), np.float32))],
        opsets=opsets,
    )


HOSTILE = {
    "a chain of 3,000 functions": (function_chain, "SIGSEGV|does not run here|processor time"),
    "a loop without an end": (endless_loop, "processor time"),
    "a loop without an end, before any picture": (endless_folding, "processor time"),
    "400 GB asked for": (lambda: allocation(33_000_000_000), "ConstantOfShape"),
    "more bytes than there are numbers": (lambda: allocation(2**61), "ConstantOfShape"),
    "a score that is no number": (lambda: fixed(np.nan), "not a finite number"),
    "an endless score": (lambda: fixed(np.inf), "not a finite number"),
    "a map without numbers": (lambda: fixed(0.5, np.nan), "not a finite number"),
    "another model's scores": (lambda: fixed(0.5), "golden frame"),
    "weights in the node's own folder": (lambda: external("node.key"), "no model that runs here"),
    "weights beyond the folder": (lambda: external("../node.key"), "no model that runs here"),
    "weights anywhere": (lambda: external("/etc/hostname"), "no model that runs here"),
    "an opset to come": (future_opset, "no model that runs here"),
    "an operator of its own": (unknown_operator, "no model that runs here"),
    "nothing": (lambda: b"", "no model that runs here"),
    "half a model": (lambda: fixed(0.5)[: len(fixed(0.5)) // 2], "no model that runs here"),
    "noise": (lambda: np.random.default_rng(1).bytes(4096), "no model that runs here"),
}


@pytest.fixture
def release(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "node.key").write_bytes(np.float32(0.25).tobytes())
    return make_release(tmp_path / "release", tag="well")


def vouch(release, data):
    """Put a model in place of another, with a manifest that vouches for it."""
    (release / "model.onnx").write_bytes(data)
    path = release / FILE_NAME
    manifest = json.loads(path.read_text())
    for file in manifest["files"]:
        if file["path"] == "model.onnx":
            file.update(sha256=digest(data), bytes=len(data))
    path.write_text(json.dumps(manifest))


def test_a_release_that_is_well_passes(release):
    try_release(release, cage=TIGHT)


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_model_is_refused_in_one_line_and_the_node_lives(release, what):
    make, words = HOSTILE[what]
    vouch(release, make())

    with pytest.raises(ModelError, match=words) as refused:
        try_release(release, cage=TIGHT)

    assert "\n" not in str(refused.value)


def test_one_that_only_sleeps_or_blocks_is_not_waited_for(release):
    vouch(release, endless_loop())
    began = time.monotonic()
    with pytest.raises(ModelError, match="no answer within 1 s"):
        try_release(release, cage=Cage(cpu_s=60, wait_s=1.0))
    assert time.monotonic() - began < 30  # Not the 60 s it asked for.


def test_the_child_sees_nothing_of_the_nodes_environment(release, monkeypatch):
    monkeypatch.setenv("QCNODE_PROVIDER_API_KEY", "secret")
    seen = []

    class Popen(cage.subprocess.Popen):
        def __init__(self, *words, env, **how):
            seen.append(env)
            super().__init__(*words, env=env, **how)

    monkeypatch.setattr(cage.subprocess, "Popen", Popen)
    try_release(release, cage=TIGHT)
    assert os.environ["QCNODE_PROVIDER_API_KEY"] == "secret"
    assert not [key for key in seen[0] if key.startswith("QCNODE_")]


def linked(release, name="model.onnx"):
    path = release / name
    path.rename(release.with_name(f"{release.name}-elsewhere"))
    path.symlink_to(release.with_name(f"{release.name}-elsewhere"))


def shared(release, name="model.onnx"):
    os.link(release / name, release.with_name(f"{release.name}-elsewhere"))


def linked_folder(release):
    (release / "golden").rename(release.with_name(f"{release.name}-golden"))
    (release / "golden").symlink_to(release.with_name(f"{release.name}-golden"))


def pipe(release):
    (release / "model.onnx").unlink()
    os.mkfifo(release / "model.onnx")


def huge(release):
    with (release / "model.onnx").open("r+b") as file:
        file.truncate(400_000_000_000)  # A hole: it takes no room on the disk.


def huge_and_said_so(release):
    huge(release)
    manifest = json.loads((release / FILE_NAME).read_text())
    for file in manifest["files"]:
        if file["path"] == "model.onnx":
            file["bytes"] = 400_000_000_000
    (release / FILE_NAME).write_text(json.dumps(manifest))


def changed(release):
    data = bytearray((release / "model.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (release / "model.onnx").write_bytes(data)


FILES = {
    "the model is a link": linked,
    "the model is shared with another name": shared,
    "the folder of the golden frames is a link": linked_folder,
    "the manifest is a link": lambda release: linked(release, FILE_NAME),
    "the manifest is shared with another name": lambda release: shared(release, FILE_NAME),
    "the model is a pipe that nobody writes to": pipe,
    "a model of 400 GB": huge,
    "a model of 400 GB, and the manifest says so": huge_and_said_so,
    "one bit of the model is another": changed,
    "the manifest is deeper than any reader": lambda release: (release / FILE_NAME).write_text(
        "[" * 200_000
    ),
}


@pytest.mark.parametrize("what", FILES)
def test_files_that_are_not_what_they_should_be_are_refused_before_they_are_used(release, what):
    FILES[what](release)
    with pytest.raises(ManifestError) as refused:
        try_release(release, cage=TIGHT)
    assert "\n" not in str(refused.value)


def time_bomb():
    """A model that is well until a pixel is white, and then never answers."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["goes_on"]),
            helper.make_node("Add", ["x", "one"], ["more"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("count", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("x", TensorProto.FLOAT, []),
        ],
        [
            helper.make_tensor_value_info("goes_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("more", TensorProto.FLOAT, []),
        ],
    )
    nodes = [
        helper.make_node("Cast", ["image"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMax", ["floats"], ["highest"], keepdims=0),
        helper.make_node("GreaterOrEqual", ["highest", "white"], ["now"]),
        helper.make_node("Loop", ["", "now", "zero"], ["nothing"], body=body),
        helper.make_node("ReduceMean", ["floats"], ["mean"], keepdims=0),
        helper.make_node("Div", ["mean", "white"], ["share"]),
        helper.make_node("Add", ["share", "nothing"], ["score"]),
        helper.make_node("Expand", ["score", "grid"], ["map"]),
    ]
    return model(
        nodes,
        [
            constant("white", np.float32(255)),
            constant("zero", np.float32(0)),
            constant("one", np.float32(1)),
            constant("grid", np.array([3, 4])),
        ],
    )


def test_a_model_that_waits_for_its_moment_is_ended_on_the_line(release):
    vouch(release, time_bomb())
    try_release(release, cage=TIGHT)  # It behaves as long as it is looked at.
    bomb = OnnxModel(release)
    steps = []
    slot = Slot(
        bomb,
        rule=ChangeRule(),
        coin=lambda: 0.5,
        clock_ns=time.monotonic_ns,
        cpu_ns=time.thread_time_ns,
        tell=steps.append,
    )
    ended = threading.Event()

    def watch():
        while not ended.wait(0.05):
            slot.interrupt_after(0.5)

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        with pytest.raises(ModelError, match="terminate"):
            slot.predict(frame(np.full((24, 32, 3), 255, np.uint8)))
        # And the next part is judged again.
        assert slot.predict(frame(draw(0.2))).score == pytest.approx(0.2, abs=0.02)
    finally:
        ended.set()
        watching.join(10)


def frame(pixels):
    return Frame(
        id="f", part_id="p", camera="c", name="p", captured_at=datetime.now(UTC), pixels=pixels
    )


def test_a_foreign_file_is_tried_the_same_way():
    data = function_chain()
    with pytest.raises(QcError, match="bad: brought the process down"):
        try_model(data, name="bad", size=(64, 64), cage=TIGHT)
