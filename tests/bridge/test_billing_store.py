"""Taking batches: each entry once, in the order of its chain, whatever happens on the way."""

import itertools
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import timedelta

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qcbridge.billing.engine import Database, StoreUnavailableError
from qcbridge.billing.offers import BatchRefusedError, read_offer
from qcbridge.billing.reports import Measured
from qcbridge.billing.store import PARKED_MAX, BillingStore, Fate
from qcbridge.billing.tables import ENTRY, FORK, HEADING, LEDGER
from qcnode.books import chain
from qcnode.books.batch import encode_batch
from qcnode.money import Cost
from tests.bridge.books import Books
from tests.bridge.ledgers import (
    AT_US,
    COST,
    HOLD,
    NOW,
    attempts,
    batch_of,
    indeterminate,
    intent,
    key_of,
    not_billed,
    note_of,
    raw_batch,
    rewrite,
    settled,
    write,
)

DAY_US = 24 * 3600 * 1_000_000


def said(books, tenant="acme"):
    """Everything the books say about a tenant, apart from the times they heard of it."""
    totals = asdict(books.reports.totals(tenant))
    for head in totals["ledgers"]:
        del head["last_us"]
    totals.pop("tenant")
    made_here = ("ledger_id", "stored_us", "heading_id")
    columns = [column for column in ENTRY.c if column.name not in made_here]
    query = (
        sa.select(*columns, HEADING.c.digest)
        .join(LEDGER, LEDGER.c.id == ENTRY.c.ledger_id)
        .outerjoin(HEADING, HEADING.c.id == ENTRY.c.heading_id)
    )
    with books.database.reading() as db:
        entries = db.execute(query.where(LEDGER.c.tenant == tenant).order_by(ENTRY.c.seq)).all()
    return totals, entries


def test_a_batch_is_stored_and_its_receipt_names_the_last_entry(books):
    entries = write([intent(), settled()])

    receipt = books.ingest(batch_of(entries))

    assert (receipt.acked_seq, receipt.head_hash) == (2, entries[-1].hash.hex())
    assert (receipt.problem, receipt.missing, receipt.quarantined) == (None, (), ())
    totals = books.reports.totals("acme")
    assert (totals.entries, totals.attempts, totals.settled) == (2, 1, 1)
    assert totals.cost_pico == {"CNY": COST.pico}
    assert totals.held_pico == {}
    assert (totals.input_tokens, totals.output_tokens) == (1_000, 50)


def test_the_same_batch_again_changes_nothing_and_gets_the_same_receipt(books):
    batch = batch_of(write(attempts(10)))

    first = books.ingest(batch)
    before = said(books)
    again = books.ingest(batch)  # As after a crash between commit and receipt.

    assert again == first
    assert said(books) == before


def test_what_the_store_knows_survives_its_own_restart(books, database_url):
    entries = write(attempts(10))
    receipt = books.ingest(batch_of(entries[:7]))
    books.close()

    restarted = Books(database_url)
    try:
        assert restarted.ingest(batch_of(entries[:7])) == receipt
        assert restarted.ingest(batch_of(entries[5:])).acked_seq == len(entries)
    finally:
        restarted.close()


def _pieces(count):
    """Every entry in some piece, pieces that overlap and repeat, in any order."""

    def cut(bounds):
        edges = [0, *sorted(bounds), count]
        return [(a, b) for a, b in itertools.pairwise(edges) if a < b]

    whole = st.sets(st.integers(1, count - 1), max_size=8).map(cut)
    more = st.lists(
        st.tuples(st.integers(0, count - 1), st.integers(1, 9)).map(
            lambda piece: (piece[0], min(count, sum(piece)))
        ),
        max_size=6,
    )
    return st.tuples(whole, more).flatmap(lambda two: st.permutations(two[0] + two[1]))


FACTS = attempts(12)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(pieces=_pieces(len(FACTS)))
def test_c13_any_order_of_any_pieces_ends_as_one_run_in_order_does(books, pieces):
    example = len(books.reports.tenants())
    entries = write(FACTS)
    straight, jumbled = f"straight-{example}", f"jumbled-{example}"
    in_order = books.ingest(batch_of(entries, tenant=straight))

    acked_seq = 0
    for start, end in pieces:
        receipt = books.ingest(batch_of(entries[start:end], tenant=jumbled))
        assert receipt.problem is None
        assert receipt.acked_seq >= acked_seq
        acked_seq = receipt.acked_seq

    assert (receipt.acked_seq, receipt.missing) == (len(entries), ())
    assert replace(receipt, note=None) == replace(in_order, note=None)
    assert said(books, jumbled) == said(books, straight)


