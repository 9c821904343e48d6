"""Pictures, from bytes nobody vouches for to RGB pixels, and back.

Every picture the node judges, teaches from or shows comes through here. The rule is
the same for all of them: the header is read first and a picture larger than allowed
is refused before a pixel of it is unpacked; a file that ends too early is refused,
because half a part is not a part; what is left becomes RGB, uint8, height x width x 3.

- Grey becomes three equal channels, CMYK becomes RGB as the decoder defines it.
- 16 bits keep their upper 8. Alpha is dropped, it is not blended.
- A picture that carries an EXIF rotation is turned upright.

A model that looks at `side` x `side` pixels is shown every picture by one rule (`seen_of`),
where it is taught, proven and asked: halved as long as no side falls below that. A JPEG's
decoder does so by unpacking a fraction, any other picture is averaged afterwards. From there
it is brought to its size (`seen_at`).

The limit is ours and read from our own look at the header. OpenCV's own
(`OPENCV_IO_MAX_IMAGE_PIXELS`, 2^30) is a second fence behind it; it only counts when
it is in the environment before `cv2` is first imported, so nothing here relies on it.
What cannot be seen here: a picture damaged inside but complete to its end mark.
"""

from __future__ import annotations

import re
import stat
import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import cv2
import numpy as np

from qcnode.errors import PictureError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from qcnode.domain import Frame

PIXELS_MAX: Final = 64_000_000
BYTES_MAX: Final = 512 * 1024 * 1024
SUFFIXES: Final = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"})

JPEG_MAGIC: Final = b"\xff\xd8\xff"
GRAPH_SHARE_MAX: Final = 1.5
"""How many times the pixels a model looks at its graph resizes itself."""

_TRUNCATED: Final = "ends too early: copy it again from the camera"

