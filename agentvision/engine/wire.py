"""The HTTP side of one inference server: a URL or a Unix socket, a key, and a reply or the reason why there is none.

What a status means is its caller's to say; here only a server that does not answer is an error (`EngineLost`). All of it
runs on the network's loop (`chat.network`), whatever loop a caller has.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult, urlsplit

import httpx

from agentvision.engine.types import EngineError, EngineLost
from agentvision.errors import first_line

_KEEPALIVE_S = 2.0
"""Under the five seconds after which vLLM's server closes an idle connection, so that none is used as it closes."""
_CONNECT_S = 10.0


@dataclass(frozen=True, slots=True)
class Reply:
    """A server's answer: its status and its body as JSON (None where there is none)."""

    status: int
    body: Any

    @property
    def problem(self) -> str:
        """What the server says went wrong, in a line."""
        body = self.body
        error = body.get("error", body.get("detail")) if isinstance(body, dict) else body
        message = error.get("message") if isinstance(error, dict) else error
        return f"status {self.status}" + (f": {' '.join(str(message).split())[:500]}" if message else "")


def address_problem(url: str) -> str | None:
    """Why this is no address of an inference server, or None; a password in it is not told."""
    try:
        parts = urlsplit(url)
        if parts.username or parts.password:
            return (
                f"the address of {parts.hostname!r} holds a password; give the key by itself, where it is not logged "
                "(policy.options.api_key_env names its variable)"
            )
        known = _is_address(parts)
    except ValueError:  # brackets of which one is missing
        known = False
    if known:
        return None
    return f"{url!r} is no inference server's address: write http://HOST:PORT, or unix:///PATH for a Unix socket"


def _is_address(parts: SplitResult) -> bool:
    if parts.scheme == "unix":
        return bool(parts.path)
    try:
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number, or too large
        return False


class Wire:
    """`url` is `http://host:port`, `https://…`, or `unix:///path/of/a/socket`; a trailing `/v1` is left out."""

    def __init__(self, url: str, *, api_key: str | None = None) -> None:
        if problem := address_problem(url):
            raise EngineError(problem)
        parts = urlsplit(url)
        self.url = url.rstrip("/").removesuffix("/v1").rstrip("/")
        socket = parts.path if parts.scheme == "unix" else None
        port = parts.port or (443 if parts.scheme == "https" else 80)
        self._address = None if socket else (parts.hostname, port)
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=_KEEPALIVE_S)
        # Proxies of the environment are for the outside world, and an inference server is not there.
        self._client = httpx.AsyncClient(
            base_url="http://server" if socket else self.url,
            headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
            transport=httpx.AsyncHTTPTransport(uds=socket, limits=limits, trust_env=False),
            trust_env=False,
        )

    def __repr__(self) -> str:
        return f"Wire({self.url!r})"

    async def call(
        self,
        method: str,
        path: str,
        *,
        timeout_s: float,
        body: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        """Ask once. Raises `EngineLost` when no whole answer comes within `timeout_s`."""
        content = None if body is None else json.dumps(body, separators=(",", ":")).encode()
        types = {} if content is None else {"Content-Type": "application/json"}
        # The time to connect is bounded by itself: a host that is gone swallows packets.
        timeout = httpx.Timeout(None, connect=_CONNECT_S)
        try:
            async with asyncio.timeout(timeout_s):
                response = await self._client.request(
                    method, path, content=content, headers={**types, **(headers or {})}, timeout=timeout
                )
        except (TimeoutError, httpx.TimeoutException):
            raise EngineLost(f"{self.url} did not answer {path} within {timeout_s:g} s") from None
        except (httpx.HTTPError, OSError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and not self._client.is_closed:  # httpx has no type for a closed client
                raise
            raise EngineLost(f"{self.url} cannot be asked: {type(error).__name__}: {first_line(error)}") from None
        try:
            return Reply(response.status_code, json.loads(response.content) if response.content else None)
        except ValueError:
            return Reply(response.status_code, response.text[:500])

    async def local_host(self) -> str:
        """This machine's address on its way to the server. Raises `EngineLost` when there is no way."""
        if self._address is None:
            return "127.0.0.1"
        try:
            async with asyncio.timeout(_CONNECT_S):
                _, writer = await asyncio.open_connection(*self._address)
        except (OSError, TimeoutError) as error:
            raise EngineLost(f"{self.url} cannot be reached: {type(error).__name__}: {first_line(error)}") from None
        try:
            return writer.get_extra_info("sockname")[0]
        finally:
            writer.close()

    async def close(self) -> None:
        await self._client.aclose()
