"""Parts of shared budgets, lent to nodes so that together they never spend more.

What a ledger may have used in a window is bounded by every lease that it may still act
on, whether it ever heard of it or not: the largest of those, or what its entries show if
that is more, is *committed*. A new lease is given only out of what is committed to
nobody. A lease stops counting once it has expired by the server's clock, with a margin
for the node's, and the node's own chain has gone past its end, so that all that was
spent under it is known; what it did not spend is then free again. A node that stays
silent keeps what was lent to it until the window ends.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from qcbridge.billing.audit import Change, note_change
from qcbridge.billing.engine import insert_into
from qcbridge.billing.invoices import to_us
from qcbridge.billing.offers import check_name
from qcbridge.billing.postings import subjects
from qcbridge.billing.rows import chain_attempts
from qcbridge.billing.tables import BUDGET, LEASE, LEDGER, NODE_KEY, SPENT
from qcnode.books import chain
from qcnode.books.attempts import LIVE
from qcnode.books.budgets import Budget
from qcnode.books.tally import Tally
from qcnode.errors import BillingError
from qcnode.money import CostCentre, Leased

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from datetime import datetime

    from qcbridge.billing.engine import Database
    from qcbridge.billing.postings import Read
    from qcnode.books.attempts import Standing
    from qcnode.books.budgets import Span

SKEW_US = 5 * 60 * 1_000_000
"""How far behind the server's clock a node's may be."""
ACTIVE_US = 24 * 3600 * 1_000_000
"""Nodes heard of since then share what is left."""
LEASE_US = 24 * 3600 * 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedBudget:
    """A limit that a tenant's nodes share, and how it is lent."""

    tenant: str
    budget: Budget
    nodes: tuple[str, ...] | None = None
    """Who shares it; None is every node of the tenant."""
    slice_min: int
    """No smaller part is lent while that much is left."""
    lease_us: int = LEASE_US

    def __post_init__(self) -> None:
        if self.slice_min < 1 or self.lease_us < 1:
            raise BillingError(f"budget {self.budget.name}: a part or a lease of nothing is none")


@dataclass(frozen=True, slots=True, kw_only=True)
class Committed:
    """What one ledger may have used, at the most, in a window of a shared budget."""

    node: str
    epoch: str
    used: int
    """What its entries show."""
    lent: int
    """The largest lease that it may still act on."""

    @property
    def most(self) -> int:
        """What counts against the limit."""
        return max(self.used, self.lent)


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetState:
    """A shared budget as it stands in its running window."""

    shared: SharedBudget
    span: Span
    committed: tuple[Committed, ...]

    @property
    def left(self) -> int:
        """What is committed to nobody."""
        return self.shared.budget.limit - sum(one.most for one in self.committed)


class Budgets:
    """The register of shared budgets; any thread may use it."""

    def __init__(self, database: Database, *, now: Callable[[], datetime]) -> None:
        self._database = database
        self._now = now

    def set(self, shared: SharedBudget, *, by: str) -> None:
        """Make a budget known, or give it another limit; what is lent stays lent.

        Unit, currency, window, zone and scope stay as they are: what was counted was
        counted by them.
        """
        check_name("tenant", shared.tenant)
        check_name("budget", shared.budget.name)
        now_us = to_us(self._now())
        row = _row(shared, now_us)
        with self._database.writing() as db:
            this = (BUDGET.c.tenant == shared.tenant) & (BUDGET.c.name == shared.budget.name)
            had = db.execute(sa.select(BUDGET).where(this).with_for_update()).one_or_none()
            if had is None:
                db.execute(sa.insert(BUDGET).values(row))
            else:
                fixed = ("unit", "currency", "window", "zone", "scope")
                if any(getattr(had, name) != row[name] for name in fixed):
                    raise BillingError(
                        f"budget {shared.budget.name} counts {had.unit} by the {had.window} in"
                        f" {had.zone}: what it counts cannot change, give the new one another name"
                    )
                db.execute(sa.update(BUDGET).where(this).values(row))
            what = {name: value for name, value in row.items() if name != "tenant"}
            note_change(
                db,
                Change(at_us=now_us, who=by, action="budget add", tenant=shared.tenant, what=what),
            )
            db.commit()

    def listed(self, tenant: str | None = None) -> tuple[BudgetState, ...]:
        """Return how each budget stands in its running window."""
        now_us = to_us(self._now())
        query = sa.select(BUDGET).order_by(BUDGET.c.tenant, BUDGET.c.name)
        if tenant is not None:
            query = query.where(BUDGET.c.tenant == tenant)
        with self._database.reading() as db:
            states = []
            for row in db.execute(query).all():
                shared = _read(row)
                span = shared.budget.span(now_us)
                ledgers = _commitments(db, row.id, span)
                states.append(
                    BudgetState(
                        shared=shared,
                        span=span,
                        committed=tuple(one.committed for one in ledgers.values()),
                    )
                )
            return tuple(states)


