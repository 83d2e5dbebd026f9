"""The server of predictions: a socket, heads and encoders behind it, and an end at once when it is told to."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from types import FrameType
from typing import TYPE_CHECKING, Any

from amber2_core.errors import SettingError
from amber2_extract.worker import REST_SECONDS, give_back

from .options import HeadsChoice
from .service import Service, application
from .table import Row
from .turns import Rows, Turns
from .units import Unit, Windows
from .uploads import MOST_CHARACTERS, WHOLE_SECONDS, Limits

if TYPE_CHECKING:
    from uvicorn import Server
    from uvicorn.protocols.http.h11_impl import H11Protocol

    from .predictor import Predictor

# Until the head of a request has come, and until a client has taken what waits for it, in seconds.
HEAD_SECONDS, ANSWER_SECONDS = 10.0, 30.0
# How long requests may still take when the server ends.
_LAST_SECONDS = 2
# Windows that an accelerator takes together; a processor takes one for each thread.
_AT_ONCE = 16
# Of the head of a request: all words in the query, percent-encoded.
_HEAD_BYTES = 1 << 17
_LOCAL = frozenset(("localhost", "127.0.0.1", "::1"))

_log = logging.getLogger(__name__)


def check_extra() -> None:
    """SettingError: the libraries of a server are not installed."""
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError:
        raise SettingError("A server needs starlette and uvicorn: pip install 'amber2[app]'") from None


def serve(
    which: HeadsChoice, *, host: str, port: int, windows: Windows, limits: Limits, ready: Callable[[str], None]
) -> None:
    """Answer until SIGINT or SIGTERM comes.

    Args:
        which: heads and encoders.
        host: the address to listen on.
        port: 0: any that is free.
        windows: how long recordings are cut.
        limits: what is taken.
        ready: called with the address when requests are answered.

    Raises:
        SettingError: the port is taken, or there is no such address; and as `Predictor.from_pretrained`.
    """
    check_extra()
    with listening(host, port) as door:
        loaded: list[Predictor] = []
        turns = Turns(lambda: _loaded(which, loaded))
        is_local = ipaddress.ip_address(door.getsockname()[0].partition("%")[0]).is_loopback
        if not is_local:
            _log.warning("%s is open to the network: there is no password, and nothing is encrypted", host)
        about = _about(loaded[0], which, windows, limits)
        service = Service(
            turns, about, windows, limits,
            listens=loaded[0].listens, transcribes=which.transcribe is not None,
            hosts=_LOCAL | {host.strip("[]").lower()} if is_local else None,
        )  # fmt: skip
        door.listen()
        address = address_of(host, door.getsockname()[1])
        _server(service, lambda: ready(address)).run(sockets=[door])
    turns.close()
    if not turns.join():
        # What it computes cannot be stopped, and must not meet the end of the interpreter.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


@contextmanager
def listening(host: str, port: int) -> Iterator[socket.socket]:
    """A socket that is bound, and listens as soon as it is told to. SettingError: it cannot be."""
    try:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        door = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as problem:
        raise SettingError(f"Bad host {host!r}: {_reason(problem)}") from None
    with door:
        door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            door.bind(address)
        except (OSError, OverflowError) as problem:
            raise SettingError(
                f"Cannot listen on {host} port {port} ({_reason(problem)}): name another --port, or 0 for any"
            ) from None
        yield door


def address_of(host: str, port: int) -> str:
    """The address of the page."""
    name = host.strip("[]")
    return f"http://{f'[{name}]' if ':' in name else name}:{port}/"


def _reason(problem: Exception) -> str:
    return str(getattr(problem, "strerror", None) or problem)


def _loaded(which: HeadsChoice, loaded: list[Predictor]) -> tuple[Rows, int]:
    """Load everything; what makes rows of units, and of how many at once."""
    import torch

    from .predictor import Predictor

    predictor = Predictor.from_pretrained(**asdict(which))
    loaded.append(predictor)
    rested = time.monotonic()

    def rows(units: Sequence[Unit]) -> list[Row]:
        nonlocal rested
        found = list(predictor.rows(units))
        if time.monotonic() - rested >= REST_SECONDS:
            give_back()
            rested = time.monotonic()
        return found

    return rows, torch.get_num_threads() if predictor.device == "cpu" else _AT_ONCE


def _about(predictor: Predictor, which: HeadsChoice, windows: Windows, limits: Limits) -> dict[str, Any]:
    """What /about tells: what the page needs, and what a caller should know."""
    heads, config = predictor.heads, predictor.heads.config
    recipes = {name: own["recipe"] for name, own in config["features"].items()}
    return {
        "version": version("amber2"),
        "device": predictor.device,
        "system": config["system"],
        "emotions": list(heads.emotions),
        "heads": list(heads.heads),
        "predicted_by": heads.head,
        "members": len(heads.members),
        "reads": {name: recipe["modality"] for name, recipe in recipes.items()},
        "encoders": {name: recipe["model"] for name, recipe in recipes.items()},
        "listens": predictor.listens,
        "transcribes": which.transcribe is not None,
        "windows": {"seconds": windows.seconds, "hop": windows.hop, "whole_seconds_with_words": WHOLE_SECONDS},
        "limits": {
            "megabytes": limits.megabytes,
            "seconds": limits.seconds,
            "at_once": limits.at_once,
            "characters": MOST_CHARACTERS,
        },
    }


def _server(service: Service, ready: Callable[[], None]) -> Server:
    """uvicorn, which ends with exit code 0, and waits for nobody for ever."""
    import uvicorn

    class Ending(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            ready()  # not before signals end it as they should

        @contextmanager
        def capture_signals(self) -> Iterator[None]:
            # uvicorn would raise them again afterwards, for another exit code than 0
            loop = asyncio.get_running_loop()
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, self.handle_exit, number, None)
            yield

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            service.turns.close()
            super().handle_exit(sig, frame)

    # What goes wrong is told to the client; only the mistakes of this program are logged, by itself.
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
    config = uvicorn.Config(
        application(service), http=_impatient(), loop="asyncio", ws="none", lifespan="off", log_config=None,
        access_log=False, server_header=False, proxy_headers=False, timeout_graceful_shutdown=_LAST_SECONDS,
        h11_max_incomplete_event_size=_HEAD_BYTES,
    )  # fmt: skip
    return Ending(config)


def _impatient() -> type[H11Protocol]:
    """A connection that ends where a client sends no request, or takes no answer; uvicorn would wait for ever."""
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class Impatient(H11Protocol):
        _stuck: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._expect()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._expect()

        def _expect(self) -> None:
            """Wait for another request for a while; what is left of this one is read and thrown away till then."""
            self.loop.call_later(HEAD_SECONDS, self._give_up, self.cycle)

        def _give_up(self, before: object) -> None:
            if self.cycle is before:
                self.transport.close()

        def pause_writing(self) -> None:
            super().pause_writing()
            self._stuck = self.loop.call_later(ANSWER_SECONDS, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            if self._stuck is not None:
                self._stuck.cancel()

    return Impatient
