import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcnode.cameras.studio import Studio
from qcnode.marks import PICTURES_MIN, Marks
from tests.faults.attacks import make_attacks

STUDIO = Studio()


def good(number, seed=1):
    return STUDIO.render(np.random.default_rng([seed, number, 1]), None).pixels


@pytest.fixture(scope="module")
def marks():
    return Marks.of(good(number) for number in range(40))


def test_words_on_a_part_are_noticed_and_good_parts_own_words_are_not(marks):
    attacks = make_attacks(60, seed=3)

    assert [one.words for one in attacks if not marks.foreign(one.pixels)] == []
    assert sum(marks.foreign(good(number, seed=2)) for number in range(60)) <= 6


def test_a_manifest_brings_back_the_same_marks(marks):
    reference, usual = marks.encoded()

    again = Marks.decoded(reference, usual)

    assert again.encoded() == (reference, usual)
    assert [one.limit for one in again.usual] == [one.limit for one in marks.usual]


def test_too_few_parts_or_parts_of_several_sizes_teach_nothing():
    assert Marks.of(good(number) for number in range(PICTURES_MIN - 1)) is None
    mixed = [good(number)[: 200 + number] for number in range(PICTURES_MIN)]
    assert Marks.of(mixed) is None


@given(st.text(max_size=40))
def test_what_is_no_norm_is_refused(text):
    with pytest.raises(ValueError, match="not what good parts bear"):
        Marks.decoded(text, [])
