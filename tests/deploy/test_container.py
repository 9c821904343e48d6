"""The shipped images and units, run with podman: compose as written, and a machine booted.

Everything happens in a network and a mount namespace of the test's own, so nothing is
left behind and no address of this machine is touched. Building takes minutes; with
`QCNODE_PODMAN_STORAGE` set to a folder the images stay there for the next run.
"""

import json
import os
import shutil
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

import pytest

pytestmark = pytest.mark.podman

CA = Path("/etc/ssl/certs/ca-certificates.crt")
PATIENCE = 240
IMAGES = {
    "qcnode": ["--target", "node", "-f", "deploy/container/Containerfile"],
    "qcnode-billing": [
        *["--target", "billing", "--build-arg", "LOCK=billing.lock"],
        *["-f", "deploy/container/Containerfile"],
    ],
    "qcnode-mosquitto": ["-f", "deploy/container/Containerfile.mosquitto"],
    "qcnode-postgres": ["-f", "deploy/container/Containerfile.postgres"],
    "qcnode-booted": ["-f", "tests/deploy/Containerfile.booted"],
}
COMPOSE = ["-f", "deploy/compose.yaml", "-f", "deploy/compose.scripted.yaml"]
CONTAINERS = ("node", "billing", "mosquitto", "postgres", "provider")

# What a machine without systemd and with cgroups of both kinds needs to be told.
SETTINGS = """
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=512:512"]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
[network]
network_backend = "netavark"
network_config_dir = "{home}/networks"
"""
STORAGE = """
[storage]
driver = "overlay"
graphroot = "{home}/graph"
runroot = "{home}/run"
"""
# Holds the namespaces open for as long as somebody holds its standard input.
KEEPER = """
set -e
ip link set lo up
unified=$(findmnt -nt cgroup2 -o TARGET || true)
[ -z "$unified" ] || umount "$unified"
echo ready
exec cat
"""


