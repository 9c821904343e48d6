"""Accounts, sign-in and sessions of the panel, kept in its own file.

Secrets are kept as Argon2id hashes, sessions and tokens as digests, so the file lets nobody
in. Wrong secrets lock an account for a while that grows, and a restart does not shorten it.
There is no default password: while there is no administrator, one token, shown once at the
start or given by whoever installs, makes the first. Who a session belongs to is answered
from memory; everything else here may wait for a disk and belongs in a thread.
"""

from __future__ import annotations

import hashlib
import re
import threading
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from qcnode.errors import SignInError
from qcnode.panel.access import GRANTS, Right, Role, Who
from qcnode.panel.audit import AuditTrail, Deed

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Iterable

    from qcnode.panel.file import PanelFile

IDLE = timedelta(minutes=5)
"""After this long without a touch or a key, whoever is signed in is a viewer again."""
SESSION_MAX = timedelta(hours=12)
SESSIONS_MAX = 200
SEEN_EVERY = timedelta(seconds=20)
WRONG_MAX = 5
LOCK_FIRST = timedelta(minutes=1)
LOCK_MAX = timedelta(minutes=15)
PIN_DIGITS_MIN = 6
PASSWORD_LENGTH_MIN = 10
SECRET_LENGTH_MAX = 200
PIN_ROLES = (Role.VIEWER, Role.OPERATOR)
"""Who may have a PIN; the others can change what is recorded, and need a password."""

