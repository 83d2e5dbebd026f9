"""Waveforms or transcripts go in; pooled hidden states of a frozen transformers model come out, whatever the batch."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import transformers
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from amber2_core.errors import AudioError, ModelError

from .audio import Waveform
from .checkpoint import Checkpoint
from .loading import exact_fp32, from_pretrained, load_model
from .pooling import mask_of, masked_mean
from .recipe import Layers

Pooled = npt.NDArray[np.float32]  # (batch, D), or (batch, layers + 1, D)

# How far a row of a batch may be from the same utterance encoded alone, relative L2.
EXACT = 1e-5

_log = logging.getLogger(__name__)


class SpeechEncoder:
    """A frozen encoder of raw waveforms: wav2vec 2.0, HuBERT, WavLM, data2vec-audio and their kin.

    Padding must not reach the convolutions: where they hold a group norm over time (wav2vec2-base among others), its
    statistics would see it, mask or no mask. So they run one utterance at a time, and what follows them, most of the
    work, runs in batches under a mask of valid frames.
    """

    def __init__(self, checkpoint: Checkpoint, *, layers: Layers = "last", device: torch.device | str = "cpu") -> None:
        """Load a checkpoint.

        Raises:
            ModelError: it cannot be loaded, or is no encoder of raw waveforms.
        """
        self.device = torch.device(device)
        self.layers = layers
        self.sampling_rate = checkpoint.sampling_rate()
        self._preprocessor = from_pretrained(checkpoint, transformers.AutoFeatureExtractor.from_pretrained)
        self._model = load_model(checkpoint, self.device)
        if self._model.main_input_name != "input_values" or not hasattr(self._model, "feature_extractor"):
            raise ModelError(
                f"Cannot use {checkpoint.name!r} for audio: {type(self._model).__name__} takes no raw waveforms as "
                "wav2vec 2.0, HuBERT, WavLM and data2vec-audio do"
            )
        self._convolutions = self._model.feature_extractor
        # The rest of the model's own forward then takes what the convolutions gave.
        self._model.feature_extractor = torch.nn.Identity()
        self._exactness = _Exactness(type(self._model).__name__)

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

    def encode(self, waveforms: Sequence[Waveform]) -> Pooled:
        """Encode a batch; each row is what its utterance gives alone.

        Args:
            waveforms: each (samples,) at `sampling_rate`, at least `least_samples` long.

        Returns:
            (batch, D), or (batch, layers + 1, D): the mean of the hidden states over the valid frames.
        """
        if len(waveforms) > 1 and not self._batches_are_exact():
            return np.concatenate([self._encode([waveform]) for waveform in waveforms])
        return self._encode(waveforms)

    def _batches_are_exact(self) -> bool:
        noise = np.random.default_rng(0).standard_normal(40 * self.least_samples, dtype=np.float32)
        return self._exactness.of(self._encode, [noise[: round(part * len(noise))] for part in (0.33, 1, 0.57)])

    @torch.inference_mode()
    def _encode(self, waveforms: Sequence[Waveform]) -> Pooled:
        with exact_fp32(self.device):
            inputs = [self._prepared(waveform) for waveform in waveforms]  # each (samples,)
            frames = [self._convolutions(samples[None])[0].T for samples in inputs]  # each (frames, channels)
            mask = frame_mask = None
            if len(waveforms) > 1:
                mask = mask_of([len(samples) for samples in inputs], device=self.device).long()
                frame_mask = mask_of([len(frame) for frame in frames], device=self.device)
            padded = pad_sequence(frames, batch_first=True).transpose(1, 2)  # (batch, channels, frames)
            output = self._model(padded, attention_mask=mask, output_hidden_states=self.layers == "all")
            return _pooled(output, frame_mask, self.layers)

    def _prepared(self, waveform: Waveform) -> Tensor:
        """One utterance as the checkpoint's own preprocessor wants it: normalised, where it says so, before padding."""
        prepared = self._preprocessor(waveform, sampling_rate=self.sampling_rate, return_tensors="np")
        return torch.as_tensor(prepared["input_values"][0], dtype=torch.float32, device=self.device)


