"""A folder that vanishes in the midst of an extraction: one line, nothing lost; a file that is missing: one failure."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_corpus import with_utterance, write_corpus
from small_models import save_speech, save_text

import amber2_core.cache
import amber2_extract.audio
import amber2_extract.inputs
import amber2_extract.parts
from amber2_core.cache import read_cache
from amber2_core.errors import CacheError, CorpusError
from amber2_extract.audio import Excerpt
from amber2_extract.encoding import Progress
from amber2_extract.pipeline import Summary, extract_features


class Place:
    """A corpus on one disk, its models and its cache on others."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.corpus = write_corpus(folder / "corpus", count=30)
        self.output = folder / "caches" / "corpus.h5"
        save_speech(folder / "wav2vec2", "wav2vec2-group")
        save_text(folder / "bert", "bert")
        self.undisturbed = self.values(self.extract(output=folder / "undisturbed.h5"))

    def extract(self, **settings: Any) -> Summary:
        models = {"audio_model": str(self.folder / "wav2vec2"), "text_model": str(self.folder / "bert")}
        return extract_features(
            settings.pop("corpus", self.corpus), settings.pop("output", self.output), **models, **settings
        )

    def values(self, summary: Summary) -> dict[str, Any]:
        return {f.modality: f.values for f in read_cache(summary.output).features}

    def ends_well(self, *, encoded_before: int) -> None:
        """A further call encodes only what is missing, and ends with the same values."""
        summary = self.extract()
        (audio,) = [features for features in summary.features if features.modality == "audio"]
        assert not summary.failures
        assert audio.distinct == 30 - encoded_before
        for modality, values in self.values(summary).items():
            np.testing.assert_array_equal(values, self.undisturbed[modality])
        assert [path.name for path in self.output.parent.iterdir()] == ["corpus.h5"]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """Every batch is a part."""
    monkeypatch.setattr(amber2_extract.parts, "PART_SECONDS", 0.0)
    return Place(tmp_path)


def _moved(path: Path) -> Callable[[], None]:
    return lambda: path.rename(path.with_name("elsewhere"))


def _unmounted(path: Path) -> Callable[[], None]:
    def unmount() -> None:
        path.rename(path.with_name("elsewhere"))
        path.mkdir()

    return unmount


def _back(path: Path) -> None:
    if path.exists():
        path.rmdir()
    path.with_name("elsewhere").rename(path)


def _after(batches: int, event: Callable[[], None]) -> Callable[[Progress], None]:
    def on_progress(progress: Progress) -> None:
        if progress.features.startswith("audio/") and progress.done == batches:
            event()

    return on_progress


@pytest.mark.parametrize("vanish", [_moved, _unmounted])
@pytest.mark.parametrize("folder", ["corpus", "corpus/wav"])
def test_recordings_that_vanish_while_they_are_encoded(place: Place, vanish: Any, folder: str) -> None:
    gone = place.folder / folder
    with pytest.raises(CorpusError) as caught:
        place.extract(on_progress=_after(10, vanish(gone)))
    line = str(caught.value)
    assert line.startswith(f"Cannot read the recordings in {place.folder / 'corpus/wav'} any more: ")
    assert line.endswith("what is encoded so far is kept, and the same command goes on when they are back")
    assert not place.output.exists()
    _back(gone)
    kept = len(list(place.output.parent.glob("*.parts/*/*.npz"))) - 1  # but that of the transcripts
    assert kept >= 10
    place.ends_well(encoded_before=kept)


