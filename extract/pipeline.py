"""Stage 1, straight down: scan a corpus, plan what is missing, have workers encode it, write the feature cache."""

from __future__ import annotations

import logging
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from itertools import compress
from pathlib import Path
from typing import Any

from amber2_core import engine
from amber2_core.cache import Failure, FeatureCache, write_cache
from amber2_core.errors import AudioError, CacheError, ModelError
from amber2_core.features import StoredFeatures, repeated_rows
from amber2_core.shards import Shard
from amber2_core.tables import UtteranceTable
from amber2_core.utterance import Corpus
from amber2_data.transcripts import Repair, transcript_problems

from . import worker
from .batches import Effort
from .crew import Crew, crew_of
from .evidence import Evidence, evidence_of, read_evidence, write_evidence
from .inspection import without_content
from .plan import Job, plan_jobs
from .previous import (
    Previous,
    find_features,
    is_same,
    kept_features,
    known_failures,
    known_lengths,
    new_features,
    read_previous,
    reusable_rows,
    stage_of,
    with_recordings,
    with_synthetic_ratings,
)
from .recipe import OF_TRANSCRIPTS
from .recordings import Inputs, Work, blank_cache, scan_recordings, transcript_inputs
from .rows import RowStore, work_folder

AUDIO_MODEL = "facebook/wav2vec2-base"
TEXT_MODEL = "bert-base-uncased"

# Failures are listed up to here.
_SHOWN = 20

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Progress:
    """How far the encoding of one feature set is."""

    # modality/name
    features: str
    # distinct recordings or transcripts
    done: int
    total: int
    # of audio; 0 for text
    seconds_done: float
    seconds_total: float
    # of the computing, padding included, in [0, 1]
    share: float
    # on the clock, since the first batch was begun
    elapsed: float
    # the share of what is computed that is padding
    padding: float


OnProgress = Callable[[Progress], None]


