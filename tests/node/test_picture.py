from __future__ import annotations

import struct
import tracemalloc
import zlib
from datetime import UTC, datetime

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcnode.domain import Frame
from qcnode.errors import PictureError
from qcnode.picture import (
    as_rgb,
    decode_picture,
    encode_jpeg,
    encode_png,
    read_picture,
    seen_at,
    seen_of,
    shrink_for,
    unpack_picture,
)


def make_picture(height: int = 48, width: int = 64) -> np.ndarray:
    noise = np.random.default_rng(3).integers(0, 256, (height, width, 3)).astype(np.uint8)
    return cv2.GaussianBlur(noise, (0, 0), 2)


def encode(suffix: str, picture: np.ndarray, *options: int) -> bytes:
    done, data = cv2.imencode(suffix, picture, list(options))
    assert done
    return data.tobytes()


ENCODED = {
    "png": encode(".png", make_picture()),
    "jpeg": encode(".jpg", make_picture()),
    "progressive jpeg": encode(".jpg", make_picture(), cv2.IMWRITE_JPEG_PROGRESSIVE, 1),
    "bmp": encode(".bmp", make_picture()),
    "tiff": encode(".tiff", make_picture()),
    "plain tiff": encode(".tiff", make_picture(), cv2.IMWRITE_TIFF_COMPRESSION, 1),
    "webp": encode(".webp", make_picture()),
    "lossy webp": encode(".webp", make_picture(), cv2.IMWRITE_WEBP_QUALITY, 80),
}


def make_png(width: int, height: int, rows: bytes, *, colour: int = 2) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows, 9)), chunk(b"IEND", b""))
    )


@pytest.mark.parametrize("kind", ENCODED)
def test_every_kind_of_file_becomes_rgb(kind):
    pixels = decode_picture(ENCODED[kind], name=kind)

    assert pixels.dtype == np.uint8
    assert pixels.shape == (48, 64, 3)
    assert np.abs(pixels[:, :, ::-1].astype(int) - make_picture()).mean() < 4


@pytest.mark.parametrize("kind", ENCODED)
def test_a_file_cut_short_anywhere_is_refused(kind):
    data = ENCODED[kind]
    cuts = {*range(0, len(data), max(len(data) // 150, 1)), len(data) - 1, len(data) - 2}
    for cut in cuts:
        with pytest.raises(PictureError, match=r"part\.x: "):
            decode_picture(data[:cut], name="part.x")


def test_a_small_file_of_400_megapixels_is_refused_from_its_header():
    bomb = make_png(20_000, 20_000, bytes(48_000_000))
    assert len(bomb) < 50_000

    tracemalloc.start()
    with pytest.raises(PictureError, match="400 megapixels, at most 64"):
        decode_picture(bomb, name="bomb.png")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak < 1_000_000


def test_a_picture_at_the_limit_passes_and_one_pixel_row_more_does_not():
    data = encode(".png", make_picture(10, 10))

    assert decode_picture(data, name="p", pixels_max=100).shape == (10, 10, 3)
    with pytest.raises(PictureError, match="10x10"):
        decode_picture(data, name="p", pixels_max=99)


def test_a_png_with_fewer_rows_than_it_says_is_refused():
    rows = b"".join(b"\0" + bytes(3 * 64) for _ in range(10))
    with pytest.raises(PictureError):
        decode_picture(make_png(64, 48, rows), name="short.png")


def test_a_flipped_bit_in_a_png_is_refused():
    data = bytearray(ENCODED["png"])
    data[len(data) // 2] ^= 1
    with pytest.raises(PictureError, match="checksum"):
        decode_picture(bytes(data), name="p.png")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty file"),
        (b"GIF89a" + bytes(50), "convert it"),
        (b"hello, no picture at all", "convert it"),
        (make_png(0, 0, b""), "empty"),
    ],
)
def test_what_is_no_picture_is_named_with_the_fix(data, words):
    with pytest.raises(PictureError, match=words) as caught:
        decode_picture(data, name="in/part.png")
    assert str(caught.value).startswith("in/part.png: ")
    assert "\n" not in str(caught.value)


def test_grey_16_bit_and_alpha_are_converted_by_the_stated_rule():
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8)
    deep = (grey.astype(np.uint16) << 8) | 255
    clear = np.dstack([grey, grey, grey, np.zeros_like(grey)])

    for picture in (grey, deep, clear):
        pixels = decode_picture(encode(".png", picture), name="p")
        assert (pixels == grey[:, :, None]).all()


def test_a_fourth_channel_is_alpha_and_is_dropped():
    pixels = as_rgb(np.zeros((4, 5, 4), np.uint8), name="p")
    assert pixels.shape == (4, 5, 3)


def test_an_exif_rotation_is_applied():
    picture = np.zeros((40, 60, 3), np.uint8)
    picture[:20, :20] = 255  # the upper left corner

    pixels = decode_picture(turned_right(encode(".jpg", picture)), name="p.jpg")

    assert pixels.shape == (60, 40, 3)
    assert pixels[5, 35].min() > 200  # now at the upper right


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 5, 2), np.uint8),
        np.zeros((4, 5, 5), np.uint8),
        np.zeros((4, 5, 3), np.float32),
        np.zeros((0, 5, 3), np.uint8),
        np.zeros(4, np.uint8),
    ],
)
def test_an_array_that_is_no_picture_is_refused(array):
    with pytest.raises(PictureError):
        as_rgb(array, name="camera 1")


