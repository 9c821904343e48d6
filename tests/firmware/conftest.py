"""The folder of device configurations as a checkout has it, to be broken."""

import shutil

import pytest


@pytest.fixture
def checkout(repository, tmp_path):
    """As much of a checkout as device configurations are made of."""
    root = tmp_path / "checkout"
    shutil.copytree(repository / "firmware_configs", root / "firmware_configs")
    shutil.copytree(repository / "deploy" / "mosquitto", root / "deploy" / "mosquitto")
    if (repository / "build").exists():
        (root / "build").symlink_to(repository / "build")
    return root


@pytest.fixture
def configs(checkout):
    return checkout / "firmware_configs"
