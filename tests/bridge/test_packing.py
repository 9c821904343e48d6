import hashlib

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcbridge.evidence import FORMULAS, SIDE_MIN_PX
from qcbridge.packing import Packing, open_views, pack, sheet
from qcnode.domain import Box
from qcnode.errors import PictureError
from qcnode.picture import decode_picture, encode_jpeg, encode_png, read_header

PATCHES = FORMULAS["patch28"]


@pytest.fixture
def pixels():
    picture = np.full((600, 800, 3), 128, np.uint8)
    picture[100:140, 600:660] = (250, 10, 10)  # the mark, in red
    return picture


@pytest.fixture
def heat():
    heat = np.zeros((60, 80), np.uint8)
    heat[10:14, 60:66] = 200
    return bytes(cv2.imencode(".png", heat)[1])


def show(picture, heat=None, box=None, *, packing=Packing.CROP, golden=None, side_max_px=448):
    views = open_views(picture, heat, golden=golden)
    return pack(views, box, packing, side_max_px=side_max_px, count=PATCHES)


def red(picture):
    return ((picture[..., 0] > 200) & (picture[..., 1] < 80) & (picture[..., 2] < 80)).sum()


def test_the_crop_is_around_the_peak_of_the_heat(pixels, heat):
    shown = show(encode_png(pixels), heat)

    crop = decode_picture(shown.jpeg, name="crop")
    assert (shown.width, shown.height) == (150, 150)
    assert crop.shape[:2] == (shown.height, shown.width)
    assert red(crop) > 2000  # all 2,400 of the mark
    assert (shown.picture_width, shown.picture_height) == (800, 600)


def test_a_box_found_before_wins_over_the_heat(pixels, heat):
    box = Box(left=10, top=400, width=100, height=80)

    assert show(encode_png(pixels), heat, box).box == box


def test_without_heat_the_whole_picture_is_shown_shrunk_to_the_side_allowed(pixels):
    shown = show(encode_png(pixels))

    assert (shown.width, shown.height) == (448, 336)
    assert shown.box == Box(left=0, top=0, width=800, height=600)


def test_the_naive_packing_is_the_frame_at_its_own_size(pixels, heat):
    shown = show(encode_png(pixels), heat, packing=Packing.FRAME)

    assert (shown.width, shown.height) == (800, 600)


@pytest.mark.parametrize("packing", [Packing.CROP, Packing.CROP_GOLDEN])
@pytest.mark.parametrize(
    "box",
    [
        Box(left=-50, top=-50, width=5000, height=5000),
        Box(left=9000, top=9000, width=10, height=10),
        Box(left=799, top=0, width=1, height=600),
        Box(left=0, top=0, width=0, height=0),
    ],
)
def test_no_box_leads_outside_the_picture(pixels, heat, box, packing):
    shown = show(encode_png(pixels), heat, box, packing=packing, golden=encode_png(pixels))

    assert shown.box.left + shown.box.width <= 800
    assert shown.box.top + shown.box.height <= 600
    assert min(shown.width, shown.height) >= SIDE_MIN_PX
    assert PATCHES(shown.width, shown.height) <= PATCHES(448, 448)


def test_the_part_stands_beside_a_good_one_and_the_heat_of_the_same_place(pixels, heat):
    golden = np.full((300, 400, 3), 90, np.uint8)  # of half the size
    golden[50:70, 300:330] = (10, 10, 250)

    shown = show(encode_png(pixels), heat, packing=Packing.CROP_GOLDEN, golden=encode_png(golden))

    sheet_ = decode_picture(shown.jpeg, name="sheet")
    assert shown.panels == ("part", "golden", "heat")
    side = shown.height
    assert shown.width == 3 * side + 8
    part, good, hot = (sheet_[:, at * (side + 4) :][:, :side] for at in range(3))
    assert red(part) > 0.8 * 2400 * (side / 150) ** 2
    assert red(good) == 0
    assert (good[..., 2] > 200).sum() > 0.8 * 2400 * (side / 150) ** 2  # its own mark, same place
    assert hot.max() > 200
    assert hot[:5].max() < 60


def test_a_golden_picture_of_another_shape_is_no_reference(pixels, heat):
    golden = encode_png(np.zeros((500, 500, 3), np.uint8))

    shown = show(encode_png(pixels), heat, packing=Packing.CROP_GOLDEN, golden=golden)

    assert shown.panels == ("part", "heat")


@settings(max_examples=60, deadline=None)
@given(
    width=st.integers(1, 700),
    height=st.integers(1, 700),
    formula=st.sampled_from(["patch28", "openai-tiles-4o", "anthropic", "qwen3vl", "gemini3-low"]),
    side=st.integers(64, 600),
)
def test_panels_never_cost_more_than_the_square_that_is_allowed(width, height, formula, side):
    count = FORMULAS[formula]
    picture = encode_png(np.zeros((720, 720, 3), np.uint8))
    heat = encode_png(np.zeros((72, 72), np.uint8))
    views = open_views(picture, heat, golden=picture)
    box = Box(left=0, top=0, width=width, height=height)

    shown = pack(views, box, Packing.CROP_GOLDEN, side_max_px=side, count=count)

    assert count(shown.width, shown.height) <= count(side, side)


def test_parts_on_a_sheet_are_as_large_as_alone(pixels):
    crops = [pixels[:200, 500:700], pixels[:100, :50], pixels[:200, 500:700]]

    laid = sheet(crops, side_max_px=448)

    assert laid.shape[:2] == (404, 404)
    assert red(laid) == 2 * red(crops[0])


def tagged_jpeg(pixels):
    exif = b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\x00\x00\x00\x00\x00\x00 GPS of the plant"
    plain = encode_jpeg(pixels)
    return plain[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + plain[2:]


@pytest.mark.parametrize("packing", list(Packing))
def test_what_is_shown_carries_no_metadata_of_the_camera(pixels, packing):
    tagged = tagged_jpeg(pixels)

    shown = show(tagged, packing=packing, golden=tagged)

    assert b"GPS of the plant" in tagged
    assert b"GPS of the plant" not in shown.jpeg
    assert b"\xff\xe1" not in shown.jpeg[:200]
    assert read_header(shown.jpeg, name="shown").kind == "JPEG"


def test_the_digest_is_of_the_very_bytes_that_leave(pixels):
    shown = show(encode_png(pixels))

    assert shown.sha256 == hashlib.sha256(shown.jpeg).hexdigest()


@pytest.mark.parametrize("bad", [b"", b"no picture at all", b"\xff\xd8\xff\xe0cut off"])
def test_what_is_no_picture_is_refused_in_one_line(pixels, bad):
    with pytest.raises(PictureError) as refused:
        show(bad)
    assert "\n" not in str(refused.value)

    with pytest.raises(PictureError):
        show(encode_png(pixels), bad)
    with pytest.raises(PictureError):
        show(encode_png(pixels), golden=bad)
