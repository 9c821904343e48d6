"""How recorded costs become the lines of an invoice, without a database."""

from dataclasses import replace
from datetime import UTC, datetime
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcbridge.billing.bill import (
    CLASSES,
    GroupKey,
    Rate,
    Sums,
    TermsThen,
    Why,
    amount_micro,
    apportion,
    make_lines,
    recorded_pico,
    round_half_even,
    split,
)
from qcbridge.billing.contracts import (
    Contract,
    Pack,
    Term,
    Tier,
    read_amount,
    read_contract,
    read_rate,
)
from qcbridge.billing.invoices import (
    format_micro,
    from_us,
    month,
    month_of,
    next_month,
    to_us,
)
from qcbridge.billing.merkle import MerkleTree
from qcnode.errors import BillingError
from qcnode.money import TokenUsage, format_pico, tokens_of

ROWS = ("ds/flash/input@2026", "ds/flash/output@2026")
PRICES = {
    "ds/flash/input@2026": Rate("input", 1_000_003),
    "ds/flash/output@2026": Rate("output", 4_000_001),
    "ds/flash/input@night": Rate("input", 500_001),
}


class Prices:
    """A price book of three rows."""

    digest = "book"

    def rate(self, row_id):
        return PRICES.get(row_id)


def key(**changes):
    made = GroupKey(
        why=Why.USAGE,
        month="2026-11",
        of_invoice=0,
        node="node-1",
        department="assembly",
        application="vision",
        function="solder",
        provider="ds",
        model="flash",
        currency="CNY",
        rows=ROWS,
    )
    return made._replace(**changes)


def sums(*, text=0, output=0, attempts=1, pico=None, price=1_000_003):
    tokens = tokens_of(TokenUsage(text=text, output=output))
    exact = text * price + output * 4_000_001
    return Sums(attempts=attempts, tokens=list(tokens), pico=exact if pico is None else pico)


def lines_of(groups, **terms):
    terms = {"contract": Contract(), "rates": Prices(), "period": "2026-11"} | terms
    return make_lines(groups, **terms)[0]


def test_a_line_is_one_token_class_at_one_price_row_of_one_account():
    lines = lines_of(
        {
            key(): sums(text=1_000, output=50),
            key(function="paint"): sums(text=10),
            key(node="node-2", department=""): sums(output=7),
        }
    )

    assert [(line.node, line.function, line.token_class, line.tokens) for line in lines] == [
        ("node-1", "paint", "text", 10),
        ("node-1", "solder", "output", 50),
        ("node-1", "solder", "text", 1_000),
        ("node-2", "solder", "output", 7),
    ]
    assert [line.list_pico for line in lines] == [
        10 * 1_000_003,
        200_000_050,
        1_000_003_000,
        28_000_007,
    ]
    assert {line.price_row for line in lines if line.token_class == "text"} == {ROWS[0]}


def test_what_several_groups_used_at_one_price_row_is_one_line():
    night = ("ds/flash/input@night", "ds/flash/output@2026")
    lines = lines_of(
        {
            key(): sums(text=100, output=5),
            key(rows=night): sums(text=100, output=7, price=500_001),
        }
    )
    assert [(line.token_class, line.price_row, line.tokens) for line in lines] == [
        ("output", ROWS[1], 12),
        ("text", ROWS[0], 100),
        ("text", night[0], 100),
    ]


@pytest.mark.parametrize(
    ("change", "row"),
    [
        ({"pico": 1}, " + ".join(ROWS)),  # not what the rows make
        ({}, "unknown"),  # no row of this book
    ],
)
def test_a_cost_that_its_rows_do_not_make_stays_in_one_piece_as_it_was_recorded(change, row):
    rows = ROWS if change else ("unknown",)
    [line] = lines_of({key(rows=rows): sums(text=10, output=1, **change)})
    assert (line.token_class, line.unit_micro, line.tokens) == ("", None, 11)
    assert line.price_row == row
    assert line.list_pico == (1 if change else 10 * 1_000_003 + 4_000_001)


