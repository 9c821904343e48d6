"""Words on a part, and a provider that does what they say: no part goes, no word stays.

The provider answers what is written on each part, to the letter. All parts are put to it,
under a policy that would let it decide alone, so only the rules in question stand between.
"""

import asyncio
import contextlib
import json
import threading
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime

import cv2
import httpx2
import paho.mqtt.client as paho
import pytest
from pydantic import SecretStr

from qcbridge.prompts import parse_ruling
from qcmodels.release import write_release
from qcnode.cameras.studio import DefectKind
from qcnode.demo_policy import write_policy
from qcnode.domain import Disposition, Escalation, Finding
from qcnode.errors import ProviderRefusedError
from qcnode.lines.world import read_fates
from qcnode.main import build_node
from qcnode.manifest import read_release
from qcnode.panel.access import Role
from qcnode.settings import (
    AgentSettings,
    CameraSettings,
    DriftSettings,
    LineSettings,
    ModelSettings,
    MqttSettings,
    NodeSettings,
    PanelSettings,
    ProviderSettings,
    Secrets,
    Settings,
)
from tests.faults.attacks import SECRET, make_attacks
from tests.scripted import KEY, scripted_provider

ATTACKS, FEW = 200, 40
NOW = datetime(2026, 11, 22, tzinfo=UTC)
RUN_S = 120.0
PAGES = ("/station", "/api/v1/escalations", "/api/v1/state", "/alarms", "/audit", "/metrics")
CLASSES = tuple(str(kind) for kind in DefectKind)


@pytest.fixture(scope="module")
def every_attack():
    return make_attacks(ATTACKS, seed=7)


@pytest.fixture(scope="module")
def doubtful_of_all(doubtful_model, tmp_path_factory):
    """Return a maker of releases that decide nothing; a `blind` one takes no mark for foreign."""

    def make(*, blind):
        release = read_release(doubtful_model)
        manifest = release.manifest
        open_ = {"value": None, "alpha": None, "guarantee": None}
        marks = manifest.marks
        if blind:
            marks = replace(marks, usual=tuple(replace(row, limit=255) for row in marks.usual))
        out = tmp_path_factory.mktemp("open") / "model"
        changed = replace(
            manifest,
            accept_below=replace(manifest.accept_below, **open_),
            reject_from=replace(manifest.reject_from, **open_),
            marks=marks,
        )
        write_release(out, changed, release.contents)
        return out

    return make


@pytest.mark.parametrize(
    "scale",
    [
        (FEW, None),
        pytest.param((ATTACKS, "mosquitto"), marks=[pytest.mark.long, pytest.mark.mosquitto]),
    ],
)
def test_no_attack_lets_a_part_go_or_leaves_a_word_or_takes_another_call(
    tmp_path, request, every_attack, doubtful_of_all, scale
):
    count, broker = scale
    attacks = every_attack[:count]
    port = None if broker is None else request.getfixturevalue(broker).port

    seen = run(tmp_path, attacks, doubtful_of_all(blind=False), port)

    assert sum(attack.defect is not None for attack in attacks) > count // 2
    assert seen.asked == {attack.part_id: 1 for attack in attacks}
    assert seen.dispositions == {}
    assert seen.leaks == []
    assert b"marks on this part" in seen.pages["page /api/v1/escalations"]


def test_without_the_look_for_marks_every_answer_that_keeps_to_the_schema_counts(
    tmp_path, every_attack, doubtful_of_all
):
    some = every_attack[:FEW]

    seen = run(tmp_path, some, doubtful_of_all(blind=True))

    # So it is the look for marks that held the parts above, and leaks would have been found.
    assert seen.dispositions == {Disposition.RELEASE: sum(one.in_schema for one in some)}
    assert "journal.db" in {name.split("-")[0] for name in seen.leaks}
    assert seen.asked == {attack.part_id: 1 for attack in some}


def test_of_all_answers_only_those_within_the_schema_are_rulings(every_attack):
    taken = [attack for attack in every_attack if is_ruling(attack)]
    naive = [attack for attack in every_attack if '"finding": "good"' in attack.says]

    assert [one.part_id for one in taken] == [one.part_id for one in every_attack if one.in_schema]
    assert len(naive) > len(taken)  # as a parser that looks for the finding would have it


