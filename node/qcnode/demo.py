"""The demo: a whole factory corner in one process tree, and books that agree.

A virtual line sends parts, the node judges them, doubtful ones go to the scripted
provider (a real HTTP server in a process of its own, and no LLM), every token is
metered and billed by a billing server in this process. At the end the world's own
record says how many verdicts were wrong, with the node alone and with the agent, and the
ledger is compared with the bill.
Everything stays in one folder and can be looked at with the other commands.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import secrets
import shutil
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol

import httpx2
import uvicorn
from pydantic import SecretStr

from qcbridge.billing.app import create_app
from qcbridge.billing.consumer import Broker, MqttConsumer
from qcbridge.billing.engine import Database
from qcbridge.billing.intake import Intake
from qcbridge.billing.keys import Trust
from qcbridge.billing.reports import Reports
from qcbridge.billing.store import BillingStore
from qcbridge.billing.witness import Witness, open_key
from qcbridge.evidence import image_tokens
from qcmodels.data import digest_of, open_dataset
from qcmodels.train import TeachConfig, teach
from qcnode.books import batch, chain
from qcnode.books.repricing import recorded
from qcnode.cameras.folder import FolderPictures
from qcnode.cameras.studio import DefectKind
from qcnode.cameras.virtual import write_dataset
from qcnode.demo_policy import WORDS as POLICY
from qcnode.demo_policy import write_policy
from qcnode.domain import (
    Action,
    AgentLevel,
    Decider,
    Disposition,
    FaultKind,
    Finding,
    Inspection,
    Limits,
    Ruling,
)
from qcnode.errors import (
    LedgerCorruptError,
    ManifestError,
    ProviderUnavailableError,
    SettingsError,
)
from qcnode.lines.http import HttpChannel
from qcnode.lines.world import UNKNOWN, read_fates
from qcnode.listen import listen
from qcnode.main import QuietServer, build_node
from qcnode.manifest import load_manifest
from qcnode.panel.access import Role
from qcnode.picture import decode_picture
from qcnode.policy import alone
from qcnode.settings import (
    AgentSettings,
    BudgetSettings,
    CameraSettings,
    CostCentreSettings,
    DriftSettings,
    LineSettings,
    MeteringSettings,
    ModelSettings,
    MqttSettings,
    NodeSettings,
    PanelSettings,
    ProviderSettings,
    Secrets,
    Settings,
)
from qcnode.wiring.agents import prices_of
from qcnode.wiring.eyes import WORLD
from qcnode.worth import Weighed, tokens_by_stream, weigh

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence
    from pathlib import Path

    from qcnode.books.repricing import Asked
    from qcnode.main import Node
    from qcnode.money import LedgerFact, LedgerTotals
    from qcnode.ports import Channel

TENANT = "demo"
SEED = 20261122
EVEN = 0.5
"""How common defects are taken to be in a folder of test pictures, of which nobody knows it."""
GOOD_PARTS = 160
DEFECTS_EACH = 12
BUDGET_MICRO = 2_000_000
PROVIDER_START_S = 60.0
REVIEWS_END_S = 90.0
BILL_END_S = 30.0
BELT_EMPTY_S = 5.0
SHOW_EVERY_S = 0.5
TRUTH = "the virtual line's own record"
READER = "truth"
"""Who reads the journal to say what parts were."""
PAGE = 1_000
MICRO = 1_000_000
SCRIPTED_FORMULA = "patch28"
"""How the scripted provider counts the tokens of a picture."""
_GOES = {
    Disposition.RELEASE: Action.ACCEPT,
    Disposition.SCRAP: Action.REJECT,
    Disposition.REWORK: Action.REJECT,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoOptions:
    """What to show. Without `data` parts are rendered; without `seconds`, all `parts` come.

    With `ask_share` the model is taught to ask about this share of the parts, chosen on the
    pictures it was taught from. `seed` draws the parts, their order and the provider's dice.
    """

    home: Path
    data: Path | None
    parts: int
    seconds: float | None
    panel_port: int
    billing_port: int
    accuracy: float
    ask_share: float | None
    seed: int
    broker: tuple[str, int] | None
    billing_url: str | None
    keep: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Show:
    """How the demo tells what it is doing."""

    say: Callable[[str], None]
    teaching: Callable[[str, int, int], None]
    running: Callable[[Node], None]


class Around(Protocol):
    """What stands around the node in place of the virtual line."""

    def start(self, settings: Settings, undo: contextlib.ExitStack) -> Settings:
        """Start it, and return the settings of a node that works with it."""

    async def see_through(self, node: Node) -> None:
        """Wait until every part has come and gone."""

    async def report(self, node: Node) -> dict[str, Any]:
        """Return what it saw."""


def run_demo(options: DemoOptions, show: Show, around: Around | None = None) -> dict[str, Any]:
    """Run the demo, on the virtual line or with what is `around`, and return its summary.

    Until the model is taught a signal ends the process as usual; from then on it ends
    the belt, and the books are still brought to agree.
    """
    with alone_in(options.home):
        data = prepare(options, show)
        return asyncio.run(_run(options, data, show, around))


async def _run(
    options: DemoOptions, data: Path, show: Show, around: Around | None
) -> dict[str, Any]:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    key, token = secrets.token_urlsafe(24), secrets.token_urlsafe(24)
    async with contextlib.AsyncExitStack() as undo:
        base_url = await undo.enter_async_context(_scripted_provider(options, key))
        settings = _settings(options, data, base_url, key, token)
        store = _open_store(options)
        undo.callback(store.database.close)
        page, channel = await _serve_billing(options, store, token, undo)
        if around is not None:
            settings = around.start(settings, undo.enter_context(contextlib.ExitStack()))
        node = build_node(settings, channel=channel)
        undo.push_async_callback(node.close)
        # For this demo alone, and for as long as it runs: nobody has to make an account.
        key = node.accounts.door("demo visitor", Role.ADMIN)
        show.say(f"panel    {node.url}enter?key={key} (signs you in as its administrator)")
        show.say(f"billing  {page} (user: any, password: in {options.home / 'billing.token'})")

        node_stop = asyncio.Event()
        running = asyncio.create_task(node.run(node_stop))
        seeing = None if around is None else asyncio.create_task(around.see_through(node))
        try:
            await _until_parts_are_through(node, options, show, stop, running)
            await _until_books_agree(node, show, stop)
            summary = _summary(node, store, options)
            if around is not None:
                summary["line"] = await around.report(node)
            if options.keep and not stop.is_set():
                show.say("summary is ready; the panel stays up until Ctrl-C")
                await stop.wait()
        finally:
            if seeing is not None:
                seeing.cancel()
            node_stop.set()
            await running
    return summary


# -- before ------------------------------------------------------------------------------


@contextlib.contextmanager
def alone_in(home: Path) -> Iterator[None]:
    """Keep other demos out of `home`, before anything in it is touched."""
    try:
        home.mkdir(parents=True, exist_ok=True)
        lock = (home / "demo.lock").open("w")
    except OSError as error:
        raise SettingsError(f"{home}: cannot be written ({error.strerror})") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise SettingsError(
                f"{home}: another demo runs there; wait for it, or give another --home"
            ) from None
        yield


def prepare(options: DemoOptions, show: Show) -> Path:
    """Return the data set, with a model taught on it in `home`."""
    data = options.data
    if data is None:
        data = options.home / "flange"
        if not data.is_dir():
            show.say("rendering pictures of good and defective parts to teach on")
            # Half a data set must not pass for a whole one when the demo is stopped here.
            unfinished = options.home / "flange.part"
            shutil.rmtree(unfinished, ignore_errors=True)
            write_dataset(
                unfinished,
                seed=SEED + options.seed,
                good=GOOD_PARTS,
                defects=DEFECTS_EACH,
                progress=lambda done, of: show.teaching("render", done, of),
            )
            unfinished.rename(data)
    if not _is_taught_from(_model_dir(options), data):
        show.say(f"teaching a model on {data}")
        teach(
            data,
            _model_dir(options),
            config=_teach_config(options),
            now=datetime.now(UTC),
            progress=show.teaching,
        )
    return data


def _model_dir(options: DemoOptions) -> Path:
    if options.ask_share is None:
        return options.home / "model"
    return options.home / f"model-asking-{options.ask_share:g}"


def _teach_config(options: DemoOptions) -> TeachConfig:
    if options.ask_share is None:
        # Nobody wants to watch other families lose.
        return TeachConfig(family="gaussian", seed=options.seed)
    config = TeachConfig(ask_share=options.ask_share, seed=options.seed)
    return config if options.data is None else replace(config, prevalence=EVEN)


def _is_taught_from(model: Path, data: Path) -> bool:
    try:
        taught_from = load_manifest(model).taught_from
    except ManifestError:
        return False
    dataset = open_dataset(data)
    pictures = (*dataset.train_good, *dataset.train_defects)
    return taught_from.sha256 == digest_of(pictures, dataset.root)


def _settings(options: DemoOptions, data: Path, base_url: str, key: str, token: str) -> Settings:
    if options.data is None:
        camera = CameraSettings(kind="rendered", defect_rate=0.15)
        parts, product = (
            options.parts,
            "a machined flange plate with four holes, a seal ring and an engraved code",
        )
        classes = tuple(str(kind) for kind in DefectKind)
    else:
        camera = CameraSettings(kind="folder", source=str(data / "test"), shuffle=True)
        parts = min(options.parts, len(FolderPictures(data / "test")))
        product = data.resolve().name.replace("_", " ")
        classes = open_dataset(data).labels
    host, port = options.broker or ("127.0.0.1", 1883)
    provider = ProviderSettings(base_url=base_url, timeout_s=3.0)
    return Settings(
        node=NodeSettings(name="demo-node", tenant=TENANT, site="demo", home=options.home),
        panel=PanelSettings(port=options.panel_port),
        line=LineSettings(parts=parts, seed=SEED + options.seed),
        camera=camera,
        # A folder of test parts is mostly defects, and no line.
        drift=DriftSettings() if options.data is None else DriftSettings(defects_most=0.95),
        model=ModelSettings(dir=_model_dir(options)),
        agent=AgentSettings(
            enabled=True,
            # Nobody stands at the demo to confirm proposals.
            level=AgentLevel.L3,
            product=product,
            defect_classes=classes,
            waiting_max=500,
        ),
        provider=(provider,),
        authority=write_policy(
            options.home / "policy",
            provider=provider.name,
            model=provider.model,
            right=options.accuracy,
            now=datetime.now(UTC),
        ),
        cost_centre=CostCentreSettings(
            department="quality",
            application="inspection",
            function="final inspection",
            product="flange" if options.data is None else product,
            agent="reviewer",
        ),
        budget=(BudgetSettings(name="day", currency="USD", limit_micro=BUDGET_MICRO),),
        metering=MeteringSettings(channel="mqtt" if options.broker else "none"),
        mqtt=MqttSettings(host=host, port=port, events=options.broker is not None),
        secrets=Secrets(provider_api_key=SecretStr(key), billing_token=SecretStr(token)),
    )


# -- around ------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def _scripted_provider(options: DemoOptions, key: str) -> AsyncIterator[str]:
    """Run the scripted provider as a child process; it ends with this block."""
    with listen("127.0.0.1", 0) as probe:
        port = probe.getsockname()[1]
    child = subprocess.Popen(  # noqa: ASYNC220, S603  # our own program, started once
        [
            *(sys.executable, "-m", "qcnode.cli.app", "scripted-provider"),
            *("--world", str(options.home / WORLD)),
            *("--log", str(options.home / "provider.log")),
            *("--port", str(port), "--accuracy", str(options.accuracy)),
            *("--seed", str(1 + options.seed)),
            *("--error-rate", "0.04", "--timeout-rate", "0.02", "--until-stdin-closes"),
        ],
        env={**os.environ, "QCNODE_PROVIDER_API_KEY": key},
        # Nothing is written here: it closes when this process dies, however it dies.
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        # Ctrl-C is for the demo, which ends its child itself.
        start_new_session=True,
    )
    try:
        await _until_alive(f"http://127.0.0.1:{port}/livez", child)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        child.terminate()
        try:
            await asyncio.to_thread(child.wait, 5)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        if child.stdin is not None:
            child.stdin.close()


async def _until_alive(url: str, child: subprocess.Popen[bytes]) -> None:
    async with httpx2.AsyncClient(trust_env=False) as client:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PROVIDER_START_S):
                while child.poll() is None:
                    with contextlib.suppress(httpx2.HTTPError):
                        if (await client.get(url)).is_success:
                            return
                    await asyncio.sleep(0.1)
    raise ProviderUnavailableError("the scripted provider did not start; its words are above")


def _open_store(options: DemoOptions) -> BillingStore:
    url = options.billing_url or f"sqlite:///{options.home / 'billing.db'}"
    database = Database(url)
    database.migrate()
    return BillingStore(
        database,
        now=lambda: datetime.now(UTC),
        trust=Trust.FIRST,
        witness=Witness(open_key(options.home / "billing.key")),
    )


async def _serve_billing(
    options: DemoOptions, store: BillingStore, token: str, undo: contextlib.AsyncExitStack
) -> tuple[str, Channel | None]:
    """Serve the billing page, and return its address and the node's channel to it.

    Without a broker the channel stays inside this process; with one it is the node's
    own, and the billing server listens at the broker.
    """
    intake = Intake(store)
    app = create_app(store, token=token, now=lambda: datetime.now(UTC), intake=intake)
    token_file = options.home / "billing.token"
    token_file.unlink(missing_ok=True)
    token_file.touch(mode=0o600)
    token_file.write_text(token)
    listening = listen("127.0.0.1", options.billing_port)
    server = QuietServer(uvicorn.Config(app, log_config=None, access_log=False))
    serving = asyncio.create_task(server.serve(sockets=[listening]))

    async def end() -> None:
        server.should_exit = True
        await serving

    undo.push_async_callback(end)
    page = f"http://127.0.0.1:{listening.getsockname()[1]}/"
    if options.broker is not None:
        consumer = MqttConsumer(Broker(host=options.broker[0], port=options.broker[1]), intake)
        consumer.start()
        undo.push_async_callback(asyncio.to_thread, consumer.stop)
        return page, None
    client = httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app))
    undo.push_async_callback(client.aclose)
    return page, HttpChannel(
        client, "http://127.0.0.1", token=token, read_receipt=batch.decode_receipt
    )


# -- meanwhile ---------------------------------------------------------------------------


async def _until_parts_are_through(
    node: Node,
    options: DemoOptions,
    show: Show,
    stop: asyncio.Event,
    running: asyncio.Task[None],
) -> None:
    """Let the line run until all parts are sent, the time is up, or somebody stops it."""
    starting = asyncio.create_task(node.started.wait())
    await asyncio.wait({running, starting}, return_when=asyncio.FIRST_COMPLETED)
    starting.cancel()
    started = asyncio.get_running_loop().time()
    while not running.done() and not node.station.join(0):
        show.running(node)
        over = options.seconds is not None and (
            asyncio.get_running_loop().time() - started >= options.seconds
        )
        if over or stop.is_set():
            show.say("no more parts are sent")
            node.line.finish()
            await asyncio.to_thread(node.station.join, BELT_EMPTY_S)
            break
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SHOW_EVERY_S):
                await stop.wait()
    show.running(node)


async def _until_books_agree(node: Node, show: Show, stop: asyncio.Event) -> None:
    """Wait for the agent's last rulings and the last receipt."""
    show.say("waiting for the last rulings and receipts")
    waiting = asyncio.create_task(node.desk.settled())
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait(
        {waiting, stopping}, timeout=REVIEWS_END_S, return_when=asyncio.FIRST_COMPLETED
    )
    for task in (waiting, stopping):
        task.cancel()
    node.desk.stop_asking()
    show.running(node)
    await _tell_the_truth(node)
    if node.outbox is not None:
        await node.outbox.flush(BILL_END_S)


