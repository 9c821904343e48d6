import pytest

from qcnode.domain import Action, AgentLevel
from qcnode.errors import SettingsError
from qcnode.settings import load_settings


@pytest.fixture
def write(tmp_path):
    def write(text):
        path = tmp_path / "node.toml"
        path.write_text(text)
        return path

    return write


def test_an_empty_file_makes_a_node_that_asks_nobody(write):
    settings = load_settings(write(""), {})

    assert not settings.agent.enabled
    assert settings.metering.channel == "none"
    assert settings.panel.host == "127.0.0.1"
    assert settings.line.failsafe is Action.DIVERT


def test_relative_paths_count_from_the_files_own_folder(write):
    path = write('[node]\nhome = "books"\n[model]\ndir = "/m"\n')

    settings = load_settings(path, {})

    assert settings.node.home == path.parent / "books"
    assert str(settings.model.dir) == "/m"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[panel]\n\nprot = 1\n", "line 3: unknown key panel.prot; did you mean port?"),
        ("[nod]\n", "line 1: unknown key nod; did you mean node?"),
        ('[agent]\nruling_timeout_s = "5 min"\n', "line 2: agent.ruling_timeout_s = '5 min'"),
        ("[camera]\ntimeout_s = 5\n", "line 2: unknown key camera.timeout_s; did you mean timeo"),
        ("[line]\nperiod_ms = -1\n", "line 2: line.period_ms = -1"),
        ('[line]\nfailsafe = "ACCEPT"\n', "line 2: line.failsafe"),
        ("[budget]\nper_day_micro = 1.5\n", "line 2: budget.per_day_micro = 1.5"),
        ("[panel\n", "not TOML"),
        ('[secrets]\nprovider_api_key = "k"\n', "line 1: secrets do not belong in this file"),
    ],
)
def test_a_wrong_key_or_value_is_named_with_its_line(write, text, expected):
    with pytest.raises(SettingsError) as caught:
        load_settings(write(text), {})

    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_says_how_to_get_one(tmp_path):
    with pytest.raises(SettingsError, match="qcnode init"):
        load_settings(tmp_path / "none.toml", {})


def test_provider_variables_win_over_the_file(write):
    path = write('[provider]\nmodel = "in-file"\n[agent]\nlevel = "L3"\n')

    settings = load_settings(path, {"QCNODE_PROVIDER_MODEL": "from-variable"})

    assert settings.provider.model == "from-variable"
    assert settings.agent.level is AgentLevel.L3


def test_a_secret_comes_from_its_variable_or_a_file_and_is_never_printed(write, tmp_path):
    secret_file = tmp_path / "token"
    secret_file.write_text("tok3n\n")
    environ = {"QCNODE_PROVIDER_API_KEY": "k3y", "QCNODE_BILLING_TOKEN_FILE": str(secret_file)}

    settings = load_settings(write(""), environ)

    assert settings.secrets.provider_api_key.get_secret_value() == "k3y"
    assert settings.secrets.billing_token.get_secret_value() == "tok3n"
    assert "k3y" not in repr(settings)
    assert "tok3n" not in repr(settings)


def test_a_secret_file_that_cannot_be_read_is_named(write, tmp_path):
    with pytest.raises(SettingsError, match="QCNODE_PANEL_TOKEN_FILE"):
        load_settings(write(""), {"QCNODE_PANEL_TOKEN_FILE": str(tmp_path / "none")})
