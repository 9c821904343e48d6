"""Builds what a node sees with, from its settings: camera, models and certificate."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import structlog

from qcnode.audit import AuditDraw
from qcnode.books.seals import PublicKey
from qcnode.cameras.aravis import check_library
from qcnode.cameras.aravis_child import SOFTWARE
from qcnode.cameras.folder import FolderCamera, FolderPictures
from qcnode.cameras.genicam import GenicamCamera
from qcnode.cameras.opencv import OpenCvCamera
from qcnode.cameras.virtual import RenderedCamera, RenderedParts
from qcnode.certificate import AuditRules, LiveCertificate
from qcnode.drift import DriftWatch
from qcnode.errors import (
    PictureError,
    SealError,
    SettingsError,
)
from qcnode.lines.virtual import UnknownParts
from qcnode.lines.world import last_trigger_in
from qcnode.marks import Marks
from qcnode.panel.sources import InService
from qcnode.picture import decode_picture
from qcnode.runtime.releases import Releases
from qcnode.runtime.tuning import open_tuned
from qcnode.wiring.machine import jitter, now

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from qcnode.books.journal import Journal
    from qcnode.health import HealthBoard
    from qcnode.lines.virtual import PartSource
    from qcnode.manifest import ModelManifest
    from qcnode.ports import Camera
    from qcnode.runtime.onnx import OnnxModel
    from qcnode.settings import Settings


log = structlog.get_logger()

MODELS = "models"
"""The folder of the home with the node's own copies of its models."""
WORLD = "world.log"
"""The virtual line's own record, which the node never reads."""


Side: TypeAlias = "Callable[[], int | None]"
"""How fine the model in service looks, asked for each picture."""


def _rendered(
    settings: Settings, new_id: Callable[[], str], _side: Side
) -> tuple[Camera, PartSource]:
    parts = RenderedParts(seed=settings.line.seed, defect_share=settings.camera.defect_rate)
    return RenderedCamera(parts, name="rendered", now=now, new_id=new_id), parts


def _folder(settings: Settings, new_id: Callable[[], str], side: Side) -> tuple[Camera, PartSource]:
    pictures = FolderPictures(
        Path(_source(settings, "a folder")),
        # A restart begins the folder anew; the line's numbers go on.
        first_seq=last_trigger_in(settings.node.home / WORLD) + 1,
        shuffle_seed=settings.line.seed if settings.camera.shuffle else None,
    )
    return FolderCamera(pictures, name="folder", now=now, new_id=new_id, side=side), pictures


def _opencv(
    settings: Settings, new_id: Callable[[], str], _side: Side
) -> tuple[Camera, PartSource]:
    camera = OpenCvCamera(
        _source(settings, "a USB index, a video file or a URL"),
        name="opencv",
        timeout_s=settings.camera.timeout_ms / 1000,
        now=now,
        new_id=new_id,
    )
    return camera, UnknownParts()


def _gige(settings: Settings, new_id: Callable[[], str], _side: Side) -> tuple[Camera, PartSource]:
    features: tuple[tuple[str, str], ...] = ()
    trigger = SOFTWARE
    if settings.camera.features is not None:
        try:
            # PyYAML is an extra.
            from qcnode.cameras.features import read_features, trigger_of  # noqa: PLC0415
        except ImportError as error:
            raise SettingsError(
                f"camera.features needs {error.name}: pip install 'qcnode[modbus]'"
            ) from error
        features = read_features(settings.camera.features)
        trigger = trigger_of(features)
    address = _source(settings, "the camera's IP address, or its name as arv-tool lists it")
    check_library()
    camera = GenicamCamera(
        address,
        name="gige",
        timeout_s=settings.camera.timeout_ms / 1000,
        now=now,
        new_id=new_id,
        trigger=trigger,
        features=features,
    )
    return camera, UnknownParts()


CAMERAS = {"rendered": _rendered, "folder": _folder, "opencv": _opencv, "gige": _gige}


def _source(settings: Settings, wanted: str) -> str:
    if settings.camera.source is None:
        raise SettingsError(f"camera.source is missing: kind {settings.camera.kind} needs {wanted}")
    return settings.camera.source


