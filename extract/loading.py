"""A checkpoint goes in; the frozen model on its device comes out, every weight of which was in the checkpoint."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

from amber2_core.errors import ModelError

from .checkpoint import Checkpoint

# Weights that no pooled hidden state depends on: pre-training's mask vector, a pooler on [CLS], constant position ids.
_UNUSED = re.compile(r"(^|\.)(masked_spec_embed|pooler\.|embeddings\.position_ids)")

Loaded = TypeVar("Loaded")

_log = logging.getLogger(__name__)


def load_model(checkpoint: Checkpoint, device: torch.device) -> Any:
    """The encoder of a checkpoint in fp32, in evaluation mode, its parameters frozen.

    Raises:
        ModelError: transformers cannot load it, the device does not take it, or a weight is missing that transformers
            would have made up.
    """
    import transformers

    model, report = from_pretrained(
        checkpoint, transformers.AutoModel.from_pretrained, dtype=torch.float32, output_loading_info=True
    )
    made_up = sorted(key for key in report["missing_keys"] if not _UNUSED.search(key))
    if made_up:
        others = f" and {len(made_up) - 1} more" if len(made_up) > 1 else ""
        raise ModelError(
            f"Cannot load {checkpoint.name!r}: {checkpoint.weights[0].name} lacks {made_up[0]}{others}; "
            f"it does not fit the {checkpoint.folder / 'config.json'} beside it"
        )
    # torch's complaint about WavLM's two kinds of attention mask is transformers' affair.
    warnings.filterwarnings("ignore", message="Support for mismatched key_padding_mask")
    if getattr(model.config, "is_encoder_decoder", False):
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
