"""The whole way of a bill in one command, small; the large one is `make prove-bill`."""

import json
from dataclasses import replace
from random import Random

import pytest

from qcbridge.billing.issued import Invoices
from qcbridge.billing.issued_paper import decode_invoice
from qcbridge.billing.prove import PERIOD, _book, _Clock, _Use, prove_bill
from qcbridge.prices import PriceBook
from qcnode.books.attempts import advance, subject_of
from qcnode.errors import BillingError
from qcnode.money import Outcome


@pytest.fixture(scope="module")
def proof(tmp_path_factory):
    """A proof of some thousand entries, and its folder."""
    out = tmp_path_factory.mktemp("proof") / "out"
    said = []
    report = prove_bill(out, entries=3_000, nodes=3, url=None, seed=7, say=said.append)
    return out, report, said


def test_a_bill_is_made_exported_checked_verified_and_tied(proof):
    out, report, said = proof
    assert report["problems"] == []
    assert report["proven"]
    assert (report["entries"], report["nodes"]) == (3_000, 3)
    assert list(report["steps"]) == [
        *("write", "carry out", "take in", "issue"),
        *("focus csv", "check csv", "focus parquet", "check parquet", "tie", "verify"),
    ]
    assert report["steps"]["focus csv"]["rows"] == report["steps"]["focus parquet"]["rows"] > 1_000
    assert json.loads(json.dumps(report)) == report
    assert any("entries taken" in words for words in said)  # It says how far it has come.
    made = {path.name for path in out.iterdir()}
    assert made >= {"node-01", "node-01.jsonl", "invoice.json", "focus.csv", "focus.parquet"}


def test_the_bill_has_two_currencies_many_prices_and_corrections(proof):
    invoice = decode_invoice((proof[0] / "invoice.json").read_bytes())
    assert {line.currency for line in invoice.lines} == {"CNY", "USD"}
    assert len({line.price_row for line in invoice.lines}) > 20
    assert len({(line.department, line.application, line.function) for line in invoice.lines}) == 6
    assert {line.node for line in invoice.lines} == {"node-01", "node-02", "node-03"}
    assert any(line.discount_bp for line in invoice.lines)
    assert any(not line.token_class for line in invoice.lines)  # Put right, or by the provider.
    assert {one.state for one in invoice.beside} >= {"indeterminate", "unpriced"}


@pytest.mark.parametrize("cut", [7, 400])
def test_attempts_follow_their_rules_wherever_a_commit_cuts_them(tmp_path, cut):
    (tmp_path / "prices.toml").write_text(_book())
    clock = _Clock(PERIOD.from_us)
    use = _Use(Random(cut), "node-01", PriceBook.load(tmp_path / "prices.toml"), clock)
    standing = {}
    for _ in range(20_000 // cut):
        for fact in use.group(cut):
            if not isinstance(fact, Outcome):
                before = standing.get(subject_of(fact))
                standing[subject_of(fact)] = advance(before, fact, at_us=clock())
    assert len(standing) > 5_000


def test_the_same_seed_makes_the_same_bill(proof, tmp_path):
    again = prove_bill(
        tmp_path / "out", entries=3_000, nodes=3, url=None, seed=7, say=lambda _: None
    )
    assert again["total"] == proof[1]["total"]
    assert again["lines"] == proof[1]["lines"]
    other = prove_bill(tmp_path / "two", entries=600, nodes=2, url=None, seed=8, say=lambda _: None)
    assert other["total"] != proof[1]["total"]


def test_a_bill_that_is_wrong_is_not_proven(tmp_path, monkeypatch):
    real = Invoices.issue

    def generous(self, *args, **options):
        done = real(self, *args, **options)
        lines = done.invoice.lines
        changed = (replace(lines[0], list_pico=lines[0].list_pico + 1), *lines[1:])
        return replace(done, invoice=replace(done.invoice, lines=changed))

    monkeypatch.setattr(Invoices, "issue", generous)
    with pytest.raises(BillingError, match="are not what line"):
        prove_bill(tmp_path / "out", entries=300, nodes=2, url=None, seed=1, say=lambda _: None)


@pytest.mark.postgres
def test_a_bill_is_proven_on_postgresql_too(tmp_path, postgres):
    report = prove_bill(
        tmp_path / "out", entries=1_500, nodes=2, url=postgres(), seed=3, say=lambda _: None
    )
    assert report["problems"] == []
    assert report["database"].startswith("postgresql")


def test_nothing_is_written_over(proof):
    with pytest.raises(BillingError, match="not empty"):
        prove_bill(proof[0], entries=300, nodes=1, url=None, seed=1, say=lambda _: None)
