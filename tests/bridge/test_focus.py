"""An issued invoice as FOCUS 1.2: what is in the rows, and what the check finds in others."""

import csv
import sys
from dataclasses import replace
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from qcbridge.billing.contracts import Contract, Pack, Term, Tier, read_rate
from qcbridge.billing.focus import BUCKETS, HEADER, FocusRows
from qcbridge.billing.focus_check import FocusCheck
from qcbridge.billing.focus_files import check_file, write_csv, write_parquet
from qcbridge.billing.focus_rules import COLUMNS, RULES
from qcnode.errors import BillingError
from qcnode.money import Adjusted, Cost, Reconciled
from tests.bridge.paper_world import DECEMBER, PAINT, PaperWorld, at

RATE = read_rate("USD=7.123456,2026-11-30,PBOC central parity")
CONTRACT = Contract(
    terms=(
        Term(
            id="ds-2026",
            provider="deepseek",
            model="*",
            from_period="2026-01",
            to_period=None,
            discount_bp=1_550,
            free_tokens=100,
            tiers=(Tier(above_tokens=2_000, rebate_bp=777),),
        ),
    ),
    sha256="cd" * 32,
)
PACK = Pack(
    id="pack-1",
    provider="deepseek",
    model="*",
    token_class="text",
    tokens=1_234,
    price_micro=3_333_333,
    currency="USD",
    bought_us=at("2026-11-02T05"),
    until_us=at("2027-11-02T00"),
)
MANDATORY = {
    *("BilledCost", "BillingAccountId", "BillingAccountName", "BillingCurrency"),
    *("BillingPeriodEnd", "BillingPeriodStart", "ChargeCategory", "ChargeClass"),
    *("ChargeDescription", "ChargePeriodEnd", "ChargePeriodStart", "ContractedCost"),
    *("EffectiveCost", "InvoiceIssuerName", "ListCost", "PricingQuantity", "PricingUnit"),
    *("ProviderName", "PublisherName", "ServiceCategory", "ServiceName"),
}


@pytest.fixture(scope="module")
def issued(tmp_path_factory):
    """Two invoices with everything there is on one: packs, terms, currencies, corrections."""
    folder = tmp_path_factory.mktemp("focus")
    world = PaperWorld(f"sqlite:///{folder}/billing.db")
    one, two = world.node("node-1"), world.node("node-2")
    for hour in range(4):
        one.use(at_us=at(f"2026-11-16T0{hour}"), centre=PAINT)
        two.use(at_us=at(f"2026-11-21T0{hour}"), provider="openai" if hour % 2 else "deepseek")
    one.use(at_us=at("2026-11-16T00"), centre=PAINT)  # Twice in one hour.
    odd = two.intent(at_us=at("2026-11-22T00"), region="cn-north")
    two.settle(odd, at_us=at("2026-11-22T00"), cost=Cost(currency="CNY", pico=123_457, rows=("?",)))
    attempt = one.intent(at_us=at("2026-11-23T00"))
    cost = one.settle(attempt, at_us=at("2026-11-23T00"))
    lost = one.lose(at_us=at("2026-11-24T00"))
    world.send()
    world.resolutions.resolve(
        one.ledger,
        [
            Reconciled(
                attempt_id=lost.id,
                usage=None,
                cost=Cost(currency="USD", pico=987_654_321, rows=()),
                source="s",
                source_sha256="ab" * 32,
            )
        ],
        by="test",
    )
    world.invoices.buy("acme", PACK, by="test")
    world.clock("2026-12-01T00")
    november = world.issue(exchange=(RATE,), contract=CONTRACT)
    one.write(
        Adjusted(
            attempt_id=attempt.id, before=cost, after=replace(cost, pico=7, rows=()), reason="r"
        ),
        at_us=at("2026-12-02T00"),
    )
    two.use(at_us=at("2026-11-28T00"))  # Late.
    two.use(at_us=at("2026-12-05T00"))
    world.send()
    world.clock("2027-01-01T00")
    december = world.issue(DECEMBER, exchange=(RATE,), contract=CONTRACT)
    yield world, november, december
    world.close()


def rows_of(world, invoice, bucket="hour"):
    made = FocusRows(invoice, BUCKETS[bucket]).rows(world.invoices.nodes(invoice))
    return [dict(zip(HEADER, row, strict=True)) for row in made]


