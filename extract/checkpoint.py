"""Pretrained encoders as files in a folder: found, downloaded where they must be, and digested."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from amber2_core.errors import ModelError
from amber2_core.files import sha256_of

# language: a model that answers prompts, with or without a recording
Modality = Literal["audio", "text", "sentiment", "language"]

CONFIG = "config.json"
# in the order in which transformers looks for them
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
PREPROCESSOR = ("preprocessor_config.json", "processor_config.json")
TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
)
LANGUAGE = (*TOKENIZER, *PREPROCESSOR, "generation_config.json", "chat_template.jinja", "chat_template.json")
# how sentence-transformers pools what a text encoder gives
POOLING = "1_Pooling/config.json"
# its words → ours
_MODES = {"mean_tokens": "mean", "cls_token": "cls", "lasttoken": "last", "max_tokens": "max"}
_BESIDE: dict[Modality, tuple[str, ...]] = {
    "audio": PREPROCESSOR,
    "text": TOKENIZER,
    "sentiment": TOKENIZER,
    "language": LANGUAGE,
}

# Folders that are called so by the tools that make them, whatever is in them; a snapshot's name is a hub's commit.
_NOT_TELLING = re.compile(
    r"model|models|encoder|checkpoint|checkpoint-\d+|final|best|last|output|0_Transformer|snapshots|[0-9a-f]{40}"
)
# of a class in a file of the user's
_WANTED = "sampling_rate (Hz), size (of its frames) and encode(waveforms) → frames, lengths; see docs/encoders.md"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """A pretrained encoder, as files in a folder."""

    # the id on the Hugging Face hub, or the last component of the folder's path that tells something
    name: str
    folder: Path
    # the hub's commit; "" for a folder of the user's
    revision: str
    # the files that hold the weights, an index first where there are several
    weights: tuple[Path, ...]
    # what turns raw input into the model's: the preprocessor's or tokenizer's files
    beside: tuple[Path, ...]

    @property
    def short_name(self) -> str:
        """``wav2vec2-base`` for ``facebook/wav2vec2-base``."""
        return self.name.rsplit("/", 1)[-1]

    @property
    def place(self) -> str:
        """What `find_checkpoint` finds it by, on any machine that has it."""
        if self.is_own:
            return f"{self.weights[0]}:{self.name}"
        return f"{self.name}@{self.revision}" if self.revision else str(self.folder)

    def identity(self) -> dict[str, Any]:
        """What a recipe holds of any encoder: name, revision, and sha256 of its weights and of ``config.json``.

        Where the weights are several files, the sha256 is of their names and digests. All of them are read.
        """
        return {
            "model": self.name,
            "revision": self.revision,
            "weights_digest": _digest(self.weights),
            "config_digest": _digest(self.weights if self.is_own else [self.folder / CONFIG]),
        }

    @property
    def is_own(self) -> bool:
        """Whether it is a class in a file of the user's, which stands for its weights and all else."""
        return self.weights[0].suffix == ".py"

    @property
    def model_type(self) -> str:
        """What transformers calls its kind: ``whisper``; "" where the config does not say, ``file`` of one's own.

        Raises:
            ModelError: the config cannot be read.
        """
        return "file" if self.is_own else str(_read_json(self.folder / CONFIG).get("model_type", ""))

    def input_digest(self) -> str:
        """sha256 of the names and digests of the preprocessor's or tokenizer's files."""
        return _digest(self.beside)

    def sampling_rate(self) -> int:
        """Hz of the waveforms that a speech encoder wants, as its own preprocessor says.

        Raises:
            ModelError: it does not say.
        """
        for path in self.beside:
            record = _read_json(path)
            rate = record.get("feature_extractor", record).get("sampling_rate")
            if isinstance(rate, int) and rate > 0:
                return rate
        raise ModelError(f"Cannot use {self.name!r} for audio: {self.beside[0]} names no sampling_rate")

    def window_seconds(self) -> float:
        """The window that a model was trained with, as its own preprocessor says.

        Raises:
            ModelError: it does not say.
        """
        for path in self.beside:
            record = _read_json(path)
            record = record.get("feature_extractor", record)
            for name, second in (("chunk_length", 1), ("max_length_s", 1), ("max_length", 100)):
                if isinstance(record.get(name), int | float) and record[name] > 0:
                    return float(record[name]) / second
        raise ModelError(f"Cannot use {self.name!r} for audio: {self.beside[0]} names no length of its window")

    def pooling(self) -> str:
        """How sentence-transformers is told to pool a text encoder: ``mean``, ``cls``, ``last``, …; "" where it is not.

        Raises:
            ModelError: the file that says so cannot be read.
        """
        if not (self.folder / POOLING).is_file():
            return ""
        record = _read_json(self.folder / POOLING)
        if isinstance(record.get("pooling_mode"), str):
            return str(_MODES.get(record["pooling_mode"], record["pooling_mode"]))
        modes = [name.removeprefix("pooling_mode_") for name, value in record.items() if value is True]
        return " and ".join(_MODES.get(mode, mode) for mode in modes if mode in _MODES or "token" in mode)

    def classes(self) -> tuple[str, ...]:
        """What a classifier calls its outputs, in their order; LABEL_0 and LABEL_1 where its config says nothing.

        Raises:
            ModelError: the config cannot be understood.
        """
        names = _read_json(self.folder / CONFIG).get("id2label") or {"0": "LABEL_0", "1": "LABEL_1"}
        try:
            return tuple(str(names[str(place)]) for place in range(len(names)))
        except (KeyError, TypeError):
            raise ModelError(f"Cannot read {self.folder / CONFIG}: expected id2label with 0, 1, …") from None


