"""What an agent may do: every pair of agent and action by level, each rule by one example."""

import ast
import random
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcnode import authority
from qcnode.authority import (
    Adjustment,
    AgentAction,
    Answer,
    Arming,
    Attestation,
    Bounds,
    Code,
    Context,
    Decision,
    Envelope,
    Pack,
    authorize,
)
from qcnode.domain import Action, AgentLevel

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
L1, L2, L3, L4 = AgentLevel
AGENT = "agent:m"
PACK = Pack(
    name="p",
    version=1,
    digest="d",
    levels={},
    envelope=Envelope(
        part_types=("flange",),
        confidence_floor=0.8,
        quota_per_hour=10,
        cost_pico_max={"USD": 100},
    ),
    bounds={"light": Bounds(low=1.0, high=3.0, step_max=0.5)},
)
ATTESTATION = Attestation(
    agent=AGENT,
    provider="p",
    policy="d",
    level=L4,
    begins=NOW - HOUR,
    ends=NOW + HOUR,
    by="auditor",
)
# Everything is as it should be: each test takes one thing away.
BEST = Context(
    pack=PACK,
    granted=L4,
    at=NOW,
    stopped=False,
    attestation=ATTESTATION,
    certified=True,
    provider="p",
    held=True,
    drawn=False,
    part_type="flange",
    confidence=0.8,
    node_leans=Action.ACCEPT,
    taken=9,
    spent=("USD", 100),
    arming=Arming(first="ana", second="bo", until=NOW + HOUR),
    adjustment=Adjustment(knob="light", now=1.5, wanted=1.0),
)
# The table of reliability.md, written down once more: what each level may do by itself.
MAY = {
    L1: {AgentAction.INFORM},
    L2: {AgentAction.INFORM, AgentAction.PROPOSE, AgentAction.SCRAP, AgentAction.REWORK},
}
MAY[L3] = MAY[L2] | {AgentAction.RELEASE}
MAY[L4] = MAY[L3] | {AgentAction.ADJUST, AgentAction.STOP, AgentAction.CHOOSE_PROVIDER}

GRANTED, OF_L2 = replace(BEST, granted=L3), replace(BEST, granted=L2)
OTHER = replace(ATTESTATION, level=L3)


def asking(**levels):
    return replace(OF_L2, pack=replace(PACK, levels={A[k]: v for k, v in levels.items()}))


def with_envelope(**changes):
    return replace(BEST, pack=replace(PACK, envelope=replace(PACK.envelope, **changes)))


def attested(**changes):
    return replace(BEST, attestation=replace(ATTESTATION, **changes))


def wanting(knob="light", now=1.5, wanted=1.0):
    return replace(BEST, adjustment=Adjustment(knob=knob, now=now, wanted=wanted))


