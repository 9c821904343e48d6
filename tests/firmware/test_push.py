"""`qcnode firmware render|diff|push|status|rollback`: what is put there, seen there, taken back."""

import json
import sqlite3
import stat

import paho.mqtt.publish
import pytest
import yaml

from qcnode.errors import SettingsError
from qcnode.firmware import deploy
from qcnode.firmware.manifest import read_manifest, read_values, wrong
from qcnode.firmware.render import render, secret_in
from tests.node.conftest import qcnode

__all__ = ["qcnode"]  # a fixture

SYSCTL = "etc/sysctl.d/90-qcnode-camera.conf"
NETPLAN = "etc/netplan/60-qcnode-camera.yaml"
GATE = "var/lib/qcnode/devices/reject-gate/esphome"


@pytest.fixture
def machine(tmp_path):
    root = tmp_path / "machine"
    root.mkdir()
    return root


@pytest.fixture
def firmware(qcnode, configs, machine, tmp_path):
    """Run a firmware command on this checkout, machine and history."""

    def run(command, *words):
        options = {
            "push": ["--configs", configs, "--root", machine, "--home", tmp_path / "home"],
            "diff": ["--configs", configs, "--root", machine],
            "status": ["--configs", configs, "--home", tmp_path / "home"],
            "rollback": ["--configs", configs, "--root", machine, "--home", tmp_path / "home"],
            "render": ["--configs", configs],
        }[command]
        return qcnode("firmware", command, *words, *options)

    return run


def change(configs, artefact_id, path, text, *, version):
    """Change a file of the checkout, and its version, as somebody who works on it."""
    (configs / path).write_text(text)
    manifest = yaml.safe_load((configs / "manifest.yaml").read_text())
    for one in manifest["artefacts"]:
        if one["id"] == artefact_id:
            one["version"] = version
    (configs / "manifest.yaml").write_text(yaml.safe_dump(manifest))


def test_a_file_is_put_there_seen_and_taken_back(firmware, machine):
    assert firmware("diff", "host-sysctl").code == 1
    pushed = firmware("push", "host-sysctl", "--who", "anna", "--json")
    assert (pushed.code, json.loads(pushed.out)) == (0, {"host-sysctl": 1})
    assert "net.core.rmem_max = 33554432" in (machine / SYSCTL).read_text()
    assert firmware("diff", "host-sysctl").code == 0
    assert firmware("status").out.split()[:2] == ["ok", "host-sysctl"]

    assert firmware("rollback", "host-sysctl").code == 0

    assert not (machine / SYSCTL).exists()
    assert firmware("status").code == 0


def test_pushing_twice_changes_nothing(firmware):
    firmware("push", "host-sysctl")

    assert json.loads(firmware("push", "host-sysctl", "--json").out) == {"host-sysctl": None}


def test_values_are_put_in_and_their_rights_kept(firmware, machine, tmp_path):
    values = tmp_path / "site.toml"
    values.write_text('camera_nic = "enp3s0"\ncamera_mtu = 1500\n')

    assert firmware("push", "host-netplan", "--values", values).code == 0

    said = yaml.safe_load((machine / NETPLAN).read_text())
    assert said["network"]["ethernets"]["enp3s0"]["mtu"] == 1500
    assert stat.S_IMODE((machine / NETPLAN).stat().st_mode) == 0o600


def test_what_somebody_else_changed_is_an_alarm_and_is_not_overwritten(firmware, machine):
    firmware("push", "host-sysctl")
    (machine / SYSCTL).write_text("net.core.rmem_max = 1\n")

    seen = firmware("status")
    refused = firmware("push", "host-sysctl")
    unwound = firmware("rollback", "host-sysctl")

    assert (seen.code, seen.out.split()[0]) == (1, "DRIFT")
    assert seen.err.startswith("ALARM firmware DRIFT: host-sysctl")
    assert (refused.code, unwound.code) == (2, 2)
    assert "somebody changed" in refused.err
    assert (machine / SYSCTL).read_text() == "net.core.rmem_max = 1\n"


def test_what_was_there_before_is_taken_over_only_on_request_and_comes_back(firmware, machine):
    (machine / SYSCTL).parent.mkdir(parents=True)
    (machine / SYSCTL).write_text("# the plant's own\n")

    assert firmware("push", "host-sysctl").code == 2
    assert firmware("push", "host-sysctl", "--take-over").code == 0
    assert firmware("rollback", "host-sysctl").code == 0

    assert (machine / SYSCTL).read_text() == "# the plant's own\n"


def test_a_file_that_went_is_missing(firmware, machine):
    firmware("push", "host-sysctl")
    (machine / SYSCTL).unlink()

    seen = firmware("status", "--json")

    assert seen.code == 1
    assert json.loads(seen.out)["artefacts"][0]["health"] == "MISSING"


