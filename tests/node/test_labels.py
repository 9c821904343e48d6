import json
import shutil

import cv2
import numpy as np
import pytest

from qcmodels.data import open_dataset
from qcnode.books.pictures import JPEG_QUALITY
from qcnode.domain import Decider, Finding
from qcnode.picture import encode_jpeg
from tests.node.settled import SettledHome

AGENT, OPERATOR, TIMEOUT = Decider.AGENT, Decider.OPERATOR, Decider.TIMEOUT
GOOD, BAD, UNSURE = Finding.GOOD, Finding.DEFECTIVE, Finding.UNSURE


@pytest.fixture
def home(tmp_path):
    return SettledHome(tmp_path / "home")


def sidecar(out):
    return [json.loads(line) for line in (out / "labels.jsonl").read_text().splitlines()]


def test_what_was_settled_becomes_a_data_set_with_who_said_so_and_when(home, tmp_path, qcnode):
    with home.open():
        home.part((OPERATOR, GOOD))
        home.part((AGENT, BAD), kind="scratch")
        home.part((AGENT, GOOD), truth=BAD)  # what it proved to be later
        home.part((AGENT, UNSURE), (OPERATOR, BAD), kind="dent")
        home.part((AGENT, GOOD), (OPERATOR, BAD))
        home.part((AGENT, UNSURE))
        home.part((TIMEOUT, UNSURE))
    out = tmp_path / "out"

    done = qcnode(
        "labels", "export", "--home", home.home, "--out", out, "--test-share", 0, "--json"
    )

    said = json.loads(done.out)
    assert said["train"] == {"good": 1, "scratch": 1, "defect": 1, "dent": 1}
    assert said["left_out"] == {"disagreement": 1, "unsettled": 1, "unsure": 1}
    data = open_dataset(out)
    assert len(data.train_good) == 1
    assert data.labels == ("good", "defect", "dent", "scratch")
    rows = sidecar(out)
    assert [(row["by"], row["who"]) for row in rows] == [
        ("operator", "ann"),
        ("agent", "agent:m"),
        ("truth", "rework"),
        ("operator", "ann"),
    ]
    assert all((out / row["file"]).is_file() and row["at"] for row in rows)


def test_the_newest_labels_are_kept_to_test_on(home, tmp_path, qcnode):
    with home.open():
        ids = [home.part((OPERATOR, GOOD)) for _ in range(10)]
    out = tmp_path / "out"

    qcnode("labels", "export", "--home", home.home, "--out", out)

    assert [sample.path.stem for sample in open_dataset(out).train_good] == ids[:8]
    assert [sample.path.stem for sample in open_dataset(out).test_good] == ids[8:]


def test_labels_join_the_set_the_node_was_taught_from_and_spare_its_test_pictures(
    home, tmp_path, qcnode
):
    data = tmp_path / "data"
    pixels = [np.full((64, 64, 3), 40 * number, np.uint8) for number in range(4)]
    for number, where in enumerate(("train/good", "test/good", "test/rust")):
        (data / where).mkdir(parents=True)
        jpeg = encode_jpeg(pixels[number], quality=JPEG_QUALITY)
        (data / where / "a.jpg").write_bytes(jpeg)
    with home.open():
        home.part((OPERATOR, GOOD), pixels=pixels[0])
        home.part((OPERATOR, BAD), pixels=pixels[1])
        home.part((OPERATOR, BAD), pixels=pixels[2])
        home.part((OPERATOR, BAD), pixels=pixels[3])
    out = tmp_path / "out"

    done = qcnode(
        *("labels", "export", "--home", home.home, "--out", out, "--with", data),
        *("--test-share", 0, "--json"),
    )

    assert json.loads(done.out)["left_out"] == {"there already": 1, "in the test set": 2}
    joined = open_dataset(out)
    assert [len(joined.train_good), len(joined.train_defects)] == [1, 1]
    assert [len(joined.test_good), len(joined.test_defects)] == [1, 1]


def test_coco_has_a_box_where_the_evidence_was(home, tmp_path, qcnode):
    with home.open():
        home.part((OPERATOR, GOOD))
        home.part((OPERATOR, BAD), kind="dent")
    out = tmp_path / "out"

    qcnode(
        *("labels", "export", "--home", home.home, "--out", out),
        *("--format", "coco", "--test-share", 0),
    )

    coco = json.loads((out / "train.json").read_text())
    assert len(coco["images"]) == 2
    assert all(cv2.imread(str(out / one["file_name"])) is not None for one in coco["images"])
    [box] = coco["annotations"]
    assert (box["bbox"], coco["categories"]) == ([8, 8, 20, 20], [{"id": 1, "name": "dent"}])


def test_a_picture_that_is_gone_and_a_folder_that_is_there_are_said_in_one_line(
    home, tmp_path, qcnode
):
    with home.open():
        home.part((OPERATOR, GOOD))
    shutil.rmtree(home.home / "pictures")
    out = tmp_path / "out"

    first = qcnode("labels", "export", "--home", home.home, "--out", out, "--json")
    again = qcnode("labels", "export", "--home", home.home, "--out", out)

    assert json.loads(first.out)["left_out"] == {"no picture": 1}
    assert (again.code, again.err.count("\n")) == (2, 1)
    assert "exists already" in again.err
