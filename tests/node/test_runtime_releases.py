"""Models of a running node: taken in, signed for, tried out, put in service and sent back."""

import json
import shutil
import threading
import time
from collections import deque
from datetime import UTC, datetime

import numpy as np
import pytest

from qcnode.books.seals import SigningKey
from qcnode.domain import Frame
from qcnode.errors import ManifestError, ModelError, QcError
from qcnode.health import HealthBoard
from qcnode.manifest import FILE_NAME, SEAL_NAME
from qcnode.runtime.changes import ASK_NAME, COMPONENT, STATUS_NAME, Ask, ModelChanges, ask
from qcnode.runtime.onnx import OnnxModel
from qcnode.runtime.releases import IN_SERVICE, LOG_NAME, Releases
from qcnode.runtime.slot import Slot
from qcnode.runtime.swap import ChangeRule
from tests.faults.test_hostile_models import function_chain, vouch
from tests.variants import draw, make_release

NOW = datetime(2026, 11, 22, tzinfo=UTC)
# What a machine busy with other tests takes for a picture is no reason here.
RULE = ChangeRule(
    shadow_parts=12, canary_share=0.5, canary_parts=6, watched_parts=12, slower_most=1e9
)
WAIT_S = 60.0


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    """The model in service, one that judges alike, and one that passes everything."""
    folder = tmp_path_factory.mktemp("family")
    return {
        "first": make_release(folder / "first", tag="first", number=3),
        "like": make_release(folder / "like", tag="like", number=4),
        "older": make_release(folder / "older", tag="older", number=2),
        "blind": make_release(folder / "blind", tag="blind", number=5, factor=-1.0),
    }


@pytest.fixture(scope="module")
def pictures():
    return [
        (f"p{number}", draw(brightness, seed=number))
        for number, brightness in enumerate([0.1, 0.2, 0.15, 0.9, 0.8, 0.5] * 3)
    ]


class Node:
    """What of a node has to do with models, over one home."""

    def __init__(self, home, configured, pictures, *, trusted=(), rule=RULE):
        self.home = home / "models"
        self.pictures = pictures
        self.health = HealthBoard(lambda: NOW)
        self.releases = Releases(self.home, trusted=trusted, load=OnnxModel, now=lambda: NOW)
        self.kept, self.model = self.releases.first(configured)
        steps = deque(maxlen=100)
        coin = np.random.default_rng(1)
        self.slot = Slot(
            self.model,
            rule=rule,
            coin=lambda: float(coin.random()),
            clock_ns=time.monotonic_ns,
            cpu_ns=time.thread_time_ns,
            tell=steps.append,
        )
        self.took_over = []
        self.changes = ModelChanges(
            self.home,
            releases=self.releases,
            slot=self.slot,
            current=(self.kept, self.model),
            health=self.health,
            now=lambda: NOW,
            steps=steps,
            took_over=self.took_over.append,
            patience_s=2.0,
        )
        self.judged = []

    def part(self):
        name, pixels = self.pictures[len(self.judged) % len(self.pictures)]
        frame = Frame(
            id=name, part_id=name, camera="test", name=name, captured_at=NOW, pixels=pixels
        )
        self.judged.append(self.slot.predict(frame))

    def load(self, folder, **how):
        """Ask for a model and let parts pass until the change is over; say how it ended."""
        ask(self.home, Ask(do="load", folder=str(folder), who="anna", **how))
        taken_in = threading.Thread(target=self.changes.look)
        taken_in.start()
        # As on a line, there is time between parts, and others have use for it.
        while taken_in.is_alive():
            self.part()
            taken_in.join(0.02)
        deadline = time.monotonic() + WAIT_S
        while (before := self.slot.progress()) is not None and time.monotonic() < deadline:
            self.part()
            until = time.monotonic() + 0.1
            while self.slot.progress() == before and time.monotonic() < until:
                time.sleep(0.001)
        self.changes.look()
        return self.said()

    def said(self):
        return next((one for one in self.health.all() if one.component == COMPONENT), None)

    def history(self):
        return [step["what"] for step in self.releases.steps()]


