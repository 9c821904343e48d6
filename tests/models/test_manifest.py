from __future__ import annotations

import json
import os
import shutil

import pytest

from qcnode.errors import ManifestError
from qcnode.manifest import FILE_NAME, dump_manifest, load_manifest, read_verified


@pytest.fixture
def release(plate_release, tmp_path):
    return shutil.copytree(plate_release, tmp_path / "release")


def edit(release, change):
    path = release / FILE_NAME
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def test_a_manifest_says_what_was_promised_and_comes_back_as_written(release):
    manifest = load_manifest(release)

    assert manifest.family == "gaussian"
    assert manifest.labels == ("good", "scratch")
    assert (manifest.input.height, manifest.input.width) == (64, 96)
    assert manifest.taught_from.taught == manifest.taught_from.calibrated <= 60
    assert manifest.reject_from.alpha == 0.05
    assert [trial.family for trial in manifest.trials] == ["gaussian"]
    assert len(manifest.good_scores) == manifest.taught_from.calibrated
    assert manifest.version.startswith("plates@")
    assert dump_manifest(manifest) == (release / FILE_NAME).read_bytes()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m.update(extra=1), "extra"),
        (lambda m: m.pop("family"), "family"),
        (lambda m: m["reject_from"].update(alfa=0.05), "reject_from.alfa"),
        (lambda m: m["reject_from"].update(value="1.5"), "reject_from.value"),
        (lambda m: m.update(schema_version=1), "schema_version: Input should be 2: teach"),
        (lambda m: m.update(created_at="2026-11-22T06:00:00"), "offset from UTC"),
        (lambda m: m.update(model="other.onnx"), "other.onnx is not among the files"),
        (lambda m: m["files"].append({**m["files"][0]}), "listed twice"),
        (lambda m: m["files"][0].update(path="../../etc/passwd"), "inside the release|among"),
        (lambda m: m["files"][0].update(path="/etc/passwd"), "inside the release|among"),
    ],
)
def test_a_manifest_not_understood_in_full_is_refused_in_one_line(release, change, words):
    edit(release, change)
    with pytest.raises(ManifestError, match=words) as caught:
        load_manifest(release)
    assert str(caught.value).startswith(str(release / FILE_NAME))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"name": 1, "name": 2}', '{"n": NaN}', "\0\xff"])
def test_what_is_no_manifest_is_refused(release, text):
    (release / FILE_NAME).write_text(text, encoding="latin-1")
    with pytest.raises(ManifestError, match=r"manifest\.json"):
        load_manifest(release)


def test_a_changed_file_is_named(release):
    model = release / "model.onnx"
    data = bytearray(model.read_bytes())
    data[1000] ^= 1
    model.write_bytes(data)
    with pytest.raises(ManifestError, match=r"model\.onnx: digest does not match"):
        read_verified(release, load_manifest(release))


def test_a_shortened_a_longer_and_a_missing_file_are_named(release):
    manifest = load_manifest(release)
    golden = release / "golden" / "0.png"
    data = golden.read_bytes()
    for content in (data[:-1], data + b"x"):
        golden.write_bytes(content)
        with pytest.raises(ManifestError, match=r"golden/0\.png"):
            read_verified(release, manifest)
    golden.unlink()
    with pytest.raises(ManifestError, match=r"golden/0\.png: cannot be read"):
        read_verified(release, manifest)


def test_links_are_refused_even_to_the_right_bytes(release, tmp_path):
    manifest = load_manifest(release)
    model = release / "model.onnx"
    elsewhere = tmp_path / "model.onnx"
    model.rename(elsewhere)

    model.symlink_to(elsewhere)
    with pytest.raises(ManifestError, match="a link"):
        read_verified(release, manifest)
    model.unlink()

    os.link(elsewhere, model)
    with pytest.raises(ManifestError, match="file of its own"):
        read_verified(release, manifest)
    model.unlink()

    os.mkfifo(model)
    with pytest.raises(ManifestError, match="file of its own"):
        read_verified(release, manifest)


def test_a_linked_folder_inside_the_release_is_refused(release, tmp_path):
    manifest = load_manifest(release)
    (release / "golden").rename(tmp_path / "golden")
    (release / "golden").symlink_to(tmp_path / "golden")
    with pytest.raises(ManifestError, match="golden: a link"):
        read_verified(release, manifest)
