"""A small product to teach on: a plate with a hole, drawn here, with scratches as defects."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import cv2
import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from qcmodels.train import TeachConfig, teach
from qcnode.cli import models
from qcnode.domain import Frame

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from click.testing import Result

    from qcnode.runtime.onnx import OnnxModel

NOW = datetime(2026, 11, 22, 6, 0, tzinfo=UTC)


def draw_part(rng: np.random.Generator, *, scratched: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return a picture of 96x64 pixels and where its scratch is."""
    picture = np.full((64, 96, 3), (60, 66, 70), np.float32)
    shift = rng.integers(-1, 2, 2)
    cv2.rectangle(picture, (8 + shift[0], 8), (86 + shift[0], 56), (170, 172, 168), -1)
    cv2.circle(picture, (48 + int(shift[0]), 32 + int(shift[1])), 10, (40, 40, 40), -1)
    mask = np.zeros((64, 96), np.uint8)
    if scratched:
        x, y = int(rng.integers(14, 30)), int(rng.integers(14, 46))
        cv2.line(mask, (x, y), (x + 9, y + int(rng.integers(-5, 6))), 255, 2)
        picture[mask > 0] -= rng.uniform(25, 90)
    picture = picture * rng.uniform(0.95, 1.05) + rng.normal(0, 3, picture.shape)
    return np.clip(picture, 0, 255).astype(np.uint8), mask


def write_picture(path: Path, picture: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), picture)


@pytest.fixture(scope="session")
def make_dataset() -> Callable[..., Path]:
    """Write a data set of plates into a folder and return it."""

    def make(folder: Path, *, good: int = 60, defects: int = 24, tests: int = 20) -> Path:
        rng = np.random.default_rng(7)
        for part, label, count in (
            ("train", "good", good),
            ("train", "scratch", defects),
            ("test", "good", tests),
            ("test", "scratch", tests),
        ):
            for number in range(count):
                picture, mask = draw_part(rng, scratched=label != "good")
                write_picture(folder / part / label / f"{number:03d}.png", picture)
                if label != "good" and part == "test":
                    write_picture(folder / "ground_truth" / label / f"{number:03d}_mask.png", mask)
        return folder

    return make


@pytest.fixture(scope="session")
def plates(tmp_path_factory: pytest.TempPathFactory, make_dataset: Callable[..., Path]) -> Path:
    """A data set of plates, for reading only."""
    return make_dataset(tmp_path_factory.mktemp("data") / "plates")


@pytest.fixture(scope="session")
def teach_quietly() -> Callable[..., OnnxModel]:
    """Teach with a fixed clock and nobody watching; one family, where none is asked for."""

    def run(dataset: Path, out: Path, *, threads: int = 1, **config: object) -> OnnxModel:
        return teach(
            dataset,
            out,
            config=TeachConfig(**{"family": "gaussian", **config}),
            now=NOW,
            progress=lambda *_: None,
            threads=threads,
        )

    return run


@pytest.fixture(scope="session")
def plate_release(
    plates: Path, tmp_path_factory: pytest.TempPathFactory, teach_quietly: Callable[..., OnnxModel]
) -> Path:
    """A model taught on the plates, for reading only."""
    out = tmp_path_factory.mktemp("release") / "plates"
    teach_quietly(plates, out)
    return out


@pytest.fixture
def make_frame() -> Callable[[np.ndarray], Frame]:
    """Wrap pixels as a frame."""

    def make(pixels: np.ndarray) -> Frame:
        return Frame(
            id="f1", part_id="p1", camera="test", name="p1.png", captured_at=NOW, pixels=pixels
        )

    return make


@pytest.fixture
def qcnode() -> Callable[..., Result]:
    """Run a command of ours in this process."""
    app = typer.Typer()
    models.register(app)

    def run(*words, fails=None, code=0):
        result = CliRunner().invoke(app, [str(word) for word in words])
        if fails is None:
            assert result.exit_code == code, result.stderr
        else:
            assert isinstance(result.exception, fails)
        return result

    return run