async def _tell_the_truth(node: Node) -> None:
    """Say of the parts that the agent settled what they were, as rework would find out.

    Only what a ruling was good for needs this: the node has no other way to know.
    """
    fates = read_fates(node.settings.node.home / WORLD)
    truths = {
        fate.part_id: Finding.DEFECTIVE if fate.is_defective else Finding.GOOD
        for fate in fates
        if fate.truth != UNKNOWN
    }
    after = node.journal.cursor(READER)
    while records := await asyncio.to_thread(node.journal.read, after):
        rulings = [
            record
            for _, record in records
            if isinstance(record, Ruling) and record.binding and record.by is Decider.AGENT
        ]
        await asyncio.gather(
            *(
                node.desk.learn(one.escalation_id, truths[one.part_id], source=TRUTH)
                for one in rulings
                if one.part_id in truths
            )
        )
        after = records[-1][0]
        await asyncio.wrap_future(node.journal.advance(READER, after))


# -- after -------------------------------------------------------------------------------


def _summary(node: Node, store: BillingStore, options: DemoOptions) -> dict[str, Any]:
    counts, totals = asdict(node.journal.counts()), node.ledger.totals()
    billed = Reports(store.database).totals(TENANT)
    fates = read_fates(options.home / WORLD)
    latencies = sorted(node.station.latencies_us())
    try:
        verified = node.ledger.verify() == totals.entries
    except LedgerCorruptError:
        verified = False
    gate = {
        "false_rejects": sum(fate.is_false_reject for fate in fates),
        "escapes": sum(fate.is_escape for fate in fates),
    }
    rulings = {
        "false_rejects": sum(fate.is_false_scrap for fate in fates),
        "escapes": sum(fate.is_false_release for fate in fates),
    }
    outcomes = node.station.outcomes()
    return {
        **counts,
        "parts_this_run": sum(outcomes.values()),
        "faults_this_run": {kind.value: outcomes[kind] for kind in FaultKind if outcomes.get(kind)},
        "attempts": totals.attempts,
        "tokens_if_all_were_asked": _if_all_were_asked(counts["parts"], totals),
        "indeterminate": totals.indeterminate,
        "tokens": {"input": totals.input_tokens, "output": totals.output_tokens},
        "cost_pico": totals.cost_pico,
        "held_pico": totals.held_pico,
        "unpriced": totals.unpriced,
        "ledger": {"entries": totals.entries, "verified": verified},
        "billing": {
            "entries": billed.entries,
            "cost_pico": billed.cost_pico,
            "matches": (billed.entries, billed.cost_pico, billed.held_pico)
            == (totals.entries, totals.cost_pico, totals.held_pico),
        },
        "agent": _agent(node),
        "false_rejects": gate["false_rejects"] + rulings["false_rejects"],
        "escapes": gate["escapes"] + rulings["escapes"],
        "wrong": {"gate": gate, "rulings": rulings},
        "defective": sum(fate.is_defective for fate in fates),
        "p50_ms": _quantile_ms(latencies, 0.50),
        "p99_ms": _quantile_ms(latencies, 0.99),
        "model": node.manifest.version,
        "provider": "scripted provider (no LLM; its answers come from the line's own truth)",
        "policy": POLICY,
        "home": str(options.home),
    }


