"""Pictures of a folder as parts."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from qcnode.cameras.folder import FolderCamera, FolderPictures, truth_of
from qcnode.errors import CameraError
from tests.fakes import FakeClock, make_ids, make_trigger


@pytest.fixture
def folder(tmp_path):
    for name in (
        "test/good/b.png",
        "test/good/a.jpg",
        "test/scratch/a.PNG",
        "ground_truth/scratch/a_mask.png",
        "train_ground_truth/scratch/a_mask.png",
        "test/good/.hidden.png",
        ".cache/c.png",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), np.full((16, 16, 3), (250, 10, 10), np.uint8))  # blue, as BGR
    (tmp_path / "test" / "readme.txt").write_text("no picture")
    return tmp_path


def make_camera(pictures):
    return FolderCamera(pictures, name="folder", now=FakeClock().now, new_id=make_ids())


def test_pictures_come_once_each_in_order_and_then_the_folder_is_exhausted(folder):
    pictures = FolderPictures(folder)
    camera = make_camera(pictures)
    frames = [camera.grab(make_trigger(seq)) for seq in (1, 2, 3)]

    assert [frame.name for frame in frames] == [
        "test/good/a.jpg",
        "test/good/b.png",
        "test/scratch/a.PNG",
    ]
    assert [pictures.part(seq) for seq in (1, 2, 3, 4)] == [
        ("P0000001", "good"),
        ("P0000002", "good"),
        ("P0000003", "scratch"),
        None,
    ]
    with pytest.raises(CameraError, match="exhausted"):
        camera.grab(make_trigger(4))


def test_the_files_own_bytes_travel_with_the_frame(folder):
    frame = make_camera(FolderPictures(folder)).grab(make_trigger(2))

    assert frame.encoded == (folder / "test/good/b.png").read_bytes()
    assert frame.pixels[0, 0].tolist() == [10, 10, 250]  # blue, as RGB


def test_a_trigger_nobody_looked_at_takes_its_picture_with_it(folder):
    camera = make_camera(FolderPictures(folder, first_seq=101))
    camera.grab(make_trigger(101))

    assert camera.grab(make_trigger(103)).name == "test/scratch/a.PNG"
    with pytest.raises(CameraError):
        camera.grab(make_trigger(100))


def test_a_shuffle_depends_on_its_seed_alone(folder):
    def order(seed):
        pictures = FolderPictures(folder, shuffle_seed=seed)
        return [pictures.path(seq) for seq in (1, 2, 3)]

    assert order(4) == order(4)
    assert sorted(order(4)) == order(None)
    assert any(order(seed) != order(None) for seed in range(8))


def test_a_picture_that_cannot_be_read_is_named_and_the_next_one_comes(folder):
    broken = folder / "test/good/a.jpg"
    broken.write_bytes(broken.read_bytes()[:100])
    camera = make_camera(FolderPictures(folder))

    with pytest.raises(CameraError, match=r"good/a\.jpg"):
        camera.grab(make_trigger(1))
    assert camera.grab(make_trigger(2)).name == "test/good/b.png"


def test_a_picture_that_went_away_is_a_camera_error(folder):
    camera = make_camera(FolderPictures(folder))
    (folder / "test/good/a.jpg").unlink()

    with pytest.raises(CameraError, match=r"a\.jpg"):
        camera.grab(make_trigger(1))


@pytest.mark.parametrize("name", ["missing", "empty"])
def test_a_folder_without_pictures_is_refused_with_its_name(tmp_path, name):
    (tmp_path / "empty").mkdir()

    with pytest.raises(CameraError, match=name):
        FolderPictures(tmp_path / name)


@pytest.mark.parametrize(
    ("path", "truth"),
    [
        ("set/test/good/1.png", "good"),
        ("set/train/crack/1.png", "crack"),
        ("elsewhere/good/1.png", "good"),
        ("set/ambiguous/p033/1.png", None),
        ("incoming/1.png", None),
    ],
)
def test_truth_is_what_the_folder_says_and_no_guess(path, truth):
    assert truth_of(Path(path)) == truth
