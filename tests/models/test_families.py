from __future__ import annotations

import json
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcmodels.backbone import EARLY, WIDTHS, add_backbone
from qcmodels.bank import FEATURES, IMAGE, SIZE, add_bank
from qcmodels.choose import FAMILIES, by_labels, candidates
from qcmodels.data import open_dataset, read_sample
from qcmodels.evaluate import auroc
from qcmodels.families import gaussian, labelled
from qcmodels.families.contract import HEAT, SCORE, TAUGHT, Features, FitConfig
from qcmodels.folds import draw_folds, fold_numbers
from qcmodels.formula import SIDE, draw_class, draw_flaw
from qcmodels.sources import KINDS, Describer, join_parts
from qcmodels.suspects import find_suspects
from qcmodels.synthetic import draw_defects
from qcnode.errors import DatasetError
from qcnode.runtime.onnx import open_session

CONFIG = FitConfig(seed=0)


@pytest.fixture(scope="module")
def described(plates):
    describe = Describer(threads=1)
    data = open_dataset(plates)

    def of(samples):
        return np.stack(
            [describe(read_sample(sample, side=None).pixels)[KINDS[0]] for sample in samples]
        )

    return {
        "good": of(data.train_good[:40]),
        "defects": of(data.train_defects),
        "test_good": of(data.test_good),
        "test_defects": of(data.test_defects),
    }


def judge(head, pictures):
    session = open_session(head.SerializeToString())
    answers = [session.run([SCORE, HEAT], {TAUGHT: picture[np.newaxis]}) for picture in pictures]
    return np.array([float(score) for score, _ in answers]), np.stack([heat for _, heat in answers])


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_finds_scratches_by_a_score_and_a_map_that_are_never_negative(
    described, family
):
    head = FAMILIES[family](Features(good=described["good"], defects=described["defects"]), CONFIG)
    good, good_heat = judge(head, described["test_good"])
    bad, bad_heat = judge(head, described["test_defects"])

    assert auroc(good, bad) > 0.95
    for values in (good, bad, good_heat, bad_heat):
        assert np.isfinite(values).all()
        assert (values >= 0).all()
    assert bad_heat.shape[1:] == (32, 32)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_features_and_seed_give_the_same_head(described, family):
    features = Features(good=described["good"][:12], defects=described["defects"])
    one, other = (FAMILIES[family](features, CONFIG).SerializeToString() for _ in range(2))
    assert one == other


def test_a_memory_forgives_a_part_that_moved_and_a_gaussian_does_not(described):
    features = Features(good=described["good"], defects=described["defects"][:0])
    moved = np.roll(described["test_good"][:8], (3, 3), axis=(2, 3))
    ratio = {}
    for family in ("gaussian", "memory"):
        head = FAMILIES[family](features, CONFIG)
        still, _ = judge(head, described["test_good"][:8])
        rolled, _ = judge(head, moved)
        ratio[family] = np.median(rolled) / np.median(still)
    assert ratio["memory"] < 1.3
    assert ratio["gaussian"] > 2


def test_a_low_rank_gaussian_ranks_parts_as_the_full_one_does(described):
    good = described["good"]
    cells = good.reshape(len(good), good.shape[1], -1).astype(float)
    pictures = np.concatenate([described["test_good"], described["test_defects"]])
    fitted = gaussian.fit_gaussians(good)
    values = ((cells.transpose(2, 0, 1) - fitted.origin) @ fitted.basis).astype(float)
    mean = values.mean(axis=1, keepdims=True)
    covariance = (values - mean).transpose(0, 2, 1) @ (values - mean) / len(good)
    shrunk = 0.93 * covariance + 0.07 * covariance.mean(axis=0) + 0.02 * np.eye(values.shape[2])
    inverse = np.linalg.inv(shrunk)
    full = []
    for picture in pictures:
        away = ((picture.reshape(good.shape[1], -1).T - fitted.origin) @ fitted.basis)[:, None]
        away = away - mean
        square = (away @ inverse @ away.transpose(0, 2, 1)).ravel() / values.shape[2]
        full.append(np.sort(np.sqrt(square))[-5:].mean())
    features = Features(good=good, defects=good[:0])
    low, _ = judge(gaussian.fit(features, CONFIG), pictures)

    ranks = [np.argsort(np.argsort(scores)) for scores in (low, np.array(full))]
    assert np.corrcoef(*ranks)[0, 1] > 0.95


def test_labels_teach_what_a_distance_cannot_see():
    random = np.random.default_rng(0)
    good = random.normal(0, 1, (40, 6, 32, 32)).astype(np.float32)
    defects = random.normal(0, 1, (20, 6, 32, 32)).astype(np.float32)
    # A faint change of one feature all over, far below the noise of any one cell.
    defects[:, 2] += 0.15
    test = random.normal(0, 1, (60, 6, 32, 32)).astype(np.float32)
    test[30:, 2] += 0.15

    features = Features(good=good, defects=defects)
    blind, _ = judge(gaussian.fit(features, CONFIG), test)
    taught, _ = judge(labelled.fit(features, CONFIG), test)
    assert auroc(blind[:30], blind[30:]) < 0.8
    assert auroc(taught[:30], taught[30:]) > 0.95