def find_checkpoint(name: str, *, modality: Modality) -> Checkpoint:
    """Find a pretrained encoder, and download it where it is neither a folder nor downloaded yet.

    Args:
        name: a folder; an id of the Hugging Face hub, with ``@REVISION`` after it where not the newest is wanted; or,
            for audio, a file with a class of one's own, ``path/to/my.py:MyEncoder``.
        modality: audio encoders need a preprocessor beside their weights, what reads transcripts a tokenizer.

    Raises:
        ModelError: no such folder, no such model, no network, or a file is missing (the line says which).
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        folder = folder.resolve()
        try:
            str(folder).encode()  # neither safetensors nor tokenizers take a name that is not UTF-8
        except UnicodeEncodeError:
            raise ModelError(f"Cannot load {name!r}: the name of the folder is not UTF-8; rename it") from None
        return _checkpoint(_telling_name(folder), folder, "", modality)
    file, _, kind = name.rpartition(":")
    if modality == "audio" and file.endswith(".py"):
        if not (path := Path(file).expanduser()).is_file():
            raise ModelError(f"Cannot load {name!r}: there is no file {path}")
        return Checkpoint(kind, path.resolve().parent, "", (path.resolve(),), (path.resolve(),))
    model, _, revision = name.partition("@")
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", model) or model.startswith("."):
        raise ModelError(f"Cannot load {name!r}: there is no such folder")
    try:
        folder = _snapshot(model, revision, modality, download=False)
        return _checkpoint(model, folder, folder.name, modality)
    except ModelError as problem:
        # Not downloaded, or only in part.
        _log.debug("%s", problem)
    folder = _snapshot(model, revision, modality, download=True)
    return _checkpoint(model, folder, folder.name, modality)


def own_class(checkpoint: Checkpoint) -> Any:
    """The class that a file holds. What it imports, torch most likely, is imported here: for workers alone.

    Raises:
        ModelError: the file cannot be imported, or its class is no encoder.
    """
    path, name = checkpoint.weights[0], checkpoint.name
    spec = importlib.util.spec_from_file_location(f"amber2_own_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickle look for it there
    try:
        spec.loader.exec_module(module)
    except Exception as problem:  # a user's file may raise anything
        raise ModelError(f"Cannot import {path}: {type(problem).__name__}: {_first_line(problem)}") from problem
    kind = getattr(module, name, None)
    if kind is None:
        raise ModelError(f"Cannot load {name!r}: {path} holds no such class")
    wrong = [one for one in ("sampling_rate", "size") if not _is_count(getattr(kind, one, None))]
    if wrong or not callable(getattr(kind, "encode", None)):
        raise ModelError(f"Cannot use {name!r} of {path}: it lacks {(wrong or ['encode'])[0]}; wanted are {_WANTED}")
    return kind


def own_sampling_rate(checkpoint: Checkpoint) -> int:
    """Hz of the waveforms that it wants.

    Raises:
        ModelError: as `own_class`.
    """
    return int(own_class(checkpoint).sampling_rate)


def _telling_name(folder: Path) -> str:
    """``all-minilm`` for ``…/all-minilm/model``, ``wav2vec2-base`` for a snapshot in the hub's own cache."""
    for part in reversed(folder.parts[1:]):
        if not _NOT_TELLING.fullmatch(part):
            return part.rsplit("--", 1)[-1] if part.startswith("models--") else part
    return folder.name


