"""What is answered over HTTP: the page, what stands behind it, and predictions, to nobody but whom the page is for."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from amber2_core.devices import is_out_of_memory, memory_in_words
from amber2_core.errors import Amber2Error

from .table import Row, line_of
from .turns import EndedError, Order, Turns
from .units import Windows
from .uploads import Limits, RefusedError, Upload, asked_of, check_head, named, received, unnamed_file, upload_of

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

HERE = Path(__file__).parent
_FILES = {
    "/": ("page.html", "text/html"),
    "/page.js": ("page.js", "text/javascript"),
    "/page.css": ("page.css", "text/css"),
}
_LINES = "application/x-ndjson"
# How often rows are looked for that a client wants as they come, in seconds.
_TICK = 0.25
_RETRY_SECONDS = 5
# The page loads what this process gives, and nothing else; no page may show it in a frame of its own.
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; media-src blob:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
    ),
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "microphone=(self), camera=(), geolocation=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Service:
    """What the server answers with."""

    turns: Turns
    # told under /about
    about: Mapping[str, Any]
    windows: Windows
    limits: Limits
    # whether recordings are of any use to the heads, and whether a recogniser hears what is said
    listens: bool
    transcribes: bool
    # by which this server may be called; None: by any
    hosts: frozenset[str] | None = None


def application(service: Service) -> ASGIApp:
    """The ASGI application."""
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route

    async def about(_: Request) -> Response:
        return JSONResponse(dict(service.about))

    def giver(name: str, kind: str) -> Callable[[Request], Response]:
        content = (HERE / name).read_bytes()
        return lambda _: Response(content, media_type=f"{kind}; charset=utf-8")

    app = Starlette(
        routes=[
            *(Route(path, giver(*file)) for path, file in _FILES.items()),
            Route("/about", about),
            Route("/predict", PostPredict(service), methods=["POST"]),
        ],
        exception_handlers={RefusedError: _refused, HTTPException: _refused, Exception: _broken},
    )
    app.router.redirect_slashes = False
    return Guard(app, service.hosts)


class Guard:
    """The door: whoever calls this server by another name, or from a page of another origin, is not let in."""

    def __init__(self, app: ASGIApp, hosts: frozenset[str] | None) -> None:
        self._app, self._hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""

        async def safely(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = [(name.lower().encode(), value.encode()) for name, value in _HEADERS.items()]
                message = {**message, "headers": [*message.get("headers", ()), *own]}
            await send(message)

        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        problem = self._problem(headers, is_reading=scope["method"] in ("GET", "HEAD"))
        if problem is None:
            await self._app(scope, receive, safely)
        else:
            await _told(*problem)(scope, receive, safely)

    def _problem(self, headers: Mapping[str, str], *, is_reading: bool) -> tuple[int, str] | None:
        """The status and the line for who is not let in."""
        host = headers.get("host", "")
        if self._hosts is not None and _name_of(host) not in self._hosts:
            return 400, "This server is called by another name: it answers to localhost alone (see --host)"
        if is_reading:
            return None
        # A browser says where a request comes from, and no page can have it say otherwise.
        site = headers.get("sec-fetch-site")
        if site is not None:
            is_own = site in ("same-origin", "none")
        else:
            is_own = headers.get("origin", f"//{host}").lower().partition("//")[2] == host.lower()
        return None if is_own else (403, "Pages of other origins may not ask this server")


class PostPredict:
    """POST /predict: a recording, its words, or both in; rows out, together or, as JSON lines, one by one."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._count = 0
        # As many as requests: none waits for another's recording to be looked at.
        self._readers = ThreadPoolExecutor(service.limits.at_once)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request. RefusedError: as its status says."""
        from starlette.requests import ClientDisconnect, Request

        request = Request(scope, receive)
        limits = self._service.limits
        check_head(request.headers, limits)
        if self._count >= limits.at_once:
            raise _busy("The server is busy: as many requests wait as it takes. Ask again in a moment")
        self._count += 1
        try:
            # Who goes away ends the request.
            with suppress(ClientDisconnect):
                await self._answer(request, send)
        finally:
            self._count -= 1

    async def _answer(self, request: Request, send: Send) -> None:
        service = self._service
        asked = asked_of(request.scope["query_string"])
        with unnamed_file() as (file, path), unnamed_file() as room:
            size = await received(request.stream(), file, service.limits)
            look = partial(
                upload_of, asked, path if size else None, room, listens=service.listens,
                transcribes=service.transcribes, windows=service.windows, limits=service.limits,
            )  # fmt: skip
            upload = await asyncio.get_running_loop().run_in_executor(self._readers, look)
            order = service.turns.ask(upload.units)
            reply = _Reply(order, upload, asked.name)
            try:
                if _LINES in request.headers.get("accept", ""):
                    response = self._by_and_by(reply)
                else:
                    response = await self._together(reply, request)
                await response(request.scope, request.receive, send)
            finally:
                order.outcome.cancel()

    async def _together(self, reply: _Reply, request: Request) -> Response:
        """All rows. ClientDisconnect: nobody waits for them any more."""
        from starlette.requests import ClientDisconnect
        from starlette.responses import JSONResponse

        gone = asyncio.ensure_future(_gone(request))
        done = asyncio.wrap_future(reply.order.outcome)
        try:
            await asyncio.wait({gone, done}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.cancel()
        if not done.done():
            raise ClientDisconnect
        if problem := _refusal(done):
            raise problem
        rows = reply.rows()
        if all(row["error"] is not None for row in rows):
            raise RefusedError(422, str(rows[0]["error"]))
        return JSONResponse({**self._head(reply), "rows": rows})

    def _by_and_by(self, reply: _Reply) -> Response:
        """A line that says how many rows come, a line for each as soon as it is there, or one that says why none is."""
        from starlette.responses import StreamingResponse

        async def lines() -> AsyncIterator[str]:
            yield json.dumps({**self._head(reply), "count": len(reply.order.units)}) + "\n"
            told, is_over = 0, False
            done = asyncio.wrap_future(reply.order.outcome)
            while not is_over:
                await asyncio.wait({done}, timeout=_TICK)
                is_over = done.done()
                for row in reply.rows(told):
                    yield line_of(row) + "\n"
                    told += 1
            if problem := _refusal(done):
                yield json.dumps({"error": str(problem)}, ensure_ascii=False) + "\n"

        return StreamingResponse(lines(), media_type=_LINES)

    def _head(self, reply: _Reply) -> dict[str, Any]:
        return {"emotions": self._service.about["emotions"], "note": reply.upload.note}


@dataclass(frozen=True)
class _Reply:
    """What becomes of one upload."""

    order: Order
    upload: Upload
    # of the file, as the user has it
    name: str

    def rows(self, first: int = 0) -> list[Row]:
        """Those that are there, from some place on; errors name the user's file, not ours."""
        found = zip(self.order.rows[first:], self.order.units[first:], strict=False)
        return [
            row if row["error"] is None else {**row, "error": named(row["error"], unit.recording, self.name)}
            for row, unit in found
        ]


