"""Changing the model of a running line, as a person asks for it by a file in the node's home.

`ask.json` is put there whole by `qcnode model`; this thread takes it away, does what it
says, and leaves what came of it in `status.json`. Whoever may write in the home may ask:
there is no other way in, no port and no password, and it works without panel or network.

A newcomer is copied, checked, tried out in a child process, loaded beside the model in
service, warmed on its own golden frames, asked about those of the old one, and only then
offered to the `Slot`. Each step and its reason go to the log of `Releases`.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import structlog
from pydantic import ConfigDict, TypeAdapter, ValidationError

from qcnode.domain import Frame, Verdict
from qcnode.errors import ModelError, PictureError, QcError
from qcnode.manifest import UNLABELLED
from qcnode.picture import decode_picture, read_bytes
from qcnode.policy import judge
from qcnode.runtime.releases import IN_SERVICE
from qcnode.runtime.swap import Stage

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Callable
    from datetime import datetime

    from qcnode.health import HealthBoard
    from qcnode.manifest import ModelManifest
    from qcnode.runtime.onnx import OnnxModel
    from qcnode.runtime.releases import Kept, Releases
    from qcnode.runtime.slot import Slot, Step

log = structlog.get_logger()

ASK_NAME: Final = "ask.json"
STATUS_NAME: Final = "status.json"
COMPONENT: Final = "model change"
GOOD: Final = "good"
_ASK_BYTES_MAX: Final = 16 * 1024
_STEPS_SHOWN: Final = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """What a person asks for; `older` allows an older release, this once."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    do: Literal["load", "rollback"]
    who: str
    folder: str = ""
    older: bool = False


_ASK: Final = TypeAdapter(Ask)