@given(
    st.lists(
        st.tuples(st.integers(0, 10**7), st.integers(0, 10**6), st.booleans()),
        min_size=1,
        max_size=12,
    )
)
def test_nothing_is_lost_or_made_when_costs_are_divided_by_class(uses):
    groups = {}
    for number, (text, output, known) in enumerate(uses):
        rows = ROWS if known else (*ROWS, "surcharge")
        made = sums(text=text, output=output)
        groups[key(node=f"node-{number}", rows=rows)] = made
    lines = lines_of(groups)
    assert recorded_pico(lines).get("CNY", 0) == sum(one.pico for one in groups.values())
    assert sum(line.tokens for line in lines) == sum(sum(one.tokens) for one in groups.values())


@pytest.mark.parametrize(
    ("pico", "micro"),
    [
        (0, 0),
        (499_999, 0),
        (500_000, 0),  # a half goes to the even neighbour
        (500_001, 1),
        (1_500_000, 2),
        (2_500_000, 2),
        (2_500_001, 3),
        (-1_500_000, -2),
        (-2_500_000, -2),
    ],
)
def test_d6_a_half_micro_unit_goes_to_the_even_neighbour(pico, micro):
    assert round_half_even(pico, 10**6) == micro


@given(st.integers(-(10**30), 10**30), st.integers(1, 10**12))
def test_d6_rounding_is_half_to_even_whatever_the_fraction(numerator, denominator):
    assert round_half_even(numerator, denominator) == round(Fraction(numerator, denominator))


@given(
    st.lists(st.integers(0, 10**9), min_size=1, max_size=20),
    st.integers(0, 10_000),
    st.integers(1, 10**9),
)
def test_d6_a_line_is_rounded_once_from_the_exact_amount(parts, discount_bp, rate_micro):
    contract = Contract(terms=(term(discount_bp=discount_bp),))
    rate = read_rate(f"CNY={rate_micro // 10**6}.{rate_micro % 10**6:06d},2026-11-30,test")
    groups = {key(): sums(text=sum(parts))}

    for line in lines_of(groups, contract=contract, currency="USD", exchange=(rate,)):
        exact = Fraction(line.list_pico * (10_000 - discount_bp) * rate_micro, 10**4 * 10**6)
        assert line.amount_micro == round(exact / 10**6)


def test_d6_the_total_is_the_sum_of_the_lines_as_they_stand():
    half = {key(node=f"node-{n}", rows=("x",)): sums(text=1, pico=500_001) for n in range(3)}
    lines = lines_of(half)
    assert [line.amount_micro for line in lines] == [1, 1, 1]  # and not 2 for 1.5


def test_d8_currencies_are_never_summed_without_a_stated_rate():
    groups = {key(): sums(text=10), key(currency="USD", node="node-2"): sums(text=10)}

    assert recorded_pico(lines_of(groups)) == {"CNY": 10_000_030, "USD": 10_000_030}
    with pytest.raises(BillingError, match="state what one CNY is"):
        lines_of(groups, currency="USD")
    rate = read_rate("CNY=0.500000,2026-11-30,test")
    billed = lines_of(groups, currency="USD", exchange=(rate,))
    assert [(line.currency, line.amount_micro) for line in billed] == [("CNY", 5), ("USD", 10)]
    with pytest.raises(BillingError, match="two rates for CNY"):
        lines_of(groups, currency="USD", exchange=(rate, replace(rate, rate_micro=1)))


def test_d9_usage_in_yuan_is_billed_in_dollars_and_dollars_in_yuan():
    dollars = {key(currency="USD", rows=("x",)): sums(text=1, pico=1_000_000_000_000)}
    yuan = {key(currency="CNY", rows=("x",)): sums(text=1, pico=1_000_000_000_000)}
    [line] = lines_of(dollars, currency="CNY", exchange=(read_rate("USD=7.123456,2026-11-30,t"),))
    assert line.amount_micro == 7_123_456
    [line] = lines_of(yuan, currency="USD", exchange=(read_rate("CNY=0.139512,2026-11-30,t"),))
    assert line.amount_micro == 139_512
    assert lines_of(yuan, currency="CNY")[0].amount_micro == 1_000_000