_NAME = re.compile(r"[\w][\w .'-]{0,39}")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# One lane and 19 MiB, as OWASP has it at least: a login must not take the line's cores.
_HASHER = PasswordHasher(time_cost=2, memory_cost=19_456, parallelism=1)
_NO_SECRET = "none"  # noqa: S105  # it is none
"""In the place of a hash: nothing opens this account but a door."""
_NO_ONES = (
    "$argon2id$v=19$m=19456,t=2,p=1$xJv1JTMMXeryAS499gXFbA$"
    "83jJwiJEixlYNWyksffzyWxgdJPfjxXlTmwfXygEZ58"
)
"""Nobody's secret, so that an unknown name takes as long as a wrong secret."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """A person who may sign in. `pin` says that the secret is digits, for a keypad."""

    name: str
    role: Role
    pin: bool
    secret_hash: str
    wrong: int
    locked_until: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """What a program shows; its secret is known to nobody here."""

    name: str
    rights: frozenset[Right]
    made_at: datetime


@dataclass(slots=True)
class _Session:
    name: str
    opened: datetime
    seen: datetime
    written: datetime


class Accounts:
    """Everybody who may sign in here, and who has."""

    def __init__(
        self,
        file: PanelFile,
        *,
        now: Callable[[], datetime],
        new_secret: Callable[[], str],
        given: str | None,
    ) -> None:
        self._file = file
        self._now = now
        self._new_secret = new_secret
        self._audit = AuditTrail(file, now=now)
        self._changing = threading.Lock()
        with file.transaction() as db:
            self._accounts = {row[0]: _account(row) for row in db.execute(_ACCOUNTS)}
            self._sessions = {row[0]: _session(row) for row in db.execute(_SESSIONS)}
            self._tokens = {row[1]: _token(row) for row in db.execute(_TOKENS)}
        self._given = given
        self._first = given or new_secret()
        self._doors: dict[str, str] = {}

    # -- from memory -------------------------------------------------------------

    def who(self, cookie: str) -> Who | None:
        """Return whose session this is, None when it is over."""
        return self.who_by_key(digest_of(cookie))

    def who_by_key(self, key: str) -> Who | None:
        """As `who`, by the key of the session."""
        session, now = self._sessions.get(key), self._now()
        if session is None or now - session.seen >= IDLE or now - session.opened >= SESSION_MAX:
            return None
        account = self._accounts.get(session.name)
        if account is None:
            return None
        return Who(name=account.name, role=account.role, rights=GRANTS[account.role], key=key)

    def program(self, secret: str) -> Who | None:
        """Return which program shows this token."""
        digest = digest_of(secret)
        if self._given is not None and digest == digest_of(self._given):
            return Who(
                name="installer", role=Role.VIEWER, rights=frozenset({Right.VIEW, Right.METRICS})
            )
        token = self._tokens.get(digest)
        if token is None:
            return None
        return Who(name=token.name, role=Role.VIEWER, rights=token.rights)

    @property
    def first_token(self) -> str | None:
        """What makes the first administrator; None once there is one who can sign in."""
        some = any(
            one.role is Role.ADMIN and one.secret_hash != _NO_SECRET
            for one in self._accounts.values()
        )
        return None if some else self._first

    @property
    def metrics_open(self) -> bool:
        """Whether whoever reaches the panel may read its metrics: no token was given."""
        return self._given is None

    def all(self) -> list[Account]:
        """Return every account, by name."""
        return [self._accounts[name] for name in sorted(self._accounts)]

    def tokens(self) -> list[Token]:
        """Return what programs were let in, by name."""
        return sorted(self._tokens.values(), key=lambda token: token.name)

    def idle_left(self, key: str) -> timedelta:
        """Return how long a session lasts if nobody touches the screen."""
        session = self._sessions.get(key)
        return _NONE if session is None else max(session.seen + IDLE - self._now(), _NONE)

    # -- signing in and out --------------------------------------------------------

    def set_up(self, token: str, name: str, password: str, *, where: str) -> str:
        """Make the first administrator and return their session's secret."""
        with self._changing:
            first = self.first_token
            if first is None:
                raise SignInError("there is an administrator already: sign in")
            if digest_of(token) != digest_of(first):
                raise SignInError("this is not the token of this node")
            self._add(
                name,
                Role.ADMIN,
                password,
                by=Deed(what="account.first", who=name, role=Role.ADMIN, where=where),
            )
            return self._open(name, where)

    def sign_in(self, name: str, secret: str, *, where: str) -> str:
        """Return the secret of a new session, or raise `SignInError`."""
        account = self._accounts.get(name)
        self._refuse_locked(account)
        right = _fits(_NO_ONES if account is None else account.secret_hash, secret)
        with self._changing:
            account = self._accounts.get(name)
            self._refuse_locked(account)  # Others may have guessed meanwhile.
            if account is None or not right:
                self._note_wrong(name, account, where)
                raise SignInError("name and secret do not belong together")
            if account.wrong:
                self._keep(replace(account, wrong=0, locked_until=_EPOCH))
            return self._open(name, where)

    def sign_out(self, cookie: str, *, where: str) -> None:
        """End a session; a copy of its cookie opens nothing any more."""
        key = digest_of(cookie)
        with self._changing:
            session = self._sessions.pop(key, None)
            if session is None:
                return
            with self._file.transaction() as db:
                db.execute("DELETE FROM session WHERE digest = ?", (key,))
                self._audit.add(db, self._deed("session.close", session.name, where))

    def touch(self, key: str) -> bool:
        """Note that a person is there; say whether that should be put on disk by now."""
        session, now = self._sessions.get(key), self._now()
        if session is None or self.who_by_key(key) is None:
            return False
        session.seen = now
        return now - session.written >= SEEN_EVERY

    def keep_seen(self, key: str) -> None:
        """Put on disk when a session was last used."""
        session = self._sessions.get(key)
        if session is not None:
            session.written = session.seen
            with self._file.transaction() as db:
                db.execute(
                    "UPDATE session SET seen_us = ? WHERE digest = ?", (_us(session.seen), key)
                )

    # -- doors ---------------------------------------------------------------------

    def door(self, name: str, role: Role) -> str:
        """Return a key that signs in as `name` while this process runs: for demonstrations."""
        if name not in self._accounts:
            with self._changing:
                deed = self._deed("account.demo", "demo", "here")
                self._put(name, role, pin=False, hashed=_NO_SECRET, by=deed)
        key = self._new_secret()
        self._doors[digest_of(key)] = name
        return key

    def enter(self, key: str, *, where: str) -> str:
        """Open a session by the key of a door."""
        name = self._doors.get(digest_of(key))
        if name is None:
            raise SignInError("this address signs nobody in any more")
        with self._changing:
            return self._open(name, where)

    # -- who there is ----------------------------------------------------------------

    def add(self, name: str, role: Role, secret: str, *, by: Deed) -> None:
        """Add an account. Raises `SignInError` when name or secret will not do."""
        with self._changing:
            self._add(name, role, secret, by=by)

    def change(
        self, name: str, *, role: Role | None = None, secret: str | None = None, by: Deed
    ) -> None:
        """Give an account another role or another secret, which ends its sessions and its lock."""
        with self._changing:
            account = self._known(name)
            role = role or account.role
            if account.role is Role.ADMIN and role is not Role.ADMIN:
                self._refuse_last_admin(name)
            if secret is None:
                if account.pin and role not in PIN_ROLES:
                    raise SignInError(f"{role} needs a password: give one with the role")
                pin, hashed = account.pin, account.secret_hash
            else:
                pin, hashed = _check(secret, role), _HASHER.hash(secret)
            changed = replace(
                account, role=role, pin=pin, secret_hash=hashed, wrong=0, locked_until=_EPOCH
            )
            said = replace(by, subject=name, before=account.role, after=role)
            with self._file.transaction() as db:
                _write(db, changed)
                db.execute("DELETE FROM session WHERE name = ?", (name,))
                self._audit.add(db, said)
            self._accounts[name] = changed
            self._forget_sessions(name)

    def remove(self, name: str, *, by: Deed) -> None:
        """Take an account away. The last administrator stays."""
        with self._changing:
            account = self._known(name)
            if account.role is Role.ADMIN:
                self._refuse_last_admin(name)
            with self._file.transaction() as db:
                db.execute("DELETE FROM account WHERE name = ?", (name,))
                self._audit.add(db, replace(by, subject=name, before=account.role))
            del self._accounts[name]
            self._forget_sessions(name)

    def issue(self, name: str, rights: Iterable[Right], *, by: Deed) -> str:
        """Let a program in; its secret is returned this once."""
        if not _NAME.fullmatch(name):
            raise SignInError(f"{name!r}: a token's name is up to 40 letters and digits")
        secret, granted = self._new_secret(), frozenset(rights)
        token = Token(name=name, rights=granted, made_at=self._now())
        with self._changing:
            if any(one.name == name for one in self._tokens.values()):
                raise SignInError(f"{name}: there is a token of this name")
            scopes = " ".join(sorted(granted))
            with self._file.transaction() as db:
                db.execute(
                    "INSERT INTO token (name, digest, rights, made_us) VALUES (?, ?, ?, ?)",
                    (name, digest_of(secret), scopes, _us(token.made_at)),
                )
                self._audit.add(db, replace(by, subject=name, after=scopes))
            self._tokens[digest_of(secret)] = token
        return secret

    def revoke(self, name: str, *, by: Deed) -> None:
        """Let a program in no more."""
        with self._changing:
            digest = next((key for key, one in self._tokens.items() if one.name == name), None)
            if digest is None:
                raise SignInError(f"{name}: there is no such token")
            with self._file.transaction() as db:
                db.execute("DELETE FROM token WHERE digest = ?", (digest,))
                self._audit.add(db, replace(by, subject=name))
            del self._tokens[digest]

    # -- within -----------------------------------------------------------------------

    def _add(self, name: str, role: Role, secret: str, *, by: Deed) -> None:
        if not _NAME.fullmatch(name):
            raise SignInError(f"{name!r}: a name is up to 40 letters, digits and blanks")
        if name in self._accounts:
            raise SignInError(f"{name}: there is somebody of this name")
        pin = _check(secret, role)
        self._put(name, role, pin=pin, hashed=_HASHER.hash(secret), by=by)

    def _put(self, name: str, role: Role, *, pin: bool, hashed: str, by: Deed) -> None:
        account = Account(
            name=name, role=role, pin=pin, secret_hash=hashed, wrong=0, locked_until=_EPOCH
        )
        with self._file.transaction() as db:
            _write(db, account)
            self._audit.add(db, replace(by, subject=name, after=role))
        self._accounts[name] = account

    def _open(self, name: str, where: str) -> str:
        cookie, now = self._new_secret(), self._now()
        key = digest_of(cookie)
        over = [one for one in self._sessions if self.who_by_key(one) is None]
        spare = len(self._sessions) - len(over) - SESSIONS_MAX + 1
        if spare > 0:
            over += sorted(self._sessions, key=lambda one: self._sessions[one].seen)[:spare]
        with self._file.transaction() as db:
            db.executemany("DELETE FROM session WHERE digest = ?", [(one,) for one in over])
            db.execute(
                "INSERT INTO session (digest, name, opened_us, seen_us) VALUES (?, ?, ?, ?)",
                (key, name, _us(now), _us(now)),
            )
            self._audit.add(db, self._deed("session.open", name, where))
        for one in over:
            self._sessions.pop(one, None)
        self._sessions[key] = _Session(name=name, opened=now, seen=now, written=now)
        return cookie

    def _refuse_locked(self, account: Account | None) -> None:
        if account is not None and account.locked_until > self._now():
            left = int((account.locked_until - self._now()).total_seconds()) + 1
            raise SignInError(f"{account.name} is locked for another {left} s")

    def _note_wrong(self, name: str, account: Account | None, where: str) -> None:
        if account is None:
            return  # Made-up names must not fill the disk.
        wrong = account.wrong + 1
        locked = _EPOCH
        if wrong >= WRONG_MAX:
            locked = self._now() + min(LOCK_FIRST * 2 ** min(wrong - WRONG_MAX, 10), LOCK_MAX)
        self._keep(
            replace(account, wrong=wrong, locked_until=locked),
            self._deed("session.refused" if locked == _EPOCH else "account.locked", name, where),
        )

    def _keep(self, account: Account, deed: Deed | None = None) -> None:
        with self._file.transaction() as db:
            _write(db, account)
            if deed is not None:
                self._audit.add(db, deed)
        self._accounts[account.name] = account

    def _known(self, name: str) -> Account:
        account = self._accounts.get(name)
        if account is None:
            raise SignInError(f"{name}: there is nobody of this name")
        return account

    def _refuse_last_admin(self, name: str) -> None:
        admins = [one for one in self._accounts.values() if one.role is Role.ADMIN]
        if len(admins) == 1:
            raise SignInError(f"{name} is the last administrator: make another one first")

    def _forget_sessions(self, name: str) -> None:
        for key in [key for key, one in self._sessions.items() if one.name == name]:
            self._sessions.pop(key, None)

    def _deed(self, what: str, name: str, where: str) -> Deed:
        account = self._accounts.get(name)
        return Deed(what=what, who=name, role=account.role if account else "", where=where)