@dataclass(frozen=True)
class FeatureSummary:
    """What one call did for one feature set, counted in utterances."""

    modality: str
    name: str
    # by this call
    encoded: int = 0
    # before it, under the same recipe and from the same input
    up_to_date: int = 0
    failed: int = 0
    # encoded: distinct recordings or transcripts, seconds of audio, transcripts cut to the model's limit
    distinct: int = 0
    seconds: float = 0.0
    truncated: int = 0
    # on the clock, loading the encoder included
    elapsed: float = 0.0
    padding: float = 0.0
    device: str = ""
    # of all rows of the feature set, those of earlier calls included
    evidence: Evidence = field(default_factory=Evidence)

    @property
    def stage(self) -> str:
        """As failures name it."""
        return stage_of(self.modality, self.name)


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
    sentiment_model: str | None = None,
    effort: Effort | None = None,
    force: bool = False,
    strict: bool = False,
    shard: Shard | None = None,
    on_progress: OnProgress | None = None,
    **settings: Any,
) -> Summary:
    """Encode what the cache at `output` does not hold yet, and write the cache anew if anything has changed.

    Interrupted at any moment, the same call goes on where it stopped. What a row is encoded from is known by its
    digest: only new or changed recordings and transcripts are encoded, unless the recipe has changed.

    Args:
        corpus: as a reader of `amber2_data` gives it.
        output: the cache; its other feature sets are kept.
        audio_model: id or folder of a speech encoder; None leaves audio out.
        text_model: id or folder of a text encoder; None leaves text out.
        sentiment_model: id or folder of a text classifier, whose (3,) probabilities of a negative, neutral and positive
            transcript are kept as modality ``sentiment``; None leaves them out.
        effort: device and size of batches; they do not change the numbers.
        force: encode again what stands at `output` already; a cache that cannot be read is replaced.
        strict: write nothing under `output` if an utterance fails; what is encoded is kept beside it.
        shard: encode only this part of what `output` does not hold, into a cache of its own beside it (`Shard.file`):
            that holds all utterances, and features of this part.
        on_progress: called after each portion of the work.
        settings: how is encoded, and what the cache calls the features, see `plan_jobs`.

    Raises:
        ModelError: an encoder cannot be loaded, or its device has too little memory for a single utterance.
        CorpusError: the corpus is empty, its ids are not unique, it holds what a cache cannot, or the folder of its
            recordings has gone.
        AudioError: not a single recording can be encoded.
        CacheError: `output` cannot be written, is held by another process, is damaged, or holds another corpus;
            with `strict`, utterances that fail.
        SettingError: a setting has no meaning.
        WorkerError: a worker died twice of the same recordings.
    """
    # All that can be wrong with the corpus is met before anything is encoded.
    blank = blank_cache(corpus)
    jobs = plan_jobs(audio_model, text_model, sentiment_model, **settings)
    repair = settings.get("repair")
    if text_model is not None or sentiment_model is not None:
        for problem in transcript_problems(corpus.utterances, repair):
            _log.warning("%s: %s", problem.file, problem.what)
    all_shards = output
    if shard is not None:
        output = shard.file(output)
        _log.info("%s: %s", output, shard.words)
    with (
        _told(output),
        work_folder(output) as folder,
        read_previous(output, corpus.name, force=force) as before,
        read_previous(all_shards, corpus.name, force=force) if shard is not None else nullcontext() as whole,
    ):
        if before is None:
            # There will be something to encode: while the corpus is scanned, workers' libraries are loaded.
            engine.prepare(*worker.PRELOADED)
        if (earlier := whole or before) is not None:
            blank = with_synthetic_ratings(blank, earlier.cache)
        scan = _scan(corpus, blank.utterances, before, repair, audio=audio_model is not None, shard=shard, whole=whole)
        if strict:
            for job in jobs:
                _refuse(scan.failures(job, {}), output)
        stores, done = [folder / job.recipe.fingerprint[:16] for job in jobs], []
        with crew_of(effort or Effort(), corpus.root) as crew:
            for job, store in zip(jobs, stores, strict=True):
                done.append(_complete(job, scan, store, crew, force, on_progress))
                if strict:
                    _refuse(done[-1].failures, output)
        after, sets = _assembled(blank, scan, done)
        written = force or before is None or not is_same(before, after, sets)
        if written:
            write_cache(output, after, sets)
        for one in done:
            if one.features is not None and (counts := repeated_rows(one.features.values)):
                why = without_content(one.summary.modality, counts, scan.table.transcript)
                _log.warning("%s: %s", one.summary.stage, why)
        for store in stores:
            # Its rows stand in the cache now.
            shutil.rmtree(store, ignore_errors=True)
    return Summary(output, len(scan.table), tuple(one.summary for one in done), after.failures, written)


@dataclass(frozen=True)
class _Scan:
    """The corpus as it is now, and what stands at the output."""

    # with what the recordings say
    table: UtteranceTable
    # by modality
    inputs: Mapping[str, Inputs]
    before: Previous | None
    corpus: Corpus
    # where only a part is encoded: which, and what stands where all of them go
    shard: Shard | None
    whole: Previous | None

    def inputs_of(self, features: StoredFeatures) -> Inputs | None:
        """What a feature set of before would be encoded from now, under its own recipe."""
        if features.modality in OF_TRANSCRIPTS:
            return transcript_inputs(self.corpus, features.recipe.get("repair"))
        return self.inputs.get(features.modality)

    def held(
        self, before: Previous | None, job: Job, *, force: bool
    ) -> tuple[StoredFeatures | None, Mapping[str, int], Mapping[str, str]]:
        """Of an earlier cache: a job's feature set, its rows that can be used again, and what failed, by digest."""
        features = None if before is None else find_features(before.features, job.recipe.modality, job.name)
        if force:
            return features, {}, {}
        inputs = self.inputs[job.recipe.modality]
        known = known_failures(before, self.table, inputs, recipe=job.recipe, name=job.name)
        return features, reusable_rows(features, job.recipe), known

    def failures(self, job: Job, failed: Mapping[str, str]) -> list[Failure]:
        """Of reading what a job encodes, and, by digest, of encoding it."""
        inputs = self.inputs[job.recipe.modality]
        reasons = dict(inputs.failures)
        reasons.update({row: failed[digest] for row, digest in enumerate(inputs.digests) if digest in failed})
        return [Failure(str(self.table.id[row]), job.stage, reasons[row]) for row in sorted(reasons)]


