"""The frozen encoder of Whisper."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from amber2_core.errors import ModelError
from amber2_data.sound import Waveform

from ..checkpoint import Checkpoint
from .windows import WindowedEncoder


class WhisperEncoder(WindowedEncoder):
    """Whisper's encoder: windows of 30 s, two spectra of 10 ms to a place (Radford et al. 2022, arXiv 2212.04356).

    In a window as trained what lies beyond the utterance is silence, at which the attention looks, as it did when the
    model was trained, but which is not pooled.
    """

    def _set_up(self, checkpoint: Checkpoint) -> None:
        super()._set_up(checkpoint)
        model = self._model
        if not all(hasattr(model, name) for name in ("conv1", "conv2", "embed_positions", "layers", "layer_norm")):
            raise ModelError(f"Cannot use {checkpoint.name!r} for audio: {type(model).__name__} is no Whisper")
        if self._spectra_of(self.window_samples) != 2 * model.config.max_source_positions:
            raise ModelError(
                f"Cannot use {checkpoint.name!r}: its preprocessor makes {self._spectra_of(self.window_samples)} "
                f"spectra of a window, its model takes {2 * model.config.max_source_positions}"
            )

    def _window_samples(self) -> int:
        return int(self._preprocessor.n_samples)

    def _spectra(self, waveform: Waveform) -> Tensor:
        made = self._preprocessor(
            waveform,
            sampling_rate=self.sampling_rate,
            return_tensors="np",
            padding="max_length",
            max_length=self._fitted(len(waveform)),
        )
        return torch.as_tensor(np.asarray(made["input_features"][0], dtype=np.float32))  # (bands, spectra)

    def _spectra_of(self, samples: int) -> int:
        return -(-samples // int(self._preprocessor.hop_length))

    def _valid_places(self, samples: int) -> int:
        return (self._spectra_of(samples) - 1) // 2 + 1

    def _run(self, spectra: Tensor, samples: Sequence[int]) -> Sequence[Tensor]:
        model = self._model
        hidden = nn.functional.gelu(model.conv1(spectra))
        hidden = nn.functional.gelu(model.conv2(hidden)).transpose(1, 2)  # (windows, places, D)
        states = [hidden + model.embed_positions.weight[: hidden.shape[1]]]
        mask = self._attention_mask(states[0], samples)
        for layer in model.layers:
            states.append(layer(states[-1], mask))
        return self._finished(states)

    def _attention_mask(self, hidden: Tensor, samples: Sequence[int]) -> Tensor | None:
        """What attention looks at: all of a window."""
        return None

    def _finished(self, states: Sequence[Tensor]) -> Sequence[Tensor]:
        return [*states[:-1], self._model.layer_norm(states[-1])]
