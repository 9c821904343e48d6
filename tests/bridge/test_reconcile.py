"""Our record beside the provider's: what agrees, what only one has, what is settled by it."""

import io
import json
import zipfile
from dataclasses import replace

import pytest

from qcbridge.billing.bill import recorded_pico
from qcbridge.billing.book_rates import BookRates
from qcbridge.billing.contracts import read_rate
from qcbridge.billing.papers import COLUMNS, invoice_text, reconciliation_text, totals_text
from qcbridge.billing.provider_bills import BilledRecord, read_bill
from qcbridge.billing.reconcile import DayCapture
from qcbridge.billing.reconciled import Reconciler
from qcbridge.prices import PriceBook
from qcnode.errors import BillingError
from qcnode.money import TokenUsage
from tests.bridge.paper_world import DECEMBER, MICRO, NOVEMBER, PaperWorld, at, rows

DAY = "2026-11-16"
USAGE = TokenUsage(text=800, cache_read=200, output=40, reasoning=10)

OPENROUTER = (
    "generation_id,created_at,cost_total,cost_web_search,cost_cache,tokens_prompt,"
    "tokens_completion,tokens_reasoning,tokens_cached,model_permaslug,provider_name,variant,"
    "cancelled,streamed,api_key_name,app_name\n"
)
AMOUNT = "user_id,start_time_iso,end_time_iso,model,api_key_name,api_key,type,price,amount\n"
AMOUNT_LEGACY = "user_id,utc_date,model,api_key_name,api_key,type,price,amount\n"
COST = "user_id,start_time_iso,end_time_iso,model,wallet_type,cost,currency\n"


@pytest.fixture
def world(tmp_path):
    opened = PaperWorld(f"sqlite:///{tmp_path}/billing.db", now="2026-11-18T00")
    yield opened
    opened.close()


def take(world, path, whose, **options):
    reader = {"currency": options.pop("currency")} if "currency" in options else {}
    bill = read_bill(path, whose, **reader)
    reconciler = Reconciler(world.books.database, world.resolutions, now=lambda: world.now)
    return reconciler.take("acme", bill, by="test", **options)


