"""`qcnode firmware validate`: the shipped files pass, and a broken twin of each is refused."""

import json
import shutil

import pytest

from qcnode.errors import SettingsError
from qcnode.firmware import validate
from tests.node.conftest import qcnode

__all__ = ["qcnode"]  # a fixture
pytestmark = pytest.mark.skipif(
    shutil.which("g++") is None, reason="g++ is missing here: apt-get install g++"
)


@pytest.fixture
def configs(repository, tmp_path):
    return shutil.copytree(repository / "firmware_configs", tmp_path / "configs")


def problems(folder):
    return {one.path: one.problem for one in validate(folder) if one.problem is not None}


def test_what_ships_is_right(qcnode, repository):
    done = qcnode("firmware", "validate", repository / "firmware_configs", "--json")

    said = json.loads(done.out)
    assert (done.code, said["ok"]) == (0, True), said
    assert len(said["files"]) == 5


@pytest.mark.parametrize(
    ("path", "before", "after", "why"),
    [
        ("plc/modbus.csv", "40103", "40104", "registers.yaml says"),
        ("plc/GVL_QC.st", "END_STRUCT", "END_STRUCTURE", "registers.yaml says"),
        ("plc/s7_db.scl", "Word", "Byte", "registers.yaml says"),
        ("plc/logix_tags.csv", "DINT", "SINT", "registers.yaml says"),
        ("esphome/include/qc_gate.h", "return count_;", "return count;", "does not compile"),
        ("esphome/include/qc_gate.h", "0x80000000u", "0x7fffffffu", "it has changed"),
    ],
)
def test_a_broken_twin_of_each_file_is_refused(  # noqa: PLR0917  # what the table says
    qcnode, configs, path, before, after, why
):
    text = (configs / path).read_text()
    assert before in text
    (configs / path).write_text(text.replace(before, after, 1))

    done = qcnode("firmware", "validate", configs)

    assert done.code == 1
    (line,) = [line for line in done.out.splitlines() if line.startswith("WRONG")]
    assert path in line
    assert why in line


def test_a_file_that_nobody_announced_is_refused(configs):
    (configs / "plc" / "extra.st").write_text("PROGRAM x")

    assert list(problems(configs)) == ["plc/extra.st"]


def test_a_file_that_is_missing_is_refused(configs):
    (configs / "plc" / "modbus.csv").unlink()

    assert list(problems(configs)) == ["plc/modbus.csv"]


def test_a_path_that_leads_out_of_the_folder_is_refused(configs):
    manifest = configs / "manifest.yaml"
    manifest.write_text(manifest.read_text().replace("plc/modbus.csv", "../elsewhere.csv"))

    assert "leads out" in problems(configs)["../elsewhere.csv"]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("version: 1", "version: 2"),
        ("kind: c++", "kind: magic"),
        ("id: plc-csv", "id: plc-st"),
        ("artefacts:", "artefacts: ["),
        ("sha256: ", "sha256: x"),
        ("loaded_by:", "loaded:"),
    ],
)
def test_a_manifest_that_is_none_is_named(configs, before, after):
    manifest = configs / "manifest.yaml"
    manifest.write_text(manifest.read_text().replace(before, after, 1))

    with pytest.raises(SettingsError, match=r"manifest\.yaml"):
        validate(configs)