def test_what_comes_before_its_time_waits_and_the_receipt_asks_for_what_is_missing(books):
    entries = write(attempts(8))
    books.ingest(batch_of(entries[:2]))

    waiting = books.ingest(batch_of(entries[4:6]))
    further = books.ingest(batch_of(entries[9:12]))

    assert (waiting.acked_seq, waiting.head_hash) == (2, entries[1].hash.hex())
    assert (waiting.problem, waiting.missing) == (None, ((3, 4),))
    assert further.missing == ((3, 4), (7, 9))
    assert books.reports.totals("acme").entries == 2

    closed = books.ingest(batch_of(entries[2:4]))
    assert (closed.acked_seq, closed.missing) == (6, ((7, 9),))
    assert books.ingest(batch_of(entries[6:9])).acked_seq == 12


def test_no_more_waits_than_there_is_room_for_and_the_rest_is_asked_for_again(sqlite_books):
    entries = write(attempts(30))
    fates = [
        sqlite_books.store.take(batch_of([entry])).fate for entry in entries[1 : PARKED_MAX + 3]
    ]
    assert fates == [Fate.PARKED] * PARKED_MAX + [Fate.GAP] * 2

    acked_seq = 0
    while acked_seq < len(entries):  # What every node does until it has its receipt.
        receipt = sqlite_books.ingest(batch_of(entries[acked_seq : acked_seq + 5]))
        assert receipt.acked_seq > acked_seq
        acked_seq = receipt.acked_seq
    assert receipt.missing == ()


def test_c8_a_batch_that_was_not_committed_is_not_known_and_comes_again_in_full(database_url):
    class Dying(Database):
        dies = True

        @contextmanager
        def writing(self):
            with super().writing() as db:
                if self.dies:
                    db.commit = _die
                yield db

    def _die():
        raise StoreUnavailableError("the power went before the commit")

    books = Books(database_url).open()
    dying = Dying(database_url)
    store = BillingStore(dying, now=lambda: NOW, trust=books.trust)
    batch = batch_of(write(attempts(5)))

    with pytest.raises(StoreUnavailableError):
        store.take(batch)
    assert books.reports.tenants() == ()

    dying.dies = False
    taken = store.take(batch)
    assert (taken.fate, taken.stored) == (Fate.TAKEN, len(batch.lines))
    assert store.take(batch).fate is Fate.REPEATED
    assert books.reports.totals("acme").entries == len(batch.lines)
    dying.close()
    books.close()


def test_c9_when_and_how_a_batch_is_sent_is_no_part_of_what_an_entry_is(books):
    entries = write([intent(), settled()])
    first = read_offer(raw_batch(entries))
    later = read_offer(
        encode_batch(
            "acme",
            "node-1",
            entries,
            at=NOW + timedelta(days=1),
            checkpoint=note_of(entries[-1]),
            key=None,
        )
    )
    assert first.raw != later.raw
    assert books.ingest(first) == books.ingest(later)
    assert books.reports.totals("acme").cost_pico == {"CNY": COST.pico}


def test_c11_an_entry_that_comes_again_in_another_year_is_still_known(database_url):
    now = [NOW]
    books = Books(database_url, now=lambda: now[0]).open()
    entries = write([intent(), settled()])
    books.ingest(batch_of(entries))

    now[0] += timedelta(days=400)
    assert books.store.take(batch_of(entries)).fate is Fate.REPEATED
    assert books.store.take(batch_of(entries[1:])).fate is Fate.REPEATED

    assert books.reports.totals("acme").cost_pico == {"CNY": COST.pico}
    books.close()


