"""ESPHome makes C++ of each device, without a network; compiling it needs the chip's tools."""

import subprocess

import pytest

from qcnode.firmware.checks import write_files
from qcnode.firmware.manifest import read_manifest
from qcnode.firmware.render import render


@pytest.mark.parametrize(
    ("device", "holds"),
    [
        ("reject-gate", "qc::pulses(321.5, 4.0)"),
        ("trigger-encoder", "node1-trigger/config"),
        ("stack-light", "qc::StackLight"),
    ],
)
def test_esphome_makes_a_program_of_each_device(repository, tmp_path, device, holds):
    program = repository / "build" / "esphome" / "bin" / "esphome"
    if not program.exists():
        pytest.skip("ESPHome is missing here: make firmware-env")
    folder = repository / "firmware_configs"
    manifest = read_manifest(folder)
    values = {**manifest.defaults(), "gate_mm": 321.5}
    write_files(tmp_path, render(folder, manifest, manifest[f"esphome-{device}"], values))
    home = tmp_path / "esphome"
    example = (folder / "esphome" / "secrets.example.yaml").read_text()
    (home / "secrets.yaml").write_text(example.replace('"..."', '"filled-in"'))

    done = subprocess.run(
        [program, "compile", "--only-generate", f"{device}.yaml"],
        cwd=home,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    (made,) = home.glob(".esphome/build/*/src/main.cpp")
    assert holds in made.read_text()