_NONE = timedelta(0)
_ACCOUNTS = "SELECT name, role, secret_hash, pin, wrong, locked_until_us FROM account"
_SESSIONS = "SELECT digest, name, opened_us, seen_us FROM session"
_TOKENS = "SELECT name, digest, rights, made_us FROM token"


def digest_of(secret: str) -> str:
    """Return what is kept of a secret nobody could guess."""
    return hashlib.sha256(secret.encode()).hexdigest()


def _fits(hashed: str, secret: str) -> bool:
    if len(secret) > SECRET_LENGTH_MAX:
        return False
    try:
        return _HASHER.verify(hashed, secret)
    except (VerificationError, InvalidHashError):
        return False


def _check(secret: str, role: Role) -> bool:
    """Say whether this secret is a PIN; raise `SignInError` when it will not do."""
    if len(secret) > SECRET_LENGTH_MAX:
        raise SignInError(f"a secret has at most {SECRET_LENGTH_MAX} characters")
    if secret.isascii() and secret.isdigit() and role in PIN_ROLES:
        if len(secret) < PIN_DIGITS_MIN or len(set(secret)) == 1:
            raise SignInError(f"a PIN has at least {PIN_DIGITS_MIN} digits, and not all the same")
        return True
    if len(secret) < PASSWORD_LENGTH_MIN:
        raise SignInError(f"{role} needs a password of at least {PASSWORD_LENGTH_MIN} characters")
    return False


