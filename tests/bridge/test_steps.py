"""An agent that may look closer before it rules: what it may ask for, and what that may cost."""

import asyncio
import json
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcbridge.agent import Means
from qcbridge.prices import PriceBook
from qcbridge.prompts import RULING_SCHEMA, parse_step, step_schema
from qcbridge.settled import Case
from qcbridge.tools import RESULT_BYTES_MAX, Step, Tool, Toolbox, ToolRequest
from qcnode.domain import Box, Finding, Opinion
from qcnode.errors import ProviderRefusedError, ProviderUnavailableError
from qcnode.health import HealthBoard
from qcnode.picture import decode_picture, encode_png
from tests.bridge.asking import (
    NOW,
    ListProvider,
    Notebook,
    answer,
    ask,
    bridge,
    make_agent,
    make_escalation,
    make_meter,
)

REGION = {"left": 200, "top": 100, "width": 50, "height": 40}
OFFERS = {"light": (0.8, 1.2)}


def wants(tool, **arguments):
    return step(request={"tool": tool} | arguments)


def rules(**changes):
    ruling = json.loads(answer()) | changes
    ruling.pop("part_id")
    return step(ruling=ruling)


def step(part_id="P-1", ruling=None, request=None):
    return json.dumps({"part_id": part_id, "ruling": ruling, "request": request})


class Drawer:
    """A place where proposals lie until somebody looks at them."""

    def __init__(self):
        self.taken = []

    def offers(self):
        return OFFERS

    def propose(self, *, who, knob, value, reason, escalation_id):
        self.taken.append((who, knob, value, reason, escalation_id))
        return "held"


def make_stepping(provider, *, steps_max=4, golden=None, tokens_max=None, proposals=None, **more):
    toolbox = Toolbox(counters=lambda: {"OK": 90, "NOT_OK": 10}, proposals=proposals)
    means = Means(golden=golden, toolbox=toolbox, steps_max=steps_max, tokens_max=tokens_max)
    return make_agent(provider, means=means, **more)[0]


def marked_picture():
    pixels = np.full((300, 400, 3), 90, np.uint8)
    pixels[100:140, 200:250] = (250, 10, 10)
    return encode_png(pixels)


async def test_without_steps_the_question_and_its_schema_are_as_ever():
    plain, stepless = ListProvider(answer()), ListProvider(answer())
    await ask(make_agent(plain)[0])
    await ask(make_agent(stepless, means=Means(toolbox=Toolbox(counters=dict), steps_max=1))[0])

    assert plain.asked[0][0] == stepless.asked[0][0]
    assert set(plain.asked[0][0].schema["properties"]) == set(RULING_SCHEMA["properties"])


async def test_each_step_is_a_request_of_its_own_with_what_was_learnt_in_it():
    provider = ListProvider(wants("counters"), wants("zoom", region=REGION), rules())
    agent = make_stepping(provider)

    opinion = await ask(agent, picture=marked_picture())

    assert opinion.finding is Finding.GOOD
    attempts = [metered.attempt for _, metered in provider.asked]
    assert [(a.id, a.number) for a in attempts] == [("a-1", 1), ("a-2", 2), ("a-3", 3)]
    cases = [json.loads(prompt.user) for prompt, _ in provider.asked]
    assert [case["steps_left"] for case in cases] == [3, 2, 1]
    assert cases[1]["results"] == [{"tool": "counters", "last_hour": {"OK": 90, "NOT_OK": 10}}]
    assert cases[2]["picture"]["panels"] == ["zoom", "part"]
    assert "counters" not in cases[1]["tools"]
    zoomed = decode_picture(provider.asked[2][0].jpeg, name="zoom").astype(int)
    assert ((zoomed[..., 0] > 200) & (zoomed[..., 1] < 90)).sum() > 1500


async def test_later_steps_are_no_repetitions_of_the_first_to_the_provider():
    provider = ListProvider(wants("counters"), ProviderUnavailableError("away"), rules())

    await ask(make_stepping(provider))

    assert [m.idempotency_key for _, m in provider.asked] == ["e-P-1", "e-P-1-2", "e-P-1-2"]