# The names say grey, but each is the bit for a size; RGB is a bit of its own.
_FLAGS: Final = {
    1: cv2.IMREAD_COLOR_RGB,
    2: cv2.IMREAD_REDUCED_GRAYSCALE_2 | cv2.IMREAD_COLOR_RGB,
    4: cv2.IMREAD_REDUCED_GRAYSCALE_4 | cv2.IMREAD_COLOR_RGB,
    8: cv2.IMREAD_REDUCED_GRAYSCALE_8 | cv2.IMREAD_COLOR_RGB,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What a file says of itself before anything is unpacked."""

    kind: str
    width: int
    height: int


def read_picture(path: Path, *, pixels_max: int = PIXELS_MAX) -> NDArray[np.uint8]:
    """Return the picture in `path` as RGB, or raise `PictureError` naming it."""
    return decode_picture(read_bytes(path), name=str(path), pixels_max=pixels_max)


def read_bytes(path: Path) -> bytes:
    """Return what is in `path`, which must be an ordinary file of a sane size."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise PictureError(f"{path}: not a file: name a picture")
        if status.st_size > BYTES_MAX:
            raise PictureError(
                f"{path}: {status.st_size} bytes, at most {BYTES_MAX} are read: save it smaller"
            )
        return path.read_bytes()
    except OSError as error:
        raise PictureError(f"{path}: cannot be read ({error.strerror}): check the path") from error


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Unpacked:
    """A picture's pixels, RGB; `size` is rows and columns of the whole where they are fewer."""

    pixels: NDArray[np.uint8]
    size: tuple[int, int] | None


def decode_picture(data: bytes, *, name: str, pixels_max: int = PIXELS_MAX) -> NDArray[np.uint8]:
    """Return encoded bytes as RGB pixels; `name` is what an error calls them."""
    return unpack_picture(data, name=name, pixels_max=pixels_max).pixels


def unpack_picture(
    data: bytes, *, name: str, pixels_max: int = PIXELS_MAX, side: int | None = None
) -> Unpacked:
    """Return encoded bytes as RGB pixels, no finer than a model of `side` looks."""
    header = read_header(data, name=name)
    if header.width < 1 or header.height < 1:
        raise PictureError(f"{name}: {header.kind} of {header.width}x{header.height} pixels: empty")
    if header.width * header.height > pixels_max:
        megapixels = header.width * header.height / 1e6
        raise PictureError(
            f"{name}: {header.width}x{header.height} is {megapixels:.0f} megapixels, at most "
            f"{pixels_max / 1e6:.0f} are allowed: save it smaller"
        )
    size = (header.height, header.width)
    shrink = shrink_for(size, side)
    at_once = shrink if header.kind == "JPEG" else 1
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), _FLAGS[at_once])
    except cv2.error as error:
        raise PictureError(
            f"{name}: the decoder refused this {header.kind}: save it anew"
        ) from error
    if pixels is None:
        raise PictureError(f"{name}: damaged {header.kind}: copy or save it anew")
    if pixels.shape[:2] != _shrunk(size, at_once):
        size = size[::-1]  # Turned upright, as its EXIF says.
    if pixels.shape[:2] != _shrunk(size, at_once):
        raise PictureError(f"{name}: decoded to another size than its header says: save it anew")
    seen = _halved(as_rgb(pixels, name=name), shrink // at_once)
    return Unpacked(pixels=seen, size=None if shrink == 1 else size)


def shrink_for(size: tuple[int, int], side: int | None) -> int:
    """Return how many times smaller a picture may be for `side` pixels each way to remain."""
    if side is None:
        return 1
    return next((times for times in (8, 4, 2) if min(size) >= times * side), 1)


def seen_of(frame: Frame, side: int | None) -> NDArray[np.uint8]:
    """Return a frame's pixels as far as the rule for `side` halves them.

    For whom it was unpacked makes no difference: a JPEG unpacked for somebody else is
    unpacked again.
    """
    size = size_of(frame)
    shrink = shrink_for(size, side)
    if frame.pixels.shape[:2] == _shrunk(size, shrink):
        return frame.pixels
    encoded = frame.encoded
    if encoded is not None and (frame.size is not None or encoded.startswith(JPEG_MAGIC)):
        return unpack_picture(encoded, name=frame.name, side=side).pixels
    return _halved(frame.pixels, shrink)


def seen_at(pixels: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Return what `seen_of` gave as the graph takes it: `side` x `side` pixels, or a few more.

    The way goes over twice the side, of which each four pixels are averaged: smooth where a
    picture gets smaller, at a third of what resizing with antialias costs. A picture of hardly
    more pixels than that is left to the graph, which resizes in floats: there it costs little,
    and grey values that were rounded twice cost the faintest defects.
    """
    rows, columns = pixels.shape[:2]
    if rows * columns <= GRAPH_SHARE_MAX * side * side:
        return pixels
    twice = cv2.resize(pixels, (2 * side, 2 * side), interpolation=cv2.INTER_LINEAR)
    return _halved(np.asarray(twice, np.uint8), 2)


def size_of(frame: Frame) -> tuple[int, int]:
    """Return rows and columns of the whole picture of a frame."""
    return frame.size or (frame.pixels.shape[0], frame.pixels.shape[1])


def _halved(pixels: NDArray[np.uint8], times: int) -> NDArray[np.uint8]:
    """Return the mean of each two by two pixels, until it is so many times smaller.

    An odd side is rounded up, as in a JPEG.
    """
    while times > 1:
        rows, columns = _shrunk((pixels.shape[0], pixels.shape[1]), 2)
        half = cv2.resize(pixels, (columns, rows), interpolation=cv2.INTER_AREA)
        pixels = np.asarray(half, np.uint8)
        times //= 2
    return pixels


def _shrunk(size: tuple[int, int], times: int) -> tuple[int, int]:
    return -(-size[0] // times), -(-size[1] // times)


def as_rgb(pixels: NDArray[np.generic], *, name: str) -> NDArray[np.uint8]:
    """Return an array from a camera as RGB by the rules of this module.

    Takes height x width, or that with 1 (grey), 3 (RGB) or 4 (RGB and alpha) channels,
    of uint8 or uint16.
    """
    grey, channels = 2, 3
    if pixels.dtype == np.uint16:
        pixels = (pixels >> 8).astype(np.uint8)  # type: ignore[operator]  # uint16 by the test
    if pixels.dtype != np.uint8:
        raise PictureError(f"{name}: pixels of type {pixels.dtype}, not uint8 or uint16")
    if pixels.ndim == grey:
        pixels = pixels[:, :, np.newaxis]
    if pixels.ndim != channels or pixels.shape[2] not in (1, 3, 4) or 0 in pixels.shape:
        raise PictureError(
            f"{name}: shape {pixels.shape} is no picture: give height x width x 1, 3 or 4"
        )
    if pixels.shape[2] == 1:
        pixels = np.repeat(pixels, 3, axis=2)
    return np.ascontiguousarray(pixels[:, :, :3], dtype=np.uint8)


def encode_jpeg(pixels: NDArray[np.uint8], *, quality: int = 90) -> bytes:
    """Return RGB pixels as JPEG, for people and agents to look at."""
    return _encode(pixels, ".jpg", [cv2.IMWRITE_JPEG_QUALITY, quality])


def encode_png(pixels: NDArray[np.uint8]) -> bytes:
    """Return RGB or grey pixels as PNG, which brings every pixel back as it was."""
    return _encode(pixels, ".png", [])


def _encode(pixels: NDArray[np.uint8], suffix: str, options: list[int]) -> bytes:
    grey = pixels.ndim == 2  # noqa: PLR2004  # rows and columns
    ordered = pixels if grey else cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    done, data = cv2.imencode(suffix, ordered, options)
    if not done:
        raise PictureError(f"a picture of shape {pixels.shape} cannot be written as {suffix}")
    return data.tobytes()


def read_header(data: bytes, *, name: str) -> Header:
    """Return kind and size of an encoded picture, having seen that it is complete."""
    if not data:
        raise PictureError(f"{name}: empty file: copy it again from the camera")
    for magic, read in _READERS:
        if magic.match(data):
            try:
                return read(data, name)
            except (struct.error, IndexError) as error:
                raise PictureError(f"{name}: {_TRUNCATED}") from error
    raise PictureError(f"{name}: no PNG, JPEG, BMP, TIFF or WebP: convert it to one of these")


def _read_png(data: bytes, name: str) -> Header:
    length, kind, width, height = struct.unpack_from(">I4sII", data, 8)
    if kind != b"IHDR" or length != 13:  # noqa: PLR2004  # fixed by the PNG specification
        raise PictureError(f"{name}: PNG without its header: save it anew")
    at = 8
    view = memoryview(data)
    while True:
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        if end > len(data):
            raise PictureError(f"{name}: {_TRUNCATED}")
        (checksum,) = struct.unpack_from(">I", data, end - 4)
        if zlib.crc32(view[at + 4 : end - 4]) != checksum:
            raise PictureError(f"{name}: damaged PNG (checksum): copy it again from the camera")
        if kind == b"acTL":
            raise PictureError(f"{name}: an animation is no picture of a part: save one frame")
        if kind == b"IEND":
            return Header(kind="PNG", width=width, height=height)
        at = end


_JPEG_LEAD: Final = 0xFF
_JPEG_END: Final = 0xD9
_JPEG_SCAN: Final = 0xDA
_JPEG_FRAMES: Final = frozenset({0xC0, 0xC1, 0xC2})
_JPEG_UNUSUAL: Final = frozenset(range(0xC3, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_ALONE: Final = frozenset({0x01, *range(0xD0, 0xD9)})
# Begins with one byte that is always the same, and is found many times faster for it.
_JPEG_MARKER: Final = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]", re.DOTALL)


def _read_jpeg(data: bytes, name: str) -> Header:
    header: Header | None = None
    scans = 0
    for marker, at in _jpeg_segments(data, name):
        if marker in _JPEG_UNUSUAL:
            raise PictureError(f"{name}: lossless or arithmetic JPEG: save it as baseline")
        if marker in _JPEG_FRAMES:
            _, height, width, _ = struct.unpack_from(">BHHB", data, at + 2)
            if header is not None:
                raise PictureError(f"{name}: JPEG with two headers: save it anew")
            header = Header(kind="JPEG", width=width, height=height)
        scans += marker == _JPEG_SCAN
    if header is None or not scans:
        raise PictureError(f"{name}: JPEG without a picture: save it anew")
    return header


def _jpeg_segments(data: bytes, name: str) -> Iterator[tuple[int, int]]:
    """Yield marker and place of each segment, up to an end mark that must be there.

    A thumbnail has an end mark of its own, but lies inside a segment and is stepped over.
    """
    at = 2
    while True:
        lead, marker = data[at], data[at + 1]
        if lead != _JPEG_LEAD:
            raise PictureError(f"{name}: damaged JPEG: copy it again from the camera")
        if marker == _JPEG_LEAD:  # Any number of these may fill the space before a marker.
            at += 1
            continue
        if marker == _JPEG_END:
            return
        at += 2
        if marker in _JPEG_ALONE:
            continue
        yield marker, at
        (length,) = struct.unpack_from(">H", data, at)
        at += length
        if marker == _JPEG_SCAN:  # Coded data follow, up to the next marker.
            after = _JPEG_MARKER.search(data, at)
            if after is None:
                raise PictureError(f"{name}: {_TRUNCATED}")
            at = after.end() - 2


def _read_bmp(data: bytes, name: str) -> Header:
    offset, size, width, height = struct.unpack_from("<IIii", data, 10)
    info_header = 40
    if size < info_header:
        raise PictureError(f"{name}: BMP of an old kind: save it anew")
    bits, compression = struct.unpack_from("<HI", data, 28)
    height = abs(height)
    row = (width * bits + 31) // 32 * 4
    bit_fields = 3
    if compression in (0, bit_fields) and offset + row * height > len(data):
        raise PictureError(f"{name}: {_TRUNCATED}")
    if compression not in (0, bit_fields):
        raise PictureError(f"{name}: compressed BMP: save it as PNG")
    return Header(kind="BMP", width=width, height=height)


_TIFF_TYPES: Final = {1: "B", 3: "H", 4: "I"}


def _read_tiff(data: bytes, name: str) -> Header:
    order = "<" if data[:2] == b"II" else ">"
    (at,) = struct.unpack_from(order + "I", data, 4)
    (count,) = struct.unpack_from(order + "H", data, at)
    tags: dict[int, tuple[int, ...]] = {}
    for entry in range(at + 2, at + 2 + 12 * count, 12):
        tag, kind, number = struct.unpack_from(order + "HHI", data, entry)
        if kind not in _TIFF_TYPES:
            continue
        code = f"{order}{number}{_TIFF_TYPES[kind]}"
        where = entry + 8
        inline = 4
        if struct.calcsize(code) > inline:
            (where,) = struct.unpack_from(order + "I", data, entry + 8)
        tags[tag] = struct.unpack_from(code, data, where)
    width, height = tags.get(256, (0,))[0], tags.get(257, (0,))[0]
    samples = tags.get(277, (1,))[0]
    bits = max(tags.get(258, (1,)))
    if samples not in (1, 3, 4) or bits not in (8, 16):
        raise PictureError(f"{name}: TIFF of {samples} channels, {bits} bits: save it as PNG")
    starts = tags.get(273, tags.get(324, ()))
    lengths = tags.get(279, tags.get(325, ()))
    if not starts or len(starts) != len(lengths):
        raise PictureError(f"{name}: TIFF without a picture: save it anew")
    if any(start + length > len(data) for start, length in zip(starts, lengths, strict=True)):
        raise PictureError(f"{name}: {_TRUNCATED}")
    return Header(kind="TIFF", width=width, height=height)


def _read_webp(data: bytes, name: str) -> Header:
    (size,) = struct.unpack_from("<I", data, 4)
    if size + 8 > len(data):
        raise PictureError(f"{name}: {_TRUNCATED}")
    chunk = data[12:16]
    if chunk == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return Header(kind="WebP", width=width & 0x3FFF, height=height & 0x3FFF)
    if chunk == b"VP8L":
        (packed,) = struct.unpack_from("<I", data, 21)
        return Header(kind="WebP", width=(packed & 0x3FFF) + 1, height=(packed >> 14 & 0x3FFF) + 1)
    animated = 0x02
    if data[20] & animated:
        raise PictureError(f"{name}: an animation is no picture of a part: save one frame")
    width = int.from_bytes(data[24:27], "little") + 1
    height = int.from_bytes(data[27:30], "little") + 1
    return Header(kind="WebP", width=width, height=height)


_READERS: Final[tuple[tuple[re.Pattern[bytes], Callable[[bytes, str], Header]], ...]] = (
    (re.compile(rb"\x89PNG\r\n\x1a\n"), _read_png),
    (re.compile(rb"\xff\xd8\xff"), _read_jpeg),
    (re.compile(rb"BM"), _read_bmp),
    (re.compile(rb"II\*\x00|MM\x00\*"), _read_tiff),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), _read_webp),
)
