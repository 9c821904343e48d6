"""Taking in a model that was trained elsewhere: what it is, how it wants its pictures.

An exporter writes down some of it, the shapes tell some, and golden pictures with the
training side's own answers decide the rest: of all ways to prepare a picture that nothing
speaks against, the one that gives these answers to 1e-3 is taken, if it is the only one.
Where two that differ in more than rounding do, the pictures cannot tell them apart, and the
model is refused with the option that would. So is one whose answers nothing explains.
"""

from __future__ import annotations

import ast
import itertools
import json
import os
import stat
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from qcnode.errors import ModelError, PictureError
from qcnode.manifest import RELEASE_BYTES_MAX, digest
from qcnode.picture import read_bytes, read_picture
from qcnode.runtime.cage import try_model
from qcnode.runtime.graph import alone, around, modern
from qcnode.runtime.postprocess import Meaning, conclude
from qcnode.runtime.preprocess import NORMS, Preparation, prepare
from qcnode.runtime.session import ORT_ERRORS, open_session

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from qcnode.runtime.cage import Port, Signature

TOLERANCE: Final = 1e-3
EXPECTED_NAME: Final = "expected.json"
GOLDEN_MIN: Final = 3
_CLOSE: Final = 10.0
"""How many times nearer one way must be than another that would also do."""
_EXACT: Final = 1e-4
GOOD_NAMES: Final = frozenset({"good", "ok", "normal", "pass", "no_defect", "defect_free"})
UNKNOWN_LICENCE: Final = "unknown: ask whoever trained it before you use it"
AGPL: Final = "AGPL"
_SIZE_UNKNOWN: Final = (224, 224)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What the caller says of the model; None where the model and the pictures decide."""

    size: tuple[int, int] | None = None
    layout: Literal["nchw", "nhwc"] | None = None
    colour: Literal["rgb", "bgr"] | None = None
    fit: Literal["stretch", "letterbox", "crop"] | None = None
    short: int | None = None
    kernel: Literal["linear", "cubic", "nearest"] | None = None
    antialias: bool | None = None
    norm: str | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    classes: tuple[str, ...] | None = None
    activation: Literal["none", "softmax", "sigmoid"] | None = None
    higher: Literal["defective", "good"] | None = None
    licence: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Golden:
    """A picture and what the training side says of it."""

    name: str
    data: bytes
    pixels: NDArray[np.uint8]
    expected: float
    label: str | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Foreign:
    """A foreign model that was loaded and asked once, in a process of its own."""

    name: str
    data: bytes
    model: onnx.ModelProto
    signature: Signature
    exporter: Literal["ultralytics", "anomalib", "rf-detr", "classifier", "plain"]
    classes: tuple[str, ...] | None
    licence: str

    @property
    def sha256(self) -> str:
        """The digest of the file as it came."""
        return digest(self.data)


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """A way that explains the golden answers, and how well."""

    how: Preparation
    meaning: Meaning
    difference: float


def read_golden(folder: Path) -> tuple[Golden, ...]:
    """Read the golden pictures and their answers; raises `ModelError` naming what is wrong."""
    path = folder / EXPECTED_NAME
    try:
        said = json.loads(read_bytes(path))
        entries = dict(said["pictures"])
        rows = [(str(name), float(one["score"]), one.get("label")) for name, one in entries.items()]
    except PictureError as error:
        raise ModelError(f"{error}: golden pictures need the training side's answers") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ModelError(
            f'{path}: not {{"pictures": {{"a.png": {{"score": 0.9, "label": "good"}}}}}} ({error})'
        ) from error
    golden = []
    for name, score, label in sorted(rows):
        if "/" in name or name.startswith(".") or not np.isfinite(score):
            raise ModelError(f"{path}: {name!r:.80}: a picture beside it, with a finite score")
        if label is not None and not isinstance(label, str):
            raise ModelError(f"{path}: {name}: a label is a word, such as good")
        try:
            data = read_bytes(folder / name)
            pixels = read_picture(folder / name)
        except PictureError as error:
            raise ModelError(f"{error}: it stands in {EXPECTED_NAME}") from error
        golden.append(Golden(name=name, data=data, pixels=pixels, expected=score, label=label))
    if len(golden) < GOLDEN_MIN or len({round(one.expected, 4) for one in golden}) < GOLDEN_MIN:
        raise ModelError(
            f"{path}: {len(golden)} pictures, and too few different answers to prove anything: give"
            f" {GOLDEN_MIN} or more, some good and some defective"
        )
    sizes = {one.pixels.shape for one in golden}
    if len(sizes) > 1:
        raise ModelError(f"{folder}: golden pictures of {len(sizes)} sizes: use the camera's own")
    return tuple(golden)


def read_foreign(path: Path, wanted: Wanted) -> Foreign:
    """Read a foreign model and try it out in a child process; raises `ModelError`."""
    data = _read(path)
    try:
        model = onnx.load_model_from_string(data)
    except DecodeError as error:
        raise ModelError(f"{path}: no ONNX model: name an .onnx file") from error
    whole = _inline(model, path)
    size = wanted.size or _imgsz({one.key: one.value for one in model.metadata_props})
    signature = try_model(whole, name=str(path), size=size or _SIZE_UNKNOWN)
    exporter = _exporter(signature)
    licence = wanted.licence or signature.metadata.get("license")
    if exporter == "ultralytics" and AGPL not in (licence or ""):
        licence = f"AGPL-3.0 unless you bought another from Ultralytics ({licence or 'not said'})"
    return Foreign(
        name=path.name,
        data=data,
        model=onnx.load_model_from_string(whole),
        signature=signature,
        exporter=exporter,
        classes=wanted.classes or _names(signature.metadata),
        licence=licence or UNKNOWN_LICENCE,
    )


def understand(foreign: Foreign, golden: Sequence[Golden], wanted: Wanted) -> Match:
    """Return the one way that explains the golden answers, or raise `ModelError` saying why not."""
    size = golden[0].pixels.shape[:2]
    entry, base = _base(foreign, wanted, (size[0], size[1]))
    session = open_session(foreign.model.SerializeToString())
    names = [item.name for item in session.get_outputs()]

    def answers(how: Preparation, pictures: Sequence[Golden]) -> list[dict[str, NDArray[Any]]]:
        nodes, feeds = prepare(how, (size[0], size[1]))
        ready = open_session(alone(nodes, feeds, size=(size[0], size[1])))
        found = []
        for one in pictures:
            (value,) = ready.run(None, {"qcnode.image": one.pixels})
            found.append(dict(zip(names, session.run(None, {entry: value}), strict=True)))
        return found

    try:
        matches = _search(_ways(foreign, base, wanted), foreign, golden, wanted, answers)
    except ORT_ERRORS as error:
        words = " ".join(str(error).split())[:160]
        raise ModelError(f"{foreign.name}: fails on a golden picture ({words})") from error
    close = [match for match in matches if match.difference <= TOLERANCE]
    if not close:
        raise ModelError(_nothing_fits(foreign, base, wanted, golden, answers))
    best = min(close, key=lambda match: match.difference)
    _refuse_doubt(best, close, foreign, (size[0], size[1]))
    return replace(best, meaning=_directed(best.meaning, foreign, golden, wanted))


def compose(foreign: Foreign, match: Match, size: tuple[int, int]) -> bytes:
    """Return one graph that keeps the node's contract, with the foreign one inside."""
    before, feeds = prepare(match.how, size)
    behind = conclude(match.meaning, match.how, size)
    model = modern(foreign.model)
    return around(model, before, behind, feeds=feeds, size=size, heat=match.meaning.heat)


