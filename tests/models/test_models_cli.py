from __future__ import annotations

import csv
import json
import os
import subprocess
import sys

import cv2
import numpy as np
import pytest

from qcnode.errors import QcError, SettingsError
from qcnode.picture import read_picture


def test_teach_prints_both_limits_and_their_reasons(qcnode, make_dataset, tmp_path):
    data = make_dataset(tmp_path / "data", good=20, defects=9, tests=1)
    result = qcnode("teach", data, "--out", tmp_path / "m", "--family", "gaussian")
    assert "passes below" in result.stdout
    assert "rejects from" in result.stdout
    assert "P(good part rejected) about 0.05; proved is <= " in result.stdout
    assert "taken: gaussian, as --family says" in result.stdout
    assert "teach: good parts: 20" in result.stderr


def test_teach_gives_advice_when_parts_are_few(qcnode, make_dataset, tmp_path):
    data = make_dataset(tmp_path / "few", good=12, defects=0, tests=1)
    words = ("teach", data, "--out", tmp_path / "m", "--family", "gaussian")
    shown = json.loads(qcnode(*words, "--json").stdout)
    assert shown["reject_from"]["value"] is None
    assert any("put 7 more pictures into train/good" in line for line in shown["advice"])
    assert any("label 9 more defects" in line for line in shown["advice"])
    assert not any("never" in line for line in shown["advice"])


def test_evaluate_prints_one_object(qcnode, plates, plate_release):
    shown = json.loads(qcnode("evaluate", plate_release, plates, "--json").stdout)
    assert shown.keys() >= {
        "family",
        "n",
        "image_auroc",
        "pixel_auroc",
        "recall_at_1",
        "recall_at_5",
        "false_reject_rate",
        "escape_rate",
        "escalation_rate",
        "certificate",
        "risk_coverage",
        "ms_per_frame",
    }
    text = qcnode("evaluate", plate_release, plates).stdout
    assert "image AUROC" in text
    decided = [line for line in text.splitlines() if line.startswith("  deciding")]
    assert decided
    assert len(decided) == len(set(decided))


def test_inspect_judges_a_folder_and_goes_on_past_a_bad_picture(
    qcnode, plates, plate_release, tmp_path
):
    folder = tmp_path / "in"
    for kind in ("good", "scratch"):
        (folder / kind).mkdir(parents=True)
        for path in sorted((plates / "test" / kind).iterdir())[:5]:
            (folder / kind / path.name).write_bytes(path.read_bytes())
    (folder / "good" / "cut.png").write_bytes((folder / "good" / "000.png").read_bytes()[:900])
    cv2.imwrite(str(folder / "small.png"), np.zeros((5, 5, 3), np.uint8))

    table = tmp_path / "out.csv"
    result = qcnode("inspect", folder, "--model", plate_release, "--csv", table, "--json")
    shown = json.loads(result.stdout)
    rows = list(csv.DictReader(table.read_text().splitlines()))

    assert shown["n"] == len(rows) == sum(shown["verdicts"].values()) == 12
    assert shown["verdicts"]["UNDEFINED"] == 2
    assert {row["path"] for row in rows if row["verdict"] == "UNDEFINED"} == {
        str(folder / "good" / "cut.png"),
        str(folder / "small.png"),
    }
    assert all(float(row["score"]) > 0 for row in rows if row["verdict"] != "UNDEFINED")
    assert "cut.png: ends too early" in result.stderr


def test_inspect_judges_one_picture(qcnode, plates, plate_release):
    picture = plates / "test" / "scratch" / "000.png"
    shown = json.loads(qcnode("inspect", picture, "--model", plate_release, "--json").stdout)
    assert shown["n"] == 1
    assert shown["verdicts"]["UNDEFINED"] == 0


def test_inspect_judges_every_frame_of_a_video(qcnode, plates, plate_release, tmp_path):
    path = tmp_path / "belt.avi"
    video = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, (96, 64))
    assert video.isOpened()
    for number in range(6):
        video.write(read_picture(plates / "test" / "good" / f"{number:03d}.png")[:, :, ::-1])
    video.release()

    shown = json.loads(qcnode("inspect", path, "--model", plate_release, "--json").stdout)
    assert shown["n"] == 6
    assert shown["verdicts"]["UNDEFINED"] == 0
    some = qcnode("inspect", path, "--model", plate_release, "--most", 2, "--json")
    assert json.loads(some.stdout)["n"] == 2


def test_inspect_of_nothing_but_undefined_pictures_ends_with_1(qcnode, plate_release, tmp_path):
    (tmp_path / "cut.png").write_bytes(b"")
    words = ("inspect", tmp_path, "--model", plate_release)
    assert "UNDEFINED            1" in qcnode(*words, code=1).stdout
    assert json.loads(qcnode(*words, "--json", code=1).stdout)["verdicts"]["UNDEFINED"] == 1


@pytest.mark.parametrize(
    ("make", "says"),
    [
        ("missing", "no such file or folder"),
        ("missing.png", "no such file or folder"),
        ("missing.mp4", "no such file or folder"),
        ("empty", "no picture in this folder"),
        ("text.txt", "neither a picture"),
        ("text.mp4", "nor a video that plays"),
    ],
)
def test_a_source_without_pictures_is_named(qcnode, plate_release, tmp_path, make, says):
    source = tmp_path / make
    if make == "empty":
        source.mkdir()
    if make.startswith("text"):
        source.write_text("no video")
    result = qcnode("inspect", source, "--model", plate_release, fails=QcError)
    assert str(source) in str(result.exception)
    assert says in str(result.exception)


@pytest.mark.parametrize("source", ["cut.mp4", "rtsp://127.0.0.1:1/belt", "99"])
def test_decoders_say_nothing_beside_our_own_line(plate_release, tmp_path, source):
    # A process of its own: FFmpeg takes its level when the first video is opened.
    (tmp_path / "cut.mp4").write_bytes(b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom" + b"x" * 500)
    done = subprocess.run(
        [sys.executable, "-m", "qcnode.cli.app", "inspect", source, "--model", plate_release],
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if "OPENCV" not in name},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert line.startswith(f"qcnode: {source}: ")


def test_a_csv_that_cannot_be_written_is_named(qcnode, plates, plate_release, tmp_path):
    table = tmp_path / "no" / "out.csv"
    words = ("inspect", plates, "--model", plate_release, "--csv", table)
    assert str(table) in str(qcnode(*words, fails=SettingsError).exception)
