"""A local language model of transformers, with ears or without, that answers a file of requests, batch by batch.

Each request has its own random stream, begun with its `seed`: at a temperature T > 0 a token is drawn from
softmax(logits / T), by the largest of logits / T + Gumbel noise, at 0 it is the likeliest. So a batch changes an answer
no more than it changes logits, by rounding. Nothing else of the model's own sampling (top-k, top-p, penalties) applies.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor

from amber2_core.devices import choose_device, set_arithmetic
from amber2_core.errors import AudioError, CacheError, CorpusError, ModelError, SettingError, bad_choice, parse_problem
from amber2_core.files import behind_links, lock, sha256_of, write_json, written_whole
from amber2_data.release import refuse_constant, text_lines, unique_keys
from amber2_data.sound import Excerpt, Waveform

from .audio import read_waveform
from .checkpoint import Checkpoint, find_checkpoint
from .encoders.encoder import from_pretrained, silence

Recordings = Literal["attached", "left-out"]
RECORDINGS: tuple[Recordings, ...] = get_args(Recordings)
Weights = Literal["as-saved", "fp32", "bf16", "fp16"]
DTYPES: Mapping[str, Any] = {
    "as-saved": "auto",
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
GPU_BATCH = 8
_LINE_SECONDS = 30.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Asked:
    """What was answered."""

    output: Path
    requests: int
    # of these, answered by an earlier call that was interrupted
    resumed: int
    # recordings longer than the model listens, of those asked now
    cut: int
    # (utterance, reason) of the requests that could not be made
    failures: tuple[tuple[str, str], ...]


def ask_model(
    prompts: Path,
    model: str,
    output: Path,
    *,
    root: Path | None = None,
    recordings: Recordings = "attached",
    device: str = "auto",
    weights: Weights = "as-saved",
    batch_size: int | None = None,
    max_tokens: int = 256,
    force: bool = False,
) -> Asked:
    """Ask a model every request of a file, and write its answers in their order.

    Each line has `utterance`, `annotator` and `answer`; where a recording cannot be read, `answer` is null, and
    `reason` says why. What an interrupted call has answered is not asked again by the same call.

    Args:
        prompts: as `write_prompts` writes it.
        model: a folder, or an id of the Hugging Face hub.
        output: the file of answers; it stands under that name only when it is complete.
        root: the folder that paths of recordings start from.
        recordings: whether a model that listens is given them.
        device: as of `choose_device`.
        weights: the precision to compute in.
        batch_size: requests at a time; by default 1 on a CPU.
        max_tokens: of an answer.
        force: replace an existing `output`.

    Raises:
        CacheError: `output` exists, or another process writes it.
        CorpusError: the file of requests cannot be read.
        ModelError: the model cannot be loaded, or fails.
        SettingError: an option has no meaning, or recordings are wanted and no `root` is given.
    """
    for what, value, choices in (("recordings", recordings, RECORDINGS), ("precision", weights, tuple(DTYPES))):
        if value not in choices:
            raise SettingError(bad_choice(what, value, choices))
    if output.exists() and not force:
        raise CacheError(f"{output} exists: choose another --output, or --force")
    requests = read_requests(prompts)
    place = choose_device(device)
    checkpoint = find_checkpoint(model, modality="language")
    settings = {
        "prompts": sha256_of(prompts),
        "model": [checkpoint.name, checkpoint.revision, *(_stamp(file) for file in checkpoint.weights)],
        "settings": [recordings, weights, max_tokens],
    }
    with _part(output, settings) as part:
        done = {_key(record) for record in _records(part)}
        rest = [request for request in requests if _key(request) not in done]
        cut = 0
        if rest:
            speaker = Speaker(checkpoint, device=place, weights=weights, max_tokens=max_tokens)
            listener = None
            if recordings == "attached" and speaker.is_hearing(rest):
                if root is None:
                    raise SettingError(f"{checkpoint.name} listens: name the folder of recordings with --root")
                listener = Listener(root, speaker)
            size = batch_size or (1 if place.type == "cpu" else GPU_BATCH)
            _write(part, _answers(speaker, listener, rest, size), len(done), len(requests))
            cut = listener.cut if listener else 0
        failures = [(one["utterance"], one["reason"]) for one in _records(part) if one["answer"] is None]
        with written_whole(output) as writing:
            shutil.copyfile(part, writing)
    return Asked(output, len(requests), len(done), cut, tuple(failures))


def read_requests(path: Path) -> list[dict[str, Any]]:
    """The requests of a file.

    Raises:
        CorpusError: no such file, a line is no request, or two have the same utterance and annotator.
    """
    requests: list[dict[str, Any]] = []
    seen: set[tuple[str, str]] = set()
    for number, line in text_lines(path):
        if not line.strip():
            continue
        try:
            request = json.loads(line, object_pairs_hook=unique_keys, parse_constant=refuse_constant)
            if not isinstance(request, dict) or any(type(request.get(k)) is not str for k in ("utterance", "prompt")):
                raise ValueError("expected an object with texts under utterance and prompt")
            if _key(request) in seen:
                raise ValueError(f"a second request of {request['utterance']!r} by {request.get('annotator')!r}")
            heat, seed = request.get("temperature", 0), request.get("seed", 0)
            if not isinstance(heat, int | float) or not 0 <= heat <= 100 or not isinstance(seed, int):
                raise ValueError("expected a temperature from 0 to 100, and a seed that is a whole number")
        except (ValueError, RecursionError) as problem:
            raise CorpusError(parse_problem(path, number, str(problem)[:200])) from None
        seen.add(_key(request))
        requests.append(request)
    if not requests:
        raise CorpusError(f"{path} holds no request: write some with write-prompts")
    return requests


class Speaker:
    """A language model that answers."""

    def __init__(self, checkpoint: Checkpoint, *, device: torch.device, weights: Weights, max_tokens: int) -> None:
        """Load it.

        Raises:
            ModelError: transformers cannot load it, or a weight is missing that it would have made up.
        """
        import transformers

        set_arithmetic(device)
        self.checkpoint, self.device, self.max_tokens = checkpoint, device, max_tokens
        self.processor: Any = from_pretrained(checkpoint, transformers.AutoProcessor.from_pretrained)
        self.tokenizer: Any = getattr(self.processor, "tokenizer", self.processor)
        self.tokenizer.padding_side = "left"
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        config = from_pretrained(checkpoint, transformers.AutoConfig.from_pretrained)
        several = type(config) in transformers.MODEL_FOR_MULTIMODAL_LM_MAPPING
        kind: Any = transformers.AutoModelForMultimodalLM if several else transformers.AutoModelForCausalLM
        self.model, report = from_pretrained(
            checkpoint, kind.from_pretrained, dtype=DTYPES[weights], output_loading_info=True
        )
        if report["missing_keys"]:
            raise ModelError(f"Cannot load {checkpoint.name!r}: its weights lack {min(report['missing_keys'])}")
        self.model = self.model.to(device).eval().requires_grad_(False)

    @property
    def ear(self) -> Any:
        """What turns a waveform into the model's input; None: it reads text alone."""
        names = ("feature_extractor", "audio_processor")
        return next((ear for name in names if (ear := getattr(self.processor, name, None)) is not None), None)

    def is_hearing(self, requests: Iterable[Mapping[str, Any]]) -> bool:
        """Whether it listens to what these requests have of recordings; the log says where it cannot."""
        wanted = sum(bool(request.get("audio")) for request in requests)
        if wanted and self.ear is None:
            _log.warning("%s reads text alone: %d recordings are left out", self.checkpoint.name, wanted)
        return wanted > 0 and self.ear is not None

    @torch.inference_mode()
    def answers(self, requests: Sequence[Mapping[str, Any]], waveforms: Sequence[Waveform] | None) -> list[str]:
        """The answers to some requests, all of them with a recording or none.

        Raises:
            ModelError: the model, or its template for conversations, fails.
        """
        import transformers

        tokens, configuration = self.tokenizer, cast("Any", transformers.GenerationConfig)
        settings = configuration(
            max_new_tokens=self.max_tokens,
            do_sample=False,
            pad_token_id=tokens.pad_token_id,
            bos_token_id=self.model.generation_config.bos_token_id,
            eos_token_id=self.model.generation_config.eos_token_id or tokens.eos_token_id,
        )
        try:
            inputs = self._inputs([request["prompt"] for request in requests], waveforms)
            if not inputs["input_ids"].shape[1]:
                raise ValueError("its tokenizer makes nothing of a prompt")
            with silence():
                found = self.model.generate(
                    **inputs, generation_config=settings, logits_processor=[Tempered(requests)]
                )  # (batch, prompt + answer)
        except (TypeError, ValueError, KeyError, IndexError, NotImplementedError, ImportError) as problem:
            reason = (str(problem) or type(problem).__name__).strip().splitlines()[0]
            raise ModelError(f"{self.checkpoint.name} cannot be asked: {reason}") from problem
        answers = tokens.batch_decode(found[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return [answer.strip() for answer in answers]

    def _inputs(self, prompts: Sequence[str], waveforms: Sequence[Waveform] | None) -> dict[str, Any]:
        if waveforms is None and not self.tokenizer.chat_template and not getattr(self.processor, "chat_template", ""):
            inputs = self.tokenizer(list(prompts), return_tensors="pt", padding=True)
        else:
            heard = [[]] * len(prompts) if waveforms is None else [[{"type": "audio", "audio": w}] for w in waveforms]
            content = [[*sound, {"type": "text", "text": words}] for sound, words in zip(heard, prompts, strict=True)]
            inputs = self._of_template(content if hasattr(self.processor, "tokenizer") else prompts)
        dtype = self.model.dtype
        return {
            name: x.to(self.device, dtype) if isinstance(x, Tensor) and x.is_floating_point() else x.to(self.device)
            for name, x in inputs.items()
            if isinstance(x, Tensor)
        }

    def _of_template(self, contents: Sequence[Any]) -> Any:
        """The model's own form of conversations of one turn; a tokenizer takes padding as its own argument."""
        padding = {"processor_kwargs": {"padding": True}} if hasattr(self.processor, "tokenizer") else {"padding": True}
        return self.processor.apply_chat_template(
            [[{"role": "user", "content": content}] for content in contents],
            tokenize=True,
            return_dict=True,
            add_generation_prompt=True,
            return_tensors="pt",
            **padding,
        )


class Listener:
    """Reads recordings at the rate that a model takes, and counts those that it hears the beginning of alone."""

    def __init__(self, root: Path, speaker: Speaker) -> None:
        self.root, self.cut = root, 0
        self.rate = int(getattr(speaker.ear, "sampling_rate", 16_000))
        self._longest = getattr(speaker.ear, "n_samples", None)

    def waveform(self, request: Mapping[str, Any]) -> Waveform:
        """The recording of a request.

        Raises:
            AudioError: it cannot be read.
        """
        excerpt = Excerpt(self.root / request["audio"], request.get("start"), request.get("duration"))
        waveform = read_waveform(excerpt, sampling_rate=self.rate)
        self.cut += self._longest is not None and len(waveform) > self._longest
        return waveform


class Tempered:
    """Makes the likeliest token a draw at each request's temperature; the noise is a CPU's on every device."""

    def __init__(self, requests: Sequence[Mapping[str, Any]]) -> None:
        self._streams = [torch.Generator().manual_seed(int(request.get("seed", 0))) for request in requests]
        self._heats = [float(request.get("temperature", 0)) for request in requests]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(batch, tokens) logits → of which the largest is drawn; called once for each token of the answers."""
        rows = []
        for scored, stream, heat in zip(scores.double(), self._streams, self._heats, strict=True):
            row = scored
            if heat > 0:
                noise = -(-torch.rand(row.shape, generator=stream, dtype=torch.float64).log()).log()
                row = row / heat + noise.to(row.device)
            rows.append(row)
        return torch.stack(rows)


def _answers(
    speaker: Speaker, listener: Listener | None, requests: Sequence[dict[str, Any]], size: int
) -> Iterator[list[dict[str, Any]]]:
    """The records of each batch, in the order of its requests."""
    for first in range(0, len(requests), size):
        batch = requests[first : first + size]
        said: dict[int, str | AudioError] = {}
        heard: dict[int, Waveform] = {}
        for place, request in enumerate(batch):
            if listener and request.get("audio"):
                try:
                    heard[place] = listener.waveform(request)
                except AudioError as problem:
                    said[place] = problem
        silent = [place for place in range(len(batch)) if place not in heard and place not in said]
        for places, waveforms in (([*heard], [*heard.values()]), (silent, None)):
            if places:
                answers = speaker.answers([batch[place] for place in places], waveforms)
                said |= dict(zip(places, answers, strict=True))
        yield [_record(request, said[place]) for place, request in enumerate(batch)]


def _record(request: Mapping[str, Any], said: str | AudioError) -> dict[str, Any]:
    who = {"utterance": request["utterance"], "annotator": request.get("annotator", "")}
    return {**who, "answer": said} if isinstance(said, str) else {**who, "answer": None, "reason": str(said)}


def _write(part: Path, batches: Iterable[list[dict[str, Any]]], done: int, total: int) -> None:
    """Write every batch down as it comes; a line of the log every half minute."""
    last = time.monotonic()
    with part.open("a", encoding="utf-8", newline="\n") as file:
        for records in batches:
            # ASCII: a model may write half a surrogate pair
            file.writelines(json.dumps(record) + "\n" for record in records)
            file.flush()
            os.fsync(file.fileno())
            done += len(records)
            if time.monotonic() - last >= _LINE_SECONDS:
                last = time.monotonic()
                _log.info("%s of %s answered", f"{done:,}", f"{total:,}")


@contextmanager
def _part(output: Path, settings: Mapping[str, Any]) -> Iterator[Path]:
    """The file that answers are collected in, beside the output; of the same call, or empty. Removed when all is well.

    Raises:
        CacheError: another process writes it.
    """
    file = behind_links(output)
    folder = file.with_name(f"{file.name}.parts")
    part, told = folder / "answers.jsonl", folder / "settings.json"
    try:
        with lock(folder / "lock"):
            if part.exists() and (not told.exists() or json.loads(told.read_text(encoding="utf-8")) != settings):
                _log.info("what an earlier call answered is asked again: its prompts, model or settings were others")
                part.unlink()
            write_json(told, settings)
            part.touch()
            yield part
            shutil.rmtree(folder, ignore_errors=True)
    except BlockingIOError as problem:
        raise CacheError(f"{output} is {problem.strerror}: wait for it, or choose another --output") from None


def _records(part: Path) -> list[dict[str, Any]]:
    """The answers that are there; a line that a kill has torn is cut off."""
    content = part.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        os.truncate(part, len(whole))
    return [json.loads(line) for line in whole.splitlines()]


def _key(record: Mapping[str, Any]) -> tuple[str, str]:
    return str(record["utterance"]), str(record.get("annotator", ""))


def _stamp(file: Path) -> list[Any]:
    status = file.stat()
    return [file.name, status.st_size, status.st_mtime_ns]
