from __future__ import annotations

import struct
import tracemalloc
import zlib

import cv2
import numpy as np
import pytest

from qcnode.errors import PictureError
from qcnode.picture import as_rgb, decode_picture, encode_jpeg, encode_png, read_picture


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
    exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0" + struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0) + bytes(4)
    jpeg = encode(".jpg", picture)
    turned = jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + jpeg[2:]

    pixels = decode_picture(turned, name="p.jpg")

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
