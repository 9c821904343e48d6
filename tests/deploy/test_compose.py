"""What every container of the shipped compose files is denied, as written there."""

import pytest
import yaml

from qcnode.settings import load_settings

FILES = ["compose.yaml", "compose.scripted.yaml"]


def services(repository):
    for name in FILES:
        compose = yaml.safe_load((repository / "deploy" / name).read_text())
        for service, settings in compose["services"].items():
            if "image" in settings:  # The others only add to a service of the first file.
                yield service, settings


def test_no_container_is_given_more_than_it_needs(repository):
    for service, settings in services(repository):
        assert settings["read_only"] is True, service
        assert settings["cap_drop"] == ["ALL"], service
        assert settings["security_opt"] == ["no-new-privileges:true"], service
        assert settings["tmpfs"][0].startswith("/tmp:size="), service  # noqa: S108  # its own
        assert settings["mem_limit"], service
        assert settings["pids_limit"], service
        assert "privileged" not in settings, service


def test_ports_are_published_on_this_machine_alone(repository):
    published = [port for _, settings in services(repository) for port in settings.get("ports", [])]

    assert published
    assert all(port.startswith("127.0.0.1:") for port in published)


def test_broker_and_database_have_no_way_out(repository):
    compose = yaml.safe_load((repository / "deploy" / "compose.yaml").read_text())

    assert compose["networks"]["inside"]["internal"] is True
    for service in ("mosquitto", "postgres"):
        assert compose["services"][service]["networks"] == ["inside"]


def test_no_secret_stands_in_an_environment_or_a_command(repository):
    for service, settings in services(repository):
        for variable in settings.get("environment", {}):
            secret = any(word in variable for word in ("TOKEN", "PASSWORD", "KEY"))
            assert not secret or variable.endswith("_FILE"), (service, variable)


@pytest.mark.parametrize("name", ["node.toml", "node-scripted.toml"])
def test_the_node_files_of_the_containers_can_be_read(repository, name):
    settings = load_settings(repository / "deploy" / "container" / name, environ={})

    assert settings.metering.channel == "mqtt"
    assert settings.mqtt.username == settings.node.name
