"""The rendered product: the same every time, and true about its flaws."""

import cv2
import numpy as np
import pytest

from qcnode.cameras.studio import HEIGHT, WIDTH, Defect, DefectKind, Studio
from qcnode.cameras.virtual import RenderedParts, write_dataset


@pytest.fixture(scope="module")
def studio():
    return Studio()


def test_a_part_is_the_same_whoever_renders_it_and_when():
    one, other = (RenderedParts(seed=5, defect_share=0.5) for _ in range(2))
    one.render(3)

    for seq in (9, 2):
        assert one.part(seq) == other.part(seq)
        assert np.array_equal(one.render(seq).pixels, other.render(seq).pixels)
    assert not np.array_equal(one.render(2).pixels, one.render(9).pixels)


def test_the_truth_told_to_the_line_is_the_truth_in_the_picture():
    parts = RenderedParts(seed=5, defect_share=0.5)
    for seq in range(1, 30):
        _, truth = parts.part(seq)
        defect = parts.render(seq).defect
        assert truth == ("good" if defect is None else defect.kind)


@pytest.mark.parametrize("share", [0.0, 0.2, 1.0])
def test_the_share_of_defects_is_what_was_asked_for(share):
    parts = RenderedParts(seed=7, defect_share=share)
    defects = [parts.defect(seq) for seq in range(2000)]
    found = [defect for defect in defects if defect is not None]

    assert len(found) / 2000 == pytest.approx(share, abs=0.03)
    if found:
        assert {defect.kind for defect in found} == set(DefectKind)
        assert min(defect.severity for defect in found) < 0.12
        assert max(defect.severity for defect in found) > 0.95


@pytest.mark.parametrize("kind", DefectKind)
def test_a_flaw_changes_the_picture_where_its_mask_says_and_the_more_the_worse(studio, kind):
    changes = []
    for severity in (0.1, 1.0):
        inside = []
        for seed in range(6):
            good = studio.render(np.random.default_rng(seed), None)
            bad = studio.render(np.random.default_rng(seed), Defect(kind=kind, severity=severity))
            change = np.abs(bad.pixels.astype(int) - good.pixels.astype(int)).max(axis=2)
            flaw = bad.mask > 0
            assert change[flaw].mean() > 4 * change[~flaw].mean()
            box = bad.box
            assert 0 <= box.left < box.left + box.width <= WIDTH
            assert 0 <= box.top < box.top + box.height <= HEIGHT
            rows, columns = np.nonzero(flaw)
            assert (rows.min(), columns.min()) == (box.top, box.left)
            inside.append(change[flaw].sum())
        changes.append(np.mean(inside))
    assert changes[1] > 3 * changes[0]


def test_good_parts_have_no_flaw_to_point_at(studio):
    part = studio.render(np.random.default_rng(0), None)

    assert (part.defect, part.box, part.mask) == (None, None, None)
    assert part.pixels.shape == (HEIGHT, WIDTH, 3)


def test_a_data_set_has_the_layout_that_is_taught_from(tmp_path):
    told = []
    write_dataset(tmp_path, seed=1, good=5, defects=2, progress=lambda *done: told.append(done))

    def count(place):
        return len(list((tmp_path / place).rglob("*.png")))

    assert count("train/good") == 5
    assert count("test/good") == 2
    for kind in DefectKind:
        for split in ("train", "test"):
            assert count(f"{split}/{kind}") == 2
    assert told[-1] == (5 + 2 + 4 * len(DefectKind),) * 2
    for picture in (tmp_path / "test" / "scratch").iterdir():
        mask = cv2.imread(
            str(tmp_path / "ground_truth" / "scratch" / f"{picture.stem}_mask.png"), -1
        )
        assert mask.shape == (HEIGHT, WIDTH)
        assert set(np.unique(mask)) == {0, 255}


def test_a_data_set_shows_none_of_the_parts_that_come_down_the_line(tmp_path):
    write_dataset(tmp_path, seed=1, good=3, defects=0, progress=lambda *_: None)
    parts = RenderedParts(seed=1, defect_share=0.0)
    pictures = [cv2.imread(str(p))[:, :, ::-1] for p in tmp_path.rglob("*.png")]

    assert not any(
        np.array_equal(parts.render(seq).pixels, picture)
        for seq in range(1, 10)
        for picture in pictures
    )