A, ALLOW, HOLD, DENY = AgentAction, Answer.ALLOW, Answer.HOLD, Answer.DENY
NAN = float("nan")
TABLE = [
    *[(BEST, action, ALLOW, Code.ALLOWED) for action in A if action is not A.RESTART],
    *[(replace(BEST, stopped=True), action, DENY, Code.STOPPED) for action in A],
    (BEST, A.RESTART, DENY, Code.RESTART),
    *[(replace(BEST, held=False), one, DENY, Code.NOT_HELD) for one in (A.RELEASE, A.SCRAP)],
    (replace(BEST, held=False), A.REWORK, DENY, Code.NOT_HELD),
    *[(replace(BEST, held=False), one, ALLOW, Code.ALLOWED) for one in (A.PROPOSE, A.STOP)],
    # bounds
    (replace(BEST, adjustment=None), A.ADJUST, DENY, Code.BOUNDS),
    (replace(BEST, adjustment=None), A.STOP, ALLOW, Code.ALLOWED),
    (replace(OF_L2, adjustment=None), A.ADJUST, DENY, Code.BOUNDS),
    (wanting(knob="other"), A.ADJUST, DENY, Code.BOUNDS),
    (wanting(now=1.0, wanted=0.99), A.ADJUST, DENY, Code.BOUNDS),
    (wanting(now=3.0, wanted=3.01), A.ADJUST, DENY, Code.BOUNDS),
    (wanting(now=3.0, wanted=3.0), A.ADJUST, ALLOW, Code.ALLOWED),
    (wanting(now=2.0, wanted=2.51), A.ADJUST, DENY, Code.BOUNDS),
    (wanting(now=2.0, wanted=1.49), A.ADJUST, DENY, Code.BOUNDS),
    (wanting(wanted=NAN), A.ADJUST, DENY, Code.BOUNDS),
    # levels
    (replace(BEST, granted=L1), A.INFORM, ALLOW, Code.ALLOWED),
    (replace(BEST, granted=L1), A.PROPOSE, DENY, Code.LEVEL),
    (replace(BEST, granted=L1), A.SCRAP, DENY, Code.LEVEL),
    (replace(BEST, granted=L1), A.STOP, DENY, Code.LEVEL),
    (replace(BEST, granted=L1, attestation=None), A.SCRAP, DENY, Code.LEVEL),
    (replace(OF_L2, attestation=None), A.RELEASE, HOLD, Code.LEVEL),
    (OF_L2, A.PROPOSE, ALLOW, Code.ALLOWED),
    (OF_L2, A.SCRAP, ALLOW, Code.ALLOWED),
    (OF_L2, A.RELEASE, HOLD, Code.LEVEL),
    (OF_L2, A.ADJUST, HOLD, Code.LEVEL),
    (GRANTED, A.RELEASE, ALLOW, Code.ALLOWED),
    (GRANTED, A.STOP, HOLD, Code.LEVEL),
    (GRANTED, A.CHOOSE_PROVIDER, HOLD, Code.LEVEL),
    (asking(SCRAP=L3), A.SCRAP, HOLD, Code.LEVEL),
    (asking(RELEASE=L1), A.RELEASE, HOLD, Code.LEVEL),
    (asking(PROPOSE=L3), A.PROPOSE, DENY, Code.LEVEL),
    # attestation
    (replace(BEST, attestation=None), A.RELEASE, HOLD, Code.UNATTESTED),
    (replace(BEST, attestation=None), A.STOP, HOLD, Code.UNATTESTED),
    (replace(BEST, attestation=None), A.SCRAP, ALLOW, Code.ALLOWED),
    (attested(agent="agent:n"), A.RELEASE, HOLD, Code.OTHER_AGENT),
    (attested(provider="q"), A.RELEASE, HOLD, Code.OTHER_AGENT),
    (attested(policy="e"), A.RELEASE, HOLD, Code.OTHER_POLICY),
    (attested(ends=NOW), A.RELEASE, HOLD, Code.EXPIRED),
    (attested(begins=NOW), A.RELEASE, ALLOW, Code.ALLOWED),
    (attested(begins=NOW + HOUR), A.RELEASE, HOLD, Code.EXPIRED),
    (attested(level=L3), A.STOP, HOLD, Code.LEVEL),
    (attested(level=L3), A.RELEASE, ALLOW, Code.ALLOWED),
    (attested(level=L2), A.RELEASE, HOLD, Code.LEVEL),
    (replace(BEST, certified=False), A.RELEASE, HOLD, Code.DRIFT),
    (replace(BEST, certified=False), A.SCRAP, ALLOW, Code.ALLOWED),
    # envelope
    (replace(BEST, part_type="shaft"), A.RELEASE, HOLD, Code.PART_TYPE),
    (replace(BEST, part_type="shaft"), A.SCRAP, HOLD, Code.PART_TYPE),
    (replace(BEST, part_type="shaft"), A.STOP, ALLOW, Code.ALLOWED),
    (replace(with_envelope(part_types=()), part_type="shaft"), A.RELEASE, ALLOW, Code.ALLOWED),
    (replace(BEST, suspicion="text"), A.RELEASE, HOLD, Code.SUSPICION),
    (replace(BEST, suspicion="text"), A.SCRAP, ALLOW, Code.ALLOWED),
    (replace(BEST, node_leans=Action.REJECT), A.RELEASE, HOLD, Code.NODE_DISAGREES),
    (replace(BEST, node_leans=Action.DIVERT), A.RELEASE, HOLD, Code.NODE_DISAGREES),
    (replace(BEST, node_leans=None), A.RELEASE, HOLD, Code.NODE_DISAGREES),
    (replace(with_envelope(overrule_node=True), node_leans=None), A.RELEASE, ALLOW, Code.ALLOWED),
    (replace(BEST, confidence=0.79), A.RELEASE, HOLD, Code.CONFIDENCE),
    (replace(BEST, confidence=0.81), A.RELEASE, ALLOW, Code.ALLOWED),
    (replace(BEST, confidence=None), A.RELEASE, HOLD, Code.CONFIDENCE),
    (replace(BEST, confidence=None), A.SCRAP, ALLOW, Code.ALLOWED),
    (replace(BEST, spent=None), A.SCRAP, HOLD, Code.COST),
    (replace(BEST, spent=("USD", 101)), A.RELEASE, HOLD, Code.COST),
    (replace(BEST, spent=("USD", 99)), A.RELEASE, ALLOW, Code.ALLOWED),
    (replace(BEST, spent=("CNY", 1)), A.RELEASE, HOLD, Code.COST),
    (replace(BEST, taken=10), A.SCRAP, HOLD, Code.QUOTA),
    (replace(BEST, taken=11), A.RELEASE, HOLD, Code.QUOTA),
    (replace(BEST, taken=None), A.REWORK, HOLD, Code.QUOTA),
    (replace(BEST, drawn=True), A.SCRAP, HOLD, Code.RECHECK),
    (replace(BEST, drawn=True), A.STOP, ALLOW, Code.ALLOWED),
    # arming
    (replace(BEST, arming=None), A.STOP, HOLD, Code.UNARMED),
    (replace(BEST, arming=None), A.INFORM, ALLOW, Code.ALLOWED),
    (replace(BEST, arming=None), A.RELEASE, ALLOW, Code.ALLOWED),
    (replace(BEST, arming=replace(BEST.arming, until=NOW)), A.ADJUST, HOLD, Code.UNARMED),
    (replace(BEST, arming=replace(BEST.arming, second="ana")), A.ADJUST, HOLD, Code.UNARMED),
]


