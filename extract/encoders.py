"""Waveforms or transcripts go in; pooled hidden states of a frozen transformers model come out, whatever the batch."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from amber2_core.errors import AudioError, ModelError

from .audio import Waveform
from .checkpoint import Checkpoint
from .encoded import Encoded, Pooled, join
from .loading import exact_fp32, from_pretrained, load_model
from .memory import is_out_of_memory
from .padding import keep_padding_silent
from .pooling import binned, mask_of, masked_mean
from .recipe import Layers, Precision

# How far a row of a batch may be from the same utterance encoded alone, relative L2.
EXACT = 1e-5

# Transcripts tokenized together.
_AT_ONCE = 256

_HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}

_log = logging.getLogger(__name__)


class _Encoder:
    """What encoders of speech and text have in common: how a batch is run, pooled, and tried for exactness."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        layers: Layers = "last",
        frames: int | None = None,
        precision: Precision = "fp32",
        device: torch.device | str = "cpu",
    ) -> None:
        self.device = torch.device(device)
        self.layers = layers
        self.frames = frames
        self.precision = precision
        self._model = load_model(checkpoint, self.device)
        self._batches_are_exact: bool | None = None
        self._trying = threading.Lock()

    def encode(self, inputs: Sequence[Any]) -> Pooled:
        """Encode a batch; each row is what its utterance gives alone.

        Returns:
            (batch, D), or (batch, layers + 1, D): the mean of the hidden states over the valid places.
        """
        return self.encode_batch(inputs).values

    def encode_batch(self, inputs: Sequence[Any]) -> Encoded:
        """As `encode`, with the sequences if `frames` are asked for."""
        if len(inputs) == 1 or self._is_exact():
            return self._encode(inputs, self.precision)
        return join([self._encode([one], self.precision) for one in inputs])

    def _encode(self, inputs: Sequence[Any], precision: Precision) -> Encoded:
        raise NotImplementedError

    def _probe(self) -> Sequence[Any]:
        """A small batch of very different lengths."""
        raise NotImplementedError

    def _half(self, precision: Precision) -> AbstractContextManager[object]:
        """torch's autocast: half precision for products and convolutions; the device decides on the rest."""
        if precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=_HALF[precision])

    def _pooled(self, output: Any, lengths: Sequence[int]) -> Encoded:
        """Pool a model's output over the first `lengths[i]` places of each row."""
        last = output.last_hidden_state  # (batch, places, D)
        # Some models normalise once more after their last layer: what counts as its output is the last hidden state.
        states = (last,) if self.layers == "last" else (*output.hidden_states[:-1], last)
        if len(lengths) == 1:
            # Nothing is padded.
            lengths = [last.shape[1]]
            means = [state.float().mean(dim=1) for state in states]
        else:
            mask = mask_of(lengths, device=self.device)
            means = [masked_mean(state, mask) for state in states]
        pooled = means[0] if self.layers == "last" else torch.stack(means, dim=1)
        frames = None
        if self.frames is not None:
            rows = zip(last, lengths, strict=True)
            frames = tuple(np.asarray(binned(row[:length], self.frames).cpu().numpy()) for row, length in rows)
        return Encoded(np.asarray(pooled.cpu().numpy()), frames)

    def _is_exact(self) -> bool:
        """Whether batches give what their items give alone: tried out in fp32, when the first batch comes."""
        with self._trying:
            if self._batches_are_exact is None:
                self._batches_are_exact = self._error_of_a_batch() <= EXACT
                if not self._batches_are_exact:
                    model = type(self._model).__name__
                    _log.info("%s changes with its batch: utterances are encoded one at a time", model)
        return self._batches_are_exact

    def _error_of_a_batch(self) -> float:
        """The largest relative L2 error of a row."""
        probe = self._probe()
        alone = np.stack([self._encode([item], "fp32").values.ravel() for item in probe])
        try:
            together = self._encode(probe, "fp32").values.reshape(len(probe), -1)
        except RuntimeError as problem:
            if is_out_of_memory(problem):
                raise
            # Its output has other lengths than its convolutions gave.
            return math.inf
        return float((np.linalg.norm(together - alone, axis=1) / np.linalg.norm(alone, axis=1)).max())


