"""A checkpoint goes in; the frozen model on its device comes out, every weight of which was in the checkpoint."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import transformers

from amber2_core.errors import ModelError, SettingError, bad_choice

from .checkpoint import Checkpoint

DEVICES = ("auto", "cpu", "cuda", "cuda:N", "mps")
# Weights that no pooled hidden state depends on: pre-training's mask vector, a pooler on [CLS], constant position ids.
_UNUSED = re.compile(r"(^|\.)(masked_spec_embed|pooler\.|embeddings\.position_ids)")

Loaded = TypeVar("Loaded")


def choose_device(name: str) -> torch.device:
    """The device of that name; ``auto`` is CUDA where there is one, else Apple's, else the CPU.

    Raises:
        SettingError: no such device exists, here or at all.
    """
    if name == "auto":
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        return accelerator if accelerator is not None and accelerator.type in ("cuda", "mps") else torch.device("cpu")
    if not re.fullmatch(r"cpu|mps|cuda(:\d+)?", name):
        raise SettingError(bad_choice("device", name, DEVICES))
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise SettingError(
            f"Bad device {name!r}: {torch.cuda.device_count()} CUDA devices are visible; use --device cpu"
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise SettingError(f"Bad device {name!r}: this machine has none; use --device cpu")
    return device


def load_model(checkpoint: Checkpoint, device: torch.device) -> Any:
    """The encoder of a checkpoint in fp32, in evaluation mode, its parameters frozen.

    Raises:
        ModelError: transformers cannot load it, or a weight is missing that transformers would have made up.
    """
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
    return model.to(device).eval().requires_grad_(False)


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
def exact_fp32(device: torch.device) -> Iterator[None]:
    """On CUDA, products and convolutions in fp32 proper: TensorFloat-32 would keep three digits of them."""
    if device.type != "cuda":
        yield
        return
    products, convolutions = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = products, convolutions


@contextmanager
def silence() -> Iterator[None]:
    """Keep transformers from telling of unused weights and showing progress; its errors are exceptions all the same."""
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
