"""What every area's tests share: which services are here, free ports, the data folder.

A test that needs a real service carries its marker. Where the service is missing the
test is skipped and says what to install; with `QCNODE_REQUIRE_ALL=1`, as the checks
before a merge run, such a skip is a failure, whoever asked for it.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from tests.programs import find_postgres, find_program
from tests.services import make_mosquitto, mosquitto, postgres
from tests.taught import doubtful_model, rendered_data

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

# Fixtures for everybody.
__all__ = ["doubtful_model", "make_mosquitto", "mosquitto", "postgres", "rendered_data"]

# Machines are shared: how long an example takes says nothing here.
settings.register_profile("qcnode", deadline=None)
settings.load_profile("qcnode")

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, kw_only=True)
class Service:
    """Programs that tests start for themselves, and the packages that bring them."""

    programs: Callable[[], dict[str, Path | None]]
    packages: str

    def missing(self) -> list[str]:
        return [name for name, path in self.programs().items() if path is None]


def _programs(**wanted: tuple[str, ...]) -> Callable[[], dict[str, Path | None]]:
    return lambda: {name: find_program(*names) for name, names in wanted.items()}


SERVICES = {
    "mosquitto": Service(
        programs=_programs(mosquitto=("mosquitto",), mosquitto_passwd=("mosquitto_passwd",)),
        packages="mosquitto mosquitto-clients",
    ),
    "postgres": Service(programs=lambda: {"initdb": find_postgres()}, packages="postgresql"),
    "chromium": Service(
        programs=_programs(chromium=("chromium", "chromium-browser", "google-chrome")),
        packages="chromium",
    ),
    "aravis": Service(
        programs=_programs(**{"arv-fake-gv-camera": ("arv-fake-gv-camera-0.8",)}),
        packages="libaravis-0.8-0 aravis-tools",
    ),
    "systemd": Service(
        programs=_programs(**{"systemd-analyze": ("systemd-analyze",)}), packages="systemd"
    ),
    "podman": Service(
        programs=_programs(podman=("podman",), buildah=("buildah",), debootstrap=("debootstrap",)),
        packages="podman buildah debootstrap crun",
    ),
}


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "systemd: needs systemd's unit checker on this machine")


def _required() -> bool:
    return os.environ.get("QCNODE_REQUIRE_ALL", "") not in ("", "0")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker, service in SERVICES.items():
        if item.get_closest_marker(marker) and (missing := service.missing()):
            pytest.skip(
                f"{marker} is missing here ({', '.join(missing)}): apt-get install"
                f" {service.packages}"
            )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    needs = [marker for marker in SERVICES if item.get_closest_marker(marker)]
    if needs and report.skipped and not hasattr(report, "wasxfail") and _required():
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} needs {', '.join(needs)} and may not be skipped: {reason}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    if report.skipped and _required():  # A whole module skipped would take its tests unseen.
        report.outcome = "failed"
        report.longrepr = f"{report.nodeid} may not be skipped as a whole: {report.longrepr}"
    return report


@pytest.fixture(scope="session")
def program() -> Callable[[str], Path]:
    """Find an installed program, the ones in `sbin` folders included, or skip."""

    def find(name: str) -> Path:
        found = find_program(name)
        if found is None:
            pytest.skip(f"{name} is missing here")
        return found

    return find


@pytest.fixture
def free_port() -> Callable[[], int]:
    """Hand out loopback ports that nobody listens on, no two alike in one test."""
    given: set[int] = set()

    def take() -> int:
        while True:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port: int = probe.getsockname()[1]
            if port not in given:
                given.add(port)
                return port

    return take


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Return the folder of recorded data sets: `QCNODE_DATA`, or the checkout's neighbour."""
    folder = Path(os.environ.get("QCNODE_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no data sets at {folder}: set QCNODE_DATA to the folder that holds them")
    return folder


@pytest.fixture(scope="session")
def repository() -> Path:
    """Return the root of the checkout."""
    return ROOT
