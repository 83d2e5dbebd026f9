"""Stage 1: a corpus and the names of two encoders go in; a feature cache and a summary of the work come out."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from amber2_core.cache import Failure, FeatureCache, write_cache
from amber2_core.errors import CacheError
from amber2_core.features import StoredFeatures
from amber2_core.tables import UtteranceTable
from amber2_core.utterance import Corpus

from .assembly import failures_of, kept_features, stage_of
from .blank import blank_cache
from .earlier import Earlier, earlier, is_same, known_lengths, with_recordings
from .encoding import OnProgress
from .feature_set import Call, Done, FeatureSummary, complete
from .inputs import Inputs, scan_recordings, transcript_inputs
from .recipe import Layers, Precision
from .tasks import Task, plan_tasks
from .work import Effort
from .work_folder import work_folder

AUDIO_MODEL = "facebook/wav2vec2-base"
TEXT_MODEL = "bert-base-uncased"

# Failures are listed up to here.
_SHOWN = 20

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
    audio_name: str | None = None,
    text_name: str | None = None,
    layers: Layers = "last",
    frames: int | None = None,
    precision: Precision = "fp32",
    max_seconds: float | None = None,
    effort: Effort | None = None,
    force: bool = False,
    strict: bool = False,
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
        audio_name: what the cache calls the speech features; None: as the encoder is called.
        text_name: what the cache calls the text features.
        layers: the last hidden state, or all of them.
        frames: beside the mean, the last hidden state pooled to at most so many bins.
        precision: of products and convolutions; what is stored is fp32.
        max_seconds: longer utterances are cut off at the end.
        effort: device and size of batches; they do not change the numbers.
        force: encode again what stands at `output` already; a cache that cannot be read is replaced.
        strict: write nothing under `output` if an utterance fails; what is encoded is kept beside it.
        on_progress: called after each batch.

    Raises:
        ModelError: an encoder cannot be loaded, or its device has too little memory for a single utterance.
        CorpusError: the corpus is empty, its ids are not unique, it holds what a cache cannot, or the folder of its
            recordings has gone.
        AudioError: not a single recording can be encoded.
        CacheError: `output` cannot be written, is held by another process, is damaged, or holds another corpus;
            with `strict`, utterances that fail.
        SettingError: a setting has no meaning.
    """
    # All that can be wrong with the corpus is met before anything is encoded.
    blank = blank_cache(corpus)
    tasks = plan_tasks(
        audio_model,
        text_model,
        audio_name=audio_name,
        text_name=text_name,
        layers=layers,
        frames=frames,
        precision=precision,
        max_seconds=max_seconds,
    )
    with _told(output), work_folder(output) as work, earlier(output, corpus.name, force=force) as before:
        table, inputs = _scanned(corpus, blank.utterances, before, audio=audio_model is not None)
        call = Call(table, inputs, before, work, effort or Effort(), force, on_progress)
        done = _complete(tasks, call, output, strict)
        with _room(work) as room:
            after, sets = _assembled(call, blank, done, room)
            written = force or before is None or not is_same(before, after, sets)
            if written:
                write_cache(output, after, sets)
        for one in done:
            one.parts.remove()
    return Summary(output, len(table), tuple(one.summary for one in done), after.failures, written)


def _scanned(
    corpus: Corpus, table: UtteranceTable, before: Earlier | None, *, audio: bool
) -> tuple[UtteranceTable, dict[str, Inputs]]:
    """The utterances with what their recordings say of them, and what each modality has to encode."""
    inputs, recordings = {"text": transcript_inputs(corpus)}, None
    if audio:
        _log.info("reading %d recordings of %s", sum(path != "" for path in table.audio), corpus.name)
        recordings = scan_recordings(corpus, known=known_lengths(before))
        inputs["audio"] = recordings.inputs
    return with_recordings(table, recordings, None if before is None else before.cache.utterances), inputs


@contextmanager
def _told(output: Path) -> Iterator[None]:
    """What a disk does that nobody else tells of is one line, too."""
    try:
        yield
    except OSError as problem:
        raise CacheError(
            f"Cannot write {output}: {problem.strerror or problem}; what is encoded so far is kept, and the same "
            "command goes on from there"
        ) from None


@contextmanager
def _room(work: Path) -> Iterator[Path]:
    """A folder for what lasts until the cache is written."""
    folder = work / "kept"
    shutil.rmtree(folder, ignore_errors=True)  # what a killed process left
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _assembled(
    call: Call, blank: FeatureCache, done: list[Done], room: Path
) -> tuple[FeatureCache, list[StoredFeatures]]:
    """The new cache and its feature sets: those that are done, and those of before that were not asked for."""
    stages = {stage_of(one.features.modality, one.features.name) for one in done}
    sets = [one.features for one in done]
    failures = [failure for one in done for failure in one.failures]
    work: dict[str, Any] = {}
    if call.before is not None:
        cache, ids = call.before.cache, set(call.table.id)
        for others in call.before.features:
            if stage_of(others.modality, others.name) not in stages:
                inputs = call.inputs.get(others.modality)
                kept = kept_features(others, cache.utterances.id, call.table.id, inputs, room)
                sets += [] if kept is None else [kept]
        failures += [f for f in cache.failures if f.stage not in stages and f.utterance in ids]
        work = dict(cache.summary.get("features", {}))
    for one in done:
        stage = stage_of(one.summary.modality, one.summary.name)
        if one.summary.encoded or stage not in work:
            work[stage] = asdict(one.summary)
    after = replace(
        blank,
        utterances=call.table,
        failures=tuple(sorted(failures, key=lambda failure: (failure.stage, failure.utterance))),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        summary={"features": work},
    )
    return after, sorted(sets, key=lambda features: (features.modality, features.name))


def _complete(tasks: Sequence[Task], call: Call, output: Path, strict: bool) -> list[Done]:
    """Encode what is missing, and with `strict` stop at failures: those of reading before anything is encoded."""
    done = []
    if strict:
        for task in tasks:
            modality = task.recipe.modality
            _refuse(failures_of(task.name, modality, call.table.id, call.inputs[modality], {}), output)
    for task in tasks:
        one = complete(task, call)
        if strict:
            _refuse(one.failures, output)
        done.append(one)
    return done


def _refuse(failures: Sequence[Failure], output: Path) -> None:
    for failure in failures[:_SHOWN]:
        _log.warning("%s (%s): %s", failure.utterance, failure.stage, failure.reason)
    if failures:
        count = f"{len(failures):,} utterances fail" if len(failures) > 1 else "1 utterance fails"
        raise CacheError(
            f"{count} as {failures[0].stage}, the first is {failures[0].utterance}: {failures[0].reason}. With "
            f"--strict {output} is not written; what is encoded is kept: correct them or leave --strict out, and the "
            "same command goes on"
        )
