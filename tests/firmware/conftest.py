"""The folder of device configurations to be broken, and the controllers' C++ to be run."""

import shutil
import subprocess
from pathlib import Path

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


@pytest.fixture(scope="session")
def compiled(repository, tmp_path_factory):
    """Compile a controller's program as strictly as can be; it answers lines with lines."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("g++ is missing here: apt-get install g++")
    flags = ["-std=c++11", "-O1", "-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Werror"]
    sanitised = [*flags, "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    include = repository / "firmware_configs" / "esphome" / "include"

    def build(name):
        program = tmp_path_factory.mktemp(name) / name
        source = Path(__file__).parent / f"{name}.cpp"
        subprocess.run(
            [compiler, *sanitised, "-I", include, source, "-o", program], check=True, timeout=300
        )

        def run(lines):
            done = subprocess.run(
                [program],
                input="\n".join(lines),
                capture_output=True,
                text=True,
                check=False,
                timeout=300,
            )
            assert done.returncode == 0, done.stderr
            # What ends in an empty line keeps it.
            return done.stdout.split("\n")[:-1]

        return run

    return build
