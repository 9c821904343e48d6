"""What it costs to show a part in each way, on recorded parts: `make bench-packings`.

For each shared set a model is taught, its heat says where the evidence is, and every part
is shown in each way: at its native size, and laid at native size into a grey frame of
4096 x 3000, as a 12-megapixel camera would deliver it with nothing else in view. Counts are by
each provider's formula; with `--ask` the scripted provider, which is no model, counts and
answers, too. Where the set has masks it is said how much of the defect the crop shows.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import random
import statistics
import tempfile
import time
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import httpx2
import numpy as np
from pydantic import SecretStr

from qcbridge.agent import Agent, Means
from qcbridge.comparison import Asking, Case, Way, compare
from qcbridge.meter import Meter
from qcbridge.packing import open_views
from qcbridge.prices import PriceBook
from qcbridge.providers.openai_chat import OpenAIChatProvider
from qcbridge.redact import Redaction
from qcbridge.transport import MeteringTransport
from qcmodels.train import TeachConfig, teach
from qcnode.books.ledger import SqliteLedger
from qcnode.cli.packings import USUAL
from qcnode.domain import Escalation, Finding, Frame
from qcnode.evidence import find_box
from qcnode.health import HealthBoard
from qcnode.logs import configure_logs
from qcnode.picture import encode_jpeg, encode_png, read_picture
from qcnode.runtime.onnx import OnnxModel
from tests.scripted import KEY, scripted_provider

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray


SETS = ("paper", "circuit_board", "solar_mono")
WIDTH, HEIGHT = 4096, 3000
HEAT_STEP = 8
"""Pixels of the frame for one of its heat map."""
SIDE_MAX_PX = 448


def main() -> None:
    """Measure, and print a line of JSON for each set and size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--sets", nargs="+", default=SETS)
    parser.add_argument("--parts", type=int, default=40, help="of each set, half of them good")
    parser.add_argument("--ask", type=int, default=0, help="of these, put to the script")
    parser.add_argument("--family", default="gaussian")
    parser.add_argument("--models", type=Path, help="where taught models are kept, and found")
    options = parser.parse_args()
    configure_logs(level=logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        for name in options.sets:
            model = _taught(options.data / name, (options.models or Path(folder)) / name, options)
            for row in measure(options.data / name, model, options):
                print(json.dumps(row), flush=True)  # noqa: T201  # its output


def _taught(data: Path, folder: Path, options: argparse.Namespace) -> Path:
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        teach(
            data,
            folder,
            config=TeachConfig(family=options.family),
            now=datetime.now(UTC),
            progress=lambda *_: None,
        )
    return folder


def measure(data: Path, folder: Path, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Show the parts of one set at both sizes, with the model in `folder`."""
    model = OnnxModel(folder)
    good = [frame for frame in model.manifest.golden if frame.label == "good"]
    golden = read_picture(folder / min(good, key=lambda frame: frame.score).path)
    parts = list(_parts(data, options.parts))
    for framed in (False, True):
        start = time.process_time()
        asking = Asking(
            product=f"a part of {data.name}",
            defect_classes=tuple(sorted({path.parent.name for path in parts} - {"good"})),
            golden=encode_png(_laid(golden) if framed else golden),
            redaction=Redaction(codes=True),
            side_max_px=SIDE_MAX_PX,
        )
        cases = [_case(path, model, framed=framed) for path in parts]
        rows = compare(cases, asking, USUAL)
        yield {
            "set": data.name,
            "frame": f"{WIDTH}x{HEIGHT}" if framed else "native",
            "parts": len(cases),
            "cpu_s": round(time.process_time() - start, 1),
            "rows": [_row(row.way, rows, row.formula) for row in rows],
            "defect_shown": None if framed else _defect_shown(data, parts, cases),
            "asked": _asked(cases[:: len(cases) // options.ask], asking) if options.ask else None,
        }


def _parts(data: Path, number: int) -> Iterator[Path]:
    drawn = random.Random(20261122)
    paths = sorted(path for path in (data / "test").glob("*/*") if path.is_file())
    for wanted in (True, False):
        found = [path for path in paths if (path.parent.name == "good") is wanted]
        yield from drawn.sample(found, min(number // 2, len(found)))


def _case(path: Path, model: OnnxModel, *, framed: bool) -> Case:
    pixels = read_picture(path)
    name = f"{path.parent.name}-{path.stem}"
    frame = Frame(
        id=name, part_id=name, camera="files", name=str(path), captured_at=_NOW, pixels=pixels
    )
    heat = model.predict(frame).heat
    assert heat is not None, "this family gives no heat"
    grey = np.clip(heat * (255 / (model.manifest.limits.reject_from or heat.max())), 0, 255)
    grey = grey.astype(np.uint8)
    picture = path.read_bytes()
    if framed:
        pixels = _laid(pixels)
        grey = _laid_heat(grey, read_picture(path).shape)
        picture = encode_jpeg(pixels, quality=95)
    height, width = pixels.shape[:2]
    escalation = Escalation(
        id=f"e-{name}",
        inspection_id=name,
        part_id=name,
        reason="the score lies between the limits",
        score=0.5,
        opened_at=_NOW,
        expires_at=_NOW + timedelta(hours=1),
        box=find_box(grey, width=width, height=height),
    )
    good = path.parent.name == "good"
    truth = Finding.GOOD if good else Finding.DEFECTIVE
    return Case(escalation=escalation, picture=picture, heat=encode_png(grey), truth=truth)


def _laid(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return a part at native size in the middle of a grey frame."""
    frame = np.full((HEIGHT, WIDTH, 3), 128, np.uint8)
    height, width = pixels.shape[:2]
    top, left = (HEIGHT - height) // 2, (WIDTH - width) // 2
    frame[top : top + height, left : left + width] = pixels
    return frame


def _laid_heat(heat: NDArray[np.uint8], shape: tuple[int, ...]) -> NDArray[np.uint8]:
    frame = np.zeros((HEIGHT // HEAT_STEP, WIDTH // HEAT_STEP), np.uint8)
    down, across = shape[0] // HEAT_STEP, shape[1] // HEAT_STEP
    top = (HEIGHT - shape[0]) // 2 // HEAT_STEP
    left = (WIDTH - shape[1]) // 2 // HEAT_STEP
    small = cv2.resize(heat, (across, down), interpolation=cv2.INTER_AREA)
    frame[top : top + down, left : left + across] = small
    return frame


def _row(way: Way, rows: list[Any], formula: str) -> dict[str, Any]:
    found = {row.way: row for row in rows if row.formula == formula}
    row, naive = found[way], found[Way.FRAME]
    return {
        "formula": formula,
        "packing": way.value,
        "image": [round(value, 1) for value in row.spread()],
        "image_times_fewer": [
            round(value, 1)
            for value in _spread(
                [whole / shown for whole, shown in zip(naive.image, row.image, strict=True)]
            )
        ],
        "text_per_part": round(row.text / row.parts),
        "tokens_per_part": round(row.total / row.parts),
        "saved": round(1 - row.total / naive.total, 3),
    }


def _spread(values: list[float]) -> tuple[float, float, float]:
    return min(values), statistics.median(values), max(values)


def _defect_shown(data: Path, parts: list[Path], cases: list[Case]) -> dict[str, Any] | None:
    """Return how much of each masked defect lies within the crop."""
    shares = []
    for path, case in zip(parts, cases, strict=True):
        mask = data / "ground_truth" / path.parent.name / f"{path.stem}_mask.png"
        if mask.is_file():
            white = read_picture(mask)[:, :, 0] > 0
            box = open_views(case.picture, case.heat).evidence(case.escalation.box)
            inside = white[box.top : box.top + box.height, box.left : box.left + box.width]
            shares.append(float(inside.sum() / max(1, white.sum())))
    if not shares:
        return None
    return {
        "parts": len(shares),
        "share_of_defect": [round(value, 3) for value in _spread(shares)],
        "at_least_half": sum(share >= 0.5 for share in shares),
        "none_of_it": sum(share == 0 for share in shares),
    }


# -- the scripted provider -----------------------------------------------------------------


def _asked(cases: list[Case], asking: Asking) -> list[dict[str, Any]]:
    return [asyncio.run(_ask(way, cases, asking)) for way in (Way.FRAME, Way.CROP, Way.CROP_GOLDEN)]


async def _ask(way: Way, cases: list[Case], asking: Asking) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        with scripted_provider(home, accuracy=0.95) as script:
            script.world.write_text(
                "".join(
                    f"trigger {seq} {case.escalation.part_id}"
                    f" {'good' if case.truth is Finding.GOOD else 'defect'}\n"
                    for seq, case in enumerate(cases, start=1)
                )
            )
            ids = count(1)
            ledger = SqliteLedger(
                home / "ledger.db",
                now_us=lambda: int(_NOW.timestamp() * 1e6),
                new_epoch=lambda: "e" * 32,
            )
            health = HealthBoard(lambda: _NOW)
            meter = Meter(ledger=ledger, prices=PriceBook.load(), health=health, now=lambda: _NOW)
            agent = Agent(
                provider=OpenAIChatProvider(
                    name="scripted",
                    model="scripted-provider",
                    base_url=script.base_url,
                    api_key=SecretStr(KEY),
                    transport=MeteringTransport(
                        httpx2.AsyncHTTPTransport(), meter=meter, monotonic_s=time.monotonic
                    ),
                    timeout_s=60.0,
                    output_tokens_max=300,
                ),
                meter=meter,
                product=asking.product,
                defect_classes=asking.defect_classes,
                image_side_max_px=asking.side_max_px,
                attempts_max=1,
                review_timeout_s=60.0,
                health=health,
                new_id=lambda: f"a-{next(ids)}",
                monotonic_s=time.monotonic,
                means=Means(
                    golden=(lambda: asking.golden) if way is Way.CROP_GOLDEN else None,
                    whole=way is Way.FRAME,
                    redaction=asking.redaction,
                ),
            )
            right = 0
            for case in cases:
                opinion = await agent.review(case.escalation, case.picture, case.heat)
                right += opinion.finding is case.truth
            totals = ledger.totals()
            await agent.close()
            ledger.close()
            used = [row["usage"]["prompt_tokens_details"] for row in script.requests()]
    return {
        "packing": way.value,
        "parts": len(cases),
        "right": right,
        "input_tokens": totals.input_tokens,
        "image_tokens": sum(usage["image_tokens"] for usage in used),
        "cached_tokens": sum(usage["cached_tokens"] for usage in used),
    }


_NOW = datetime(2026, 11, 22, 9, tzinfo=UTC)


if __name__ == "__main__":
    main()