@pytest.mark.parametrize("form", ["csv", "parquet"])
@pytest.mark.parametrize("which", [1, 2])
def test_an_export_keeps_every_rule_and_bills_the_invoice_to_the_last_digit(
    issued, tmp_path, form, which
):
    world, invoice = issued[0], issued[which]
    path = tmp_path / f"focus.{form}"
    write = write_csv if form == "csv" else write_parquet
    count = write(path, FocusRows(invoice).rows(world.invoices.nodes(invoice)))

    check = check_file(path)

    assert check.findings() == ()
    assert check.rows == count > 10
    assert check.billed == {invoice.id: Decimal(invoice.total_micro).scaleb(-6)}
    assert sorted(path.parent.iterdir()) == [path]  # Nothing unfinished is left.


def test_all_mandatory_columns_are_there():
    assert {column.name for column in COLUMNS if column.level == "M"} >= MANDATORY
    assert set(HEADER) >= MANDATORY
    assert [name for name in HEADER if not name.startswith("x_")] == sorted(
        name for name in HEADER if not name.startswith("x_")
    )


def test_a_row_is_one_token_class_at_one_price_row_in_one_hour(issued):
    world, november, _ = issued
    rows = [row for row in rows_of(world, november) if row["x_Node"] == "node-1"]
    text = [row for row in rows if row["x_TokenClass"] == "text" and row["x_Pack"] is None]
    starts = [row["ChargePeriodStart"] for row in text]
    assert starts == sorted(set(starts))
    assert {row["ChargePeriodEnd"] - row["ChargePeriodStart"] for row in rows} == {3_600_000_000}
    assert {row["SkuPriceId"] for row in text} == {
        "deepseek/deepseek-flash/input@2026-01-01T00:00:00Z",
        "deepseek/deepseek-flash/input@2026-11-20T00:00:00Z",
    }
    twice = [row for row in rows if row["x_Attempts"] == 2]
    assert {row["ChargePeriodStart"] for row in twice} == {at("2026-11-16T00")}


def test_days_have_fewer_rows_and_the_same_sums(issued):
    world, november, _ = issued
    hours, days = rows_of(world, november), rows_of(world, november, "day")
    assert len(days) < len(hours)
    for column in ("BilledCost", "ListCost", "ContractedCost", "EffectiveCost", "ConsumedQuantity"):
        assert sum(row[column] or 0 for row in days) == sum(row[column] or 0 for row in hours)


def test_the_four_costs_are_four_numbers_where_there_is_a_contract(issued):
    world, november, _ = issued
    rows = [
        row
        for row in rows_of(world, november)
        if row["x_Term"] and row["x_TokenClass"] == "image" and row["x_Pack"] is None
    ]
    assert rows
    for row in rows:
        listed = Decimal(row["ListCost"]).scaleb(-18)
        contracted = Decimal(row["ContractedCost"]).scaleb(-22)
        effective = Decimal(row["EffectiveCost"]).scaleb(-12)
        billed = Decimal(row["BilledCost"]).scaleb(-6)
        assert listed > contracted > effective
        assert contracted == listed * Decimal("0.845")
        assert abs(billed - effective) <= Decimal("0.000001")
    assert len({row["BilledCost"] for row in rows}) > 1


def test_d9_prices_stand_in_the_currency_of_the_provider_and_of_the_invoice(issued):
    world, november, _ = issued
    rows = [row for row in rows_of(world, november) if row["PublisherName"] == "openai"]
    assert {(row["PricingCurrency"], row["BillingCurrency"]) for row in rows} == {("USD", "CNY")}
    for row in rows:
        assert (
            row["ListUnitPrice"] * 10**6 == row["PricingCurrencyListUnitPrice"] * 7_123_456 * 10**6
        )
        assert (row["x_ExchangeRate"], row["x_ExchangeRateDate"]) == (7_123_456, "2026-11-30")


