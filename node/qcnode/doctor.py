"""What is wrong with this installation, and the fix for each.

Every check looks at one thing, changes nothing, and gives one finding. A thing that
the settings do not use is not looked at.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import sqlite3
import sys
import time
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

import httpx2
import onnxruntime

from qcbridge.egress import EgressRule, Permit, refusal
from qcbridge.providers.protocols import provider_class
from qcnode.books.ledger_file import LedgerReader
from qcnode.errors import QcError
from qcnode.listen import listen
from qcnode.main import panel_token
from qcnode.money import TokenUsage
from qcnode.runtime.cage import try_release
from qcnode.runtime.onnx import OnnxModel
from qcnode.runtime.tuning import keep, tune
from qcnode.settings import load_settings
from qcnode.wiring.agents import (
    UNLISTED,
    allows_nothing,
    check_provider,
    checked_on,
    prices_of,
    worst_request,
)
from qcnode.wiring.eyes import MODELS
from qcnode.wiring.machine import now

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from qcnode.runtime.tuning import Tuning
    from qcnode.settings import ProviderSettings, Settings

FREE_BYTES_MIN = 1_000_000_000
CONNECT_TIMEOUT_S = 3.0
SQLITE_FIXED = (3, 51, 3)
SQLITE_BACKPORTS = frozenset({(3, 44, 6), (3, 50, 7)})
ORT_VARIANTS = {
    "onnxruntime": "CPUExecutionProvider",
    "onnxruntime-gpu": "CUDAExecutionProvider",
    "onnxruntime-openvino": "OpenVINOExecutionProvider",
    "onnxruntime-directml": "DmlExecutionProvider",
}
"""The variants exclude each other, and each brings the provider it is installed for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """The result of one check; `fix` is what to do when it is not ok, or a remark."""

    check: str
    ok: bool
    words: str
    fix: str | None = None


def examine(config: Path) -> list[Finding]:
    """Check the installation and, if `config` can be read, all that it names."""
    findings = [_python(), _runtime(), _sqlite()]
    try:
        settings = load_settings(config)
    except QcError as error:
        findings.append(
            Finding(check="settings", ok=False, words=str(error), fix="mend the file and try again")
        )
        return findings
    findings.append(Finding(check="settings", ok=True, words=str(config)))
    findings.extend(_of_node(settings))
    return findings


def tune_engines(config: Path) -> tuple[Tuning, Path]:
    """Measure the configured model on every engine here, and keep the choice for the node."""
    settings = load_settings(config)
    folder, threads = settings.model.dir, settings.model.threads
    try_release(folder, threads=threads)
    tuning = tune(folder, threads=threads, clock_ns=time.perf_counter_ns)
    return tuning, keep(settings.node.home / MODELS, tuning)


def _of_node(settings: Settings) -> Iterator[Finding]:
    yield _home(settings)
    yield from _ledger(settings)
    yield _model(settings)
    yield _panel(settings)
    if settings.agent.enabled:
        several = len(settings.provider) > 1
        for one in settings.provider:
            of = f" {one.name}/{one.model}" if several else ""
            yield _prices(settings, one, f"prices{of}")
            yield _provider(settings, one, f"provider{of}")
        yield from _budgets(settings)
    if settings.metering.channel == "http":
        yield _billing(settings)
    if settings.metering.channel == "mqtt" or settings.mqtt.events or settings.sparkplug.enabled:
        yield _broker(settings)


def _python() -> Finding:
    return Finding(check="python", ok=True, words=sys.version.split()[0])


def _runtime() -> Finding:
    installed = []
    for variant in ORT_VARIANTS:
        with contextlib.suppress(PackageNotFoundError):
            installed.append(f"{variant} {version(variant)}")
    if len(installed) > 1:
        return Finding(
            check="onnxruntime",
            ok=False,
            words=f"several variants overwrite each other: {', '.join(installed)}",
            fix="uninstall all of them, then install the one you need",
        )
    offered = onnxruntime.get_available_providers()
    promised = [ORT_VARIANTS[words.split(" ")[0]] for words in installed]
    if missing := [name for name in promised if name not in offered]:
        return Finding(
            check="onnxruntime",
            ok=False,
            words=f"{installed[0]} without {missing[0]}: another variant overwrote its files",
            fix="uninstall every variant, then install the one you need",
        )
    providers = ", ".join(name.removesuffix("ExecutionProvider") for name in offered)
    return Finding(check="onnxruntime", ok=True, words=f"{', '.join(installed)} ({providers})")


def _sqlite() -> Finding:
    number = sqlite3.sqlite_version_info
    racy = number < SQLITE_FIXED and number not in SQLITE_BACKPORTS
    words = sqlite3.sqlite_version
    remark = (
        "before 3.51.3 two writers can race at a WAL reset; the books have one writer each,"
        " so keep other programs from writing to them"
    )
    return Finding(check="sqlite", ok=True, words=f"{words}; {remark}" if racy else words)


def _home(settings: Settings) -> Finding:
    home = settings.node.home
    place = home
    while not place.exists():
        place = place.parent
    if not (place.is_dir() and os.access(place, os.W_OK | os.X_OK)):
        return Finding(
            check="home",
            ok=False,
            words=f"{home}: cannot be written",
            fix=f"give this user the right to write in {place}, or set node.home",
        )
    free = shutil.disk_usage(place).free
    return Finding(
        check="home",
        ok=free >= FREE_BYTES_MIN,
        words=f"{home}: {free / 1e9:.1f} GB free",
        fix=None if free >= FREE_BYTES_MIN else "free some space: without it nothing is asked",
    )


