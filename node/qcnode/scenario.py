"""A shift in which the machine drifts, three times: nobody adjusts, a rule does, an agent does.

The same parts by the same seed, the same drift and the same model, side by side: defects
made by the world's own record, what got past the gate, tokens and money by the ledger.
What is scripted or a model stands in the result (`SAID`), and whoever shows the figures
shows that too.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import threading
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

from pydantic import SecretStr

from qcbridge.adjuster import Adjuster
from qcbridge.providers.scripted import ScriptedSettings, build_server
from qcnode.adviser import RuleAdviser
from qcnode.books import chain
from qcnode.books.journal import Journal
from qcnode.books.ledger import SqliteLedger
from qcnode.books.pictures import PictureStore
from qcnode.books.repricing import recorded
from qcnode.cameras.studio import DefectKind
from qcnode.cameras.virtual import RenderedCamera, RenderedParts
from qcnode.demo import SEED, alone_in, prepare
from qcnode.domain import AgentLevel
from qcnode.errors import SettingsError
from qcnode.health import HealthBoard
from qcnode.ids import IdMaker
from qcnode.kill import FOLDER, KillSwitch
from qcnode.lines.world import read_fates
from qcnode.listen import listen
from qcnode.process import VirtualProcess, draw_drifts
from qcnode.runtime.onnx import OnnxModel
from qcnode.settings import (
    AgentSettings,
    CameraSettings,
    CostCentreSettings,
    LineSettings,
    ModelSettings,
    NodeSettings,
    ProviderSettings,
    Secrets,
    Settings,
)
from qcnode.shift import HOURS, LOOKS, Around, Shift
from qcnode.wiring.agents import build_agent, build_meter, build_provider
from qcnode.wiring.eyes import WORLD
from qcnode.wiring.machine import new_epoch, now, now_us
from qcnode.worth import tokens_by_stream

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from qcnode.demo import DemoOptions, Show
    from qcnode.domain import ProcessChange
    from qcnode.lines.world import Fate
    from qcnode.money import LedgerFact

DRIFT: Final = "drift"
NOBODY, RULE, AGENT = "nobody", "adviser", "agent"
RUNS: Final = (NOBODY, RULE, AGENT)
DEFECT_SHARE: Final = 0.04
LATENCY_MS: Final = 20.0
PICTURES_MAX: Final = 10_000
POLL_S: Final = 0.2
STOP_S: Final = 10.0
ADVICE_S: Final = 20.0
PAGE: Final = 1_000
PUBLISHED: Final = {
    "who": "a manufacturer in Guangdong, over all its facilities, by press reports",
    "defects_percent": -37,
    "tokens_per_hour": 2_000_000,
}
SAID: Final = (
    (
        "The process is a model: how fast it drifts, and by how much a knob off its place adds"
        " defects, was chosen and not measured. By how much adjusting helps follows from that."
    ),
    (
        "The rule and the scripted provider find the cause of a defect in one table, by the people"
        " who wrote the process. On a machine that table is the first thing to get wrong."
    ),
    (
        "The agent is the scripted provider: a real HTTP server that follows a rule, and no LLM. It"
        " shows the way of an answer, its tokens and its price, and not what an LLM would say."
    ),
    (
        "That it does better or worse than the adviser says nothing of agents: it asks for less"
        " evidence before it turns a knob, and is wrong on purpose now and then."
    ),
    (
        "Which kind of defect a rejected part has is read from the virtual line's own record, as if"
        " somebody had sorted the rejects and never erred."
    ),
    (
        "Rule and agent are armed at L4 by two people and an auditor who do not exist; no person"
        " confirms anything, and none rules on undecided parts."
    ),
    "Belt time is virtual: nothing is late, and no latency is measured.",
)
"""What is scripted or a model, said with every result."""


def run_scenario(options: DemoOptions, show: Show) -> dict[str, Any]:
    """Run the shift three times and return all three side by side."""
    for name in ("data", "seconds", "ask_share", "broker", "billing_url"):
        if getattr(options, name) is not None:
            option = name.replace("_", "-")
            raise SettingsError(f"--{option}: a scenario has no use for it; leave it out")
    if options.keep:
        raise SettingsError("--keep: a scenario has no panel to keep up; leave it out")
    if options.parts % LOOKS:
        raise SettingsError(
            f"--parts {options.parts}: a shift has {LOOKS} quarters of an hour with as many parts"
            f" each: give {options.parts - options.parts % LOOKS or LOOKS}"
        )
    with alone_in(options.home):
        kept = [options.home / name for name in RUNS if (options.home / name).exists()]
        if kept:
            raise SettingsError(f"{kept[0]}: a shift is kept there; give another --home")
        prepare(options, show)
        runs = [asyncio.run(_run(name, options, show)) for name in RUNS]
    return {
        "scenario": DRIFT,
        "seed": options.seed,
        "parts": options.parts,
        "hours": HOURS,
        "runs": runs,
        "published": PUBLISHED,
        "said": list(SAID),
        "home": str(options.home),
    }


async def _run(name: str, options: DemoOptions, show: Show) -> dict[str, Any]:
    home = options.home / name
    home.mkdir(parents=True)
    async with contextlib.AsyncExitStack() as undo:
        key = secrets.token_urlsafe(24)
        base_url = undo.enter_context(_scripted_provider(home, options, key))
        settings = _settings(home, options, base_url, key)
        around, ledger = _around(name, settings, undo)
        shift = Shift(around, world=home / WORLD, count=options.parts, seed=settings.line.seed)
        undo.push_async_callback(asyncio.to_thread, shift.stop, STOP_S)
        shift.start()
        while not shift.over():
            show.teaching(f"shift, {name}", shift.done, options.parts)
            await asyncio.sleep(POLL_S)
        show.teaching(f"shift, {name}", options.parts, options.parts)
        return _result(name, shift, ledger, read_fates(home / WORLD))


def _around(
    name: str, settings: Settings, undo: contextlib.AsyncExitStack
) -> tuple[Around, SqliteLedger]:
    home, seed = settings.node.home, settings.line.seed
    assert settings.line.parts is not None  # noqa: S101  # a shift has an end
    new_id = IdMaker(lambda: time.time_ns() // 1_000_000)
    health = HealthBoard(now)
    model = OnnxModel(settings.model.dir)
    process = VirtualProcess(draw_drifts(seed, shift=settings.line.parts))
    parts = RenderedParts(seed=seed, defect_share=settings.camera.defect_rate, process=process)
    journal = Journal(
        home / "journal.db",
        pictures=PictureStore(
            home / "pictures", pictures_max=PICTURES_MAX, heat_full=model.limits.reject_from
        ),
        health=health,
    )
    undo.push_async_callback(asyncio.to_thread, journal.close)
    ledger = SqliteLedger(home / "ledger.db", now_us=now_us, new_epoch=new_epoch, health=health)
    undo.push_async_callback(asyncio.to_thread, ledger.close)
    stops = KillSwitch(home / FOLDER, clock_ns=time.monotonic_ns, now=now)
    undo.callback(stops.close)
    reviewer = build_agent(settings, ledger=ledger, health=health, new_id=new_id)
    assert reviewer is not None  # noqa: S101  # the settings enable it
    undo.push_async_callback(reviewer.close)
    adviser: Adjuster | RuleAdviser | None = None
    if name == RULE:
        adviser = RuleAdviser()
    elif name == AGENT:
        one = settings.provider[0]
        meter = build_meter(one, ledger=ledger, health=health)
        adviser = Adjuster(
            provider=build_provider(settings, one, meter=meter),
            meter=meter,
            product=settings.agent.product,
            health=health,
            stops=stops,
            new_id=new_id,
            monotonic_s=time.monotonic,
            timeout_s=ADVICE_S,
            centre=settings.centre(),
            level=settings.agent.level.value,
            region=one.region,
        )
        undo.push_async_callback(adviser.close)
    return Around(
        parts=parts,
        process=process,
        camera=RenderedCamera(parts, name="rendered", now=now, new_id=new_id),
        model=model,
        journal=journal,
        reviewer=reviewer,
        adviser=adviser,
        stops=stops,
        health=health,
        count_audit=lambda: journal.audit(model.version),
        now=now,
        new_id=new_id,
    ), ledger


def _settings(home: Path, options: DemoOptions, base_url: str, key: str) -> Settings:
    return Settings(
        node=NodeSettings(name="scenario", tenant="demo", site="demo", home=home),
        line=LineSettings(parts=options.parts, seed=SEED + options.seed),
        camera=CameraSettings(kind="rendered", defect_rate=DEFECT_SHARE),
        model=ModelSettings(dir=options.home / "model"),
        agent=AgentSettings(
            enabled=True,
            level=AgentLevel.L4,
            product="a machined flange plate with four holes, a seal ring and an engraved code",
            defect_classes=tuple(str(kind) for kind in DefectKind),
        ),
        provider=(ProviderSettings(base_url=base_url, timeout_s=10.0),),
        cost_centre=CostCentreSettings(
            department="quality",
            application="inspection",
            function="final inspection",
            product="flange",
            agent="reviewer",
        ),
        secrets=Secrets(provider_api_key=SecretStr(key)),
    )


@contextlib.contextmanager
def _scripted_provider(home: Path, options: DemoOptions, key: str) -> Iterator[str]:
    """Serve the scripted provider on a thread of its own until this block ends."""
    listening = listen("127.0.0.1", 0)
    server = build_server(
        ScriptedSettings(
            world=home / WORLD,
            log=home / "provider.log",
            api_key=key,
            accuracy=options.accuracy,
            # No latency is measured here, so none is worth waiting for.
            latency_ms=LATENCY_MS,
            seed=1 + options.seed,
        ),
        now=time.time,
    )
    serving = threading.Thread(
        target=server.run, kwargs={"sockets": [listening]}, name="scripted", daemon=True
    )
    serving.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
    finally:
        server.should_exit = True
        serving.join(STOP_S)


# -- what came of it -----------------------------------------------------------------------


def _result(name: str, shift: Shift, ledger: SqliteLedger, fates: list[Fate]) -> dict[str, Any]:
    totals = ledger.totals()
    tokens = tokens_by_stream(recorded(_facts(ledger)).asked)
    look = max(1, len(fates) // LOOKS)
    return {
        "adjusted_by": name,
        "parts": len(fates),
        "defects": sum(fate.is_defective for fate in fates),
        "defects_by_quarter": [
            sum(fate.is_defective for fate in fates[start : start + look])
            for start in range(0, len(fates), look)
        ][:LOOKS],
        "parts_by_quarter": look,
        "escapes": sum(fate.is_escape for fate in fates),
        "false_rejects": sum(fate.is_false_reject for fate in fates),
        "asked": shift.asked,
        "unanswered": shift.unanswered + shift.no_advice,
        "certificate_revoked": None
        if shift.revoked_at is None
        else {"after_parts": shift.revoked_at[0], "reason": shift.revoked_at[1]},
        "tokens": tokens,
        "tokens_per_hour": round(sum(tokens.values()) / HOURS),
        "cost_pico": totals.cost_pico,
        "ledger_entries": totals.entries,
        "adjustments": [_told(after, change) for after, change in shift.changes],
    }


def _told(after_parts: int, change: ProcessChange) -> dict[str, Any]:
    told = asdict(change)
    told["at"] = change.at.isoformat()
    return {"after_parts": after_parts, **told}


def _facts(ledger: SqliteLedger) -> Iterator[tuple[int, LedgerFact]]:
    after = 0
    while entries := ledger.read(after, PAGE):
        for entry in entries:
            yield entry.at_us, chain.fact_of(entry)
        after = entries[-1].seq
