"""The whole line side around a node: broker, PLC with the gate, GigE camera, Sparkplug host."""

import asyncio
import contextlib
import shutil

import pytest

from qcnode import line_demo
from qcnode.errors import SettingsError
from qcnode.line_demo import FullLine
from qcnode.lines.world import read_fates
from qcnode.main import build_node
from qcnode.settings import (
    CameraSettings,
    LineSettings,
    ModelSettings,
    NodeSettings,
    PanelSettings,
    Settings,
)
from tests.aravis import my_turn

PARTS = 40
WAIT_S = 120


def settings(home, model):
    return Settings(
        node=NodeSettings(name="demo-node", home=home),
        panel=PanelSettings(port=0),
        line=LineSettings(parts=PARTS),
        camera=CameraSettings(defect_rate=0.15),
        model=ModelSettings(dir=model),
    )


@pytest.mark.mosquitto
@pytest.mark.aravis
async def test_everybody_around_the_node_saw_the_same_parts(tmp_path, doubtful_model):
    home = tmp_path / "home"
    home.mkdir()
    full = FullLine(home)
    with my_turn(), contextlib.ExitStack() as undo:
        node = build_node(full.start(settings(home, doubtful_model), undo))
        stop = asyncio.Event()
        running = asyncio.create_task(node.run(stop))
        try:
            async with asyncio.timeout(WAIT_S):
                await full.see_through(node)
                await asyncio.to_thread(node.station.join, WAIT_S)
                said = await full.report(node)
        finally:
            stop.set()
            await running
            await node.close()

    assert said["agrees"], said
    assert said["triggers"] == said["judged_or_faulted"] == PARTS
    assert (said["plc"]["skipped"], said["plc"]["repeated"]) == (0, 0)
    assert sum(said["plc"]["gate"].values()) == sum(said["gate"].values()) == PARTS
    assert said["sparkplug"]["NBIRTH"] == said["sparkplug"]["DBIRTH"] == 1
    assert said["sparkplug"]["DDATA"] >= PARTS
    assert said["sparkplug"]["mqtt_verdicts"] == PARTS
    fates = read_fates(home / "world.log")
    assert len(fates) == PARTS
    # Pictures came over the camera protocol and were the right ones: the gate knew what was good.
    passed = [fate for fate in fates if fate.action is not None and fate.action.value == "ACCEPT"]
    assert sum(not fate.is_defective for fate in passed) >= len(passed) - 2


def test_a_missing_program_is_one_line_that_names_its_package(
    tmp_path, monkeypatch, doubtful_model
):
    monkeypatch.setattr(shutil, "which", lambda _name, **_options: None)
    monkeypatch.setattr(line_demo, "check_library", lambda: None)

    with (
        pytest.raises(SettingsError, match="apt-get install mosquitto"),
        contextlib.ExitStack() as undo,
    ):
        FullLine(tmp_path).start(settings(tmp_path, doubtful_model), undo)