async def test_what_stays_of_the_question_is_the_same_at_every_step():
    provider = ListProvider(wants("counters"), wants("zoom", region=REGION), rules())

    await ask(make_stepping(provider))

    assert len({prompt.system for prompt, _ in provider.asked}) == 1


async def test_compare_shows_the_same_place_of_a_good_part():
    provider = ListProvider(wants("compare", region=REGION), rules())

    await ask(make_stepping(provider, golden=marked_picture))

    assert json.loads(provider.asked[1][0].user)["picture"]["panels"] == ["zoom", "golden"]


async def test_a_proposal_goes_to_whoever_decides_and_only_its_fate_comes_back():
    drawer = Drawer()
    proposal = {"knob": "light", "value": 1.1, "reason": "parts look dark"}
    provider = ListProvider(wants("propose", **proposal), rules())

    await ask(make_stepping(provider, proposals=drawer))

    assert drawer.taken == [("agent:scripted-provider", "light", 1.1, "parts look dark", "e-P-1")]
    (result,) = json.loads(provider.asked[1][0].user)["results"]
    assert result == {"tool": "propose", "knob": "light", "value": 1.1, "became": "held"}


async def test_a_tool_is_to_be_had_as_often_as_its_budget_says():
    provider = ListProvider(*[wants("counters")] * 2, rules())

    with pytest.raises(ProviderRefusedError, match="no such tool"):
        await ask(make_stepping(provider))
    assert len(provider.asked) == 2


async def test_the_last_step_takes_a_ruling_alone():
    provider = ListProvider(wants("counters"), wants("zoom", region=REGION), rules())

    with pytest.raises(ProviderRefusedError, match="no such tool"):
        await ask(make_stepping(provider, steps_max=2))
    schemas = [prompt.schema["properties"] for prompt, _ in provider.asked]
    assert schemas[1]["request"] == {"type": "null"}
    assert schemas[1]["ruling"]["type"] == "object"


async def test_no_step_is_taken_that_could_use_more_than_the_review_may():
    steps = set()
    for tokens_max in range(2_000, 40_000, 1_000):
        provider = ListProvider(*[wants("zoom", region=REGION)] * 2, rules())
        agent = make_stepping(provider, tokens_max=tokens_max)
        with suppress(ProviderRefusedError):  # Where the last step was no ruling, or none fits.
            await ask(agent, picture=marked_picture())
        used = sum(m.worst.input_tokens + m.worst.output_tokens for _, m in provider.asked)
        assert used <= tokens_max
        steps.add(len(provider.asked))

    assert steps == {0, 1, 2, 3}


async def test_money_is_put_aside_for_every_step_and_covers_what_it_sends():
    ledger = Notebook()
    provider = ListProvider(wants("counters"), wants("zoom", region=REGION), rules())
    meter = make_meter(ledger, HealthBoard(lambda: NOW))
    agent = make_stepping(provider, meter=meter, proposals=Drawer())

    await ask(agent)

    reserved = [fact.attempt.id for fact in ledger.facts if hasattr(fact, "worst")]
    assert reserved == ["a-1", "a-2", "a-3"]
    for prompt, metered in provider.asked:
        sent = prompt.system + prompt.user + json.dumps(prompt.schema)
        assert metered.worst.text >= len(sent.encode())
        assert metered.worst.input_tokens <= agent.worst().usage.input_tokens


async def test_an_opinion_says_what_all_its_steps_cost_at_most():
    provider = ListProvider(wants("counters"), ProviderUnavailableError("away"), rules())
    agent = make_stepping(provider)

    opinion = await ask(agent)

    prices = PriceBook.load()
    holds = [
        prices.worst_case(m.worst, "scripted", "scripted-provider", NOW) for _, m in provider.asked
    ]
    assert len(holds) == 3
    assert opinion.spent == ("USD", sum(hold.pico for hold in holds))


async def test_an_opinion_says_what_its_tokens_cost(tmp_path):
    async with bridge(tmp_path) as way:
        way.provider.parts(P_1="dent")
        opinion = await ask(way.agent)
        totals = way.ledger.totals()

    assert opinion.spent == ("USD", totals.cost_pico["USD"])
    assert opinion.provider == "scripted"


