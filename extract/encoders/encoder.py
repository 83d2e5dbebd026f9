"""What frozen transformers encoders have in common: how one is loaded, runs a batch, pools it, and is tried."""

from __future__ import annotations

import logging
import math
import re
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib import import_module
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from amber2_core.devices import is_out_of_memory, set_arithmetic
from amber2_core.errors import ModelError

from ..checkpoint import CONFIG, Checkpoint
from ..recipe import EXACT, Attention, Layers, Precision
from ..rows import Row, difference
from . import AUDIO_POOLINGS, TEXT_POOLINGS, TOWERS, exactness
from .exactness import binned, mask_of

_HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
# Weights that no pooled hidden state depends on: pre-training's mask vector, a pooler on [CLS], constant position ids.
_UNUSED = re.compile(r"(^|\.)(masked_spec_embed|pooler\.|embeddings\.position_ids)")
_CONSTANT = re.compile(r"(^|\.)embeddings\.position_ids")

Loaded = TypeVar("Loaded")

_log = logging.getLogger(__name__)


class Encoder:
    """What encoders of speech and text have in common: how a batch is run, pooled, and tried for exactness."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        layers: Layers = "last",
        layer: int | None = None,
        frames: int | None = None,
        pooling: str = "mean",
        attention: Attention | None = None,
        precision: Precision = "fp32",
        device: torch.device | str = "cpu",
    ) -> None:
        """Load a checkpoint, and settle for the whole process that fp32 is computed in all its digits.

        Raises:
            ModelError: it cannot be loaded, or is no encoder of this kind.
        """
        self.device = torch.device(device)
        set_arithmetic(self.device)
        self.layers = layers
        self.layer = layer
        self.frames = frames
        self.precision = precision
        self.attention = attention
        self._pool = getattr(exactness, {**TEXT_POOLINGS, **AUDIO_POOLINGS}[pooling])
        self._batches_are_exact: bool | None = None
        # the largest that the trial found; NaN before it, infinite where the model takes no batches
        self.error_of_batches = math.nan
        self._trying = threading.Lock()
        self._model = self._loaded(checkpoint)
        weights: Iterable[Tensor] = getattr(self._model, "parameters", tuple)()
        self.parameters = sum(int(weight.numel()) for weight in weights)
        self._set_up(checkpoint)

    def _loaded(self, checkpoint: Checkpoint) -> Any:
        return load_model(checkpoint, self.device, attention=self.attention)

    def _set_up(self, checkpoint: Checkpoint) -> None:
        """Load what turns raw input into the model's, and see that the model takes it."""
        raise NotImplementedError

    def encode(self, inputs: Sequence[Any]) -> list[Row]:
        """Encode a batch; each row is what its utterance gives alone.

        Its values are the hidden states pooled over the valid places, by default their mean; its frames, if any are
        asked for, means over stretches of the last hidden state, or of that of the one layer asked for.
        """
        if len(inputs) == 1 or self._is_exact():
            return self._encode(inputs, self.precision)
        return [row for one in inputs for row in self._encode([one], self.precision)]

    def _encode(self, inputs: Sequence[Any], precision: Precision) -> list[Row]:
        raise NotImplementedError

    def _probe(self) -> Sequence[Any]:
        """Inputs of lengths that tell whether a batch changes what its utterances give: see `trial_lengths`."""
        raise NotImplementedError

    def _half(self, precision: Precision) -> AbstractContextManager[object]:
        """torch's autocast: half precision for products and convolutions; the device decides on the rest."""
        if precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=_HALF[precision])

    @property
    def looks_inside(self) -> bool:
        """Whether more is asked for than the last hidden state."""
        return self.layers == "all" or self.layer is not None

    def _chosen(self, states: Sequence[Tensor]) -> Sequence[Tensor]:
        """Those hidden states that are asked for, of all: the input of the first layer, and each layer's output."""
        if self.layers == "all":
            return states
        if self.layer is None:
            return states[-1:]
        if self.layer >= len(states):
            model = type(self._model).__name__
            raise ModelError(f"Bad layer {self.layer}, expected 0 to {len(states) - 1}: so many has this {model}")
        return states[self.layer : self.layer + 1]

    def _pooled(self, output: Any, lengths: Sequence[int]) -> list[Row]:
        """Pool a model's output over the first `lengths[i]` places of each row."""
        # Some models normalise once more after their last layer: what counts as its output is the last hidden state.
        inner = output.hidden_states[:-1] if self.looks_inside else ()
        return self._rows(self._chosen((*inner, output.last_hidden_state)), lengths)

    def _rows(self, states: Sequence[Tensor], lengths: Sequence[int]) -> list[Row]:
        """Pool hidden states, each (batch, places, D), over the first `lengths[i]` places of each row."""
        last = states[-1]
        if len(lengths) == 1:
            # Nothing is padded.
            lengths, mask = [last.shape[1]], None
        else:
            mask = mask_of(lengths, device=self.device)
        of_layers = [self._pool(state, mask) for state in states]  # each (batch, D)
        pooled = torch.stack(of_layers, dim=1) if self.layers == "all" else of_layers[0]
        values = np.asarray(pooled.cpu().numpy())
        if self.frames is None:
            return [Row(one) for one in values]
        bins = [binned(row[:length], self.frames) for row, length in zip(last, lengths, strict=True)]
        # One copy from the device: each would wait for all that the device still has to do.
        frames = np.split(torch.cat(bins).cpu().numpy(), np.cumsum([len(one) for one in bins])[:-1])
        return [Row(one, sequence) for one, sequence in zip(values, frames, strict=True)]

    @property
    def is_one_at_a_time(self) -> bool:
        """Whether the trial has found that batches change their rows."""
        return self._batches_are_exact is False

    def _is_exact(self) -> bool:
        """Whether batches give what their items give alone: tried out in fp32, when the first batch comes."""
        with self._trying:
            if self._batches_are_exact is None:
                self.error_of_batches = self._error_of_batches()
                while self.error_of_batches > EXACT["fp32"] and self._go_another_way():
                    self.error_of_batches = self._error_of_batches()
                self._batches_are_exact = self.error_of_batches <= EXACT["fp32"]
                if not self._batches_are_exact:
                    model = type(self._model).__name__
                    _log.info("%s changes with its batch: utterances are encoded one at a time", model)
        return self._batches_are_exact

    def _go_another_way(self) -> bool:
        """Go over to a slower way of running batches, if there is one."""
        return False

    def _error_of_batches(self) -> float:
        """The largest relative L2 error of a row: of all inputs of the trial at once, and of all but the longest.

        What a row becomes may depend on the remainders of its own length and of the longest one.
        """
        probe = sorted(self._probe(), key=len)
        alone = [row for one in probe for row in self._encode([one], "fp32")]
        try:
            together = [*self._encode(probe, "fp32"), *self._encode(probe[:-1], "fp32")]
            return max(map(difference, together, [*alone, *alone[:-1]]))
        except (RuntimeError, ValueError) as problem:
            if is_out_of_memory(problem):
                raise
            # Its output has other lengths than its convolutions gave, or it takes no batches.
            return math.inf


