"""The frozen Audio Spectrogram Transformer, which reads patches of spectra."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from amber2_data.sound import Waveform

from .windows import WindowedEncoder


class PatchEncoder(WindowedEncoder):
    """AST: windows of 10.24 s, in patches of 16 spectra by 16 bands (Gong, Chung and Glass 2021, arXiv 2104.01778).

    A place is the mean over all bands of the patches of one time; the two tokens in front take part in the attention
    and are not pooled. Valid are the times whose patches lie within the utterance, at least the first. In a window that
    fits, the positions of the other times are left out, as the model learnt one for each patch.
    """

    def _window_samples(self) -> int:
        # as Kaldi has it: 25 ms make a spectrum, and 10 ms each further one
        return self.least_samples + (int(self._preprocessor.max_length) - 1) * (self.sampling_rate // 100)

    def _spectra(self, waveform: Waveform) -> Tensor:
        made = self._preprocessor(waveform, sampling_rate=self.sampling_rate, return_tensors="np")
        spectra = torch.as_tensor(np.asarray(made["input_values"][0], dtype=np.float32))  # (spectra, bands)
        if self.window == "trained":
            return spectra
        return spectra[: max(self._model.config.patch_size, self._fitted(len(waveform)) * 100 // self.sampling_rate)]

    def _valid_places(self, samples: int) -> int:
        spectra = (samples - self.least_samples) // (self.sampling_rate // 100) + 1
        return max(1, self._times(spectra))

    def _times(self, spectra: int) -> int:
        config = self._model.config
        return int((spectra - config.patch_size) // config.time_stride + 1)

    def _run(self, spectra: Tensor, samples: Sequence[int]) -> Sequence[Tensor]:
        made, config = self._model.embeddings, self._model.config
        patches = made.patch_embeddings(spectra)  # (windows, bands × times, D), all times of a band together
        times = self._times(spectra.shape[1])
        positions = made.position_embeddings[:, 2:].unflatten(1, (-1, self._times(config.max_length)))[:, :, :times]
        front = torch.cat([made.cls_token, made.distillation_token], dim=1) + made.position_embeddings[:, :2]
        hidden = torch.cat([front.expand(len(patches), -1, -1), patches + positions.flatten(1, 2)], dim=1)
        states = [hidden]
        for layer in self._model.layers:
            states.append(layer(states[-1], None))
        finished = [*states[:-1], self._model.layernorm(states[-1])]
        return [state[:, 2:].unflatten(1, (-1, times)).mean(dim=1) for state in finished]