class TextEncoder:
    """A frozen text encoder with its tokenizer: BERT, RoBERTa, MPNet and their kin."""

    def __init__(self, checkpoint: Checkpoint, *, layers: Layers = "last", device: torch.device | str = "cpu") -> None:
        """Load a checkpoint.

        Raises:
            ModelError: it cannot be loaded, or takes no tokens.
        """
        self.device = torch.device(device)
        self.layers = layers
        self._tokenizer = from_pretrained(checkpoint, transformers.AutoTokenizer.from_pretrained)
        self._model = load_model(checkpoint, self.device)
        if self._model.main_input_name != "input_ids":
            raise ModelError(
                f"Cannot use {checkpoint.name!r} for text: {type(self._model).__name__} takes "
                f"{self._model.main_input_name}, not tokens"
            )
        self.most_tokens = _token_limit(self._tokenizer, self._model)
        self._exactness = _Exactness(type(self._model).__name__)

    def tokenize(self, transcripts: Sequence[str]) -> tuple[list[list[int]], list[bool]]:
        """Token ids of each transcript, special tokens included, and whether it had to be cut to `most_tokens`."""
        tokens = self._tokens(transcripts, truncation=False)
        cut = [len(ids) > self.most_tokens for ids in tokens]
        for place in (place for place, is_cut in enumerate(cut) if is_cut):
            tokens[place] = self._tokens([transcripts[place]], truncation=True)[0]
        return tokens, cut

    def encode(self, tokens: Sequence[Sequence[int]]) -> Pooled:
        """Encode a batch; each row is what its transcript gives alone.

        Args:
            tokens: ids of each transcript, at least one.

        Returns:
            (batch, D), or (batch, layers + 1, D): the mean of the hidden states over the tokens, special ones included.
        """
        if len(tokens) > 1 and not self._batches_are_exact():
            return np.concatenate([self._encode([ids]) for ids in tokens])
        return self._encode(tokens)

    def _batches_are_exact(self) -> bool:
        words = self._tokens(["this sentence is longer than the others, and by some words", "", "two words"])
        return self._exactness.of(self._encode, [ids for ids in words if ids])

    @torch.inference_mode()
    def _encode(self, tokens: Sequence[Sequence[int]]) -> Pooled:
        padding = self._tokenizer.pad_token_id or 0
        ids = pad_sequence([torch.tensor(ids) for ids in tokens], batch_first=True, padding_value=padding)
        mask = mask_of([len(ids) for ids in tokens], device=self.device)
        with exact_fp32(self.device):
            output = self._model(
                input_ids=ids.to(self.device),
                attention_mask=mask.long(),
                output_hidden_states=self.layers == "all",
            )
            return _pooled(output, mask, self.layers)

    def _tokens(self, transcripts: Sequence[str], *, truncation: bool = True) -> list[list[int]]:
        settings: dict[str, Any] = {"truncation": truncation, "max_length": self.most_tokens if truncation else None}
        tokens: list[list[int]] = self._tokenizer(list(transcripts), verbose=False, **settings)["input_ids"]
        return tokens


def _pooled(output: Any, mask: Tensor | None, layers: Layers) -> Pooled:
    """Pool a model's output; no mask where nothing is padded."""
    last = output.last_hidden_state  # (batch, places, D)
    # Some models normalise once more after their last layer: what counts as its output is the last hidden state.
    states = (last,) if layers == "last" else (*output.hidden_states[:-1], last)
    means = [state.float().mean(dim=1) if mask is None else masked_mean(state, mask) for state in states]
    pooled = means[0] if layers == "last" else torch.stack(means, dim=1)
    return np.asarray(pooled.cpu().numpy())


class _Exactness:
    """Whether a model's batches give what their items give alone: tried out once, when the first batch comes."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._answer: bool | None = None
        self._lock = threading.Lock()

    def of(self, encode: Callable[[Sequence[Any]], Pooled], probe: Sequence[Any]) -> bool:
        """The answer, found with a small batch; the log tells where it is no."""
        with self._lock:
            if self._answer is None:
                self._answer = self._try(encode, probe) <= EXACT
                if not self._answer:
                    _log.info("%s changes with its batch: utterances are encoded one at a time", self._model)
        return self._answer

    def _try(self, encode: Callable[[Sequence[Any]], Pooled], probe: Sequence[Any]) -> float:
        """The largest relative L2 error of a row."""
        alone = np.concatenate([encode([item]) for item in probe]).reshape(len(probe), -1)
        try:
            together = encode(probe).reshape(len(probe), -1)
        except RuntimeError:
            # Its output has other lengths than its convolutions gave.
            return math.inf
        return float((np.linalg.norm(together - alone, axis=1) / np.linalg.norm(alone, axis=1)).max())


def _token_limit(tokenizer: Any, model: Any) -> int:
    """What the tokenizer says, or the number of position embeddings, whichever is less."""
    limit = int(min(tokenizer.model_max_length, 1_000_000))
    positions = getattr(model.config, "max_position_embeddings", None) or limit
    table = getattr(getattr(model, "embeddings", None), "position_embeddings", None)
    # RoBERTa and MPNet count positions from behind their padding index.
    padding = getattr(table, "padding_idx", None)
    return min(limit, int(positions) - (0 if padding is None else int(padding) + 1))
