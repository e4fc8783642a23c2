"""Who may talk to the studio, and which files it touches.

The address of the page holds a random token as the first part of its path, so whoever lacks the address gets nothing; there
is no cookie that another page could make a browser send. The headers Host and Origin must name this server, so a page of
another site, also one whose name points to this machine, gets nothing either.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from pathlib import Path
from typing import Any

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

BODY_LIMIT = 2**20
"""Bytes that a request may carry."""

UPLOAD_LIMIT = 4 * 2**30
"""Bytes that a video may have that is sent to ``UPLOAD_PATH``."""

UPLOAD_PATH = "/api/uploads"

HEADERS = {
    "content-security-policy": "default-src 'self'; img-src 'self' blob: data:; style-src 'self' 'unsafe-inline'; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}
"""Sent with every answer: no script, style or picture from elsewhere, no address to elsewhere."""


class OutsideFolderError(ValueError):
    """A path that is not in the working folder."""


def new_token() -> str:
    return secrets.token_urlsafe(24)


def confined(folder: Path, path: str) -> Path:
    """``path``, relative to ``folder``, with links followed; OutsideFolderError where it leads out of the folder."""
    resolved = (folder / path).resolve()
    if not resolved.is_relative_to(folder.resolve()):
        raise OutsideFolderError(
            f"expected a path inside the working folder, got '{path}'; start the studio with --folder to work elsewhere"
        )
    return resolved


class Gate:
    """An ASGI application that hands on what may pass, with the token taken off the path.

    Args:
        app: receives the requests.
        token: first part of the path.
        hosts: values of the header Host that name this server.
    """

    def __init__(self, app: Callable[..., Awaitable[None]], token: str, hosts: Iterable[str]) -> None:
        self._app = app
        self._prefix = f"/{token}"
        self._hosts = frozenset(host.lower() for host in hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        refusal = self._refusal(scope)
        if refusal is not None:
            await _answer(send, *refusal)
            return
        path = scope["path"][len(self._prefix) :]
        inner = {**scope, "path": path, "raw_path": path.encode(), "root_path": ""}
        await self._app(inner, receive, _with_headers(send))

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        """Status and reason, None for a request that may pass."""
        headers = {key.decode("latin-1").lower(): value.decode("latin-1") for key, value in scope["headers"]}
        if scope["type"] != "http":
            return 403, "only http is spoken here"
        if headers.get("host", "").lower() not in self._hosts:
            return 403, "the request names another host"
        origin = headers.get("origin")
        if origin is not None and origin.lower() not in {f"http://{host}" for host in self._hosts}:
            return 403, "the request comes from another page"
        start = scope["path"][: len(self._prefix) + 1].encode()
        if not hmac.compare_digest(start, f"{self._prefix}/".encode()):
            return 403, "the address lacks the token that the studio printed when it was started"
        length = headers.get("content-length", "0")
        limit = UPLOAD_LIMIT if scope["path"] == f"{self._prefix}{UPLOAD_PATH}" else BODY_LIMIT
        if "transfer-encoding" in headers or not length.isdigit() or int(length) > limit:
            return 413, f"a request to this address may carry {limit >> 20} MiB, and says how many bytes it carries"
        return None


def _with_headers(send: Send) -> Send:
    async def send_with_headers(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            added = [(key.encode(), value.encode()) for key, value in HEADERS.items()]
            message = {**message, "headers": [*message.get("headers", []), *added]}
        await send(message)

    return send_with_headers


async def _answer(send: Send, status: int, reason: str) -> None:
    body = f"{reason}\n".encode()
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
