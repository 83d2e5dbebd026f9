"""What an encoder makes of a batch: a vector of each utterance, or one per layer, and its sequence if asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Pooled = npt.NDArray[np.float32]  # (batch, D), or (batch, layers + 1, D)
Sequences = tuple[npt.NDArray[np.float32], ...]  # each (bins, D)


@dataclass(frozen=True, eq=False)
class Encoded:
    """Rows of a feature set."""

    values: Pooled
    # one per row; None where only vectors are asked for
    frames: Sequences | None = None

    def __len__(self) -> int:
        return len(self.values)

    @property
    def nbytes(self) -> int:
        """Size in memory, in bytes."""
        return self.values.nbytes + sum(sequence.nbytes for sequence in self.frames or ())

    @property
    def finite(self) -> npt.NDArray[np.bool_]:
        """(batch,) True where a row holds neither NaN nor infinity."""
        finite = [bool(np.isfinite(row).all()) for row in self.values]
        if self.frames is not None:
            finite = [row and bool(np.isfinite(f).all()) for row, f in zip(finite, self.frames, strict=True)]
        return np.array(finite, dtype=bool)

    def take(self, chosen: npt.NDArray[np.bool_]) -> Encoded:
        """The rows where `chosen` is True."""
        frames = None
        if self.frames is not None:
            frames = tuple(sequence for sequence, keep in zip(self.frames, chosen, strict=True) if keep)
        return Encoded(self.values[chosen], frames)


def join(several: Sequence[Encoded]) -> Encoded:
    """The rows of at least one batch behind one another."""
    frames: Sequences | None = None
    if several[0].frames is not None:
        frames = tuple(sequence for one in several for sequence in one.frames or ())
    return Encoded(np.concatenate([one.values for one in several]), frames)
