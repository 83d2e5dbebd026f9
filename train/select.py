"""Selection on dev: fitted settings go in, the best of each system so far stays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from amber2_core.heads import Architecture

from .fit import Fitted
from .grid import Setting
from .stack import StateDict
from .systems import registry

Run = tuple[Architecture, StateDict, dict[str, int]]  # with the epoch kept of each head


@dataclass(frozen=True)
class Candidate:
    """The best setting of a system so far in one fold."""

    setting: Setting
    # of the head that decides, averaged over seeds
    dev_js: float
    # one trained run per seed
    runs: tuple[Run, ...]


def choose(candidates: dict[str, Candidate], settings: Sequence[Setting], fitted: Sequence[Fitted]) -> None:
    """Let every setting compete with its system's candidate: the lower dev JS wins, the earlier one on a tie.

    Args:
        candidates: by system; updated.
        settings: one stack of settings.
        fitted: the stack's runs, seeds spread over one or several.
    """
    heads = fitted[0].stack.architecture.heads
    dev_js = np.concatenate([some.dev_js for some in fitted], axis=1)  # (heads, seeds, settings)
    for k, setting in enumerate(settings):
        decider = heads.index(registry.system(setting.system).decider(setting))
        score = float(dev_js[decider, :, k].mean())
        best = candidates.get(setting.system)
        if best is None or score < best.dev_js:
            runs = tuple(_run(some, seed, k) for some in fitted for seed in range(some.stack.seeds))
            candidates[setting.system] = Candidate(setting, score, runs)


def _run(fitted: Fitted, seed: int, setting: int) -> Run:
    heads = fitted.stack.architecture.heads
    epochs = {head: int(fitted.epoch[h, seed, setting]) for h, head in enumerate(heads)}
    return fitted.stack.architecture, fitted.stack.state(seed, setting), epochs