def test_a_model_goes_the_whole_way_and_is_there_after_a_restart(family, pictures, tmp_path):
    node = Node(tmp_path, family["first"], pictures)
    said = node.load(family["like"])

    assert said.ok, said.words
    assert node.slot.version == OnnxModel(family["like"]).version != node.model.version
    assert node.history() == [
        "tried out",
        IN_SERVICE,
        "tried out",
        "asked for",
        "shadow",
        "canary",
        "watched",
        IN_SERVICE,
    ]
    assert [model.version for model in node.took_over] == [node.slot.version] * 2
    assert {one.model for one in node.judged} == {node.model.version, node.slot.version}

    shutil.rmtree(node.kept.folder)  # It was the other one's.
    again = Node(tmp_path, family["first"], pictures)
    assert again.model.version == node.slot.version


def test_a_model_that_passes_what_the_old_one_rejects_is_stopped_by_the_old_golden_frames(
    family, pictures, tmp_path
):
    node = Node(tmp_path, family["first"], pictures)
    said = node.load(family["blind"])

    assert not said.ok
    assert "which is labelled" in said.words
    assert node.slot.version == node.model.version
    assert "shadow" not in node.history()


def test_a_hostile_model_is_refused_while_the_old_one_serves(family, pictures, tmp_path):
    hostile = shutil.copytree(family["like"], tmp_path / "hostile")
    vouch(hostile, function_chain())
    node = Node(tmp_path / "home", family["first"], pictures)
    said = node.load(hostile)

    assert not said.ok
    assert "not let in" in said.words or "does not run" in said.words
    before = len(node.judged)
    assert before > 0  # Parts were judged all the while.
    node.part()
    assert node.judged[-1].model == node.model.version


def test_an_older_release_is_refused_and_taken_when_a_person_allows_it(family, pictures, tmp_path):
    node = Node(tmp_path, family["first"], pictures)
    said = node.load(family["older"])
    assert "release 2 of " in said.words
    assert "--allow-older" in said.words
    assert node.slot.version == node.model.version

    said = node.load(family["older"], older=True)
    assert said.ok, said.words
    allowed = next(one for one in node.releases.steps() if one["what"] == "older release allowed")
    assert allowed["words"] == "by anna"
    assert node.releases.newest(node.kept.name) == 3


def test_an_older_release_in_the_settings_does_not_replace_the_newer_one(
    family, pictures, tmp_path
):
    node = Node(tmp_path, family["first"], pictures)
    assert Node(tmp_path, family["older"], pictures).model.version == node.model.version


def test_settings_with_a_newer_release_win_over_what_was_in_service(family, pictures, tmp_path):
    Node(tmp_path, family["first"], pictures)
    like = OnnxModel(family["like"]).version
    assert Node(tmp_path, family["like"], pictures).model.version == like


def test_a_rollback_puts_the_model_before_in_service_at_once(family, pictures, tmp_path):
    node = Node(tmp_path, family["first"], pictures)
    first = node.model.version
    assert node.load(family["like"]).ok
    ask(node.home, Ask(do="rollback", who="anna"))
    node.changes.look()
    node.changes.look()
    node.part()

    assert node.judged[-1].model == first
    assert node.history()[-2:] == ["rolled back", IN_SERVICE]
    assert Node(tmp_path, family["first"], pictures).model.version == first


