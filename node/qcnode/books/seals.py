"""Signed checkpoints of a ledger: who vouches for how much of it.

A checkpoint is a C2SP signed note (<https://c2sp.org/signed-note>): origin, number of
entries and the hash of the last one, which by the chain covers them all; then one line
for each signature. The node signs with its own key, the billing server adds its line,
and either can be checked with a public key and nothing else.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from qcnode.errors import SealError

if TYPE_CHECKING:
    from pathlib import Path

_ED25519: Final = b"\x01"
_HASH_BYTES: Final = 32
_NAME = re.compile(r"[^\s+]{1,200}")
_BODY = re.compile(r"(?P<origin>[^\n]{1,300})\n(?P<size>0|[1-9][0-9]{0,18})\n(?P<head>[^\n]{44})\n")
_LINE = re.compile(r"\u2014 (?P<name>[^\s+]{1,200}) (?P<seal>[A-Za-z0-9+/=]{1,200})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """The first `size` entries of the ledger `origin`, of which the last has this hash."""

    origin: str
    size: int
    head_hash: bytes

    def text(self) -> str:
        """Write what is signed."""
        return f"{self.origin}\n{self.size}\n{base64.b64encode(self.head_hash).decode()}\n"


class PublicKey:
    """Somebody's public key under a name; written as a C2SP verifier key."""

    def __init__(self, name: str, raw: bytes) -> None:
        if not _NAME.fullmatch(name):
            raise SealError(f"{name!r:.80} is no name for a key: no spaces and no '+'")
        self.name = name
        self.raw = raw
        self.id = hashlib.sha256(name.encode() + b"\n" + _ED25519 + raw).digest()[:4]
        try:
            self._key = Ed25519PublicKey.from_public_bytes(raw)
        except ValueError as error:
            raise SealError(f"the key of {name} is no Ed25519 key: give its 32 bytes") from error

    @classmethod
    def parse(cls, text: str) -> PublicKey:
        """Read a key as `str` writes it; raises `SealError`."""
        name, _, rest = text.strip().partition("+")
        mark, _, encoded = rest.partition("+")
        try:
            raw = _decode(encoded)
        except binascii.Error as error:
            raise SealError(f"{text!r:.80} is no key: it reads NAME+ID+KEY") from error
        if raw[:1] != _ED25519:
            raise SealError(f"the key of {name!r:.80} is of a kind not known here: use Ed25519")
        key = cls(name, raw[1:])
        if mark != key.id.hex():
            raise SealError(
                f"the key of {name!r:.80} does not match its id {mark!r:.20}: copy it whole"
            )
        return key

    def __str__(self) -> str:
        return f"{self.name}+{self.id.hex()}+{base64.b64encode(_ED25519 + self.raw).decode()}"

    def check(self, note: str) -> Checkpoint:
        """Return what `note` says when this key signed it, or raise `SealError`."""
        checkpoint, lines = _parse(note)
        for name, seal in lines:
            if name == self.name and seal[:4] == self.id:
                try:
                    self._key.verify(seal[4:], checkpoint.text().encode())
                except InvalidSignature as error:
                    raise SealError(f"the signature of {self.name} is not its own") from error
                return checkpoint
        raise SealError(f"no signature of {self.name} with the key {self.id.hex()}")

    def check_seal(self, words: bytes, seal: str | None) -> None:
        """Raise `SealError` unless `seal` is this key's signature under `words`."""
        try:
            self._key.verify(_decode(seal or ""), words)
        except (InvalidSignature, ValueError) as error:
            raise SealError(f"no seal of {self.name} with the key {self.id.hex()}") from error


class SigningKey:
    """A private key under a name; signing takes about a tenth of a millisecond."""

    def __init__(self, name: str, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.public = PublicKey(name, key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw))

    @classmethod
    def open(cls, path: Path, *, name: str) -> SigningKey:
        """Read the key in `path`, making one (0600) when there is none; raises `SealError`."""
        try:
            if not path.exists():
                _write(path, Ed25519PrivateKey.generate())
            pem = path.read_bytes()
        except OSError as error:
            raise SealError(f"{path}: no key can be read or made here ({error})") from error
        return cls.read(pem, name=name, source=str(path))

    @classmethod
    def read(cls, pem: bytes, *, name: str, source: str) -> SigningKey:
        """Read a key that somebody else made, without a passphrase; raises `SealError`."""
        try:
            key = load_pem_private_key(pem, password=None)
        except (ValueError, TypeError) as error:
            raise SealError(f"{source}: this is no private key in PEM ({error})") from error
        if not isinstance(key, Ed25519PrivateKey):
            raise SealError(
                f"{source}: a key of another kind: use Ed25519, or remove it for a new one"
            )
        return cls(name, key)

    def sign(self, checkpoint: Checkpoint) -> str:
        """Return the signed note."""
        return checkpoint.text() + "\n" + self._line(checkpoint)

    def seal(self, words: bytes) -> str:
        """Return this key's signature under `words`, which say themselves what they are."""
        return base64.b64encode(self._key.sign(words)).decode()

    def add_to(self, note: str) -> str:
        """Return `note` with this key's signature beside the others; raises `SealError`."""
        checkpoint, _lines = _parse(note)
        return note + self._line(checkpoint)

    def _line(self, checkpoint: Checkpoint) -> str:
        seal = self.public.id + self._key.sign(checkpoint.text().encode())
        return f"\u2014 {self.public.name} {base64.b64encode(seal).decode()}\n"


def origin_of(tenant: str, node: str, epoch: str) -> str:
    """Return what a ledger is called in its checkpoints."""
    return f"qcnode/{tenant}/{node}/{epoch}"


def read_note(note: str) -> Checkpoint:
    """Return what `note` says, whoever signed it; raises `SealError`."""
    return _parse(note)[0]


def _parse(note: str) -> tuple[Checkpoint, list[tuple[str, bytes]]]:
    text, gap, tail = note.partition("\n\n")
    found = _BODY.fullmatch(text + "\n")
    if not gap or found is None or not tail.endswith("\n"):
        raise SealError("this is no signed checkpoint")
    lines: list[tuple[str, bytes]] = []
    try:
        head = _decode(found["head"])
        for line in tail[:-1].split("\n"):
            signed = _LINE.fullmatch(line)
            if signed is None:
                raise SealError("this is no signed checkpoint: a signature is unreadable")
            lines.append((signed["name"], _decode(signed["seal"])))
    except binascii.Error as error:
        raise SealError("this is no signed checkpoint: it is not base64") from error
    if len(head) != _HASH_BYTES:
        raise SealError("this is no signed checkpoint: its hash is not of 32 bytes")
    return Checkpoint(origin=found["origin"], size=int(found["size"]), head_hash=head), lines


def _decode(text: str) -> bytes:
    """Read base64 that is written the one way there is.

    The last character may hold bits that say nothing: taken as they come, the same signature
    could be written in several ways.
    """
    raw = base64.b64decode(text, validate=True)
    if base64.b64encode(raw).decode() != text:
        raise binascii.Error("its last character says too much")
    return raw


def _write(path: Path, key: Ed25519PrivateKey) -> None:
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    unfinished = path.with_name(path.name + ".part")
    descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(pem)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)
