"""A node whose model is changed while it runs: everybody goes by the new one's limits."""

from __future__ import annotations

import asyncio

import httpx2
import numpy as np

from qcnode import main
from qcnode.domain import Finding, Inspection
from qcnode.manifest import load_manifest
from qcnode.picture import decode_picture, encode_png
from qcnode.runtime.changes import Ask, ask
from qcnode.settings import (
    CameraSettings,
    ChangeSettings,
    DriftSettings,
    LineSettings,
    ModelSettings,
    NodeSettings,
    PanelSettings,
    Settings,
)
from tests.variants import draw, make_release

SCORE = 0.6
"""Nearer to being rejected by the first model, and to passing by the second."""


async def until(holds, *, wait_s=30.0):
    async with asyncio.timeout(wait_s):
        while not await holds():  # noqa: ASYNC110  # what it waits for is in a thread
            await asyncio.sleep(0.02)


async def test_desk_panel_and_kept_pictures_go_by_the_limits_of_the_model_in_service(tmp_path):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(400):
        (pictures / f"{number:04d}.png").write_bytes(encode_png(draw(SCORE, seed=number)))
    first = make_release(tmp_path / "first", tag="first", number=1)
    second = make_release(tmp_path / "second", tag="second", number=2, reject_from=2.0)
    node = main.build_node(
        Settings(
            node=NodeSettings(home=tmp_path / "home"),
            panel=PanelSettings(port=0),
            line=LineSettings(period_ms=50.0),
            camera=CameraSettings(kind="folder", source=str(pictures)),
            model=ModelSettings(dir=first),
            drift=DriftSettings(enabled=False),
            change=ChangeSettings(
                shadow_parts=3, canary_parts=2, canary_share=0.5, watched_parts=3
            ),
        )
    )
    stop = asyncio.Event()
    running = asyncio.create_task(node.run(stop))
    async with httpx2.AsyncClient(base_url=node.url, trust_env=False) as http:

        async def told():
            return (await http.get("/api/v1/state")).json()

        async def serves(release):
            return (await told())["about"]["model"] == load_manifest(release).version

        async def alone_would(inspection):
            """Say what the node would have done with a part, as the ledger has it."""
            await node.desk.settle(
                inspection, Finding.DEFECTIVE, who="anna", defect_class=None, reason="seen"
            )
            outcome = await node.desk.learn(inspection, Finding.DEFECTIVE, source="anna")
            return outcome.node_alone

        try:
            await node.started.wait()
            before = await newest_waiting(node)
            assert "by hand to 0.7" in (await told())["about"]["guarantee"]
            assert await serves(first)
            assert await alone_would(before.id) == "REJECT"

            ask(tmp_path / "home" / "models", Ask(do="load", who="anna", folder=str(second)))
            await until(lambda: serves(second))
            old = {one.escalation.id for one in node.desk.waiting()}
            after = await newest_waiting(node, but=old)
            assert await alone_would(after.id) == "ACCEPT"

            assert heat_of(node, before) > 200  # 0.6 of 0.7
            assert 60 < heat_of(node, after) < 90  # 0.6 of 2.0
            assert "by hand to 2.0" in (await told())["about"]["guarantee"]
        finally:
            stop.set()
            await running
            await node.close()


async def newest_waiting(node, *, but=frozenset()):
    found = []

    async def looks():
        found[:] = [one.escalation for one in node.desk.waiting() if one.escalation.id not in but]
        return found

    await until(looks)
    return found[-1]


def heat_of(node, escalation):
    (inspection,) = [
        record
        for _, record in node.journal.read(0, 10_000)
        if isinstance(record, Inspection) and record.part_id == escalation.part_id
    ]
    return int(np.max(decode_picture(node.journal.heat(inspection.id), name="heat")))
