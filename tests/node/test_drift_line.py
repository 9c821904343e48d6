"""A whole node on the virtual line, whose lamp grows old."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import numpy as np

from qcnode import main
from qcnode.books.journal import Journal
from qcnode.books.pictures import PictureStore
from qcnode.cameras.virtual import RenderedCamera
from qcnode.domain import CertificateChange, Inspection, Verdict
from qcnode.health import HealthBoard
from qcnode.settings import (
    CameraSettings,
    LineSettings,
    ModelSettings,
    NodeSettings,
    PanelSettings,
    Settings,
)
from qcnode.wiring import eyes, machine

QUIET, PARTS = 30, 110


class OldLamp(RenderedCamera):
    """Loses a hundredth of the light with every part, from one part on."""

    def grab(self, trigger):
        frame = super().grab(trigger)
        left = 0.99 ** max(0, trigger.seq - QUIET)
        return replace(frame, pixels=(frame.pixels * left).astype(np.uint8))


def settings_for(home, model, *, parts):
    return Settings(
        node=NodeSettings(home=home),
        panel=PanelSettings(port=0),
        line=LineSettings(parts=parts, period_ms=40.0, gate_mm=500.0),
        camera=CameraSettings(kind="rendered", defect_rate=0.1),
        model=ModelSettings(dir=model),
    )


def old_lamp(monkeypatch):
    rendered = eyes.CAMERAS["rendered"]

    def build(settings, new_id, side):
        _, parts = rendered(settings, new_id, side)
        return OldLamp(parts, name="old lamp", now=machine.now, new_id=new_id), parts

    monkeypatch.setitem(eyes.CAMERAS, "rendered", build)


async def run_until_belt_stands(settings):
    node = main.build_node(settings)
    stop = asyncio.Event()
    running = asyncio.create_task(node.run(stop))
    try:
        async with asyncio.timeout(60):
            await node.started.wait()
            await asyncio.to_thread(node.station.join, 60)
    finally:
        stop.set()
        await running
        told = {one.component: one for one in node.health.all()}
        await node.close()
    return told


def records_of(home):
    journal = Journal(
        home / "journal.db",
        pictures=PictureStore(home / "pictures", pictures_max=1, heat_full=None),
        health=HealthBoard(machine.now),
    )
    try:
        return [record for _, record in journal.read(0, 10_000)]
    finally:
        journal.close()


async def test_a_lamp_that_decays_ends_in_a_revoked_certificate_that_says_so(
    tmp_path, doubtful_model, monkeypatch
):
    old_lamp(monkeypatch)
    told = await run_until_belt_stands(settings_for(tmp_path, doubtful_model, parts=PARTS))

    assert not told["certificate"].ok
    assert "darker than taught: brightness" in told["certificate"].words
    assert told["line"].ok  # Parts are judged on; more of them are asked about.
    records = records_of(tmp_path)
    (change,) = [one for one in records if isinstance(one, CertificateChange)]
    assert change.picture_at_fault
    before, after = records[: records.index(change)], records[records.index(change) :]
    assert sum(isinstance(one, Inspection) for one in before) > QUIET
    verdicts = {one.verdict for one in after if isinstance(one, Inspection)}
    assert verdicts == {Verdict.NOT_DECIDABLE}

    # The lamp is as old after a restart, and nobody has said otherwise.
    told = await run_until_belt_stands(settings_for(tmp_path, doubtful_model, parts=1))
    assert not told["certificate"].ok


async def test_a_lamp_that_holds_leaves_the_certificate_in_force(tmp_path, doubtful_model):
    told = await run_until_belt_stands(settings_for(tmp_path, doubtful_model, parts=PARTS))
    assert told["certificate"].ok
    assert "brightness, focus" in told["certificate"].words
