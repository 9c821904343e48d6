"""Whether the earned limits are in force just now, and what is left of them when not.

One object between the station, which asks it about each part, and whoever may take a
limit away or give it back: the drift watch, the audit, a person. What holds here:

- No part passes or is rejected here that the earned limits would not pass or reject.
- A revoked certificate stays revoked, over restarts too, until a person puts it in force
  again or another model is released.
- While an audit target is set and not met, nothing passes unasked.

The station's thread judges, any thread may put in force again or have audits counted.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qcnode.domain import CertificateChange, Limits, Verdict
from qcnode.picture import seen_of
from qcnode.policy import judge, widened
from qcnode.sight import look

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from qcnode.audit import Audit, AuditDraw
    from qcnode.domain import Frame, Prediction
    from qcnode.drift import DriftWatch
    from qcnode.health import HealthBoard

AUDITED = "a random check of a part that would pass"
SUSPENDED = "would pass, and nothing passes unasked until the audit's target is met"
NODE = "node"
NOTHING_DECIDED = Limits(accept_below=None, reject_from=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditRules:
    """Who is drawn, and which share of defective passes is the most that is wanted."""

    draw: AuditDraw
    target: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """What the limits in force say of a part; `audit`: it would pass, and a person looks."""

    verdict: Verdict
    audit: bool = False
    reason: str | None = None


class LiveCertificate:
    """The limits of one released model, for as long as they hold."""

    def __init__(
        self,
        *,
        model: str,
        earned: Limits,
        good: Sequence[float],
        new_watch: Callable[[], DriftWatch] | None,
        rules: AuditRules | None,
        count_audit: Callable[[], Audit],
        last: CertificateChange | None,
        health: HealthBoard,
        now: Callable[[], datetime],
        new_id: Callable[[], str],
        side: int | None = None,
    ) -> None:
        self._model = model
        self._side = side
        self._earned = earned
        self._good = tuple(good)
        self._new_watch = new_watch
        self._rules = rules
        self._count_audit = count_audit
        self._audit = count_audit()
        self._health = health
        self._now = now
        self._new_id = new_id
        self._lock = threading.Lock()
        self._watch = None if new_watch is None else new_watch()
        self._revoked: CertificateChange | None = None
        self._limits = earned
        self._suspended = self._suspends()
        if last is not None and not last.valid:
            self._set(last)
        self._tell()
        self._tell_audit()

    @property
    def limits(self) -> Limits:
        """The limits in force."""
        return self._limits

    @property
    def revoked(self) -> CertificateChange | None:
        """Why the certificate is not in force; None while it is."""
        return self._revoked

    def judge(self, part_id: str, prediction: Prediction | None) -> Judgement:
        """Judge a part by the limits in force, and draw it for the audit.

        While another model takes its turn its own limits count. Of it nothing is known here
        but those, so while this certificate is revoked it decides nothing.
        """
        with self._lock:
            revoked, limits, suspended = self._revoked, self._limits, self._suspended
        earned = self._earned
        if prediction is not None and self._is_of_another(prediction):
            earned = prediction.limits or earned
            limits = earned if revoked is None else NOTHING_DECIDED
        verdict = judge(prediction, limits)
        if verdict is Verdict.OK and self._rules is not None:
            if suspended:
                # All of them are looked at, so that nobody chose which.
                return Judgement(verdict=Verdict.NOT_DECIDABLE, audit=True, reason=SUSPENDED)
            if self._rules.draw.drawn(part_id):
                return Judgement(verdict=verdict, audit=True, reason=AUDITED)
        if (
            revoked is not None
            and verdict is Verdict.NOT_DECIDABLE
            and judge(prediction, earned) is not verdict
        ):
            return Judgement(verdict=verdict, reason=f"certificate revoked: {revoked.reason}")
        return Judgement(verdict=verdict)

    def _is_of_another(self, prediction: Prediction) -> bool:
        return prediction.limits is not None and prediction.model != self._model

    def take(self, frame: Frame | None, prediction: Prediction | None) -> CertificateChange | None:
        """Watch a part that was judged, and return the revocation that follows from it."""
        watch = self._watch
        if watch is None or self._revoked is not None:
            return None
        if prediction is not None and prediction.model != self._model:
            return None  # The scores of another model are no drift of this one's.
        ours = prediction is not None and not self._is_of_another(prediction)
        alarm = watch.take(
            prediction.score if ours and prediction is not None else None,
            None if frame is None else look(seen_of(frame, self._side)),
        )
        if alarm is None:
            return None
        change = CertificateChange(
            id=self._new_id(),
            model=self._model,
            valid=False,
            reason=alarm.words,
            who=NODE,
            at=self._now(),
            picture_at_fault=alarm.picture_at_fault,
        )
        with self._lock:
            if self._watch is not watch:
                return None  # Put in force again just now: the watch begins anew.
            self._set(change)
        self._tell()
        return change

    def renewal(self, *, who: str, reason: str) -> CertificateChange:
        """Return the record by which `who` puts the certificate in force again."""
        return CertificateChange(
            id=self._new_id(),
            model=self._model,
            valid=True,
            reason=reason,
            who=who,
            at=self._now(),
        )

    def renew(self, change: CertificateChange) -> None:
        """Put it in force again, once that is on record; the watch begins anew."""
        with self._lock:
            self._set(change)
            self._watch = None if self._new_watch is None else self._new_watch()
        self._tell()

    def recount(self) -> None:
        """Count again what people found, because one more part was ruled on."""
        audit = self._count_audit()
        with self._lock:
            self._audit = audit
            self._suspended = self._suspends()
        self._tell_audit()

    @property
    def audit(self) -> Audit:
        """What people found so far."""
        return self._audit

    def _set(self, change: CertificateChange) -> None:
        self._revoked = None if change.valid else change
        self._limits = (
            self._earned
            if change.valid
            else widened(self._earned, self._good, picture_at_fault=change.picture_at_fault)
        )

    def _suspends(self) -> bool:
        target = None if self._rules is None else self._rules.target
        return target is not None and self._audit.at_most > target

    def _tell(self) -> None:
        if self._revoked is not None:
            words = f"revoked, more parts are asked about: {self._revoked.reason}"
        elif self._watch is None:
            words = "in force, and nobody watches for drift"
        else:
            words = f"in force; watched: {self._watch.watches()}"
        self._health.report("certificate", ok=self._revoked is None, words=words)

    def _tell_audit(self) -> None:
        if self._rules is not None:
            self._health.report(
                "audit", ok=not self._suspended, words=self._audit.words(self._rules.target)
            )
