"""Pretraining of the backbone: `make backbone` runs it; nothing else needs torch.

The net learns twice over, in turns. Whole pictures: two pictures of one formula are to be
alike and pictures of other formulas not. Cells: the same place under other light, a
little shifted and turned, is to be alike; other places, and the same place with a flaw on
it, are not. What a good part may do is thereby told from what a defect does.

Everything is seeded; weights are the same on the same machine and library version.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from qcmodels.backbone import EARLY, STRIDES, WIDTHS
from qcmodels.formula import draw_class, draw_flaw

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

_CELL: Final = 8
_HEAT: Final = 0.15
"""Temperature of the contrast: lower looks at the hardest others only."""
_CELLS_EACH: Final = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class PretrainConfig:
    """How much is drawn and learned; the defaults made the figures in docs/models.md."""

    seed: int = 0
    classes: int = 1_200
    pictures_each: int = 5
    batch: int = 48
    side: int = 96
    rate: float = 2e-3
    steps: int = 800


class Net(nn.Module):
    """The net in training: as `backbone.build_backbone`, with normalisation not yet folded in."""

    def __init__(self) -> None:
        super().__init__()
        inputs = (3, *WIDTHS[:-1])
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False),
                nn.BatchNorm2d(after),
                nn.ReLU(),
            )
            for before, after, stride in zip(inputs, WIDTHS, STRIDES, strict=True)
        )

    def forward(self, pictures: Tensor) -> Tensor:
        """Return the features, channels x cells."""
        value, early = pictures, pictures
        for number, layer in enumerate(self.layers):
            value = layer(value)
            if number == EARLY:
                early = nn.functional.avg_pool2d(value, 2)
        return torch.cat([early, value], dim=1)

    def folded(self) -> dict[str, NDArray[np.float16]]:
        """Return kernels and offsets with the normalisation in them, in 16 bits."""
        weights: dict[str, NDArray[np.float16]] = {}
        for number, layer in enumerate(self.layers):
            conv, norm = layer[0], layer[1]
            scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
            kernel = conv.weight * scale[:, None, None, None]
            offset = norm.bias - norm.running_mean * scale
            weights[f"kernel{number}"] = kernel.detach().numpy().astype(np.float16)
            weights[f"offset{number}"] = offset.detach().numpy().astype(np.float16)
        return weights


def pretrain(
    config: PretrainConfig, *, cpu_s: Callable[[], float], tell: Callable[[str], None]
) -> dict[str, NDArray[np.float16]]:
    """Return the weights that `backbone.build_backbone` takes."""
    torch.manual_seed(config.seed)
    random = np.random.default_rng(config.seed)
    start = cpu_s()
    drawn = np.array(
        [
            draw_class(number, config.pictures_each, seed=config.seed)
            for number in range(config.classes)
        ]
    )
    tell(f"{drawn.shape[0] * drawn.shape[1]} pictures drawn in {cpu_s() - start:.0f} s")
    net = Net()
    heads = nn.ModuleList(
        nn.Sequential(nn.Linear(WIDTHS[EARLY] + WIDTHS[-1], 128), nn.ReLU(), nn.Linear(128, 64))
        for _ in range(2)
    )
    learner = torch.optim.AdamW([*net.parameters(), *heads.parameters()], config.rate)
    losses = [0.0, 0.0]
    for step in range(config.steps):
        # A rate that falls to nothing by the end is worth more than the last steps themselves.
        for group in learner.param_groups:
            group["lr"] = config.rate * min(1.0, step / 50, 1.01 - step / config.steps)
        kind = step % 2
        pairs, keep = _draw_pairs(drawn, config, random, cells=kind == 1)
        features = net(pairs)
        loss = (
            _dense_loss(heads[1], features, keep, random)
            if kind
            else _pooled_loss(heads[0], features)
        )
        learner.zero_grad()
        loss.backward()
        learner.step()
        losses[kind] = loss.item() if step < 2 else 0.95 * losses[kind] + 0.05 * loss.item()  # noqa: PLR2004
        if step % 50 == 0:
            spent = cpu_s() - start
            tell(f"step {step}, {spent:.0f} s: whole {losses[0]:.3f}, cells {losses[1]:.3f}")
    net.eval()
    return net.folded()


def _draw_pairs(
    drawn: NDArray[np.uint8], config: PretrainConfig, random: np.random.Generator, *, cells: bool
) -> tuple[Tensor, Tensor]:
    """Return two views of each of a batch, first views first, and which cells are unflawed."""
    classes = random.choice(len(drawn), config.batch, replace=False)
    grid = config.side // _CELL
    views: list[list[NDArray[np.float32]]] = [[], []]
    keep = np.ones((config.batch, grid, grid), bool)
    for index, number in enumerate(classes):
        one, other = random.choice(drawn.shape[1], 2, replace=False)
        if not cells:
            views[0].append(_view(drawn[number, one], config.side, random, moves=20.0))
            views[1].append(_view(drawn[number, other], config.side, random, moves=20.0))
            continue
        picture = drawn[number, one]
        flawed = draw_flaw(draw_flaw(picture, random), random)
        margin = (len(picture) - config.side) // 2
        inner = slice(margin, margin + config.side)
        change = np.abs(flawed.astype(np.int16) - picture)[inner, inner].max(axis=2)
        keep[index] = change.reshape(grid, _CELL, grid, _CELL).max(axis=(1, 3)) < 8  # noqa: PLR2004
        views[0].append(_view(picture, config.side, random, moves=1.5))
        views[1].append(_view(flawed, config.side, random, moves=1.5))
    stacked = np.stack(views[0] + views[1]).transpose(0, 3, 1, 2)
    return torch.from_numpy(np.ascontiguousarray(stacked)), torch.from_numpy(keep)


def _view(
    picture: NDArray[np.uint8], side: int, random: np.random.Generator, *, moves: float
) -> NDArray[np.float32]:
    """Return a picture as a good part may look again: moved, turned, under other light."""
    centre = len(picture) / 2
    turn = cv2.getRotationMatrix2D(
        (centre, centre), float(random.normal(0, moves / 3)), float(random.uniform(0.97, 1.03))
    )
    shift = random.uniform(-moves, moves, 2) - (len(picture) - side) / 2
    placed = np.column_stack([turn[:, :2], turn[:, 2] + shift])
    seen = cv2.warpAffine(
        picture, placed, (side, side), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT
    )
    light = random.uniform(0.8, 1.2), random.uniform(-0.15, 0.15)
    view = np.asarray((seen / 127.5 - 1.0) * light[0] + light[1], np.float32)
    if random.random() < 0.3:  # noqa: PLR2004  # grey cameras are common
        view = np.repeat(view.mean(axis=2, keepdims=True), 3, axis=2)
    if random.random() < 0.3:  # noqa: PLR2004  # so is a little defocus
        blur = float(random.uniform(0.3, 1.0))
        view = np.asarray(cv2.GaussianBlur(view, (0, 0), blur), np.float32)
    return np.asarray(view + random.normal(0, 0.02, view.shape), np.float32)


def _pooled_loss(head: nn.Module, features: Tensor) -> Tensor:
    found = nn.functional.normalize(head(features.mean(dim=(2, 3))), dim=1)
    one, other = found.chunk(2)
    return _contrast(one, other)


def _dense_loss(
    head: nn.Module, features: Tensor, keep: Tensor, random: np.random.Generator
) -> Tensor:
    """Contrast cells over all pictures; a flawed one is among the others and never a pair."""
    cells = features.flatten(2).transpose(1, 2)
    one, other = cells.chunk(2)
    unflawed = keep.flatten(1)
    chosen = torch.from_numpy(random.integers(0, one.shape[1], (len(one), _CELLS_EACH)))
    at = torch.arange(len(one))[:, None]
    pair = unflawed[at, chosen].flatten()
    first = nn.functional.normalize(head(one[at, chosen].flatten(0, 1)), dim=1)
    second = nn.functional.normalize(head(other[at, chosen].flatten(0, 1)), dim=1)
    logits = first @ second.T / _HEAT
    # A flawed cell must not be drawn to its own place: there the pair counts as another.
    target = torch.arange(len(first))[pair]
    alike = nn.functional.cross_entropy(logits[pair], target)
    if bool(pair.all()):
        return alike
    gap = (first[~pair] * second[~pair]).sum(dim=1)
    return alike + nn.functional.softplus(gap / _HEAT).mean() * _HEAT


def _contrast(one: Tensor, other: Tensor) -> Tensor:
    logits = one @ other.T / _HEAT
    target = torch.arange(len(one))
    both = nn.functional.cross_entropy(logits, target) + nn.functional.cross_entropy(
        logits.T, target
    )
    return both / 2


def main() -> None:
    """Write the weights into the file that the command line names."""
    out = Path(sys.argv[1])
    torch.set_num_threads(1)
    weights = pretrain(PretrainConfig(), cpu_s=time.process_time, tell=print)
    with out.open("wb") as file:
        np.savez(file, allow_pickle=False, **weights)


if __name__ == "__main__":
    main()
