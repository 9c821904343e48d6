"""A data set on disk, in the folder layout of MVTec AD.

`train/good`, `test/good`, `test/<type>` and masks in `ground_truth/<type>/<name>_mask.png`;
also a labelled share of the defects in `train/<type>`. Everything comes in the order of
its name, so the same folder always gives the same model. Pixels are read when asked for.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from qcnode.books.pictures import JPEG_QUALITY
from qcnode.domain import Frame
from qcnode.errors import DatasetError, PictureError
from qcnode.picture import (
    JPEG_MAGIC,
    SUFFIXES,
    decode_picture,
    encode_jpeg,
    read_bytes,
    read_picture,
    unpack_picture,
)

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

GOOD: Final = "good"
SIDE_MIN: Final = 16
"""Pixels along the shorter side below which a picture shows no part."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One picture of the data set; `label` is `good` or the kind of defect."""

    path: Path
    label: str
    mask: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """The pictures of one product, by what they are for."""

    root: Path
    name: str
    train_good: tuple[Sample, ...]
    train_defects: tuple[Sample, ...]
    test_good: tuple[Sample, ...]
    test_defects: tuple[Sample, ...]

    @property
    def labels(self) -> tuple[str, ...]:
        """`good` and every kind of defect that occurs."""
        kinds = {sample.label for sample in (*self.train_defects, *self.test_defects)}
        return (GOOD, *sorted(kinds))


def open_dataset(root: Path) -> Dataset:
    """Find the pictures under `root`; none is read yet."""
    if not root.is_dir():
        raise DatasetError(f"{root}: no such folder: name a data set in the MVTec AD layout")
    return Dataset(
        root=root,
        name=root.resolve().name,
        train_good=_pictures(root / "train" / GOOD, GOOD, None),
        train_defects=_defects(root, "train", "train_ground_truth"),
        test_good=_pictures(root / "test" / GOOD, GOOD, None),
        test_defects=_defects(root, "test", "ground_truth"),
    )


def require_train(dataset: Dataset, *, good_min: int) -> None:
    """Raise `DatasetError` unless there are enough good pictures to teach from."""
    have = len(dataset.train_good)
    if have == 0:
        raise DatasetError(f"{dataset.root}: no picture in train/good: put good parts there")
    if have < good_min:
        raise DatasetError(
            f"{dataset.root}: {have} pictures in train/good, at least {good_min} are needed: "
            f"add {good_min - have}"
        )


def require_test(dataset: Dataset) -> None:
    """Raise `DatasetError` unless there are good and defective pictures to test on."""
    for samples, where in (
        (dataset.test_good, "test/good"),
        (dataset.test_defects, "test/<kind of defect>"),
    ):
        if not samples:
            raise DatasetError(f"{dataset.root}: no picture in {where}: put test parts there")


def digest_of(samples: Iterable[Sample], root: Path) -> str:
    """Return one SHA-256 over the names and bytes of these pictures."""
    total = hashlib.sha256()
    for sample in samples:
        try:
            content = hashlib.sha256(read_bytes(sample.path)).hexdigest()
        except PictureError as error:
            raise DatasetError(str(error)) from error
        total.update(f"{sample.path.relative_to(root).as_posix()}\0{content}\n".encode())
    return total.hexdigest()


def find_copies(samples: Iterable[Sample]) -> tuple[Sample, ...]:
    """Return the pictures that are an earlier one again, byte for byte.

    Raise `DatasetError` where one picture stands under two labels: one must be wrong.
    """
    first: dict[str, Sample] = {}
    copies: list[Sample] = []
    for sample in samples:
        try:
            digest = hashlib.sha256(read_bytes(sample.path)).hexdigest()
        except PictureError as error:
            raise DatasetError(str(error)) from error
        other = first.setdefault(digest, sample)
        if other is sample:
            continue
        if other.label != sample.label:
            raise DatasetError(
                f"{sample.path}: the same picture as {other.path}, labelled {sample.label} and "
                f"{other.label}: keep the one that is right"
            )
        copies.append(sample)
    return tuple(copies)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Seen:
    """A picture as a model looks at it, and the whole of it: its size and the file's bytes."""

    pixels: NDArray[np.uint8]
    size: tuple[int, int]
    encoded: bytes

    def whole(self) -> NDArray[np.uint8]:
        """Return every pixel there is."""
        return decode_picture(self.encoded, name="a picture that was read before")

    def frame(self, name: str, now: datetime) -> Frame:
        """Return it as a part of the data set would come along a line."""
        whole = self.size == self.pixels.shape[:2]
        return Frame(
            id=name,
            part_id=name,
            camera="dataset",
            name=name,
            captured_at=now,
            pixels=self.pixels,
            encoded=self.encoded,
            size=None if whole else self.size,
        )


def read_sample(sample: Sample, *, side: int | None) -> Seen:
    """Return a picture, no finer than a model of `side` looks; what cannot be used is an error."""
    try:
        encoded = read_bytes(sample.path)
        unpacked = unpack_picture(encoded, name=str(sample.path), side=side)
    except PictureError as error:
        raise DatasetError(f"{error} (or take it out of the data set)") from error
    rows, columns = unpacked.size or unpacked.pixels.shape[:2]
    if min(rows, columns) < SIDE_MIN:
        raise DatasetError(
            f"{sample.path}: {columns}x{rows} pixels show no part, at least {SIDE_MIN} each way "
            "are needed: take it out of the data set"
        )
    return Seen(pixels=unpacked.pixels, size=(rows, columns), encoded=encoded)


def as_kept(sample: Sample) -> NDArray[np.uint8]:
    """Return a picture whole, as the node keeps it for whoever rules on a part: from a JPEG."""
    seen = read_sample(sample, side=None)
    if seen.encoded.startswith(JPEG_MAGIC):
        return seen.pixels
    return decode_picture(encode_jpeg(seen.pixels, quality=JPEG_QUALITY), name=str(sample.path))


def read_mask(path: Path) -> NDArray[np.bool_]:
    """Return where the defect is."""
    try:
        return read_picture(path)[:, :, 0] > 127  # noqa: PLR2004  # white is defect
    except PictureError as error:
        raise DatasetError(f"{error} (or take it out of the data set)") from error


def _defects(root: Path, part: str, masks: str) -> tuple[Sample, ...]:
    folder = root / part
    if not folder.is_dir():
        return ()
    kinds = sorted(kind.name for kind in folder.iterdir() if kind.is_dir() and kind.name != GOOD)
    found: list[Sample] = []
    for kind in kinds:
        found.extend(_pictures(folder / kind, kind, root / masks / kind))
    return tuple(found)


def _pictures(folder: Path, label: str, masks: Path | None) -> tuple[Sample, ...]:
    if not folder.is_dir():
        return ()
    paths = sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
    )
    return tuple(Sample(path=path, label=label, mask=_mask_of(path, masks)) for path in paths)


def _mask_of(path: Path, masks: Path | None) -> Path | None:
    if masks is None:
        return None
    mask = masks / f"{path.stem}_mask.png"
    return mask if mask.is_file() else None
