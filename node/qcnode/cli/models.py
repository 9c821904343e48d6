"""The commands around a model: teach one, evaluate it, and judge pictures with it."""

from __future__ import annotations

import csv
import itertools
import json
import sys
import time
from collections import Counter
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qcnode.domain import Verdict
from qcnode.errors import ModelError, SettingsError
from qcnode.ids import IdMaker
from qcnode.policy import judge

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from typing import TextIO

    from qcmodels.evaluate import Evaluation
    from qcnode.cli.sources import Item
    from qcnode.domain import Prediction
    from qcnode.manifest import LimitPromise, ModelManifest
    from qcnode.runtime.onnx import OnnxModel

    Progress = Callable[[str, int, int], None]

DatasetArg = Annotated[Path, typer.Argument(help="A folder in the MVTec AD layout.")]
ThreadsOpt = Annotated[int, typer.Option(min=1, help="Threads for the model.")]
JsonOpt = Annotated[bool, typer.Option("--json", help="One object on standard output.")]

_REASONS_MAX = 100


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.command()(teach)
    app.command()(evaluate)
    app.command()(inspect)


def teach(
    dataset: DatasetArg,
    *,
    out: Annotated[Path, typer.Option(help="Where the release goes; an older one is replaced.")],
    alpha: Annotated[
        float, typer.Option(help="At most this share of good parts may be rejected.")
    ] = 0.05,
    escape_alpha: Annotated[
        float, typer.Option(help="At most this share of defective parts may pass.")
    ] = 0.1,
    pass_share: Annotated[
        float, typer.Option(help="At most this share of good parts passes unasked.")
    ] = 0.9,
    ask_share: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, help="Limits of least error that ask about so many parts; no promises."
        ),
    ] = None,
    prevalence: Annotated[
        float, typer.Option(min=0, max=1, help="The share of parts that are defective, in tables.")
    ] = 0.02,
    family: Annotated[
        str | None,
        typer.Option(help="Teach this way (gaussian, memory, labelled) instead of the best."),
    ] = None,
    normals_only: Annotated[
        bool, typer.Option("--normals-only", help="Leave labelled defects aside.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of all random choices.")] = 0,
    threads: ThreadsOpt = 1,
    as_json: JsonOpt = False,
) -> None:
    """Fit and calibrate a model from pictures of good parts.

    Good parts come from train/good; labelled defects, where there are any, from
    train/<kind>. Several ways to teach are tried and the best is taken.
    """
    from qcmodels.train import TeachConfig
    from qcmodels.train import teach as teach_model

    with _progress() as progress:
        model = teach_model(
            dataset,
            out,
            config=TeachConfig(
                seed=seed,
                alpha=alpha,
                escape_alpha=escape_alpha,
                pass_share=pass_share,
                ask_share=ask_share,
                prevalence=prevalence,
                family=family,
                normals_only=normals_only,
            ),
            now=datetime.now(UTC),
            progress=progress,
            threads=threads,
        )
    if as_json:
        typer.echo(json.dumps(_summary(model.manifest, out)))
        return
    taught = model.manifest.taught_from
    typer.echo(f"{model.version} ({model.manifest.family}) is at {out}")
    typer.echo(
        f"taught on {_count(taught.taught, 'good part')}, calibrated on the same, each by a model "
        f"taught without it, and on {_count(taught.defects, 'labelled defect')}"
    )
    for text in _trials(model.manifest, asked=family is not None):
        typer.echo(text)
    for text in _describe("passes", "below", model.manifest.accept_below):
        typer.echo(text)
    for text in _describe("rejects", "from", model.manifest.reject_from):
        typer.echo(text)
    for text in _price_of_asking(model.manifest):
        typer.echo(text)
    for text in _advice(model.manifest):
        typer.echo(f"advice: {text}")


def evaluate(
    model_dir: Annotated[Path, typer.Argument(metavar="DIR", help="A release made by `teach`.")],
    dataset: DatasetArg,
    *,
    threads: ThreadsOpt = 1,
    as_json: JsonOpt = False,
) -> None:
    """Judge the test pictures of a data set and set the rates against the certificate."""
    from qcmodels.evaluate import evaluate as evaluate_model
    from qcnode.runtime.onnx import OnnxModel

    model = OnnxModel(model_dir, threads=threads)
    with _progress() as progress:
        result = evaluate_model(
            model,
            dataset,
            now=lambda: datetime.now(UTC),
            clock_ns=time.perf_counter_ns,
            progress=progress,
        )
    if as_json:
        typer.echo(json.dumps(asdict(result)))
        return
    for text in _report(result):
        typer.echo(text)


