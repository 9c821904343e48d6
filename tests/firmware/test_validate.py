"""`qcnode firmware validate`: the shipped files pass, and a broken twin of each is refused."""

import json
import shutil

import pytest
import yaml

from qcnode.errors import SettingsError
from qcnode.firmware import made
from qcnode.firmware.checks import validate
from qcnode.firmware.manifest import read_manifest
from tests.node.conftest import qcnode

__all__ = ["qcnode"]  # a fixture

TWINS = [
    ("plc/modbus.csv", "40103", "40104", "registers.yaml says"),
    ("plc/GVL_QC.st", "END_STRUCT", "END_STRUCTURE", "registers.yaml says"),
    ("plc/s7_db.scl", "Word", "Byte", "registers.yaml says"),
    ("plc/logix_tags.csv", "DINT", "SINT", "registers.yaml says"),
    ("plc/st/FB_QcHandshake.st", "END_IF;\n\nEND_FUNCTION", "\nEND_FUNCTION", "END_IF"),
    ("plc/st/FB_QcRejectTracker.st", "END_FOR;", "", "END_FOR"),
    ("plc/st/FB_QcWatchdog.st", "Alive := Ever AND", "Alive := Ever AND_THEN", "AND_THEN"),
    ("esphome/include/qc_gate.h", "return count_;", "return count;", "does not compile"),
    ("esphome/include/qc_gate.h", "0x80000000u", "0x7fffffffu", "it has changed"),
    ("esphome/include/qc_reject_gate.h", "return open_;", "return open;", "does not compile"),
    ("esphome/include/qc_lamps.h", "bool red;", "bool red", "does not compile"),
    ("esphome/packages/base.yaml", "logger:", "logger", "could not find"),
    ("esphome/packages/base.yaml", "!secret ota_password", "hunter2hunter2", "secret"),
    ("esphome/packages/ethernet.yaml", "GPIO23", "GPIO23\n  mdc_pin: GPIO5", "twice"),
    ("esphome/packages/mqtt.yaml", "discovery: false", "  discovery: false", "mapping"),
    ("esphome/secrets.example.yaml", 'mqtt_key: "..."', 'mqtt_key: "abc"', "only an example"),
    ("esphome/reject-gate.yaml", "ALWAYS_OFF", "RESTORE_DEFAULT_ON", "without power, divert"),
    ("esphome/reject-gate.yaml", "@{coil_pin}", "@{eye_pin}", "is used 2 times"),
    ("esphome/reject-gate.yaml", "@{coil_pin}", "@{coil}", "no parameter"),
    ("esphome/reject-gate.yaml", "sensor:\n", "wifi:\n  ssid: plant\nsensor:\n", "wired"),
    ("esphome/trigger-encoder.yaml", "@{camera_pin}", "@{eye_pin}", "is used 2 times"),
    ("esphome/stack-light.yaml", "- include/qc_lamps", "- include/lamps", "not among"),
    ("cameras/gige-trigger.yaml", "ExposureAuto", "TriggerSelector", "is set 2 times"),
    ("cameras/gige-trigger.yaml", "{set: TriggerSource", "{set: Gamma", "TriggerSource: must"),
    ("cameras/aravis-fake.yaml", "{set: PixelFormat", "{put: PixelFormat", "unknown field"),
    ("lights/gardasoft-rt.txt", "ST1", "AW", "no command this file may give"),
    (
        "brokers/mosquitto/mosquitto.conf",
        "anonymous false",
        "anonymous true",
        "mosquitto.conf says",
    ),
    ("brokers/mosquitto/acl", "pattern write", "pattern readwrite", "acl says"),
    ("brokers/mosquitto/tls.conf", "certificate true", "certificate false", "tls.conf says"),
    ("host/sysctl.conf", "net.core.rmem_max =", "net.core.rmem_maximum =", "this kernel knows no"),
    ("host/netplan.yaml", "mtu:", "mtx:", "unknown field"),
    ("host/chrony.conf", "makestep 1.0 3", "makestep 1.0", "no directive we use"),
    ("host/udev.rules", 'ACTION=="add"', 'ACTION="add"', "no key we use"),
    ("scada/ignition-tags.json", "Counters/Pass", "Counters/Good", "tags.py says"),
    ("scada/node-red-flow.json", "ev/verdict", "ev/verdicts", "asyncapi.py says"),
]


def problems(folder, only=()):
    return {one.path: one.problem for one in validate(folder, only) if one.problem is not None}


def id_of(folder, path):
    return next(one.id for one in read_manifest(folder).artefacts if one.path == path)