def test_versions_only_rise_and_each_has_one_content(firmware, configs, machine):
    path = "host/sysctl.conf"
    first = (configs / path).read_text()
    firmware("push", "host-sysctl")
    change(configs, "host-sysctl", path, first + "net.core.somaxconn = 4096\n", version=1)
    two_contents = firmware("push", "host-sysctl")
    change(configs, "host-sysctl", path, first + "net.core.somaxconn = 4096\n", version=2)
    behind = firmware("status")
    second = firmware("push", "host-sysctl")
    change(configs, "host-sysctl", path, first, version=1)
    older = firmware("push", "host-sysctl")

    assert (two_contents.code, second.code, older.code) == (2, 0, 2)
    assert "two versions of one number" in two_contents.err
    assert (behind.code, behind.out.split()[0]) == (0, "behind")
    assert "use `rollback`" in older.err
    assert firmware("rollback", "host-sysctl").code == 0
    assert (machine / SYSCTL).read_text() == first.replace("@{camera_nic}", "eno2")


def test_rolling_back_twice_goes_back_twice_and_then_no_further(firmware, machine, tmp_path):
    values = tmp_path / "site.toml"
    for nic in ("a", "b", "c"):
        values.write_text(f'camera_nic = "{nic}"\n')
        assert firmware("push", "host-sysctl", "--values", values).code == 0

    for nic in ("b", "a"):
        assert firmware("rollback", "host-sysctl").code == 0
        assert f"conf.{nic}.rp_filter" in (machine / SYSCTL).read_text()
    assert firmware("rollback", "host-sysctl").code == 0
    assert not (machine / SYSCTL).exists()
    assert "nothing below" in firmware("rollback", "host-sysctl").err


def test_a_push_that_was_cut_short_is_seen_and_can_be_done_again(firmware, machine, monkeypatch):
    def power_cut(*_args, **_options):
        raise SettingsError("the power was cut")

    with monkeypatch.context() as cut:
        cut.setattr(deploy, "_write", power_cut)
        assert firmware("push", "host-sysctl").code == 2

    seen = firmware("status")
    assert (seen.code, seen.out.split()[0]) == (1, "HALF")
    assert firmware("push", "host-sysctl").code == 0
    assert firmware("status").code == 0
    assert (machine / SYSCTL).exists()


def test_every_push_says_who_and_when(firmware, tmp_path):
    firmware("push", "host-sysctl", "--who", "anna")
    firmware("rollback", "host-sysctl", "--who", "bert")

    with sqlite3.connect(tmp_path / "home" / "firmware.db") as db:
        rows = db.execute("SELECT who, undoes, done FROM push ORDER BY revision").fetchall()
        times = [row[0] for row in db.execute("SELECT at FROM push")]
    assert rows == [("anna", None, 1), ("bert", 1, 1)]
    assert all(at.endswith("+00:00") for at in times)


def test_two_commands_at_once_do_not_meet(firmware, tmp_path, monkeypatch):
    monkeypatch.setattr("qcnode.firmware.store.BUSY_S", 0.1)
    (tmp_path / "home").mkdir()
    with sqlite3.connect(tmp_path / "home" / "firmware.db", isolation_level=None) as db:
        db.execute("BEGIN EXCLUSIVE")

        refused = firmware("push", "host-sysctl")

    assert refused.code == 2
    assert "is another firmware command running" in refused.err