@pytest.mark.parametrize("vanish", [_moved, _unmounted])
@pytest.mark.parametrize("folder", ["corpus", "corpus/wav"])
def test_recordings_that_vanish_while_they_are_scanned(
    place: Place, vanish: Any, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone, digest_of, lock, count = place.folder / folder, amber2_extract.inputs.sha256_of, threading.Lock(), 0

    def sha256_of(path: Path) -> str:
        nonlocal count
        with lock:
            count += 1
            if count == 7:
                vanish(gone)()
            return digest_of(path)

    with monkeypatch.context() as patch:
        patch.setattr(amber2_extract.inputs, "sha256_of", sha256_of)
        with pytest.raises(CorpusError, match=r"^Cannot read the recordings in .* any more: (No such|it is empty)"):
            place.extract()
    _back(gone)
    place.ends_well(encoded_before=0)


def _failing(number: int, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the recording of that name on, the system says so of every one, or only of that one."""
    real, gone = amber2_extract.audio.soundfile.SoundFile, threading.Event()

    def opened(path: Path) -> Any:
        if path.name == name or gone.is_set():
            if number == errno.ESTALE:
                gone.set()
            raise OSError(number, os.strerror(number))
        return real(path)

    monkeypatch.setattr(amber2_extract.audio.soundfile, "SoundFile", opened)


@pytest.fixture
def lengths_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Headers are read in the scan as ever: what fails are recordings that are being decoded."""
    monkeypatch.setattr(amber2_extract.inputs, "seconds_of", lambda excerpt: float(excerpt.path.stat().st_size))


def test_a_stale_network_folder_is_one_line_whatever_can_be_seen_of_it(place: Place, lengths_known: None) -> None:
    with pytest.MonkeyPatch.context() as patch:
        _failing(errno.ESTALE, "u17.wav", patch)
        with pytest.raises(CorpusError, match=r"any more: Stale file handle; what is encoded so far is kept"):
            place.extract()
    assert not place.output.exists()


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES])
def test_one_recording_that_the_disk_cannot_read_is_a_failure_of_one(
    place: Place, number: int, lengths_known: None
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        _failing(number, "u17.wav", patch)
        summary = place.extract()
    (failure,) = summary.failures
    assert (failure.utterance, failure.reason) == ("u17", f"u17.wav: {os.strerror(number)}")
    held = np.arange(30) != 17
    np.testing.assert_array_equal(place.values(summary)["audio"][held], place.undisturbed["audio"][held])


def test_recordings_that_were_never_there_are_failures_of_their_own(place: Place) -> None:
    corpus = with_utterance(place.corpus, 3, audio="wav/never.wav")
    corpus = with_utterance(corpus, 8, audio="other/never.wav")
    summary = place.extract(corpus=corpus, on_progress=_after(10, (place.corpus.root / "wav/u00.wav").unlink))
    reasons = {failure.utterance: failure.reason for failure in summary.failures}
    assert {"u03", "u08"} <= reasons.keys() <= {"u00", "u03", "u08"}
    assert set(reasons.values()) <= {f"{name}.wav: No such file or directory" for name in ("never", "u00")}


def test_the_folder_of_the_cache_vanishes(place: Place) -> None:
    gone = place.output.parent
    with pytest.raises(CacheError, match=r"No such file or directory; the 10 rows .* where it comes back, the same"):
        place.extract(on_progress=_after(10, _moved(gone)))
    _back(gone)
    place.ends_well(encoded_before=10)


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE])
def test_the_disk_of_the_cache_fails_while_parts_are_written(
    place: Place, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = 0

    def fsync(descriptor: int) -> None:
        nonlocal synced
        synced += 1
        if synced > 21:
            raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(amber2_extract.parts.os, "fsync", fsync)
        with pytest.raises(CacheError, match=rf"^Cannot write to .*: {os.strerror(number)}; the \d+ rows"):
            place.extract()
    kept = len(list(place.output.parent.glob("*.parts/*/*.npz"))) - 1
    assert kept > 0
    place.ends_well(encoded_before=kept)


@pytest.mark.parametrize("broken", ["replace", "pwrite", "read_bytes"])
def test_the_disk_of_the_cache_fails_while_it_is_put_together(
    place: Place, broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fails: Any = lambda *arguments: (_ for _ in ()).throw(OSError(errno.ESTALE, os.strerror(errno.ESTALE)))  # noqa: E731
    with monkeypatch.context() as patch:
        if broken == "replace":
            patch.setattr(amber2_core.cache.os, "replace", _only_for(place.output, fails))
        elif broken == "pwrite":
            patch.setattr(os, "pwrite", fails)
        else:
            patch.setattr(Path, "read_bytes", fails)
        with pytest.raises(CacheError, match=r"^Cannot (read|write) .*Stale file handle"):
            place.extract()
    assert not place.output.exists()


def _only_for(target: Path, fails: Any) -> Any:
    replace = os.replace
    return lambda source, name: fails() if name == target else replace(source, name)


def test_an_earlier_cache_that_vanishes_is_one_line_and_stays_as_it_was(place: Place) -> None:
    """What is not encoded anew is copied from it, and the copy fails."""
    place.extract()
    before = place.output.read_bytes()
    (place.corpus.root / "wav/u03.wav").unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "pwrite", lambda *arguments: (_ for _ in ()).throw(OSError(errno.EIO, "Input/output error")))
        with pytest.raises(CacheError, match=r"^Cannot write .*corpus\.h5: Input/output error; what is encoded so far"):
            place.extract()
    assert place.output.read_bytes() == before
    assert [failure.utterance for failure in place.extract().failures] == ["u03"]


def test_a_length_is_read_from_a_file_that_is_there(tmp_path: Path) -> None:
    """The cause of the error, which tells one kind from the other, is that of the system."""
    with pytest.raises(amber2_extract.audio.AudioError) as caught:
        amber2_extract.audio.seconds_of(Excerpt(tmp_path / "a.wav"))
    assert isinstance(caught.value.__cause__, FileNotFoundError)
