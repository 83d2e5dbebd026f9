"""A frozen encoder of the user's own, from a Python file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from amber2_core.devices import is_out_of_memory
from amber2_core.errors import ModelError
from amber2_data.sound import Waveform, check_samples

from ..checkpoint import Checkpoint, own_class
from ..recipe import Precision
from ..rows import Row
from .encoder import Encoder
from .exactness import trial_lengths


class OwnEncoder(Encoder):
    """What a user's class makes of waveforms.

    The class is made without arguments, and is moved to the device if it has a method ``to`` as torch's modules do. Its
    ``encode`` takes a list of waveforms, each (samples,) in float32 at its ``sampling_rate``, and gives frames (batch,
    places, ``size``) and how many of the places are valid in each row. Pooling, and whether it may be given more than
    one, are this house's affair: what changes with its batch is encoded one at a time.
    """

    def _loaded(self, checkpoint: Checkpoint) -> Any:
        kind = own_class(checkpoint)
        if self.looks_inside:
            raise ModelError(f"Cannot give layers of {checkpoint.name!r}: an encoder of one's own has its last alone")
        try:
            made = kind()
            if hasattr(made, "to"):
                made.to(self.device)
        except Exception as problem:  # a user's file may raise anything
            raise ModelError(f"Cannot make {checkpoint.name!r} of {checkpoint.weights[0]}: {problem!r}") from problem
        return made

    def _set_up(self, checkpoint: Checkpoint) -> None:
        self._name = checkpoint.name
        self.sampling_rate = int(self._model.sampling_rate)
        # 25 ms, as others need for a frame
        self.least_samples = max(1, round(0.025 * self.sampling_rate))

    def check(self, waveform: Waveform) -> None:
        """See that a waveform is long enough.

        Raises:
            AudioError: it is too short.
        """
        check_samples(len(waveform), self.least_samples, self.sampling_rate)

    def prepare(self, waveform: Waveform) -> Waveform:
        """One utterance as it is."""
        return waveform

    @torch.inference_mode()
    def _encode(self, inputs: Sequence[Waveform], precision: Precision) -> list[Row]:
        try:
            with self._half(precision):
                frames, lengths = self._model.encode(list(inputs))
            states = torch.as_tensor(frames).to(self.device)
            places = [int(length) for length in lengths]
        except Exception as problem:  # a user's file may raise anything
            if is_out_of_memory(problem):
                raise
            if len(inputs) > 1:
                raise ValueError(f"it takes no batch: {problem!r}") from problem
            raise ModelError(f"{self._name!r} cannot encode {len(inputs[0]):,} samples: {problem!r}") from problem
        size = int(self._model.size)
        if states.ndim != 3 or states.shape[0] != len(inputs) or states.shape[2] != size:
            expected = f"({len(inputs)}, places, {size})"
            raise ModelError(f"{self._name!r} gives frames of shape {tuple(states.shape)}, expected {expected}")
        if len(places) != len(inputs) or not all(0 < length <= states.shape[1] for length in places):
            raise ModelError(f"{self._name!r} gives lengths {places}, expected 1 to {states.shape[1]} of each waveform")
        return self._rows([states[:, : max(places)]], places)

    def _probe(self) -> Sequence[Any]:
        lengths = trial_lengths(self.least_samples, max(1, self.sampling_rate // 100), period=16, most=200)
        noise = np.random.default_rng(0).standard_normal(max(lengths), dtype=np.float32)
        return [noise[:length] for length in lengths]
