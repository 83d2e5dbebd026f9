"""A checkpoint goes in; the frozen model on its device comes out, every weight of which was in the checkpoint."""

from __future__ import annotations

import logging
import re
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

from amber2_core.errors import ModelError, SettingError, bad_choice

from .checkpoint import Checkpoint

DEVICES = ("auto", "cpu", "cuda", "cuda:N", "cuda:0,cuda:1,…", "mps")
# Weights that no pooled hidden state depends on: pre-training's mask vector, a pooler on [CLS], constant position ids.
_UNUSED = re.compile(r"(^|\.)(masked_spec_embed|pooler\.|embeddings\.position_ids)")

Loaded = TypeVar("Loaded")

_log = logging.getLogger(__name__)


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


def choose_devices(names: str) -> tuple[torch.device, ...]:
    """The devices of one name, or of several with commas between them: GPUs that share the work.

    Raises:
        SettingError: no such device exists, one is named twice, or several are not all GPUs.
    """
    devices = tuple(choose_device(name.strip()) for name in names.split(","))
    if len(devices) > 1 and any(device.type != "cuda" or device.index is None for device in devices):
        raise SettingError(f"Bad device {names!r}: several must be GPUs with their numbers, as in cuda:0,cuda:1")
    if len(set(devices)) < len(devices):
        raise SettingError(f"Bad device {names!r}: one is named twice")
    return devices


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


class _Tf32:
    """The process's permission to compute in TensorFloat-32, and how many blocks have withdrawn it."""

    def __init__(self) -> None:
        self._blocks = 0
        self._before: tuple[str, ...] = ()
        self._lock = threading.Lock()

    def withdraw(self) -> None:
        with self._lock:
            if self._blocks == 0:
                self._before = tuple(operation.fp32_precision for operation in _operations())
                _allow(("ieee", "ieee", "ieee"))
            self._blocks += 1

    def restore(self) -> None:
        with self._lock:
            self._blocks -= 1
            if self._blocks == 0:
                _allow(self._before)


def _operations() -> tuple[Any, Any, Any]:
    cudnn: Any = torch.backends.cudnn
    return torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn


def _allow(precisions: tuple[str, ...]) -> None:
    """Set the precision of products, convolutions and recurrent layers.

    torch has two ways of saying so, and refuses to compute where they say different things: both are set.
    """
    products, convolutions, _ = precisions
    torch.backends.cuda.matmul.allow_tf32 = products == "tf32"
    torch.backends.cudnn.allow_tf32 = convolutions == "tf32"
    for operation, precision in zip(_operations(), precisions, strict=True):
        operation.fp32_precision = precision


_tf32 = _Tf32()


@contextmanager
def exact_fp32(device: torch.device) -> Iterator[None]:
    """On CUDA, products and convolutions in fp32 proper: TensorFloat-32 would keep three digits of them.

    The permission is the process's, not the thread's: it comes back when the last of several threads leaves.
    """
    if device.type != "cuda":
        yield
        return
    _tf32.withdraw()
    try:
        yield
    finally:
        _tf32.restore()


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
