"""Take in a model that was trained elsewhere, proven by golden pictures."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qcnode.errors import ModelError, SettingsError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from qcmodels.data import Sample
    from qcnode.manifest import GoldenFrame, LimitPromise, MarkNorm, ModelManifest, PictureNorm
    from qcnode.runtime.foreign import Foreign, Golden, Match, Wanted

MODEL_FILE = "model.onnx"
_GOLDEN_TOLERANCE = 1e-3
_PREVALENCE = 0.02
_PASS_SHARE = 0.9
_TRIPLE = 3


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("import")(import_model)


def import_model(
    file: Annotated[Path, typer.Argument(metavar="FILE.onnx", help="The exported model.")],
    *,
    golden: Annotated[
        Path, typer.Option(help="Pictures, and expected.json with the training side's answers.")
    ],
    out: Annotated[Path, typer.Option(help="Where the release goes; an older one is replaced.")],
    parts: Annotated[
        Path | None,
        typer.Option(help="A data set the model never saw, to earn its limits from (train/)."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="What the product is called.")] = None,
    size: Annotated[str | None, typer.Option(help="ROWSxCOLUMNS the graph takes.")] = None,
    layout: Annotated[str | None, typer.Option(help="nchw or nhwc.")] = None,
    colour: Annotated[str | None, typer.Option(help="rgb or bgr.")] = None,
    fit: Annotated[str | None, typer.Option(help="stretch, letterbox or crop.")] = None,
    short: Annotated[int | None, typer.Option(help="The shorter side before a crop.")] = None,
    kernel: Annotated[str | None, typer.Option(help="linear, cubic or nearest.")] = None,
    antialias: Annotated[
        bool | None, typer.Option(help="Whether shrinking averages, as Pillow does.")
    ] = None,
    norm: Annotated[str | None, typer.Option(help="unit, imagenet, signed, raw or caffe.")] = None,
    mean: Annotated[str | None, typer.Option(help="Of 0 to 255, in RGB: 123.7,116.3,103.5")] = None,
    std: Annotated[str | None, typer.Option(help="Of 0 to 255, in RGB: 58.4,57.1,57.4")] = None,
    classes: Annotated[
        str | None, typer.Option(help="Their names in order, such as good,scratch.")
    ] = None,
    answer: Annotated[str | None, typer.Option(help="none, softmax or sigmoid.")] = None,
    higher_is: Annotated[str | None, typer.Option(help="defective or good.")] = None,
    licence: Annotated[str | None, typer.Option(help="Where the file does not say.")] = None,
    alpha: Annotated[
        float, typer.Option(help="At most this share of good parts may be rejected.")
    ] = 0.05,
    escape_alpha: Annotated[
        float, typer.Option(help="At most this share of defective parts may pass.")
    ] = 0.1,
    as_json: Annotated[bool, typer.Option("--json", help="One object on standard output.")] = False,
) -> None:
    """Make a release of an exported ONNX model, or say in one line why not.

    What the file does not say of its pictures is found by the golden ones, and everything is
    proven by them: the answers must be those of the training side to 1e-3. What they leave in
    doubt is refused, naming the option that decides it.
    """
    from qcmodels.release import check_target, write_release
    from qcnode.runtime.foreign import compose, read_foreign, read_golden, understand

    wanted = _wanted(
        size=size,
        layout=layout,
        colour=colour,
        fit=fit,
        short=short,
        kernel=kernel,
        antialias=antialias,
        norm=norm,
        mean=mean,
        std=std,
        classes=classes,
        activation=answer,
        higher=higher_is,
        licence=licence,
    )
    check_target(out)
    pictures = read_golden(golden)
    foreign = read_foreign(file, wanted)
    match = understand(foreign, pictures, wanted)
    rows, columns = pictures[0].pixels.shape[:2]
    model = compose(foreign, match, (rows, columns))
    contents, frames, worst = _prove(model, pictures, match, foreign.name)
    manifest = _manifest(
        _Parts(model, parts, name or file.stem, alpha=alpha, escape_alpha=escape_alpha),
        foreign,
        match,
        frames,
        contents,
        worst=worst,
        size=(rows, columns),
    )
    version = write_release(out, manifest, contents).version
    if as_json:
        typer.echo(json.dumps(_summary(manifest, out)))
        return
    for line in _report(version, manifest, foreign, out):
        typer.echo(line)


def _wanted(**said: Any) -> Wanted:
    from qcnode.runtime.foreign import Wanted
    from qcnode.runtime.preprocess import NORMS

    choices = {
        "layout": ("nchw", "nhwc"),
        "colour": ("rgb", "bgr"),
        "fit": ("stretch", "letterbox", "crop"),
        "kernel": ("linear", "cubic", "nearest"),
        "norm": tuple(NORMS),
        "activation": ("none", "softmax", "sigmoid"),
        "higher": ("defective", "good"),
    }
    for key, allowed in choices.items():
        if said[key] is not None and said[key] not in allowed:
            raise SettingsError(f"{said[key]!r:.40} is no {key}: one of {', '.join(allowed)}")
    if said["size"] is not None:
        found = re.fullmatch(r"([1-9]\d{0,3})x([1-9]\d{0,3})", said["size"])
        if found is None:
            raise SettingsError(f"--size {said['size']!r:.40}: give it as ROWSxCOLUMNS: 224x224")
        said["size"] = (int(found[1]), int(found[2]))
    if (said["mean"] is None) != (said["std"] is None):
        raise SettingsError("--mean and --std are given together, or neither")
    for key in ("mean", "std"):
        if said[key] is not None:
            said[key] = _triple(key, said[key])
    if said["classes"] is not None:
        said["classes"] = tuple(one.strip() for one in said["classes"].split(","))
    return Wanted(**said)


def _triple(key: str, text: str) -> tuple[float, ...]:
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if len(values) != _TRIPLE or (key == "std" and min(values) <= 0):
        raise SettingsError(f"--{key} {text!r:.40}: three numbers, as in 123.7,116.3,103.5")
    return values


def _prove(
    model: bytes, golden: Sequence[Golden], match: Match, name: str
) -> tuple[dict[str, bytes], tuple[GoldenFrame, ...], float]:
    """Judge every golden picture with the whole graph, on every engine there is here."""
    from qcnode.manifest import GoldenFrame
    from qcnode.runtime.foreign import TOLERANCE
    from qcnode.runtime.session import CPU, ORT_ERRORS, engines_here, open_session

    contents = {MODEL_FILE: model}
    frames: list[GoldenFrame] = []
    worst = 0.0
    for engine in engines_here():
        try:
            session = open_session(model, engine=engine)
        except ORT_ERRORS as error:
            if engine is CPU:
                words = " ".join(str(error).split())[:200]
                raise ModelError(f"{name}: does not run as one graph ({words})") from error
            typer.echo(f"engine {engine.name} does not run it, and will not be chosen", err=True)
            continue
        for index, one in enumerate(golden):
            score, heat = _judge(session, one.pixels)
            difference = abs(match.meaning.turned(score) - one.expected) / max(
                1.0, abs(one.expected)
            )
            if difference > TOLERANCE and engine is not CPU:
                typer.echo(
                    f"engine {engine.name} is off by {difference:.2g}, and will not be chosen",
                    err=True,
                )
                break
            if difference > TOLERANCE:
                raise ModelError(
                    f"{name}: as one graph it is off by {difference:.2g} on {one.name}: export it"
                    " with opset 18"
                )
            if engine is CPU:
                worst = max(worst, difference)
                path = f"golden/{index}{Path(one.name).suffix.lower()}"
                contents[path] = one.data
                frames.append(
                    GoldenFrame(
                        path=path,
                        label=_label(one),
                        score=score,
                        heat_max=float(heat.max()),
                    )
                )
    return contents, tuple(frames), worst


def _label(one: Golden) -> str:
    from qcnode.manifest import UNLABELLED
    from qcnode.runtime.foreign import GOOD_NAMES

    if one.label is None:
        return UNLABELLED
    return "good" if one.label in GOOD_NAMES else one.label


def _judge(session: Any, pixels: NDArray[Any]) -> tuple[float, NDArray[Any]]:
    from qcnode.runtime.graph import HEAT, IMAGE, SCORE

    score, heat = session.run([SCORE, HEAT], {IMAGE: pixels})
    return float(score), heat


class _Parts:
    """The scores of parts the model never saw, from which its limits are earned."""

    def __init__(
        self, model: bytes, dataset: Path | None, name: str, *, alpha: float, escape_alpha: float
    ) -> None:
        from qcmodels.calibrate import (
            PICTURES_MAX,
            Calibration,
            calibrate,
            normal_marks,
            normal_pictures,
        )
        from qcmodels.data import as_kept, open_dataset, read_sample
        from qcnode.runtime.session import open_session

        self.name = name
        good: tuple[Sample, ...] = ()
        bad: tuple[Sample, ...] = ()
        self.labels: tuple[str, ...] = ("good",)
        self.pictures: PictureNorm | None
        self.marks: MarkNorm | None = None
        if dataset is not None:
            data = open_dataset(dataset)
            good, bad, self.labels = data.train_good, data.train_defects, data.labels
        session = open_session(model)
        self.good = [_judge(session, read_sample(sample, side=None).pixels)[0] for sample in good]
        self.bad = [_judge(session, read_sample(sample, side=None).pixels)[0] for sample in bad]
        self.digest = _digest((*good, *bad), dataset)
        if not good:
            # Everything is asked about until limits are earned: nothing is typed in.
            self.limits = Calibration(
                accept_below=_none_yet(escape_alpha, "labelled defects"),
                reject_from=_none_yet(alpha, "good parts"),
                risk_coverage=(),
            )
            self.pictures = None
            return
        self.limits = calibrate(
            self.good,
            self.bad,
            alpha=alpha,
            escape_alpha=escape_alpha,
            pass_share=_PASS_SHARE,
            prevalence=_PREVALENCE,
        )
        self.marks = normal_marks(as_kept(one) for one in good)
        self.pictures = normal_pictures(
            read_sample(one, side=None).pixels for one in good[:PICTURES_MAX]
        )


def _none_yet(alpha: float, what: str) -> LimitPromise:
    from qcnode.certify import parts_needed
    from qcnode.manifest import LimitPromise

    needed = parts_needed(alpha)
    return LimitPromise(
        value=None,
        alpha=None,
        alpha_95=None,
        n=0,
        needed=needed,
        guarantee=None,
        reason=f"no limit without {needed} {what}: give a data set with --parts",
    )


def _digest(samples: Sequence[Sample], dataset: Path | None) -> str:
    from qcmodels.data import digest_of

    return digest_of(samples, dataset or Path())


def _manifest(
    parts: _Parts,
    foreign: Foreign,
    match: Match,
    frames: tuple[GoldenFrame, ...],
    contents: dict[str, bytes],
    *,
    worst: float,
    size: tuple[int, int],
) -> ModelManifest:
    from qcmodels.calibrate import TOKENS_PER_ESCALATION
    from qcmodels.release import list_files
    from qcnode.manifest import (
        ImportedFrom,
        ModelManifest,
        ModelOutputs,
        PictureInput,
        TaughtFrom,
        digest_scores,
    )
    from qcnode.runtime.graph import HEAT, IMAGE, SCORE

    rows, columns = match.meaning.heat
    return ModelManifest(
        schema_version=2,
        name=parts.name,
        created_at=datetime.now(UTC),
        family=f"imported-{foreign.exporter}",
        model=MODEL_FILE,
        input=PictureInput(name=IMAGE, layout="uint8 RGB HWC", height=size[0], width=size[1]),
        outputs=ModelOutputs(score=SCORE, heat=HEAT, heat_rows=rows, heat_columns=columns),
        labels=parts.labels,
        accept_below=parts.limits.accept_below,
        reject_from=parts.limits.reject_from,
        prevalence=_PREVALENCE,
        tokens_per_escalation=TOKENS_PER_ESCALATION,
        risk_coverage=parts.limits.risk_coverage,
        taught_from=TaughtFrom(
            name="elsewhere",
            sha256=parts.digest,
            taught=0,
            calibrated=len(parts.good),
            defects=len(parts.bad),
            seed=0,
        ),
        good_scores=tuple(sorted(parts.good)),
        defect_scores=tuple(sorted(parts.bad)),
        calibration_sha256=digest_scores(parts.good, parts.bad),
        pictures=parts.pictures,
        marks=parts.marks,
        golden=frames,
        golden_tolerance=_GOLDEN_TOLERANCE,
        files=list_files(contents),
        imported=ImportedFrom(
            file=foreign.name,
            sha256=foreign.sha256,
            exporter=foreign.exporter,
            licence=foreign.licence,
            preparation=match.how.words(),
            meaning=match.meaning.words(),
            largest_difference=worst,
        ),
    )


def _summary(manifest: ModelManifest, out: Path) -> dict[str, object]:
    from dataclasses import asdict

    assert manifest.imported is not None  # noqa: S101  # made so above
    return {
        "model": manifest.version,
        "dir": str(out),
        "imported": asdict(manifest.imported),
        "accept_below": asdict(manifest.accept_below),
        "reject_from": asdict(manifest.reject_from),
    }


def _report(version: str, manifest: ModelManifest, foreign: Foreign, out: Path) -> list[str]:
    from qcnode.runtime.foreign import AGPL

    about = manifest.imported
    assert about is not None  # noqa: S101  # made so above
    lines = [
        f"{version} ({about.exporter}) is at {out}",
        f"pictures   {about.preparation}",
        f"answer     {about.meaning}",
        f"golden     {len(manifest.golden)} pictures, at most {about.largest_difference:.1e} off",
        f"licence    {about.licence}",
    ]
    if AGPL in foreign.licence:
        lines.append(
            "note: the AGPL reaches this ONNX file and whoever runs it over a network: publish your"
            " source, or buy a licence from Ultralytics"
        )
    for what, limit in (("passes", manifest.accept_below), ("rejects", manifest.reject_from)):
        value = "nothing by itself" if limit.value is None else f"at {limit.value:.4f}"
        lines.append(f"{what:<10} {value}: {limit.guarantee or limit.reason}")
    return lines