def test_c12_names_that_run_together_to_the_same_text_are_different_ledgers(books):
    entries = write([intent(), settled()])
    names = [("a-b", "c"), ("a", "b-c"), ("a.b", "c"), ("a", "b.c"), ("a_b", "c")]

    for tenant, node in names:
        assert books.store.take(batch_of(entries, tenant=tenant, node=node)).stored == 2

    for tenant, node in names:
        assert books.store.take(batch_of(entries, tenant=tenant, node=node)).stored == 0
    assert books.reports.totals("a").entries == 4
    assert books.reports.totals("a-b").entries == 2


def test_d5_usage_that_comes_more_than_a_year_late_is_taken_like_any_other(books):
    entries = write([intent(), settled()], at_us=AT_US - 500 * DAY_US)
    assert books.ingest(batch_of(entries)).acked_seq == 2
    assert books.reports.totals("acme").cost_pico == {"CNY": COST.pico}


@pytest.mark.parametrize("start", [0, 2])  # Other entries under stored numbers; just beyond them.
def test_a_fork_is_refused_and_both_hashes_and_the_signature_are_on_record(books, start):
    ours = write([intent("a1"), settled("a1")])
    books.ingest(batch_of(ours))
    before = said(books)
    fork = write([intent("a1"), not_billed("a1"), intent("a2")])

    receipt = books.ingest(batch_of(fork[start:]))
    books.ingest(batch_of(fork[start:]))

    assert receipt.acked_seq == 2
    assert receipt.problem.startswith("fork: ")
    assert "open a new epoch" in receipt.problem
    assert said(books) == before
    [refusal] = books.reports.refusals("acme", limit=10)
    assert (refusal.kind, refusal.node, refusal.times) == ("fork", "node-1", 2)
    with books.database.reading() as db:
        [row] = db.execute(FORK.select()).all()
    assert (row.seq, row.times) == (2, 2)
    assert (bytes(row.stored_hash), bytes(row.offered_hash)) == (ours[1].hash, fork[1].hash)
    assert key_of().public.check(row.note).head_hash == fork[-1].hash


def test_a_fork_among_what_waits_is_found_when_its_turn_comes(books):
    ours, theirs = write(attempts(4)), write([not_billed("x"), *attempts(4)])
    books.ingest(batch_of(theirs[6:9]))

    receipt = books.ingest(batch_of(ours))

    assert (receipt.acked_seq, receipt.problem) == (len(ours), None)
    assert [refusal.kind for refusal in books.reports.refusals("acme", limit=10)] == ["fork"]


def test_a_new_epoch_of_the_same_node_starts_its_own_chain(books):
    books.ingest(batch_of(write([intent("a1"), settled("a1")])))
    receipt = books.ingest(batch_of(write([intent("a1"), settled("a1")], epoch="epoch-2")))

    assert receipt.acked_seq == 2
    assert books.reports.totals("acme").cost_pico == {"CNY": 2 * COST.pico}


def test_a_server_restored_from_an_older_backup_asks_from_there_and_ends_the_same(books, tmp_path):
    entries = write(attempts(10))
    restored = Books(f"sqlite:///{tmp_path}/backup.db").open()
    assert restored.ingest(batch_of(entries[:9])).acked_seq == 9  # The backup was made here.
    assert books.ingest(batch_of(entries)).acked_seq == len(entries)

    receipt = restored.ingest(batch_of(entries[-1:]))
    assert (receipt.acked_seq, receipt.missing) == (9, ((10, len(entries) - 1),))
    assert restored.ingest(batch_of(entries)).acked_seq == len(entries)

    assert said(restored) == said(books)
    restored.close()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda entry: replace(entry, body=entry.body.replace(b"1234567", b"1234568")),
        lambda entry: replace(entry, hash=bytes(32)),
    ],
)
def test_a_batch_of_which_an_entry_was_changed_is_refused_whole(sqlite_books, spoil):
    good, bad = write([intent(), settled()])

    receipt = sqlite_books.ingest(batch_of([good, spoil(bad)]))

    assert receipt.acked_seq == 0
    assert receipt.problem == "entry 2 was changed: its hash does not match"
    assert sqlite_books.reports.tenants() == ()
    assert sqlite_books.reports.refusals("acme", limit=10)[0].kind == "broken"


def test_a_chain_that_does_not_begin_with_its_epoch_is_refused(sqlite_books):
    [entry] = write([intent()], epoch="another")
    astray = rewrite(replace(entry, epoch="epoch-1"), entry.body)
    receipt = sqlite_books.ingest(batch_of([astray]))
    assert (receipt.acked_seq, receipt.head_hash) == (0, chain.genesis("epoch-1").hex())
    assert "does not begin a chain" in receipt.problem