def _agent(node: Node) -> dict[str, Any]:
    """Say what asking was worth: errors without and with it, its tokens, and what it saved."""
    inspected, ruled = _on_record(node)
    limits = node.manifest.limits
    table = node.manifest.risk_coverage
    one = Limits(accept_below=None, reject_from=table[0].reject_from) if table else None
    weighed = []
    for fate in read_fates(node.settings.node.home / WORLD):
        part = inspected.get(fate.part_id)
        if part is None or fate.truth == UNKNOWN:
            continue  # A fault: neither way has judged it.
        action = alone(part.score, limits)
        ruling = ruled.get(fate.part_id)
        done = part.action
        if done is Action.DIVERT:
            went = None if ruling is None else ruling.disposition
            done = action if went is None else _GOES[went]
        weighed.append(
            Weighed(
                defective=fate.is_defective,
                alone=action,
                done=done,
                ruled=ruling is not None,
                one_limit=None if one is None else alone(part.score, one),
            )
        )
    worth = weigh(weighed)
    asked = recorded(_facts(node)).asked
    streams = tokens_by_stream(asked)
    tokens, parts = sum(streams.values()), node.journal.counts().parts
    net = worth.alone - worth.with_agent
    costs = node.ledger.totals().cost_pico
    return {
        "parts": worth.parts,
        "ruled": worth.ruled,
        "wrong_alone": worth.alone,
        "wrong_alone_at_one_limit": worth.one_limit,
        "wrong_with_agent": worth.with_agent,
        "wrong_if_every_ruling_were_right": worth.if_right,
        "errors_avoided": worth.avoided,
        "errors_made": worth.made,
        "tokens": streams,
        "tokens_per_1000_parts": round(1000 * tokens / parts) if parts else None,
        "cost_pico_per_error_avoided": {name: pico // net for name, pico in costs.items()}
        if net > 0
        else None,
        "naive": _naive(node, asked),
    }


def _on_record(node: Node) -> tuple[dict[str, Inspection], dict[str, Ruling]]:
    """Return what the node saw of each part, and what an agent ruled that counted."""
    inspected: dict[str, Inspection] = {}
    ruled: dict[str, Ruling] = {}
    after = 0
    while records := node.journal.read(after):
        for _, record in records:
            if isinstance(record, Inspection):
                inspected[record.part_id] = record
            elif isinstance(record, Ruling) and record.binding and record.by is Decider.AGENT:
                ruled[record.part_id] = record
        after = records[-1][0]
    return inspected, ruled


def _facts(node: Node) -> Iterator[tuple[int, LedgerFact]]:
    after = 0
    while entries := node.ledger.read(after, PAGE):
        for entry in entries:
            yield entry.at_us, chain.fact_of(entry)
        after = entries[-1].seq


def _naive(node: Node, asked: Sequence[Asked]) -> dict[str, Any] | None:
    """Reckon the same questions with the whole picture at its own size and the same words.

    By the scripted provider's own formula and the book in force; nothing is sent.
    """
    prices, tokens, used, requests = prices_of(node.settings.provider[0]), 0, 0, 0
    costs: Counter[str] = Counter()
    for one in asked:
        # The desk makes an escalation's id of its inspection's.
        picture = node.journal.picture(one.attempt.escalation_id.removeprefix("e-"))
        if picture is None or one.cost is None:
            continue
        height, width = decode_picture(picture, name=one.attempt.escalation_id).shape[:2]
        whole = replace(one.usage, image=image_tokens(width, height, formula=SCRIPTED_FORMULA))
        cost = prices.price(
            whole,
            one.attempt.provider,
            one.attempt.model,
            datetime.fromtimestamp(one.ended_us / MICRO, UTC),
        )
        tokens += whole.input_tokens + whole.output_tokens
        used += one.usage.input_tokens + one.usage.output_tokens
        requests += 1
        costs[cost.currency] += cost.pico
        costs[f"{cost.currency} used"] += one.cost.pico
    if not tokens:
        return None
    currencies = [name for name in costs if " " not in name]
    return {
        "tokens": tokens,
        "tokens_saved": tokens - used,
        "share_saved": round(1 - used / tokens, 4),
        "tokens_for_every_part": tokens * node.journal.counts().parts // requests,
        "cost_pico": {name: costs[name] for name in currencies},
        "cost_saved_pico": {name: costs[name] - costs[f"{name} used"] for name in currencies},
    }


def _if_all_were_asked(parts: int, totals: LedgerTotals) -> int | None:
    """Estimate the tokens of asking about every part, at the mean of what was settled here."""
    if totals.settled == 0:
        return None
    return (totals.input_tokens + totals.output_tokens) * parts // totals.settled


def _quantile_ms(sorted_us: list[int], share: float) -> float | None:
    if not sorted_us:
        return None
    return round(sorted_us[min(len(sorted_us) - 1, int(share * len(sorted_us)))] / 1000, 3)