def _us(at: datetime) -> int:
    return (at - _EPOCH) // timedelta(microseconds=1)


def _time(at_us: int) -> datetime:
    return _EPOCH + timedelta(microseconds=at_us)


def _account(row: tuple[str, str, str, int, int, int]) -> Account:
    name, role, hashed, pin, wrong, locked_us = row
    return Account(
        name=name,
        role=Role(role),
        pin=bool(pin),
        secret_hash=hashed,
        wrong=wrong,
        locked_until=_time(locked_us),
    )


def _write(db: sqlite3.Connection, account: Account) -> None:
    db.execute(
        "INSERT INTO account (name, role, secret_hash, pin, wrong, locked_until_us)"
        " VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (name) DO UPDATE SET role = excluded.role,"
        " secret_hash = excluded.secret_hash, pin = excluded.pin, wrong = excluded.wrong,"
        " locked_until_us = excluded.locked_until_us",
        (
            account.name,
            account.role,
            account.secret_hash,
            account.pin,
            account.wrong,
            _us(account.locked_until),
        ),
    )


def _session(row: tuple[str, str, int, int]) -> _Session:
    _, name, opened_us, seen_us = row
    seen = _time(seen_us)
    return _Session(name=name, opened=_time(opened_us), seen=seen, written=seen)


def _token(row: tuple[str, str, str, int]) -> Token:
    name, _, rights, made_us = row
    return Token(
        name=name,
        rights=frozenset(Right(one) for one in rights.split()),
        made_at=_time(made_us),
    )
