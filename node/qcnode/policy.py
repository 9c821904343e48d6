"""The rules by which parts are judged and agents are trusted.

Pure functions: no clock, no settings, no log. Whoever asks brings all that counts
as values and gets the same answer every time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qcnode.domain import Action, AgentLevel, Decider, Disposition, Finding, Verdict

if TYPE_CHECKING:
    from qcnode.domain import Limits, Prediction, ReviewBounds


def judge(prediction: Prediction | None, limits: Limits) -> Verdict:
    """Say what the evidence supports; a score on a limit gets the stricter verdict.

    Where the limits cross (parts pass up to a score from which others are rejected)
    everything between them is asked about.
    """
    if prediction is None:
        return Verdict.UNDEFINED
    accept_below, reject_from = limits.accept_below, limits.reject_from
    if accept_below is not None and reject_from is not None:
        accept_below, reject_from = (
            min(accept_below, reject_from),
            max(accept_below, reject_from),
        )
    if reject_from is not None and prediction.score >= reject_from:
        return Verdict.NOT_OK
    if accept_below is not None and prediction.score < accept_below:
        return Verdict.OK
    return Verdict.NOT_DECIDABLE


def action_for(verdict: Verdict, *, failsafe: Action) -> Action:
    """Say what the gate does; without evidence it does what the line chose beforehand."""
    if verdict is Verdict.OK:
        return Action.ACCEPT
    if verdict is Verdict.NOT_OK:
        return Action.REJECT
    if verdict is Verdict.NOT_DECIDABLE:
        return Action.DIVERT
    return failsafe


def choose_decider(
    verdict: Verdict,
    bounds: ReviewBounds,
    *,
    cloud_reachable: bool,
    budget_left_pico: int | None,
    waiting: int,
) -> Decider:
    """Say who has the last word on a part.

    The operator is the answer to every doubt about the cloud: a part is never
    passed because nobody could be asked. A budget of None is no limit.
    """
    if verdict in (Verdict.OK, Verdict.NOT_OK):
        return Decider.NODE
    if verdict is Verdict.UNDEFINED:
        return Decider.OPERATOR  # Without a picture the agent has nothing to see.
    affordable = budget_left_pico is None or budget_left_pico >= bounds.cost_pico_max
    if cloud_reachable and affordable and waiting < bounds.waiting_max:
        return Decider.AGENT
    return Decider.OPERATOR


def disposition_of(finding: Finding) -> Disposition | None:
    """Say what a finding means for the part; an unsure one means nothing yet."""
    if finding is Finding.GOOD:
        return Disposition.RELEASE
    if finding is Finding.DEFECTIVE:
        return Disposition.SCRAP
    return None


def authorize(level: AgentLevel, disposition: Disposition) -> bool:
    """Say whether an agent's word alone may send a held part this way.

    From L2 an agent may be stricter than the node. Letting go a part the node would
    not pass takes L3. L1 informs, and a person decides.
    """
    if disposition is Disposition.RELEASE:
        return level in (AgentLevel.L3, AgentLevel.L4)
    return level is not AgentLevel.L1
