from __future__ import annotations

import shutil
from datetime import UTC, datetime

import cv2
import numpy as np
import onnx
import pytest

from qcmodels.data import Sample
from qcmodels.evaluate import PRO_FALSE_MAX, _PixelCount, auroc, evaluate, recall_at
from qcnode.errors import DatasetError, ModelError
from qcnode.manifest import load_manifest
from qcnode.runtime.onnx import OnnxModel


def evaluate_quietly(model, dataset):
    ticks = iter(range(0, 10**12, 5_000_000))
    return evaluate(
        model,
        dataset,
        now=lambda: datetime(2026, 11, 22, tzinfo=UTC),
        clock_ns=lambda: next(ticks),
        progress=lambda *_: None,
    )


def test_a_taught_model_finds_scratches_and_keeps_its_promises(plates, plate_release):
    result = evaluate_quietly(OnnxModel(plate_release), plates)

    assert result.n == 40
    assert result.image_auroc > 0.95
    assert result.pixel_auroc > 0.9
    assert result.au_pro > 0.7
    assert result.recall_at_5 > 0.8
    assert result.auroc_by_defect == {"scratch": result.image_auroc}
    assert sum(result.verdicts.values()) == result.n
    assert result.certificate.false_reject.kept is True
    assert result.certificate.escape.kept is True
    assert len(result.risk_coverage) == len(load_manifest(plate_release).risk_coverage) > 0
    assert result.ms_per_frame == 5.0


def test_the_same_folder_and_seed_give_the_same_model(make_dataset, tmp_path, teach_quietly):
    data = make_dataset(tmp_path / "data", good=12, defects=0, tests=1)
    one = teach_quietly(data, tmp_path / "one")
    again = teach_quietly(data, tmp_path / "again", threads=2)
    assert again.manifest == one.manifest


def test_the_release_is_one_self_contained_graph(plate_release):
    graph = onnx.load(plate_release / "model.onnx", load_external_data=False).graph
    assert [item.name for item in graph.input] == ["image"]
    assert {item.name for item in graph.output} == {"score", "map"}
    assert not any(tensor.external_data for tensor in graph.initializer)
    assert (plate_release / "model.onnx").stat().st_size < 10_000_000


def test_with_too_few_parts_limits_are_refused_with_the_number_missing(
    make_dataset, tmp_path, teach_quietly
):
    data = make_dataset(tmp_path / "few", good=12, defects=4, tests=6)
    manifest = teach_quietly(data, tmp_path / "out").manifest

    assert manifest.reject_from.value is None
    assert "7 more good parts needed" in manifest.reject_from.reason
    assert manifest.accept_below.value is not None
    assert manifest.accept_below.guarantee is None
    assert "5 more defects needed" in manifest.accept_below.reason


def test_without_labelled_defects_parts_pass_on_the_audit_route(
    make_dataset, tmp_path, teach_quietly
):
    data = make_dataset(tmp_path / "normal", good=40, defects=0)
    model = teach_quietly(data, tmp_path / "out")
    result = evaluate_quietly(model, data)

    assert model.manifest.risk_coverage == ()
    assert result.certificate.escape.holds is False
    assert result.certificate.escape.kept is None
    assert result.escalation_rate_good < 0.4


def test_pictures_of_mixed_sizes_are_taught_and_judged(make_dataset, tmp_path, teach_quietly):
    data = make_dataset(tmp_path / "mixed", good=12, defects=0, tests=4)
    for path in sorted((data / "train" / "good").iterdir())[::2]:
        cv2.imwrite(str(path), cv2.resize(cv2.imread(str(path)), (120, 80)))
    model = teach_quietly(data, tmp_path / "out")

    assert model.manifest.input.height is None
    assert evaluate_quietly(model, data).n == 8


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (shutil.rmtree, "no such folder"),
        (lambda data: shutil.rmtree(data / "train"), "no picture in train/good"),
        (
            lambda data: [path.unlink() for path in (data / "train" / "good").glob("*[1-9].png")],
            "2 pictures in train/good, at least 10",
        ),
        (
            lambda data: (data / "train" / "good" / "004.png").write_bytes(b"\x89PNG\r\n\x1a\nxx"),
            r"004\.png: ends too early",
        ),
        (
            lambda data: (data / "train" / "good" / "004.jpg").write_bytes(b"prose"),
            r"004\.jpg: no PNG",
        ),
        (
            lambda data: cv2.imwrite(
                str(data / "train" / "good" / "004.png"), np.zeros((1, 1, 3), np.uint8)
            ),
            r"004\.png: 1x1 pixels show no part",
        ),
        (
            lambda data: [
                shutil.copy(data / "train" / "good" / "000.png", path)
                for path in (data / "train" / "good").glob("00[1-3].png")
            ],
            "9 pictures in train/good that are no copies",
        ),
        (
            lambda data: (
                (data / "train" / "dent").mkdir()
                or shutil.copy(data / "train" / "good" / "000.png", data / "train" / "dent")
            ),
            r"dent/000\.png: the same picture as .*good/000\.png, labelled dent and good",
        ),
        (
            lambda data: (
                [
                    shutil.copy(data / "train" / "good" / "000.png", path)
                    for path in (data / "train" / "good").glob("0[01][1-9].png")
                ]
                and (data / "train" / "good" / "010.png").unlink()
            ),
            "identical",
        ),
    ],
)
def test_a_data_set_that_cannot_teach_is_named_with_the_fix(
    make_dataset, tmp_path, teach_quietly, spoil, words
):
    data = make_dataset(tmp_path / "bad", good=12, defects=0, tests=1)
    spoil(data)
    with pytest.raises(DatasetError, match=words) as caught:
        teach_quietly(data, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".out-*"))