def open_releases(settings: Settings) -> Releases:
    """Open the node's models; each is run on the engine that was measured for it."""
    return Releases(
        settings.node.home / MODELS,
        trusted=[_trusted_key(text) for text in settings.model.trusted_keys],
        load=lambda folder: open_tuned(
            folder,
            settings.node.home / MODELS,
            threads=settings.model.threads,
            warn=lambda words: log.warning("a slower engine is used", why=words),
        ),
        now=now,
        threads=settings.model.threads,
    )


def _trusted_key(text: str) -> PublicKey:
    try:
        return PublicKey.parse(text)
    except SealError as error:
        raise SettingsError(f"model.trusted_keys: {error}") from error


def certificate_of(
    settings: Settings,
    model: OnnxModel,
    journal: Journal,
    *,
    health: HealthBoard,
    new_id: Callable[[], str],
) -> LiveCertificate:
    """Build what watches over the limits of a model while it judges."""
    drift, audit, manifest = settings.drift, settings.audit, model.manifest

    def new_watch() -> DriftWatch:
        return DriftWatch(
            manifest.good_scores,
            manifest.pictures,
            defects_most=drift.defects_most,
            false_alarm=drift.false_alarm,
            coin=jitter,
        )

    return LiveCertificate(
        model=model.version,
        earned=model.limits,
        good=manifest.good_scores,
        new_watch=new_watch if drift.enabled else None,
        rules=AuditRules(draw=AuditDraw(secrets.token_bytes(32), audit.share), target=audit.target)
        if audit.enabled
        else None,
        count_audit=lambda: journal.audit(model.version),
        last=journal.certificate(model.version),
        health=health,
        now=now,
        new_id=new_id,
        side=model.side,
    )


class Judging:
    """The model in service, as the panel tells it; a change of models moves it on."""

    def __init__(self, manifest: ModelManifest) -> None:
        self.follow(manifest)

    def follow(self, manifest: ModelManifest) -> None:
        """Tell of another model from now on."""
        self._told = InService(
            model=manifest.version,
            guarantee="\n".join(promises_of(manifest)),
            limits=manifest.limits,
        )

    def in_service(self) -> InService:
        """Return what the panel says of it."""
        return self._told


def reference_of(settings: Settings, manifest: ModelManifest) -> bytes | None:
    """Return the picture of the best good part in the release, if it holds one."""
    good = [frame for frame in manifest.golden if frame.label == "good"]
    if not good:
        return None
    best = min(good, key=lambda frame: frame.score)
    # The release was verified when it was loaded; a picture that went since is none.
    try:
        return (settings.model.dir / best.path).read_bytes()
    except OSError:
        return None


class PartMarks:
    """Whether parts bear what good ones do not, by what the model in service knows of them."""

    def __init__(self, manifest: ModelManifest) -> None:
        self._marks: Marks | None = None
        self.follow(manifest)

    def follow(self, manifest: ModelManifest) -> None:
        """Go by this model from now on; a norm that nobody can read is none."""
        norm = manifest.marks
        self._marks = None
        if norm is None:
            return
        try:
            self._marks = Marks.decoded(
                norm.reference, [(row.side_px, row.limit, row.most) for row in norm.usual]
            )
        except ValueError as error:
            log.warning("agents let no part go", model=manifest.version, why=str(error))

    def suspect(self, picture: bytes) -> str | None:
        """Say what on a kept picture may be there to persuade; None is nothing."""
        if self._marks is None:
            return "what good parts bear was not learnt with this model"
        try:
            pixels = decode_picture(picture, name="the picture of a part")
        except PictureError as error:
            return str(error)
        if self._marks.foreign(pixels):
            return "there are marks on this part that good parts do not have"
        return None


def promises_of(manifest: ModelManifest) -> Iterator[str]:
    """Say in lines what is guaranteed of a model, and what is not, and why."""
    yield "Of the model alone, for parts like those it was calibrated on:"
    for promise in (manifest.reject_from, manifest.accept_below):
        if promise.guarantee is None:
            yield promise.reason
        else:
            likely = "" if promise.alpha_95 is None else f", 95 %: {promise.alpha_95:.3f}"
            yield f"{promise.guarantee} (n = {promise.n}{likely})"