def test_a_picture_written_as_png_comes_back_as_it_was():
    picture = make_picture()
    assert (decode_picture(encode_png(picture), name="p") == picture).all()
    assert decode_picture(encode_jpeg(picture), name="p").shape == picture.shape


def test_a_path_that_is_no_file_is_named(tmp_path):
    for path in (tmp_path, tmp_path / "missing.png"):
        with pytest.raises(PictureError, match=str(path)):
            read_picture(path)


# -- no finer than a model looks ---------------------------------------------------------------


def turned_right(jpeg: bytes) -> bytes:
    """Return a JPEG whose EXIF says that it lies on its side."""
    exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0" + struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0) + bytes(4)
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + jpeg[2:]


def frame_of(encoded: bytes | None, pixels: np.ndarray, size: tuple[int, int] | None = None):
    return Frame(
        id="f",
        part_id="p",
        camera="c",
        name="part.jpg",
        captured_at=datetime(2026, 11, 22, tzinfo=UTC),
        pixels=pixels,
        encoded=encoded,
        size=size,
    )


SHARP = make_picture(515, 770)
"""Of a size that is no multiple of anything."""
LARGE = {"jpeg": encode_jpeg(SHARP[:, :, ::-1]), "png": encode(".png", SHARP)}


@given(height=st.integers(1, 5_000), width=st.integers(1, 5_000), side=st.integers(1, 1_000))
def test_no_side_is_halved_below_what_a_model_looks_at(height, width, side):
    shrink = shrink_for((height, width), side)

    assert shrink in (1, 2, 4, 8)
    assert shrink == 1 or min(height, width) / shrink >= side
    assert shrink == 8 or min(height, width) / (2 * shrink) < side
    assert shrink_for((height, width), None) == 1


@pytest.mark.parametrize("kind", LARGE)
@pytest.mark.parametrize(("side", "shape"), [(128, (129, 193)), (200, (258, 385)), (300, None)])
def test_a_picture_is_unpacked_no_finer_than_a_model_looks(kind, side, shape):
    unpacked = unpack_picture(LARGE[kind], name="p", side=side)

    assert unpacked.pixels.shape[:2] == (shape or (515, 770))
    assert unpacked.size == (None if shape is None else (515, 770))
    small = cv2.resize(
        SHARP[:, :, ::-1], unpacked.pixels.shape[1::-1], interpolation=cv2.INTER_AREA
    )
    assert np.abs(unpacked.pixels.astype(int) - small).mean() < 4


@pytest.mark.parametrize("kind", LARGE)
@pytest.mark.parametrize("unpacked_for", [None, 60, 128, 250])
def test_what_a_model_sees_does_not_depend_on_for_whom_a_picture_was_unpacked(kind, unpacked_for):
    straight = unpack_picture(LARGE[kind], name="p", side=128)
    came = unpack_picture(LARGE[kind], name="p", side=unpacked_for)

    seen = seen_of(frame_of(LARGE[kind], came.pixels, came.size), 128)

    assert (seen == straight.pixels).all()
    assert (seen_at(seen, 128) == seen_at(straight.pixels, 128)).all()
    everything = seen_of(frame_of(LARGE[kind], came.pixels, came.size), None)
    assert (everything == decode_picture(LARGE[kind], name="p")).all()


def test_a_picture_without_a_file_is_seen_nearly_as_its_jpeg_would_be():
    from_jpeg = seen_at(unpack_picture(LARGE["jpeg"], name="p", side=128).pixels, 128)
    from_camera = seen_at(seen_of(frame_of(None, SHARP[:, :, ::-1]), 128), 128)

    assert from_camera.shape == (128, 128, 3)
    assert np.abs(from_camera.astype(int) - from_jpeg).mean() < 2


def test_a_jpeg_on_its_side_is_upright_and_of_its_own_size_when_unpacked_smaller():
    picture = np.zeros((400, 600, 3), np.uint8)
    picture[:200, :200] = 255  # the upper left corner

    unpacked = unpack_picture(turned_right(encode(".jpg", picture)), name="p", side=100)

    assert unpacked.size == (600, 400)
    assert unpacked.pixels.shape == (150, 100, 3)
    assert unpacked.pixels[12, 88].min() > 200  # now at the upper right


def test_a_jpeg_with_bytes_that_fill_up_before_a_mark_is_whole():
    jpeg = ENCODED["jpeg"]
    filled = jpeg[:-2] + b"\xff\xff\xff" + jpeg[-2:]

    assert (decode_picture(filled, name="p") == decode_picture(jpeg, name="p")).all()
    with pytest.raises(PictureError, match="ends too early"):
        decode_picture(filled[:-1], name="p")
