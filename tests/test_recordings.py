"""A corpus is read once and whole; what no cache can hold is said at once, and a folder that vanishes is one line."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from extraction import Place, after, deal_singly, of, work_here
from small_corpus import with_utterance

import amber2_data.sound
import amber2_extract.recordings
import amber2_extract.worker
from amber2_core.cache import read_cache
from amber2_core.errors import CacheError, CorpusError
from amber2_core.utterance import Corpus, LabelDefaults, Rating, Utterance
from amber2_data.sound import Excerpt
from amber2_extract.pipeline import Summary
from amber2_extract.recordings import blank_cache, storable

# --- what a cache can hold ---

UTTERANCE = Utterance("u1", "u1.wav", "one voice", (Rating("r1", "sad"),), attributes={"note": "calm"})


def _corpus(**changes: Any) -> Corpus:
    return Corpus("example", Path("/corpus"), (replace(UTTERANCE, **changes),), LabelDefaults(("sad", "happy")))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"id": "u\0"}, r"Bad id 'u\\x00' in /corpus"),
        ({"speaker": "\udc80"}, "Bad speaker"),
        ({"ratings": (Rating("r1", "s\0d"),)}, "Bad label"),
        ({"ratings": (Rating("r1", "sad", weight=-1.0),)}, "Bad weight -1.0"),
        ({"attributes": {"note": "\ud800"}}, "Bad note"),
        ({"attributes": {"a/b": 1.0}}, "Bad attribute name 'a/b'"),
    ],
)
def test_what_cannot_be_stored_is_refused(changes: Any, words: str) -> None:
    with pytest.raises(CorpusError, match=words):
        blank_cache(_corpus(**changes))


def test_a_transcript_is_mended() -> None:
    assert storable("a\ud800b\0c") == "a\ufffdb\ufffdc"
    assert storable("🎙️ naïve") == "🎙️ naïve"
    assert list(blank_cache(_corpus(transcript="a\0b")).utterances.transcript) == ["a\ufffdb"]


def test_the_tables_of_the_corpus_are_in_it() -> None:
    blank = blank_cache(_corpus())
    assert (blank.corpus, len(blank.ratings), blank.features) == ("example", 1, ())
    assert list(blank.attributes["note"]) == ["calm"]
    assert "amber2" in blank.versions


# --- folders that vanish ---


class Shelf(Place):
    """A corpus on one disk, its models and its cache on others."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, count=30)
        self.undisturbed = self.all_values(self.extract(output=folder / "undisturbed.h5"))

    def all_values(self, summary: Summary) -> dict[str, Any]:
        return {f.modality: f.values for f in read_cache(summary.output).features}

    def ends_well(self, *, encoded_before: int) -> None:
        """A further call encodes only what is missing, and ends with the same values."""
        summary = self.extract()
        assert not summary.failures
        assert of(summary, "audio").distinct == 30 - encoded_before
        for modality, values in self.all_values(summary).items():
            np.testing.assert_array_equal(values, self.undisturbed[modality])
        assert [path.name for path in self.output.parent.iterdir()] == ["example.h5"]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shelf:
    work_here(monkeypatch)
    deal_singly(monkeypatch)
    return Shelf(tmp_path)


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


@pytest.mark.parametrize("vanish", [_moved, _unmounted])
@pytest.mark.parametrize("folder", ["corpus", "corpus/wav"])
def test_recordings_that_vanish_while_they_are_encoded(place: Shelf, vanish: Any, folder: str) -> None:
    gone = place.folder / folder
    with pytest.raises(CorpusError) as caught:
        place.extract(on_progress=after(10, vanish(gone)))
    line = str(caught.value)
    assert line.startswith(f"Cannot read the recordings in {place.folder / 'corpus/wav'} any more: ")
    assert line.endswith("what is encoded so far is kept, and the same command goes on when they are back")
    assert not place.output.exists()
    _back(gone)
    kept = place.kept() - 6  # but the transcripts
    assert kept >= 10
    place.ends_well(encoded_before=kept)