def is_ruling(attack):
    escalation = Escalation(
        id=f"e-{attack.part_id}",
        inspection_id=attack.part_id,
        part_id=attack.part_id,
        reason="between the limits",
        score=0.5,
        opened_at=NOW,
        expires_at=NOW,
    )
    try:
        opinion = parse_ruling(attack.says, escalation, defect_classes=CLASSES, who="agent:x")
    except ProviderRefusedError:
        return False
    return opinion.finding is Finding.GOOD


class Seen:
    """What is left when the parts are through."""

    def __init__(self, home, provider, pages):
        self.asked = Counter(row["part_id"] for row in provider.requests())
        fates = read_fates(home / "world.log")
        self.dispositions = Counter(fate.disposition for fate in fates if fate.disposition)
        kept = {
            path.name: path.read_bytes()
            for path in home.rglob("*")
            if path.is_file() and path.parent.name != "pictures"
        }
        self.pages = pages
        self.leaks = [
            name for name, content in (kept | pages).items() if SECRET.encode() in content
        ]


def run(folder, attacks, model, broker_port=None):
    pictures = folder / "parts"
    pictures.mkdir()
    written = folder / "written.jsonl"
    with written.open("w") as file:
        for number, attack in enumerate(attacks, start=1):
            cv2.imwrite(
                str(pictures / f"{number:04d}.png"), cv2.cvtColor(attack.pixels, cv2.COLOR_RGB2BGR)
            )
            file.write(json.dumps({"part_id": attack.part_id, "says": attack.says}) + "\n")
    with scripted_provider(folder, obey=written) as provider:
        home = folder / "home"
        with listening(broker_port) as heard:
            pages = asyncio.run(
                judge_all(
                    home,
                    len(attacks),
                    model,
                    pictures,
                    provider=provider,
                    broker_port=broker_port,
                )
            )
        assert bool(heard) == (broker_port is not None)
        return Seen(home, provider, pages | {"said over MQTT": b"\n".join(heard)})


@contextlib.contextmanager
def listening(port):
    """Hear everything that is said at the broker."""
    heard = []
    if port is None:
        yield heard
        return
    client = paho.Client(paho.CallbackAPIVersion.VERSION2)
    subscribed = threading.Event()
    client.on_subscribe = lambda *_: subscribed.set()
    client.on_message = lambda _client, _data, said: heard.append(
        said.topic.encode() + b" " + said.payload
    )
    client.connect("127.0.0.1", port)
    client.loop_start()
    client.subscribe("#", qos=1)
    assert subscribed.wait(10)
    try:
        yield heard
    finally:
        client.loop_stop()
        client.disconnect()


async def judge_all(home, count, model, pictures, *, provider, broker_port):
    one = ProviderSettings(base_url=f"{provider.base_url}/v1", timeout_s=5.0)
    node = build_node(
        Settings(
            node=NodeSettings(home=home),
            panel=PanelSettings(port=0),
            # The gate is far away: a busy machine must spare no part the question.
            line=LineSettings(parts=count, period_ms=100.0, gate_mm=5_000.0),
            camera=CameraSettings(kind="folder", source=str(pictures)),
            drift=DriftSettings(enabled=False),
            model=ModelSettings(dir=model),
            agent=AgentSettings(
                enabled=True,
                level="L3",
                defect_classes=CLASSES,
                waiting_max=count,
                # One by one, so that refused answers alternate and the circuit stays closed.
                workers=1,
            ),
            provider=(one,),
            mqtt=MqttSettings(port=broker_port or 1883, events=broker_port is not None),
            authority=write_policy(
                home.parent / "policy",
                provider=one.name,
                model=one.model,
                right=1.0,
                now=datetime.now(UTC),
            ),
            secrets=Secrets(provider_api_key=SecretStr(KEY)),
        )
    )
    stop = asyncio.Event()
    async with asyncio.timeout(RUN_S):
        running = asyncio.create_task(node.run(stop))
        try:
            await node.started.wait()
            await asyncio.to_thread(node.station.join, RUN_S)
            await node.desk.settled()
            return await pages_of(node)
        finally:
            stop.set()
            await running
            await node.close()


async def pages_of(node):
    """Fetch what a person may see, as an administrator, and each waiting part's page."""
    key = node.accounts.door("somebody who looks", Role.ADMIN)
    pages = {}
    async with httpx2.AsyncClient(base_url=node.url, follow_redirects=True) as client:
        await client.get(f"/enter?key={key}")
        for path in PAGES:
            answer = await client.get(path)
            assert answer.is_success, (path, answer.status_code)
            pages[f"page {path}"] = answer.content
    return pages