def load_model(
    checkpoint: Checkpoint, device: torch.device, *, classifies: bool = False, attention: Attention | None = None
) -> Any:
    """The encoder of a checkpoint in fp32, in evaluation mode, its parameters frozen; or the whole, as a classifier.

    Args:
        checkpoint: of an encoder, of a model that has one, or of a classifier.
        device: where it is to be.
        classifies: the whole model is wanted.
        attention: how its attention is computed; None leaves that to transformers.

    Raises:
        ModelError: transformers cannot load it, the device does not take it, or a weight is missing that transformers
            would have made up.
    """
    import transformers

    kind: Any = transformers.AutoModelForSequenceClassification
    config = from_pretrained(checkpoint, transformers.AutoConfig.from_pretrained)
    if not classifies:
        # T5's encoder may have been saved alone, and needs no decoder in any case.
        encodes = type(config) in transformers.MODEL_FOR_TEXT_ENCODING_MAPPING
        kind = transformers.AutoModelForTextEncoding if encodes else transformers.AutoModel
    unused = _CONSTANT if classifies else _UNUSED
    return _loaded(checkpoint, kind, device, unused=unused, parted=not classifies, **_wanted(attention))


def load_tower(checkpoint: Checkpoint, device: torch.device, *, attention: Attention | None = None) -> Any:
    """The encoder of speech of a checkpoint that holds more, of which nothing else is read; else as `load_model`.

    Raises:
        ModelError: as `load_model`.
    """
    import transformers

    if checkpoint.model_type not in TOWERS:
        return load_model(checkpoint, device, attention=attention)
    place, part, prefix = TOWERS[checkpoint.model_type]
    module, _, name = place.partition(":")
    kind = getattr(import_module(f"transformers.models.{module}"), name)
    config = from_pretrained(checkpoint, transformers.AutoConfig.from_pretrained)
    settings = {"config": getattr(config, part) if part else config, "key_mapping": {prefix: ""}}
    return _loaded(checkpoint, kind, device, unused=_UNUSED, parted=False, **settings, **_wanted(attention))