@dataclass(frozen=True)
class _Done:
    """One feature set that is complete."""

    # None: nothing of it is this shard's
    features: StoredFeatures | None
    failures: list[Failure]
    summary: FeatureSummary


def _scan(
    corpus: Corpus,
    table: UtteranceTable,
    before: Previous | None,
    repair: Repair | None,
    *,
    audio: bool,
    shard: Shard | None,
    whole: Previous | None,
) -> _Scan:
    transcripts = transcript_inputs(corpus, repair)
    inputs: dict[str, Inputs] = dict.fromkeys(OF_TRANSCRIPTS, transcripts)
    if audio:
        _log.info("reading %d recordings of %s", sum(path != "" for path in table.audio), corpus.name)
        inputs["audio"] = scan_recordings(corpus, known=known_lengths(before) | known_lengths(whole))
    earlier = whole or before
    table = with_recordings(table, inputs.get("audio"), None if earlier is None else earlier.cache.utterances)
    return _Scan(table, inputs, before, corpus, shard, whole)


def _complete(job: Job, scan: _Scan, folder: Path, crew: Crew, force: bool, on_progress: OnProgress | None) -> _Done:
    """Have what is missing of one feature set encoded.

    Raises:
        AudioError, ModelError: nothing at all can be encoded.
    """
    modality = job.recipe.modality
    inputs = scan.inputs[modality]
    before, reusable, failed = scan.held(scan.before, job, force=force)
    if force:
        shutil.rmtree(folder, ignore_errors=True)
    elsewhere, lost = reusable, failed
    if scan.shard is not None:
        _, elsewhere, lost = scan.held(scan.whole, job, force=force)
    works = [work for work in inputs.works.values() if work.digest not in elsewhere and work.digest not in lost]
    part = {work.digest for work in works}
    if scan.shard is not None:
        part = crew.share_of(scan.shard, job, works) if works else set()
        inputs = inputs.only(part | elsewhere.keys())
        failed = {**lost, **failed}
    missing = part - reusable.keys() - failed.keys()
    store = RowStore(folder)
    fresh = {digest for digest in missing if digest not in store}
    _announce(job.stage, inputs, missing=len(missing), fresh=len(fresh), known=len(failed))
    summary = FeatureSummary(modality, job.name)
    if fresh:
        earlier = _evidence_before(scan.before, job) if reusable else Evidence()
        if scan.shard is not None and elsewhere:
            earlier |= Evidence(singly=_evidence_before(scan.whole, job).singly)
        if earlier.singly:
            crew = crew.one_at_a_time()
        summary, problems = _encode(job, works, part, fresh, folder, crew, on_progress)
        if summary.evidence.is_against(job.recipe.precision):
            against = replace(summary.evidence, singly=True)
            _log.warning("%s: %s; what was encoded is encoded again", job.stage, against.words)
            shutil.rmtree(folder, ignore_errors=True)
            write_evidence(folder, against)
            fresh = missing
            summary, problems = _encode(job, works, part, fresh, folder, crew, on_progress)
        summary = replace(summary, evidence=earlier | summary.evidence)
        failed = {**failed, **problems}
        store = RowStore(folder)
    failures = scan.failures(job, failed)
    features = new_features(job.name, job.recipe, inputs, before, reusable, store)
    if features is None and scan.shard is None:
        first = f"{failures[0].utterance}: {failures[0].reason}" if failures else "there is none"
        error = AudioError if modality == "audio" else ModelError
        raise error(f"Not one of {len(scan.table)} utterances can be encoded as {job.stage} ({first})")
    encoded = 0 if features is None else sum(digest in fresh for digest in features.inputs)
    held = 0 if features is None else int(features.encoded.sum())
    return _Done(features, failures, replace(summary, encoded=encoded, up_to_date=held - encoded, failed=len(failures)))