# -- reading ---------------------------------------------------------------------------


def _read(path: Path) -> bytes:
    """Read an ordinary file of its own: no link is followed, none is shared."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(handle, "rb") as file:
            status = os.fstat(handle)
            if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
                raise ModelError(f"{path}: not a file of its own: copy it first")
            if status.st_size > RELEASE_BYTES_MAX:
                raise ModelError(
                    f"{path}: {status.st_size} bytes, at most {RELEASE_BYTES_MAX} are read"
                )
            return file.read(RELEASE_BYTES_MAX)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror}): name the file itself") from (
            error
        )


def _inline(model: onnx.ModelProto, path: Path) -> bytes:
    """Bring weights from a file beside the model into it; from anywhere else is refused."""
    beside: dict[str, bytes] = {}
    for tensor in _tensors(model.graph):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        said = {entry.key: entry.value for entry in tensor.external_data}
        location = said.get("location", "")
        if not location or "/" in location or "\\" in location or location.startswith("."):
            raise ModelError(
                f"{path}: weights in {location!r:.80}, no file beside it: export it whole"
            )
        if location not in beside:
            beside[location] = _read(path.with_name(location))
        begin = int(said.get("offset", 0))
        end = begin + int(said.get("length", len(beside[location]) - begin))
        if not 0 <= begin <= end <= len(beside[location]):
            raise ModelError(f"{path}: weights beyond the end of {location}: copy both files again")
        tensor.raw_data = beside[location][begin:end]
        tensor.data_location = onnx.TensorProto.DEFAULT
        del tensor.external_data[:]
    return bytes(model.SerializeToString())


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            if attribute.HasField("g"):
                yield from _tensors(attribute.g)
            for inner in attribute.graphs:
                yield from _tensors(inner)


def _exporter(
    signature: Signature,
) -> Literal["ultralytics", "anomalib", "rf-detr", "classifier", "plain"]:
    about = signature.metadata
    names = {port.name for port in signature.outputs}
    if about.get("author") == "Ultralytics" or "ultralytics" in about.get("docs", ""):
        return "ultralytics"
    if {"pred_score", "anomaly_map"} & names:
        return "anomalib"
    if {"dets", "labels"} <= names:
        return "rf-detr"
    if len(signature.outputs) == 1 and _is_classes(signature.outputs[0].shape):
        return "classifier"
    return "plain"


def _is_classes(shape: tuple[int | None, ...]) -> bool:
    return len(shape) == 2 and shape[0] == 1  # noqa: PLR2004  # batch and classes


def _names(metadata: Mapping[str, str]) -> tuple[str, ...] | None:
    try:
        names = ast.literal_eval(metadata["names"])
        return tuple(str(names[index]) for index in range(len(names)))
    except (KeyError, ValueError, SyntaxError, TypeError):
        return None


def _imgsz(metadata: Mapping[str, str]) -> tuple[int, int] | None:
    try:
        rows, columns = ast.literal_eval(metadata["imgsz"])
        return int(rows), int(columns)
    except (KeyError, ValueError, SyntaxError, TypeError):
        return None


# -- ways to prepare a picture ---------------------------------------------------------


def _base(foreign: Foreign, wanted: Wanted, picture: tuple[int, int]) -> tuple[str, Preparation]:
    """Return the input's name and what its shape and type say, with all else at its default."""
    ports = foreign.signature.inputs
    if len(ports) != 1:
        raise ModelError(f"{foreign.name}: {len(ports)} inputs, and a picture is one: export it so")
    port = ports[0]
    shape = port.shape
    if len(shape) != 4 or shape[0] not in (None, 1):  # noqa: PLR2004  # batch, and a picture
        raise ModelError(f"{foreign.name}: input of shape {shape}: export it for one picture")
    layout = wanted.layout or _layout(foreign.name, port)
    channels = shape[1] if layout == "nchw" else shape[3]
    rows, columns = (shape[2], shape[3]) if layout == "nchw" else (shape[1], shape[2])
    given = wanted.size or _imgsz(foreign.signature.metadata)
    if (rows is None or columns is None) and given is None:
        if foreign.exporter != "anomalib":
            raise ModelError(
                f"{foreign.name}: takes pictures of any size: say which with --size ROWSxCOLUMNS"
            )
        given = picture
    fixed = given or (0, 0)
    return port.name, Preparation(
        height=rows or fixed[0],
        width=columns or fixed[1],
        channels=channels or 3,
        layout=layout,
        dtype=_dtype(port.type),
        norm="raw" if port.type == "tensor(uint8)" else "unit",
    )


