"""The demo command: options in, progress and a summary out."""

from __future__ import annotations

import json
import logging
import time
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from qcnode.cli.scenario import print_scenario
from qcnode.errors import DatasetError, SettingsError
from qcnode.logs import configure_logs

if TYPE_CHECKING:
    from qcnode.demo import DemoOptions, Show
    from qcnode.main import Node

DEMO_HOME = Path("qcnode-demo")
PARTS = 240
SHIFT_PARTS = 1_600
PLAIN_EVERY_S = 2.0
PICO = 1_000_000_000_000


class Scenario(StrEnum):
    """What may happen at the virtual line."""

    DRIFT = "drift"


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(demo)


def demo(
    *,
    data: Annotated[
        Path | None,
        typer.Option(help="A data set in the MVTec AD layout; its test pictures come as parts."),
    ] = None,
    scenario: Annotated[
        Scenario | None,
        typer.Option(help="A shift told three times, with nobody, a rule and an agent adjusting."),
    ] = None,
    line: Annotated[
        Literal["virtual", "full"],
        typer.Option(
            help="full: with a broker, a PLC with the gate, a GigE camera and Sparkplug around it."
        ),
    ] = "virtual",
    parts: Annotated[
        int | None,
        typer.Option(
            min=1, help=f"Parts to send, at most. [default: {PARTS}, in a scenario {SHIFT_PARTS}]"
        ),
    ] = None,
    seconds: Annotated[
        float | None, typer.Option(min=0.1, help="Stop the belt after so many seconds.")
    ] = None,
    home: Annotated[
        Path | None,
        typer.Option(help="Where books and model are kept, and found again. [default: a new one]"),
    ] = None,
    panel_port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any.")] = 0,
    billing_port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any.")] = 0,
    accuracy: Annotated[
        float, typer.Option(min=0, max=1, help="How often the scripted provider is right.")
    ] = 0.95,
    ask_share: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Ask about this share of parts, the most doubtful ones."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Other parts, order and answers.")] = 0,
    broker: Annotated[
        str | None, typer.Option(help="HOST:PORT of a Mosquitto to send entries through.")
    ] = None,
    billing_url: Annotated[
        str | None, typer.Option(help="postgresql+psycopg://... in place of SQLite.")
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the panel up after the end.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Watch parts being judged, doubtful ones asked about, and the bill agree with the ledger.

    Needs no set-up: line, camera, provider and billing server come along. The provider
    is scripted (a real HTTP server that knows the answers), and no LLM. Exits with 1 when
    ledger and bill do not agree. With --scenario drift the machine drifts, and the same shift
    is run with nobody, a rule and an agent adjusting it.
    """
    from qcnode.demo import DemoOptions, Show

    if line == "full" and (data is not None or scenario is not None or broker is not None):
        raise SettingsError(
            "--line full renders its parts and starts its broker: leave --data,"
            " --scenario and --broker out"
        )
    configure_logs(level=logging.ERROR)
    if data is not None and not data.is_dir():
        raise DatasetError(f"{data}: no such folder; give one with train/good and test/ in it")
    options = DemoOptions(
        home=home or _new_home(data, scenario),
        data=data,
        parts=parts or (PARTS if scenario is None else SHIFT_PARTS),
        seconds=seconds,
        panel_port=panel_port,
        billing_port=billing_port,
        accuracy=accuracy,
        ask_share=ask_share,
        seed=seed,
        broker=None if broker is None else _host_and_port(broker),
        billing_url=billing_url,
        keep=keep,
    )
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    shown = _Terminal(console) if console.is_terminal else _Log(console)
    try:
        show = Show(say=shown.say, teaching=shown.teaching, running=shown.running)
        summary = _run(options, show, line) if scenario is None else _shifts(options, show)
    finally:
        shown.close()
    if as_json:
        typer.echo(json.dumps(summary))
    elif scenario is not None:
        print_scenario(summary)
    else:
        _print(summary)
    agrees = scenario is not None or (
        summary["ledger"]["verified"]
        and summary["billing"]["matches"]
        and summary.get("line", {}).get("agrees", True)
    )
    if not agrees:
        raise typer.Exit(1)


def _run(options: DemoOptions, show: Show, line: str) -> dict[str, Any]:
    from qcnode.demo import run_demo

    if line == "virtual":
        return run_demo(options, show)
    from qcnode.line_demo import FullLine

    return run_demo(options, show, FullLine(options.home))


def _shifts(options: DemoOptions, show: Show) -> dict[str, Any]:
    from qcnode.scenario import run_scenario

    return run_scenario(options, show)


def _new_home(data: Path | None, scenario: Scenario | None) -> Path:
    name = scenario or ("virtual" if data is None else data.resolve().name)
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    return DEMO_HOME / f"{name}-{stamp}"


def _host_and_port(broker: str) -> tuple[str, int]:
    host, _, port = broker.rpartition(":")
    if not host or not port.isdecimal():
        raise SettingsError(f"--broker {broker}: give it as HOST:PORT, such as 127.0.0.1:1883")
    return host, int(port)


class _Terminal:
    """Progress for a person: bars while the model is taught, then one line about the belt."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars = Progress(
            TextColumn("{task.description:<22}"), BarColumn(), MofNCompleteColumn(), console=console
        )
        self._belt = Progress(
            TextColumn("parts {task.completed}/{task.total}  {task.fields[words]}"), console=console
        )
        self._tasks: dict[str, TaskID] = {}

    def say(self, words: str) -> None:
        self._console.print(words)

    def teaching(self, stage: str, done: int, total: int) -> None:
        self._bars.start()
        if stage not in self._tasks:
            self._tasks[stage] = self._bars.add_task(stage, total=total)
        self._bars.update(self._tasks[stage], completed=done)

    def running(self, node: Node) -> None:
        self._bars.stop()
        self._belt.start()
        if not self._belt.tasks:
            self._belt.add_task("belt", total=node.settings.line.parts, words="")
        self._belt.update(self._belt.task_ids[0], completed=_judged(node), words=_words(node))

    def close(self) -> None:
        self._bars.stop()
        self._belt.stop()


