import pytest

from qcnode.books.budgets import Budget
from qcnode.domain import Action, AgentLevel
from qcnode.errors import SettingsError
from qcnode.money import CostCentre
from qcnode.settings import load_settings

FLEET = """[[budget]]
name = "fleet"
unit = "tokens"
limit = 1000
scope = { line = "line7", department = "qa" }
shared = true
"""


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
        ("[budget]\nper_day_micro = 5\n", "line 1: budget: budgets are written as [[budget]]"),
        ('[[budget]]\nname = "d"\n', "line 1: budget: a budget of money needs a currency"),
        ('[[budget]]\nname = "d"\ncurrency = "USD"\n', "line 1: budget: limit_micro is missing"),
        ('[[budget]]\nname = "d"\nunit = "calls"\n', "line 1: budget: limit is missing"),
        (
            '[[budget]]\nname = "d"\ncurrency = "USD"\nlimit = 5\n',
            "line 1: budget: money is limited by limit_micro",
        ),
        (
            '[[budget]]\nname = "d"\nunit = "calls"\nlimit_micro = 5\n',
            "line 1: budget: a budget of calls has no currency, and limit",
        ),
        (
            '[[budget]]\nname = "d"\nunit = "calls"\nlimit = 1.5\n',
            "line 4: budget.limit = 1.5",
        ),
        (
            FLEET + '\n[[budget]]\nname = "d"\n\nlimt = 5\n',
            "line 11: unknown key budget.limt; did you mean limit?",
        ),
        (FLEET + FLEET, "line 8: budget.name = 'fleet': there is one of this name already"),
        (
            FLEET.replace("department", "departmnt"),
            "line 5: unknown key budget.scope.departmnt; did you mean department?",
        ),
        (
            '[[budget]]\nname = "d"\nunit = "calls"\nlimit = 1\n[budget.scope]\n\nlin = "a"\n',
            "line 7: unknown key budget.scope.lin; did you mean line?",
        ),
        ('[node]\ntimezone = "Beijing"\n', "line 2: node.timezone = 'Beijing': no time zone"),
        (
            '[metering]\n\nstale_prices = "calls"\n',
            'line 3: metering.stale_prices = "calls" needs a [[budget]] with unit = "calls"',
        ),
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

    assert settings.provider[0].model == "from-variable"
    assert settings.agent.level is AgentLevel.L3


SEVERAL = """
[[provider]]
preset = "deepseek"
api_key_file = "one.key"

[[provider]]
preset = "ollama"
model = "qwen3-vl"
timeout_s = 60.0
"""


def test_several_providers_stand_on_presets_and_say_the_rest(write, tmp_path):
    (tmp_path / "one.key").write_text("k3y\n")
    settings = load_settings(write(SEVERAL), {"QCNODE_PROVIDER_MODEL": "deepseek-v4-pro"})

    one, other = settings.provider
    assert (one.name, one.model, one.region) == ("deepseek", "deepseek-v4-pro", "cn")
    assert (other.name, other.model, other.timeout_s) == ("local", "qwen3-vl", 60.0)
    assert settings.key_of(one).get_secret_value() == "k3y"
    assert settings.key_of(other) is None
    assert "k3y" not in repr(settings)


def test_the_key_of_the_variable_is_the_first_ones_and_wins(write, tmp_path):
    (tmp_path / "one.key").write_text("k3y\n")
    settings = load_settings(write(SEVERAL), {"QCNODE_PROVIDER_API_KEY": "other"})

    one, other = settings.provider
    assert settings.key_of(one).get_secret_value() == "other"
    assert settings.key_of(other) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('[provider]\n\npreset = "acme"\n', "provider: no preset 'acme'; there are: openai"),
        (SEVERAL + "prot = 1\n", "line 10: unknown key provider.prot; did you mean"),
        ("[provider]\n\nprot = 1\n", "line 3: unknown key provider.prot; did you mean"),
        ('[provider]\n\napi_key = "k"\n', "line 3: a key does not belong in this file"),
        (SEVERAL + 'api_key = "k"\n', "line 10: a key does not belong in this file"),
        ('[provider]\n\nprotocol = "soap"\n', "line 3: provider.protocol = 'soap'"),
        ('[provider]\n\napi_key_file = "none"\n', "none': cannot be read"),
        ("[[provider]]\n[[provider]]\n", "scripted has this model already"),
        ("[routing]\n\naccuracy_floor = 1.5\n", "line 3: routing.accuracy_floor = 1.5"),
    ],
)
def test_what_is_wrong_with_a_provider_is_named_with_its_line(write, tmp_path, text, expected):
    (tmp_path / "one.key").write_text("k3y\n")
    with pytest.raises(SettingsError) as caught:
        load_settings(write(text), {})

    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


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


def test_budgets_count_in_the_nodes_own_time_zone_and_in_whole_pico_units(write):
    text = (
        '[node]\nline = "line7"\ntimezone = "Asia/Kolkata"\n[cost_centre]\ndepartment = "qa"\n'
        '[[budget]]\nname = "month"\ncurrency = "CNY"\nlimit_micro = 7\nwindow = "month"\n'
    )

    settings = load_settings(write(text + FLEET), {})

    assert settings.centre() == CostCentre(line="line7", department="qa")
    month, fleet = settings.budgets()
    assert month == Budget(
        name="month", limit=7_000_000, currency="CNY", window="month", zone="Asia/Kolkata"
    )
    assert fleet == Budget(
        name="fleet",
        limit=1_000,
        unit="tokens",
        zone="Asia/Kolkata",
        scope=CostCentre(line="line7", department="qa"),
        shared=True,
    )
    assert fleet.covers(settings.centre())


def test_a_shared_budget_needs_no_limit_of_its_own(write):
    text = '[[budget]]\nname = "fleet"\ncurrency = "USD"\nshared = true\n'

    (budget,) = load_settings(write(text), {}).budgets()

    assert budget.limit == 2**63 - 1


def test_calls_may_cap_what_stale_prices_do_not(write):
    text = (
        '[metering]\nstale_prices = "calls"\n'
        '[[budget]]\nname = "rate"\nunit = "calls"\nlimit = 20\nwindow = "hour"\n'
    )

    assert load_settings(write(text), {}).metering.stale_prices == "calls"
    with pytest.raises(SettingsError, match="needs a"):
        load_settings(write(text + 'scope = { department = "paint" }\n'), {})