@pytest.mark.parametrize(("context", "action", "answer", "code"), TABLE)
def test_one_thing_missing_is_enough_and_its_name_goes_on_record(context, action, answer, code):
    assert authorize(AGENT, action, context) == Decision(answer, code)


def test_what_nobody_said_counts_as_the_worst():
    bare = Context(pack=PACK, granted=L4, at=NOW)
    assert {authorize(AGENT, action, bare).code for action in A} == {Code.STOPPED}
    running = replace(bare, stopped=False)
    assert {action for action in A if authorize(AGENT, action, running).allowed} == {
        A.INFORM,
        A.PROPOSE,
    }


def drawn_pack(rng):
    return Pack(
        name="p",
        version=1,
        digest=rng.choice(("d", "e")),
        # Whatever a pack says, also less than the rule.
        levels={action: rng.choice(tuple(AgentLevel)) for action in A if rng.random() < 0.3},
        envelope=Envelope(
            part_types=rng.choice(((), ("flange",))),
            confidence_floor=rng.choice((0.0, 0.5, 0.9)),
            quota_per_hour=rng.choice((0, 5, 100)),
            cost_pico_max=rng.choice(({}, {"USD": 50}, {"USD": 500, "CNY": 5})),
            overrule_node=rng.random() < 0.5,
        ),
        bounds=rng.choice(({}, PACK.bounds)),
    )


