"""What tokens were worth: cost per correct decision, per defect caught, per part saved."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcbridge.billing.papers import COLUMNS, value_text
from qcbridge.billing.usage import Usage
from qcbridge.billing.value import Account, Judged, value_of
from qcnode.money import Adjusted, CostCentre, Outcome
from tests.bridge.paper_world import NOVEMBER, OCTOBER, PAINT, SOLDER, PaperWorld, at

CALLS = ("GOOD", "DEFECTIVE", "UNSURE")
ALONE = ("ACCEPT", "REJECT", "DIVERT")


def outcome(ruled="GOOD", truth="GOOD", alone="REJECT", *, escalation="e", centre=SOLDER):
    return Outcome(
        escalation_id=escalation,
        centre=centre,
        ruled=ruled,
        truth=truth,
        node_alone=alone,
        source="audit",
    )


def judged(*told, pico=10, **about):
    return Judged(outcome=outcome(*told, **about), cost_pico={"CNY": pico}, attempts=1)


def counts(*told):
    [row] = value_of([judged(*told)])
    return (
        row.correct,
        row.defects_caught,
        row.false_rejects_avoided,
        row.defects_let_through,
        row.false_rejects_made,
    )


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        (("DEFECTIVE", "DEFECTIVE", "ACCEPT"), (1, 1, 0, 0, 0)),  # a node alone would pass it
        (("DEFECTIVE", "DEFECTIVE", "REJECT"), (1, 0, 0, 0, 0)),  # it would reject it as well
        (("DEFECTIVE", "DEFECTIVE", "DIVERT"), (1, 0, 0, 0, 0)),
        (("GOOD", "GOOD", "REJECT"), (1, 0, 1, 0, 0)),  # a good part that was saved
        (("GOOD", "GOOD", "ACCEPT"), (1, 0, 0, 0, 0)),
        (("GOOD", "GOOD", "DIVERT"), (1, 0, 0, 0, 0)),
        (("GOOD", "DEFECTIVE", "REJECT"), (0, 0, 0, 1, 0)),  # let through by being asked
        (("GOOD", "DEFECTIVE", "ACCEPT"), (0, 0, 0, 0, 0)),  # it would have passed anyway
        (("DEFECTIVE", "GOOD", "ACCEPT"), (0, 0, 0, 0, 1)),
        (("DEFECTIVE", "GOOD", "REJECT"), (0, 0, 0, 0, 0)),
        (("UNSURE", "GOOD", "REJECT"), (0, 0, 0, 0, 0)),  # no answer is no correct one
    ],
)
def test_a_decision_is_credited_with_what_a_node_alone_would_not_have_done(told, expected):
    assert counts(*told) == expected


def test_costs_are_divided_by_what_they_bought_and_by_account():
    rows = value_of(
        [
            judged("DEFECTIVE", "DEFECTIVE", "ACCEPT", pico=100),
            judged("GOOD", "GOOD", "REJECT", pico=50),
            judged("GOOD", "DEFECTIVE", "REJECT", pico=31),
            judged("GOOD", "GOOD", "ACCEPT", pico=7, centre=PAINT),
        ]
    )
    solder, paint = rows
    assert solder.account == Account("assembly", "vision", "solder")
    assert (solder.decisions, solder.correct, solder.cost_pico) == (3, 2, {"CNY": 181})
    # All that was spent counts, also on what was decided wrongly: 90.5 to the even neighbour.
    assert solder.per_correct == {"CNY": 90}
    assert (solder.per_defect, solder.per_saved) == ({"CNY": 181}, {"CNY": 181})
    assert (paint.per_correct, paint.per_defect) == ({"CNY": 7}, None)


def test_what_bought_nothing_has_no_price_and_is_not_free():
    [row] = value_of([judged("GOOD", "DEFECTIVE", "REJECT")])
    assert (row.per_correct, row.per_defect, row.per_saved) == (None, None, None)
    assert "per correct decision -" in value_text("2026-11", [row])


def test_d8_currencies_stay_apart_per_decision_too():
    two = Judged(outcome=outcome(), cost_pico={"CNY": 10, "USD": 3}, attempts=2)
    [row] = value_of([two, judged(pico=20)])
    assert row.per_correct == {"CNY": 15, "USD": 2}


@given(
    st.lists(
        st.tuples(st.sampled_from(CALLS), st.sampled_from(CALLS[:2]), st.sampled_from(ALONE)),
        max_size=40,
    )
)
def test_each_decision_counts_once_whatever_it_was(told):
    for row in value_of(judged(*one) for one in told):
        assert row.decisions == len(told)
        assert row.correct == sum(ruled == truth for ruled, truth, _ in told)
        assert row.defects_caught + row.false_rejects_avoided <= row.correct
        assert row.correct + row.defects_let_through + row.false_rejects_made <= row.decisions
        assert row.cost_pico == {"CNY": 10 * len(told)}


def test_decisions_are_joined_with_all_attempts_they_took(tmp_path):
    world = PaperWorld(f"sqlite:///{tmp_path}/billing.db")
    node = world.node()
    first = node.use(at_us=at("2026-11-16T01"), escalation="part-1")
    retry = node.use(at_us=at("2026-11-16T02"), escalation="part-1")
    node.lose(at_us=at("2026-11-16T03"), escalation="part-1")
    node.refuse(at_us=at("2026-11-16T04"), escalation="part-1")
    node.use(at_us=at("2026-11-16T05"), escalation="part-2")  # Nobody knows the truth of it.
    node.write(
        outcome("GOOD", "GOOD", "REJECT", escalation="part-1"),
        outcome("DEFECTIVE", "DEFECTIVE", "ACCEPT", escalation="part-1"),  # The last one counts.
        outcome(escalation="part-of-nobody"),
        at_us=at("2026-11-18T00"),
    )
    world.send()
    usage = Usage(world.books.database)

    [one] = usage.judged("acme", NOVEMBER)

    assert one.outcome.truth == "DEFECTIVE"
    assert one.cost_pico == {"CNY": first.pico + retry.pico}
    assert (one.attempts, one.unknown) == (4, 1)
    assert list(usage.judged("acme", OCTOBER)) == []
    [row] = value_of([one])
    text = value_text("2026-11", [row])
    assert "1 of unknown cost" in text
    assert "assembly / vision / solder" in text
    assert max(len(line) for line in text.splitlines()) <= COLUMNS
    assert value_text("2026-11", []) == "No decision of 2026-11 has a known truth yet."
    world.close()


def test_a_cost_put_right_counts_as_it_is_right(tmp_path):
    world = PaperWorld(f"sqlite:///{tmp_path}/billing.db")
    node = world.node()
    attempt = node.intent(at_us=at("2026-11-16T01"), escalation="p")
    cost = node.settle(attempt, at_us=at("2026-11-16T01"))
    node.write(
        Adjusted(attempt_id=attempt.id, before=cost, after=replace(cost, pico=7), reason="r"),
        outcome(escalation="p", centre=CostCentre()),
        at_us=at("2026-11-17T01"),
    )
    node.send()
    [one] = Usage(world.books.database).judged("acme", NOVEMBER)
    assert one.cost_pico == {"CNY": 7}
    [row] = value_of([one])
    assert row.account == Account("", "", "")
    assert "(no account)" in value_text("2026-11", [row])
    world.close()