@pytest.mark.parametrize("currency", ["CNY", "EUR", "JPY"])
def test_d9_no_currency_is_special(currency):
    [line] = lines_of({key(currency=currency, rows=("x",)): sums(text=1, pico=10**12)})
    assert (line.currency, line.amount_micro) == (currency, 10**6)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "CNY",
        "CNY=0.1",
        "CNY=0.1,2026-11-31,x",
        "cny=0.1,2026-11-30,x",
        "CNY=0,2026-11-30,x",
        "CNY=0.1234567,2026-11-30,x",
        "CNY=1e3,2026-11-30,x",
    ],
)
def test_a_rate_without_a_date_and_a_source_is_no_rate(text):
    with pytest.raises(BillingError, match="rate"):
        read_rate(text)


def term(**changes):
    made = Term(id="t", provider="ds", model="*", from_period="2026-01", to_period=None)
    return replace(made, **changes)


@pytest.mark.parametrize(
    ("tokens", "share"),
    [
        (0, Fraction(0)),
        (999, Fraction(1)),  # all of it in the free quota
        (1_000, Fraction(1)),
        (2_000, Fraction(1, 2)),
        (11_000, Fraction(1_000 + 100, 11_000)),
        (21_000, Fraction(1_000 + 1_000 // 10 + 10_000 // 4, 21_000)),
    ],
)
def test_a_rebate_is_graduated_over_the_volume_of_the_month(tokens, share):
    tiers = (Tier(above_tokens=10_000, rebate_bp=1_000), Tier(above_tokens=11_000, rebate_bp=2_500))
    back, whole = term(free_tokens=1_000, tiers=tiers).rebate(tokens)
    assert Fraction(back, whole) == share


@given(
    st.integers(0, 10**6),
    st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 10_000)), max_size=4),
    st.integers(0, 3 * 10**6),
)
def test_a_rebate_never_gives_back_more_than_was_paid(free, steps, tokens):
    tiers = tuple(Tier(above_tokens=a, rebate_bp=b) for a, b in sorted(dict(steps).items()))
    back, whole = term(free_tokens=free, tiers=tiers).rebate(tokens)
    assert 0 <= Fraction(back, whole) <= 1


def test_every_department_gets_the_same_share_of_a_rebate():
    contract = Contract(terms=(term(free_tokens=500),))
    groups = {key(department=name, rows=("x",)): sums(text=1_000, pico=10**9) for name in "ab"}
    lines = lines_of(groups, contract=contract, currency="CNY")
    assert [line.amount_micro for line in lines] == [750, 750]
    assert {line.rebate for line in lines} == {(5_000_000, 20_000_000)}


def test_discount_and_rebate_make_four_different_costs():
    contract = Contract(
        terms=(term(discount_bp=1_000, tiers=(Tier(above_tokens=500, rebate_bp=5_000),)),)
    )
    [line] = lines_of(
        {key(rows=("x",)): sums(text=1_000, pico=1_000_000_700_000)},
        contract=contract,
        currency="CNY",
    )
    listed = Fraction(line.list_pico, 10**12)
    contracted = listed * Fraction(9, 10)
    effective = contracted * Fraction(3, 4)
    assert Fraction(line.amount_micro, 10**6) == Fraction(round(effective * 10**6), 10**6)
    assert len({listed, contracted, effective, Fraction(line.amount_micro, 10**6)}) == 4


def pack(**changes):
    made = Pack(
        id="p1",
        provider="ds",
        model="*",
        token_class="*",
        tokens=1_000,
        price_micro=5_000_000,
        currency="CNY",
        bought_us=0,
        until_us=2**60,
    )
    return replace(made, **changes)


def test_tokens_of_a_pack_are_billed_with_the_pack_and_not_again():
    groups = {key(): sums(text=900, output=300), key(node="node-2"): sums(text=800)}
    lines, draws = make_lines(
        groups,
        period="2026-11",
        rates=Prices(),
        contract=Contract(),
        packs=[(pack(), 1_000)],
        currency="CNY",
    )
    assert [(draw.pack, draw.before, draw.tokens) for draw in draws] == [("p1", 1_000, 1_000)]
    covered = [line for line in lines if line.pack == "p1"]
    assert sum(line.tokens for line in covered) == 1_000
    assert {line.amount_micro for line in covered} == {0}
    # All share alike: half of what everybody used came from the pack.
    assert [(line.node, line.token_class, line.tokens) for line in covered] == [
        ("node-1", "output", 150),
        ("node-1", "text", 450),
        ("node-2", "text", 400),
    ]
    assert recorded_pico(lines) == {"CNY": sum(one.pico for one in groups.values())}


