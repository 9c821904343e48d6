"""What becomes of every trigger, whatever else happens."""

import hashlib
import threading
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcnode.domain import Action, FaultKind, Limits, Verdict
from qcnode.health import HealthBoard
from qcnode.station import Station
from tests.fakes import FakeCamera, FakeClock, FakeJournal, FakeLine, FakeModel, make_ids

LIMITS = Limits(accept_below=0.2, reject_from=0.8)


class World:
    """A station and all it meets; what a test does not bring is well."""

    def __init__(self, *, parts=1, failsafe=Action.DIVERT, journal=None, model=None, **line):
        self.clock = FakeClock()
        self.camera = FakeCamera(self.clock)
        self.model = model or FakeModel()
        self.line = FakeLine(self.clock, parts=parts, **line)
        self.journal = journal or FakeJournal()
        self.health = HealthBoard(self.clock.now)
        self.stopped = False
        self.station = Station(
            camera=self.camera,
            model=self.model,
            limits=LIMITS,
            failsafe=failsafe,
            line=self.line,
            journal=self.journal,
            health=self.health,
            now=self.clock.now,
            new_id=make_ids(f"rec{id(self)}-"),
            clock_ns=self.clock.ns,
            stopped=lambda: self.stopped,
        )

    def run(self):
        self.station.run()
        return self

    def told(self, component):
        return next(health for health in self.health.all() if health.component == component)


@pytest.mark.parametrize(
    ("score", "verdict", "action"),
    [
        (0.1, Verdict.OK, Action.ACCEPT),
        (0.2, Verdict.NOT_DECIDABLE, Action.DIVERT),
        (0.8, Verdict.NOT_OK, Action.REJECT),
    ],
)
def test_a_part_gets_the_action_of_its_verdict_and_both_are_recorded(score, verdict, action):
    world = World(model=FakeModel([score])).run()

    (inspection,) = world.journal.inspections()
    assert (inspection.verdict, inspection.action, inspection.score) == (verdict, action, score)
    assert world.line.met == {1: action}
    (passage,) = world.journal.passages()
    assert (passage.trigger_seq, passage.action, passage.commanded) == (1, action, True)


@pytest.mark.parametrize("failsafe", [Action.DIVERT, Action.REJECT])
def test_a_part_nobody_saw_goes_the_way_chosen_beforehand(failsafe):
    world = World(failsafe=failsafe)
    world.camera.blind = {1}
    world.run()

    (inspection,) = world.journal.inspections()
    assert inspection.verdict is Verdict.UNDEFINED
    assert inspection.reason == "camera fake: no picture: plug it in"
    assert world.line.met == {1: failsafe}
    assert not world.told("camera").ok


@pytest.mark.parametrize("failsafe", [Action.DIVERT, Action.REJECT])
@pytest.mark.parametrize("score", [0.1, 0.5, 0.9])
def test_a_stopped_line_lets_every_part_go_the_safe_way_and_says_what_it_saw(failsafe, score):
    world = World(failsafe=failsafe, model=FakeModel([score]))
    world.stopped = True
    world.run()

    (inspection,) = world.journal.inspections()
    assert inspection.verdict is not Verdict.UNDEFINED
    assert inspection.reason == "the kill switch is set for this line"
    assert world.line.met == {1: failsafe}
    # Whoever rules on it sees it.
    assert inspection.id in world.journal.evidence


def test_a_camera_that_is_back_is_well_again():
    world = World(parts=3)
    world.camera.blind = {1, 2}
    world.run()

    assert world.told("camera").ok
    assert [i.verdict for i in world.journal.inspections()] == [
        Verdict.UNDEFINED,
        Verdict.UNDEFINED,
        Verdict.OK,
    ]


def test_a_picture_of_another_part_is_no_evidence():
    world = World()
    world.camera.mixes_up = {1}
    world.run()

    (inspection,) = world.journal.inspections()
    assert inspection.verdict is Verdict.UNDEFINED
    assert "of part another, not of P0000001" in inspection.reason