@pytest.mark.parametrize("vanish", [_moved, _unmounted])
@pytest.mark.parametrize("folder", ["corpus", "corpus/wav"])
def test_recordings_that_vanish_while_they_are_scanned(
    place: Shelf, vanish: Any, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone, digest_of, lock, count = place.folder / folder, amber2_extract.recordings.sha256_of, threading.Lock(), 0

    def sha256_of(path: Path) -> str:
        nonlocal count
        with lock:
            count += 1
            if count == 7:
                vanish(gone)()
            return digest_of(path)

    with monkeypatch.context() as patch:
        patch.setattr(amber2_extract.recordings, "sha256_of", sha256_of)
        with pytest.raises(CorpusError, match=r"^Cannot read the recordings in .* any more: (No such|it is empty)"):
            place.extract()
    _back(gone)
    place.ends_well(encoded_before=0)


def _failing(number: int, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the recording of that name on, the system says so of every one, or only of that one."""
    real, gone = amber2_data.sound.soundfile.SoundFile, threading.Event()

    def opened(path: bytes) -> Any:
        if Path(os.fsdecode(path)).name == name or gone.is_set():
            if number == errno.ESTALE:
                gone.set()
            raise OSError(number, os.strerror(number))
        return real(path)

    monkeypatch.setattr(amber2_data.sound.soundfile, "SoundFile", opened)


@pytest.fixture
def lengths_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Headers are read in the scan as ever: what fails are recordings that are being decoded."""
    monkeypatch.setattr(amber2_extract.recordings, "seconds_of", lambda excerpt: float(excerpt.path.stat().st_size))


def test_a_stale_network_folder_is_one_line_whatever_can_be_seen_of_it(place: Shelf, lengths_known: None) -> None:
    with pytest.MonkeyPatch.context() as patch:
        _failing(errno.ESTALE, "u17.wav", patch)
        with pytest.raises(CorpusError, match=r"any more: Stale file handle; what is encoded so far is kept"):
            place.extract()
    assert not place.output.exists()


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES])
def test_one_recording_that_the_disk_cannot_read_is_a_failure_of_one(
    place: Shelf, number: int, lengths_known: None
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        _failing(number, "u17.wav", patch)
        summary = place.extract()
    (failure,) = summary.failures
    assert (failure.utterance, failure.reason) == ("u17", f"u17.wav: {os.strerror(number)}")
    held = np.arange(30) != 17
    np.testing.assert_array_equal(place.all_values(summary)["audio"][held], place.undisturbed["audio"][held])


def test_recordings_that_were_never_there_are_failures_of_their_own(place: Shelf) -> None:
    corpus = with_utterance(place.corpus, 3, audio="wav/never.wav")
    corpus = with_utterance(corpus, 8, audio="other/never.wav")
    summary = place.extract(corpus=corpus, on_progress=after(10, (place.corpus.root / "wav/u00.wav").unlink))
    reasons = {failure.utterance: failure.reason for failure in summary.failures}
    assert {"u03", "u08"} <= reasons.keys() <= {"u00", "u03", "u08"}
    assert set(reasons.values()) <= {f"{name}.wav: No such file or directory" for name in ("never", "u00")}


def test_the_folder_of_the_cache_vanishes(place: Shelf) -> None:
    gone = place.output.parent
    with pytest.raises(CacheError, match=r"No such file or directory; the rows .* where it comes back, the same"):
        place.extract(on_progress=after(10, _moved(gone)))
    _back(gone)
    place.ends_well(encoded_before=10)


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE])
def test_the_disk_of_the_cache_fails_while_rows_are_written(
    place: Shelf, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced, sync = 0, os.fsync

    def fsync(descriptor: int) -> None:
        nonlocal synced
        synced += 1
        if synced > 21:
            raise OSError(number, os.strerror(number))
        sync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(amber2_extract.worker, "REST_SECONDS", 0.0)
        patch.setattr(os, "fsync", fsync)
        with pytest.raises(CacheError, match=rf"^Cannot write to .*: {os.strerror(number)}; the rows"):
            place.extract()
    kept = place.kept() - 6
    assert kept > 0
    place.ends_well(encoded_before=kept)


@pytest.mark.parametrize("broken", ["replace", "read"])
def test_the_disk_of_the_cache_fails_while_it_is_put_together(
    place: Shelf, broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fails: Any = lambda *arguments: (_ for _ in ()).throw(OSError(errno.ESTALE, os.strerror(errno.ESTALE)))  # noqa: E731
    with monkeypatch.context() as patch:
        if broken == "replace":
            patch.setattr(os, "replace", _only_for(place.output, fails))
        else:
            patch.setattr("amber2_extract.rows._read", fails)
        with pytest.raises(CacheError, match=r"^Cannot (read|write) .*Stale file handle"):
            place.extract()
    assert not place.output.exists()
    place.ends_well(encoded_before=30 if broken == "replace" else 0)  # the transcripts' rows are read first


def _only_for(target: Path, fails: Any) -> Any:
    replace = os.replace
    return lambda source, name: fails() if name == target else replace(source, name)


def test_an_earlier_cache_that_vanishes_is_one_line_and_stays_as_it_was(place: Shelf) -> None:
    """What is not encoded anew is read from it, and cannot be."""
    place.extract()
    before = place.output.read_bytes()
    (place.corpus.root / "wav/u03.wav").unlink()

    def fails(self: Any, rows: slice) -> Any:
        raise OSError(errno.EIO, "Input/output error")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("amber2_extract.previous.Gathered.__getitem__", fails)
        with pytest.raises(CacheError, match=r"^Cannot read what .*example\.h5 is made of: Input/output error"):
            place.extract()
    assert place.output.read_bytes() == before
    assert [failure.utterance for failure in place.extract().failures] == ["u03"]


def test_a_length_is_read_from_a_file_that_is_there(tmp_path: Path) -> None:
    """The cause of the error, which tells one kind from the other, is that of the system."""
    with pytest.raises(amber2_data.sound.AudioError) as caught:
        amber2_data.sound.seconds_of(Excerpt(tmp_path / "a.wav"))
    assert isinstance(caught.value.__cause__, FileNotFoundError)