def test_what_ships_is_right(qcnode, repository):
    done = qcnode("firmware", "validate", repository / "firmware_configs", "--json")

    said = json.loads(done.out)
    assert (done.code, said["ok"]) == (0, True), said
    assert len(said["files"]) == len({path for path, *_ in TWINS})
    unseen = sorted({one["unchecked"] for one in said["files"]} - {None})
    if unseen:
        pytest.skip(f"right by our own rules, but {'; '.join(unseen)}")


@pytest.mark.parametrize(("path", "before", "after", "why"), TWINS)
def test_a_broken_twin_of_each_file_is_refused(configs, path, before, after, why):
    if path.endswith(".h") and shutil.which("g++") is None:
        pytest.skip("g++ is missing here: apt-get install g++")
    text = (configs / path).read_text()
    assert before in text
    (configs / path).write_text(text.replace(before, after, 1))

    wrong = problems(configs, [id_of(configs, path)])

    assert list(wrong) == [path]
    assert why in wrong[path]


def test_each_file_has_a_broken_twin(repository):
    manifest = read_manifest(repository / "firmware_configs")

    assert {path for path, *_ in TWINS} == {one.path for one in manifest.artefacts}


def test_a_broken_part_breaks_the_device_that_loads_it(configs):
    part = configs / "esphome" / "packages" / "mqtt.yaml"
    part.write_text(part.read_text().replace("reboot_timeout: 0s", "reboot_timeout: 15min"))

    (why,) = problems(configs, ["esphome-stack-light"]).values()

    assert "restarts the device" in why


def test_the_command_names_what_is_wrong_and_leaves_with_1(qcnode, configs):
    (configs / "lights" / "gardasoft-rt.txt").write_text("AW\n")

    done = qcnode("firmware", "validate", configs, "--only", "light-gardasoft")

    assert (done.code, done.out.split()[0]) == (1, "WRONG")
    assert "'AW' is no command" in done.out


def test_what_no_program_looked_at_is_said(qcnode, configs, monkeypatch, tmp_path):
    (configs.parent / "build").unlink(missing_ok=True)
    monkeypatch.setenv("PATH", str(tmp_path))

    done = qcnode("firmware", "validate", configs, "--only", "esphome-reject-gate")

    assert done.code == 0
    assert done.out.startswith("ok?")
    assert "make firmware-env" in done.out


def test_nothing_that_is_made_is_stale(repository):
    folder = repository / "firmware_configs"

    for path, text in made.texts(repository).items():
        assert (folder / path).read_text() == text, path
    manifest = (folder / "manifest.yaml").read_text()
    assert made.with_digests(folder, manifest) == manifest


def test_a_file_that_nobody_announced_is_refused(configs):
    (configs / "plc" / "extra.st").write_text("PROGRAM x")
    (configs / "esphome" / "secrets.yaml").write_text("ota_password: x")
    (configs / "plc" / "modbus.csv").unlink()
    # Only what nobody announced is looked for here.
    manifest = yaml.safe_load((configs / "manifest.yaml").read_text())
    kept = [one for one in manifest["artefacts"] if one["id"] in ("plc-csv", "light-gardasoft")]
    for one in manifest["artefacts"]:
        if one not in kept:
            (configs / one["path"]).unlink()
    manifest["artefacts"] = kept
    manifest["parameters"] = {
        name: one for name, one in manifest["parameters"].items() if name.startswith("flash")
    }
    (configs / "manifest.yaml").write_text(yaml.safe_dump(manifest))

    assert set(problems(configs)) == {
        "plc/extra.st",
        "esphome/secrets.yaml",
        "plc/modbus.csv",
    }


def test_a_path_that_leads_out_of_the_folder_is_refused(configs):
    manifest = configs / "manifest.yaml"
    manifest.write_text(manifest.read_text().replace("plc/modbus.csv", "../elsewhere.csv"))

    assert "leads out" in problems(configs, ["plc-csv"])["../elsewhere.csv"]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("version: 2", "version: 1"),
        ("kind: c++", "kind: magic"),
        ("id: plc-csv", "id: plc-st"),
        ("artefacts:", "artefacts: ["),
        ('sha256: "', 'sha256: "x'),
        ("loaded_by:", "loaded:"),
        ("needs: [esphome-base,", "needs: [esphome-basis,"),
        ("default: qc/v1", "default: 'qc v1'"),
        ("default: 8883", "default: 88830"),
        ("open_mm < apart_mm", "open_mm < apart"),
        ("open_mm < apart_mm", "__import__('os')"),
    ],
)
def test_a_manifest_that_is_none_is_named(configs, before, after):
    manifest = configs / "manifest.yaml"
    assert before in manifest.read_text()
    manifest.write_text(manifest.read_text().replace(before, after, 1))

    with pytest.raises(SettingsError, match=r"manifest\.yaml"):
        validate(configs, ["light-gardasoft"])