def test_a_pack_is_a_purchase_whose_cost_is_spread_over_its_use(issued):
    world, november, _ = issued
    rows = rows_of(world, november)
    [bought] = [row for row in rows if row["ChargeCategory"] == "Purchase"]
    assert (bought["BilledCost"], bought["EffectiveCost"]) == (23_744_851, 0)
    assert bought["ChargeFrequency"] == "One-Time"
    assert bought["ChargePeriodStart"] == at("2026-11-02T05")
    used = [row for row in rows if row["x_Pack"] and row["ChargeCategory"] == "Usage"]
    assert {row["BilledCost"] for row in used} == {0}
    assert {row["PricingCategory"] for row in used} == {"Committed"}
    assert sum(row["ConsumedQuantity"] for row in used) == 1_234
    # The whole pack was used, so its whole price is effective.
    spread = Decimal(sum(row["EffectiveCost"] for row in used)).scaleb(-12)
    assert spread == (Decimal("3.333333") * Decimal("7.123456")).quantize(Decimal("1e-12"))


def test_d5_late_use_and_credits_are_corrections_of_an_earlier_period(issued):
    world, _, december = issued
    rows = rows_of(world, december)
    by_why = {}
    for row in rows:
        by_why.setdefault(row["x_Why"], []).append(row)
    assert set(by_why) == {"usage", "late", "credit", "debit"}
    assert {row["ChargeClass"] for row in by_why["usage"]} == {None}
    for why in ("late", "credit", "debit"):
        assert {row["ChargeClass"] for row in by_why[why]} == {"Correction"}
        assert all(row["ChargePeriodStart"] < row["BillingPeriodStart"] for row in by_why[why])
    assert all(row["BilledCost"] <= 0 for row in by_why["credit"])
    assert {row["x_OfInvoice"] for row in by_why["credit"]} == {"acme-000001"}
    assert {row["x_UsageMonth"] for row in by_why["late"]} == {"2026-11"}


def test_a_cost_without_a_price_row_is_one_charge_at_what_was_recorded(issued):
    world, november, _ = issued
    rows = [row for row in rows_of(world, november) if row["PricingUnit"] == "Units"]
    rows = [row for row in rows if row["ChargeCategory"] == "Usage"]
    assert [(row["SkuMeter"], row["PricingQuantity"], row["PricingCategory"]) for row in rows] == [
        ("Requests", 10**6, "Other"),
        ("Requests", 10**6, "Other"),
    ]
    assert {(row["ConsumedUnit"], row["ConsumedQuantity"]) for row in rows} == {
        ("Requests", 1),
        ("Tokens", 1_760),
    }
    assert {row["RegionId"] for row in rows} == {None, "cn-north"}


def test_parquet_holds_decimals_and_instants_and_no_float(issued, tmp_path):
    world, november, _ = issued
    write_parquet(tmp_path / "f.parquet", FocusRows(november).rows(world.invoices.nodes(november)))
    schema = pq.read_schema(tmp_path / "f.parquet")
    kinds = {str(field.type) for field in schema}
    assert schema.field("BilledCost").type == pa.decimal128(38, 6)
    assert schema.field("ChargePeriodStart").type == pa.timestamp("us", tz="UTC")
    assert not any("float" in kind or "double" in kind for kind in kinds)
    table = pq.read_table(tmp_path / "f.parquet")
    with (tmp_path / "f.csv").open("w") as _:
        pass
    write_csv(tmp_path / "f.csv", FocusRows(november).rows(world.invoices.nodes(november)))
    with (tmp_path / "f.csv").open(newline="") as file:
        text = list(csv.DictReader(file))
    for column in ("ContractedCost", "ListCost", "EffectiveCost", "BilledCost"):
        assert [Decimal(row[column]) for row in text] == table.column(column).to_pylist()


def test_without_pyarrow_parquet_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(BillingError, match="extra 'parquet', or export focus-csv"):
        write_parquet(tmp_path / "f.parquet", [])
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(BillingError, match="cannot be written"):
        write_csv(tmp_path / "none" / "f.csv", [])
    with pytest.raises(BillingError, match="no CSV file"):
        check_file(tmp_path / "none.csv")
    with pytest.raises(BillingError, match="no Parquet file"):
        check_file(tmp_path / "none.parquet")


