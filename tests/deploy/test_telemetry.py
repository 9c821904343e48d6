"""Nothing leaves the line that is not on record, the libraries' own reports included."""

import os
import subprocess
import sys


def test_the_runtime_reports_to_nobody(tmp_path):
    """ONNX Runtime, left to itself, puts an id under HOME at import and sends reports."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("ORT_")}
    clean.pop("CI", None)  # There it keeps quiet of its own accord, which would prove nothing.

    subprocess.run(
        [sys.executable, "-c", "import qcnode.runtime.onnx"],
        env={**clean, "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")},
        check=True,
        timeout=60,
    )

    assert list(tmp_path.rglob("*")) == []
