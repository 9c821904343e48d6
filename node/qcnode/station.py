"""The line loop: every part is seen, judged, acted on and recorded, before its gate.

`Station` is the one place where camera, model, line and journal meet. It runs in a
thread of its own and waits for nothing but triggers and the camera. What holds here:

- Every trigger the line counted ends as one inspection or one fault in the journal: also
  one that came too late, one the line dropped, and one the last run died over.
- Any doubt takes the fail-safe action, which is never ACCEPT: no picture, another part's
  picture, no score.
- A part is not acted on while the journal refuses records. The journal only learns of an
  action after it was set, because a record says whether it was in time; a refusal just
  then takes the action back, which the gate allows until the guard.
- Whatever else goes wrong ends the loop, and with it the line's command of the gate.

Time on the line is the monotonic clock, the same that stamps the triggers. The wall
clock only dates records.
"""

from __future__ import annotations

import hashlib
import threading
from collections import Counter, deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import structlog

from qcnode.certificate import Judgement
from qcnode.domain import Action, Evidence, Fault, FaultKind, Inspection, Verdict
from qcnode.errors import CameraError, CertificateError, JournalUnavailableError, ModelError
from qcnode.policy import action_for, judge

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from qcnode.certificate import LiveCertificate
    from qcnode.domain import Frame, JournalRecord, Limits, Prediction, Trigger
    from qcnode.health import HealthBoard
    from qcnode.ports import Camera, Journal, Line, Model

log = structlog.get_logger()

STOPPED = "the kill switch is set for this line"
UNKNOWN_PART = "unknown"
"""The part of a trigger that is known by its number alone."""
NS_PER_S = 1_000_000_000
LATENCIES_MAX = 20_000
OWED_MAX = 10_000


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LiveView:
    """The last part that was inspected, as the panel shows it."""

    frame: Frame | None
    prediction: Prediction | None
    inspection: Inspection


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Sight:
    """What could be learnt of a part; `reason` says why there is no prediction."""

    frame: Frame | None
    prediction: Prediction | None
    reason: str | None