def _layout(name: str, port: Port) -> Literal["nchw", "nhwc"]:
    first, last = port.shape[1] in (1, 3), port.shape[3] in (1, 3)
    if first == last:
        raise ModelError(f"{name}: input of shape {port.shape}: say --layout nchw or nhwc")
    return "nchw" if first else "nhwc"


def _dtype(kind: str) -> Literal["float32", "float16", "uint8"]:
    if kind == "tensor(uint8)":
        return "uint8"
    return "float16" if kind == "tensor(float16)" else "float32"


_KERNELS: Final = (
    ("linear", True, "bytes"),
    ("linear", False, "bytes"),
    ("cubic", True, "bytes"),
    ("cubic", False, "bytes"),
    ("linear", True, "floats"),
    ("linear", False, "floats"),
    ("cubic", True, "floats"),
    ("nearest", False, "bytes"),
)
_CROPS: Final = (1.0, 0.875, 0.95, 0.9)


def _ways(foreign: Foreign, base: Preparation, wanted: Wanted) -> list[Preparation]:
    """Return every way that neither the exporter nor the caller rules out."""
    known = _known(foreign, base)
    fits: list[tuple[str, int]] = [("stretch", 0), ("letterbox", 0)]
    side = min(base.height, base.width)
    shorts = [wanted.short] if wanted.short else [round(side / share) for share in _CROPS]
    fits += [("crop", short) for short in shorts]
    if "fit" in known:
        fits = [known["fit"]]
    if wanted.fit is not None:
        fits = [
            (fit, short)
            for fit, short in [("stretch", 0), ("letterbox", 0), *(("crop", s) for s in shorts)]
            if fit == wanted.fit
        ]
    kernels = [
        kernel
        for kernel in (
            _KERNELS
            if wanted.kernel is not None or wanted.antialias is not None
            else known.get("kernels", _KERNELS)
        )
        if (wanted.kernel is None or kernel[0] == wanted.kernel)
        and (wanted.antialias is None or kernel[1] == wanted.antialias)
    ]
    colours = [wanted.colour] if wanted.colour else known.get("colours", ["rgb", "bgr"])
    norms = [wanted.norm] if wanted.norm else known.get("norms", list(NORMS))
    if base.dtype == "uint8":
        norms = ["raw"]
    return [
        replace(
            base,
            fit=fit,
            short=short,
            kernel=kernel,
            antialias=antialias,
            on=on,
            colour=colour,
            norm=norm,
            mean=wanted.mean,
            std=wanted.std,
        )
        for (fit, short), (kernel, antialias, on), colour, norm in itertools.product(
            fits, kernels, colours, norms if wanted.mean is None else ["unit"]
        )
    ]