def test_only_what_a_trusted_key_signed_is_taken(family, pictures, tmp_path, qcnode):
    release = shutil.copytree(family["first"], tmp_path / "signed")
    trusted = SigningKey.open(tmp_path / "quality.pem", name="acme/quality").public
    other = tmp_path / "other.pem"

    with pytest.raises(ManifestError, match="no signature of acme/quality"):
        Node(tmp_path / "home", release, pictures, trusted=[trusted])
    said = qcnode("model", "sign", release, "--key", other, "--name", "acme/quality")
    assert said.code == 0
    with pytest.raises(ManifestError, match="no signature of acme/quality"):
        Node(tmp_path / "home", release, pictures, trusted=[trusted])

    said = qcnode(
        "model", "sign", release, "--key", tmp_path / "quality.pem", "--name", "acme/quality",
        "--release", "7",
    )  # fmt: skip
    assert str(trusted) in said.out
    assert json.loads((release / FILE_NAME).read_text())["release"] == 7
    node = Node(tmp_path / "home", release, pictures, trusted=[trusted])
    assert node.kept.release == 7

    # A byte of the manifest, and so of any file, and the signature is no longer its own.
    text = (release / FILE_NAME).read_text()
    (release / FILE_NAME).write_text(text.replace('"release": 7', '"release": 8', 1))
    with pytest.raises(ManifestError, match="no signature of acme/quality"):
        node.releases.keep(release)
    (release / FILE_NAME).write_text(text)
    (release / SEAL_NAME).unlink()
    with pytest.raises(ManifestError, match="no signature of acme/quality"):
        node.releases.keep(release)


def test_a_log_cut_off_by_a_crash_is_read_as_far_as_it_is_whole(family, pictures, tmp_path):
    node = Node(tmp_path, family["first"], pictures)
    path = node.home / LOG_NAME
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"at": "2026-11-22')
    assert Node(tmp_path, family["first"], pictures).history() == node.history()
    assert path.read_bytes() == whole

    path.write_bytes(b"not a log\n")
    with pytest.raises(ModelError, match=r"log\.jsonl, line 1: unreadable"):
        Node(tmp_path, family["first"], pictures)


@pytest.mark.parametrize(
    "wish",
    [b"", b"{", b'{"do": "format"}', b'{"do": "load", "who": 3}', b"[1]" * 9_000, b"\xff\xfe"],
)
def test_a_wish_that_is_none_is_refused_and_gone(family, pictures, tmp_path, wish):
    node = Node(tmp_path, family["first"], pictures)
    (node.home / ASK_NAME).write_bytes(wish)
    node.changes.look()
    assert not node.said().ok
    assert not (node.home / ASK_NAME).exists()


def test_what_is_no_file_is_left_and_said_and_the_line_goes_on(family, pictures, tmp_path):
    node = Node(tmp_path, family["first"], pictures)
    (node.home / ASK_NAME).mkdir()
    node.changes.look()
    assert "remove it" in node.said().words
    node.part()
    (node.home / ASK_NAME).rmdir()
    assert node.load(family["like"]).ok


def test_a_second_wish_does_not_overwrite_the_first(tmp_path):
    ask(tmp_path, Ask(do="rollback", who="anna"))
    with pytest.raises(ModelError, match="another wish waits"):
        ask(tmp_path, Ask(do="rollback", who="ben"))


def test_the_thread_takes_a_wish_and_says_in_a_file_how_it_goes(family, pictures, tmp_path):
    node = Node(tmp_path, family["first"], pictures)
    node.changes.start()
    ask(node.home, Ask(do="load", folder=str(tmp_path / "nowhere"), who="anna"))
    deadline = time.monotonic() + WAIT_S
    status = {"last": None}
    while status["last"] is None and time.monotonic() < deadline:
        time.sleep(0.02)
        if (node.home / STATUS_NAME).exists():
            status = json.loads((node.home / STATUS_NAME).read_text())
    node.changes.stop()

    assert node.changes.join(10)
    assert "nowhere" in status["last"]["words"]
    assert status["in_service"] == node.model.version


def test_copies_do_not_pile_up(family, pictures, tmp_path):
    node = Node(tmp_path, family["first"], pictures)
    for number in range(4, 7):
        release = make_release(tmp_path / f"v{number}", tag=f"v{number}", number=number)
        assert node.load(release).ok
    assert len([path for path in node.home.iterdir() if path.is_dir()]) == 3


def test_a_node_whose_model_was_never_any_good_does_not_start(tmp_path, pictures):
    with pytest.raises(QcError, match="nowhere"):
        Node(tmp_path, tmp_path / "nowhere", pictures)