@dataclass(frozen=True, slots=True)
class _Lender:
    """A shared budget and its row."""

    id: int
    shared: SharedBudget


@dataclass(frozen=True, slots=True, kw_only=True)
class _Account:
    """What one ledger has of one window."""

    committed: Committed
    latest: Any = None
    """The row of the last lease that was given."""


def count_and_lend(  # one transaction knows all of this
    db: sa.Connection,
    *,
    tenant: str,
    node: str,
    ledger_id: int,
    reads: Sequence[Read],
    now_us: int,
    new_id: Callable[[], str],
) -> tuple[Leased, ...]:
    """Count what new entries show as used, and return the leases their node should have.

    `reads` are stored already. The ledger's row is locked by the caller.
    """
    lenders = [
        _Lender(row.id, _read(row))
        for row in db.execute(
            sa.select(BUDGET).where(BUDGET.c.tenant == tenant).order_by(BUDGET.c.id)
        ).all()
    ]
    lenders = [one for one in lenders if one.shared.nodes is None or node in one.shared.nodes]
    if not lenders:
        return ()
    if reads:
        _count(db, lenders, ledger_id, reads)
        _note_leases(db, ledger_id, reads, now_us)
    leases = (
        _lend(db, lender, ledger_id, node=node, now_us=now_us, new_id=new_id) for lender in lenders
    )
    return tuple(lease for lease in leases if lease is not None)


def _count(
    db: sa.Connection, lenders: Sequence[_Lender], ledger_id: int, reads: Sequence[Read]
) -> None:
    """Add what `reads` change, counted as the node itself counts."""
    tally = Tally.start(b"", [lender.shared.budget for lender in lenders])
    done: dict[str, Standing] = {}
    before_seq = reads[0].line.seq
    for standing, worst in chain_attempts(db, ledger_id, subjects(reads), before_seq=before_seq):
        if standing.state in LIVE:
            tally.live[standing.attempt.id] = standing
            tally.worst[standing.attempt.id] = worst
        else:
            done[standing.attempt.id] = standing
    for read in reads:
        if read.fact is None or read.at_us is None:
            continue
        try:
            step = tally.follow(read.fact, at_us=read.at_us, find=done.get)
        except ValueError:
            continue  # It is quarantined, and what it would count is for a person to say.
        tally.add(read.line.seq, read.line.hash, read.fact, step)
        after = step[1]
        if after is not None and after.state not in LIVE:
            done[after.attempt.id] = after
    for lender, meter in zip(lenders, tally.meters, strict=True):
        for from_us, change in meter.windows.items():
            if not change.used:
                continue
            insert = insert_into(db, SPENT).values(
                budget_id=lender.id, ledger_id=ledger_id, from_us=from_us, used=change.used
            )
            db.execute(
                insert.on_conflict_do_update(
                    index_elements=[SPENT.c.budget_id, SPENT.c.ledger_id, SPENT.c.from_us],
                    set_={"used": SPENT.c.used + insert.excluded.used},
                )
            )


