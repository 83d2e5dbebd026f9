"""A GPU's memory: what needs it goes in; where there is too little, one line with what to do about it comes out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from amber2_core.devices import is_out_of_memory
from amber2_core.errors import SettingError


def memory_for_runs(runs: int, device: str) -> AbstractContextManager[None]:
    """Within, so many runs train at once. Raises SettingError where a GPU has too little memory for them."""
    return _memory_for(f"{runs} runs at once: ask for fewer --seeds or a smaller --hidden", device)


def memory_for_features(utterances: int, device: str) -> AbstractContextManager[None]:
    """Within, all features are copied. Raises SettingError where a GPU has too little memory for them."""
    return _memory_for(f"the features of {utterances} utterances: try another GPU", device)


@contextmanager
def _memory_for(what: str, device: str) -> Iterator[None]:
    try:
        yield
    except RuntimeError as problem:
        if device == "cpu" or not is_out_of_memory(problem):
            raise
        raise SettingError(f"{device} ran out of memory with {what}, or use --device cpu") from None
