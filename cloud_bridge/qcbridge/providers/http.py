"""What all providers over HTTP have in common: one request per call, never repeated here.

A vendor's module says only how its protocol is spoken: where questions go, how the key
is shown, what the body is, and where the words of an answer stand. Everything else is
done once, here. A picture leaves only to the address that was set, encrypted unless that
is this machine. A count of tokens that does not add up is no count: the metering
transport then keeps the attempt at its worst case.
"""

from __future__ import annotations

import ipaddress
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal

import httpx2

from qcbridge.evidence import image_tokens
from qcbridge.providers.base import Completion, worst_usage
from qcbridge.transport import ATTEMPT
from qcnode.errors import ProviderRefusedError, ProviderUnavailableError, SettingsError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic import SecretStr

    from qcbridge.prompts import Prompt
    from qcbridge.providers.usage import UsageShape
    from qcbridge.transport import Metered
    from qcnode.money import TokenUsage

AnswerFormat = Literal["json_schema", "json_object", "text"]
"""How firmly an endpoint can be held to the answer's form; what comes is checked all the same."""

FIX_BY_STATUS: Final = {
    401: "check QCNODE_PROVIDER_API_KEY, or its api_key_file",
    402: "the provider's account has no balance",
    403: "the key may not use this model; check QCNODE_PROVIDER_API_KEY, or its api_key_file",
    404: "check the provider's base_url and model",
    413: "lower provider.image_side_max_px",
}
TRY_AGAIN: Final = frozenset({408, 425, 429})
UNREADABLE: Final = (ValueError, LookupError, TypeError, AttributeError, RecursionError)
"""What looking something up raises where it does not stand."""


class HttpProvider(ABC):
    """A model behind `base_url`, asked with at most one picture and a closed answer schema."""

    shape: ClassVar[UsageShape]
    """Where the protocol's answers say what was used."""

    version: ClassVar[str] = "/v1"
    """What stands between host and path where `base_url` does not say."""

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
        answer_format: AnswerFormat = "json_schema",
        max_tokens_key: str = "max_tokens",
    ) -> None:
        self.name = name
        self.model = model
        self.url = endpoint(base_url, version=self.version, path=self.path(model))
        self.output_tokens_max = output_tokens_max
        self.answer_format = answer_format
        self.max_tokens_key = max_tokens_key
        self._image_formula = image_formula
        shown = None if api_key is None else api_key.get_secret_value()
        self._client = httpx2.AsyncClient(
            transport=transport,
            headers={"User-Agent": "qcnode", **self.headers(shown)},
            timeout=timeout_s,
            follow_redirects=False,
            trust_env=False,  # A .netrc must not choose which key goes where.
        )

    # -- what a protocol says for itself -------------------------------------------------

    @abstractmethod
    def path(self, model: str) -> str:
        """Return where questions go, below `version`."""

    def headers(self, key: str | None) -> Mapping[str, str]:
        """Return what every question bears in its head, the key among it where there is one."""
        return {} if key is None else {"Authorization": f"Bearer {key}"}

    @abstractmethod
    def body(self, prompt: Prompt) -> dict[str, Any]:
        """Return the question as this protocol writes it; `prompt.jpeg` may be empty."""

    @abstractmethod
    def words(self, answer: Any) -> str | None:
        """Return the words of an answer, None where there are none.

        Whatever its looking up raises means that this is no answer of the protocol. Raises
        `ProviderRefusedError` for an answer that was cut off or refused.
        """

    # -- what is the same for all --------------------------------------------------------

    def worst(self, *, text_bytes: int, width: int, height: int) -> TokenUsage:
        """Return the most one request can use, with this much text and this picture."""
        return worst_usage(
            text_bytes=text_bytes,
            image_tokens=image_tokens(width, height, formula=self._image_formula),
            output_tokens_max=self.output_tokens_max,
        )

    async def complete(self, prompt: Prompt, metered: Metered) -> Completion:
        """Send one request and read its answer."""
        try:
            body = self.body(prompt)
        except UNREADABLE as error:
            raise ProviderRefusedError(
                f"{self.name}: its module fails to ask: {error!r}"
            ) from error
        try:
            response = await self._client.post(self.url, json=body, extensions={ATTEMPT: metered})
        except httpx2.HTTPError as error:
            raise ProviderUnavailableError(
                f"{self.name} at {self.url} gave no whole answer: {type(error).__name__}"
            ) from error
        if response.status_code != httpx2.codes.OK:
            raise self._status_error(response)
        return self._completion(response)

    async def close(self) -> None:
        """Let go of connections; closing twice is harmless."""
        await self._client.aclose()

    def cut_off(self) -> ProviderRefusedError:
        """Return the error for an answer that stops where its tokens were used up."""
        return ProviderRefusedError(
            f"{self.name} stopped after {self.output_tokens_max} tokens;"
            " raise provider.output_tokens_max"
        )

    def refused(self) -> ProviderRefusedError:
        """Return the error for a model that will not answer this."""
        return ProviderRefusedError(f"{self.name} will not say; a person rules")

    def _status_error(self, response: httpx2.Response) -> Exception:
        status = response.status_code
        said = f"{self.name} at {self.url} answered HTTP {status}"
        if status in TRY_AGAIN or status >= httpx2.codes.INTERNAL_SERVER_ERROR:
            return ProviderUnavailableError(said)
        # The body is the provider's own text and may repeat the key: it is not passed on.
        fix = FIX_BY_STATUS.get(status, "check the provider's base_url, model and settings")
        return ProviderRefusedError(f"{said}: {fix}")

    def _completion(self, response: httpx2.Response) -> Completion:
        try:
            answer = response.json()
            said = self.words(answer)
        except UNREADABLE as error:
            raise ProviderRefusedError(
                f"{self.name} at {self.url} answered what is no chat completion;"
                " check the provider's base_url"
            ) from error
        if not isinstance(said, str):
            raise ProviderRefusedError(f"{self.name} answered without words; a person rules")
        try:
            usage = self.shape.read(answer.get(self.shape.block))
        except UNREADABLE:
            usage = None
        return Completion(text=said, usage=usage)


def endpoint(base_url: str, *, version: str, path: str) -> str:
    """Return the whole address; `base_url` may stop before or after its version or path.

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
            " and put the key in QCNODE_PROVIDER_API_KEY or an api_key_file"
        )
    if url.scheme not in {"http", "https"} or not url.host:
        raise SettingsError(f"provider.base_url = {base_url!r}: start it with https:// and a host")
    if url.scheme == "http" and not is_loopback(url.host):
        raise SettingsError(
            f"provider.base_url = {base_url!r}: pictures and keys leave this machine only"
            " encrypted; use https://"
        )
    given = url.path.rstrip("/")
    if given.endswith(path):
        return str(url.copy_with(path=given))
    return str(url.copy_with(path=f"{given or version}{path}"))


def is_loopback(host: str) -> bool:
    """Say whether an address is this machine's own, so that what goes there never leaves it."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