def _refusal(outcome: asyncio.Future[None]) -> RefusedError | None:
    """What a client is told of a order that did not go well."""
    problem = outcome.exception()
    match problem:
        case None:
            return None
        case EndedError():
            return _busy("The server is ending")
        case Amber2Error():
            return RefusedError(422, str(problem))
    if is_out_of_memory(problem):
        return _busy(f"Memory ran out ({memory_in_words(problem)})")
    return _mistake(problem)


def _mistake(problem: BaseException) -> RefusedError:
    """What should not have happened; the log tells it without a word of what was sent."""
    if isinstance(problem, OSError):
        return RefusedError(507, f"The recording cannot be held: {problem.strerror or problem}")
    _log.error("a request failed: %s", type(problem).__name__)
    _log.debug("it failed here", exc_info=problem)
    return RefusedError(500, "The request failed, by a mistake of this program's")


async def _gone(request: Request) -> None:
    """Until the client has gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _busy(line: str) -> RefusedError:
    return RefusedError(503, line, {"Retry-After": str(_RETRY_SECONDS)})


def _name_of(host: str) -> str | None:
    """Of a Host header, without its port."""
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


def _told(status: int, line: str, headers: Mapping[str, str] | None = None) -> Response:
    from starlette.responses import JSONResponse

    return JSONResponse({"error": line}, status, dict(headers or {}))


async def _refused(_: Request, problem: Any) -> Response:
    """A refusal of ours, or of starlette's router."""
    if isinstance(problem, RefusedError):
        return _told(problem.status, str(problem), problem.headers)
    return _told(problem.status_code, f"{problem.detail}: see GET /about and POST /predict", problem.headers)


async def _broken(request: Request, problem: Exception) -> Response:
    return await _refused(request, _mistake(problem))
