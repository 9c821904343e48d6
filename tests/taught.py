"""A small taught model, and the data it was taught from, made once for all tests."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from qcmodels.train import TeachConfig, teach
from qcnode.cameras.virtual import write_dataset

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="session")
def rendered_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of rendered parts in the MVTec AD layout, for reading only."""
    folder = tmp_path_factory.mktemp("rendered") / "data"
    write_dataset(folder, seed=1, good=40, defects=3, progress=lambda *_: None)
    return folder


@pytest.fixture(scope="session")
def doubtful_model(rendered_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A release that leaves a good share of rendered parts undecided, for reading only."""
    out = tmp_path_factory.mktemp("taught") / "model"
    teach(
        rendered_data,
        out,
        # Asking about half of the parts is what puts desk and books under load.
        config=TeachConfig(pass_share=0.5, family="gaussian"),
        now=datetime(2026, 11, 22, tzinfo=UTC),
        progress=lambda *_: None,
    )
    return out
