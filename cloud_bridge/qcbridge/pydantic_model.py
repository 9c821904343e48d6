"""A model for pydantic-ai's agents, on the metering transport. Needs the extra `agents`.

Such an agent makes as many requests as it likes in one run. Each is an attempt of its own
with its worst case put aside before it is sent, so a run that the budget does not cover
ends where it does not. The client library repeats nothing. What its agents conclude is
theirs: nothing here rules on a part.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx2

from qcbridge.providers.base import worst_usage
from qcbridge.providers.usage import OPENAI_CHAT
from qcbridge.transport import ATTEMPT, Metered
from qcnode.errors import QcError, SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable

    from pydantic import SecretStr
    from pydantic_ai.models.openai import OpenAIChatModel

    from qcbridge.meter import Meter
    from qcbridge.transport import MeteringTransport
    from qcnode.money import Attempt


class Steps(httpx2.AsyncBaseTransport):
    """Gives each request of a run the attempt that `attempt` makes of its number, from 1.

    `image_tokens_max` is the most that the pictures in one request come to.
    """

    def __init__(
        self,
        inner: MeteringTransport,
        *,
        meter: Meter,
        attempt: Callable[[int], Attempt],
        output_tokens_max: int,
        image_tokens_max: int = 0,
        within_s: float = 60.0,
    ) -> None:
        self._inner = inner
        self._meter = meter
        self._attempt = attempt
        self._image_tokens_max = image_tokens_max
        self._within_s = within_s
        self.output_tokens_max = output_tokens_max
        self._taken = 0

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Put the worst case of this step aside, and send it."""
        body = await request.aread()
        self._taken += 1
        attempt = self._attempt(self._taken)
        worst = worst_usage(
            text_bytes=len(body),
            image_tokens=self._image_tokens_max,
            output_tokens_max=self.output_tokens_max,
        )
        request.extensions[ATTEMPT] = Metered(
            attempt=attempt, worst=worst, image_sha256=None, shape=OPENAI_CHAT, step=self._taken
        )
        async with self._meter.reserved(attempt, worst, within_s=self._within_s):
            return await self._inner.handle_async_request(request)

    async def aclose(self) -> None:
        """Let go of connections; closing twice is harmless."""
        await self._inner.aclose()


def metered_model(
    model: str, *, base_url: str, api_key: SecretStr | None, steps: Steps, timeout_s: float
) -> OpenAIChatModel:
    """Return a model whose every request goes through `steps`, at most once."""
    try:
        from openai import AsyncOpenAI  # noqa: PLC0415  # heavy, and of an extra
        from pydantic_ai.models.openai import OpenAIChatModel  # noqa: PLC0415
        from pydantic_ai.providers.openai import OpenAIProvider  # noqa: PLC0415
        from pydantic_ai.settings import ModelSettings  # noqa: PLC0415
    except ImportError as error:
        raise SettingsError(
            "agents of several steps need pydantic-ai: pip install 'qcnode[agents]'"
        ) from error
    client = AsyncOpenAI(
        base_url=base_url,
        api_key="none" if api_key is None else api_key.get_secret_value(),
        max_retries=0,
        timeout=timeout_s,
        http_client=httpx2.AsyncClient(transport=steps, timeout=timeout_s, trust_env=False),
    )
    return OpenAIChatModel(
        model,
        provider=OpenAIProvider(openai_client=client),
        settings=ModelSettings(max_tokens=steps.output_tokens_max),
    )


def cause(error: BaseException) -> QcError | None:
    """Return what of ours stopped a run, under the errors that the libraries put over it."""
    found: BaseException | None = error
    while found is not None and not isinstance(found, QcError):
        found = found.__cause__ or found.__context__
    return found