@given(st.integers(0, 10**6), st.lists(st.integers(0, 10**5), max_size=20))
def test_what_is_apportioned_adds_up_and_is_never_more_than_was_asked_for(total, weights):
    total = min(total, sum(weights))
    parts = apportion(total, weights)
    assert sum(parts) == (total if weights and sum(weights) else 0)
    assert all(0 <= part <= weight for part, weight in zip(parts, weights, strict=True))


class Then:
    """An earlier invoice that billed everything at half price, in dollars at 0.2."""

    def terms(self, number, provider, model, token_class, currency):
        assert (number, provider, model, currency) == (3, "ds", "flash", "CNY")
        assert token_class == ""
        return TermsThen("then", 5_000, (0, 1), 200_000)


def test_a7_a_credit_note_takes_back_what_was_billed_at_the_terms_of_then():
    groups = {
        key(why=Why.CREDIT, month="2026-10", of_invoice=3, rows=("x",)): Sums(
            attempts=-1, tokens=[-10, *[0] * 7], pico=-(10**12)
        ),
        key(why=Why.DEBIT, month="2026-10", of_invoice=3, rows=("y",)): Sums(
            attempts=1, tokens=[10, *[0] * 7], pico=8 * 10**11
        ),
    }
    contract = Contract(terms=(term(discount_bp=9_000),))
    rate = read_rate("CNY=0.900000,2026-11-30,now")
    credit, debit = lines_of(
        groups, contract=contract, currency="USD", exchange=(rate,), earlier=Then()
    )
    assert (credit.why, credit.amount_micro, credit.of_invoice) == ("credit", -100_000, 3)
    assert (debit.why, debit.amount_micro, debit.term) == ("debit", 80_000, "then")


def test_use_of_the_scripted_provider_is_on_the_invoice_and_not_charged():
    groups = {key(provider="scripted", rows=("x",)): sums(text=1, pico=10**12)}
    [shown] = lines_of(groups)
    assert (shown.scripted, shown.amount_micro) == (True, 10**6)
    [billed] = lines_of(groups, currency="CNY")
    assert (billed.scripted, billed.amount_micro, billed.list_pico) == (True, 0, 10**12)


def test_a_contract_is_read_with_its_terms_and_the_hash_of_its_bytes(tmp_path):
    path = tmp_path / "contract.toml"
    path.write_text(
        '[[term]]\nid = "a"\nprovider = "ds"\nmodel = "*"\nfrom_period = "2026-01"\n'
        'to_period = "2026-06"\ndiscount_bp = 1500\n'
        '[[term]]\nid = "b"\nprovider = "ds"\nmodel = "*"\nfrom_period = "2026-07"\n'
        "free_tokens = 1_000_000\n[[term.tier]]\nabove_tokens = 5_000_000\nrebate_bp = 700\n"
    )
    contract = read_contract(path)
    assert contract.term("ds", "flash", "2026-06").id == "a"
    assert contract.term("ds", "flash", "2026-07").id == "b"
    assert contract.term("ds", "flash", "2025-12") is None
    assert contract.term("openai", "flash", "2026-07") is None
    assert contract.terms[1].tiers == (Tier(above_tokens=5_000_000, rebate_bp=700),)
    assert len(contract.sha256) == 64


TERM = '[[term]]\nid = "{id}"\nprovider = "ds"\nmodel = "{model}"\nfrom_period = "2026-01"\n'


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[terms]\n", "unknown key 'terms'"),
        (TERM.format(id="a", model="*") + "discount = 5\n", "unknown key 'discount'"),
        (TERM.format(id="a", model="*") + "discount_bp = 10_001\n", "basis points"),
        (TERM.format(id="a", model="*") + "discount_bp = 1.5\n", "basis points"),
        (TERM.format(id="a", model="*") + "free_tokens = -1\n", "whole number of tokens"),
        (TERM.format(id="a", model="*") + TERM.format(id="a", model="x"), "two terms are called"),
        (TERM.format(id="a", model="fl*") + TERM.format(id="b", model="flash"), "meet"),
        (
            TERM.format(id="a", model="*")
            + "[[term.tier]]\nabove_tokens = 2\nrebate_bp = 1\n"
            + "[[term.tier]]\nabove_tokens = 1\nrebate_bp = 2\n",
            "rising order",
        ),
        ("[[term]]\nid = 5\n", "id is 5"),
        ("term = 1\n", r"write \[\[term\]\]"),
    ],
)
def test_a_contract_that_could_be_read_two_ways_is_refused(tmp_path, text, says):
    path = tmp_path / "contract.toml"
    path.write_text(text)
    with pytest.raises(BillingError, match=says):
        read_contract(path)


