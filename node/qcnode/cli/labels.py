"""`qcnode labels`: what people and agents settled, as a data set for the next `qcnode teach`."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import Counter
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qcnode.cli.ledger import HomeOption  # noqa: TC001  # typer reads it
from qcnode.errors import DatasetError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from qcmodels.data import Sample
    from qcnode.labels import Label, Labels
    from qcnode.money import Outcome

SIDECAR = "labels.jsonl"
_PAGE = 1_000


class Format(StrEnum):
    """How a data set lies on disk."""

    MVTEC = "mvtec"
    COCO = "coco"


def register(app: typer.Typer) -> None:
    """Add this group of commands to the program."""
    group = typer.Typer(help="Labels out of what was ruled on.", no_args_is_help=True)
    group.callback()(_labels)
    group.command("export")(export)
    app.add_typer(group, name="labels")


def _labels() -> None:
    """Turn what was ruled on into labels."""


def export(
    *,
    home: HomeOption = None,
    out: Annotated[Path, typer.Option(help="A new folder for the data set.")],
    layout: Annotated[
        Format, typer.Option("--format", help="mvtec, for `qcnode teach`; coco, for other tools.")
    ] = Format.MVTEC,
    beside: Annotated[
        Path | None,
        typer.Option("--with", help="A data set to add them to: what the node was taught from."),
    ] = None,
    test_share: Annotated[
        float, typer.Option(min=0, max=0.9, help="The newest labels, kept to test on.")
    ] = 0.2,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Write settled parts as a data set, with who said what they are, and when.

    Left out and counted: parts on which people and agents disagreed, of which nobody was
    sure, whose picture is gone, or whose picture is in the test set of --with.
    """
    from qcnode.books.journal_file import read_journal
    from qcnode.labels import gather

    if beside is not None and layout is Format.COCO:
        raise typer.BadParameter("--with goes with --format mvtec, which `qcnode teach` reads")
    if out.exists():
        raise DatasetError(f"{out}: exists already: name a new folder")
    place = home or Path(os.environ.get("QCNODE_HOME") or "qcnode-home")
    found = gather(read_journal(place / "journal.db"), _outcomes(place / "ledger.db"))
    unfinished = out.with_name(f"{out.name}.part")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        known = {} if beside is None else _copy(beside, unfinished)
        said = _write(unfinished, found, place / "pictures", known, layout=layout, share=test_share)
        unfinished.rename(out)
    except OSError as error:
        raise DatasetError(f"{out}: cannot be written ({error.strerror})") from error
    said = {"out": str(out)} | said
    if as_json:
        typer.echo(json.dumps(said))
        return
    for split in ("train", "test"):
        kinds = ", ".join(f"{count} {kind}" for kind, count in said[split].items())
        typer.echo(f"{split:<9}{kinds or 'nothing'}")
    by = ", ".join(f"{count} by {who}" for who, count in said["by"].items())
    typer.echo(f"labels   {by or 'none'}; each with its source in {out / SIDECAR}")
    for why, count in said["left_out"].items():
        typer.echo(f"left out {count} {why}")


def _outcomes(path: Path) -> Iterator[Outcome]:
    from qcnode.books import chain
    from qcnode.books.ledger_file import LedgerReader
    from qcnode.money import Outcome

    reader = LedgerReader(path)
    try:
        after = 0
        while page := reader.read(after, _PAGE):
            facts = (chain.fact_of(entry) for entry in page)
            yield from (fact for fact in facts if isinstance(fact, Outcome))
            after = page[-1].seq
    finally:
        reader.close()


