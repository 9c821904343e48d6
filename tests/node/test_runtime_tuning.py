"""Which engine decides: measured, proven, and never a silent change of answers."""

import json
import time
from importlib.metadata import PackageNotFoundError

import numpy as np
import onnxruntime as ort
import pytest

from qcnode import doctor
from qcnode.errors import ModelError
from qcnode.runtime import session as sessions
from qcnode.runtime import tuning
from qcnode.runtime.onnx import OnnxModel
from qcnode.runtime.session import CPU, ENGINES, Engine, engines_here, open_session
from qcnode.runtime.tuning import TUNED_NAME, chosen, keep, machine, open_tuned, tune
from tests.faults.test_hostile_models import external
from tests.variants import make_graph, make_release

BY_NAME = {engine.name: engine for engine in ENGINES}


@pytest.fixture
def release(tmp_path):
    return make_release(tmp_path / "release", tag="well")


@pytest.fixture
def short_rounds(monkeypatch):
    monkeypatch.setattr(tuning, "ROUND_S", 0.002)


@pytest.mark.usefixtures("short_rounds")
def test_every_engine_there_is_gets_a_line_and_the_cpu_is_one_of_them(release):
    measured = tune(release, threads=1, clock_ns=time.perf_counter_ns)

    assert [trial.engine for trial in measured.trials] == [one.name for one in engines_here()]
    assert measured.trials[0].engine == "cpu"
    assert measured.trials[0].median == 1.0
    assert measured.machine == machine()


@pytest.fixture
def other_engine(monkeypatch):
    """An engine beside the CPU whose answers are `factor` times what they should be."""

    def make(factor):
        other = Engine(name="other", provider="CPUExecutionProvider")
        monkeypatch.setattr(tuning, "ENGINES", (CPU, other))
        monkeypatch.setattr(tuning, "engines_here", lambda: (CPU, other))
        real = sessions.open_session

        def opened(model, *, threads=1, engine=CPU):
            if engine is other:
                model = make_graph(tag="other", factor=factor)
            return real(model, threads=threads, engine=CPU)

        monkeypatch.setattr("qcnode.runtime.onnx.open_session", opened)
        ticks = iter(range(0, 10**15, 1_000_000))
        return lambda: next(ticks)

    return make


@pytest.mark.usefixtures("short_rounds")
def test_a_fast_engine_with_other_answers_may_not_decide(release, other_engine):
    clock = other_engine(1.01)
    measured = tune(release, threads=1, clock_ns=clock)

    assert measured.engine == "cpu"
    (refused,) = [trial for trial in measured.trials if trial.why_not]
    assert refused.engine == "other"
    assert "golden frame" in refused.why_not


@pytest.mark.usefixtures("short_rounds")
def test_an_engine_that_is_not_faster_is_not_chosen(release, other_engine):
    measured = tune(release, threads=1, clock_ns=other_engine(1.0))
    assert [trial.why_not for trial in measured.trials] == [None, None]
    assert measured.engine == "cpu"


def test_the_choice_is_kept_for_each_model_and_holds_for_this_machine_only(release, tmp_path):
    version = OnnxModel(release).version
    assert chosen(tmp_path, version, threads=1) is CPU  # Nothing was measured yet.

    made = tuning.Tuning(model=version, machine=machine(), threads=1, engine="openvino", trials=())
    keep(tmp_path, made)
    keep(tmp_path, tuning.Tuning(model="m@2", machine="?", threads=1, engine="cuda", trials=()))

    assert chosen(tmp_path, version, threads=1) is BY_NAME["openvino"]
    assert chosen(tmp_path, version, threads=2) is CPU
    assert chosen(tmp_path, "m@2", threads=1) is CPU


def test_an_engine_that_is_gone_is_said_and_the_cpu_decides(release, tmp_path):
    if "cuda" in {engine.name for engine in engines_here()}:
        pytest.skip("CUDA is here, and this test needs an engine that is not")
    version = OnnxModel(release).version
    keep(
        tmp_path,
        tuning.Tuning(model=version, machine=machine(), threads=1, engine="cuda", trials=()),
    )
    said = []
    model = open_tuned(release, tmp_path, threads=1, warn=said.append)

    assert model.version == version
    assert len(said) == 1
    assert "engine cuda is not used" in said[0]
    assert "\n" not in said[0]


@pytest.mark.parametrize("text", ["", "{}", "[1]", '[{"model": 3}]', "\0"])
def test_a_choice_that_cannot_be_read_is_none(release, tmp_path, text):
    (tmp_path / TUNED_NAME).write_text(text)
    assert chosen(tmp_path, OnnxModel(release).version, threads=1) is CPU


def test_a_session_does_not_look_for_weights_in_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights").write_bytes(np.float32(1).tobytes())
    with pytest.raises(sessions.ORT_ERRORS, match="xternal"):
        open_session(external("weights"))


def test_a_missing_provider_is_an_error_and_no_quiet_cpu():
    here = ort.get_available_providers()
    missing = next(engine for engine in ENGINES if engine.provider not in here)
    with pytest.raises(ModelError, match="install its variant"):
        open_session(make_graph(tag="x"), engine=missing)


@pytest.mark.usefixtures("short_rounds")
def test_doctor_writes_the_choice_beside_the_models(release, tmp_path, qcnode):
    config = tmp_path / "node.toml"
    config.write_text(f'[node]\nhome = "{tmp_path}/home"\n[model]\ndir = "{release}"\n')
    done = qcnode("doctor", "--config", config, "--tune", "--json")

    assert done.code == 0, done.err
    assert json.loads(done.out)["engine"] in BY_NAME
    kept = json.loads((tmp_path / "home" / "models" / TUNED_NAME).read_text())
    assert [one["model"] for one in kept] == [OnnxModel(release).version]


def test_doctor_recognises_a_variant_whose_files_another_one_overwrote(monkeypatch):
    def version(name):
        if name != "onnxruntime-openvino":
            raise PackageNotFoundError(name)
        return "1.24.1"

    monkeypatch.setattr(doctor, "version", version)
    monkeypatch.setattr(
        doctor.onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"]
    )
    finding = doctor._runtime()
    assert not finding.ok
    assert "without OpenVINOExecutionProvider" in finding.words
