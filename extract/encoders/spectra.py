"""Frozen encoders of log-mel spectra of any length: w2v-BERT 2.0, SeamlessM4T's encoder of speech, Parakeet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from amber2_core.devices import on
from amber2_core.errors import ModelError
from amber2_data.sound import Waveform, check_samples

from ..checkpoint import Checkpoint
from ..recipe import Precision
from ..rows import Row
from .encoder import Encoder, from_pretrained, load_tower
from .exactness import mask_of, trial_lengths

# Less is too few spectra for those that are normalised by their own mean and deviation, or taken two at a time.
_LEAST_SECONDS = 0.05


class SpectraEncoder(Encoder):
    """A frozen encoder of log-mel spectra with a mask of those that are valid, after the checkpoint's preprocessor.

    Each utterance's spectra are made, and where the preprocessor normalises, normalised, before they are padded. A
    model that takes several spectra together must tell how many places are then valid; else, and where its
    convolutions let padding through, the trial finds it out.

    `encode` takes waveforms, each (samples,) at `sampling_rate` and at least `least_samples` long, or what `prepare`
    made of them.
    """

    def _loaded(self, checkpoint: Checkpoint) -> Any:
        return load_tower(checkpoint, self.device, attention=self.attention)

    def _set_up(self, checkpoint: Checkpoint) -> None:
        import transformers

        self.sampling_rate = checkpoint.sampling_rate()
        self._preprocessor = from_pretrained(checkpoint, transformers.AutoFeatureExtractor.from_pretrained)
        if self._model.main_input_name != "input_features":
            raise ModelError(
                f"Cannot use {checkpoint.name!r} for audio: {type(self._model).__name__} takes no log-mel spectra"
            )

    @property
    def least_samples(self) -> int:
        """The fewest samples that make spectra enough: 50 ms."""
        return round(_LEAST_SECONDS * self.sampling_rate)

    def check(self, waveform: Waveform) -> None:
        """See that a waveform is long enough.

        Raises:
            AudioError: it is too short.
        """
        check_samples(len(waveform), self.least_samples, self.sampling_rate)

    def prepare(self, waveform: Waveform) -> Tensor:
        """One utterance's valid spectra, (steps, bands), on the processor."""
        made = self._preprocessor(waveform, sampling_rate=self.sampling_rate, return_tensors="np")
        spectra = np.asarray(made["input_features"][0], dtype=np.float32)
        steps = int(np.sum(made["attention_mask"][0])) if "attention_mask" in made else len(spectra)
        return torch.as_tensor(spectra[:steps])

    @torch.inference_mode()
    def _encode(self, inputs: Sequence[Waveform | Tensor], precision: Precision) -> list[Row]:
        spectra = [one if isinstance(one, Tensor) else self.prepare(one) for one in inputs]
        steps = [len(one) for one in spectra]
        padded = on(self.device, pad_sequence(spectra, batch_first=True))  # (batch, steps, bands)
        mask = mask_of(steps, device=self.device).long()
        with self._half(precision):
            output = self._model(padded, attention_mask=mask, output_hidden_states=self.looks_inside)
        return self._pooled(output, self._places(steps, output.last_hidden_state.shape[1]))

    def _places(self, steps: Sequence[int], most: int) -> Sequence[int]:
        """The valid places of a model's output.

        Args:
            steps: the valid ones of its input.
            most: the places of the longest.

        Raises:
            ValueError: it is not known.
        """
        if len(steps) == 1 or most == max(steps):
            return steps
        for name in ("_get_subsampling_output_length", "_get_feat_extract_output_lengths"):
            count = getattr(self._model, name, None)
            places = [] if count is None else count(torch.tensor(steps)).tolist()
            if places and max(places) == most:
                return [int(one) for one in places]
        raise ValueError(f"how many of {most} places are valid is not known")

    def _probe(self) -> Sequence[Any]:
        # 10 ms from one spectrum to the next; up to 8 of them are taken together, twice over where they come in pairs.
        lengths = trial_lengths(self.least_samples, self.sampling_rate // 100, period=16, most=200)
        noise = np.random.default_rng(0).standard_normal(max(lengths), dtype=np.float32)
        return [self.prepare(noise[:length]) for length in lengths]