def _known(foreign: Foreign, base: Preparation) -> dict[str, Any]:
    """Return what an exporter's own predictor does, whatever the model."""
    if foreign.exporter == "ultralytics":
        if foreign.signature.metadata.get("task") == "classify":
            crop = ("crop", min(base.height, base.width))
            return {"fit": crop, "kernels": _KERNELS[:2], "colours": ["rgb"], "norms": ["unit"]}
        kernels = (("linear", False, "bytes"),)
        return {
            "fit": ("letterbox", 0),
            "kernels": kernels,
            "colours": ["rgb"],
            "norms": ["unit"],
        }
    if foreign.exporter == "anomalib":
        return {"fit": ("stretch", 0), "colours": ["rgb"], "norms": ["unit"]}
    if foreign.exporter == "rf-detr":
        return {"fit": ("stretch", 0), "colours": ["rgb"], "norms": ["imagenet"]}
    return {}


# -- what the answer means -------------------------------------------------------------


def _meanings(foreign: Foreign, wanted: Wanted) -> list[Meaning]:
    """Return every reading of the answer that its shape allows."""
    ports = {port.name: port for port in foreign.signature.outputs}
    floats = [port for port in ports.values() if port.type in ("tensor(float)", "tensor(float16)")]
    if foreign.exporter == "rf-detr":
        return [_boxes(foreign, "detr", ports["labels"], beside=ports["dets"])]
    if foreign.exporter == "anomalib":
        return [_anomaly(foreign, floats)]
    for port in floats:
        shape = _whole(port.shape)
        if _is_classes(shape):
            return _class_readings(foreign, wanted, port)
        if len(shape) == 3 and shape[2] == 6:  # noqa: PLR2004  # four edges, how sure, and what
            return [_boxes(foreign, "ends", port)]
        if len(shape) == 3 and shape[1] > 4:  # noqa: PLR2004  # four edges, and classes
            return [_boxes(foreign, "yolo", port)]
    if floats:
        return [_anomaly(foreign, floats)]
    raise ModelError(f"{foreign.name}: no output that can be a score: export one as float")


def _whole(shape: tuple[int | None, ...]) -> tuple[int, ...]:
    return tuple(size or 1 for size in shape)


