"""The frozen tower of CLAP for audio."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from amber2_core.errors import ModelError
from amber2_data.sound import Waveform

from ..checkpoint import Checkpoint
from .windows import WindowedEncoder


class ClapEncoder(WindowedEncoder):
    """CLAP's encoder of audio: windows of 10 s, a shifted-window transformer (Wu et al. 2023, arXiv 2211.06687).

    A place is 312.5 ms, the mean over its bands. A short utterance is padded as the preprocessor says, mostly by its
    own repetition, of which the first time alone is pooled. No window is longer than the model's, so that its fusion
    of a long clip's parts never begins; transformers' preprocessor would begin it for a clip chosen by lot.
    """

    def __init__(self, checkpoint: Checkpoint, **settings: Any) -> None:
        """Load a checkpoint; the rest as of `WindowedEncoder`.

        Raises:
            ModelError: it cannot be loaded; or layers are asked for, which differ in size.
        """
        super().__init__(checkpoint, **settings)
        if self.looks_inside:
            raise ModelError(f"Cannot give layers of {checkpoint.name!r}: CLAP's differ in size; take the last alone")

    def _window_samples(self) -> int:
        return int(self._preprocessor.nb_max_samples)

    def _spectra(self, waveform: Waveform) -> Tensor:
        made = self._preprocessor(waveform, sampling_rate=self.sampling_rate, return_tensors="np")
        return torch.as_tensor(np.asarray(made["input_features"][0], dtype=np.float32))  # (channels, spectra, bands)

    def _valid_places(self, samples: int) -> int:
        config = self._model.config
        # Spectra are folded into a square, in rows of patches that each stage but the first merges in pairs.
        row = config.spec_size // 2 ** (len(config.depths) - 1) // config.patch_stride[1]
        places = config.spec_size // config.num_mel_bins * row
        return int(max(1, -(-samples * places // self.window_samples)))

    def _run(self, spectra: Tensor, samples: Sequence[int]) -> Sequence[Tensor]:
        is_longer = torch.zeros(len(spectra), 1, dtype=torch.bool, device=spectra.device)
        output = self._model(input_features=spectra, is_longer=is_longer)
        return [output.last_hidden_state.mean(dim=2).transpose(1, 2)]  # from (windows, D, bands, places)