def test_a_model_without_an_answer_passes_nothing_and_its_picture_is_kept():
    world = World(model=FakeModel([None])).run()

    (inspection,) = world.journal.inspections()
    assert (inspection.verdict, inspection.score) == (Verdict.UNDEFINED, None)
    assert inspection.model == "fake@0"
    evidence = world.journal.evidence[inspection.id]
    assert (evidence.frame.part_id, evidence.heat) == ("P0000001", None)
    assert not world.told("model").ok


def test_evidence_is_kept_of_every_part_that_is_not_simply_good():
    world = World(parts=3, model=FakeModel([0.1, 0.5, 0.9])).run()

    _, undecided, rejected = world.journal.inspections()
    assert set(world.journal.evidence) == {undecided.id, rejected.id}
    assert world.journal.evidence[undecided.id].heat[0, 0] == pytest.approx(0.5)


def test_the_cameras_own_bytes_are_what_the_record_vouches_for():
    world = World(parts=1)
    world.camera._encoded = b"jpeg"
    world.run()

    (inspection,) = world.journal.inspections()
    assert inspection.picture_sha256 == hashlib.sha256(b"jpeg").hexdigest()
    assert inspection.picture == "fake/P0000001"


def test_an_action_that_came_too_late_is_a_fault_and_no_inspection():
    world = World(late={1}, model=FakeModel([0.9])).run()

    assert world.journal.inspections() == []
    (fault,) = world.journal.faults()
    assert (fault.kind, fault.late_verdict) == (FaultKind.LATE, Verdict.NOT_OK)
    assert world.line.met == {1: Action.DIVERT}


def test_a_part_past_its_deadline_is_not_even_looked_at():
    world = World(parts=3, overdue={2, 3}).run()

    assert world.camera.asked == [1]
    assert [fault.kind for fault in world.journal.faults()] == [FaultKind.LATE] * 2


def test_triggers_the_line_dropped_are_faults_also_the_last_ones():
    world = World(parts=6, drops={2, 3, 6}).run()

    assert [i.trigger_seq for i in world.journal.inspections()] == [1, 4, 5]
    assert [(f.trigger_seq, f.kind) for f in world.journal.faults()] == [
        (2, FaultKind.MISSED),
        (3, FaultKind.MISSED),
        (6, FaultKind.MISSED),
    ]


def test_a_repeated_trigger_is_judged_once():
    world = World(parts=2, repeats={1}).run()

    assert world.camera.asked == [1, 2]
    assert len(world.journal.outcomes()) == 2


def test_what_the_last_run_died_over_is_on_record_before_the_first_part():
    journal = FakeJournal()
    World(parts=3, journal=journal).run()
    World(parts=1, after=5, journal=journal).run()  # The line went on to 5 without the node.

    assert [(o.trigger_seq, getattr(o, "kind", None)) for o in journal.outcomes()] == [
        (1, None),
        (2, None),
        (3, None),
        (4, FaultKind.INTERRUPTED),
        (5, FaultKind.INTERRUPTED),
        (6, None),
    ]


def test_an_action_the_journal_refused_is_taken_back():
    world = World(parts=1)
    world.journal.full = True
    world.run()

    assert world.line.met == {1: Action.DIVERT}
    assert world.journal.records == []
    assert not world.told("journal").ok
    assert world.station.outcomes() == {FaultKind.UNRECORDED: 1}


def test_what_a_full_journal_refused_is_recorded_when_there_is_room_again():
    world = World(parts=5)
    switch = {2: True, 4: False}
    triggers = world.line.triggers

    def triggers_while_the_disk_fills_and_empties():
        for trigger in triggers():
            world.journal.full = switch.get(trigger.seq, world.journal.full)
            yield trigger

    world.line.triggers = triggers_while_the_disk_fills_and_empties
    world.run()

    assert [(o.trigger_seq, getattr(o, "kind", None)) for o in world.journal.outcomes()] == [
        (1, None),
        (2, FaultKind.UNRECORDED),
        (3, FaultKind.UNRECORDED),
        (4, None),
        (5, None),
    ]
    assert [p.trigger_seq for p in world.journal.passages()] == [1, 2, 3, 4, 5]
    assert world.line.met[2] is world.line.met[3] is Action.DIVERT