def test_labels_too_few_are_refused_with_the_number_missing(described):
    features = Features(good=described["good"][:12], defects=described["defects"][:5])
    with pytest.raises(DatasetError, match="label 3 more in train/<kind>"):
        labelled.fit(features, CONFIG)
    assert candidates(defects=5, family=None) == ("gaussian", "memory")
    assert candidates(defects=8, family=None) == tuple(FAMILIES)
    assert not by_labels(5)
    assert by_labels(8)


def test_defects_among_many_good_pictures_are_named(described):
    spoiled = described["defects"][:5]
    good = np.concatenate([described["good"], described["test_good"][:15], spoiled])
    found = find_suspects(good, config=CONFIG, progress=lambda *_: None)
    assert len(set(found) & set(range(55, 60))) >= 4
    assert len(set(found) - set(range(55, 60))) <= 2


@given(count=st.integers(0, 200), folds=st.integers(1, 30), seed=st.integers(0, 2**32 - 1))
def test_every_part_is_in_one_fold_and_folds_are_of_equal_size(count, folds, seed):
    drawn = draw_folds(count, folds, seed=seed)
    assert sorted(np.concatenate(drawn).tolist()) == list(range(count))
    sizes = [len(part) for part in drawn]
    assert max(sizes) - min(sizes) <= 1
    assert len(drawn) <= max(count, 1)
    numbers = fold_numbers(drawn)
    assert all(index in drawn[number] for index, number in enumerate(numbers))


@given(rows=st.integers(16, 90), columns=st.integers(16, 90), seed=st.integers(0, 2**32 - 1))
def test_synthetic_defects_change_a_small_part_of_a_picture_of_any_size(rows, columns, seed):
    random = np.random.default_rng(seed)
    picture = random.integers(0, 256, (rows, columns, 3), np.uint8)
    drawn = draw_defects(picture, random)
    assert len(drawn) == 10
    for one in drawn:
        assert one.shape == picture.shape
        assert one.dtype == np.uint8
        assert (one != picture).any(axis=2).mean() < 0.5


@pytest.mark.long
def test_teach_chooses_by_what_it_has_and_says_why(qcnode, make_dataset, tmp_path):
    data = make_dataset(tmp_path / "data", good=24, defects=12, tests=4)
    text = qcnode("teach", data, "--out", tmp_path / "m").stdout
    assert "AUROC on held-out labels" in text
    table = [line.split() for line in text.splitlines() if line.startswith(tuple(FAMILIES))]
    assert {row[0] for row in table} == set(FAMILIES)
    assert [float(row[-1]) for row in table] == sorted(float(row[-1]) for row in table)[::-1]
    assert f"taken: {table[0][0]} on" in text

    words = ("teach", data, "--out", tmp_path / "n", "--normals-only", "--json")
    shown = json.loads(qcnode(*words).stdout)
    assert {trial["family"] for trial in shown["trials"]} == {"gaussian", "memory"}
    assert {trial["by"] for trial in shown["trials"]} == {"synthetic defects"}
    assert shown["taught_from"]["defects"] == 0


def test_a_family_nobody_knows_is_named(qcnode, plates, tmp_path):
    words = ("teach", plates, "--out", tmp_path / "m", "--family", "oracle")
    text = str(qcnode(*words, fails=DatasetError).exception)
    assert text == "--family oracle: no such family: name one of gaussian, memory, labelled"


def test_a_net_of_any_weights_describes_the_same_grid_as_the_bank():
    random = np.random.default_rng(0)
    before, weights = 3, {}
    for layer, width in enumerate(WIDTHS):
        kernel = random.normal(0, 0.1, (width, before, 3, 3))
        weights[f"kernel{layer}"] = kernel.astype(np.float16)
        weights[f"offset{layer}"] = np.zeros(width, np.float16)
        before = width
    model = join_parts([add_bank, partial(add_backbone, weights=weights)]).SerializeToString()
    assert len(model) < 2_000_000
    picture = random.integers(0, 256, (SIZE, SIZE, 3), np.uint8)
    both = open_session(model).run([FEATURES], {IMAGE: picture})[0]

    assert both.shape == (1, 35 + WIDTHS[EARLY] + WIDTHS[-1], 32, 32)
    assert np.array_equal(both[0, :35], Describer(threads=1)(picture)["bank"])
    assert both[0, 35:].std() > 0


@pytest.mark.parametrize("number", range(4))
def test_a_formula_draws_the_same_pictures_again_and_a_flaw_changes_few_pixels(number):
    one, other = (draw_class(number, 2, seed=5) for _ in range(2))
    assert np.array_equal(one, other)
    assert not np.array_equal(one[0], one[1])
    assert one[0].shape == (SIDE, SIDE, 3)
    flawed = draw_flaw(one[0], np.random.default_rng(number))
    assert 0 < (flawed != one[0]).any(axis=2).mean() < 0.2
