"""What the lock files promise: versions with hashes, from wherever they come, and no torch."""

import re

import pytest

LOCKS = ["node", "billing", "dev"]
PIN = re.compile(r"^([a-z0-9.-]+)==(\S+)((?: ;[^\\]*)?) \\$")
HASH = re.compile(r"^    --hash=sha256:[0-9a-f]{64}( \\)?$")


def read(repository, name):
    return (repository / "requirements" / f"{name}.lock").read_text().splitlines()


def pins(repository, name):
    """Return the pinned versions, one for each name and marker."""
    found = [PIN.match(line) for line in read(repository, name)]
    return {(pin[1], pin[3]): pin[2] for pin in found if pin}


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_is_pins_and_hashes_and_names_no_place(repository, name):
    for line in read(repository, name):
        assert line.startswith("#") or PIN.match(line) or HASH.match(line), line


def test_each_lock_holds_the_one_before_it(repository):
    node, billing, dev = (pins(repository, name) for name in LOCKS)

    assert node.items() < billing.items() < dev.items()


@pytest.mark.parametrize("name", LOCKS)
def test_torch_is_in_no_lock(repository, name):
    assert "torch" not in {package for package, _ in pins(repository, name)}


def test_the_database_driver_is_not_on_the_node(repository):
    assert "psycopg" not in {package for package, _ in pins(repository, "node")}
    assert "psycopg" in {package for package, _ in pins(repository, "billing")}
