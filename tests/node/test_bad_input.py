"""What people get wrong, typed as they type it: one line that names the input and the fix."""

import csv
import json
import re
import shutil
import struct
import zlib

import pytest

PROGRESS = re.compile(r"[\w :]+: \d+")


def png(width, height, *, bits, colour, rows):
    """Return a PNG file; `rows` are its filtered rows."""

    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)),
            chunk(b"IDAT", zlib.compress(rows, 9)),
            chunk(b"IEND", b""),
        ]
    )


def tiff(channels):
    """Return a TIFF file of 8 by 8 pixels with so many channels."""
    pixels = bytes(8 * 8 * channels)
    tags = [(256, 8), (257, 8), (258, 8), (259, 1), (262, 1), (273, 8), (277, channels)]
    tags += [(278, 8), (279, len(pixels))]
    directory = struct.pack("<H", len(tags))
    directory += b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<I", 8 + len(pixels)) + pixels + directory + bytes(4)


HUGE = png(20_000, 20_000, bits=1, colour=0, rows=bytes(2_501 * 20_000))
"""400 megapixels in some 48 KB."""


@pytest.fixture(scope="module")
def world(rendered_data, doubtful_model, tmp_path_factory):
    """A folder with everything that can be wrong in it."""
    world = tmp_path_factory.mktemp("world")
    (world / "empty").mkdir()
    for name, where, spoil in (
        ("cut", "train/good/007.png", lambda path: path.write_bytes(path.read_bytes()[:2_000])),
        ("text", "train/good/007.png", lambda path: path.write_text("no picture")),
        ("folder", "train/good/007.png", lambda path: (path.unlink(), path.mkdir())),
        ("channels", "train/good/007.png", lambda path: path.write_bytes(tiff(2))),
        ("cut-test", "test/good/003.png", lambda path: path.write_bytes(path.read_bytes()[:2_000])),
    ):
        spoil(shutil.copytree(rendered_data, world / name) / where)
    shutil.copytree(rendered_data / "test", world / "no-train" / "test")
    shutil.copytree(rendered_data / "train", world / "no-test" / "train")
    shutil.copytree(rendered_data / "train" / "good", world / "few" / "train" / "good")
    for path in sorted((world / "few" / "train" / "good").iterdir())[3:]:
        path.unlink()

    release = shutil.copytree(doubtful_model, world / "changed-model")
    (release / "golden" / "0.png").write_bytes(b"something else")
    release = shutil.copytree(doubtful_model, world / "broken-manifest")
    (release / "manifest.json").write_text("{")
    (world / "unknown-key.toml").write_text("[panel]\n\nprot = 1\n")
    (world / "wrong-unit.toml").write_text('[agent]\nruling_timeout_s = "5 min"\n')
    return world


@pytest.fixture
def typed(qcnode, world, rendered_data, doubtful_model, tmp_path):
    """Type a command line in which names in braces stand for folders."""
    places = {"w": world, "data": rendered_data, "model": doubtful_model, "out": tmp_path / "out"}
    return lambda line: qcnode(*(word.format(**places) for word in line.split()))


@pytest.mark.parametrize(
    ("line", "named", "fix"),
    [
        ("teach {w}/none --out {out}", "/none", "name a data set"),
        ("teach {w}/empty --out {out}", "/empty", "train/good"),
        ("teach {w}/no-train --out {out}", "/no-train", "train/good"),
        ("teach {w}/few --out {out}", "/few", "add"),
        ("teach {w}/cut --out {out}", "cut/train/good/007.png", "copy it again"),
        ("teach {w}/text --out {out}", "text/train/good/007.png", "convert it"),
        ("teach {w}/folder --out {out}", "folder/train/good/007.png", "name a picture"),
        ("teach {w}/channels --out {out}", "channels/train/good/007.png", "2 channels"),
        ("teach {data} --out {out} --alpha 2", "alpha", "between 0 and 1"),
        ("teach {data} --out {w}/cut", "/cut", "another"),
        ("evaluate {w}/none {data}", "/none/manifest.json", "qcnode teach"),
        ("evaluate {w}/changed-model {data}", "golden/0.png", "teach or fetch it anew"),
        ("evaluate {w}/broken-manifest {data}", "manifest.json", "fetch it anew"),
        ("evaluate {model} {w}/none", "/none", "name a data set"),
        ("evaluate {model} {w}/no-test", "/no-test", "put test parts there"),
        ("evaluate {model} {w}/cut-test", "cut-test/test/good/003.png", "copy it again"),
        ("inspect {w}/empty --model {model}", "/empty", "name one that holds some"),
        ("inspect {w}/none.png --model {model}", "/none.png", "check the path"),
        ("inspect {data}/test --model {w}/none", "/none/manifest.json", "qcnode teach"),
        ("inspect {data}/test --model {w}/changed-model", "golden/0.png", "fetch it anew"),
        ("run --config {w}/none.toml", "/none.toml", "qcnode init"),
        ("run --config {w}/unknown-key.toml", "line 3: unknown key panel.prot", "mean port?"),
        ("run --config {w}/wrong-unit.toml", "line 2: agent.ruling_timeout_s = '5 min'", "number"),
        ("ledger verify --home {w}/empty", "empty/ledger.db", ""),
        ("billing totals --url sqlite:///{w}/none.db", "/none.db", "qcnode billing serve"),
        ("billing totals --url nonsense", "database address", "sqlite:///"),
        ("demo --broker nonsense --home {out}", "--broker nonsense", "HOST:PORT"),
    ],
)
def test_wrong_input_is_one_line_that_names_it(typed, line, named, fix):
    done = typed(line)

    *progress, said = done.err.splitlines()
    assert done.code == 2, done.err
    assert all(PROGRESS.fullmatch(line) for line in progress), done.err
    assert said.startswith("qcnode")
    assert named in said
    assert fix in said


def test_inspect_judges_what_it_can_and_says_what_is_wrong_with_the_rest(
    qcnode, rendered_data, doubtful_model, tmp_path
):
    folder = tmp_path / "in"
    folder.mkdir()
    good = sorted((rendered_data / "test" / "good").iterdir())[:4]
    for path in good:
        shutil.copy(path, folder / path.name)
    bad = {
        "huge.png": (HUGE, "400 megapixels"),
        "cut.png": (good[0].read_bytes()[:2_000], "ends too early"),
        "empty.png": (b"", "empty file"),
        "text.png": (b"no picture", "no PNG"),
        "channels.tif": (tiff(2), "2 channels"),
        "small.png": (png(8, 8, bits=8, colour=2, rows=bytes(25 * 8)), "8x8 pixels"),
        "grey.png": (png(8, 8, bits=8, colour=0, rows=bytes(9 * 8)), "8x8 pixels"),
    }
    for name, (data, _words) in bad.items():
        (folder / name).write_bytes(data)
    assert len(HUGE) < 50_000

    table = tmp_path / "out.csv"
    done = qcnode("inspect", folder, "--model", doubtful_model, "--csv", table, "--json")

    assert done.code == 0
    shown = json.loads(done.out)
    assert shown["n"] == len(good) + len(bad)
    assert shown["verdicts"]["UNDEFINED"] == len(bad)
    rows = csv.DictReader(table.read_text().splitlines())
    verdicts = {row["path"]: row["verdict"] for row in rows}
    said = done.err.splitlines()
    assert len(said) == len(bad)
    for name, (_data, words) in bad.items():
        path = str(folder / name)
        assert verdicts[path] == "UNDEFINED"
        assert [line for line in said if path in line and words in line], (name, done.err)
    assert all(verdicts[str(folder / path.name)] != "UNDEFINED" for path in good)