async def test_settled_cases_come_as_a_few_words():
    class Known:
        def nearest(self, *_):
            return [
                Case(
                    inspection_id="i-9",
                    model="bank@0123",
                    picture_sha256=None,
                    box=None,
                    finding=Finding.DEFECTIVE,
                    defect_class="dent",
                    reason="r" * 500,
                    who="ada",
                )
            ]

    provider = ListProvider(wants("settled_cases"), rules())
    toolbox = Toolbox(settled=Known())
    agent, _ = make_agent(provider, means=Means(toolbox=toolbox, steps_max=2))

    await ask(agent)

    (result,) = json.loads(provider.asked[1][0].user)["results"]
    assert result["cases"] == [
        {"finding": "defective", "defect_class": "dent", "reason": "r" * 119 + "…"}
    ]


async def test_all_steps_of_a_review_end_with_its_time():
    provider = ListProvider(wants("counters"), None)

    with pytest.raises(ProviderUnavailableError, match="no ruling in"):
        await ask(make_stepping(provider, review_timeout_s=0.2))


# -- what is no step -----------------------------------------------------------------------

LEFT = Step(left=2, uses=dict.fromkeys(Tool, 1), offers=OFFERS)


def parse(text, left=LEFT):
    return parse_step(
        text,
        make_escalation(),
        defect_classes=("scratch", "dent"),
        who="agent:a",
        step=left,
        size=(400, 300),
    )


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("I would like to zoom in.", "not the JSON object"),
        (answer(), "not the fields"),  # a ruling in the form of those asked once
        (step(), "not one of"),
        (step(ruling=json.loads(rules())["ruling"], request={"tool": "counters"}), "not one of"),
        (step("P-2", request={"tool": "counters"}), "another part"),
        (rules(release=True), "not the fields"),
        (step(ruling=json.loads(answer())), "not the fields"),
        (rules(confidence=float("nan")), "NaN is no number"),
        (rules(reason="see https://example.com"), "a link"),
        (step(ruling=["good"]), "no object"),
        (wants("release_part"), "no such tool"),
        (wants(["zoom"]), "no such tool"),
        (step(request={"region": REGION}), "no such tool"),
        (wants("counters", hours=10_000), "not the fields"),
        (wants("zoom"), "not the fields"),
        (wants("zoom", region=REGION | {"left": -1}), "no region"),
        (wants("zoom", region=REGION | {"left": 390}), "outside the picture"),
        (wants("zoom", region=REGION | {"width": 1}), "no region"),
        (wants("zoom", region=REGION | {"top": 1.5}), "no whole pixels"),
        (wants("zoom", region=REGION | {"top": True}), "no whole pixels"),
        (wants("zoom", region=[200, 100, 50, 40]), "no object"),
        (wants("compare", region=REGION | {"url": "https://a.b"}), "not the fields"),
        (wants("propose", knob="speed", value=1, reason="r"), "no such setting"),
        (wants("propose", knob="light", value=2, reason="r"), "is to be from 0.8 to 1.2"),
        (wants("propose", knob="light", value="1", reason="r"), "no number"),
        (wants("propose", knob="light", value=float("inf"), reason="r"), "Infinity is no number"),
        (wants("propose", knob="light", value=1, reason="www.example.com"), "a link"),
    ],
)
def test_what_is_not_exactly_a_step_is_refused_in_one_line(text, why):
    with pytest.raises(ProviderRefusedError, match=why) as refused:
        parse(text)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 400


async def test_a_refused_step_leaves_the_part_to_a_person_and_its_tokens_counted():
    provider = ListProvider(wants("zoom", region=REGION | {"left": 4_000}), rules())

    with pytest.raises(ProviderRefusedError, match="a person rules"):
        await ask(make_stepping(provider))
    assert len(provider.asked) == 1


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=8,
)
SIDES = st.fixed_dictionaries(dict.fromkeys(REGION, st.integers(-10, 500) | ANYTHING))
NEARLY = st.fixed_dictionaries(
    {
        "part_id": st.sampled_from(["P-1", "P-2"]) | ANYTHING,
        "ruling": st.none() | ANYTHING,
        "request": ANYTHING
        | st.fixed_dictionaries(
            {"tool": st.sampled_from(["zoom", "compare"])}, optional={"region": SIDES}
        )
        | st.fixed_dictionaries(
            {
                "tool": st.just("propose"),
                "knob": st.sampled_from(["light", "speed"]) | ANYTHING,
                "value": st.floats(0, 2) | ANYTHING,
                "reason": st.text() | ANYTHING,
            }
        ),
    }
)