def _class_readings(foreign: Foreign, wanted: Wanted, port: Port) -> list[Meaning]:
    count = _whole(port.shape)[1]
    names = foreign.classes
    if names is not None and len(names) != count:
        raise ModelError(
            f"{foreign.name}: {count} classes, and {len(names)} names: name each with --classes"
        )
    ways: list[Literal["none", "softmax", "sigmoid"]] = ["none", "softmax", "sigmoid"]
    if count == 1:
        ways = ["none", "sigmoid"]
    if wanted.activation is not None:
        ways = [wanted.activation]
    elif count > 1 and _is_probability(foreign, port):
        ways = ["none"]
    good = _good_places(names)
    if good:
        bad = tuple(place for place in range(count) if place not in good)
        places: list[tuple[int, ...]] = [bad]
    else:
        places = [(place,) for place in range(count)]
    return [
        Meaning(
            kind="class",
            score=port.name,
            shape=_whole(port.shape),
            activation=way,
            places=place,
            bounded=way != "none" or _is_probability(foreign, port),
        )
        for way, place in itertools.product(ways, places)
    ]


def _is_probability(foreign: Foreign, port: Port) -> bool:
    last = {name: node.op_type for node in foreign.model.graph.node for name in node.output}
    return last.get(port.name) in ("Softmax", "Sigmoid")


def _good_places(names: tuple[str, ...] | None) -> tuple[int, ...]:
    if names is None:
        return ()
    return tuple(place for place, name in enumerate(names) if name.strip().lower() in GOOD_NAMES)


def _boxes(
    foreign: Foreign,
    kind: Literal["yolo", "ends", "detr"],
    port: Port,
    *,
    beside: Port | None = None,
) -> Meaning:
    shape = _whole(port.shape)
    names = foreign.classes
    classes = shape[2] if kind == "detr" else shape[1] - 4
    if names is not None and kind != "ends":
        classes = min(classes, len(names))
    elif kind == "yolo" and len(foreign.signature.outputs) > 1:
        raise ModelError(f"{foreign.name}: which channels are classes: name them with --classes")
    good = _good_places(names)
    return Meaning(
        kind=kind,
        score=port.name,
        shape=shape,
        map=None if beside is None else beside.name,
        places=tuple(place for place in range(classes) if place not in good),
    )


def _anomaly(foreign: Foreign, floats: list[Port]) -> Meaning:
    scalars = [port for port in floats if np.prod(_whole(port.shape)) == 1]
    maps = [port for port in floats if _is_map(_whole(port.shape))]
    scalars.sort(key=lambda port: port.name != "pred_score")
    maps.sort(key=lambda port: port.name != "anomaly_map")
    if not scalars and not maps:
        shapes = ", ".join(f"{port.name} {port.shape}" for port in floats)
        raise ModelError(f"{foreign.name}: no output that can be a score ({shapes})")
    score = scalars[0] if scalars else maps[0]
    return Meaning(
        kind="score" if scalars else "map",
        score=score.name,
        shape=_whole(score.shape),
        map=maps[0].name if maps else None,
        map_shape=_whole(maps[0].shape) if maps else (),
    )


def _is_map(shape: tuple[int, ...]) -> bool:
    return len(shape) >= 2 and int(np.prod(shape[:-2])) == 1 and min(shape[-2:]) > 1  # noqa: PLR2004


# -- golden pictures decide ------------------------------------------------------------


def _search(
    ways: Sequence[Preparation],
    foreign: Foreign,
    golden: Sequence[Golden],
    wanted: Wanted,
    answers: Any,
) -> list[Match]:
    """Return what comes near the golden answers; ways that are the same graph count once."""
    size = golden[0].pixels.shape[:2]
    readings = _meanings(foreign, wanted)
    matches: list[Match] = []
    seen: set[tuple[Any, ...]] = set()
    # The first picture rules most ways out, and the others are not asked for these.
    for how in ways:
        if how.settled(size) in seen:
            continue
        seen.add(how.settled(size))
        (first,) = answers(how, golden[:1])
        left = [one for one in readings if _difference(one, [first], golden[:1]) <= TOLERANCE]
        if not left and matches:
            continue
        rest = answers(how, golden[1:]) if left else []
        for meaning in left or readings:
            found = [first, *rest]
            matches.append(
                Match(how=how, meaning=meaning, difference=_difference(meaning, found, golden))
            )
    return matches


