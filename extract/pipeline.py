"""Stage 1: a corpus and the names of two encoders go in; a feature cache and a summary of the work come out."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from amber2_core.cache import Failure, FeatureCache, read_cache, write_cache
from amber2_core.errors import CacheError, SettingError
from amber2_core.tables import attribute_columns, rating_table, texts, utterance_table
from amber2_core.utterance import Corpus

from .assembly import is_same, kept_features, stage_of, with_recordings
from .checkpoint import Checkpoint, find_checkpoint
from .encoding import OnProgress
from .feature_set import Call, Done, FeatureSummary, Task, complete
from .inputs import scan_recordings, storable, transcript_inputs
from .parts import work_folder
from .recipe import AudioRecipe, EncoderRecipe, Layers, TextRecipe
from .work import Effort

AUDIO_MODEL = "facebook/wav2vec2-base"
TEXT_MODEL = "bert-base-uncased"

_SOFTWARE = ("amber2", "torch", "torchaudio", "transformers", "tokenizers", "soundfile", "numpy", "h5py")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Summary:
    """What one call of `extract_features` did."""

    output: Path
    utterances: int
    features: tuple[FeatureSummary, ...]
    failures: tuple[Failure, ...]
    # False where the cache on disk was up to date already
    written: bool


def extract_features(
    corpus: Corpus,
    output: Path,
    *,
    audio_model: str | None = AUDIO_MODEL,
    text_model: str | None = TEXT_MODEL,
    layers: Layers = "last",
    max_seconds: float | None = None,
    effort: Effort | None = None,
    force: bool = False,
    on_progress: OnProgress | None = None,
) -> Summary:
    """Encode what the cache at `output` does not hold yet, and write the cache anew if anything has changed.

    Interrupted at any moment, the same call goes on where it stopped. What a row is encoded from is known by its
    digest: only new or changed recordings and transcripts are encoded, unless the recipe has changed.

    Args:
        corpus: as a reader of `amber2_data` gives it.
        output: the cache; its other feature sets are kept.
        audio_model: id or folder of a speech encoder; None leaves audio out.
        text_model: id or folder of a text encoder; None leaves text out.
        layers: the last hidden state, or all of them.
        max_seconds: longer utterances are cut off at the end.
        effort: device and size of batches; they do not change the numbers.
        force: encode again what stands at `output` already; a cache that cannot be read is replaced.
        on_progress: called after each batch.

    Raises:
        ModelError: an encoder cannot be loaded.
        CorpusError: the corpus is empty or its ids are not unique.
        AudioError: not a single recording can be encoded.
        CacheError: `output` cannot be written, is held by another process, is damaged, or holds another corpus.
        SettingError: a setting has no meaning.
    """
    table = utterance_table(corpus)
    table = replace(table, transcript=texts([storable(transcript) for transcript in table.transcript]))
    tasks = _tasks(audio_model, text_model, layers, max_seconds)
    with work_folder(output) as work:
        before = _earlier(output, corpus, force)
        inputs = {"text": transcript_inputs(corpus)}
        recordings = None
        if audio_model is not None:
            _log.info("reading %d recordings of %s", sum(path != "" for path in table.audio), corpus.name)
            recordings = scan_recordings(corpus)
            inputs["audio"] = recordings.inputs
        table = with_recordings(table, recordings, before)
        call = Call(table, inputs, before, work, effort or Effort(), force, on_progress)
        done = [complete(task, call) for task in tasks]
        after = _cache(corpus, call, done)
        written = force or before is None or not is_same(before, after)
        if written:
            write_cache(output, after)
        for one in done:
            one.parts.remove()
    return Summary(output, len(table), tuple(one.summary for one in done), after.failures, written)


def _tasks(
    audio_model: str | None, text_model: str | None, layers: Layers, max_seconds: float | None
) -> tuple[Task, ...]:
    """Text first: it takes minutes where audio takes hours, and so all that can be wrong is met early."""
    if max_seconds is not None and not max_seconds > 0:
        raise SettingError(f"Bad max_seconds {max_seconds}, expected more than 0")
    tasks = []
    if text_model is not None:
        checkpoint = find_checkpoint(text_model, modality="text")
        recipe: EncoderRecipe = TextRecipe.of(checkpoint, layers=layers)
        tasks.append(Task(_name(checkpoint, layers), checkpoint, recipe))
    if audio_model is not None:
        checkpoint = find_checkpoint(audio_model, modality="audio")
        recipe = AudioRecipe.of(checkpoint, layers=layers, max_seconds=max_seconds)
        tasks.append(Task(_name(checkpoint, layers), checkpoint, recipe))
    if not tasks:
        raise SettingError("Nothing to encode: name an audio model, a text model, or both")
    return tuple(tasks)


def _name(checkpoint: Checkpoint, layers: Layers) -> str:
    return checkpoint.short_name if layers == "last" else f"{checkpoint.short_name}-layers"


def _earlier(output: Path, corpus: Corpus, force: bool) -> FeatureCache | None:
    """What stands at `output` already, if it can be gone on from."""
    if not output.exists():
        return None
    try:
        cache = read_cache(output)
        if cache.corpus != corpus.name:
            raise CacheError(
                f"{output} holds the corpus {cache.corpus!r}, not {corpus.name!r}: choose another --output"
            )
    except CacheError as problem:
        if not force:
            raise CacheError(f"{problem}; or replace it with --force") from None
        _log.warning("%s is replaced: %s", output, problem)
        return None
    return cache


def _cache(corpus: Corpus, call: Call, done: list[Done]) -> FeatureCache:
    """The new cache: the feature sets that are done, and those of the earlier cache that were not asked for."""
    stages = {stage_of(one.features.modality, one.features.name) for one in done}
    sets = [one.features for one in done]
    failures = [failure for one in done for failure in one.failures]
    work: dict[str, Any] = {}
    if call.before is not None:
        ids = set(call.table.id)
        others = [f for f in call.before.features if stage_of(f.modality, f.name) not in stages]
        kept = [kept_features(f, call.before.utterances.id, call.table.id, call.inputs.get(f.modality)) for f in others]
        sets += [features for features in kept if features is not None]
        failures += [f for f in call.before.failures if f.stage not in stages and f.utterance in ids]
        work = dict(call.before.summary.get("features", {}))
    for one in done:
        stage = stage_of(one.summary.modality, one.summary.name)
        if one.summary.encoded or stage not in work:
            work[stage] = asdict(one.summary)
    return FeatureCache(
        corpus=corpus.name,
        corpus_version=corpus.version,
        utterances=call.table,
        ratings=rating_table(corpus),
        attributes=attribute_columns(corpus),
        defaults=corpus.defaults,
        features=tuple(sorted(sets, key=lambda features: (features.modality, features.name))),
        failures=tuple(sorted(failures, key=lambda failure: (failure.stage, failure.utterance))),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        versions=_versions(),
        summary={"features": work},
    )


def _versions() -> dict[str, str]:
    found = {}
    for name in _SOFTWARE:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