@pytest.mark.parametrize("text", ["", "1,5", "-1", "1e3", "1.1234567", "x"])
def test_an_amount_that_is_no_money_is_refused(text):
    with pytest.raises(BillingError, match="amount"):
        read_amount(text)
    assert read_amount("5000.00") == 5_000_000_000


def test_a_group_without_cost_or_tokens_makes_no_line():
    assert lines_of({key(): Sums()}) == ()
    assert split(Sums(), ROWS, Prices()) == []


def test_tokens_stand_in_the_order_of_their_classes():
    usage = TokenUsage(**{str(name): n for n, name in enumerate(CLASSES)})
    assert tokens_of(usage) == tuple(range(len(CLASSES)))


def test_the_amount_of_a_line_is_what_its_own_terms_say():
    [line] = lines_of({key(rows=("x",)): sums(text=1, pico=123_456_789_012)}, currency="CNY")
    assert amount_micro(replace(line, discount_bp=5_000)) == 61_728
    assert amount_micro(replace(line, rebate=(1, 3))) == 82_305


# RFC 6962 section 2.1.3 has the shape; these are its trees over d0 to d6 written out.
def test_a_tree_hash_is_that_of_rfc_6962():
    import hashlib  # noqa: PLC0415  # the oracle is the RFC's own recursion

    def oracle(leaves):
        if not leaves:
            return hashlib.sha256(b"").digest()
        if len(leaves) == 1:
            return hashlib.sha256(b"\x00" + leaves[0]).digest()
        k = 1 << (len(leaves) - 1).bit_length() - 1
        return hashlib.sha256(b"\x01" + oracle(leaves[:k]) + oracle(leaves[k:])).digest()

    for size in range(70):
        leaves = [bytes([n]) * 32 for n in range(size)]
        tree = MerkleTree()
        for leaf in leaves:
            tree.add(leaf)
        assert tree.root() == oracle(leaves), size


def test_a_tree_of_any_length_is_kept_in_little_memory():
    tree = MerkleTree()
    for number in range(1_000):
        tree.add(number.to_bytes(2, "big"))
    assert len(tree._peaks) == (1_000).bit_count()


def test_months_run_from_midnight_to_midnight_utc():
    november = month("2026-11")
    assert from_us(november.from_us) == datetime(2026, 11, 1, tzinfo=UTC)
    assert from_us(november.to_us) == datetime(2026, 12, 1, tzinfo=UTC)
    assert from_us(month("2026-12").to_us) == datetime(2027, 1, 1, tzinfo=UTC)
    assert month_of(from_us(november.to_us - 1)) == november
    assert (next_month("2026-11"), next_month("2026-12")) == ("2026-12", "2027-01")
    assert to_us(from_us(1_794_787_200_000_000)) == 1_794_787_200_000_000


@pytest.mark.parametrize("name", ["", "2026", "2026-13", "2026-11-01", "0000-01", "9999-12", "x"])
def test_what_is_no_month_is_named(name):
    with pytest.raises(BillingError, match="is no month"):
        month(name)


@pytest.mark.parametrize(
    ("pico", "text"),
    [
        (0, "0.00"),
        (1, "0.000000000001"),
        (10**12, "1.00"),
        (-1_500_000_000_000, "-1.50"),
        (12_345_678_901_234_123_456_789_012, "12345678901234.123456789012"),
    ],
)
def test_an_amount_is_written_with_every_digit_it_has(pico, text):
    assert format_pico(pico) == text
    assert format_micro(-1_500_000) == "-1.500000"