def test_parts_are_not_judged_while_the_journal_is_full():
    world = World(parts=4)
    world.journal.full = True
    world.run()

    assert world.camera.asked == [1]
    assert set(world.line.met.values()) == {Action.DIVERT}


def test_an_error_nobody_expected_lets_go_of_the_gate_and_is_told():
    world = World(parts=3, model=FakeModel())
    world.model.raises = RuntimeError("the runtime broke")

    world.station.start()

    assert world.station.join(10)
    assert isinstance(world.station.failure, RuntimeError)
    assert world.line.stopped
    assert world.line.met == {1: Action.DIVERT}
    assert not world.health.ready()
    assert world.told("line").words == "the line loop failed: the runtime broke"


def test_a_stopped_station_lets_go_of_the_line_and_ends():
    world = World(parts=1000)
    seen = threading.Event()
    grab = world.camera.grab

    def grab_and_tell(trigger):
        seen.set()
        return grab(trigger)

    world.camera.grab = grab_and_tell
    world.station.start()
    assert seen.wait(10)
    world.station.stop()

    assert world.station.join(10)
    assert world.station.failure is None
    assert world.line.stopped
    assert len(world.journal.outcomes()) == world.line.last_trigger()


def test_a_part_without_evidence_can_never_be_set_to_pass():
    with pytest.raises(ValueError, match="never accepted"):
        World(failsafe=Action.ACCEPT)


def test_the_live_view_is_of_the_last_inspected_part():
    world = World(parts=2, model=FakeModel([0.1, 0.5]))
    assert world.station.live() is None
    world.run()

    live = world.station.live()
    assert live.inspection.trigger_seq == 2
    assert live.frame.part_id == live.inspection.part_id
    assert live.prediction.score == pytest.approx(0.5)


def test_latency_runs_from_the_trigger_to_the_action_also_of_late_parts():
    world = World(parts=2, late={2})
    world.camera.takes_ms = 12.5
    world.run()

    assert world.station.latencies_us() == (12_500, 12_500)
    assert world.journal.inspections()[0].latency_us == 12_500


SEQS = st.sets(st.integers(1, 12))
TROUBLES = st.fixed_dictionaries(
    {
        "scores": st.lists(st.sampled_from([0.1, 0.5, 0.9, None]), min_size=12, max_size=12),
        "blind": SEQS,
        "mixes_up": SEQS,
        "line": st.fixed_dictionaries(
            {"drops": SEQS, "late": SEQS, "repeats": SEQS, "overdue": SEQS}
        ),
        "full_after": st.one_of(st.none(), st.integers(0, 40)),
    }
)


@settings(deadline=None)  # a busy machine is no failure
@given(TROUBLES)
def test_every_trigger_is_one_verdict_or_one_fault_and_only_good_parts_pass(troubles):
    world = World(parts=12, model=FakeModel(troubles["scores"]), **troubles["line"])
    world.camera.blind, world.camera.mixes_up = troubles["blind"], troubles["mixes_up"]
    world.journal.takes_before_full = troubles["full_after"]
    world.run()

    assert sum(world.station.outcomes().values()) == 12
    recorded = Counter(outcome.trigger_seq for outcome in world.journal.outcomes())
    assert set(recorded.values()) <= {1}
    if troubles["full_after"] is None:
        assert set(recorded) == set(range(1, 13))
    passed = {seq for seq, action in world.line.met.items() if action is Action.ACCEPT}
    good = {i.trigger_seq for i in world.journal.inspections() if i.verdict is Verdict.OK}
    assert passed == good


def test_a_part_that_stays_in_hand_is_seen_from_outside():
    seen = []

    class SlowModel(FakeModel):
        def predict(self, frame):
            world.clock.advance(ms=7_000)
            seen.append(world.station.busy_s())
            return super().predict(frame)

    world = World(model=SlowModel())
    world.station.run()

    assert seen == [7.0]
    assert world.station.busy_s() == 0.0