def _note_leases(db: sa.Connection, ledger_id: int, reads: Iterable[Read], now_us: int) -> None:
    """Note which leases the node has written down, and which its chain has outlived."""
    last_us = -1
    for read in reads:
        if read.at_us is not None:
            last_us = max(last_us, read.at_us)
        if isinstance(read.fact, Leased):
            db.execute(
                sa.update(LEASE)
                .where(LEASE.c.id == read.fact.lease_id, LEASE.c.ledger_id == ledger_id)
                .where(LEASE.c.seen_seq.is_(None))
                .values(seen_seq=read.line.seq)
            )
    db.execute(
        sa.update(LEASE)
        .where(
            LEASE.c.ledger_id == ledger_id,
            LEASE.c.over_us.is_(None),
            LEASE.c.until_us <= min(last_us, now_us - SKEW_US),
        )
        .values(over_us=now_us)
    )


def _lend(
    db: sa.Connection,
    lender: _Lender,
    ledger_id: int,
    *,
    node: str,
    now_us: int,
    new_id: Callable[[], str],
) -> Leased | None:
    """Return the lease a ledger should hear of, giving a new one when it needs one."""
    shared = lender.shared
    span = shared.budget.span(now_us)
    mine = _commitments(db, lender.id, span, ledger_id=ledger_id).get(ledger_id)
    if mine is None or _needs(mine, shared, span, now_us):
        # Nobody else lends of this budget until we are done; what is committed is read anew.
        db.execute(sa.select(BUDGET.c.id).where(BUDGET.c.id == lender.id).with_for_update())
        ledgers = _commitments(db, lender.id, span)
        most = _grant(
            shared, ledgers, ledger_id, active=_active(db, lender, node, now_us), now_us=now_us
        )
        if most is not None:
            lease = Leased(
                lease_id=new_id(),
                budget=shared.budget.name,
                unit=shared.budget.unit,
                limit=most,
                from_us=span.from_us,
                until_us=min(span.until_us, now_us + shared.lease_us),
            )
            latest = ledgers[ledger_id].latest if ledger_id in ledgers else None
            db.execute(
                sa.insert(LEASE).values(
                    id=lease.lease_id,
                    budget_id=lender.id,
                    ledger_id=ledger_id,
                    number=1 if latest is None else latest.number + 1,
                    most=most,
                    from_us=lease.from_us,
                    until_us=lease.until_us,
                    granted_us=now_us,
                )
            )
            return lease
    latest = None if mine is None else mine.latest
    if latest is None or latest.seen_seq is not None or latest.until_us <= now_us:
        return None
    return Leased(
        lease_id=latest.id,
        budget=shared.budget.name,
        unit=shared.budget.unit,
        limit=latest.most,
        from_us=latest.from_us,
        until_us=latest.until_us,
    )


def _needs(mine: _Account, shared: SharedBudget, span: Span, now_us: int) -> bool:
    """Say whether a ledger has too little left, in amount or in time."""
    latest = mine.latest
    if latest is None:
        return True
    if latest.seen_seq is None and latest.until_us > now_us:
        return False  # It is on its way; giving another would only be one more to count.
    if latest.until_us < span.until_us and latest.until_us - now_us < shared.lease_us // 2:
        return True
    return bool(2 * (latest.most - mine.committed.used) < shared.slice_min)


