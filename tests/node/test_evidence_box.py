import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from qcnode.evidence import find_box


def heat_with(*places, shape=(64, 96), usual=2.0, peak=9.0):
    heat = np.full(shape, usual, np.float32)
    for top, bottom, left, right in places:
        heat[top:bottom, left:right] = peak
    return heat


def inside(box, x, y):
    return box.left <= x < box.left + box.width and box.top <= y < box.top + box.height


def test_the_box_holds_the_hot_region_in_pixels_of_the_picture():
    # rows 10..14, columns 40..60 of 64 x 96, on a picture ten times as large
    box = find_box(heat_with((10, 14, 40, 60)), width=960, height=640)

    assert inside(box, 400, 100)
    assert inside(box, 599, 139)
    assert not inside(box, 800, 500)
    assert box.width == 300  # 200 px and a quarter of it on each side
    assert box.height == 160  # the least: a quarter of the shorter side


def test_a_place_apart_from_the_peak_is_not_in_the_box():
    heat = heat_with((5, 9, 5, 9), peak=20.0)
    heat[50:54, 80:84] = 15.0

    box = find_box(heat, width=960, height=640)

    assert inside(box, 70, 70)
    assert not inside(box, 820, 520)


def test_of_places_equally_hot_the_largest_is_shown():
    box = find_box(heat_with((5, 7, 5, 7), (40, 50, 70, 90)), width=960, height=640)

    assert inside(box, 800, 450)


def test_a_box_at_the_edge_keeps_its_least_size_within_the_picture():
    box = find_box(heat_with((0, 1, 95, 96)), width=960, height=640)

    assert (box.left + box.width, box.top) == (960, 0)
    assert (box.width, box.height) == (160, 160)


def test_the_map_and_the_map_drawn_in_grey_have_the_same_box():
    heat = cv2.GaussianBlur(heat_with((20, 30, 30, 50)), (0, 0), 3.0)
    grey = np.clip(heat * (255 / heat.max()), 0, 255).astype(np.uint8)

    one, other = (find_box(each, width=960, height=640) for each in (heat, grey))

    assert abs(one.left - other.left) <= 15
    assert abs(one.width - other.width) <= 30


def test_a_map_as_large_as_its_picture_has_its_box_in_the_same_place():
    small = heat_with((10, 14, 40, 60))
    large = np.kron(small, np.ones((30, 30), np.float32))[:-7, :-11]

    box = find_box(large, width=2869, height=1913)

    assert inside(box, 40 * 30, 10 * 30)
    assert inside(box, 60 * 30 - 1, 14 * 30 - 1)
    assert box.width < 3 * 20 * 30


@pytest.mark.parametrize(
    "heat",
    [
        np.full((8, 8), 3.0),
        np.zeros((0, 8)),
        np.zeros((8, 8, 3)),
        np.full((8, 8), np.nan),
        np.array([[0.0, np.inf]]),
    ],
)
def test_a_map_without_a_peak_has_no_box(heat):
    assert find_box(heat, width=100, height=100) is None


@given(
    heat=hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=20)),
    width=st.integers(1, 3000),
    height=st.integers(1, 3000),
)
def test_no_map_makes_a_box_outside_its_picture(heat, width, height):
    box = find_box(heat, width=width, height=height)

    if box is not None:
        assert box.width >= 1
        assert box.height >= 1
        assert box.left >= 0
        assert box.top >= 0
        assert box.left + box.width <= width
        assert box.top + box.height <= height