def test_a_link_that_leads_out_of_the_machine_is_not_followed(firmware, machine, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (machine / "etc").symlink_to(outside)

    refused = firmware("push", "host-sysctl")

    assert refused.code == 2
    assert "leads out of" in refused.err
    assert list(outside.iterdir()) == []


def test_a_history_that_is_none_is_named(firmware, tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "firmware.db").write_bytes(b"no database at all" * 100)

    assert "is no history of ours" in firmware("status").err


# -- devices --------------------------------------------------------------------------------


def test_a_device_is_put_together_with_all_it_loads(firmware, machine):
    assert firmware("push", "esphome-reject-gate").code == 0

    folder = machine / GATE
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert files == {
        "reject-gate.yaml",
        "packages/base.yaml",
        "packages/ethernet.yaml",
        "packages/mqtt.yaml",
        "include/qc_gate.h",
        "include/qc_reject_gate.h",
    }


def test_the_secrets_that_a_person_put_beside_a_device_stay(firmware, machine):
    firmware("push", "esphome-reject-gate")
    (machine / GATE / "secrets.yaml").write_text("ota_password: x\n")

    assert firmware("status").code == 0
    assert firmware("rollback", "esphome-reject-gate").code == 0

    assert (machine / GATE / "secrets.yaml").exists()


@pytest.mark.mosquitto
def test_what_a_device_runs_is_compared_with_what_was_pushed(
    firmware, machine, mosquitto, tmp_path
):
    values = tmp_path / "site.toml"
    digests = []
    for length in (250.0, 300.0):
        values.write_text(f"gate_mm = {length}\n")
        firmware("push", "esphome-reject-gate", "--values", values)
        mqtt = (machine / GATE / "packages" / "mqtt.yaml").read_text()
        digests.append(mqtt.partition('"sha256":"')[2][:64])
    topic = "qc/v1/site/area/line1/node1/dev/node1-gate/config"

    def status_when_it_says(payload):
        paho.mqtt.publish.single(topic, payload, qos=1, retain=True, port=mosquitto.port)
        done = firmware("status", "--mqtt", f"127.0.0.1:{mosquitto.port}")
        return done.code, done.out.split()[0]

    def report(digest):
        return json.dumps({"id": "esphome-reject-gate", "version": 1, "sha256": digest})

    assert status_when_it_says(report(digests[1])) == (0, "ok")
    assert status_when_it_says(report(digests[0])) == (0, "waiting")
    assert status_when_it_says(report("0" * 64)) == (1, "DRIFT")
    assert status_when_it_says(b"\xff{") == (1, "DRIFT")
    assert status_when_it_says(b"") == (0, "silent")


def test_a_broker_that_is_not_there_is_named(firmware, free_port):
    firmware("push", "esphome-reject-gate")

    refused = firmware("status", "--mqtt", f"127.0.0.1:{free_port()}")

    assert refused.code == 2
    assert "127.0.0.1" in refused.err


# -- values and secrets ---------------------------------------------------------------------


def test_files_are_rendered_beside_the_checkout_and_hold_no_secret(firmware, configs, tmp_path):
    out = tmp_path / "site"

    assert firmware("render", "--out", out).code == 0

    assert (out / ".gitignore").read_text() == "secrets.yaml\n"
    texts = [path.read_text() for path in out.rglob("*") if path.is_file()]
    assert len(texts) > 25
    assert all("@{" not in text and secret_in(text) is None for text in texts)
    assert "holds templates only" in firmware("render", "--out", configs / "site").err


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ("mqtt_password = 'x'", "mqtt_password is no parameter"),
        ("gate_nm = 250.0", "did you mean gate_mm?"),
        ("gate_mm = '250'", "must be a number"),
        ("gate_mm = true", "must be a number"),
        ("gate_mm = 1e400", "must be from"),
        ("gate_mm = nan", "must be from"),
        ("gate_mm = 60.0", "break the rule"),
        ("broker_port = 0", "must be from 1 to 65535"),
        ("coil_pin = 'GPIO99'", "is no pin"),
        ("camera_nic = 'eno2\\nmtu: 1'", "is no TOML"),
        ('camera_nic = "eno2\\nmtu: 1"', "is no name"),
        ("broker_dir = '/etc/../root'", "is no path"),
        ("machine_net = '10.1.2.3/24'", "is no network"),
        ("esp_board = 'esp8266'", "is one of"),
        ("site = ", "is no TOML"),
    ],
)
def test_a_value_that_is_none_is_named(firmware, tmp_path, said, why):
    values = tmp_path / "site.toml"
    values.write_text(said.replace("\\n", "\n") if why == "is no TOML" else said)

    refused = firmware("render", "--out", tmp_path / "out", "--values", values)

    assert refused.code == 2
    assert why in refused.err, refused.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "text",
    [
        "-----BEGIN EC PRIVATE KEY-----\nMHcCAQ",
        "password: hunter2",
        '"api_key": "abcdef"',
        "mqtt_password = geheim",
        "token: 'x1'",
        "key sk-abcdefghijklmnopqrstuvwx",
    ],
)
def test_what_looks_like_a_secret_is_seen(text):
    assert secret_in(text) is not None


@pytest.mark.parametrize(
    "text",
    ["password: !secret ota_password", "password_file /etc/x", "token: null", 'secret: ""'],
)
def test_a_place_for_a_secret_is_none(text):
    assert secret_in(text) is None


def test_every_default_keeps_its_own_bounds(configs):
    manifest = read_manifest(configs)

    assert read_values(None, manifest) == manifest.defaults()
    assert [name for name, one in manifest.parameters.items() if wrong(one, one.default)] == []


def test_a_digest_stands_for_everything_a_device_loads(configs):
    manifest = read_manifest(configs)
    gate = manifest["esphome-reject-gate"]
    before = render(configs, manifest, gate, manifest.defaults())
    header = configs / "esphome" / "include" / "qc_gate.h"
    header.write_text(header.read_text() + "// changed\n")

    after = render(configs, manifest, gate, manifest.defaults())

    assert before.digest != after.digest
    assert before.sources != after.sources
    assert after.digest in after.files["esphome/packages/mqtt.yaml"].decode()
