"""What FOCUS 1.2 asks of a cost and usage file, as data.

The columns and rules are those of the specification's conformance model for version
1.2, by its rule ids, as far as they can be checked on a file: presence, type, format,
nullability, allowed values, and how columns depend on each other. Rules called `Own` are
ours: what is charged lies in its billing period, and a correction before it.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final, TypeAlias

VERSION: Final = "1.2"
Condition: TypeAlias = tuple[Any, ...]
"""`("is", column, value, ...)`, `("null", column)`, `("known", column)`, `("same", a, b)`,
`("product", a, b, result)`, `("least", column, value)`, `("before", a, b)`, `("not", c)`,
`("all", c, ...)`, `("any", c, ...)`."""


@dataclass(frozen=True, slots=True)
class Column:
    """One column: M mandatory, C conditional, R recommended; its kind, its allowed values."""

    name: str
    level: str
    kind: str
    nulls: bool = True
    allowed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Rule:
    """Where `when` holds, `then` must."""

    id: str
    words: str
    then: Condition
    when: Condition | None = None


CHARGE_CATEGORIES = ("Usage", "Purchase", "Tax", "Credit", "Adjustment")
SERVICE_CATEGORIES = (
    "AI and Machine Learning",
    "Analytics",
    "Business Applications",
    "Compute",
    "Databases",
    "Developer Tools",
    "Multicloud",
    "Identity",
    "Integration",
    "Internet of Things",
    "Management and Governance",
    "Media",
    "Migration",
    "Mobile",
    "Networking",
    "Security",
    "Storage",
    "Web",
    "Other",
)
AI_SUBCATEGORIES = (
    "AI Platforms",
    "Bots",
    "Generative AI",
    "Machine Learning",
    "Natural Language Processing",
    "Other (AI and Machine Learning)",
)

COLUMNS: Final = (
    Column("BilledCost", "M", "decimal", nulls=False),
    Column("BillingAccountId", "M", "string", nulls=False),
    Column("BillingAccountName", "M", "string"),
    Column("BillingAccountType", "M", "string"),
    Column("BillingCurrency", "M", "currency", nulls=False),
    Column("BillingPeriodEnd", "M", "datetime", nulls=False),
    Column("BillingPeriodStart", "M", "datetime", nulls=False),
    Column("ChargeCategory", "M", "string", nulls=False, allowed=CHARGE_CATEGORIES),
    Column("ChargeClass", "M", "string", allowed=("Correction",)),
    Column("ChargeDescription", "M", "string"),
    Column(
        "ChargeFrequency",
        "R",
        "string",
        nulls=False,
        allowed=("One-Time", "Recurring", "Usage-Based"),
    ),
    Column("ChargePeriodEnd", "M", "datetime", nulls=False),
    Column("ChargePeriodStart", "M", "datetime", nulls=False),
    Column("ConsumedQuantity", "C", "decimal"),
    Column("ConsumedUnit", "C", "unit"),
    Column("ContractedCost", "M", "decimal", nulls=False),
    Column("ContractedUnitPrice", "C", "decimal"),
    Column("EffectiveCost", "M", "decimal", nulls=False),
    Column("InvoiceId", "R", "string"),
    Column("InvoiceIssuerName", "M", "string", nulls=False),
    Column("ListCost", "M", "decimal", nulls=False),
    Column("ListUnitPrice", "C", "decimal"),
    Column("PricingCategory", "C", "string", allowed=("Standard", "Committed", "Dynamic", "Other")),
    Column("PricingCurrency", "C", "currency", nulls=False),
    Column("PricingCurrencyContractedUnitPrice", "C", "decimal"),
    Column("PricingCurrencyEffectiveCost", "C", "decimal", nulls=False),
    Column("PricingCurrencyListUnitPrice", "C", "decimal"),
    Column("PricingQuantity", "M", "decimal"),
    Column("PricingUnit", "M", "unit"),
    Column("ProviderName", "M", "string", nulls=False),
    Column("PublisherName", "M", "string", nulls=False),
    Column("RegionId", "C", "string"),
    Column("RegionName", "C", "string"),
    Column("ResourceId", "C", "string"),
    Column("ResourceName", "C", "string"),
    Column("ResourceType", "C", "string"),
    Column("ServiceCategory", "M", "string", nulls=False, allowed=SERVICE_CATEGORIES),
    Column("ServiceName", "M", "string", nulls=False),
    Column("ServiceSubcategory", "R", "string", nulls=False),
    Column("SkuId", "C", "string"),
    Column("SkuMeter", "C", "string"),
    Column("SkuPriceDetails", "C", "json"),
    Column("SkuPriceId", "C", "string"),
    Column("SubAccountId", "C", "string"),
    Column("SubAccountName", "C", "string"),
    Column("SubAccountType", "C", "string"),
    Column("Tags", "C", "json"),
)

_USED_OR_BOUGHT: Condition = ("is", "ChargeCategory", "Usage", "Purchase")
_CORRECTION: Condition = ("is", "ChargeClass", "Correction")
_PLAIN: Condition = ("all", _USED_OR_BOUGHT, ("not", _CORRECTION))
_TAX: Condition = ("is", "ChargeCategory", "Tax")


def _priced(column: str, number: str, *, from_zero: bool = True) -> tuple[Rule, ...]:
    """Return what holds for every column that a charge with a price must have."""
    rules = (
        Rule(f"{column}-C-{number}a", "null for a tax", ("null", column), _TAX),
        Rule(f"{column}-C-{number}b", "there for use and purchases", ("known", column), _PLAIN),
    )
    least = Rule(f"{column}-C-{number}c", "not below zero", ("least", column, 0), ("known", column))
    return (*rules, least) if from_zero else rules


RULES: Final = (
    Rule(
        "BilledCost-C-004-C",
        "zero where somebody else than the provider issues the invoice",
        ("is", "BilledCost", Decimal(0)),
        ("not", ("same", "ProviderName", "InvoiceIssuerName")),
    ),
    Rule("BillingAccountName-C-003-C", "accounts have names", ("known", "BillingAccountName")),
    Rule(
        "BillingAccountType-C-005-C",
        "there where an id is",
        ("known", "BillingAccountType"),
        ("known", "BillingAccountId"),
    ),
    Rule(
        "BillingPeriodStart-C-004-M",
        "before the period's end",
        ("before", "BillingPeriodStart", "BillingPeriodEnd"),
    ),
    Rule(
        "ChargePeriodStart-C-004-M",
        "before the period's end",
        ("before", "ChargePeriodStart", "ChargePeriodEnd"),
    ),
    Rule("ChargeDescription-C-003-O", "it says something", ("known", "ChargeDescription")),
    Rule(
        "ChargeFrequency-C-004-C",
        "a purchase is not by use",
        ("not", ("is", "ChargeFrequency", "Usage-Based")),
        ("is", "ChargeCategory", "Purchase"),
    ),
    Rule(
        "ConsumedQuantity-C-004-C",
        "null for what is no use",
        ("null", "ConsumedQuantity"),
        ("not", ("is", "ChargeCategory", "Usage")),
    ),
    Rule(
        "ConsumedQuantity-C-006-C",
        "there for use",
        ("known", "ConsumedQuantity"),
        ("all", ("is", "ChargeCategory", "Usage"), ("not", _CORRECTION)),
    ),
    Rule(
        "ConsumedUnit-C-004-C",
        "null where there is no quantity",
        ("null", "ConsumedUnit"),
        ("null", "ConsumedQuantity"),
    ),
    Rule(
        "ConsumedUnit-C-005-C",
        "there where a quantity is",
        ("known", "ConsumedUnit"),
        ("known", "ConsumedQuantity"),
    ),
    *_priced("ContractedUnitPrice", "004"),
    Rule(
        "ContractedUnitPrice-C-011-C",
        "times the quantity it is the contracted cost",
        ("product", "ContractedUnitPrice", "PricingQuantity", "ContractedCost"),
        (
            "all",
            ("known", "ContractedUnitPrice"),
            ("known", "PricingQuantity"),
            ("not", _CORRECTION),
        ),
    ),
    Rule(
        "EffectiveCost-C-005-C",
        "zero for a purchase, whose cost is spread over its use",
        ("is", "EffectiveCost", Decimal(0)),
        ("is", "ChargeCategory", "Purchase"),
    ),
    *_priced("ListUnitPrice", "003"),
    Rule(
        "ListUnitPrice-C-010-C",
        "times the quantity it is the list cost",
        ("product", "ListUnitPrice", "PricingQuantity", "ListCost"),
        ("all", ("known", "ListUnitPrice"), ("known", "PricingQuantity"), ("not", _CORRECTION)),
    ),
    *_priced("PricingCategory", "002", from_zero=False),
    *_priced("PricingCurrencyContractedUnitPrice", "003"),
    *_priced("PricingCurrencyListUnitPrice", "003"),
    *_priced("PricingQuantity", "003", from_zero=False),
    Rule(
        "PricingUnit-C-005-C",
        "null where there is no quantity",
        ("null", "PricingUnit"),
        ("null", "PricingQuantity"),
    ),
    Rule(
        "PricingUnit-C-006-C",
        "there where a quantity is",
        ("known", "PricingUnit"),
        ("known", "PricingQuantity"),
    ),
    Rule(
        "ResourceType-C-004-C",
        "null where there is no resource",
        ("null", "ResourceType"),
        ("null", "ResourceId"),
    ),
    Rule(
        "ResourceType-C-005-C",
        "there where a resource is",
        ("known", "ResourceType"),
        ("known", "ResourceId"),
    ),
    Rule(
        "ServiceSubcategory-C-004-M",
        "of its own category",
        ("is", "ServiceSubcategory", *AI_SUBCATEGORIES),
        ("is", "ServiceCategory", "AI and Machine Learning"),
    ),
    *_priced("SkuId", "003", from_zero=False),
    Rule("SkuMeter-C-004-C", "null where there is no SKU", ("null", "SkuMeter"), ("null", "SkuId")),
    Rule("SkuMeter-C-005-C", "there where a SKU is", ("known", "SkuMeter"), ("known", "SkuId")),
    *_priced("SkuPriceId", "003", from_zero=False),
    Rule(
        "SkuPriceDetails-C-004-C",
        "null where there is no price",
        ("null", "SkuPriceDetails"),
        ("null", "SkuPriceId"),
    ),
    Rule(
        "SubAccountType-C-004-C",
        "null where there is no sub account",
        ("null", "SubAccountType"),
        ("null", "SubAccountId"),
    ),
    Rule(
        "SubAccountType-C-005-C",
        "there where a sub account is",
        ("known", "SubAccountType"),
        ("known", "SubAccountId"),
    ),
    Rule(
        "Own-C-001-M",
        "charged within its billing period, unless it is a correction",
        (
            "all",
            ("not", ("before", "ChargePeriodStart", "BillingPeriodStart")),
            ("not", ("before", "BillingPeriodEnd", "ChargePeriodEnd")),
        ),
        ("not", _CORRECTION),
    ),
    Rule(
        "Own-C-002-M",
        "a correction is of an earlier period",
        ("before", "ChargePeriodStart", "BillingPeriodStart"),
        _CORRECTION,
    ),
)

ONE_TO_ONE: Final = (
    ("ServiceName-C-005-C", "ServiceName", "ServiceCategory"),
    ("ServiceName-C-008-C", "ServiceName", "ServiceSubcategory"),
    ("SkuPriceId-C-008-M", "SkuPriceId", "SkuId"),
)
"""Where the first column says the same, so must the second."""

TOTAL: Final = "x_InvoiceTotal"
"""Our own column: what the billed costs of an invoice must add up to."""

# ISO 4217, as far as anybody buys tokens in it; a currency not among these is reported.
CURRENCIES: Final = frozenset(
    (
        *("AED", "AUD", "BRL", "CAD", "CHF", "CLP", "CNY", "COP", "CZK", "DKK", "EUR", "GBP"),
        *("HKD", "HUF", "IDR", "ILS", "INR", "JPY", "KRW", "MXN", "MYR", "NOK", "NZD", "PHP"),
        *("PLN", "RON", "RUB", "SAR", "SEK", "SGD", "THB", "TRY", "TWD", "UAH", "USD", "VND"),
        "ZAR",
    )
)
