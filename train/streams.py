"""A lane's work goes in; on CUDA it has a queue of its own, so that no lane waits for another's work."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_of_thread = threading.local()


@contextmanager
def own_stream(device: torch.device) -> Iterator[None]:
    """On CUDA, what is begun within goes into this thread's own stream, after what the default one was given before.

    At the end it is done. In one stream for all, who asks for a result would wait for what other lanes put there first.
    """
    if device.type != "cuda":
        yield
        return
    stream = _stream(device)
    stream.wait_stream(torch.cuda.default_stream(device))
    with torch.cuda.stream(stream):
        yield
    stream.synchronize()


def _stream(device: torch.device) -> torch.cuda.Stream:
    """The same one for all of a thread's work: memory that was one stream's is not given to another."""
    streams: dict[torch.device, torch.cuda.Stream] = _of_thread.__dict__.setdefault("streams", {})
    if device not in streams:
        streams[device] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    return streams[device]