@given(said=NEARLY | ANYTHING)
def test_any_answer_is_a_bounded_request_an_opinion_or_refused(said):
    try:
        found = parse(json.dumps(said))
    except ProviderRefusedError:
        return
    assert said["part_id"] == "P-1"
    assert isinstance(found, Opinion | ToolRequest)
    if isinstance(found, ToolRequest):
        if found.region is not None:
            box = found.region
            assert box.left >= 0
            assert box.top >= 0
            assert box.left + box.width <= 400
            assert box.top + box.height <= 300
        if found.tool is Tool.PROPOSE:
            assert 0.8 <= found.value <= 1.2


def test_the_schema_is_closed_to_its_last_object():
    def closed(schema):
        if schema.get("type") == "object":
            assert schema["additionalProperties"] is False
            assert schema["required"] == list(schema["properties"])
        for inner in (*schema.get("properties", {}).values(), *schema.get("anyOf", ())):
            closed(inner)

    closed(step_schema(("scratch",), tuple(Tool), ("light",)))
    closed(step_schema(("scratch",), (), ()))


def test_no_result_is_longer_than_was_reserved_for_it():
    toolbox = Toolbox(counters=lambda: {"x" * 50 + str(n): n for n in range(100)})
    request = ToolRequest(tool=Tool.COUNTERS)

    result = toolbox.use(
        request, escalation=make_escalation(), views=None, who="a", side_max_px=448, count=max
    )

    assert result.said == {"tool": "counters", "too_long": True}
    assert RESULT_BYTES_MAX < 2048


# -- stopped by people ---------------------------------------------------------------------


class Switch:
    def __init__(self):
        self.off = set()

    def stopped(self, *scopes):
        return bool(self.off & {"all", *scopes})

    def add_listener(self, _):
        raise AssertionError


@pytest.mark.parametrize("scope", ["all", "line", "agent:scripted-provider", "provider:scripted"])
async def test_a_stopped_agent_sends_nothing(scope):
    switch, provider = Switch(), ListProvider(answer())
    agent, _ = make_agent(provider, stops=switch)
    switch.off.add(scope)

    with pytest.raises(ProviderUnavailableError, match="is stopped"):
        await ask(agent)
    assert not provider.asked
    assert not agent.reachable()

    switch.off.clear()
    assert agent.reachable()
    assert (await ask(agent)).finding is Finding.GOOD


async def test_a_request_under_way_is_cut_off_when_its_agent_is_stopped():
    switch, provider = Switch(), ListProvider(None, answer())
    agent, _ = make_agent(provider, stops=switch, attempts_max=5)
    asking = asyncio.create_task(ask(agent))
    await provider.waits.wait()

    switch.off.add("provider:scripted")
    with pytest.raises(ProviderUnavailableError, match="is stopped"):
        async with asyncio.timeout(5):
            await asking
    assert len(provider.asked) == 1


def test_a_region_is_where_it_was_asked_for():
    found = parse(wants("zoom", region=REGION))

    assert found.region == Box(**REGION)


async def test_the_scripted_provider_rules_at_the_first_of_several_steps(tmp_path):
    means = Means(steps_max=3)
    async with bridge(tmp_path, agent={"means": means}) as way:
        way.provider.parts(P_1="dent")
        opinion = await ask(way.agent)

    assert (opinion.finding, opinion.defect_class) == (Finding.DEFECTIVE, "dent")
    assert len(way.provider.requests()) == 1


async def test_the_share_of_the_prompt_that_is_cached_grows_with_each_part(tmp_path):
    async with bridge(tmp_path) as way:
        way.provider.parts(**{f"P_{number}": "good" for number in range(8)})
        shares, cached, sent = [], 0, 0
        for number in range(8):
            await ask(way.agent, f"P-{number}")
            usage = way.provider.requests()[-1]["usage"]
            cached += usage["prompt_tokens_details"]["cached_tokens"]
            sent += usage["prompt_tokens"]
            shares.append(cached / sent)

    assert shares[0] == 0
    assert shares == sorted(set(shares))
    assert shares[-1] > 0.25