def _grant(
    shared: SharedBudget,
    ledgers: dict[int, _Account],
    ledger_id: int,
    *,
    active: int,
    now_us: int,
) -> int | None:
    """Return what a ledger may have used in all from now on; None when there is no more."""
    mine = ledgers.get(ledger_id)
    used = 0 if mine is None else mine.committed.used
    committed = 0 if mine is None else mine.committed.most
    left = shared.budget.limit - sum(one.committed.most for one in ledgers.values())
    # One share stays behind for whoever comes next. What is committed to this ledger is its
    # own to be lent again.
    share = max(shared.slice_min, max(left, 0) // (active + 1))
    most = min(used + share, committed + max(left, 0))
    latest = None if mine is None else mine.latest
    if latest is not None and latest.until_us > now_us:
        # Sooner to run out than the last one: only more of it is worth a further entry.
        runs_out = latest.until_us - now_us < shared.lease_us // 2
        if most <= latest.most and not runs_out:
            return None
    return most if most > used else None


def _active(db: sa.Connection, lender: _Lender, node: str, now_us: int) -> int:
    """Count the nodes that may want a part: registered or heard of lately, and the one asking."""
    tenant, sharing = lender.shared.tenant, lender.shared.nodes
    heard = sa.select(LEDGER.c.node).where(
        LEDGER.c.tenant == tenant, LEDGER.c.last_us >= now_us - ACTIVE_US
    )
    registered = sa.select(NODE_KEY.c.node).where(
        NODE_KEY.c.tenant == tenant, NODE_KEY.c.revoked_us.is_(None)
    )
    names = {node, *db.execute(sa.union(heard, registered)).scalars()}
    return len(names if sharing is None else names & {*sharing, node})


def _commitments(
    db: sa.Connection, budget_id: int, span: Span, *, ledger_id: int | None = None
) -> dict[int, _Account]:
    """Return what each ledger has used and may still use of a window, or one of them."""
    leases = (
        sa.select(LEASE)
        .where(LEASE.c.budget_id == budget_id, LEASE.c.from_us == span.from_us)
        .order_by(LEASE.c.ledger_id, LEASE.c.number)
    )
    spent = sa.select(SPENT.c.ledger_id, SPENT.c.used).where(
        SPENT.c.budget_id == budget_id, SPENT.c.from_us == span.from_us
    )
    if ledger_id is not None:
        leases = leases.where(LEASE.c.ledger_id == ledger_id)
        spent = spent.where(SPENT.c.ledger_id == ledger_id)
    used = {row.ledger_id: row.used for row in db.execute(spent)}
    lent: dict[int, int] = {}
    latest: dict[int, Any] = {}
    for row in db.execute(leases):
        latest[row.ledger_id] = row
        if row.over_us is None:
            lent[row.ledger_id] = max(lent.get(row.ledger_id, 0), row.most)
    concerned = {*used, *latest}
    names = {
        row.id: row
        for row in db.execute(
            sa.select(LEDGER.c.id, LEDGER.c.node, LEDGER.c.epoch).where(LEDGER.c.id.in_(concerned))
        )
    }
    return {
        one: _Account(
            committed=Committed(
                node=names[one].node,
                epoch=names[one].epoch,
                used=used.get(one, 0),
                lent=lent.get(one, 0),
            ),
            latest=latest.get(one),
        )
        for one in sorted(concerned)
    }


def _row(shared: SharedBudget, now_us: int) -> dict[str, Any]:
    budget = shared.budget
    return {
        "tenant": shared.tenant,
        "name": budget.name,
        "unit": budget.unit,
        "currency": budget.currency,
        "most": budget.limit,
        "window": budget.window,
        "zone": budget.zone,
        "scope": chain.canonical(asdict(budget.scope)).decode(),
        "nodes": None if shared.nodes is None else chain.canonical(shared.nodes).decode(),
        "slice_min": shared.slice_min,
        "lease_us": shared.lease_us,
        "changed_us": now_us,
    }


def _read(row: Any) -> SharedBudget:
    return SharedBudget(
        tenant=row.tenant,
        budget=Budget(
            name=row.name,
            limit=row.most,
            unit=row.unit,
            currency=row.currency,
            window=row.window,
            zone=row.zone,
            scope=CostCentre(**json.loads(row.scope)),
            shared=True,
        ),
        nodes=None if row.nodes is None else tuple(json.loads(row.nodes)),
        slice_min=row.slice_min,
        lease_us=row.lease_us,
    )
