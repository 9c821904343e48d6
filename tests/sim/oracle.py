"""What must be true, whatever goes wrong; looked at after every commit and at the end.

It believes nobody's sums. From the entries as they stand on disk it works out by itself
what every attempt may still cost, and it knows what really happened: which requests
left, what the provider billed, which receipts were given.
"""

import hashlib
from dataclasses import dataclass, field

from qcnode.books import chain
from qcnode.money import (
    Adjusted,
    EpochOpened,
    Indeterminate,
    Intent,
    Leased,
    NotBilled,
    Outcome,
    Reconciled,
    Reserved,
    Settled,
    WrittenOff,
)

COVERED = ("settled", "unpriced", "indeterminate", "intent")
HOUR_US = 3_600_000_000
DAY_US = 24 * HOUR_US


@dataclass(slots=True)
class Case:
    """One attempt, as its entries say."""

    began_us: int
    phase: str
    hold: int
    tokens: int
    cost: int | None = None
    usage: object = None


@dataclass(slots=True)
class Books:
    """One ledger as it has shown itself: one epoch of one node, up to where it is.

    A disk that was put back makes another one of the same epoch; of the one before, what
    the server has is all that is left, and it is `lost` beyond that.
    """

    node: str
    epoch: str
    entries: list = field(default_factory=list)
    cases: dict = field(default_factory=dict)
    lost: bool = False

    def copy(self, count):
        """Return the books as they were after `count` entries."""
        books = Books(self.node, self.epoch)
        for entry in self.entries[:count]:
            books.take(entry)
        return books

    def head(self):
        return self.entries[-1].hash if self.entries else genesis(self.epoch)

    def take(self, entry):
        """Count the next entry, and see that it may stand there; return whose hold grew."""
        at = f"entry {entry.seq} of {self.node}"
        assert entry.seq == len(self.entries) + 1, f"{at}: {len(self.entries)} were before it"
        assert entry.prev_hash == self.head(), f"{at}: it hangs on another one"
        assert entry.hash == digest(entry), f"{at}: its hash is not its own"
        self.entries.append(entry)
        fact = chain.fact_of(entry)
        if isinstance(fact, Reserved | Intent):
            return self._begin(fact, entry.at_us, at)
        if isinstance(fact, EpochOpened):
            assert entry.seq == 1, f"{at}: an epoch begins"
        elif not isinstance(fact, Leased | Outcome):
            self._go_on(fact, at)
        return None

    def _begin(self, fact, at_us, at):
        attempt, amount = fact.attempt.id, fact.hold.pico
        case = self.cases.get(attempt)
        if case is None:
            case = self.cases[attempt] = Case(at_us, "", 0, 0)
        else:
            assert isinstance(fact, Intent), f"{at}: {attempt} was begun before"
            assert case.phase == "reserved", f"{at}: {attempt} has an intent, and is {case.phase}"
        more = amount > case.hold
        case.phase = "intent" if isinstance(fact, Intent) else "reserved"
        case.hold = amount
        case.tokens = fact.worst.input_tokens + fact.worst.output_tokens
        return case if more else None

    def _go_on(self, fact, at):
        attempt = fact.attempt_id
        case = self.cases.get(attempt)
        assert case is not None, f"{at}: {attempt} has no beginning"
        if isinstance(fact, Settled):
            assert case.phase == "intent", f"{at}: {attempt} is {case.phase} and settled again"
            case.phase, case.usage = "settled", fact.usage
            case.tokens = fact.usage.input_tokens + fact.usage.output_tokens
            if fact.cost is None:
                case.phase = "unpriced"
            else:
                case.cost = fact.cost.pico
        elif isinstance(fact, NotBilled):
            assert case.phase in ("reserved", "intent"), f"{at}: {attempt} is {case.phase}"
            case.phase, case.cost = "not billed", 0
        elif isinstance(fact, Indeterminate):
            assert case.phase == "intent", f"{at}: {attempt} is {case.phase}"
            case.phase, case.hold = "indeterminate", fact.hold.pico
        elif isinstance(fact, Reconciled):
            assert case.phase in ("indeterminate", "unpriced"), f"{at}: {attempt} is {case.phase}"
            case.phase, case.cost = "reconciled", fact.cost.pico
        elif isinstance(fact, WrittenOff):
            assert case.phase in ("indeterminate", "unpriced"), f"{at}: {attempt} is {case.phase}"
            case.phase, case.cost = "written off", 0
        else:
            assert isinstance(fact, Adjusted), f"{at}: what is this? {fact}"
            case.cost = fact.after.pico

    def live(self):
        return {name for name, case in self.cases.items() if case.phase in ("reserved", "intent")}

    def cost(self):
        return sum(case.cost for case in self.cases.values() if case.cost is not None)

    def held(self):
        return sum(case.hold for case in self.cases.values() if case.cost is None)


