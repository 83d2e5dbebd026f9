"""What encoders that hear in windows of a fixed length have in common: long utterances are cut, short ones padded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from amber2_core.devices import on
from amber2_data.sound import Waveform, check_samples

from ..checkpoint import Checkpoint
from ..recipe import Precision, Window
from ..rows import Row
from .encoder import Encoder, from_pretrained, load_tower

# Windows that the model takes at once: those of one long utterance are many.
_AT_ONCE = 16


@dataclass(frozen=True, eq=False)
class Heard:
    """One window of an utterance, as the model takes it."""

    # log-mel spectra, padded as the window wants it, on the processor
    spectra: Tensor
    # how many samples of it are the utterance's own
    samples: int


class WindowedEncoder(Encoder):
    """A frozen encoder of log-mel spectra in windows of a fixed length, with the checkpoint's own preprocessor.

    An utterance that is longer than a window is cut into windows that follow one another, of which each is encoded by
    itself; a last one that is too short to make a spectrum is left out. The hidden states of the valid places of all
    windows are one sequence, and are pooled together.

    With `window` "trained" every window has the length that the model was trained with, padded as its preprocessor
    does it; with "fit" it is as long as the utterance, rounded up to a second, and so are the model's positions. In a
    batch windows of equal length are encoded together, and nothing is padded to any.

    `encode` takes waveforms, each (samples,) at `sampling_rate` and at least `least_samples` long, or what `prepare`
    made of them.
    """

    def __init__(self, checkpoint: Checkpoint, *, window: Window = "trained", **settings: Any) -> None:
        """Load a checkpoint; the rest as of `Encoder`."""
        self.window = window
        super().__init__(checkpoint, **settings)

    def _loaded(self, checkpoint: Checkpoint) -> Any:
        return load_tower(checkpoint, self.device, attention=self.attention)

    def _set_up(self, checkpoint: Checkpoint) -> None:
        import transformers

        self.sampling_rate = checkpoint.sampling_rate()
        self._preprocessor: Any = from_pretrained(checkpoint, transformers.AutoFeatureExtractor.from_pretrained)
        self.window_samples = self._window_samples()

    @property
    def least_samples(self) -> int:
        """The fewest samples that make a spectrum: 25 ms."""
        return round(0.025 * self.sampling_rate)

    def check(self, waveform: Waveform) -> None:
        """See that a waveform makes a spectrum.

        Raises:
            AudioError: it is too short.
        """
        check_samples(len(waveform), self.least_samples, self.sampling_rate)

    def prepare(self, waveform: Waveform) -> list[Heard]:
        """The windows of one utterance."""
        starts = range(0, len(waveform), self.window_samples)
        pieces = [waveform[start : start + self.window_samples] for start in starts]
        kept = [piece for piece in pieces if len(piece) >= self.least_samples] or pieces
        return [Heard(self._spectra(piece), len(piece)) for piece in kept]

    @torch.inference_mode()
    def _encode(self, inputs: Sequence[Waveform | list[Heard]], precision: Precision) -> list[Row]:
        ready = [one if isinstance(one, list) else self.prepare(one) for one in inputs]
        windows = [window for one in ready for window in one]
        states = self._states(windows, precision)
        ends = np.cumsum([len(one) for one in ready])
        each = [states[end - len(one) : end] for one, end in zip(ready, ends, strict=True)]
        sequences = [[torch.cat(of_layer) for of_layer in zip(*one, strict=True)] for one in each]  # utterance, layer
        padded = [pad_sequence(list(of_layer), batch_first=True) for of_layer in zip(*sequences, strict=True)]
        return self._rows(padded, [len(one[-1]) for one in sequences])

    def _states(self, windows: Sequence[Heard], precision: Precision) -> list[Sequence[Tensor]]:
        """Of each window, the hidden states that are asked for, each (valid places, D)."""
        found: dict[int, Sequence[Tensor]] = {}
        alike: dict[torch.Size, list[int]] = {}
        for place, window in enumerate(windows):
            alike.setdefault(window.spectra.shape, []).append(place)
        for places in alike.values():
            for first in range(0, len(places), _AT_ONCE):
                some = places[first : first + _AT_ONCE]
                spectra = on(self.device, torch.stack([windows[place].spectra for place in some]))
                samples = [windows[place].samples for place in some]
                with self._half(precision):
                    states = self._chosen(self._run(spectra, samples))  # each (windows, places, D)
                for row, place in enumerate(some):
                    found[place] = [state[row, : self._valid_places(samples[row])] for state in states]
        return [found[place] for place in range(len(windows))]

    def _fitted(self, samples: int) -> int:
        """The samples of the window for so many."""
        if self.window == "trained":
            return self.window_samples
        return min(self.window_samples, math.ceil(samples / self.sampling_rate) * self.sampling_rate)

    def _window_samples(self) -> int:
        """The samples of a window, as the preprocessor says."""
        raise NotImplementedError

    def _spectra(self, waveform: Waveform) -> Tensor:
        """What the model takes of one window, on the processor."""
        raise NotImplementedError

    def _valid_places(self, samples: int) -> int:
        """The places of the model's output that so many samples have, at least one."""
        raise NotImplementedError

    def _run(self, spectra: Tensor, samples: Sequence[int]) -> Sequence[Tensor]:
        """The hidden states of windows with so many samples of their own, each (windows, places, D).

        They are the input of the first layer and the output of each, the last one normalised where the model does so;
        or, where layers are not to be had, the last alone.
        """
        raise NotImplementedError

    def _probe(self) -> Sequence[Any]:
        # Nothing is padded in a batch of windows: the shortest, the longest that is one, and one of two tell all.
        longest = self.window_samples + self.sampling_rate // 2
        noise = np.random.default_rng(0).standard_normal(longest, dtype=np.float32)
        return [self.prepare(noise[:length]) for length in (self.least_samples, self.window_samples // 3, longest)]
