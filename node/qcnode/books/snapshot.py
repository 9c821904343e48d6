"""What a ledger comes to, kept and signed, so that opening need not count it all again.

A snapshot is taken on trust in the node's own key, and only until the whole chain has
been proven again behind it. One that does not fit in every point (other budgets, another
head, another version, a seal that is not the node's) is as good as none.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

import msgspec

from qcnode.books import chain
from qcnode.books.attempts import Standing, State
from qcnode.books.budgets import Budget, Counted, Meter
from qcnode.books.checkpoints import origin_for
from qcnode.books.seals import Checkpoint, PublicKey, SigningKey
from qcnode.books.tally import Tally
from qcnode.errors import SealError
from qcnode.money import CostCentre, Leased, TokenUsage

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Sequence

VERSION: Final = 1
"""To be counted up whenever the same entries come to another tally than before."""


class Basis(msgspec.Struct, frozen=True, order=True):
    """An earlier epoch whose spending in running windows is counted in."""

    epoch: str
    seq: int
    hash: str


class _Sum(msgspec.Struct):
    centre: CostCentre
    provider: str
    currency: str
    held: int
    used: int


class _Meter(msgspec.Struct):
    budget: Budget
    windows: list[tuple[int, Counted]]


class _State(msgspec.Struct):
    version: int
    seq: int
    hash: str
    basis: list[Basis]
    live: list[Standing]
    worst: list[tuple[str, TokenUsage]]
    counts: list[tuple[State, int]]
    usage: TokenUsage
    sums: list[_Sum]
    written_off_pico: list[tuple[str, int]]
    meters: list[_Meter]
    leases: list[Leased]


_STATE = msgspec.json.Decoder(_State)


def encode_tally(tally: Tally, basis: Sequence[Basis]) -> bytes:
    """Write a tally the one way that is sealed: what comes to the same is the same bytes."""
    return chain.canonical(
        _State(
            version=VERSION,
            seq=tally.seq,
            hash=tally.hash.hex(),
            basis=sorted(basis),
            live=[tally.live[one] for one in sorted(tally.live)],
            worst=sorted(tally.worst.items()),
            counts=sorted((state, count) for state, count in tally.counts.items() if count),
            usage=tally.usage,
            sums=[
                _Sum(centre, provider, currency, held, used)
                for (centre, provider, currency), (held, used) in sorted(
                    tally.sums.items(), key=repr
                )
            ],
            written_off_pico=sorted(tally.written_off_pico.items()),
            meters=[_Meter(meter.budget, sorted(meter.windows.items())) for meter in tally.meters],
            leases=[tally.leases[name] for name in sorted(tally.leases)],
        )
    )


def put_snapshot(
    db: sqlite3.Connection, tally: Tally, basis: Sequence[Basis], *, key: SigningKey, epoch: str
) -> None:
    """Keep `tally`, in the transaction that is open, in place of the snapshot before."""
    state = encode_tally(tally, basis)
    note = key.sign(_sealed(key.public.name, epoch, state, tally.seq, tally.hash))
    db.execute(
        "INSERT OR REPLACE INTO snapshot (id, seq, note, state) VALUES (1, ?, ?, ?)",
        (tally.seq, note, state),
    )


def find_snapshot(
    db: sqlite3.Connection,
    *,
    key: PublicKey,
    epoch: str,
    budgets: Sequence[Budget],
    basis: Sequence[Basis],
) -> Tally | None:
    """Return the tally that is kept, or None when there is none that fits.

    Of the budgets, limits may be others than they were: what was counted is the same.
    """
    row = db.execute("SELECT seq, note, state FROM snapshot").fetchone()
    if row is None:
        return None
    seq, note, state = row
    try:
        read = _STATE.decode(state)
        digest = bytes.fromhex(read.hash)
        if key.check(note) != _sealed(key.name, epoch, state, seq, digest):
            return None
        if read.version != VERSION or read.seq != seq or read.basis != sorted(basis):
            return None
        meters = _meters(read.meters, budgets)
    except (msgspec.MsgspecError, ValueError, SealError):
        return None
    entry = db.execute("SELECT hash FROM entry WHERE seq = ?", (seq,)).fetchone()
    if meters is None or entry is None or entry[0] != digest:
        return None
    return Tally(
        seq=seq,
        hash=digest,
        live={standing.attempt.id: standing for standing in read.live},
        worst=dict(read.worst),
        counts=dict(read.counts),
        usage=read.usage,
        sums={(one.centre, one.provider, one.currency): (one.held, one.used) for one in read.sums},
        written_off_pico=dict(read.written_off_pico),
        meters=meters,
        leases={lease.budget: lease for lease in read.leases},
    )


def _sealed(name: str, epoch: str, state: bytes, seq: int, digest: bytes) -> Checkpoint:
    # Another origin than that of checkpoints: neither can be passed off as the other.
    said = hashlib.sha256(state).hexdigest()
    return Checkpoint(origin=f"{origin_for(name, epoch)}/tally/{said}", size=seq, head_hash=digest)


def _meters(kept: Sequence[_Meter], budgets: Sequence[Budget]) -> list[Meter] | None:
    known = {_counts_as(one.budget): dict(one.windows) for one in kept}
    meters: list[Meter] = []
    for budget in budgets:
        windows = known.get(_counts_as(budget))
        if windows is None:
            return None
        meters.append(Meter(budget, windows.copy()))
    return meters


def _counts_as(budget: Budget) -> tuple[object, ...]:
    return (budget.unit, budget.currency, budget.window, budget.zone, budget.scope)
