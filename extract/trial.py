"""What `check-encoder` finds: which encoder a name leads to, whether its batches are exact, and how fast it is."""

from __future__ import annotations

import math
import time
from typing import Any

from amber2_core import engine
from amber2_core.errors import ModelError

from .crew import survey
from .inspection import Record
from .plan import Job, plan_jobs
from .worker import load_encoder

# The speed is that of so many utterances, one at a time, each of so many seconds of noise, or so many tokens.
_TIMES, _SECONDS, _TOKENS = 3, 5.0, 100


def check_encoder(name: str, *, device: str = "auto", **settings: Any) -> Record:
    """Load an encoder in a worker and try it.

    Args:
        name: an id of the hub, a folder, or a file with a class of one's own.
        device: as of `extract_features`.
        settings: as of `plan_jobs`.

    Returns:
        ``encoder``, ``modality``, ``family`` and ``model`` (the classes that run it), ``sampling_rate`` (Hz; None of
        text), ``size`` (of a row), ``layers`` (None where they are not to be had), ``parameters``, ``pooling``,
        ``window``, ``device``, ``difference`` (the largest relative L2 difference of a row of a batch from the same
        input alone, in fp32; None where it takes no batches), ``batched`` (whether it is encoded in batches), and
        ``speed``: seconds for a second of audio, or for a thousand tokens.

    Raises:
        ModelError: it is no encoder of speech nor of text, or cannot be loaded.
        SettingError: a setting has no meaning.
    """
    try:
        (job,) = plan_jobs(name, None, **settings)
    except ModelError as problem:
        try:
            (job,) = plan_jobs(None, name, **settings)
        except ModelError:
            raise problem from None
    return engine.call(tried, job, device)


def describe_trial(record: Record) -> str:
    """The lines for people."""
    rate = f"{record['sampling_rate']:,} Hz, " if record["sampling_rate"] else ""
    layers = f"{record['layers']} layers, " if record["layers"] is not None else ""
    window = f", window {record['window']}" if record["window"] else ""
    difference = "takes no batches" if record["difference"] is None else f"{record['difference']:.1e} from each alone"
    per = "second of audio" if record["modality"] == "audio" else "thousand tokens"
    return "\n".join(
        [
            f"encoder     {record['encoder']}: {record['model']}, family {record['family']}",
            f"input       {record['modality']}, {rate}pooling {record['pooling']}{window}",
            f"output      {record['size']:,} numbers, {layers}{record['parameters'] / 1e6:,.1f} million parameters",
            f"batches     {difference}: encoded {'in batches' if record['batched'] else 'one at a time'}",
            f"speed       {record['speed']:.3g} s for a {per} on {record['device']}, one at a time",
        ]
    )


def tried(job: Job, device: str) -> Record:
    """As `check_encoder`, in this process, of one feature set that is asked for."""
    recipe = job.recipe
    place = survey(job, device, ()).seats[0].device
    encoder = load_encoder(job, place)
    inputs = _inputs(encoder)
    rows = encoder.encode(inputs)
    if len(inputs) > 1 and math.isnan(encoder.error_of_batches):
        raise AssertionError("a batch was encoded without a trial")
    config = getattr(encoder._model, "config", None)
    return {
        "encoder": job.checkpoint.name,
        "modality": recipe.modality,
        "family": type(encoder).__module__.rpartition(".")[2],
        "model": type(encoder._model).__name__,
        "sampling_rate": getattr(recipe, "sampling_rate", None),
        "size": int(rows[0].values.shape[-1]),
        "layers": _layers(config),
        "parameters": encoder.parameters,
        "pooling": getattr(recipe, "pooling", None),
        "window": getattr(recipe, "window", None),
        "device": place,
        "difference": encoder.error_of_batches if math.isfinite(encoder.error_of_batches) else None,
        "batched": not encoder.is_one_at_a_time,
        "speed": _speed(encoder, inputs[0]),
    }


def _inputs(encoder: Any) -> list[Any]:
    """What is timed, and what makes the trial of batches begin."""
    import numpy as np

    if hasattr(encoder, "tokenizer"):
        (ids,), _ = encoder.tokenizer.tokens(["one of some words that are as good as any other to be timed with"])
        longest = min(_TOKENS, encoder.tokenizer.most_tokens)
        return [(ids * (1 + longest // len(ids)))[:longest], ids]
    noise = np.random.default_rng(1).standard_normal(round(_SECONDS * encoder.sampling_rate), dtype=np.float32)
    return [encoder.prepare(noise), encoder.prepare(noise[: len(noise) // 3])]


def _speed(encoder: Any, one: Any) -> float:
    """Seconds for a second of audio, or for a thousand tokens."""
    began = time.perf_counter()
    for _ in range(_TIMES):
        encoder.encode([one])
    took = (time.perf_counter() - began) / _TIMES
    return took * 1000 / len(one) if hasattr(encoder, "tokenizer") else took / _SECONDS


def _layers(config: Any) -> int | None:
    for name in ("num_hidden_layers", "encoder_layers", "speech_encoder_layers", "num_layers"):
        if isinstance(count := getattr(config, name, None), int):
            return count
    depths = getattr(config, "depths", None)
    return sum(depths) if depths else None