def inspect(
    source: Annotated[str, typer.Argument(help="A folder, picture, video file or stream.")],
    *,
    model_dir: Annotated[Path, typer.Option("--model", help="A release made by `teach`.")],
    csv_file: Annotated[
        Path | None, typer.Option("--csv", help="Write path, score and verdict of each.")
    ] = None,
    most: Annotated[int | None, typer.Option(min=1, help="Stop after this many pictures.")] = None,
    threads: ThreadsOpt = 1,
    as_json: JsonOpt = False,
) -> None:
    """Judge the pictures of a source and count the verdicts; no line is attached.

    A picture that cannot be read counts as UNDEFINED, with the reason on standard error.
    Exit code 1 means that all of them were.
    """
    from qcnode.cli.sources import open_source
    from qcnode.runtime.onnx import OnnxModel

    model = OnnxModel(model_dir, threads=threads)
    items = open_source(
        source,
        now=lambda: datetime.now(UTC),
        new_id=IdMaker(lambda: time.time_ns() // 1_000_000),
    )
    counts: Counter[Verdict] = Counter()
    reasons: list[dict[str, str]] = []
    with _open_csv(csv_file) as table:
        rows = csv.writer(table) if table else None
        if rows:
            rows.writerow(["path", "score", "verdict"])
        for item in itertools.islice(items, most):
            prediction, reason = _predict(model, item)
            verdict = judge(prediction, model.limits)
            counts[verdict] += 1
            if reason is not None:
                typer.echo(f"{verdict}: {reason}", err=True)
                if len(reasons) < _REASONS_MAX:
                    reasons.append({"path": item.path, "reason": reason})
            if rows:
                rows.writerow([item.path, prediction.score if prediction else "", verdict.value])
    if as_json:
        typer.echo(
            json.dumps(
                {
                    "source": source,
                    "model": model.version,
                    "n": counts.total(),
                    "verdicts": {verdict.value: counts[verdict] for verdict in Verdict},
                    "undefined": reasons,
                }
            )
        )
    else:
        for verdict in Verdict:
            typer.echo(f"{verdict:<14}{counts[verdict]:>8}")
    if counts[Verdict.UNDEFINED] == counts.total():
        raise typer.Exit(1)


def _predict(model: OnnxModel, item: Item) -> tuple[Prediction | None, str | None]:
    """Return what the model says of an item, or the reason why it says nothing."""
    if item.frame is None:
        return None, item.reason
    try:
        return model.predict(item.frame), None
    except ModelError as error:
        return None, str(error)


def _summary(manifest: ModelManifest, out: Path) -> dict[str, object]:
    return {
        "model": manifest.version,
        "dir": str(out),
        "family": manifest.family,
        "trials": [asdict(trial) for trial in manifest.trials],
        "taught_from": asdict(manifest.taught_from),
        "accept_below": asdict(manifest.accept_below),
        "reject_from": asdict(manifest.reject_from),
        "risk_coverage": [asdict(row) for row in manifest.risk_coverage],
        "advice": _advice(manifest),
    }


def _describe(does: str, where: str, limit: LimitPromise) -> list[str]:
    what = "nothing by itself" if limit.value is None else f"{where} {limit.value:.4f}"
    promise = limit.guarantee or "no guarantee"
    likely = "" if limit.alpha_95 is None else f", this once <= {limit.alpha_95:.3f} with 95 %"
    return [f"{does} {what}: {promise} (n = {limit.n}{likely})", f"  {limit.reason}"]


def _price_of_asking(manifest: ModelManifest) -> Iterator[str]:
    """Say what questions would buy, a line for each row of the table that differs."""
    if manifest.risk_coverage:
        yield f"of all parts, with {manifest.prevalence:.0%} of them defective:"
    told = None
    for row in manifest.risk_coverage:
        if told is not None and row.escalation_rate <= told:
            continue
        told = row.escalation_rate
        price = (
            ""
            if row.asked_per_error is None
            else f", {row.asked_per_error:.1f} questions for each error less"
        )
        yield (
            f"  asking about {row.escalation_rate:6.1%} leaves {row.risk:.2%} wrong:"
            f" {row.tokens_per_1000:,} tokens for 1,000 parts{price}"
        )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _trials(manifest: ModelManifest, *, asked: bool) -> list[str]:
    """Return the table of ways to teach that were tried, and why the first was taken."""
    best = manifest.trials[0]
    lines = [f"{'family':<12}{'features':<16}AUROC on {best.by}"]
    lines += [f"{one.family:<12}{one.features:<16}{one.auroc:.4f}" for one in manifest.trials]
    if asked:
        return [*lines, f"taken: {best.family}, as --family says"]
    means = (
        "each scored by a model taught without it"
        if best.by == "held-out labels"
        else "which ranks these ways and says nothing of how many real defects are found"
    )
    return [*lines, f"taken: {best.family} on {best.features}, best on {best.by}, {means}"]


def _advice(manifest: ModelManifest) -> list[str]:
    """Say in plain words what to look at, and what more pictures would buy."""
    advice = []
    taught = manifest.taught_from
    out = set(taught.left_out)
    advice += [
        f"{path}: looks like a defect among the good parts and was "
        f"{'left out' if path in out else 'taught all the same, as there are few'}: look at it, "
        "and move it to train/<kind> if it is one"
        for path in taught.suspects
    ]
    more = len(out - set(taught.suspects))
    if more:
        advice.append(
            f"{_count(more, 'good picture')} left aside, as copies of others or beyond what is "
            "taught at most"
        )
    if manifest.reject_from.guarantee is None and manifest.reject_from.needed:
        advice.append(
            f"put {_count(manifest.reject_from.needed, 'more picture')} into train/good "
            "to let the node reject by itself, or raise --alpha"
        )
    if manifest.accept_below.guarantee is None and manifest.accept_below.needed:
        advice.append(
            f"label {_count(manifest.accept_below.needed, 'more defect')} in train/<kind> for a "
            "promise on escapes; until then let a person check a random share of the passed parts"
        )
    if manifest.input.height is None:
        advice.append("the good pictures differ in size; fix the camera's format if it has one")
    return advice


def _report(result: Evaluation) -> list[str]:
    pixel = "no masks"
    if result.pixel_auroc is not None and result.au_pro is not None:
        pixel = f"{result.pixel_auroc:.4f}, AU-PRO {result.au_pro:.4f}"
    lines = [
        f"{result.model} ({result.family}) on {result.dataset}",
        f"{_count(result.n_good, 'good part')}, {result.n_defective} defective",
        f"image AUROC {result.image_auroc:.4f}, pixel AUROC {pixel}",
        f"recall at 1 % / 5 % false rejects {result.recall_at_1:.3f} / {result.recall_at_5:.3f}",
    ]
    lines += [f"  {kind}: AUROC {value:.4f}" for kind, value in result.auroc_by_defect.items()]
    for name, part in (
        ("false rejects", result.certificate.false_reject),
        ("escapes", result.certificate.escape),
    ):
        verdict = {None: "no guarantee", True: "kept", False: "BROKEN"}[part.kept]
        lines.append(
            f"{name} {part.observed:.3f} (95 %: {part.observed_low:.3f} to "
            f"{part.observed_high:.3f}); {part.guarantee or part.reason}: {verdict}"
        )
    lines.append(
        f"asked about {result.escalation_rate:.3f} of these parts, "
        f"{result.escalation_rate_at_prevalence:.3f} at {result.prevalence:.0%} defective"
    )
    # Rows of different limits may come to the same here, which a person needs to read once.
    lines += dict.fromkeys(
        f"  deciding {row.coverage:6.1%} of parts: {row.risk:.3%} of these wrong"
        for row in result.risk_coverage
    )
    lines.append(f"{result.ms_per_frame:.1f} ms per frame")
    return lines


@contextmanager
def _open_csv(path: Path | None) -> Iterator[TextIO | None]:
    opened: AbstractContextManager[TextIO | None] = nullcontext()
    if path is not None:
        try:
            opened = path.open("w", newline="", encoding="utf-8")
        except OSError as error:
            raise SettingsError(f"{path}: cannot be written ({error.strerror})") from error
    with opened as table:
        yield table


@contextmanager
def _progress() -> Iterator[Progress]:
    """Show progress on standard error: a bar for a person, a line per stage for a log."""
    if not sys.stderr.isatty():

        def tell(stage: str, done: int, total: int) -> None:
            if done == total:
                typer.echo(f"{stage}: {total}", err=True)

        yield tell
        return
    from rich.console import Console  # only a person at a terminal needs it
    from rich.progress import Progress as Bars

    with Bars(console=Console(stderr=True), transient=True) as bars:
        tasks = {}

        def show(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done)

        yield show