def _write(
    out: Path,
    found: Labels,
    pictures: Path,
    known: dict[str, tuple[str, str]],
    *,
    layout: Format,
    share: float,
) -> dict[str, Any]:
    from qcnode.labels import split_by_time

    left_out = Counter(found.left_out)
    out.mkdir(parents=True, exist_ok=True)
    kept: list[tuple[Label, bytes, str]] = []
    for label in found.labels:
        content = _picture(pictures, label)
        digest = "" if content is None else hashlib.sha256(content).hexdigest()
        why = "no picture" if content is None else _known(known, digest, label.kind)
        if why is None and content is not None:
            known[digest] = ("train", label.kind)
            kept.append((label, content, digest))
        elif why is not None:
            left_out[why] += 1
    train, _ = split_by_time([label for label, _, _ in kept], test_share=share)
    rows = []
    for number, (label, content, digest) in enumerate(kept):
        split = "train" if number < train else "test"
        where = Path(split, label.kind if layout is Format.MVTEC else "")
        name = where / f"{label.inspection_id}.jpg"
        (out / where).mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(content)
        rows.append({"file": name.as_posix(), "split": split, "sha256": digest} | _row(label))
    with (out / SIDECAR).open("w", encoding="utf-8") as sidecar:
        sidecar.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    if layout is Format.COCO:
        _write_coco(out, rows)
    return {
        "train": dict(Counter(row["kind"] for row in rows if row["split"] == "train")),
        "test": dict(Counter(row["kind"] for row in rows if row["split"] == "test")),
        "by": dict(Counter(row["by"] for row in rows)),
        "left_out": dict(left_out),
    }


def _picture(folder: Path, label: Label) -> bytes | None:
    try:
        return (folder / f"{label.inspection_id}.jpg").read_bytes()
    except OSError:
        return None


def _known(known: dict[str, tuple[str, str]], digest: str, kind: str) -> str | None:
    """Say why a picture that is there already is left out."""
    if digest not in known:
        return None
    split, other = known[digest]
    if split == "test":
        return "in the test set"
    return "there already" if other == kind else "disagreement"


def _copy(data: Path, out: Path) -> dict[str, tuple[str, str]]:
    """Copy a data set, and return split and kind of each of its pictures by digest."""
    from qcmodels.data import open_dataset

    dataset = open_dataset(data)
    known: dict[str, tuple[str, str]] = {}
    splits = {
        "train": (*dataset.train_good, *dataset.train_defects),
        # The test set comes last: a picture in both is a picture to test on.
        "test": (*dataset.test_good, *dataset.test_defects),
    }
    for split, samples in splits.items():
        for sample in samples:
            known[_copied(sample, data, out)] = (split, sample.label)
    return known


def _copied(sample: Sample, data: Path, out: Path) -> str:
    for path in (sample.path, sample.mask):
        if path is not None:
            to = out / path.relative_to(data)
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, to)
    return hashlib.sha256(sample.path.read_bytes()).hexdigest()


def _row(label: Label) -> dict[str, Any]:
    return asdict(label) | {"at": label.at.isoformat()}


def _write_coco(out: Path, rows: list[dict[str, Any]]) -> None:
    from qcnode.picture import decode_picture

    kinds = sorted({row["kind"] for row in rows if row["kind"] != "good"})
    for split in ("train", "test"):
        images: list[dict[str, Any]] = []
        boxes: list[dict[str, Any]] = []
        for row in rows:
            if row["split"] != split:
                continue
            height, width = decode_picture(
                (out / row["file"]).read_bytes(), name=row["file"]
            ).shape[:2]
            images.append(
                {
                    "id": len(images) + 1,
                    "file_name": row["file"],
                    "width": width,
                    "height": height,
                    "part_id": row["part_id"],
                }
            )
            if row["kind"] != "good":
                box = row["box"] or {"left": 0, "top": 0, "width": width, "height": height}
                boxes.append(
                    {
                        "id": len(boxes) + 1,
                        "image_id": len(images),
                        "category_id": kinds.index(row["kind"]) + 1,
                        "bbox": [box["left"], box["top"], box["width"], box["height"]],
                        "area": box["width"] * box["height"],
                        "iscrowd": 0,
                    }
                )
        categories = [{"id": number, "name": kind} for number, kind in enumerate(kinds, start=1)]
        (out / f"{split}.json").write_text(
            json.dumps(
                {
                    "info": {"description": "boxes are where the evidence was, no outlines"},
                    "images": images,
                    "annotations": boxes,
                    "categories": categories,
                }
            ),
            encoding="utf-8",
        )