def test_measured_held_and_unpriced_stand_side_by_side(books):
    facts = [intent("a1"), settled("a1"), intent("a2"), indeterminate("a2"), intent("a3")]
    facts += [settled("a3", cost=None), intent("a4"), not_billed("a4"), intent("a5")]
    books.ingest(batch_of(write(facts)))

    totals = books.reports.totals("acme")

    assert totals.cost_pico == {"CNY": COST.pico}
    assert totals.held_pico == {"CNY": 3 * HOLD.pico}  # Unpriced is held on, never zero.
    assert (totals.attempts, totals.open, totals.indeterminate) == (5, 1, 1)
    assert (totals.settled, totals.unpriced, totals.not_billed) == (2, 1, 1)


def test_sums_beyond_64_bits_are_exact(books):
    costs = [Cost(currency="CNY", pico=2**62 - n, rows=("r",)) for n in range(5)]
    facts = [fact for n in range(5) for fact in (intent(f"a{n}"), settled(f"a{n}", cost=costs[n]))]
    books.ingest(batch_of(write(facts)))
    assert books.reports.totals("acme").cost_pico == {"CNY": sum(cost.pico for cost in costs)}


def test_currencies_are_never_summed_together(books):
    dollars = Cost(currency="USD", pico=5, rows=("r",))
    books.ingest(batch_of(write([intent("a1"), settled("a1")])))
    books.ingest(
        batch_of(write([intent("a2", hold=dollars), settled("a2", cost=dollars)]), node="node-2")
    )
    assert books.reports.totals("acme").cost_pico == {"CNY": COST.pico, "USD": 5}


def test_what_the_scripted_provider_measured_stands_by_itself(books):
    facts = [intent("a1"), settled("a1"), intent("a2", provider="vendor"), settled("a2")]
    books.ingest(batch_of(write([*facts, intent("a3", provider="vendor"), settled("a3")])))
    totals = books.reports.totals("acme")
    assert totals.cost_pico == {"CNY": 3 * COST.pico}
    assert totals.measured == (
        Measured(currency="CNY", scripted=False, attempts=2, cost_pico=2 * COST.pico),
        Measured(currency="CNY", scripted=True, attempts=1, cost_pico=COST.pico),
    )
    assert (totals.scripted, totals.scripted_only) == (True, False)


def test_tenants_do_not_see_each_other(books):
    books.ingest(batch_of(write([intent(), settled()]), tenant="acme"))
    books.ingest(batch_of(write([intent(), indeterminate()]), tenant="other"))

    assert books.reports.tenants() == ("acme", "other")
    assert books.reports.totals("acme").held_pico == {}
    assert books.reports.totals("other").cost_pico == {}


def test_two_ways_that_carry_the_same_entries_at_once_store_them_once(books):
    entries = write(attempts(20))
    batches = [batch_of(entries[start : start + 10]) for start in range(0, len(entries), 5)]

    def send_all(_way):
        acked_seq = 0
        while acked_seq < len(entries):
            for batch in batches:
                receipt = books.ingest(batch)
                assert receipt.problem is None
                acked_seq = receipt.acked_seq
        return acked_seq

    with ThreadPoolExecutor(4) as ways:
        assert set(ways.map(send_all, range(4))) == {len(entries)}
    assert books.reports.totals("acme").entries == len(entries)


@pytest.mark.parametrize(
    "changes",
    [{"tenant": "a/b"}, {"tenant": ""}, {"node": "x" * 65}, {"node": "nul\0"}],
)
def test_a_batch_in_no_proper_name_is_refused(changes):
    entries = write([intent()])
    names = {"tenant": "acme", "node": "node-1"} | changes
    with pytest.raises(BatchRefusedError, match="is no name"):
        read_offer(encode_batch(names["tenant"], names["node"], entries, at=NOW))


def test_a_batch_that_skips_an_entry_is_refused():
    first, _, third = write([intent("a1"), intent("a2"), intent("a3")])
    with pytest.raises(BatchRefusedError, match="entry 3 is out of order"):
        batch_of([first, third])
