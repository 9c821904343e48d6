"""Policy packs, attestations and arming: what is signed counts, and what is older does not."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from typer.testing import CliRunner

from qcnode.authority import AgentAction
from qcnode.books.arming import arm, disarm, read_arming
from qcnode.books.policy_file import (
    built_in,
    open_attestation,
    open_pack,
    parse_attestation,
    parse_pack,
    refuse_older,
    sign_file,
)
from qcnode.books.seals import SigningKey
from qcnode.cli.app import app
from qcnode.domain import AgentLevel
from qcnode.errors import PolicyError
from qcnode.settings import Settings
from tests.conftest import ROOT

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
SHIPPED = (ROOT / "node" / "qcnode" / "policies" / "built-in.toml").read_text()
ATTESTATION = """
format = 1
agent = "agent:m"
provider = "p"
policy = "abc"
level = "L3"
start = "L3"
right_at_least = 0.9
begins = 2026-11-22T00:00:00Z
ends = 2027-02-22T00:00:00Z
by = "the auditor"
"""
HOUR = timedelta(hours=1)


@pytest.fixture
def key(tmp_path):
    return SigningKey.open(tmp_path / "key.pem", name="board")


@pytest.fixture
def pack(tmp_path):
    path = tmp_path / "pack.toml"
    path.write_text(SHIPPED)
    return path


def test_the_pack_that_ships_reads_and_asks_for_what_the_rule_asks():
    pack = built_in()
    assert pack.needs(AgentAction.RELEASE) is AgentLevel.L3
    assert pack.needs(AgentAction.STOP) is AgentLevel.L4
    assert not pack.envelope.overrule_node


def test_a_signed_pack_is_read_and_one_that_was_touched_is_not(pack, key):
    with pytest.raises(PolicyError, match="not signed"):
        open_pack(pack, key.public)
    sign_file(pack, key)
    assert open_pack(pack, key.public) == built_in()
    pack.write_text(SHIPPED.replace("quota_per_hour = 600", "quota_per_hour = 601"))
    with pytest.raises(PolicyError, match="it was changed"):
        open_pack(pack, key.public)


def test_a_pack_signed_by_somebody_else_is_refused(pack, key, tmp_path):
    sign_file(pack, SigningKey.open(tmp_path / "other.pem", name="board"))
    with pytest.raises(PolicyError, match="not a signature of board"):
        open_pack(pack, key.public)


def test_a_signature_under_a_pack_is_none_under_an_attestation(tmp_path, key):
    path = tmp_path / "attestation.toml"
    path.write_text(ATTESTATION)
    sign_file(path, key)
    assert open_attestation(path, key.public).agent == "agent:m"
    with pytest.raises(PolicyError, match="not the pack that"):
        open_pack(path, key.public)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('release = "L3"', 'release = "L2"', "never less than L3"),
        ('stop = "L4"', 'stop = "L3"', "never less than L4"),
        ('stop = "L4"', 'restart = "L4"', "no such action"),
        ('stop = "L4"', 'fly = "L4"', "no such action"),
        ('stop = "L4"', 'stop = "L5"', "must be L1, L2, L3 or L4"),
        ("confidence_floor = 0.8", "confidence_floor = 1.1", "from 0 to 1"),
        ("confidence_floor = 0.8", 'confidence_floor = "high"', "must be a number"),
        ("quota_per_hour = 600", "quota_per_hour = -1", "a whole number"),
        ("quota_per_hour = 600", "quota_per_hour = true", "a whole number"),
        ("quota_per_hour = 600", "", "quota_per_hour is missing"),
        ("overrule_node = false", "overrule_node = 0", "must be true or false"),
        ("version = 1", "version = 1.5", "a whole number"),
        ("format = 1", "format = 2", "reads format = 1"),
        ('name = "built-in"', 'name = "Built in"', "name must be"),
        ("[envelope]", "[envelop]", "is missing"),
        ("version = 1", 'version = 1\ncolour = "red"', "there is no key 'colour'"),
        ("low = 70.0, high = 140.0", "low = 70.0, high = 7.0", "low is above high"),
        ("step_max = 10.0", "step_max = -1", "from 0 to"),
        ("USD = 100_000", "USD = -1", "a whole number"),
        ("format = 1", "format = ", "not TOML"),
    ],
)
def test_a_pack_that_says_nonsense_is_refused_in_one_line(old, new, words):
    assert old in SHIPPED
    with pytest.raises(PolicyError, match=words) as refused:
        parse_pack(SHIPPED.replace(old, new, 1).encode(), source="pack.toml")
    assert str(refused.value).startswith("pack.toml")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('agent = "agent:m"', "agent = 1", "must be a text"),
        ('level = "L3"', 'level = "L2"', "starts above"),
        ("ends = 2027-02-22T00:00:00Z", "ends = 2026-11-22T00:00:00Z", "ends before it begins"),
        ("begins = 2026-11-22T00:00:00Z", "begins = 2026-11-22", "must be an instant"),
        ("begins = 2026-11-22T00:00:00Z", "begins = 2026-11-22T00:00:00", "must be an instant"),
        ("right_at_least = 0.9", "right_at_least = 2.0", "from 0 to 1"),
    ],
)
def test_an_attestation_that_says_nonsense_is_refused(old, new, words):
    with pytest.raises(PolicyError, match=words):
        parse_attestation(ATTESTATION.replace(old, new, 1).encode(), source="a.toml")


def test_an_older_pack_than_the_last_is_refused_also_after_a_restart(tmp_path):
    pack = built_in()
    refuse_older(replace(pack, version=3), tmp_path)
    refuse_older(replace(pack, version=3), tmp_path)
    with pytest.raises(PolicyError, match="version 2 is older than 3"):
        refuse_older(replace(pack, version=2), tmp_path)
    with pytest.raises(PolicyError, match="another one had version 3"):
        refuse_older(replace(pack, version=3, digest="other"), tmp_path)
    refuse_older(replace(pack, version=4, digest="other"), tmp_path)
    refuse_older(replace(pack, name="another"), tmp_path)
    (tmp_path / "policy-another.version").write_text("x")
    with pytest.raises(PolicyError, match="restore it from a backup"):
        refuse_older(replace(pack, name="another"), tmp_path)


def test_settings_that_name_a_pack_say_whose_signature_counts(tmp_path):
    with pytest.raises(ValueError, match="policy_key is missing"):
        Settings(authority={"policy": tmp_path / "pack.toml"})
    with pytest.raises(ValueError, match="auditor_key is missing"):
        Settings(authority={"attestations": (tmp_path / "a.toml",)})


# -- arming -------------------------------------------------------------------------------


def test_two_people_arm_for_the_shorter_of_their_spans_and_one_ends_it(tmp_path):
    assert read_arming(tmp_path) is None
    assert arm(tmp_path, who="ana", reason="trial run", span=2 * HOUR, now=NOW) is None
    assert read_arming(tmp_path) is None
    with pytest.raises(PolicyError, match="a second person"):
        arm(tmp_path, who="Ana", reason="trial run", span=HOUR, now=NOW)
    armed = arm(tmp_path, who="bo", reason="trial run", span=HOUR, now=NOW)
    assert (armed.first, armed.second, armed.until) == ("ana", "bo", NOW + HOUR)
    assert read_arming(tmp_path) == armed
    disarm(tmp_path, who="cy", now=NOW)
    assert read_arming(tmp_path) is None
    assert (tmp_path / "arming.log").read_text().count("\n") == 3


def test_an_old_request_arms_nothing_and_nobody_arms_for_longer_than_a_shift(tmp_path):
    arm(tmp_path, who="ana", reason="trial run", span=HOUR, now=NOW)
    late = NOW + timedelta(minutes=15)
    assert arm(tmp_path, who="bo", reason="trial run", span=HOUR, now=late) is None
    for who, reason, span in (
        ("", "trial run", HOUR),
        ("cy", "", HOUR),
        ("cy", "trial run", 9 * HOUR),
        ("cy", "trial run", timedelta(0)),
    ):
        with pytest.raises(PolicyError):
            arm(tmp_path, who=who, reason=reason, span=span, now=late)
    (tmp_path / "armed.json").write_text('{"first": "a", "second": "b", "until": "soon"}')
    assert read_arming(tmp_path) is None


# -- the commands -------------------------------------------------------------------------


def run(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def test_the_commands_sign_check_show_and_stop(tmp_path, pack):
    signed = run("policy", "sign", pack, "--key", tmp_path / "k.pem", "--name", "board")
    public = signed.stdout.splitlines()[-1]
    assert "authority.policy_key" in signed.stdout
    assert run("policy", "check", pack, "--key", public).exit_code == 0
    assert '"quota_per_hour": 600' in run("policy", "show", pack, "--json").stdout
    pack.write_text(SHIPPED + "\n")
    assert run("policy", "check", pack, "--key", public).exit_code == 1

    home = ("--home", tmp_path)
    assert run("kill", "line", "--by", "ana", *home).exit_code == 0
    assert run("kill", "--show", *home).exit_code == 1
    cleared = run("kill", "line", "--clear", "--by", "bo", "--reason", "no fire", *home)
    assert (cleared.exit_code, "second person" in cleared.stdout) == (1, True)
    again = run("kill", "line", "--clear", "--by", "cy", "--reason", "no fire", *home)
    assert again.exit_code == 0
    assert run("kill", "--show", *home).exit_code == 0
    assert run("policy", "arm", "--by", "ana", "--reason", "trial", *home).exit_code == 1
    armed = run("policy", "arm", "--by", "bo", "--reason", "trial", *home)
    assert "armed by ana and bo" in armed.stdout
    assert run("policy", "arm", "--by", "bo", "--off", *home).exit_code == 0


def test_both_people_may_clear_in_one_command(tmp_path):
    home = ("--home", tmp_path)
    run("kill", *home)
    both = ("--by", "ana", "--second", "bo", "--reason", "no fire")
    assert run("kill", "all", "--clear", *both, *home).exit_code == 0