def _difference(
    meaning: Meaning, found: Sequence[Mapping[str, NDArray[Any]]], golden: Sequence[Golden]
) -> float:
    worst = 0.0
    for answer, one in zip(found, golden, strict=False):
        value = meaning.read(answer)
        if not np.isfinite(value):
            return float("inf")
        worst = max(worst, abs(value - one.expected) / max(1.0, abs(one.expected)))
    return worst


_OPTIONS: Final = (
    ("colour", "--colour"),
    ("fit", "--fit"),
    ("short", "--short"),
    ("norm", "--norm"),
    ("kernel", "--kernel"),
    ("antialias", "--antialias"),
)


def _refuse_doubt(
    best: Match, close: Sequence[Match], foreign: Foreign, size: tuple[int, int]
) -> None:
    for rival in close:
        clear = best.difference <= _EXACT and rival.difference > _CLOSE * best.difference
        if rival is best or clear:
            continue
        if rival.meaning.places != best.meaning.places:
            raise ModelError(
                f"{foreign.name}: the golden answers are those of two classes alike: name the"
                " classes in their order with --classes"
            )
        if rival.meaning.activation != best.meaning.activation:
            raise ModelError(
                f"{foreign.name}: the golden answers fit {best.meaning.activation} and"
                f" {rival.meaning.activation} alike: say --answer"
            )
        for field, option in _OPTIONS:
            one, other = getattr(best.how, field), getattr(rival.how, field)
            if one != other:
                raise ModelError(
                    f"{foreign.name}: the golden pictures do not tell {field} {one} from {other}"
                    f" (at {size[1]}x{size[0]}): say {option}, or add pictures that do"
                )


def _nothing_fits(
    foreign: Foreign,
    base: Preparation,
    wanted: Wanted,
    golden: Sequence[Golden],
    answers: Any,
) -> str:
    """Say which one thing that was said would fit otherwise, if any."""
    for field in ("colour", "fit", "kernel", "antialias", "norm", "classes", "activation"):
        if getattr(wanted, field) is None:
            continue
        freed = replace(wanted, **{field: None})
        other = replace(foreign, classes=None) if field == "classes" else foreign
        found = _search(_ways(other, base, freed), other, golden, freed, answers)
        fitting = [match for match in found if match.difference <= TOLERANCE]
        if fitting:
            how = fitting[0].how
            meant = getattr(how, field, None) or getattr(fitting[0].meaning, field, "another order")
            return (
                f"{foreign.name}: answers differ from the golden ones with {field}"
                f" {getattr(wanted, field)}, and fit with {meant}"
            )
    return (
        f"{foreign.name}: no way to prepare a picture gives the golden answers: say what is unusual"
        " (--fit, --short, --kernel, --norm, --mean and --std, --classes), or export it with its"
        " preparation inside"
    )


def _directed(
    meaning: Meaning, foreign: Foreign, golden: Sequence[Golden], wanted: Wanted
) -> Meaning:
    """Return the meaning with its direction: told, or shown by labelled golden pictures."""
    good = [one.expected for one in golden if one.label in GOOD_NAMES]
    bad = [one.expected for one in golden if one.label is not None and one.label not in GOOD_NAMES]
    named: str | None = "defective" if _good_places(foreign.classes) else None
    if foreign.exporter in ("anomalib", "rf-detr") or meaning.kind in ("yolo", "ends", "detr"):
        named = "defective"
    told = wanted.higher or named
    shown: Literal["defective", "good"] | None = None
    if good and bad:
        below = float(np.mean([[a < b for a in good] for b in bad]))
        above = float(np.mean([[a > b for a in good] for b in bad]))
        if max(below, above) < 0.75 and told is None:  # noqa: PLR2004  # half is mere chance
            raise ModelError(
                f"{foreign.name}: the labelled golden pictures do not show which way its score"
                " goes: say --higher-is defective or good"
            )
        shown = "defective" if below >= above else "good"
    if told is not None and shown is not None and told != shown:
        raise ModelError(
            f"{foreign.name}: its score is said to be higher for {told} parts, and the labelled"
            f" golden pictures show the contrary: check --higher-is, --classes and the labels"
        )
    direction = told or shown
    if direction is None:
        raise ModelError(
            f"{foreign.name}: which way its score goes: label the golden pictures, or say"
            " --higher-is defective or good"
        )
    return replace(meaning, higher="defective" if direction == "defective" else "good")