def drawn_context(rng):
    """Draw a context in which a few things differ from the best, so that much is allowed."""
    wild = wild_context(rng)
    kept = [field for field in Context.__slots__ if rng.random() < 0.85]
    return replace(wild, **{field: getattr(BEST, field) for field in kept})


def wild_context(rng):
    return Context(
        pack=drawn_pack(rng),
        granted=rng.choice(tuple(AgentLevel)),
        at=NOW + rng.randrange(-2, 3) * HOUR,
        stopped=rng.random() < 0.1,
        attestation=rng.choice((None, ATTESTATION, OTHER, replace(ATTESTATION, agent="agent:n"))),
        certified=rng.random() < 0.8,
        provider=rng.choice((None, "p", "p", "q")),
        held=rng.random() < 0.8,
        drawn=rng.random() < 0.2,
        part_type=rng.choice(("flange", "shaft")),
        confidence=rng.choice((None, 0.0, 0.6, 1.0)),
        node_leans=rng.choice((None, *Action)),
        suspicion=rng.choice((None, None, "text")),
        taken=rng.choice((None, 0, 4, 50)),
        spent=rng.choice((None, ("USD", 40), ("CNY", 400))),
        arming=rng.choice(
            (None, BEST.arming, BEST.arming, Arming(first="a", second="a", until=NOW + 9 * HOUR))
        ),
        adjustment=rng.choice((None, BEST.adjustment, Adjustment(knob="x", now=0.0, wanted=9.0))),
    )


def test_a_hundred_thousand_pairs_of_agent_and_action_never_exceed_a_level():
    rng = random.Random(5)
    agents = [AGENT, "agent:n", "cache:m", ""]
    contexts = [rng.choice((drawn_context, wild_context))(rng) for _ in range(10_000)]
    allowed = dict.fromkeys(A, 0)
    for _ in range(100_000):
        agent, action, context = rng.choice(agents), rng.choice(tuple(A)), rng.choice(contexts)
        if not authorize(agent, action, context).allowed:
            continue
        allowed[action] += 1
        assert action in MAY[context.granted]
        assert not context.stopped
        if action in MAY[L4] - MAY[L2]:
            attestation = context.attestation
            assert attestation is not None
            assert (attestation.agent, attestation.policy) == (agent, context.pack.digest)
            assert attestation.begins <= context.at < attestation.ends
            assert action in MAY[attestation.level]
        if action in MAY[L4] - MAY[L3]:
            assert context.arming.first != context.arming.second
    # It was not for want of being allowed.
    assert allowed.pop(A.RESTART) == 0
    assert min(allowed.values()) > 20


LOWER = {L1: L1, L2: L1, L3: L2, L4: L3}


def less(context, field):
    """Return the same with less of one thing, or more of what speaks against it."""
    return {
        "granted": lambda: replace(context, granted=LOWER[context.granted]),
        "stopped": lambda: replace(context, stopped=True),
        "attestation": lambda: replace(context, attestation=None),
        "certified": lambda: replace(context, certified=False),
        "held": lambda: replace(context, held=False),
        "drawn": lambda: replace(context, drawn=True),
        "confidence": lambda: replace(
            context, confidence=None if not context.confidence else context.confidence / 2
        ),
        "node_leans": lambda: replace(context, node_leans=None),
        "suspicion": lambda: replace(context, suspicion="text"),
        "taken": lambda: replace(
            context, taken=None if context.taken is None else context.taken + 7
        ),
        "spent": lambda: replace(context, spent=None),
        "arming": lambda: replace(context, arming=None),
        "adjustment": lambda: replace(context, adjustment=None),
    }[field]()


ORDER = {Answer.DENY: 0, Answer.HOLD: 1, Answer.ALLOW: 2}
FIELDS = (
    "granted stopped attestation certified held drawn confidence node_leans suspicion taken spent"
    " arming adjustment"
)