def test_an_export_of_entries_that_are_not_what_was_billed_stops(issued):
    world, november, _ = issued
    changed = replace(november, lines=november.lines[1:])
    with pytest.raises(BillingError, match=r"are not what line .* verify-invoice 1"):
        list(FocusRows(changed).rows(world.invoices.nodes(november)))
    lines = (replace(november.lines[0], tokens=1), *november.lines[1:])
    with pytest.raises(BillingError, match="are not what line"):
        list(FocusRows(replace(november, lines=lines)).rows(world.invoices.nodes(november)))
    with pytest.raises(BillingError, match="are not what line"):
        list(FocusRows(november).rows([]))


# The check, on files of others.


@pytest.fixture(scope="module")
def good(issued, tmp_path_factory):
    """A file that keeps every rule, as lists of text."""
    world, november, _ = issued
    path = tmp_path_factory.mktemp("good") / "f.csv"
    write_csv(path, FocusRows(november).rows(world.invoices.nodes(november)))
    with path.open(newline="") as file:
        return list(csv.reader(file))


def checked(table, tmp_path):
    path = tmp_path / "changed.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(table)
    return {(finding.rule, finding.column) for finding in check_file(path).findings()}


USED = 5
"""A row of use without a pack."""


@pytest.mark.parametrize(
    ("column", "value", "rule"),
    [
        ("BilledCost", "", "BilledCost-C-000-M"),
        ("BilledCost", "1e5", "BilledCost-C-001-M"),
        ("BilledCost", "+5", "BilledCost-C-001-M"),
        ("BilledCost", "1,000", "BilledCost-C-001-M"),
        ("BilledCost", "$5", "BilledCost-C-001-M"),
        ("BilledCost", ".5", "BilledCost-C-001-M"),
        ("BilledCost", "9", "BilledCost-C-006-M"),
        ("BillingCurrency", "cny", "BillingCurrency-C-001-M"),
        ("BillingCurrency", "XYZ", "BillingCurrency-C-001-M"),
        ("BillingAccountType", "", "BillingAccountType-C-005-C"),
        ("BillingPeriodStart", "2026-11-01", "BillingPeriodStart-C-001-M"),
        ("BillingPeriodStart", "2026-11-01T00:00:00+08:00", "BillingPeriodStart-C-001-M"),
        ("BillingPeriodStart", "2026-13-01T00:00:00Z", "BillingPeriodStart-C-001-M"),
        ("BillingPeriodEnd", "2026-11-01T00:00:00Z", "BillingPeriodStart-C-004-M"),
        ("ChargeCategory", "usage", "ChargeCategory-C-003-M"),
        ("ChargeClass", "Late", "ChargeClass-C-003-M"),
        ("ChargeClass", "Correction", "Own-C-002-M"),
        ("ChargeDescription", "", "ChargeDescription-C-003-O"),
        ("ChargeFrequency", "Daily", "ChargeFrequency-C-003-M"),
        ("ChargePeriodEnd", "2026-11-01T00:00:00Z", "ChargePeriodStart-C-004-M"),
        ("ChargePeriodEnd", "2026-12-01T01:00:00Z", "Own-C-001-M"),
        ("ConsumedQuantity", "", "ConsumedQuantity-C-006-C"),
        ("ConsumedUnit", "", "ConsumedUnit-C-005-C"),
        ("ConsumedUnit", "1M Tokens", "ConsumedUnit-C-001-M"),
        ("ContractedCost", "5", "ContractedUnitPrice-C-011-C"),
        ("ContractedUnitPrice", "", "ContractedUnitPrice-C-004b"),
        ("ContractedUnitPrice", "-1", "ContractedUnitPrice-C-004c"),
        ("EffectiveCost", "", "EffectiveCost-C-000-M"),
        ("InvoiceIssuerName", "somebody else", "BilledCost-C-004-C"),
        ("ListCost", "5", "ListUnitPrice-C-010-C"),
        ("ListUnitPrice", "", "ListUnitPrice-C-003b"),
        ("PricingCategory", "", "PricingCategory-C-002b"),
        ("PricingCategory", "Spot", "PricingCategory-C-003-M"),
        ("PricingCurrency", "", "PricingCurrency-C-000-M"),
        ("PricingQuantity", "", "PricingQuantity-C-003b"),
        ("PricingUnit", "", "PricingUnit-C-006-C"),
        ("ResourceType", "", "ResourceType-C-005-C"),
        ("ServiceCategory", "AI", "ServiceCategory-C-003-M"),
        ("ServiceName", "", "ServiceName-C-000-M"),
        ("ServiceSubcategory", "Databases", "ServiceSubcategory-C-004-M"),
        ("ServiceSubcategory", "Bots", "ServiceName-C-008-C"),
        ("SkuId", "another", "SkuPriceId-C-008-M"),
        ("SkuMeter", "", "SkuMeter-C-005-C"),
        ("SkuPriceId", "", "SkuPriceId-C-003b"),
        ("SkuPriceDetails", "[]", "SkuPriceDetails-C-001-M"),
        ("SubAccountType", "", "SubAccountType-C-005-C"),
        ("Tags", '{"a": {"b": 1}}', "Tags-C-001-M"),
        ("Tags", '{"a": 1, "a": 2}', "Tags-C-001-M"),
        ("x_InvoiceTotal", "1", "BilledCost-C-006-M"),
    ],
)
def test_a_cell_that_breaks_a_rule_is_found_by_the_rules_own_name(
    good, tmp_path, column, value, rule
):
    assert checked(good, tmp_path) == set()
    table = [list(row) for row in good]
    place = table[0].index(column)
    assert table[USED][table[0].index("x_Pack")] == ""
    assert table[USED][place] != value
    table[USED][place] = value
    found = {name for name, _ in checked(table, tmp_path)}
    assert rule in found