class SpeechEncoder(_Encoder):
    """A frozen encoder of raw waveforms: wav2vec 2.0, HuBERT, WavLM, data2vec-audio and their kin.

    Padding must not reach the convolutions: where they hold a group norm over time (wav2vec2-base among others), its
    statistics would see it, mask or no mask. So they run one utterance at a time, and what follows them, most of the
    work, runs in batches under a mask of valid frames.

    `encode` takes waveforms, each (samples,) at `sampling_rate` and at least `least_samples` long, or what `prepare`
    made of them.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        layers: Layers = "last",
        frames: int | None = None,
        precision: Precision = "fp32",
        device: torch.device | str = "cpu",
    ) -> None:
        """Load a checkpoint.

        Raises:
            ModelError: it cannot be loaded, or is no encoder of raw waveforms.
        """
        self.sampling_rate = checkpoint.sampling_rate()
        self._preprocessor = from_pretrained(checkpoint, transformers.AutoFeatureExtractor.from_pretrained)
        super().__init__(checkpoint, layers=layers, frames=frames, precision=precision, device=device)
        if self._model.main_input_name != "input_values" or not hasattr(self._model, "feature_extractor"):
            raise ModelError(
                f"Cannot use {checkpoint.name!r} for audio: {type(self._model).__name__} takes no raw waveforms as "
                "wav2vec 2.0, HuBERT, WavLM and data2vec-audio do"
            )
        self._convolutions = self._model.feature_extractor
        # The rest of the model's own forward then takes what the convolutions gave.
        self._model.feature_extractor = torch.nn.Identity()
        self._valid = keep_padding_silent(self._model)

    @property
    def least_samples(self) -> int:
        """The fewest samples that make a frame: 400, or 25 ms, for the models named above."""
        config, samples = self._model.config, 1
        for kernel, stride in reversed(list(zip(config.conv_kernel, config.conv_stride, strict=True))):
            samples = (samples - 1) * stride + kernel
        return int(samples)

    def check(self, waveform: Waveform) -> None:
        """See that a waveform makes at least one frame.

        Raises:
            AudioError: it is too short.
        """
        if len(waveform) < self.least_samples:
            raise AudioError(
                f"is too short: {len(waveform)} samples at {self.sampling_rate:,} Hz make no frame, "
                f"{self.least_samples} would"
            )

    def prepare(self, waveform: Waveform) -> Tensor:
        """One utterance as the checkpoint's own preprocessor wants it: normalised, where it says so, before padding.

        (samples,), on the processor; in pinned memory for CUDA, so that its copy need not be waited for.
        """
        prepared = self._preprocessor(waveform, sampling_rate=self.sampling_rate, return_tensors="np")
        samples = torch.as_tensor(prepared["input_values"][0], dtype=torch.float32)
        return samples.pin_memory() if self.device.type == "cuda" else samples

    @torch.inference_mode()
    def _encode(self, inputs: Sequence[Waveform | Tensor], precision: Precision) -> Encoded:
        ready = [one if isinstance(one, Tensor) else self.prepare(one) for one in inputs]
        with exact_fp32(self.device):
            samples = [one.to(self.device, non_blocking=True) for one in ready]  # each (samples,)
            with self._half(precision):
                frames = [self._convolutions(one[None])[0].T for one in samples]  # each (frames, channels)
                lengths = [len(frame) for frame in frames]
                mask = frame_mask = None
                if len(samples) > 1:
                    mask = mask_of([len(one) for one in samples], device=self.device).long()
                    frame_mask = mask_of(lengths, device=self.device)
                padded = pad_sequence(frames, batch_first=True).transpose(1, 2)  # (batch, channels, frames)
                with self._valid(frame_mask):
                    output = self._model(padded, attention_mask=mask, output_hidden_states=self.layers == "all")
            return self._pooled(output, lengths)

    def _probe(self) -> Sequence[Any]:
        noise = np.random.default_rng(0).standard_normal(40 * self.least_samples, dtype=np.float32)
        return [noise[: round(part * len(noise))] for part in (0.33, 1, 0.57)]


class TextEncoder(_Encoder):
    """A frozen text encoder with its tokenizer: BERT, RoBERTa, MPNet and their kin.

    `encode` takes token ids of each transcript, at least one; the mean is over all of them, special ones included.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        layers: Layers = "last",
        frames: int | None = None,
        precision: Precision = "fp32",
        device: torch.device | str = "cpu",
    ) -> None:
        """Load a checkpoint.

        Raises:
            ModelError: it cannot be loaded, or takes no tokens.
        """
        self._tokenizer = from_pretrained(checkpoint, transformers.AutoTokenizer.from_pretrained)
        super().__init__(checkpoint, layers=layers, frames=frames, precision=precision, device=device)
        if self._model.main_input_name != "input_ids":
            raise ModelError(
                f"Cannot use {checkpoint.name!r} for text: {type(self._model).__name__} takes "
                f"{self._model.main_input_name}, not tokens"
            )
        self.most_tokens = _token_limit(self._tokenizer, self._model)

    def tokenize(self, transcripts: Sequence[str]) -> tuple[list[list[int]], list[bool]]:
        """Token ids of each transcript, special tokens included, and whether it had to be cut to `most_tokens`."""
        tokens: list[list[int]] = []
        # A tokenizer notes more of each word than its id: not of a whole corpus at once.
        for first in range(0, len(transcripts), _AT_ONCE):
            tokens += self._tokens(transcripts[first : first + _AT_ONCE], truncation=False)
        cut = [len(ids) > self.most_tokens for ids in tokens]
        for place in (place for place, is_cut in enumerate(cut) if is_cut):
            tokens[place] = self._tokens([transcripts[place]], truncation=True)[0]
        return tokens, cut

    @torch.inference_mode()
    def _encode(self, inputs: Sequence[Sequence[int]], precision: Precision) -> Encoded:
        padding = self._tokenizer.pad_token_id or 0
        ids = pad_sequence([torch.tensor(ids) for ids in inputs], batch_first=True, padding_value=padding)
        if self.device.type == "cuda":
            ids = ids.pin_memory()
        lengths = [len(ids) for ids in inputs]
        with exact_fp32(self.device):
            with self._half(precision):
                output = self._model(
                    input_ids=ids.to(self.device, non_blocking=True),
                    attention_mask=mask_of(lengths, device=self.device).long(),
                    output_hidden_states=self.layers == "all",
                )
            return self._pooled(output, lengths)

    def _probe(self) -> Sequence[Any]:
        words = self._tokens(["this sentence is longer than the others, and by some words", "", "two words"])
        return [ids for ids in words if ids]

    def _tokens(self, transcripts: Sequence[str], *, truncation: bool = True) -> list[list[int]]:
        settings: dict[str, Any] = {"truncation": truncation, "max_length": self.most_tokens if truncation else None}
        tokens: list[list[int]] = self._tokenizer(list(transcripts), verbose=False, **settings)["input_ids"]
        return tokens


def _token_limit(tokenizer: Any, model: Any) -> int:
    """What the tokenizer says, or the number of position embeddings, whichever is less."""
    limit = int(min(tokenizer.model_max_length, 1_000_000))
    positions = getattr(model.config, "max_position_embeddings", None) or limit
    table = getattr(getattr(model, "embeddings", None), "position_embeddings", None)
    # RoBERTa and MPNet count positions from behind their padding index.
    padding = getattr(table, "padding_idx", None)
    return min(limit, int(positions) - (0 if padding is None else int(padding) + 1))