class Station:
    """One camera, one model, one gate. Give it a thread with `start`, or call `run`."""

    def __init__(
        self,
        *,
        camera: Camera,
        model: Model,
        limits: Limits,
        failsafe: Action,
        line: Line,
        journal: Journal,
        health: HealthBoard,
        now: Callable[[], datetime],
        new_id: Callable[[], str],
        clock_ns: Callable[[], int],
        certificate: LiveCertificate | None = None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        if failsafe is Action.ACCEPT:
            raise ValueError("a part without evidence is never accepted; use DIVERT or REJECT")
        self._camera = camera
        self._model = model
        self._limits = limits
        self._failsafe = failsafe
        self._line = line
        self._journal = journal
        self._health = health
        self._now = now
        self._new_id = new_id
        self._clock_ns = clock_ns
        self._certificate = certificate
        self._stopped = stopped
        """Whether people have stopped the line's own decisions; answers from memory."""
        self._last_seq = 0
        self._owed: deque[JournalRecord] = deque()
        self._live: LiveView | None = None
        self._in_hand_since_ns: int | None = None
        self._latencies_us: deque[int] = deque(maxlen=LATENCIES_MAX)
        self._outcomes: Counter[Verdict | FaultKind] = Counter()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run_in_thread, name="line", daemon=True)
        self._failure: Exception | None = None

    # -- from outside ----------------------------------------------------------

    def run(self) -> None:
        """Judge parts until the line ends or `stop` is called."""
        ok, words = False, "stopped"
        try:
            self._begin()
            for trigger in self._line.triggers():
                self._in_hand_since_ns = self._clock_ns()
                self._take(trigger)
                self._collect_passages()
                self._in_hand_since_ns = None
            self._account_for(self._line.last_trigger())
            if not self._stopping.is_set():
                ok, words = True, "sends no more parts"
        except Exception as error:
            words = f"the line loop failed: {error}"
            raise
        finally:
            self._line.stop()
            self._health.report("line", ok=ok, words=words, needed=True)
            self._collect_passages()
            self._settle_debts()

    def start(self) -> None:
        """Run in a thread of the station's own."""
        self._thread.start()

    def stop(self) -> None:
        """Let go of the line; parts under way take the gate's default."""
        self._stopping.set()
        self._line.stop()

    def join(self, timeout_s: float | None = None) -> bool:
        """Wait for the thread and say whether it has ended; one never started has."""
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    @property
    def failure(self) -> Exception | None:
        """What ended the thread, if it was not the line's end or `stop`."""
        return self._failure

    def recertify(self, *, who: str, reason: str) -> None:
        """Put a revoked certificate in force again, on the word of a person.

        Raises `CertificateError` where none is revoked, and `JournalUnavailableError`: what
        is not on record does not come into force.
        """
        if self._certificate is None or self._certificate.revoked is None:
            raise CertificateError("no certificate is revoked: there is nothing to put in force")
        change = self._certificate.renewal(who=who, reason=reason)
        self._journal.append(change)
        self._certificate.renew(change)

    def certified(self) -> bool:
        """Say whether no certificate is revoked: the line is what its limits were earned on."""
        return self._certificate is None or self._certificate.revoked is None

    def recount_audit(self) -> None:
        """Have the certificate count again what people found of audited parts."""
        if self._certificate is not None:
            self._certificate.recount()

    def certify(self, certificate: LiveCertificate) -> None:
        """Judge by this certificate from the next part on: another model decides now."""
        self._certificate = certificate

    def busy_s(self) -> float:
        """Return for how long the part in hand has been in hand; 0 between parts."""
        since_ns = self._in_hand_since_ns
        return 0.0 if since_ns is None else (self._clock_ns() - since_ns) / NS_PER_S

    def live(self) -> LiveView | None:
        """Return the last part that was inspected; any thread may ask."""
        return self._live

    def latencies_us(self) -> tuple[int, ...]:
        """Return the last times from trigger to action in microseconds, late ones included."""
        return tuple(self._latencies_us)

    def outcomes(self) -> dict[Verdict | FaultKind, int]:
        """Return how the triggers of this run came out, faults of the last run included."""
        return dict(self._outcomes)

    # -- one part --------------------------------------------------------------

    def _take(self, trigger: Trigger) -> None:
        if trigger.seq <= self._last_seq:
            log.warning("trigger repeated, part already judged", seq=trigger.seq)
            return
        self._account_for(trigger.seq - 1)
        self._last_seq = trigger.seq
        if self._stopping.is_set():
            kind, reason = FaultKind.INTERRUPTED, "the node was stopped before it looked"
        elif not self._settle_debts():
            self._line.act(trigger, self._failsafe)
            kind, reason = FaultKind.UNRECORDED, "the journal takes no records"
        elif self._clock_ns() >= trigger.deadline_ns:
            kind, reason = FaultKind.LATE, "past its deadline before the node could look"
        else:
            self._inspect(trigger)
            return
        self._fault(trigger.seq, trigger.part_id, kind, reason)

    def _inspect(self, trigger: Trigger) -> None:
        sight = self._look(trigger)
        judgement = self._judge(trigger, sight)
        verdict = judgement.verdict
        # Whoever audits a part needs it, so it is diverted whatever was said of it.
        action = Action.DIVERT if judgement.audit else action_for(verdict, failsafe=self._failsafe)
        if self._stopped():
            action, judgement = self._failsafe, replace(judgement, reason=STOPPED)
        in_time = self._line.act(trigger, action)
        latency_us = (self._clock_ns() - trigger.at_ns) // 1000
        self._latencies_us.append(latency_us)
        if not in_time:
            self._miss_gate(trigger, verdict, latency_us)
            return

        inspection = self._inspection(trigger, sight, judgement, action, latency_us)
        try:
            self._journal.append(inspection, evidence=_evidence(sight, action))
        except JournalUnavailableError as error:
            self._take_back(trigger, error)
            return
        self._outcomes[verdict] += 1
        self._live = LiveView(frame=sight.frame, prediction=sight.prediction, inspection=inspection)
        self._watch(sight)

    def _judge(self, trigger: Trigger, sight: _Sight) -> Judgement:
        if self._certificate is None:
            prediction = sight.prediction
            own = None if prediction is None else prediction.limits
            return Judgement(verdict=judge(prediction, own or self._limits))
        return self._certificate.judge(trigger.part_id, sight.prediction)

    def _watch(self, sight: _Sight) -> None:
        """Let the certificate see the part, and put on record when that revokes it."""
        if self._certificate is None:
            return
        change = self._certificate.take(sight.frame, sight.prediction)
        if change is not None:
            log.warning("certificate revoked", model=change.model, reason=change.reason)
            self._record(change)

    def _miss_gate(self, trigger: Trigger, verdict: Verdict, latency_us: int) -> None:
        if self._stopping.is_set():
            kind, reason = FaultKind.INTERRUPTED, "the node was stopped before it could act"
        else:
            kind = FaultKind.LATE
            reason = f"the action came {latency_us / 1000:.1f} ms after the trigger, too late"
        self._fault(trigger.seq, trigger.part_id, kind, reason, late_verdict=verdict)

    def _look(self, trigger: Trigger) -> _Sight:
        try:
            frame = self._grab(trigger)
        except CameraError as error:
            self._health.report("camera", ok=False, words=str(error), needed=True)
            return _Sight(frame=None, prediction=None, reason=str(error))
        self._health.report("camera", ok=True, words="delivers pictures", needed=True)
        try:
            prediction = self._model.predict(frame)
        except ModelError as error:
            self._health.report("model", ok=False, words=str(error), needed=True)
            return _Sight(frame=frame, prediction=None, reason=str(error))
        self._health.report("model", ok=True, words=self._model.version, needed=True)
        return _Sight(frame=frame, prediction=prediction, reason=None)

    def _grab(self, trigger: Trigger) -> Frame:
        frame = self._camera.grab(trigger)
        if frame.part_id != trigger.part_id:
            raise CameraError(
                f"camera {frame.camera}: the picture is of part {frame.part_id}, not of"
                f" {trigger.part_id}: check the trigger's wiring"
            )
        return frame

    def _inspection(
        self,
        trigger: Trigger,
        sight: _Sight,
        judgement: Judgement,
        action: Action,
        latency_us: int,
    ) -> Inspection:
        frame, prediction = sight.frame, sight.prediction
        encoded = None if frame is None else frame.encoded
        return Inspection(
            id=self._new_id(),
            trigger_seq=trigger.seq,
            part_id=trigger.part_id,
            verdict=judgement.verdict,
            action=action,
            score=None if prediction is None else prediction.score,
            model=self._model.version if prediction is None else prediction.model,
            captured_at=self._now() if frame is None else frame.captured_at,
            latency_us=latency_us,
            picture=None if frame is None else frame.name,
            picture_sha256=None if encoded is None else hashlib.sha256(encoded).hexdigest(),
            reason=sight.reason or judgement.reason,
            audit=judgement.audit,
        )

    # -- what has no verdict ---------------------------------------------------

    def _begin(self) -> None:
        """Account for what the last run left behind, before the first part comes."""
        upto = self._line.last_trigger()
        missing = self._journal.missing_triggers(upto)
        for seq in missing:
            self._fault(
                seq, UNKNOWN_PART, FaultKind.INTERRUPTED, "the node stopped before it was on record"
            )
        if missing:
            log.warning("triggers without a record from the last run", count=len(missing))
        self._last_seq = upto
        self._collect_passages()
        self._health.report("line", ok=True, words="running", needed=True)

    def _account_for(self, upto: int) -> None:
        """Put triggers on record that the line counted and the station never got."""
        for seq in range(self._last_seq + 1, upto + 1):
            self._fault(
                seq,
                UNKNOWN_PART,
                FaultKind.MISSED,
                "the line was ahead of the node and kept no place",
            )
        self._last_seq = max(self._last_seq, upto)

    def _fault(
        self,
        seq: int,
        part_id: str,
        kind: FaultKind,
        reason: str,
        *,
        late_verdict: Verdict | None = None,
    ) -> None:
        log.warning("part without a verdict", seq=seq, part=part_id, kind=kind, reason=reason)
        self._outcomes[kind] += 1
        self._record(
            Fault(
                id=self._new_id(),
                trigger_seq=seq,
                part_id=part_id,
                kind=kind,
                reason=reason,
                at=self._now(),
                late_verdict=late_verdict,
            )
        )

    def _collect_passages(self) -> None:
        for passage in self._line.passages():
            self._record(passage)

    # -- a journal that refuses ------------------------------------------------

    def _take_back(self, trigger: Trigger, error: JournalUnavailableError) -> None:
        """Undo an action that cannot be recorded."""
        safe = self._line.act(trigger, self._failsafe)
        if not safe:
            log.critical("part acted on without a record", seq=trigger.seq, part=trigger.part_id)
        self._tell_refused(error)
        self._fault(trigger.seq, trigger.part_id, FaultKind.UNRECORDED, str(error))

    def _record(self, record: JournalRecord) -> None:
        """Put a record in line for the disk; what is refused is owed."""
        if self._settle_debts():
            try:
                self._journal.append(record)
            except JournalUnavailableError as error:
                self._tell_refused(error)
            else:
                return
        # Beyond this bound the next start finds the gap, as an interrupted trigger.
        if len(self._owed) < OWED_MAX:
            self._owed.append(record)

    def _settle_debts(self) -> bool:
        """Offer the journal what it refused before, and say whether it took everything."""
        while self._owed:
            try:
                self._journal.append(self._owed[0])
            except JournalUnavailableError:
                return False
            self._owed.popleft()
        return True

    def _tell_refused(self, error: JournalUnavailableError) -> None:
        self._health.report("journal", ok=False, words=str(error), needed=True)

    # -- the thread ------------------------------------------------------------

    def _run_in_thread(self) -> None:
        try:
            self.run()
        except Exception as error:
            # The top of this thread: the process learns of it by `failure` and the board.
            log.exception("the line loop failed, the gate is on its default")
            self._failure = error


def _evidence(sight: _Sight, action: Action) -> Evidence | None:
    """Return what is kept of a part that did not simply pass, or that somebody checks."""
    if action is Action.ACCEPT or sight.frame is None:
        return None
    prediction = sight.prediction
    if prediction is None:
        return Evidence(frame=sight.frame, heat=None)
    limits = prediction.limits
    return Evidence(
        frame=sight.frame,
        heat=prediction.heat,
        heat_full=None if limits is None else limits.reject_from,
    )