def ask(folder: Path, wish: Ask) -> None:
    """Leave `wish` for the node whose models are in `folder`; raises `ModelError`."""
    path = folder / ASK_NAME
    unfinished = path.with_name(f".{ASK_NAME}.{os.getpid()}")
    try:
        unfinished.write_bytes(_ASK.dump_json(wish))
        os.link(unfinished, path)  # Fails where one waits already: no wish is overwritten.
    except FileExistsError as error:
        raise ModelError(f"{path}: another wish waits to be taken: is the node running?") from error
    except OSError as error:
        raise ModelError(
            f"{path}: cannot be left there ({error.strerror}): name the settings of a node that has"
            " run, as a user who may write in its home"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            unfinished.unlink()


class ModelChanges:
    """The thread that changes models. Start it with the node and stop it with the node.

    `steps` is where the slot leaves what happens: the line's thread, too, so nothing is done
    there and then.
    """

    def __init__(
        self,
        folder: Path,
        *,
        releases: Releases,
        slot: Slot,
        current: tuple[Kept, OnnxModel],
        health: HealthBoard,
        now: Callable[[], datetime],
        steps: deque[Step],
        took_over: Callable[[OnnxModel], None],
        patience_s: float,
        look_every_s: float = 0.2,
    ) -> None:
        self._folder = folder
        self._releases = releases
        self._slot = slot
        self._kept, self._model = current
        self._newcomer: tuple[Kept, OnnxModel] | None = None
        self._health = health
        self._now = now
        self._took_over = took_over
        self._patience_s = patience_s
        self._look_every_s = look_every_s
        self._steps = steps
        self._refused = ""
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="models", daemon=True)

    def start(self) -> None:
        """Begin to look for wishes."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread soon; what it is trying out is given up with the process."""
        self._stopping.set()

    def join(self, timeout_s: float | None = None) -> bool:
        """Wait for the thread and say whether it has ended; one never started has."""
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            self._look_until_stopped()
        except Exception as error:
            # The top of this thread: the line goes on with the model it has.
            log.exception("models cannot be changed until the node is started again")
            self._health.report(COMPONENT, ok=False, words=f"models cannot be changed: {error}")

    def _look_until_stopped(self) -> None:
        self._write_status()
        shown = ""
        while not self._stopping.wait(self._look_every_s):
            self.look()
            said = json.dumps(self.status(), sort_keys=True)
            if said != shown:
                self._write_status()
                shown = said

    def look(self) -> None:
        """Take what the slot told and what a person asks for; raises nothing."""
        self._slot.interrupt_after(self._patience_s)
        while self._steps:
            self._note(self._steps.popleft())
        wish = self._take_wish()
        if wish is None:
            return
        try:
            if wish.do == "load":
                self._load(wish)
            else:
                self._roll_back(wish)
        except QcError as error:
            self._refuse(str(error))
            self._forget()

    # -- what a person asks for ------------------------------------------------------

    def _take_wish(self) -> Ask | None:
        path = self._folder / ASK_NAME
        try:
            handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                data = os.read(handle, _ASK_BYTES_MAX)
            finally:
                os.close(handle)
            path.unlink()
        except FileNotFoundError:
            return None
        except OSError as error:
            self._refuse(f"{path}: cannot be read and taken away ({error.strerror}): remove it")
            return None
        try:
            return _ASK.validate_json(data)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            self._refuse(f"{path}: {first['msg']}: ask with `qcnode model`")
            return None

    def _load(self, wish: Ask) -> None:
        if self._slot.progress() is not None:
            raise ModelError(
                f"{wish.folder}: another model is being taken in: wait, or `qcnode model rollback`"
            )
        kept = self._releases.keep(Path(wish.folder))
        if kept.sha256 == self._kept.sha256:
            raise ModelError(f"{kept.model}: this model is in service already")
        if not wish.older:
            self._releases.check_order(kept)
        elif kept.release < self._releases.newest(kept.name):
            self._releases.record("older release allowed", kept, f"by {wish.who}")
        self._health.report(COMPONENT, ok=True, words=f"{kept.model} is being tried out")
        self._write_status()
        model = self._releases.open(kept)
        self._check_golden_of_old(model)
        self._releases.record("asked for", kept, f"by {wish.who}")
        self._newcomer = kept, model
        self._slot.offer(model)

    def _roll_back(self, wish: Ask) -> None:
        if self._slot.send_back(f"called off by {wish.who}"):
            return
        kept = self._releases.before(self._kept.sha256)
        if kept is None:
            raise ModelError("no earlier model of this node is kept: load one from its folder")
        model = self._releases.open(kept)
        self._releases.record("rolled back", self._kept, f"by {wish.who}, to {kept.model}")
        self._newcomer = kept, model
        self._slot.put(model)

    def _check_golden_of_old(self, model: OnnxModel) -> None:
        """Refuse a model that contradicts the labels the old one gets right.

        These pictures are known to both sides before a single part is at stake.
        """
        for golden in self._model.manifest.golden:
            if golden.label == UNLABELLED:
                continue
            path = self._kept.folder / golden.path
            try:
                encoded = read_bytes(path)
                frame = Frame(
                    id=golden.path,
                    part_id=golden.path,
                    camera="golden",
                    name=str(path),
                    captured_at=self._now(),
                    pixels=decode_picture(encoded, name=str(path)),
                    encoded=encoded,
                )
                said = judge(model.predict(frame), model.limits)
                known = judge(self._model.predict(frame), self._model.limits)
            except (ModelError, PictureError) as error:
                raise ModelError(
                    f"{model.version}: cannot judge a golden frame of {self._model.version}"
                    f" ({error}): both must take the pictures of this line"
                ) from error
            wrong = Verdict.NOT_OK if golden.label == GOOD else Verdict.OK
            if said is wrong and known is not wrong:
                raise ModelError(
                    f"{model.version}: says {said.value} of {golden.path} of {self._model.version},"
                    f" which is labelled {golden.label}: not let in"
                )

    # -- what the slot tells -----------------------------------------------------------

    def _note(self, step: Step) -> None:
        newcomer = self._newcomer
        if newcomer is None or newcomer[1].version != step.model:
            return
        kept, model = newcomer
        took_over = step.taken and step.stage in (Stage.WATCHED, None)
        what = step.stage.value if step.stage is not None else IN_SERVICE
        if step.stage is None and not step.taken:
            what = "sent back"
        try:
            self._releases.record(what, kept, step.words)
        except ModelError as error:
            log.error("a change of models is not on record", why=str(error))  # noqa: TRY400
        ok = step.stage is not None or step.taken
        words = step.words if what == "sent back" else f"{what}: {step.words}"
        self._health.report(COMPONENT, ok=ok, words=f"{step.model}: {words}")
        if took_over:
            self._took_over(model)
        if step.stage is None:
            if step.taken:
                self._kept, self._model = kept, model
            else:
                self._took_over(self._model)
            self._newcomer = None
            self._forget()

    def _forget(self) -> None:
        """Keep the copies of what is in service, comes next or came before, and no other."""
        kept = [self._kept, self._releases.before(self._kept.sha256)]
        if self._newcomer is not None:
            kept.append(self._newcomer[0])
        self._releases.forget_others(*(one for one in kept if one is not None))

    def _refuse(self, words: str) -> None:
        if words != self._refused:
            log.warning("model refused", why=words)
            self._refused = words
        self._health.report(COMPONENT, ok=False, words=words)

    @property
    def manifest(self) -> ModelManifest:
        """What the model in service promises."""
        return self._model.manifest

    def roll_back(self, who: str) -> None:
        """Leave the wish for the model before, as anybody else would; raises `ModelError`."""
        ask(self._folder, Ask(do="rollback", who=who))

    def status(self) -> dict[str, Any]:
        """Return what is in service, how a change goes, and what happened before."""
        progress = self._slot.progress()
        said = {one.component: one for one in self._health.all()}.get(COMPONENT)
        return {
            "in_service": self._slot.version,
            "change": None if progress is None else asdict(progress),
            "last": None if said is None else {"ok": said.ok, "words": said.words},
            "steps": list(self._releases.steps()[-_STEPS_SHOWN:]),
        }

    def _write_status(self) -> None:
        path = self._folder / STATUS_NAME
        unfinished = path.with_name(f".{STATUS_NAME}")
        try:
            unfinished.write_text(json.dumps(self.status(), indent=1))
            unfinished.replace(path)
        except OSError as error:
            log.warning("the state of the models cannot be shown", why=str(error))
