"""Which billing server a node believes: the one it was told of, or the first one it met."""

from __future__ import annotations

import dataclasses

import pytest
from structlog.testing import capture_logs

from qcnode.books.batch import decode_receipt, encode_receipt, sealed_words
from qcnode.books.pin import ServerKey
from qcnode.books.seals import Checkpoint, SigningKey
from qcnode.errors import LedgerUnavailableError, SealError
from qcnode.money import Cost, Leased, Receipt, Reconciled, TokenUsage, WrittenOff


@pytest.fixture
def keys(tmp_path):
    """The billing server's key, and somebody else's under the same name."""
    return [SigningKey.open(tmp_path / name, name="billing") for name in ("its.key", "other.key")]


def receipt(signer, *, names=None):
    checkpoint = Checkpoint(origin="qcnode/acme/n1/e", size=3, head_hash=bytes(32))
    return Receipt(
        epoch="e",
        acked_seq=3,
        head_hash=bytes(32).hex(),
        note=signer.sign(checkpoint),
        server_key=str((names or signer).public),
    )


def test_the_first_key_that_signs_for_itself_is_kept_and_said_once(tmp_path, keys):
    its, other = keys
    server = ServerKey(tmp_path / "billing.pub")
    assert not server.known
    with capture_logs() as logs:
        server.learn(receipt(its))
        server.learn(receipt(other))
    assert [line["key"] for line in logs] == [str(its.public)]
    assert server.check(receipt(its)).size == 3
    again = ServerKey(tmp_path / "billing.pub")  # as after a restart
    assert again.check(receipt(its)).size == 3
    with pytest.raises(SealError, match=r"if the server has a new key, remove .*billing\.pub"):
        again.check(receipt(other))


def test_a_key_in_the_settings_counts_and_no_other(tmp_path, keys):
    its, other = keys
    ServerKey(tmp_path / "billing.pub").learn(receipt(other))
    server = ServerKey(tmp_path / "billing.pub", given=its.public)
    server.learn(receipt(other))
    assert server.check(receipt(its)).size == 3
    with pytest.raises(SealError, match=r"set metering\.server_key"):
        server.check(receipt(other))


def test_a_key_that_did_not_sign_what_names_it_is_not_kept(tmp_path, keys):
    its, other = keys
    server = ServerKey(tmp_path / "billing.pub")
    with pytest.raises(SealError):
        server.learn(receipt(other, names=its))
    server.learn(dataclasses.replace(receipt(its), note=None))
    assert not server.known
    assert not (tmp_path / "billing.pub").exists()


def test_a_receipt_without_a_note_is_not_the_servers(tmp_path, keys):
    server = ServerKey(tmp_path / "billing.pub", given=keys[0].public)
    with pytest.raises(SealError):
        server.check(dataclasses.replace(receipt(keys[0]), note=None))


def test_facts_count_only_with_the_servers_seal_for_this_very_ledger(tmp_path, keys):
    its, other = keys
    server = ServerKey(tmp_path / "billing.pub", given=its.public)
    lease = Leased(lease_id="l1", budget="all", unit="calls", limit=9, from_us=0, until_us=9)
    plain = dataclasses.replace(receipt(its), leases=(lease,))
    sealed = dataclasses.replace(plain, seal=its.seal(sealed_words(plain)))
    assert server.vouches(sealed)
    more = dataclasses.replace(lease, limit=10)
    known = Reconciled(
        attempt_id="a1",
        usage=None,
        cost=Cost(currency="USD", pico=0, rows=()),
        source="export",
        source_sha256="00",
    )
    with capture_logs() as logs:
        for forged in (
            plain,
            dataclasses.replace(plain, seal="nonsense"),
            dataclasses.replace(plain, seal=other.seal(sealed_words(plain))),
            dataclasses.replace(sealed, leases=(more,)),
            dataclasses.replace(sealed, resolutions=(known,)),
            dataclasses.replace(sealed, epoch="another"),
        ):
            assert not server.vouches(forged)
    assert len(logs) == 6
    assert server.vouches(receipt(its))
    assert ServerKey(tmp_path / "none.pub").vouches(plain)  # Nobody can tell.


def test_a_seal_holds_across_the_wire(tmp_path, keys):
    server = ServerKey(tmp_path / "billing.pub", given=keys[0].public)
    facts = (
        Reconciled(
            attempt_id="Ω",
            usage=TokenUsage(text=1, image=2),
            cost=Cost(currency="CNY", pico=3, rows=("r1",)),
            source="export",
            source_sha256="00",
        ),
        WrittenOff(attempt_id="a2", reason='"old"'),
    )
    plain = dataclasses.replace(receipt(keys[0]), resolutions=facts)
    sealed = dataclasses.replace(plain, seal=keys[0].seal(sealed_words(plain)))
    heard = decode_receipt(encode_receipt(sealed))
    assert heard == sealed
    assert server.vouches(heard)


def test_a_kept_key_that_is_damaged_is_named_with_the_fix(tmp_path):
    (tmp_path / "billing.pub").write_text("billing+00000000+nonsense")
    with pytest.raises(SealError, match=r"billing\.pub: .*remove it"):
        ServerKey(tmp_path / "billing.pub")


def test_a_key_that_cannot_be_kept_is_not_believed(tmp_path, keys):
    server = ServerKey(tmp_path / "no such folder" / "billing.pub")
    with pytest.raises(LedgerUnavailableError, match="cannot be kept"):
        server.learn(receipt(keys[0]))
    assert not server.known