def counted(budget, case):
    """Return what a case counts against a budget."""
    if budget.unit == "money":
        return case.hold if case.cost is None else case.cost
    if case.phase == "not billed":
        return 0
    return case.tokens if budget.unit == "tokens" else 1


def genesis(epoch):
    return hashlib.sha256(b"\x01" + epoch.encode()).digest()


def digest(entry):
    head = entry.seq.to_bytes(8, "big") + len(entry.body).to_bytes(4, "big")
    return hashlib.sha256(b"\x00" + head + entry.body + entry.prev_hash).digest()


class Oracle:
    """Watches one run; an assertion of it that fails is what the run found."""

    def __init__(self, world):
        self.world = world
        self.books = {}
        """By node: all its books, the last one being written."""
        self.sent = set()
        self.receipts = {}
        """By (node, epoch): the furthest seq the server ever gave a receipt for."""
        self.promised = {}
        """The same, since the server was restored last: what it must have."""
        self.commits = 0

    # -- at the node ------------------------------------------------------------------------

    def node_opened(self, node):
        """A node has started: nothing that was on record may be gone, nothing may be open."""
        ledger, shelf = node.ledger, self.books.setdefault(node.name, [])
        if shelf and shelf[-1].epoch != ledger.epoch:
            self.world.note(node.name, "begins an epoch", ledger.epoch)
            assert node.may_begin_anew, f"{node.name}: a new epoch, and nothing was put back"
            node.may_begin_anew = False
        if not shelf or shelf[-1].epoch != ledger.epoch:
            shelf.append(Books(node.name, ledger.epoch))
        known = shelf[-1]
        entries = ledger.read(0, 1_000_000)
        for before, now in zip(known.entries, entries, strict=False):
            assert before.hash == now.hash, f"{node.name}: entry {before.seq} is another one"
        missing = len(known.entries) - len(entries)
        assert missing <= 0, f"{node.name}: the last {missing} entries on record are gone"
        self.node_wrote(node)
        assert not known.live(), f"{node.name}: left open after a start: {sorted(known.live())}"

    def node_wrote(self, node):
        """A node has committed: count what is new, and look at all of it."""
        known = self.books[node.name][-1]
        for entry in node.ledger.read(len(known.entries), 1_000_000):
            grown = known.take(entry)
            if grown is not None:
                self._check_budgets(node, grown, entry.seq)
            self.commits += 1
            self.world.note(node.name, entry.kind, entry.seq, entry.hash.hex())
        confirmed = node.ledger.receipt_seq()
        given = self.receipts.get((node.name, node.ledger.epoch), 0)
        assert confirmed <= given, f"{node.name}: receipt for {confirmed}, {given} was given"

    def _check_budgets(self, node, grown, seq):
        """A hold was put up: with all that this node knows of, it must fit."""
        cases = {}
        for books in self.books[node.name]:
            if not books.lost:
                cases.update(books.cases)
        for budget in node.budgets:
            length = {"hour": HOUR_US, "day": DAY_US}[budget.window]
            window = grown.began_us // length
            used = sum(
                counted(budget, case)
                for case in cases.values()
                if case.began_us // length == window
            )
            assert used <= budget.limit, (
                f"entry {seq} of {node.name}: {used} of budget {budget.name} is used,"
                f" and it has {budget.limit}"
            )

    def node_put_back(self, node, backup):
        """A node's ledger was put back to an older state, maybe of another branch."""
        shelf = self.books[node.name]
        shelf[-1].lost = True
        shelf.append(backup.books.copy(backup.entries))

    # -- around it ---------------------------------------------------------------------------

    def request_leaves(self, node, attempt):
        """Bytes are about to leave: their intent must be on disk, and nothing after it."""
        case = self.books[node][-1].cases.get(attempt)
        assert case is not None, f"{node}: request {attempt} without an entry"
        assert case.phase == "intent", f"{node}: request {attempt} while it is {case.phase}"
        assert attempt not in self.sent, f"{node}: request {attempt} was sent twice"
        self.sent.add(attempt)
        self.world.note(node, "asks", attempt)

    def receipt_made(self, receipt, node):
        """The server gives a receipt: it must have what it says."""
        world = self.world
        world.note("server", "receipt", node, receipt.epoch, receipt.acked_seq, receipt.problem)
        if not receipt.epoch:
            return
        stored = world.server.stored().get((node, receipt.epoch), (0, None))[0]
        assert receipt.acked_seq <= stored, (
            f"a receipt for entry {receipt.acked_seq} of {node}, and {stored} are stored"
        )
        key = (node, receipt.epoch)
        for given in (self.receipts, self.promised):
            given[key] = max(given.get(key, 0), receipt.acked_seq)

    def server_opened(self):
        """The server has started: what it gave receipts for must be there."""
        stored = self.world.server.stored()
        for (node, epoch), given in self.promised.items():
            has = stored.get((node, epoch), (0, None))[0]
            assert has >= given, f"receipts up to {given} of {node}, and {has} are stored"

    def server_restored(self):
        """The server's disk was put back; its receipts so far are worth nothing now."""
        self.promised.clear()

    # -- when all is over -------------------------------------------------------------------

    def delivered(self):
        """Say whether the server has all that it can still get."""
        stored = self.world.server.stored()
        for shelf in self.books.values():
            for epoch in {books.epoch: None for books in shelf}:
                branches = [books for books in shelf if books.epoch == epoch]
                kept = [books for books in branches if not books.lost]
                size, head = stored.get((branches[0].node, epoch), (0, None))
                if any(size >= len(books.entries) for books in kept):
                    continue
                if any(size and not has(books, size, head) for books in kept):
                    continue  # It forked, and what the server has is of the other branch.
                return False
        return True

    def check_end(self, nodes):
        """Everything has come to rest: the books of all must say the same."""
        world = self.world
        totals, stored = world.server.reports.totals("t"), world.server.stored()
        cost = held = 0
        there = []
        """Books as far as the server has them."""
        for node in nodes:
            shelf = self.books[node.name]
            for epoch in {books.epoch: None for books in shelf}:
                size, head = stored.pop((node.name, epoch), (0, genesis(epoch)))
                branch = next(
                    (one for one in shelf if one.epoch == epoch and has(one, size, head)), None
                )
                assert branch is not None, f"{node.name}: nobody wrote what the server has"
                there.append(branch.copy(size))
                cost += there[-1].cost()
                held += there[-1].held()
            self._check_totals(node)
        assert not stored, f"the server has ledgers nobody wrote: {sorted(stored)}"
        assert self.delivered(), "the server has not got all there is"
        assert totals.entries == sum(len(books.entries) for books in there)
        assert sum(totals.cost_pico.values()) == cost, f"{totals.cost_pico} is not {cost}"
        assert sum(totals.held_pico.values()) == held, f"{totals.held_pico} is not {held}"
        assert totals.quarantined == 0
        self._check_provider(there)

    def _check_totals(self, node):
        ours, theirs = self.books[node.name][-1], node.ledger.totals()
        assert not ours.live(), f"{node.name}: still open: {sorted(ours.live())}"
        assert theirs.entries == len(ours.entries)
        assert sum(theirs.cost_pico.values()) == ours.cost()
        assert sum(theirs.held_pico.values()) == ours.held()

    def _check_provider(self, there):
        """Each request that the provider bills is settled or held, and by its own count."""
        shelves = [books for shelf in self.books.values() for books in shelf]
        kept = [*there, *(books for books in shelves if not books.lost)]
        gone = {name for books in shelves if books.lost for name in books.cases}
        for name, line in self.world.provider.billed.items():
            cases = [books.cases[name] for books in kept if name in books.cases]
            # One that was under way when its ledger was put away stays so there: held.
            covering = [case for case in cases if case.phase in COVERED]
            if not covering:
                said = [case.phase for case in cases]
                assert name in gone, f"the provider bills {name}, and here it is {said}"
                continue
            for case in covering:
                if case.usage is None:
                    continue
                assert line.told, f"settled by a count nobody can believe: {name}"
                assert case.usage.input_tokens == line.input_tokens, name
                assert case.usage.output_tokens == line.output_tokens, name


def has(books, size, head):
    """Say whether the first `size` entries of these books end with the hash `head`."""
    if size == 0:
        return True
    return size <= len(books.entries) and books.entries[size - 1].hash == head