def written(tmp_path, text, name="export.csv"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def generation(
    name, *, at, cost="0.0125", model="openai/gpt-5.5-instant-20260501", tokens=(1_000, 50, 10, 200)
):
    prompt, completion, reasoning, cached = tokens
    return (
        f"{name},{at},{cost},0,0,{prompt},{completion},{reasoning},{cached},{model},OpenAI,,"
        f"false,true,factory,qcnode\n"
    )


# What files say.


def test_an_openrouter_activity_file_is_one_record_a_request(tmp_path):
    text = OPENROUTER + generation("gen-1", at="2026-11-16 03:46:57.713")
    bill = read_bill(written(tmp_path, text), "openrouter")
    [record] = bill.records
    assert record == BilledRecord(
        model="openai/gpt-5.5-instant-20260501",
        from_us=at("2026-11-16T03:46:57.713"),
        to_us=at("2026-11-16T03:46:57.713") + 1,
        account="factory",
        record_id="gen-1",
        requests=1,
        input_tokens=1_000,
        cached_tokens=200,
        output_tokens=50,
        reasoning_tokens=10,
        currency="USD",
        cost_pico=12_500_000_000,
    )
    assert (record.day, record.tokens) == (DAY, 1_050)
    assert len(bill.sha256) == 64


def test_an_openrouter_generation_that_was_looked_up_says_the_same(tmp_path):
    data = {
        "id": "gen-1",
        "created_at": "2026-11-16T03:46:57.713000+00:00",
        "model": "m",
        "total_cost": 0.1,
        "native_tokens_prompt": 10,
        "native_tokens_completion": 25,
        "native_tokens_reasoning": 5,
        "native_tokens_cached": 3,
    }
    [one] = read_bill(written(tmp_path, json.dumps({"data": data})), "openrouter").records
    [other] = read_bill(written(tmp_path, json.dumps([{"data": data}])), "openrouter").records
    assert one == other
    # Read as a decimal: a binary tenth would be 0.1000000000000000055.
    assert (one.cost_pico, one.cached_tokens) == (100_000_000_000, 3)


def test_openai_pages_of_usage_and_of_costs_are_sums_over_time(tmp_path):
    bucket = {"object": "bucket", "start_time": 1_794_787_200, "end_time": 1_794_873_600}
    usage = {
        "object": "organization.usage.completions.result",
        "input_tokens": 1_000,
        "output_tokens": 500,
        "input_cached_tokens": 800,
        "num_model_requests": 5,
        "project_id": "proj",
        "model": "gpt-5.5-instant-2026-05-01",
    }
    cost = {
        "object": "organization.costs.result",
        "amount": {"value": 0.06, "currency": "usd"},
        "line_item": "gpt-5.5-instant-2026-05-01, input",
        "project_id": "proj",
    }
    page = {"object": "page", "data": [{**bucket, "results": [usage, cost]}], "has_more": False}
    used, paid = read_bill(written(tmp_path, json.dumps(page)), "openai").records
    assert (used.requests, used.tokens, used.cached_tokens, used.cost_pico) == (5, 1_500, 800, None)
    assert (used.from_us, used.to_us) == (at("2026-11-16T00"), at("2026-11-17T00"))
    assert (paid.model, paid.currency, paid.cost_pico) == (
        "gpt-5.5-instant-2026-05-01",
        "USD",
        60_000_000_000,
    )
    assert (paid.requests, paid.tokens) == (None, None)


def test_openais_csv_has_the_same_columns_and_skips_empty_buckets(tmp_path):
    text = (
        "start_time,end_time,start_time_iso,end_time_iso,project_id,num_model_requests,model,"
        "input_tokens,output_tokens,input_cached_tokens\n"
        "1794787200,1794787260,2026-11-16T00:00:00+00:00,2026-11-16T00:01:00+00:00,,,,,,\n"
        "1794787260,1794787320,2026-11-16T00:01:00+00:00,2026-11-16T00:02:00+00:00,p,2,m,10,5,0\n"
    )
    [record] = read_bill(written(tmp_path, text), "openai").records
    assert (record.requests, record.tokens, record.model, record.account) == (2, 15, "m", "p")


def test_deepseeks_amounts_are_gathered_by_key_model_and_time(tmp_path):
    span = "2026-11-16T00:00:00+08:00,2026-11-17T00:00:00+08:00"
    text = (
        "\ufeff"
        + AMOUNT
        + "".join(
            f"u,{span},deepseek-flash,{key},sk-x,{kind},{price},{amount}\n"
            for key in ("a", "b")
            for kind, price, amount in (
                ("input_cache_hit_tokens", "0.000000028", 1_000),
                ("input_cache_miss_tokens", "0.00000028", 500),
                ("output_tokens", "0.00000042", 200),
                ("request_count", "", 3),
            )
        )
    )
    one, two = read_bill(written(tmp_path, text), "deepseek", currency="cny").records
    assert (one.account, two.account) == ("a", "b")
    assert (one.requests, one.input_tokens, one.cached_tokens, one.output_tokens) == (
        *(3, 1_500, 1_000, 200),
    )
    # A day of China begins eight hours before that of UTC.
    assert (one.from_us, one.to_us) == (at("2026-11-15T16"), at("2026-11-16T16"))
    assert (one.currency, one.cost_pico) == ("CNY", 28_000_000 + 140_000_000 + 84_000_000)
    assert read_bill(written(tmp_path, text), "deepseek").records[0].cost_pico is None


@pytest.mark.parametrize("day", ["20261116", "2026-11-16"])
def test_deepseeks_older_files_have_days_of_utc(tmp_path, day):
    text = AMOUNT_LEGACY + f"u,{day},m,k,sk,output_tokens,0.000001,5\n"
    [record] = read_bill(written(tmp_path, text), "deepseek").records
    assert (record.from_us, record.to_us) == (at("2026-11-16T00"), at("2026-11-17T00"))


def test_deepseeks_zip_joins_what_was_used_with_what_was_paid(tmp_path):
    span = "2026-11-16T00:00:00Z,2026-11-17T00:00:00Z"
    amounts = AMOUNT + "".join(
        f"u,{span},m,{key},sk,{kind},,{n}\n"
        for key in "ab"
        for kind, n in (("output_tokens", 5), ("input_cache_miss_tokens", 7), ("request_count", 1))
    )
    costs = COST + f"u,{span},m,Paid,0.02,CNY\nu,{span},m,Granted,0.01,CNY\n"
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w") as archive:
        archive.writestr("amount-2026-11.csv", amounts)
        archive.writestr("cost-2026-11.csv", costs)
    [record] = read_bill(written(tmp_path, raw.getvalue(), "e.zip"), "deepseek").records
    assert (record.requests, record.tokens, record.cost_pico) == (2, 24, 30_000_000_000)
    [paid] = read_bill(written(tmp_path, costs), "deepseek").records
    assert (paid.tokens, paid.cost_pico, paid.currency) == (None, 30_000_000_000, "CNY")


@pytest.mark.parametrize(
    ("provider", "text", "says"),
    [
        ("acme", "", "exports of deepseek, openai, openrouter"),
        ("openrouter", "a,b\n1,2\n", "it has no column generation_id"),
        ("openrouter", OPENROUTER, "nothing in it"),
        ("openrouter", OPENROUTER + "gen-1,x\n", "another number of cells"),
        ("openrouter", OPENROUTER + generation("g", at="yesterday"), "Invalid isoformat"),
        ("openrouter", OPENROUTER + generation("g", at=DAY, cost="lots"), "'lots' is no number"),
        ("openrouter", OPENROUTER + generation("g", at=DAY, cost="NaN"), "is no number"),
        ("openrouter", '{"data": {}}', "no 'created_at'"),
        ("openai", "{}", "no 'data'"),
        ("openai", "{", "no usage export"),
        ("deepseek", AMOUNT_LEGACY + "u,2026-11-16,m,k,s,audio_tokens,1,1\n", "audio_tokens"),
        (
            "deepseek",
            AMOUNT_LEGACY + "u,2026-11-16,m,k,s,output_tokens,1,1.5\n",
            "'1.5' is no count",
        ),
        ("deepseek", COST + "u,2026-11-16T00:00Z,2026-11-17T00:00Z,m,Paid,1,\n", "no currency"),
        ("deepseek", b"PK\x03\x04nonsense", "no usage export"),
    ],
)
def test_a_file_that_cannot_be_read_one_way_only_is_refused_with_its_name(
    tmp_path, provider, text, says
):
    with pytest.raises(BillingError, match=says):
        read_bill(written(tmp_path, text), provider)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(BillingError, match=r"none\.csv: cannot be read"):
        read_bill(tmp_path / "none.csv", "openai")


# What comes of them.


def ask(world, number, *, cost_pico=12_500_000_000, model="openai", seconds=0):
    """One answered attempt at OpenRouter, whose answer is gen-NUMBER."""
    node = world.node()
    when = at(f"2026-11-16T0{number}") + seconds * 10**6
    attempt = node.intent(at_us=when, provider=model)
    cost = None if cost_pico is None else world.price(attempt, USAGE, when)
    if cost is not None:
        cost = replace(cost, pico=cost_pico)
    node.settle(attempt, at_us=when, usage=USAGE, cost=cost, response_id=f"gen-{number}")
    return attempt


def test_records_and_attempts_are_matched_by_the_providers_own_id(world, tmp_path):
    ask(world, 1)
    ask(world, 2, cost_pico=12_500_000_001)
    ask(world, 3)
    world.send()
    text = OPENROUTER + "".join(
        generation(name, at=f"{DAY} 0{hour}:00:00")
        for name, hour in (("gen-1", 1), ("gen-2", 2), ("gen-9", 3))
    )
    done = take(world, written(tmp_path, text), "openrouter", provider="openai")

    counts = done.report["counts"]
    assert (counts["matched"], counts["differing"], counts["lost"]) == (1, 1, 1)
    assert counts["ours_alone"] == 1  # gen-3, which the file does not know
    [differing] = done.report["differing"]
    assert "cost 12500000001 of ours, 12500000000 billed" in differing["words"]
    [lost] = done.report["lost"]
    assert lost["id"] == "gen-9"
    assert done.fresh
    assert done.alarm  # A third of the bill is on nobody's record.


def test_d10_the_capture_rate_is_ours_over_what_the_provider_billed(world, tmp_path):
    for number in range(1, 5):
        ask(world, number)
    world.send()
    text = OPENROUTER + "".join(
        generation(f"gen-{n}", at=f"{DAY} 0{n}:00:00", cost="0.0125" if n < 5 else "0.0001")
        for n in range(1, 6)
    )
    done = take(world, written(tmp_path, text), "openrouter", provider="openai")
    [day] = done.report["days"]
    assert (day["day"], day["unit"], day["ours"], day["billed"]) == (DAY, "USD", "0.05", "0.0501")
    assert (day["rate_bp"], day["alarm"], done.alarm) == (9_980, False, False)
    [shown] = world.books.reports.capture_days("acme", NOVEMBER)
    assert (shown.rate_bp, shown.alarm) == (9_980, False)
    capture = world.books.reports.capture("acme", NOVEMBER)
    assert "Capture rate of openai: 99.80 %" in totals_text(
        world.books.reports.totals("acme"), capture
    )
    assert "Capture rate of openai: 99.80 %" in invoice_text(world.draft(currency=None))


@pytest.mark.parametrize(
    ("ours", "billed", "rate", "alarm"),
    [
        (995, 1_000, 9_950, False),
        (9_949, 10_000, 9_949, True),
        (0, 1, 0, True),
        (5, 0, None, False),
    ],
)
def test_d10_a_capture_rate_under_99_5_percent_is_an_alarm(ours, billed, rate, alarm):
    day = DayCapture(day=DAY, unit="USD", ours=ours, billed=billed)
    assert (day.rate_bp, day.alarm) == (rate, alarm)


def test_d7_the_same_file_again_changes_nothing(world, tmp_path):
    world.node().lose(at_us=at("2026-11-16T01"), provider="openai")
    ask(world, 2)
    world.send()
    text = OPENROUTER + "".join(
        generation(name, at=when)
        for name, when in (("gen-7", f"{DAY} 01:00:02"), ("gen-2", f"{DAY} 02:00:00"))
    )
    path = written(tmp_path, text)
    first = take(world, path, "openrouter", provider="openai")
    totals = world.books.reports.totals("acme")
    again = take(world, path, "openrouter", provider="openai")
    assert (first.fresh, again.fresh) == (True, False)
    assert again.report == first.report
    assert world.books.reports.totals("acme") == totals
    assert "This file was taken before" in reconciliation_text(again.report, fresh=False)
    # By what is in it, and not by what it is called.
    assert not take(
        world, written(tmp_path, text, "other.csv"), "openrouter", provider="openai"
    ).fresh


def test_a_timed_out_attempt_is_settled_by_the_only_record_it_can_be(world, tmp_path):
    lost = world.node().lose(at_us=at("2026-11-16T01"), provider="openai")
    world.send()
    text = OPENROUTER + generation("gen-7", at=f"{DAY} 01:00:02")
    done = take(world, written(tmp_path, text), "openrouter", provider="openai")
    assert done.report["counts"]["settled"] == 1
    assert done.report["settled"] == [
        {"attempt": lost.id, "node": "node-1", "cost": "0.0125", "currency": "USD"}
    ]
    totals = world.books.reports.totals("acme")
    assert (totals.indeterminate, totals.reconciled) == (0, 1)
    assert totals.cost_pico == {"USD": 12_500_000_000}
    [day] = done.report["days"]
    assert day["rate_bp"] == 10_000
    world.clock("2026-12-01T00")
    invoice = world.issue(currency="USD", exchange=(read_rate("CNY=0.14,2026-11-30,x"),))
    assert recorded_pico(invoice.lines) == {"USD": 12_500_000_000}
    assert world.verify(invoice, tmp_path / "x").problems == []


@pytest.mark.parametrize(
    "records",
    [
        [("gen-7", f"{DAY} 01:00:02"), ("gen-8", f"{DAY} 01:00:03")],  # two for one attempt
        [("gen-7", f"{DAY} 03:00:02")],  # at another time
        [("gen-7", f"{DAY} 01:00:02", "another/model")],
    ],
)
def test_what_can_be_meant_two_ways_is_not_guessed(world, tmp_path, records):
    world.node().lose(at_us=at("2026-11-16T01"), provider="openai")
    world.send()
    text = OPENROUTER + "".join(
        generation(name, at=when, **({"model": model[0]} if model else {}))
        for name, when, *model in records
    )
    done = take(world, written(tmp_path, text), "openrouter", provider="openai")
    counts = done.report["counts"]
    assert (counts["settled"], counts["lost"]) == (0, len(records))
    assert world.books.reports.totals("acme").indeterminate == 1
    assert done.alarm


def test_more_tokens_than_an_attempt_can_have_used_are_not_its_own(world, tmp_path):
    world.node().lose(at_us=at("2026-11-16T01"), provider="openai")
    world.send()
    text = OPENROUTER + generation("g", at=f"{DAY} 01:00:02", tokens=(9_000, 50, 0, 0))
    done = take(world, written(tmp_path, text), "openrouter", provider="openai")
    assert done.report["counts"]["settled"] == 0


def test_use_without_a_price_is_settled_by_the_providers_cost(world, tmp_path):
    ask(world, 1, cost_pico=None)
    world.send()
    assert world.books.reports.totals("acme").unpriced == 1
    text = OPENROUTER + generation("gen-1", at=f"{DAY} 01:00:00")
    done = take(world, written(tmp_path, text), "openrouter", provider="openai")
    assert done.report["counts"]["settled"] == 1
    totals = world.books.reports.totals("acme")
    assert (totals.unpriced, totals.cost_pico) == (0, {"USD": 12_500_000_000})
    assert totals.usage == USAGE  # Counted once, when it was settled.


def deepseek(requests, miss, hit, output, *, cost=None):
    span = "2026-11-16T00:00:00Z,2026-11-17T00:00:00Z"
    if cost is not None:
        return COST + f"u,{span},deepseek-flash,Paid,{cost},CNY\n"
    return AMOUNT + "".join(
        f"u,{span},deepseek-flash,k,sk,{kind},,{amount}\n"
        for kind, amount in (
            ("request_count", requests),
            ("input_cache_miss_tokens", miss),
            ("input_cache_hit_tokens", hit),
            ("output_tokens", output),
        )
    )


def answered(world, hours=(1, 2)):
    for hour in hours:
        world.node().use(at_us=at(f"2026-11-16T0{hour}"), usage=USAGE)
    world.send()


def test_sums_of_a_day_are_compared_with_the_sums_of_ours(world, tmp_path):
    answered(world)
    done = take(world, written(tmp_path, deepseek(2, 1_600, 400, 100)), "deepseek")
    assert done.report["counts"]["matched"] == 1
    assert [(day["unit"], day["rate_bp"]) for day in done.report["days"]] == [("tokens", 10_000)]
    more = take(world, written(tmp_path, deepseek(3, 2_400, 600, 150)), "deepseek")
    [differing] = more.report["differing"]
    assert differing["words"] == (
        "input tokens 2000 of ours, 3000 billed; output tokens 100 of ours, 150 billed;"
        " requests 2 of ours, 3 billed"
    )
    assert more.alarm


def test_sums_of_money_are_compared_in_their_own_currency(world, tmp_path):
    answered(world, hours=(1,))
    pico = world.recorded()["CNY"]
    exact = f"{pico // 10**12}.{pico % 10**12:012d}"
    done = take(world, written(tmp_path, deepseek(0, 0, 0, 0, cost=exact)), "deepseek")
    assert done.report["counts"]["matched"] == 1
    assert [(day["unit"], day["rate_bp"]) for day in done.report["days"]] == [("CNY", 10_000)]


def test_d8_a_bill_in_another_currency_is_never_summed_with_ours(world, tmp_path):
    answered(world, hours=(1,))
    text = deepseek(0, 0, 0, 0, cost="1.00").replace("CNY", "USD")
    done = take(world, written(tmp_path, text), "deepseek")
    [differing] = done.report["differing"]
    assert differing["words"] == "the provider bills in USD"
    assert done.report["days"] == []


def test_a_timed_out_attempt_that_the_sums_leave_out_was_not_billed(world, tmp_path):
    answered(world)
    world.node().lose(at_us=at("2026-11-16T03"))
    world.node().lose(at_us=at("2026-11-16T04"))
    world.send()
    before = world.recorded()
    done = take(world, written(tmp_path, deepseek(2, 1_600, 400, 100)), "deepseek")
    assert [one["cost"] for one in done.report["settled"]] == ["0.00", "0.00"]
    totals = world.books.reports.totals("acme")
    assert (totals.indeterminate, totals.held_pico, totals.cost_pico) == (0, {}, before)


def test_what_the_sums_leave_over_is_the_one_attempt_nobody_knew(world, tmp_path):
    answered(world)
    lost = world.node().lose(at_us=at("2026-11-16T03"))
    world.send()
    path = written(tmp_path, deepseek(3, 2_000, 450, 130))
    # 400 of the input and 50 of the cache are left, and 30 of the output.
    rest = TokenUsage(unknown=400, cache_read=50, output=30)
    plain = PriceBook(rows("deepseek", micro={k: v for k, v in MICRO.items() if k != "image"}))
    before = world.recorded()["CNY"]
    done = take(world, path, "deepseek", rates=BookRates(plain))
    assert [one["attempt"] for one in done.report["settled"]] == [lost.id]
    totals = world.books.reports.totals("acme")
    assert (totals.indeterminate, totals.reconciled) == (0, 1)
    cost = plain.price(rest, "deepseek", "deepseek-flash", world.now)
    assert totals.cost_pico["CNY"] - before == cost.pico > 0


def test_tokens_that_may_be_text_or_picture_are_not_priced_by_guess(world, tmp_path):
    answered(world)
    world.node().lose(at_us=at("2026-11-16T03"))
    world.send()
    path = written(tmp_path, deepseek(3, 2_000, 450, 130))
    done = take(world, path, "deepseek", rates=world.rates)  # Pictures have another price.
    assert (done.report["counts"]["settled"], done.report["counts"]["open"]) == (0, 1)


def test_two_attempts_that_the_sums_cannot_tell_apart_stay_open(world, tmp_path):
    answered(world)
    world.node().lose(at_us=at("2026-11-16T03"))
    world.node().lose(at_us=at("2026-11-16T04"))
    world.send()
    done = take(world, written(tmp_path, deepseek(3, 2_000, 450, 130)), "deepseek")
    assert (done.report["counts"]["settled"], done.report["counts"]["open"]) == (0, 2)


def test_a_dated_policy_writes_off_what_the_provider_does_not_know(world, tmp_path):
    answered(world, hours=(1,))
    old = world.node().lose(at_us=at("2026-11-16T03"))
    world.node().lose(at_us=at("2026-11-16T04"))
    world.send()
    text = deepseek(9, 9_999, 0, 999)
    world.clock("2026-11-26T03:30")
    done = take(world, written(tmp_path, text), "deepseek", write_off_after_days=10)
    assert done.report["written_off"] == [old.id]
    assert (done.report["counts"]["written_off"], done.report["counts"]["open"]) == (1, 1)
    totals = world.books.reports.totals("acme")
    assert (totals.written_off, totals.indeterminate) == (1, 1)
    assert totals.written_off_pico == {"CNY": 9_000_000_000}


def test_a_run_that_was_cut_short_is_done_again_and_decides_once(world, tmp_path, monkeypatch):
    world.node().lose(at_us=at("2026-11-16T01"), provider="openai")
    world.send()
    path = written(tmp_path, OPENROUTER + generation("gen-7", at=f"{DAY} 01:00:02"))

    def die(*_args, **_options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Reconciler, "_note", die)
        with pytest.raises(KeyboardInterrupt):
            take(world, path, "openrouter", provider="openai")
    totals = world.books.reports.totals("acme")
    assert totals.reconciled == 1
    done = take(world, path, "openrouter", provider="openai")
    assert (done.fresh, done.report["counts"]["settled"]) == (True, 1)
    assert world.books.reports.totals("acme") == totals


def test_the_node_hears_of_a_settlement_and_its_entry_is_not_billed_again(world, tmp_path):
    node = world.node()
    node.lose(at_us=at("2026-11-16T01"), provider="openai")
    world.send()
    text = OPENROUTER + generation("gen-7", at=f"{DAY} 01:00:02")
    take(world, written(tmp_path, text), "openrouter", provider="openai")
    node.use(at_us=at("2026-11-17T01"), provider="openai")
    receipt = node.send()
    [decided] = receipt.resolutions
    assert decided.source == "openrouter export.csv"
    node.write(decided, at_us=at("2026-11-17T02"))
    assert node.send().resolutions == ()
    world.clock("2026-12-01T00")
    world.issue(currency="USD")
    world.clock("2027-01-01T00")
    december = world.issue(DECEMBER, currency="USD")
    assert december.lines == ()


def test_a_report_fits_a_terminal(world, tmp_path):
    ask(world, 1)
    world.send()
    text = OPENROUTER + generation("gen-" + "9" * 90, at=f"{DAY} 01:00:00")
    done = take(world, written(tmp_path, text), "openrouter", provider="openai")
    shown = reconciliation_text(done.report, fresh=True)
    assert max(len(line) for line in shown.splitlines()) <= COLUMNS
    assert "ALARM: under 99.5 %" in shown
    assert json.loads(json.dumps(done.report)) == done.report