@dataclass(kw_only=True)
class Site:
    """A place to build and run containers in."""

    folder: Path
    environ: dict[str, str]
    keeper: int

    def run(self, *command, check=True, timeout_s=600):
        done = subprocess.run(
            [
                *["nsenter", "--target", str(self.keeper), "--net", "--mount", "--"],
                *["sh", "-c", 'cd "$0" && exec "$@"', self.folder, *command],
            ],
            env=self.environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        if check and done.returncode:
            pytest.fail(f"{' '.join(map(str, command))}:\n{done.stdout}\n{done.stderr}"[-6000:])
        return done

    def compose(self, *command, check=True):
        return self.run(sys.executable, "-m", "podman_compose", *COMPOSE, *command, check=check)

    def inside(self, service, *command, check=True):
        return self.run("podman", "exec", f"qcnode_{service}_1", *command, check=check)

    def get(self, url):
        """Ask from this machine, where compose publishes its ports."""
        ask = f"import urllib.request as r; print(r.urlopen({url!r}, timeout=5).status)"
        return self.run(sys.executable, "-c", ask, check=False).stdout.strip()

    def wait(self, words, condition):
        pause = threading.Event()
        for _ in range(PATIENCE):
            if condition():
                return
            pause.wait(1)
        logs = [
            f"== {name}\n{done.stdout[-1500:]}{done.stderr[-1500:]}"
            for name in (*CONTAINERS, "first", "enrol")
            if (done := self.run("podman", "logs", f"qcnode_{name}_1", check=False))
        ]
        pytest.fail("\n".join([f"waited in vain until {words}", *logs]))


@pytest.fixture(scope="module")
def site(tmp_path_factory, repository):
    if os.geteuid() != 0:
        pytest.skip("building the base image and the namespaces need root")
    kept = os.environ.get("QCNODE_PODMAN_STORAGE")
    home = Path(kept) if kept else tmp_path_factory.mktemp("podman")
    home.mkdir(parents=True, exist_ok=True)
    (home / "containers.conf").write_text(SETTINGS.format(home=home))
    (home / "storage.conf").write_text(STORAGE.format(home=home))
    folder = tmp_path_factory.mktemp("site")
    # The secrets of a test have no place in the checkout.
    shutil.copytree(repository / "deploy", folder / "deploy", ignore=lambda *_: ["secrets"])
    with subprocess.Popen(
        ["unshare", "--net", "--mount", "--propagation", "private", "sh", "-c", KEEPER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as keeper:
        assert keeper.stdout.readline() == "ready\n"
        site = Site(
            folder=folder,
            environ={
                **os.environ,
                "CONTAINERS_CONF": str(home / "containers.conf"),
                "CONTAINERS_STORAGE_CONF": str(home / "storage.conf"),
            },
            keeper=keeper.pid,
        )
        yield site
        site.compose("down", "--volumes", check=False)
        site.run("podman", "rm", "--force", "--time", "1", "booted", check=False)
        keeper.stdin.close()
    if not kept:
        shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(scope="module")
def images(site, repository):
    """Build everything, from a base image made of the distribution's packages."""
    # Outside the namespaces: packages come over this machine's own network.
    for command in (
        [repository / "deploy" / "container" / "make-base.sh"],
        *(
            [
                *["buildah", "bud", "--isolation", "chroot", "--pull-never", "--layers"],
                *["--format", "docker", "--ulimit", "nofile=1024:1024"],
                *(["--secret", f"id=ca.crt,src={CA}"] if CA.exists() else []),
                *[*arguments, "-t", name, "."],
            ]
            for name, arguments in IMAGES.items()
        ),
    ):
        done = subprocess.run(
            command,
            cwd=repository,
            env=site.environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{command}:\n{done.stdout}\n{done.stderr}"[-6000:]
    return tuple(IMAGES)


@pytest.fixture(scope="module")
def machine(site, images):
    """Boot systemd with the units installed, and give the node a model of its own making."""
    assert images

    def command(*words, check=True):
        return site.run("podman", "exec", "booted", *words, check=check).stdout.strip()

    # A unit's sandbox is made of mounts and namespaces, so this machine may make them.
    flags = ["--systemd=always", "--privileged", "--network", "none", "--tmpfs", "/tmp"]  # noqa: S108  # its own
    site.run("podman", "run", "--detach", "--name", "booted", *flags, "qcnode-booted")
    site.wait(
        "the machine is up",
        lambda: command("systemctl", "is-system-running", check=False) == "running",
    )
    qcnode = "/opt/qcnode/venv/bin/qcnode"
    command("env", "HOME=/tmp", qcnode, "demo", "--parts", "5", "--home", "/etc/qcnode/first")
    command("chmod", "-R", "a+rX", "/etc/qcnode/first")
    return command


@pytest.fixture(scope="module")
def running(site, images):
    assert images
    site.run("bash", "deploy/container/make-secrets.sh")
    site.compose("up", "-d", "--no-build")
    return site


def test_node_and_billing_answer_where_they_are_published(running):
    for port in (8080, 8081):
        running.wait(
            f"port {port} answers",
            lambda port=port: running.get(f"http://127.0.0.1:{port}/livez") == "200",
        )
    running.wait(
        "parts can be judged", lambda: running.get("http://127.0.0.1:8080/readyz") == "200"
    )


def billing(running, *words):
    """Ask the books themselves; None while they cannot answer."""
    done = running.inside("billing", "qcnode", "billing", *words, "--json", check=False)
    return json.loads(done.stdout) if done.returncode == 0 else None


def test_what_the_node_spends_reaches_the_database_through_the_broker(running):
    def billed():
        totals = billing(running, "totals")
        return totals is not None and totals["settled"] > 0

    running.wait("an attempt is billed", billed)

    [token] = billing(running, "token", "list")
    assert token["used"] is None  # The broker carried it.
    public = running.inside("billing", "qcnode", "billing", "key").stdout.strip()
    verified = running.inside(
        *["node", "qcnode", "ledger", "verify", "--home", "/var/lib/qcnode/home"],
        *["--server-key", public],
    )
    assert "entries verified" in verified.stdout
    assert "signed by the node up to" in verified.stdout
    assert "signed by the billing server up to" in verified.stdout


def test_without_the_broker_the_bill_goes_on_over_http_with_the_nodes_own_token(running):
    running.run("podman", "stop", "--time", "10", "qcnode_mosquitto_1")
    try:
        running.wait(
            "a batch came with the token of the node",
            lambda: [one["used"] for one in billing(running, "token", "list")] != [None],
        )
    finally:
        running.run("podman", "start", "qcnode_mosquitto_1")


def test_enrolling_the_node_again_changes_nothing(running):
    before = billing(running, "audit")

    running.run("podman", "start", "--attach", "qcnode_enrol_1")

    assert billing(running, "audit") == before


@pytest.mark.parametrize("service", CONTAINERS)
def test_a_container_can_do_little(running, service):
    [found] = json.loads(running.run("podman", "inspect", f"qcnode_{service}_1").stdout)

    assert found["Config"]["User"].partition(":")[0] not in ("", "0", "root")
    assert found["HostConfig"]["ReadonlyRootfs"] is True
    assert not found["EffectiveCaps"]
    assert not found["BoundingCaps"]
    status = running.inside(service, "cat", "/proc/self/status").stdout
    assert "NoNewPrivs:\t1" in status
    assert found["HostConfig"]["Memory"] > 0
    refused = running.inside(service, "touch", "/etc/anything", check=False)
    assert "Read-only file system" in refused.stderr


def test_the_images_hold_nothing_that_installs_or_builds(running):
    for service in ("node", "billing"):
        for module in ("pip", "setuptools", "hatchling", "torch"):
            absent = running.inside(service, "python", "-c", f"import {module}", check=False)
            assert "ModuleNotFoundError" in absent.stderr, (service, module)


@pytest.mark.parametrize("service", ["node", "billing"])
def test_the_health_check_of_the_image_says_healthy(running, service):
    assert running.run("podman", "healthcheck", "run", f"qcnode_{service}_1").returncode == 0


@pytest.mark.parametrize("service", ["node", "billing", "mosquitto", "postgres"])
def test_a_container_told_to_stop_ends_by_itself(running, service):
    running.run("podman", "stop", "--time", "10", f"qcnode_{service}_1")

    [found] = json.loads(running.run("podman", "inspect", f"qcnode_{service}_1").stdout)
    assert found["State"]["ExitCode"] == 0  # 137 if it had to be killed


def property_of(machine, unit, name):
    return machine("systemctl", "show", unit, "--property", name, "--value")


def test_the_hardened_units_run(machine):
    for unit in ("qcnode", "qcnode-billing"):
        machine("systemctl", "start", unit)  # of the node, this returns when it says READY

        pid = property_of(machine, unit, "MainPID")
        status = machine("cat", f"/proc/{pid}/status")
        assert property_of(machine, unit, "ActiveState") == "active"
        assert "Seccomp:\t2" in status
        assert "NoNewPrivs:\t1" in status
        assert "CapBnd:\t0000000000000000" in status
        assert "Uid:\t0" not in status
    assert property_of(machine, "qcnode", "StatusText").startswith("judging parts")


def test_a_node_that_hangs_is_killed_and_started_again(machine, site):
    machine("systemctl", "start", "qcnode")
    hanging = property_of(machine, "qcnode", "MainPID")

    machine("systemctl", "kill", "--signal=STOP", "qcnode")

    site.wait("the watchdog bites", lambda: property_of(machine, "qcnode", "NRestarts") == "1")
    site.wait("the node is back", lambda: property_of(machine, "qcnode", "ActiveState") == "active")
    assert property_of(machine, "qcnode", "MainPID") != hanging
    assert "Watchdog timeout" in machine("journalctl", "--unit", "qcnode", "--output", "cat")


def test_a_service_told_to_stop_ends_by_itself(machine):
    for unit in ("qcnode", "qcnode-billing"):
        machine("systemctl", "start", unit)
        machine("systemctl", "stop", unit)

        assert property_of(machine, unit, "Result") == "success"  # "timeout" if it had to be killed
