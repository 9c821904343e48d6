"""ModelManifest: what a released model promises, and how to see that it is unchanged.

A release is a folder: `manifest.json`, the model, golden frames. The manifest names
every other file by its SHA-256. Reading is strict, because a manifest half understood
is a promise half kept: an unknown key, a wrong type or another digest is an error.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import struct
from dataclasses import dataclass
from datetime import datetime  # noqa: TC003  # pydantic reads it while the program runs
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, ClassVar, Final, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

from qcnode.domain import Limits
from qcnode.errors import ManifestError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

FILE_NAME: Final = "manifest.json"
SEAL_NAME: Final = "manifest.seal"
"""Who vouches for the manifest, one `NAME SIGNATURE` a line; by its digests, for all of it."""
_SEAL_BYTES_MAX: Final = 16 * 1024
_BYTES_MAX: Final = 16 * 1024 * 1024
UNLABELLED: Final = "unlabelled"
"""The label of a golden frame of which nobody said what it shows."""
RELEASE_BYTES_MAX: Final = 1024 * 1024 * 1024
"""Of all files together: a release is read whole before any of it is used."""
_STRICT: Final = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureInput:
    """The pictures the model takes: RGB, uint8, height x width x 3.

    Height and width are those of teaching; None where teaching pictures differed, and
    then any size is taken. With `side` a picture is made that many pixels high and wide
    before the graph, by the rule of `qcnode.picture`; without it the graph gets every pixel.
    Everything else is done inside the graph.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    name: str
    layout: Literal["uint8 RGB HWC"]
    height: int | None
    width: int | None
    side: int | None = None

    def __post_init__(self) -> None:
        if self.side is not None and self.side < 1:
            raise ValueError(f"a picture of {self.side} pixels to a side shows nothing")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOutputs:
    """The names of score and anomaly map in the graph, and the grid of the map."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    score: str
    heat: str
    heat_rows: int
    heat_columns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitPromise:
    """One limit and what is promised of it; no `alpha`, no guarantee.

    `alpha` holds on average over calibration sets, `alpha_95` for this one with 95 %
    confidence; None where no such bound is known.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    value: float | None
    alpha: float | None
    alpha_95: float | None
    n: int
    needed: int
    guarantee: str | None
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RiskRow:
    """What asking about more parts buys, on the calibration parts.

    Shares are of all parts at the manifest's prevalence; `risk` is the share of wrong
    verdicts among all parts, with every asked part answered rightly. `tokens_per_1000` is
    for a thousand parts, `asked_per_error` how many more questions than in the row before
    avoid one error more: None where they avoid none, or there is no row before.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    accept_below: float
    reject_from: float
    escalation_rate: float
    risk: float
    tokens_per_1000: int
    asked_per_error: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureNorm:
    """How good parts look to `qcnode.sight`: one value a picture, and their common outline.

    `outline` is the mean of the pictures as that module shrinks them, in base64.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    brightness: tuple[float, ...]
    focus: tuple[float, ...]
    shift: tuple[float, ...]
    outline: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MarkRow:
    """What good parts bear at one size of the picture, as `qcnode.marks` has it, in base64."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    side_px: int
    limit: int
    most: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MarkNorm:
    """What is written on good parts, and where, so that other words on a part are noticed."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    reference: str
    usual: tuple[MarkRow, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class FamilyTrial:
    """One way to teach that was tried, and how well it told parts apart in the trial.

    `by` says which parts: labelled defects held out, or good parts with made-up defects. The
    latter ranks the candidates on one product and estimates nothing.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    family: str
    features: str
    auroc: float
    by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TaughtFrom:
    """The pictures behind the model, by count and digest.

    `suspects` are pictures of the good ones that look like defects, `left_out` those of all
    good ones that neither taught nor calibrated; each by its path in the data set.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    name: str
    sha256: str
    taught: int
    calibrated: int
    defects: int
    seed: int
    suspects: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleasedFile:
    """One file of the release."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    path: str
    sha256: str
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GoldenFrame:
    """A picture whose score is known, judged again at every load."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    path: str
    label: str
    score: float
    heat_max: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportedFrom:
    """A foreign model: its file, who exported it, and under which licence it may be used.

    `preparation` is what happens to a picture before it reaches the foreign graph, `meaning`
    what its answer says, both as they were proven on the golden pictures.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    file: str
    sha256: str
    exporter: str
    licence: str
    preparation: str
    meaning: str
    largest_difference: float
    """Between a golden answer of the training side and ours."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelManifest:
    """All a node must know of a model before it lets it judge."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    schema_version: Literal[2]
    name: str
    created_at: datetime
    family: str
    trials: tuple[FamilyTrial, ...] = ()
    """The families tried in teaching, best first; none where the model came from elsewhere."""
    model: str
    input: PictureInput
    outputs: ModelOutputs
    labels: tuple[str, ...]
    accept_below: LimitPromise
    reject_from: LimitPromise
    prevalence: float
    tokens_per_escalation: int
    """What one question is taken to cost in the risk table."""
    risk_coverage: tuple[RiskRow, ...]
    taught_from: TaughtFrom
    good_scores: tuple[float, ...]
    """Scores of the calibration parts: what p-values are counted against."""
    defect_scores: tuple[float, ...]
    calibration_sha256: str
    """Of both, by `digest_scores`: the set from which the limits were earned."""
    pictures: PictureNorm | None
    """How good parts look, against which the node watches light, focus and position."""
    marks: MarkNorm | None = None
    """What good parts bear; without it no agent's word alone lets a part go."""
    golden: tuple[GoldenFrame, ...]
    golden_tolerance: float
    """How far a golden score may move, as a share of it."""
    files: tuple[ReleasedFile, ...]
    release: int = 0
    """Rises with each release of this name; a node takes no older one back by itself."""
    imported: ImportedFrom | None = None
    """Where a model comes from that was not taught here."""

    def __post_init__(self) -> None:
        if self.created_at.utcoffset() is None:
            raise ValueError("created_at must carry its offset from UTC")
        if self.calibration_sha256 != digest_scores(self.good_scores, self.defect_scores):
            raise ValueError("calibration_sha256 is not that of good_scores and defect_scores")
        paths = [file.path for file in self.files]
        if len(set(paths)) != len(paths):
            raise ValueError("a file is listed twice")
        for path in (self.model, *(frame.path for frame in self.golden)):
            if path not in paths:
                raise ValueError(f"{path} is not among the files")
        for path in paths:
            pure = PurePosixPath(path)
            if pure.is_absolute() or ".." in pure.parts or "\\" in path or str(pure) != path:
                raise ValueError(f"{path} does not lie inside the release")

    @property
    def version(self) -> str:
        """Name and digest of the model, as verdicts are recorded under."""
        digest = next(file.sha256 for file in self.files if file.path == self.model)
        return f"{self.name}@{digest[:12]}"

    @property
    def limits(self) -> Limits:
        """The two limits `judge` works with."""
        return Limits(accept_below=self.accept_below.value, reject_from=self.reject_from.value)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Release:
    """A release as it was read, once and whole."""

    manifest: ModelManifest
    text: bytes
    """The bytes of the manifest, for which somebody may have signed."""
    seals: tuple[tuple[str, str], ...]
    """Names and signatures; nobody has checked them yet."""
    contents: dict[str, bytes]

    @property
    def sha256(self) -> str:
        """The digest of the manifest, and so of every file."""
        return digest(self.text)


def read_release(folder: Path) -> Release:
    """Read a release whole, each file proven by its digest; raises `ManifestError`."""
    text = _read_inside(folder, FILE_NAME, bytes_max=_BYTES_MAX)
    manifest = _parse(text, folder / FILE_NAME)
    seals: tuple[tuple[str, str], ...] = ()
    if (folder / SEAL_NAME).exists() or (folder / SEAL_NAME).is_symlink():
        seals = _parse_seals(_read_inside(folder, SEAL_NAME, bytes_max=_SEAL_BYTES_MAX), folder)
    return Release(
        manifest=manifest, text=text, seals=seals, contents=read_verified(folder, manifest)
    )


def words_to_seal(manifest_text: bytes) -> bytes:
    """Return what is signed to vouch for a manifest; it says itself what it is."""
    return f"qcnode model manifest\n{digest(manifest_text)}\n".encode()


def _parse_seals(text: bytes, folder: Path) -> tuple[tuple[str, str], ...]:
    lines = text.decode("ascii", errors="replace").splitlines()
    pairs = [tuple(line.split(" ")) for line in lines]
    if any(len(pair) != 2 for pair in pairs):  # noqa: PLR2004  # a name and a signature
        raise ManifestError(f"{folder / SEAL_NAME}: no list of signatures: sign the release anew")
    return tuple((name, seal) for name, seal in pairs)


def load_manifest(folder: Path) -> ModelManifest:
    """Read the manifest of the release in `folder`; its files are not looked at yet."""
    return _parse(_read_inside(folder, FILE_NAME, bytes_max=_BYTES_MAX), folder / FILE_NAME)


def _parse(text: bytes, path: Path) -> ModelManifest:
    try:
        json.loads(text, object_pairs_hook=_refuse_doubles, parse_constant=_refuse_constant)
        return _ADAPTER.validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "manifest"
        raise ManifestError(f"{path}: {where}: {first['msg']}: teach or fetch it anew") from error
    except (ValueError, RecursionError) as error:
        raise ManifestError(
            f"{path}: not the JSON of a manifest ({error}): fetch it anew"
        ) from error


def dump_manifest(manifest: ModelManifest) -> bytes:
    """Return the manifest as the JSON that `load_manifest` reads."""
    return _ADAPTER.dump_json(manifest, indent=1) + b"\n"


def read_verified(folder: Path, manifest: ModelManifest) -> dict[str, bytes]:
    """Return every file of the release by its path, each proven by its digest.

    What was proven is what is returned, so nothing can change between the two.
    """
    total = sum(file.bytes for file in manifest.files)
    if total > RELEASE_BYTES_MAX or any(file.bytes < 0 for file in manifest.files):
        raise ManifestError(
            f"{folder}: files of {total} bytes, at most {RELEASE_BYTES_MAX} are read: release a"
            " smaller model"
        )
    contents: dict[str, bytes] = {}
    for file in manifest.files:
        data = _read_inside(folder, file.path, bytes_max=file.bytes)
        if len(data) != file.bytes or digest(data) != file.sha256:
            raise ManifestError(
                f"{folder / file.path}: digest does not match {FILE_NAME}: teach or fetch it anew"
            )
        contents[file.path] = data
    return contents


def digest(data: bytes) -> str:
    """Return the SHA-256 of `data` in hex."""
    return hashlib.sha256(data).hexdigest()


def digest_scores(good: Sequence[float], defects: Sequence[float]) -> str:
    """Return the SHA-256 of a calibration set: how many there are of each, and each in order."""
    values = (float(len(good)), *sorted(good), float(len(defects)), *sorted(defects))
    return digest(struct.pack(f">{len(values)}d", *values))


def _read_inside(folder: Path, name: str, *, bytes_max: int) -> bytes:
    """Read a plain file of the release: a link may lead anywhere, so none is followed."""
    path = folder
    for part in PurePosixPath(name).parts:
        path = path / part
        if path.is_symlink():
            raise ManifestError(f"{path}: a link, and a release holds none: copy the file itself")
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(handle, "rb") as stream:
            status = os.fstat(handle)
            if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
                raise ManifestError(f"{path}: not a file of its own: copy it into the release")
            if status.st_size > bytes_max:
                raise ManifestError(
                    f"{path}: {status.st_size} bytes, {bytes_max} expected: teach or fetch it anew"
                )
            return stream.read(bytes_max + 1)
    except OSError as error:
        raise ManifestError(
            f"{path}: cannot be read ({error.strerror}): name a folder made by `qcnode teach`"
        ) from error


def _refuse_doubles(pairs: list[tuple[str, object]]) -> dict[str, object]:
    keys = [key for key, _ in pairs]
    if len(set(keys)) != len(keys):
        raise ValueError(f"a key stands twice among {sorted(keys)}")
    return dict(pairs)


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no number")


_ADAPTER: Final = TypeAdapter(ModelManifest)
