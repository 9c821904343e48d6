"""Any endpoint that speaks OpenAI's chat-completions protocol, over the metering transport.

One request per call, never repeated here. A picture leaves only to the address that was
set, encrypted unless that is this machine. A count of tokens that does not add up is no
count: the transport then keeps the attempt at its worst case.
"""

from __future__ import annotations

import base64
import ipaddress
from typing import TYPE_CHECKING, Any, Final

import httpx2

from qcbridge.evidence import image_tokens
from qcbridge.providers.base import Completion, worst_usage
from qcbridge.providers.usage import OPENAI_CHAT, openai_usage
from qcbridge.transport import ATTEMPT
from qcnode.errors import ProviderRefusedError, ProviderUnavailableError, SettingsError

if TYPE_CHECKING:
    from pydantic import SecretStr

    from qcbridge.prompts import Prompt
    from qcbridge.transport import Metered
    from qcnode.money import TokenUsage

_FIX_BY_STATUS: Final = {
    401: "check QCNODE_PROVIDER_API_KEY",
    402: "the provider's account has no balance",
    403: "the key may not use this model; check QCNODE_PROVIDER_API_KEY",
    404: "check the provider's base_url and model",
    413: "lower provider.image_side_max_px",
}
_TRY_AGAIN: Final = frozenset({408, 425, 429})


class OpenAIChatProvider:
    """A model behind `base_url`, asked with one picture and a closed answer schema."""

    shape = OPENAI_CHAT

    def __init__(
        self,
        *,
        name: str,
        model: str,
        base_url: str,
        api_key: SecretStr | None,
        transport: httpx2.AsyncBaseTransport,
        timeout_s: float,
        output_tokens_max: int,
        image_formula: str = "patch28",
    ) -> None:
        self.name = name
        self.model = model
        self._url = completions_url(base_url)
        self._output_tokens_max = output_tokens_max
        self._image_formula = image_formula
        headers = {"User-Agent": "qcnode"}
        if api_key is not None:
            headers["Authorization"] = f"Bearer {api_key.get_secret_value()}"
        self._client = httpx2.AsyncClient(
            transport=transport,
            headers=headers,
            timeout=timeout_s,
            follow_redirects=False,
            trust_env=False,  # A .netrc must not choose which key goes where.
        )

    def worst(self, *, text_bytes: int, width: int, height: int) -> TokenUsage:
        """Return the most one request can use, with this much text and this picture."""
        return worst_usage(
            text_bytes=text_bytes,
            image_tokens=image_tokens(width, height, formula=self._image_formula),
            output_tokens_max=self._output_tokens_max,
        )

    async def complete(self, prompt: Prompt, metered: Metered) -> Completion:
        """Send one request and read its answer."""
        try:
            response = await self._client.post(
                self._url,
                json=self._body(prompt),
                extensions={ATTEMPT: metered},
            )
        except httpx2.HTTPError as error:
            raise ProviderUnavailableError(
                f"{self.name} at {self._url} gave no whole answer: {type(error).__name__}"
            ) from error
        if response.status_code != httpx2.codes.OK:
            raise self._status_error(response)
        return self._completion(response)

    async def close(self) -> None:
        """Let go of connections; closing twice is harmless."""
        await self._client.aclose()

    def _body(self, prompt: Prompt) -> dict[str, Any]:
        picture = base64.b64encode(prompt.jpeg).decode()
        return {
            "model": self.model,
            "messages": [
                {"role": "system", "content": prompt.system},
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": prompt.user},
                        {
                            "type": "image_url",
                            "image_url": {"url": f"data:image/jpeg;base64,{picture}"},
                        },
                    ],
                },
            ],
            "max_tokens": self._output_tokens_max,
            "stream": False,  # A stream may end before it says what was used.
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "ruling", "strict": True, "schema": prompt.schema},
            },
        }

    def _status_error(self, response: httpx2.Response) -> Exception:
        status = response.status_code
        said = f"{self.name} at {self._url} answered HTTP {status}"
        if status in _TRY_AGAIN or status >= httpx2.codes.INTERNAL_SERVER_ERROR:
            return ProviderUnavailableError(said)
        # The body is the provider's own text and may repeat the key: it is not passed on.
        fix = _FIX_BY_STATUS.get(status, "check the provider's base_url, model and settings")
        return ProviderRefusedError(f"{said}: {fix}")

    def _completion(self, response: httpx2.Response) -> Completion:
        try:
            answer = response.json()
            choice = answer["choices"][0]
            text = choice["message"]["content"]
            finish = choice.get("finish_reason")
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise ProviderRefusedError(
                f"{self.name} at {self._url} answered what is no chat completion;"
                " check the provider's base_url"
            ) from error
        if finish == "length":
            raise ProviderRefusedError(
                f"{self.name} stopped after {self._output_tokens_max} tokens;"
                " raise provider.output_tokens_max"
            )
        if not isinstance(text, str):
            raise ProviderRefusedError(f"{self.name} answered without words; a person rules")
        try:
            usage = openai_usage(answer.get("usage"))
        except ValueError:
            usage = None
        return Completion(text=text, usage=usage)


def completions_url(base_url: str) -> str:
    """Return where completions are asked for; `base_url` may stop before or after its version.

    Raises `SettingsError` for an address a picture must not be sent to.
    """
    try:
        url = httpx2.URL(base_url)
    except httpx2.InvalidURL as error:
        raise SettingsError(f"provider.base_url = {base_url!r}: no address ({error})") from error
    if url.userinfo or url.query or url.fragment:
        # Not repeated in the message: what stands there may be a secret.
        raise SettingsError(
            "provider.base_url holds a user, a query or a fragment; leave it host and path"
            " and put the key in QCNODE_PROVIDER_API_KEY"
        )
    if url.scheme not in {"http", "https"} or not url.host:
        raise SettingsError(f"provider.base_url = {base_url!r}: start it with https:// and a host")
    if url.scheme == "http" and not _is_loopback(url.host):
        raise SettingsError(
            f"provider.base_url = {base_url!r}: pictures and keys leave this machine only"
            " encrypted; use https://"
        )
    path = url.path.rstrip("/")
    if path.endswith("/chat/completions"):
        return str(url.copy_with(path=path))
    return str(url.copy_with(path=f"{path or '/v1'}/chat/completions"))


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