def _evidence_before(before: Previous | None, job: Job) -> Evidence:
    """Of the rows that an earlier cache holds."""
    work = {} if before is None else before.cache.summary.get("features", {})
    return evidence_of(work.get(job.stage, {}).get("evidence", {}))


def _encode(
    job: Job,
    works: Sequence[Work],
    part: set[str],
    fresh: set[str],
    folder: Path,
    crew: Crew,
    on_progress: OnProgress | None,
) -> tuple[FeatureSummary, dict[str, str]]:
    """Deal to workers what is fresh among the works; with the reasons, by digest, why some of it failed.

    Ends early where the evidence is against what came from batches.
    """
    began, modality = time.monotonic(), job.recipe.modality
    evidence = read_evidence(folder)
    if evidence.singly:
        crew = crew.one_at_a_time()
    known = crew.survey(job, works)
    batches, padding = crew.batches(job, works, part, fresh, known)
    summary = FeatureSummary(
        modality,
        job.name,
        truncated=sum(work.digest in fresh for work in compress(works, known.cut)),
        padding=padding,
        device=known.devices,
    )
    seconds = sum(work.seconds for batch in batches for work in batch.works)
    total, spent, started = sum(batch.cost for batch in batches), 0.0, math.inf
    failures: dict[str, str] = {}
    with closing(crew.encode(job, batches, known, folder)) as results:
        for portion, outcome in results:
            # The clock of the progress begins with the first batch, not with the loading of the encoder.
            started = min(started, time.monotonic() - outcome.seconds)
            spent += sum(batch.cost for batch in portion)
            failures |= outcome.failures
            if outcome.evidence != Evidence():
                evidence |= outcome.evidence
                write_evidence(folder, evidence)
            if evidence.is_against(job.recipe.precision):
                break
            good = [work.seconds for batch in portion for work in batch.works if work.digest not in failures]
            summary = replace(summary, distinct=summary.distinct + len(good), seconds=summary.seconds + sum(good))
            if on_progress is not None:
                done, elapsed = summary.distinct + len(failures), time.monotonic() - started
                share = spent / max(total, 1e-9)
                on_progress(Progress(job.stage, done, len(fresh), summary.seconds, seconds, share, elapsed, padding))
    return replace(summary, elapsed=time.monotonic() - began, evidence=evidence), failures


def _assembled(blank: FeatureCache, scan: _Scan, done: Sequence[_Done]) -> tuple[FeatureCache, list[StoredFeatures]]:
    """The new cache and its feature sets: those that are done, and those of before that were not asked for."""
    stages = {one.summary.stage for one in done}
    sets = [one.features for one in done if one.features is not None]
    failures = [failure for one in done for failure in one.failures]
    work: dict[str, Any] = {}
    if scan.before is not None:
        cache, ids = scan.before.cache, set(scan.table.id)
        for others in scan.before.features:
            if stage_of(others.modality, others.name) not in stages:
                kept = kept_features(others, cache.utterances.id, scan.table.id, scan.inputs_of(others))
                sets += [] if kept is None else [kept]
        failures += [f for f in cache.failures if f.stage not in stages and f.utterance in ids]
        work = dict(cache.summary.get("features", {}))
    for one in done:
        if one.summary.encoded or one.summary.stage not in work:
            work[one.summary.stage] = asdict(one.summary)
    after = replace(
        blank,
        utterances=scan.table,
        failures=tuple(sorted(failures, key=lambda failure: (failure.stage, failure.utterance))),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        summary={"features": work} | ({} if scan.shard is None else {"shard": scan.shard.record}),
    )
    return after, sorted(sets, key=lambda features: (features.modality, features.name))


def _announce(stage: str, inputs: Inputs, *, missing: int, fresh: int, known: int) -> None:
    if known:
        _log.info("%s: %d could not be encoded before, and have not changed since", stage, known)
    if missing:
        kind = "recordings" if stage.startswith("audio/") else "transcripts"
        finished = f", {missing - fresh:,} are finished already" if fresh < missing else ""
        _log.info("%s: encoding %d of %d distinct %s%s", stage, missing, len(inputs.works), kind, finished)


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