def _wanted(attention: Attention | None) -> dict[str, Any]:
    return {} if attention is None else {"attn_implementation": attention}


def _loaded(
    checkpoint: Checkpoint, kind: Any, device: torch.device, *, unused: re.Pattern[str], parted: bool, **settings: Any
) -> Any:
    """A model of some kind, all of whose weights were there, but for those that nothing depends on; of one with a
    decoder, its encoder alone if it is to be parted.
    """
    model, report = from_pretrained(
        checkpoint, kind.from_pretrained, dtype=torch.float32, output_loading_info=True, **settings
    )
    made_up = sorted(key for key in report["missing_keys"] if not unused.search(key))
    if made_up:
        others = f" and {len(made_up) - 1} more" if len(made_up) > 1 else ""
        raise ModelError(
            f"Cannot load {checkpoint.name!r}: {checkpoint.weights[0].name} lacks {made_up[0]}{others}; "
            f"it does not fit the {checkpoint.folder / CONFIG} beside it"
        )
    # torch's complaint about WavLM's two kinds of attention mask is transformers' affair.
    warnings.filterwarnings("ignore", message="Support for mismatched key_padding_mask")
    if parted and getattr(model.config, "is_encoder_decoder", False):
        model = model.get_encoder()
    _fix_weights(model)
    try:
        return model.to(device).eval().requires_grad_(False)
    except RuntimeError as problem:  # no room, a driver that is too old, a GPU that is another's alone
        raise ModelError(f"Cannot load {checkpoint.name!r} to {device}: {str(problem).splitlines()[0]}") from problem


def _fix_weights(model: Any) -> None:
    """Compute once what a weight norm computes anew in every call; in one thread, as sums depend on their number."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for module in model.modules():
            for name in list(getattr(module, "parametrizations", ())):
                torch.nn.utils.parametrize.remove_parametrizations(module, name)
    finally:
        torch.set_num_threads(threads)


def from_pretrained(checkpoint: Checkpoint, load: Callable[..., Loaded], **settings: Any) -> Loaded:
    """What one of transformers' ``from_pretrained`` gives for a checkpoint, silently.

    Raises:
        ModelError: whatever goes wrong, in one line.
    """
    try:
        with silence():
            return load(checkpoint.folder, local_files_only=True, **settings)
    except Exception as problem:  # config, safetensors, pickle and tokenizer errors have no common base
        lines = (str(problem) or type(problem).__name__).strip().splitlines()
        raise ModelError(f"Cannot load {checkpoint.name!r} from {checkpoint.folder}: {lines[0]}") from problem


@contextmanager
def silence() -> Iterator[None]:
    """Keep transformers from telling of unused weights and showing progress; its errors are exceptions all the same."""
    import transformers

    logging: Any = transformers.utils.logging
    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()
