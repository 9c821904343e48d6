"""Ledger batches to the billing server over HTTP: the batch out, its receipt in the answer."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import httpx2

from qcnode.errors import LineUnavailableError, SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable

    from qcnode.money import Receipt

CONTENT_TYPE: Final = "application/cloudevents+json"
_RECEIPT_BYTES_MAX: Final = 256 * 1024
_FIX_BY_STATUS: Final = {
    401: "it does not know our token: set QCNODE_BILLING_TOKEN to the one it gave this node",
    403: "our token is not for this tenant and node: set QCNODE_BILLING_TOKEN and the node's name",
    404: "there is no billing server at this address: set {key}",
    413: "it takes no batch of this size: raise its limit to 512 KiB",
    400: "it cannot read our batch: are both of one version?",
    422: "it cannot read our batch: are both of one version?",
}


class HttpChannel:
    """Posts each batch to `{url}/v1/batches`; `client` may lead to a server in this process.

    Several batches may be on their way at once. `read_receipt` reads the server's answer and
    raises `ValueError` when it is none; `key` is the setting that the address stands in.
    """

    name = "http"

    def __init__(
        self,
        client: httpx2.AsyncClient,
        url: str,
        *,
        token: str | None,
        read_receipt: Callable[[bytes], Receipt],
        timeout_s: float = 10.0,
        key: str = "metering.url",
    ) -> None:
        try:
            address = httpx2.URL(url)
        except httpx2.InvalidURL as error:
            raise SettingsError(f"{key} = {url!r}: no address ({error})") from error
        if address.scheme not in ("http", "https") or not address.host:
            raise SettingsError(f"{key} = {url!r}: start it with https:// and a host")
        self._client = client
        self._key = key
        self._url = f"{url.rstrip('/')}/v1/batches"
        self._headers = {"Content-Type": CONTENT_TYPE, "Accept-Encoding": "identity"}
        if token is not None:
            self._headers["Authorization"] = f"Bearer {token}"
        self._read_receipt = read_receipt
        self._timeout_s = timeout_s

    async def send(self, batch: bytes) -> Receipt:
        """Deliver one CloudEvent and return the server's receipt for it."""
        try:
            async with asyncio.timeout(self._timeout_s):
                status, answer = await self._post(batch)
        except TimeoutError as error:
            raise LineUnavailableError(
                f"{self._url} gave no receipt in {self._timeout_s:g} s: is the billing server busy?"
            ) from error
        except (httpx2.HTTPError, httpx2.StreamError) as error:
            raise LineUnavailableError(
                f"{self._url} cannot be reached ({type(error).__name__} {error}):"
                " is the billing server running?"
            ) from error
        if status != httpx2.codes.OK:
            fix = _FIX_BY_STATUS.get(status, "look at the billing server's log").format(
                key=self._key
            )
            raise LineUnavailableError(f"{self._url} answered HTTP {status}: {fix}")
        try:
            return self._read_receipt(answer)
        except ValueError as error:
            raise LineUnavailableError(
                f"{self._url} answered what is no receipt ({error}): set {self._key}"
            ) from error

    async def close(self) -> None:
        """Leave; closing twice is harmless."""
        await self._client.aclose()

    async def _post(self, batch: bytes) -> tuple[int, bytes]:
        async with self._client.stream(
            "POST",
            self._url,
            content=batch,
            headers=self._headers,
            follow_redirects=False,
            timeout=None,  # One for all of it is set around this; the client's own is shorter.
        ) as response:
            answer = bytearray()
            async for chunk in response.aiter_bytes():
                answer += chunk
                if len(answer) > _RECEIPT_BYTES_MAX:
                    raise LineUnavailableError(
                        f"{self._url} answered more than a receipt: set {self._key}"
                    )
            return response.status_code, bytes(answer)
