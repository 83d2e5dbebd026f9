"""Heads with their encoders, ready for new speech: the class that commands, services and notebooks call."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from amber2_core.devices import choose_device
from amber2_core.errors import AudioError, SettingError
from amber2_data.sound import HIGHEST_RATE, LONGEST_SECONDS, LOWEST_RATE, decode, seconds_of
from amber2_extract.plan import Job
from amber2_extract.recipe import AudioRecipe

from .chosen import choose
from .encoding import Encodings, Sound, plan_encodings
from .folder import HeadsFolder, facts_of, read_folder
from .members import read_member
from .options import HeadsChoice
from .prediction import Prediction, inputs_of, predictions_of, probs_of
from .table import COLUMNS, INDEX, Row, flat
from .transcriber import Transcriber
from .units import Unit, batched

if TYPE_CHECKING:
    import numpy.typing as npt
    from pandas import DataFrame, Index, MultiIndex

# Units that are encoded together; as many more are read meanwhile.
_AT_ONCE = 64


class Predictor:
    """Trained heads and the encoders that they were trained on, loaded once.

    It may be called from many threads at once: nothing of it changes after it is made, and what bears no second user,
    tokenizers, recognisers and accelerators, is locked. On a processor several threads then encode at the same time.

        >>> predictor = Predictor.from_pretrained("heads/")  # doctest: +SKIP
        >>> predictor.predict(waveform, 16_000, "I never said that.").label  # doctest: +SKIP
        'angry'
    """

    def __init__(
        self,
        heads: HeadsFolder,
        jobs: Mapping[str, Job],
        *,
        device: str,
        threads: int | None = None,
        transcriber: Transcriber | None = None,
    ) -> None:
        """As `from_pretrained`, of heads that are read already and encoders that were found.

        Args:
            heads: any.
            jobs: the encoder of each feature set, as `plan_encodings` gives them.
            device: one device, such as cpu or cuda:0.
            threads: that read recordings and, on a processor, encode; None: as many as torch has.
            transcriber: of what has no transcript; None: that has no text.
        """
        self.heads, self.device = heads, device
        self._encodings = Encodings(jobs, device=device, threads=threads)
        self._transcriber = transcriber
        cuts = [job.recipe.max_seconds for job in jobs.values() if isinstance(job.recipe, AudioRecipe)]
        # whether recordings are of any use to them
        self.listens = bool(cuts) or transcriber is not None
        # what lies beyond is heard by nobody
        self._most_seconds = None if transcriber is not None or None in cuts else max(filter(None, cuts), default=None)

    @classmethod
    def from_pretrained(
        cls,
        heads: str | Path,
        *,
        device: str = "auto",
        audio_model: str | Sequence[str] | None = None,
        text_model: str | Sequence[str] | None = None,
        sentiment_model: str | Sequence[str] | None = None,
        system: str | None = None,
        fold: int | None = None,
        seed: int | None = None,
        ensemble: bool = False,
        transcribe: str | None = None,
    ) -> Predictor:
        """Load heads and their encoders.

        Args:
            heads: what `export-heads` wrote, a run folder, one file of its heads/, or an id of the hub.
            device: auto, cpu, mps, cuda or cuda:N.
            audio_model: where the speech encoder lies now, an id or a folder; None: the id that the heads name.
            text_model: where the text encoder lies now. Several where heads read several.
            sentiment_model: where the classifier of sentiment lies now, of heads that leave something to it.
            system: of a run with several systems.
            fold: of a run: the models of this fold.
            seed: of a run: the models of this seed.
            ensemble: of a run: all models together that are left; else the one that is best on dev.
            transcribe: a recogniser of transformers, an id or a folder, for what has no transcript.

        Raises:
            RunFolderError: there are no heads there, or they are damaged.
            ModelError: an encoder is not to be found, or is not the one that the heads were trained on.
            SettingError: no such device, system, fold or seed.
        """
        models = [_several(one) for one in (audio_model, text_model, sentiment_model)]
        which = HeadsChoice(str(heads), device, transcribe, system, fold, seed, ensemble, *models)
        found = find_heads(which)
        jobs = find_encoders(found, which)
        place = str(choose_device(device))
        transcriber = None if transcribe is None else Transcriber(transcribe, device=place)
        return cls(found, jobs, device=place, transcriber=transcriber)

    @property
    def emotions(self) -> tuple[str, ...]:
        """The label space, in its order."""
        return self.heads.emotions

    def predict(
        self, waveform: npt.ArrayLike | None, sampling_rate: int = 16_000, transcript: str | None = None
    ) -> Prediction:
        """What the heads say of one utterance.

        Args:
            waveform: (samples,) or (channels, samples) in −1 … 1; None where there are words alone.
            sampling_rate: Hz of the waveform; it is resampled as `extract-features` does.
            transcript: what is said; None where it is not known, and then the recogniser's, if there is one.

        Raises:
            AudioError: the waveform is of no use (too short, too long, silent, not finite), or there is nothing that
                the heads read.
        """
        sound = None if waveform is None else _sound(waveform, sampling_rate)
        if sound is not None and transcript is None and self._transcriber is not None:
            transcript = self._transcriber.transcript(sound)
        (found,) = self._predicted([sound], [transcript], threaded=False)
        if isinstance(found, str):
            raise AudioError(f"Cannot predict: {found}")
        return found

    def process_files(
        self, index: Index[Any] | MultiIndex | Sequence[str], *, transcripts: Sequence[str | None] | None = None
    ) -> DataFrame:
        """Predictions of recordings, indexed by file, start and end as audformat has it.

        Args:
            index: of files; or with the levels file, start and end, the times as timedelta, NaT for to the end.
            transcripts: what is said in each row of it.

        Returns:
            One row for each row of the index, with the columns of `rows`; of a recording that is of no use `error`
            says why, and all else is missing.
        """
        import pandas as pd

        words = [None] * len(index) if transcripts is None else list(transcripts)
        if len(words) != len(index):
            raise SettingError(f"{len(words)} transcripts for {len(index)} rows of the index")
        rows = list(self.rows(_indexed(index, words)))
        levels = [pd.Index([row["file"] for row in rows], dtype=object)]
        levels += [pd.to_timedelta([row[name] for row in rows], unit="s") for name in INDEX[1:]]
        columns = [flat(row, self.heads.heads, self.emotions) for row in rows]
        kinds = {float: "float64", bool: "bool", str: "str"}
        table = pd.DataFrame(columns, index=pd.MultiIndex.from_arrays(levels, names=INDEX))
        return table.astype({name: kinds[COLUMNS.get(str(name), float)] for name in table}).drop(columns=[*INDEX])

    def rows(self, units: Iterable[Unit]) -> Iterator[Row]:
        """A row of each unit, in order: file, start and end (s), what `Prediction.record` has, and what went wrong.

        `short_window` tells of a last window that is shorter than the others; `transcript` is there where a recogniser
        heard it, and `transcript_from` says where words came from. `error` is None where all went well.
        """
        before: tuple[Sequence[Unit], Iterable[Any]] | None = None
        for some in batched(units, _AT_ONCE):
            reading = self._encodings.in_threads(self._heard, some)
            if before is not None:
                yield from self._rows_of(*before)
            before = some, reading
        if before is not None:
            yield from self._rows_of(*before)

    def _rows_of(self, units: Sequence[Unit], reading: Iterable[Sound | str | None]) -> Iterator[Row]:
        heard = list(reading)
        sounds = [one if isinstance(one, Sound) else None for one in heard]
        words = [unit.transcript for unit in units]
        found: dict[int, str] = {place: one for place, one in enumerate(heard) if isinstance(one, str)}
        if self._transcriber is not None:
            for place, sound in enumerate(sounds):
                if sound is not None and words[place] is None:
                    words[place] = self._transcriber.transcript(sound)
        good = [place for place in range(len(units)) if place not in found]
        said = self._predicted([sounds[k] for k in good], [words[k] for k in good])
        predictions = dict(zip(good, said, strict=True))
        for place, unit in enumerate(units):
            result = predictions.get(place, found.get(place, ""))
            yield self._row(unit, sounds[place], words[place], result)

    def _row(self, unit: Unit, sound: Sound | None, words: str | None, result: Prediction | str) -> Row:
        start = unit.start or 0.0 if unit.recording is not None else None
        end = start + sound.seconds if unit.end is None and sound is not None and start is not None else unit.end
        row: Row = {"file": unit.file, "start": start, "end": end}
        if isinstance(result, Prediction):
            row |= result.record()
        row["short_window"] = unit.is_short
        row["transcript_from"] = unit.transcript_from or (None if words is None else "recogniser")
        if words is not None and unit.transcript is None:
            row["transcript"] = words
        row["error"] = None if isinstance(result, Prediction) else result
        return row

    def _heard(self, unit: Unit) -> Sound | str | None:
        """The sound of a unit, why there is none, or None for words alone."""
        if unit.problem:
            return unit.problem
        if unit.recording is None or not self.listens:
            return None
        most = self._most_seconds
        try:
            if unit.end is None and most is None and seconds_of(unit.excerpt) > LONGEST_SECONDS:
                return (
                    f"{unit.recording.name}: is longer than {LONGEST_SECONDS:,.0f} s: cut it into windows, as with "
                    "--window 10 --hop 5, or into the segments of a table"
                )
            return Sound(*decode(unit.excerpt, max_seconds=most))
        except AudioError as problem:
            return str(problem)

    def _predicted(
        self, sounds: Sequence[Sound | None], transcripts: Sequence[str | None], *, threaded: bool = True
    ) -> list[Prediction | str]:
        """What is said of utterances, or why nothing can be said."""
        rows, problems = self._encodings.rows(sounds, transcripts, threaded=threaded)
        read = inputs_of(self.heads)
        inputs = [[name for name in read if rows[name][place] is not None] for place in range(len(sounds))]
        for place, own in enumerate(inputs):
            if not own:
                problems.setdefault(place, f"there is nothing that these heads read ({', '.join(read)})")
        good = [place for place in range(len(sounds)) if place not in problems]
        found: dict[int, Prediction | str] = dict(problems)
        if good:
            probs = probs_of(self.heads, {name: [own[place] for place in good] for name, own in rows.items()})
            found |= dict(zip(good, predictions_of(self.heads, probs, [inputs[k] for k in good]), strict=True))
        return [found[place] for place in range(len(sounds))]


def find_heads(which: HeadsChoice) -> HeadsFolder:
    """Heads from what `export-heads` wrote, a run folder, one file of its heads/, or an id of the hub.

    Raises:
        RunFolderError: there are no heads, or they are not as they should be.
        SettingError: a run has nothing of that system, fold or seed; or something is chosen of what is no run.
    """
    path = Path(which.heads).expanduser()
    if (path / "settings.json").is_file():
        return choose(path, system=which.system, fold=which.fold, seed=which.seed, ensemble=which.ensemble).heads
    if which.ensemble or any(one is not None for one in (which.system, which.fold, which.seed)):
        what = "a system, a fold, a seed or an ensemble"
        raise SettingError(f"{which.heads} is no run folder, of which {what} is chosen")
    if path.is_file():
        member = read_member(path, within=path.parent)
        return HeadsFolder((member,), facts_of(member))
    return read_folder(path if path.is_dir() else which.heads)


def find_encoders(heads: HeadsFolder, which: HeadsChoice) -> dict[str, Job]:
    """Feature set → its encoder. Raises: as `plan_encodings`."""
    return plan_encodings(
        heads.config["features"],
        audio_models=which.audio_model,
        text_models=which.text_model,
        sentiment_models=which.sentiment_model,
    )


def _several(models: str | Sequence[str] | None) -> Sequence[str]:
    return () if models is None else (models,) if isinstance(models, str) else models


def _sound(waveform: npt.ArrayLike, sampling_rate: int) -> Sound:
    """A waveform of the caller's as a recording gives it: mono, finite, not silent, not too long."""
    samples = np.asarray(waveform, np.float32)
    if samples.ndim == 2:
        samples = samples.mean(axis=0, dtype=np.float32)
    if samples.ndim != 1:
        raise AudioError(f"The waveform has shape {samples.shape}, expected (samples,) or (channels, samples)")
    if not LOWEST_RATE <= sampling_rate <= HIGHEST_RATE:
        rates = f"{LOWEST_RATE:,} and {HIGHEST_RATE:,} Hz"
        raise AudioError(f"The waveform has a sampling rate of {sampling_rate:,} Hz, expected between {rates}")
    if not np.isfinite(samples).all() or not samples.any():
        raise AudioError("The waveform is silent or empty, or holds samples that are not finite")
    if len(samples) > LONGEST_SECONDS * sampling_rate:
        seconds = len(samples) / sampling_rate
        raise AudioError(f"The waveform is {seconds:,.0f} s long, more than {LONGEST_SECONDS:,.0f} s: cut it")
    return Sound(np.ascontiguousarray(samples), sampling_rate)


def _indexed(index: Any, transcripts: Sequence[str | None]) -> Iterator[Unit]:
    """The rows of an index as units."""
    for key, words in zip(index, transcripts, strict=True):
        file, start, end = key if isinstance(key, tuple) else (key, None, None)
        unit = Unit(str(file), Path(str(file)), _seconds(start), _seconds(end), words, "" if words is None else "given")
        yield replace(unit, start=None) if unit.start == 0.0 and unit.end is None else unit


def _seconds(time: Any) -> float | None:
    """Of a timedelta or a number; None for NaT."""
    if time is None or time != time:
        return None
    return float(time.total_seconds() if hasattr(time, "total_seconds") else time)