def _checkpoint(name: str, folder: Path, revision: str, modality: Modality) -> Checkpoint:
    if not (folder / CONFIG).is_file():
        raise ModelError(f"Cannot load {name!r}: {folder} holds no {CONFIG}")
    beside = tuple(folder / file for file in _BESIDE[modality] if (folder / file).is_file())
    if not beside:
        kind = "preprocessor" if modality == "audio" else "tokenizer"
        raise ModelError(f"Cannot load {name!r}: {folder} holds no {kind} ({' or '.join(_BESIDE[modality][:2])})")
    return Checkpoint(name, folder, revision, _weights(name, folder), beside)


def _weights(name: str, folder: Path) -> tuple[Path, ...]:
    for file in WEIGHTS:
        path = folder / file
        if not path.is_file():
            continue
        pieces = sorted(set(_read_json(path).get("weight_map", {}).values())) if file.endswith(".json") else []
        missing = [piece for piece in pieces if not (folder / piece).is_file()]
        if missing:
            raise ModelError(f"Cannot load {name!r}: {folder} lacks {missing[0]}, which {file} names")
        return (path, *(folder / piece for piece in pieces))
    raise ModelError(f"Cannot load {name!r}: {folder} holds no weights ({WEIGHTS[0]} or {WEIGHTS[2]})")


def _snapshot(model: str, revision: str, modality: Modality, *, download: bool) -> Path:
    """The folder of a hub model; `download` fetches what is missing, and only what is used."""
    # Imported here, as it takes a third of a second that a folder does not need.
    import huggingface_hub

    settings: dict[str, Any] = {"revision": revision or None}
    try:
        if not download:
            return Path(huggingface_hub.snapshot_download(model, local_files_only=True, **settings))
        _log.info("downloading %s", model)
        held = {file.rfilename for file in huggingface_hub.HfApi().model_info(model, **settings).siblings or ()}
        files = [CONFIG, POOLING, *_BESIDE[modality], *_weight_patterns(held.__contains__)]
        return Path(huggingface_hub.snapshot_download(model, allow_patterns=files, **settings))
    except Exception as problem:  # the hub's client raises its HTTP library's errors, which change with its versions
        reason = (str(problem) or type(problem).__name__).strip().splitlines()[0]
        raise ModelError(
            f"Cannot load {model!r}: there is no such folder, it is not downloaded yet or not whole, and downloading "
            f"failed ({reason}). Where there is a network, run `hf download {model}`; or name a folder that holds it"
        ) from None


def _weight_patterns(is_held: Callable[[str], bool]) -> tuple[str, ...]:
    for file in WEIGHTS:
        if is_held(file):
            return (file, file.replace(".index.json", "-*")) if file.endswith(".json") else (file,)
    return WEIGHTS[:1]


def _digest(files: Sequence[Path]) -> str:
    if len(files) == 1:
        return sha256_of(files[0])
    lines = "".join(f"{sha256_of(file)}  {file.name}\n" for file in files)
    return hashlib.sha256(lines.encode()).hexdigest()


def _read_json(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        raise ModelError(f"Cannot read {path}: {str(problem).splitlines()[0]}") from None
    if not isinstance(record, dict):
        raise ModelError(f"Cannot read {path}: expected a JSON object")
    return record


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and value > 0


def _first_line(problem: Exception) -> str:
    return (str(problem).strip().splitlines() or [""])[0]