def test_a_missing_column_and_one_of_nobody_are_found(good, tmp_path):
    place = good[0].index("ListCost")
    table = [[cell for n, cell in enumerate(row) if n != place] for row in good]
    table[0][0] = "billedcost"
    found = checked(table, tmp_path)
    assert ("CostAndUsage-D-001-M", "ListCost") in found
    assert ("CostAndUsage-D-001-M", "BilledCost") in found
    assert ("ColumnHandling-A-009-M", "billedcost") in found


def test_a_row_that_is_left_out_leaves_the_sum_short(good, tmp_path):
    table = [row for number, row in enumerate(good) if number != USED]
    assert checked(table, tmp_path) == {("BilledCost-C-006-M", "BilledCost")}


def test_a_purchase_with_an_effective_cost_is_found(good, tmp_path):
    table = [list(row) for row in good]
    header = table[0]
    [bought] = [row for row in table if row[header.index("ChargeCategory")] == "Purchase"]
    bought[header.index("EffectiveCost")] = "1"
    bought[header.index("ChargeFrequency")] = "Usage-Based"
    bought[header.index("ConsumedQuantity")] = "1"
    assert {rule for rule, _ in checked(table, tmp_path)} == {
        "EffectiveCost-C-005-C",
        "ChargeFrequency-C-004-C",
        "ConsumedQuantity-C-004-C",
        "ConsumedUnit-C-005-C",
    }


def test_a_row_that_is_cut_short_is_named(good, tmp_path):
    path = tmp_path / "short.csv"
    path.write_text(",".join(good[0]) + "\n1,2,3\n")
    with pytest.raises(BillingError, match="row 1 cannot be read: 3 cells under"):
        check_file(path)


def test_a_float_in_parquet_is_no_decimal(good, tmp_path):
    names = good[0]
    columns = {
        name: pa.array([row[place] or None for row in good[1:]]) for place, name in enumerate(names)
    }
    columns["BilledCost"] = pa.array([1.5] * (len(good) - 1))
    pq.write_table(pa.table(columns), tmp_path / "f.parquet")
    findings = check_file(tmp_path / "f.parquet").findings()
    assert ("BilledCost-C-001-M", "is no decimal") in {
        (finding.rule, finding.words) for finding in findings
    }


def test_a_finding_counts_all_rows_and_names_the_first(good, tmp_path):
    table = [list(row) for row in good]
    for row in table[1:]:
        row[table[0].index("ServiceCategory")] = "nonsense"
    path = tmp_path / "all.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(table)
    [finding] = [one for one in check_file(path).findings() if one.column == "ServiceCategory"]
    assert (finding.times, finding.rows) == (len(good) - 1, (1, 2, 3, 4, 5))


def test_every_rule_can_be_broken_and_has_a_name_of_its_own():
    assert len({(rule.id, rule.words) for rule in RULES}) == len(RULES)
    assert FocusCheck(list(HEADER)).findings() == ()