def _ledger(settings: Settings) -> Iterator[Finding]:
    path = settings.node.home / "ledger.db"
    if not path.exists():
        return
    try:
        reader = LedgerReader(path)
        try:
            entries = reader.verify().entries
        finally:
            reader.close()
    except QcError as error:
        yield Finding(
            check="ledger",
            ok=False,
            words=str(error),
            fix="keep the file as it is, move it aside, and restore the last backup",
        )
        return
    yield Finding(check="ledger", ok=True, words=f"{entries} entries, chain verified")


def _model(settings: Settings) -> Finding:
    folder = settings.model.dir
    try:
        # In a process of its own first: what cannot be loaded may not take this one along.
        try_release(folder, threads=settings.model.threads)
        model = OnnxModel(folder, threads=settings.model.threads)
    except QcError as error:
        return Finding(
            check="model",
            ok=False,
            words=str(error),
            fix=f"qcnode teach DATASET --out {folder}",
        )
    return Finding(check="model", ok=True, words=f"{model.version}, golden frames as released")


def _panel(settings: Settings) -> Finding:
    panel = settings.panel
    try:
        panel_token(settings)
    except QcError as error:
        return Finding(
            check="panel",
            ok=False,
            words=str(error),
            fix="set QCNODE_PANEL_TOKEN or QCNODE_PANEL_TOKEN_FILE",
        )
    try:
        listen(panel.host, panel.port).close()
    except QcError as error:
        return Finding(
            check="panel", ok=False, words=str(error), fix="set panel.port, or stop who is there"
        )
    return Finding(check="panel", ok=True, words=f"{panel.host}:{panel.port} is free")


def _prices(settings: Settings, provider: ProviderSettings, check: str) -> Finding:
    at = now()
    try:
        book = prices_of(provider)
        cost = book.price(TokenUsage(text=1_000, output=100), provider.name, provider.model, at)
    except QcError as error:
        return Finding(
            check=check,
            ok=False,
            words=str(error),
            fix="write a price file and name it in provider.prices: without one nothing is asked",
        )
    other = next(
        (one for one in settings.budgets() if one.currency not in (None, cost.currency)), None
    )
    if other is not None:
        return Finding(
            check=check,
            ok=False,
            words=f"prices are in {cost.currency}, budget {other.name} in {other.currency}",
            fix=f"set the currency of budget {other.name} to that of the price file",
        )
    checked = checked_on(book, provider.name, provider.model, at)
    days_max = settings.metering.prices_age_max_days
    if (
        provider.name not in UNLISTED
        and checked is not None
        and (at.date() - checked).days > days_max
    ):
        return Finding(
            check=check,
            ok=False,
            words=f"last checked on {checked}, more than {days_max} days ago",
            fix="look the prices up, and set checked_at in the price file to today",
        )
    rows = book.rows_in_force(provider.name, provider.model, at)
    words = ", ".join(cost.rows)
    if unread := [row.id for row in rows if not row.confirmed]:
        words += f"; {len(unread)} not confirmed: see `qcnode prices check`"
    return Finding(check=check, ok=True, words=words)


def _budgets(settings: Settings) -> Iterator[Finding]:
    try:
        worst = worst_request(settings)
    except QcError:
        return  # Said already, of the prices or the provider.
    for budget in settings.budgets():
        check = f"budget {budget.name}"
        if not budget.covers(settings.centre()):
            yield Finding(
                check=check,
                ok=True,
                words="counts nothing that this node spends: its scope names another cost centre",
            )
        elif worst is not None and (words := allows_nothing(budget, settings.centre(), worst)):
            yield Finding(
                check=check,
                ok=False,
                words=f"allows no question at all: {words}",
                fix="raise its limit, or lower provider.output_tokens_max or image_side_max_px",
            )
        else:
            lent = ", as far as the billing server lends it" if budget.shared else ""
            yield Finding(check=check, ok=True, words=f"by the {budget.window}{lent}")


def _provider(settings: Settings, one: ProviderSettings, check: str) -> Finding:
    try:
        check_provider(settings, one)
        provider_class(one.protocol, one.module)
    except QcError as error:
        return Finding(check=check, ok=False, words=str(error), fix="mend the key or [provider]")
    forbidden = refusal(Permit.of(one), EgressRule.of(settings.egress), today=now().date())
    if forbidden is not None:
        return Finding(
            check=check,
            ok=False,
            words=forbidden,
            fix="say in [provider] and [egress] what may be sent to whom:"
            " docs/how-to/use-a-real-provider.md",
        )
    return _reach(check, one.base_url, "check provider.base_url and the network")


def _billing(settings: Settings) -> Finding:
    url = settings.metering.url
    return _reach("billing", url, "check metering.url, and start `qcnode billing serve` there")


def _reach(check: str, url: str, fix: str) -> Finding:
    # A connection is enough to know: a request might cost something.
    try:
        address = httpx2.URL(url)
    except httpx2.InvalidURL as error:
        return Finding(check=check, ok=False, words=f"{url}: {error}", fix=fix)
    port = address.port or (443 if address.scheme == "https" else 80)
    return _connect(check, address.host, port, fix)


def _broker(settings: Settings) -> Finding:
    fix = "check [mqtt] host and port, and that the broker runs (deploy/mosquitto)"
    return _connect("broker", settings.mqtt.host, settings.mqtt.port, fix)


def _connect(check: str, host: str, port: int, fix: str) -> Finding:
    try:
        socket.create_connection((host, port), timeout=CONNECT_TIMEOUT_S).close()
    except OSError as error:
        words = f"{host}:{port} cannot be reached ({error.strerror or error})"
        return Finding(check=check, ok=False, words=words, fix=fix)
    return Finding(check=check, ok=True, words=f"{host}:{port} answers")
