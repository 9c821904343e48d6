"""Writing a release: the model, its golden frames and its manifest, all or nothing.

The folder appears under its name only when it is complete and has been loaded from disk
by the same code that will load it on the line.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from qcnode.errors import ModelError
from qcnode.manifest import FILE_NAME, ReleasedFile, digest, dump_manifest
from qcnode.runtime.onnx import OnnxModel

if TYPE_CHECKING:
    from collections.abc import Mapping

    from qcnode.manifest import ModelManifest


def list_files(contents: Mapping[str, bytes]) -> tuple[ReleasedFile, ...]:
    """Return what the manifest says of these files."""
    return tuple(
        ReleasedFile(path=path, sha256=digest(data), bytes=len(data))
        for path, data in sorted(contents.items())
    )


def write_release(out: Path, manifest: ModelManifest, contents: Mapping[str, bytes]) -> OnnxModel:
    """Put the release at `out`, replacing an older release there, and return it loaded."""
    check_target(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    except OSError as error:
        raise ModelError(f"{out}: cannot be written ({error.strerror}): choose another") from error
    try:
        for path, data in {**contents, FILE_NAME: dump_manifest(manifest)}.items():
            _write(made / path, data)
        made.chmod(0o755)
        OnnxModel(made)
        _put_in_place(made, out)
    except OSError as error:
        raise ModelError(f"{out}: cannot be written ({error.strerror}): choose another") from error
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return OnnxModel(out)


def check_target(out: Path) -> None:
    """Raise `ModelError` where a release would wipe out something else."""
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise ModelError(f"{out}: exists and is no folder: choose another --out")
    if out.is_dir() and any(out.iterdir()) and not (out / FILE_NAME).is_file():
        raise ModelError(f"{out}: holds other files and no model: choose another --out")


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _put_in_place(made: Path, out: Path) -> None:
    """Swap the folders: a rename over a folder that is not empty is not to be had."""
    old = made.with_name(made.name + "-old")
    if out.exists():
        out.rename(old)
    made.rename(out)
    shutil.rmtree(old, ignore_errors=True)