def test_pictures_of_every_common_kind_teach(make_dataset, tmp_path, teach_quietly):
    data = make_dataset(tmp_path / "kinds", good=12, defects=0, tests=1)
    names = sorted((data / "train" / "good").iterdir())
    first = cv2.imread(str(names[0]))
    cv2.imwrite(str(names[0]), first.astype(np.uint16) * 257)
    second = cv2.imread(str(names[1]))
    cv2.imwrite(str(names[1]), np.dstack([second, np.full(second.shape[:2], 7, np.uint8)]))
    third = cv2.imread(str(names[2]))
    turned = cv2.imencode(".jpg", cv2.rotate(third, cv2.ROTATE_90_COUNTERCLOCKWISE))[1].tobytes()
    # An EXIF block that says: turn a quarter to the right to stand upright.
    tag = b"\x12\x01\x03\x00\x01\x00\x00\x00\x06\x00\x00\x00"
    exif = b"Exif\x00\x00II*\x00\x08\x00\x00\x00\x01\x00" + tag + b"\x00\x00\x00\x00"
    block = b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif
    names[2].unlink()
    names[2].with_suffix(".jpg").write_bytes(turned[:2] + block + turned[2:])

    manifest = teach_quietly(data, tmp_path / "out").manifest
    assert (manifest.input.height, manifest.input.width) == (64, 96)
    assert manifest.taught_from.taught == 12


def test_a_copy_of_a_picture_counts_once(make_dataset, tmp_path, teach_quietly):
    data = make_dataset(tmp_path / "copies", good=12, defects=0, tests=1)
    good = data / "train" / "good"
    shutil.copy(good / "003.png", good / "zzz.png")
    taught = teach_quietly(data, tmp_path / "out").manifest.taught_from
    assert taught.taught == 12
    assert taught.left_out == ("train/good/zzz.png",)


def test_a_folder_with_other_files_is_never_overwritten(plates, tmp_path, teach_quietly):
    out = tmp_path / "documents"
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    with pytest.raises(ModelError, match="choose another --out"):
        teach_quietly(plates, out)
    assert (out / "thesis.txt").read_text() == "years of work"


def test_an_older_release_is_replaced_as_a_whole(
    make_dataset, plate_release, tmp_path, teach_quietly
):
    out = shutil.copytree(plate_release, tmp_path / "out")
    data = make_dataset(tmp_path / "normal", good=12, defects=0, tests=1)
    model = teach_quietly(data, out)

    assert OnnxModel(out).version == model.version
    assert sorted(path.name for path in (out / "golden").iterdir()) == ["0.png", "1.png"]
    assert {path.name for path in tmp_path.iterdir()} == {"normal", "out"}


def test_a_mask_of_another_size_is_named(plates, plate_release, tmp_path):
    data = shutil.copytree(plates, tmp_path / "data", ignore=shutil.ignore_patterns("train"))
    mask = data / "ground_truth" / "scratch" / "001_mask.png"
    cv2.imwrite(str(mask), np.zeros((10, 10), np.uint8))
    with pytest.raises(DatasetError, match=r"001_mask\.png: mask of 10x10"):
        evaluate_quietly(OnnxModel(plate_release), data)


def test_auroc_and_recall_count_ties_and_false_rejects_exactly():
    good, bad = np.array([1.0, 2.0, 2.0, 3.0]), np.array([2.0, 3.0, 4.0])
    assert auroc(good, bad) == pytest.approx((1 + 2 * 0.5 + 3 + 0.5 + 4) / 12)
    assert recall_at(good, bad, false_rejects=0.01) == pytest.approx(1 / 3)
    assert recall_at(good, bad, false_rejects=0.25) == pytest.approx(2 / 3)


def test_au_pro_weighs_every_defect_the_same(tmp_path):
    # Two defects, one of 100 pixels found in full, one of 4 not found at all.
    mask = np.zeros((64, 64), np.uint8)
    mask[10:20, 10:20] = 255
    mask[40:42, 40:42] = 255
    cv2.imwrite(str(tmp_path / "mask.png"), mask)
    heat = np.zeros((64, 64), np.float32)
    heat[10:20, 10:20] = 5.0
    sample = Sample(path=tmp_path / "x.png", label="dent", mask=tmp_path / "mask.png")
    count = _PixelCount()
    count.add(sample, heat, (64, 64))

    # The area under a line from 0.5 at no good pixel marked, to 1 where all are.
    assert count.au_pro() == pytest.approx(0.5 + 0.5 * PRO_FALSE_MAX / 2, abs=1e-3)
    assert count.auroc() == pytest.approx((100 + 4 * 0.5) / 104, abs=1e-3)


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "normals_only", "least"),
    [
        ("circuit_board", True, 0.93),
        ("paper", True, 0.99),
        ("solar_mono", True, 0.945),
        ("paper", False, 0.997),
        ("solar_mono", False, 0.96),
    ],
)
def test_recorded_parts_are_told_apart(
    shared_data, tmp_path, teach_quietly, *, name, normals_only, least
):
    data = shared_data / name
    model = teach_quietly(data, tmp_path / "out", family=None, normals_only=normals_only)
    result = evaluate_quietly(model, data)

    assert result.image_auroc >= least
    assert result.certificate.false_reject.kept is not False
    assert result.certificate.escape.kept is not False
    assert result.escalation_rate_good < 0.4
