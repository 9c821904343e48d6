"""What `make-secrets.sh` makes, `enrol.sh` tells the billing server, and the node then is."""

import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml

from qcbridge.billing.engine import Database
from qcbridge.billing.tokens import Scope, Tokens
from qcnode.cli.app import main
from qcnode.errors import SealError
from qcnode.settings import load_settings
from qcnode.wiring import billing

TOKEN = "qcb_" + "0123456789abcdef" * 4


@pytest.fixture
def secrets(repository, tmp_path):
    """Make the secrets of a site, as its owner does."""

    def make():
        script = repository / "deploy" / "container" / "make-secrets.sh"
        done = subprocess.run(
            ["bash", script, tmp_path / "secrets"], capture_output=True, text=True, check=True
        )
        return done.stdout

    make()
    return make, tmp_path / "secrets"


@pytest.fixture
def qcnode(monkeypatch, capsys, tmp_path):
    """Type a command beside this test's database, and read what it prints."""
    monkeypatch.setenv("QCNODE_BILLING_URL", f"sqlite:///{tmp_path / 'billing.db'}")

    def run(*words, expect=0):
        monkeypatch.setattr(sys, "argv", ["qcnode", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        assert (ended.value.code or 0) == expect, printed.err
        return printed.err if expect else printed.out

    return run


def test_the_public_halves_are_those_of_the_keys_as_the_programs_read_them(
    qcnode, secrets, tmp_path, monkeypatch
):
    _, folder = secrets
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("QCNODE_NODE_KEY_FILE", str(folder / "node1_key"))
    monkeypatch.setenv("QCNODE_BILLING_KEY_FILE", str(folder / "billing_key"))

    node = qcnode("ledger", "key", "--home", home, "--name", "tenant/node1")
    server = qcnode("billing", "key")

    assert node == (folder / "node1_key.pub").read_text()
    assert server == (folder / "billing_key.pub").read_text()
    assert not list(home.iterdir())  # No second key beside the one that was given.


def test_no_secret_is_made_twice(secrets):
    make, folder = secrets
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    assert make() == ""

    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert len(set(before.values())) == len(before)
    assert folder.stat().st_mode & 0o077 == 0


def test_every_secret_of_the_compose_file_is_made(repository, secrets):
    compose = yaml.safe_load((repository / "deploy" / "compose.yaml").read_text())

    wanted = {Path(secret["file"]).name for secret in compose["secrets"].values()}

    assert wanted == {path.name for path in secrets[1].iterdir()} - {"billing_key.pub"}


@pytest.mark.parametrize(("key", "holder"), [("node1_key", "node"), ("billing_key", "billing")])
def test_a_private_key_is_handed_to_its_owner_alone(repository, key, holder):
    compose = yaml.safe_load((repository / "deploy" / "compose.yaml").read_text())

    holders = [name for name, one in compose["services"].items() if key in one.get("secrets", ())]

    assert holders == [holder]


def test_a_node_is_enrolled_once_and_what_was_revoked_is_not_brought_back(
    repository, qcnode, secrets, tmp_path
):
    folder = secrets[1]
    database = Database(f"sqlite:///{tmp_path / 'billing.db'}")
    database.migrate()  # As the billing server does when it starts.

    def enrol():
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        subprocess.run(
            [
                *["sh", repository / "deploy" / "container" / "enrol.sh", "tenant", "node1"],
                *[folder / "node1_key.pub", folder / "node1_billing_token"],
            ],
            env={**os.environ, "PATH": path},
            check=True,
            timeout=300,
        )

    enrol()

    [known] = json.loads(qcnode("billing", "node", "list", "--json"))
    assert (known["tenant"], known["node"], known["added_by"]) == ("tenant", "node1", "enrol")
    tokens = Tokens(database, now=lambda: datetime(2026, 11, 22, tzinfo=UTC), random=bytes)
    grant = tokens.check((folder / "node1_billing_token").read_text().strip())
    assert grant is not None
    assert grant.opens(Scope.INGEST)
    assert not grant.opens(Scope.READ)
    assert grant.reaches("tenant", "node1")
    assert not grant.reaches("tenant", "node2")

    qcnode("billing", "node", "revoke", "--tenant", "tenant", "--node", "node1")
    qcnode("billing", "token", "revoke", "tenant.node1")
    before = qcnode("billing", "audit", "--json")
    enrol()

    assert qcnode("billing", "audit", "--json") == before
    database.close()


def test_a_given_token_is_taken_and_not_printed(qcnode, tmp_path):
    (tmp_path / "token").write_text(f"{TOKEN}\n")

    said = qcnode(
        *["billing", "token", "add", "auditor", "--scope", "read", "--from", tmp_path / "token"]
    )

    assert TOKEN not in said
    assert "auditor" in said


@pytest.mark.parametrize("text", ["a-word", "qcb_12", "qcb_" + "g" * 64, "0" * 64, ""])
def test_a_word_that_could_be_guessed_is_no_token(qcnode, tmp_path, text):
    (tmp_path / "token").write_text(text)

    said = qcnode(
        *["billing", "token", "add", "auditor", "--scope", "read", "--from", tmp_path / "token"],
        expect=2,
    )

    assert "this is no token" in said
    assert not text or text not in said


def test_the_node_of_the_compose_file_signs_with_the_key_that_is_enrolled(repository, secrets):
    config = repository / "deploy" / "container" / "node.toml"
    given = {"QCNODE_NODE_KEY_FILE": str(secrets[1] / "node1_key")}

    key = billing.node_key(load_settings(config, environ=given))

    assert f"{key.public}\n" == (secrets[1] / "node1_key.pub").read_text()


def test_a_given_key_that_is_none_is_said_and_not_shown(repository):
    config = repository / "deploy" / "container" / "node.toml"
    settings = load_settings(config, environ={"QCNODE_NODE_KEY": "canary"})

    with pytest.raises(SealError, match=r"QCNODE_NODE_KEY .* no private key in PEM") as refused:
        billing.node_key(settings)

    assert "canary" not in str(refused.value)
