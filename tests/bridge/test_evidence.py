import hashlib

import cv2
import numpy as np
import pytest

from qcbridge.evidence import image_tokens, show
from qcnode.domain import Box
from qcnode.errors import PictureError
from qcnode.picture import decode_picture, encode_jpeg, encode_png, read_header


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


def test_the_crop_is_around_the_peak_of_the_heat(pixels, heat):
    shown = show(encode_png(pixels), heat, None, side_max_px=448)

    crop = decode_picture(shown.jpeg, name="crop")
    assert (shown.width, shown.height) == (150, 150)
    assert crop.shape[:2] == (shown.height, shown.width)
    assert ((crop[..., 0] > 200) & (crop[..., 1] < 80)).sum() > 2000  # all 2,400 of the mark
    assert (shown.picture_width, shown.picture_height) == (800, 600)


def test_a_box_found_before_wins_over_the_heat(pixels, heat):
    box = Box(left=10, top=400, width=100, height=80)

    assert show(encode_png(pixels), heat, box, side_max_px=448).box == box


def test_without_heat_the_whole_picture_is_shown_shrunk_to_the_side_allowed(pixels):
    shown = show(encode_png(pixels), None, None, side_max_px=448)

    assert (shown.width, shown.height) == (448, 336)
    assert shown.box == Box(left=0, top=0, width=800, height=600)


@pytest.mark.parametrize(
    "box",
    [
        Box(left=-50, top=-50, width=5000, height=5000),
        Box(left=9000, top=9000, width=10, height=10),
        Box(left=799, top=0, width=1, height=600),
        Box(left=0, top=0, width=0, height=0),
    ],
)
def test_no_box_leads_outside_the_picture(pixels, box):
    shown = show(encode_png(pixels), None, box, side_max_px=448)

    assert shown.box.left + shown.box.width <= 800
    assert shown.box.top + shown.box.height <= 600
    assert 28 <= shown.width <= 448
    assert 28 <= shown.height <= 448


def test_what_is_shown_carries_no_metadata_of_the_camera(pixels):
    plain = encode_jpeg(pixels)
    exif = b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\x00\x00\x00\x00\x00\x00 GPS of the plant"
    tagged = plain[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + plain[2:]

    shown = show(tagged, None, None, side_max_px=448)

    assert b"GPS of the plant" in tagged
    assert b"GPS of the plant" not in shown.jpeg
    assert b"\xff\xe1" not in shown.jpeg[:200]
    assert read_header(shown.jpeg, name="shown").kind == "JPEG"


def test_the_digest_is_of_the_very_bytes_that_leave(pixels):
    shown = show(encode_png(pixels), None, None, side_max_px=448)

    assert shown.sha256 == hashlib.sha256(shown.jpeg).hexdigest()


@pytest.mark.parametrize("bad", [b"", b"no picture at all", b"\xff\xd8\xff\xe0cut off"])
def test_what_is_no_picture_is_refused_in_one_line(pixels, bad):
    with pytest.raises(PictureError) as refused:
        show(bad, None, None, side_max_px=448)
    assert "\n" not in str(refused.value)

    with pytest.raises(PictureError):
        show(encode_png(pixels), bad, None, side_max_px=448)


@pytest.mark.parametrize(
    ("width", "height", "formula", "tokens"),
    [
        (512, 512, "patch28", 361),
        (1024, 1024, "patch28", 1369),
        (448, 448, "patch28", 256),
        (449, 1, "patch28", 17),
        (4096, 3000, "patch32", 12032),
    ],
)
def test_image_tokens_are_those_of_the_published_formula(width, height, formula, tokens):
    assert image_tokens(width, height, formula=formula) == tokens