class _Log:
    """Progress for a file: a line every few seconds."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._said = 0.0

    def say(self, words: str) -> None:
        self._console.print(words)

    def teaching(self, stage: str, done: int, total: int) -> None:
        if done == total or self._is_time():
            self._console.print(f"{stage}: {done}/{total}")

    def running(self, node: Node) -> None:
        if self._is_time():
            self._console.print(f"parts {_judged(node)}  {_words(node)}")

    def close(self) -> None:
        """Nothing is left on the screen."""

    def _is_time(self) -> bool:
        now = time.monotonic()
        if now - self._said < PLAIN_EVERY_S:
            return False
        self._said = now
        return True


def _judged(node: Node) -> int:
    return sum(node.station.outcomes().values())


def _words(node: Node) -> str:
    counts, totals = node.journal.counts(), node.ledger.totals()
    return (
        f"OK {counts.ok}  NOT_OK {counts.not_ok}  escalated {counts.escalated}"
        f"  ruled {counts.ruled}  tokens {totals.input_tokens + totals.output_tokens}"
    )


def _print(summary: dict[str, Any]) -> None:
    tokens, billing, ledger = summary["tokens"], summary["billing"], summary["ledger"]
    matches = "equal to the ledger" if billing["matches"] else "NOT EQUAL to the ledger"
    rows = {
        "parts": _parts(summary),
        "verdicts": (
            f"OK {summary['ok']}, NOT_OK {summary['not_ok']},"
            f" NOT_DECIDABLE {summary['not_decidable']}, UNDEFINED {summary['undefined']},"
            f" faults {summary['faults']}{_faults(summary['faults_this_run'])}"
        ),
        "desk": (
            f"{summary['escalated']} escalated, {summary['ruled']} ruled on,"
            f" {summary['waiting']} wait for a person"
        ),
        "wrong": (
            f"at the gate {_wrong(summary['wrong']['gate'])};"
            f" by rulings {_wrong(summary['wrong']['rulings'])}"
        ),
        "latency": _latency(summary),
        "tokens": (
            f"{tokens['input']} in, {tokens['output']} out, in {summary['attempts']} attempts"
            f" ({summary['indeterminate']} indeterminate)"
        ),
        "streams": _streams(summary["agent"]),
        "spared": _spared(summary),
        "errors": _errors(summary["agent"]),
        "worth": _worth(summary["agent"]),
        "naive": _naive(summary["agent"]["naive"]),
        "cost": _money(summary["cost_pico"]) + _held(summary["held_pico"]),
        "ledger": (
            f"{ledger['entries']} entries, chain {'verified' if ledger['verified'] else 'BROKEN'}"
        ),
        "bill": f"{billing['entries']} entries, {_money(billing['cost_pico'])}: {matches}",
        "provider": summary["provider"],
        **_line(summary.get("line")),
    }
    for name, words in rows.items():
        typer.echo(f"{name:<10}{words}")
    home = summary["home"]
    typer.echo(f"\nlook into it: qcnode ledger verify --home {home}")
    typer.echo(f"              qcnode ledger show --home {home}")
    if (Path(home) / "billing.db").exists():
        typer.echo(
            f"              qcnode billing invoice --tenant demo --url sqlite:///{home}/billing.db"
        )


def _line(line: dict[str, Any] | None) -> dict[str, str]:
    """Say what each of those around the node saw."""
    if line is None:
        return {}
    plc, tags = line["plc"], line["sparkplug"]
    if not plc:
        return {"plc": "was ended before its last part"}
    gate = ", ".join(f"{action} {count}" for action, count in plc["gate"].items())
    why = ", ".join(f"{count} {name}" for name, count in plc["defaults"].items()) or "none"
    off = plc["gate_off_pulses"] or {"p50": 0, "max": 0}
    agrees = "" if line["agrees"] else "; THE COUNTS DO NOT AGREE"
    return {
        "triggers": f"{line['triggers']} by the PLC = {line['judged_or_faulted']} verdicts and"
        f" faults{agrees}",
        "plc": f"{plc['results']} results taken, {plc['skipped']} skipped, {plc['repeated']}"
        f" repeated, {plc['late']} too late",
        "gate": f"{gate}; at the default: {why}; {plc['unverified']} not verified; moved"
        f" {off['p50']} pulses past the part's place (max {off['max']})",
        "sparkplug": f"{tags['NBIRTH']} NBIRTH, {tags['DBIRTH']} DBIRTH, {tags['NDATA']} NDATA,"
        f" {tags['DDATA']} DDATA, {tags['unreadable']} unreadable; Counters/Inspected"
        f" {tags['inspected_tag']}",
        "mqtt": f"{tags['mqtt_verdicts']} verdicts heard",
        "camera": f"GigE Vision in software, opened {line['camera']['opened']} time(s)",
    }


def _parts(summary: dict[str, Any]) -> str:
    words = f"{summary['parts']}, of which {summary['defective']} defective"
    earlier = summary["parts"] - summary["parts_this_run"]
    return f"{words}; {earlier} of them in earlier runs in this home" if earlier > 0 else words


def _faults(kinds: dict[str, int]) -> str:
    if not kinds:
        return ""
    named = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    busy = "; too late means diverted: this machine is busy" if "late" in kinds else ""
    return f" ({named}{busy})"


def _wrong(errors: dict[str, int]) -> str:
    rejects, escapes = errors["false_rejects"], errors["escapes"]
    return (
        f"{rejects} false reject{'' if rejects == 1 else 's'},"
        f" {escapes} escape{'' if escapes == 1 else 's'}"
    )


def _latency(summary: dict[str, Any]) -> str:
    if summary["p50_ms"] is None:
        return "no part was judged in this run"
    return f"p50 {summary['p50_ms']} ms, p99 {summary['p99_ms']} ms, trigger to action"


def _spared(summary: dict[str, Any]) -> str:
    everything = summary["tokens_if_all_were_asked"]
    if everything is None:
        return "nothing was asked"
    used = sum(summary["tokens"].values())
    return f"about {everything - used} of the {everything} tokens that asking about all would take"


def _streams(agent: dict[str, Any]) -> str:
    words = ", ".join(f"{count} {name}" for name, count in agent["tokens"].items())
    return f"{words}; {agent['tokens_per_1000_parts'] or 0} for 1,000 parts"


def _errors(agent: dict[str, Any]) -> str:
    if not agent["parts"]:
        return "nothing is known of these parts"
    alone, ruled = agent["wrong_alone"], agent["wrong_with_agent"]
    return (
        f"node alone {alone} of {agent['parts']} wrong ({alone / agent['parts']:.2%}), with the"
        f" agent {ruled} ({ruled / agent['parts']:.2%}); {agent['ruled']} parts ruled on,"
        f" {agent['wrong_if_every_ruling_were_right']} wrong had all of these been right"
    )


def _worth(agent: dict[str, Any]) -> str:
    words = f"{agent['errors_avoided']} errors avoided, {agent['errors_made']} made"
    each = agent["cost_pico_per_error_avoided"]
    return f"{words}; {_money(each)} for each one less" if each else words


def _naive(naive: dict[str, Any] | None) -> str:
    if naive is None:
        return "nothing was asked"
    return (
        f"the same questions with whole pictures: {naive['tokens']} tokens;"
        f" saved {naive['tokens_saved']} ({naive['share_saved']:.1%}),"
        f" {_money(naive['cost_saved_pico'])}; {naive['tokens_for_every_part']} had every part"
        " been asked about so"
    )


def _money(pico: dict[str, int]) -> str:
    return ", ".join(f"{_exact(value)} {name}" for name, value in pico.items()) or "nothing"


def _exact(pico: int) -> str:
    whole, part = divmod(pico, PICO)
    return f"{whole}.{f'{part:012d}'.rstrip('0'):0<2}"


def _held(pico: dict[str, int]) -> str:
    return f"; held for indeterminate attempts: {_money(pico)}" if any(pico.values()) else ""