@given(
    seed=st.integers(0, 2**32),
    action=st.sampled_from(tuple(A)),
    field=st.sampled_from(FIELDS.split()),
)
def test_less_of_anything_never_allows_more(seed, action, field):
    context = drawn_context(random.Random(seed))
    after = authorize(AGENT, action, less(context, field)).answer
    assert ORDER[after] <= ORDER[authorize(AGENT, action, context).answer]


# -- that these tests would notice ------------------------------------------------------


SWAPS = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.And: ast.Or,
    ast.Or: ast.And,
}
ENDS = {"min": "max", "max": "min"}
RULES = (
    *("authorize", "standing", "unattested", "needs"),
    *("_outside_envelope", "_within_cap", "_within_bounds", "_is_armed"),
)


def places(tree):
    """Yield each thing in the rules that can be turned round, and the function that does it."""
    for rule in ast.walk(tree):
        if isinstance(rule, ast.FunctionDef) and rule.name in RULES:
            for node in ast.walk(rule):
                for turn in turns(node):
                    yield node, turn


def turns(node):  # noqa: PLR0911  # one for each kind of thing
    """Return the ways to turn one thing round."""
    if isinstance(node, ast.Compare):
        return [partial(turn_operator, at=at) for at in range(len(node.ops))]
    if isinstance(node, ast.BoolOp):
        return [partial(put, field="op", value=SWAPS[type(node.op)]())]
    if isinstance(node, ast.If):
        return [partial(put, field="test", value=ast.Constant(value=v)) for v in (False, True)]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        return [partial(put, field="operand", value=ast.UnaryOp(ast.Not(), node.operand))]
    if isinstance(node, ast.Attribute) and node.attr in Code.__members__:
        return [partial(put, field="attr", value="QUOTA" if node.attr == "LEVEL" else "LEVEL")]
    if isinstance(node, ast.Attribute) and node.attr in Answer.__members__:
        return [partial(put, field="attr", value="ALLOW" if node.attr == "DENY" else "DENY")]
    if isinstance(node, ast.Name) and node.id in ENDS:
        return [partial(put, field="id", value=ENDS[node.id])]
    return []


def put(node, *, field, value):
    setattr(node, field, value)


def turn_operator(node, *, at):
    node.ops[at] = SWAPS[type(node.ops[at])]()


def survives(tree):
    """Say whether the table above holds of these rules as well."""
    mutant = type(authority)("mutant")
    sys.modules["mutant"] = mutant  # Dataclasses look for their module.
    try:
        mutant.__dict__["__name__"] = "mutant"
        exec(compile(tree, "mutant", "exec"), mutant.__dict__)  # noqa: S102  # our own source
        return all(holds(mutant, *row) for row in TABLE)
    finally:
        del sys.modules["mutant"]


def holds(mutant, context, action, answer, code):
    pack = mutant.Pack(**{field: getattr(context.pack, field) for field in Pack.__slots__})
    context, action = replace(context, pack=pack), mutant.AgentAction(action.value)
    try:
        said = mutant.authorize(AGENT, action, context)
    except (TypeError, AttributeError, KeyError, AssertionError):
        return False
    return said is not None and (said.answer, said.code) == (answer, code)


def test_a_rule_that_is_turned_round_is_noticed():
    source = Path(authority.__file__).read_text(encoding="utf-8")
    assert survives(ast.parse(source))
    count = sum(1 for _ in places(ast.parse(source)))
    alive = []
    for number in range(count):
        tree = ast.parse(source)
        node, turn = list(places(tree))[number]
        before = ast.unparse(node)
        turn(node)
        ast.fix_missing_locations(tree)
        if survives(tree):
            alive.append(f"{before}  ->  {ast.unparse(node)}")
    assert count > 70
    assert len(alive) <= 0.05 * count, alive
