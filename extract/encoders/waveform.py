"""Frozen encoders of raw waveforms: wav2vec 2.0, HuBERT, WavLM, data2vec-audio and their kin."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from amber2_core.devices import on
from amber2_core.errors import ModelError
from amber2_data.sound import Waveform, check_samples

from ..checkpoint import Checkpoint
from ..recipe import Precision
from ..rows import Row
from .encoder import Encoder, from_pretrained
from .exactness import Convolutions, keep_padding_silent, mask_of, trial_lengths


class SpeechEncoder(Encoder):
    """A frozen encoder of raw waveforms: wav2vec 2.0, HuBERT, WavLM, data2vec-audio and their kin.

    Padding must not reach the statistics of a group norm over time, mask or no mask: see `Convolutions`. What follows
    the convolutions runs in batches under a mask of valid frames.

    `encode` takes waveforms, each (samples,) at `sampling_rate` and at least `least_samples` long, or what `prepare`
    made of them.
    """

    def _set_up(self, checkpoint: Checkpoint) -> None:
        import transformers

        self.sampling_rate = checkpoint.sampling_rate()
        self._preprocessor = from_pretrained(checkpoint, transformers.AutoFeatureExtractor.from_pretrained)
        if self._model.main_input_name != "input_values" or not hasattr(self._model, "feature_extractor"):
            raise ModelError(
                f"Cannot use {checkpoint.name!r} for audio: {type(self._model).__name__} takes no raw waveforms as "
                "wav2vec 2.0, HuBERT, WavLM and data2vec-audio do"
            )
        self._convolutions = Convolutions(self._model.feature_extractor)
        # One utterance keeps a processor busy, and is computed there just as transformers does.
        self.convolves_together = self.device.type != "cpu" and self._convolutions.can_batch
        # The rest of the model's own forward then takes what the convolutions gave.
        self._model.feature_extractor = torch.nn.Identity()
        self._valid = keep_padding_silent(self._model)

    @property
    def least_samples(self) -> int:
        """The fewest samples that make a frame: 400, or 25 ms, for the models named above; SEW's are made of two."""
        config = self._model.config
        samples = getattr(config, "squeeze_factor", 1)
        for kernel, stride in reversed(list(zip(config.conv_kernel, config.conv_stride, strict=True))):
            samples = (samples - 1) * stride + kernel
        return int(samples)

    def check(self, waveform: Waveform) -> None:
        """See that a waveform makes at least one frame.

        Raises:
            AudioError: it is too short.
        """
        check_samples(len(waveform), self.least_samples, self.sampling_rate)

    def prepare(self, waveform: Waveform) -> Tensor:
        """One utterance as the checkpoint's own preprocessor wants it: normalised, where it says so, before padding.

        (samples,), on the processor.
        """
        prepared = self._preprocessor(waveform, sampling_rate=self.sampling_rate, return_tensors="np")
        return torch.as_tensor(prepared["input_values"][0], dtype=torch.float32)

    @torch.inference_mode()
    def _encode(self, inputs: Sequence[Waveform | Tensor], precision: Precision) -> list[Row]:
        ready = [one if isinstance(one, Tensor) else self.prepare(one) for one in inputs]
        samples = self._moved(ready)  # each (samples,)
        with self._half(precision):
            together = self.convolves_together and len(samples) > 1
            convolved = self._convolutions.together if together else self._convolutions.one_by_one
            padded, lengths = convolved(samples)  # (batch, channels, frames)
            mask = frame_mask = None
            if len(samples) > 1:
                mask = mask_of([len(one) for one in samples], device=self.device).long()
                frame_mask = mask_of(lengths, device=self.device)
            with self._valid(frame_mask):
                output = self._model(padded, attention_mask=mask, output_hidden_states=self.looks_inside)
        return self._pooled(output, lengths)

    def _moved(self, ready: Sequence[Tensor]) -> Sequence[Tensor]:
        """The utterances on the device, in one copy: each copy of its own costs more than most of them weigh."""
        if self.device.type == "cpu":
            return ready
        return torch.split(on(self.device, torch.cat(list(ready))), [len(one) for one in ready])

    def _go_another_way(self) -> bool:
        was, self.convolves_together = self.convolves_together, False
        return was

    def _probe(self) -> Sequence[Any]:
        config = self._model.config
        period = max(8, getattr(config, "squeeze_factor", 1))
        lengths = trial_lengths(self.least_samples, math.prod(config.conv_stride), period=period)
        noise = np.random.default_rng(0).standard_normal(max(lengths), dtype=np.float32)
        return [noise[:length] for length in lengths]
