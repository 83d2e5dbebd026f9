"""A worker makes what it is dealt into rows, on a processor and as on an accelerator, and halves what does not fit."""

from __future__ import annotations

import logging
import platform
import resource
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from small_corpus import write_corpus
from small_models import save_speech, save_text

from amber2_core.errors import CorpusError, ModelError, SettingError
from amber2_data.sound import Excerpt
from amber2_extract.batches import Seat
from amber2_extract.crew import survey
from amber2_extract.encoders.text import Tokenizer
from amber2_extract.encoders.waveform import SpeechEncoder
from amber2_extract.plan import plan_jobs
from amber2_extract.recordings import Batch, scan_recordings, transcript_inputs
from amber2_extract.rows import Row, RowStore, RowWriter
from amber2_extract.worker import Halving, Orders, Station, encode, give_back


class Bench:
    """A feature set that is asked for, and the works for it."""

    def __init__(self, folder: Path, modality: str) -> None:
        save_speech(folder / "wav2vec2", "wav2vec2-group")
        save_text(folder / "bert", "bert")
        corpus = write_corpus(folder / "corpus", count=9)
        models = (str(folder / "wav2vec2"), None) if modality == "audio" else (None, str(folder / "bert"))
        (self.job,) = plan_jobs(*models, frames=3)
        self.works = list((scan_recordings if modality == "audio" else transcript_inputs)(corpus).works.values())
        self.folder = folder

    def encoded(self, *, on_accelerator: bool = False) -> dict[str, Row]:
        """Rows by digest, in batches of four."""
        store = self.folder / f"store-{on_accelerator}"
        station = Station(Seat(0, "cpu", 2), Orders(self.job, store))
        station.encodes_in_threads = not on_accelerator
        batches = [Batch(tuple(self.works[first : first + 4]), 1.0) for first in range(0, len(self.works), 4)]
        outcome = encode(station, batches)
        self.failures, self.evidence = outcome.failures, outcome.evidence
        assert outcome.seconds > 0
        kept = RowStore(store)
        return {work.digest: kept.read(work.digest) for work in self.works if work.digest in kept}


@pytest.mark.parametrize("modality", ["audio", "text"])
def test_a_worker_writes_the_row_of_everything_that_it_is_dealt(modality: str, tmp_path: Path) -> None:
    bench = Bench(tmp_path, modality)
    here, there = bench.encoded(), bench.encoded(on_accelerator=True)
    assert bench.failures == {}
    assert list(here) == list(there) == [work.digest for work in bench.works]
    for row, other in zip(here.values(), there.values(), strict=True):
        np.testing.assert_array_equal(row.values, other.values)
        np.testing.assert_array_equal(row.frames, other.frames)  # type: ignore[arg-type]


@pytest.mark.parametrize("on_accelerator", [False, True])
def test_what_cannot_be_encoded_is_told_by_its_digest_and_the_rest_goes_on(
    on_accelerator: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(tmp_path, "audio")
    silent, broken = bench.works[1], bench.works[6]
    assert isinstance(silent.source, Excerpt)
    soundfile.write(silent.source.path, np.zeros(8_000), 16_000)
    prepare = SpeechEncoder.prepare

    def prepared(self: Any, waveform: Any) -> Any:
        return prepare(self, waveform) * (np.nan if abs(waveform).max() > 1e6 else 1)

    loud, _ = soundfile.read(broken.source.path)  # type: ignore[union-attr]
    soundfile.write(broken.source.path, loud * 1e9, 16_000, subtype="FLOAT")  # type: ignore[union-attr]
    monkeypatch.setattr(SpeechEncoder, "prepare", prepared)
    rows = bench.encoded(on_accelerator=on_accelerator)
    assert bench.failures == {
        silent.digest: "u01.wav: is silent: every sample is zero",
        broken.digest: "the encoder gives values that are not finite",
    }
    assert rows.keys() == {work.digest for work in bench.works} - bench.failures.keys()


def test_a_transcript_without_a_token_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(tmp_path, "text")
    tokens = Tokenizer.tokens
    bare = bench.works[2]

    def without(self: Any, transcripts: Any) -> Any:
        found, cut = tokens(self, transcripts)
        return [[] if one == bare.source else ids for one, ids in zip(transcripts, found, strict=True)], cut

    monkeypatch.setattr(Tokenizer, "tokens", without)
    assert len(bench.encoded()) == len(bench.works) - 1
    assert bench.failures == {bare.digest: "its transcript gives no token"}


@pytest.mark.parametrize("on_accelerator", [False, True])
def test_rows_of_earlier_batches_survive_what_ends_the_portion(
    on_accelerator: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(tmp_path, "audio")
    check = SpeechEncoder.check

    def checked(self: Any, waveform: Any) -> None:
        if len(waveform) == soundfile.info(bench.works[-1].source.path).frames:  # type: ignore[union-attr]
            raise CorpusError("the folder has gone")
        check(self, waveform)

    monkeypatch.setattr(SpeechEncoder, "check", checked)
    with pytest.raises(CorpusError, match="the folder has gone"):
        bench.encoded(on_accelerator=on_accelerator)
    assert len(RowStore(tmp_path / f"store-{on_accelerator}")) == 8


def test_an_accelerator_has_the_next_batch_before_the_rows_of_the_last_are_taken_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, both, threads = Bench(tmp_path, "audio"), threading.Barrier(2, timeout=30), set()
    bench.works = bench.works[:8]  # two batches
    inside, add = SpeechEncoder.encode, RowWriter.add

    def encoded(self: Any, inputs: Any) -> list[Row]:
        both.wait()  # breaks where one batch is not begun before the other is done
        threads.add(threading.get_ident())
        return inside(self, inputs)

    def added(self: Any, rows: Any) -> None:
        assert threading.get_ident() not in threads
        add(self, rows)

    monkeypatch.setattr(SpeechEncoder, "encode", encoded)
    monkeypatch.setattr(RowWriter, "add", added)
    assert len(bench.encoded(on_accelerator=True)) == 8


def test_a_survey_counts_tokens_and_chooses_devices_without_the_weights(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "text")
    (tmp_path / "bert" / "model.safetensors").unlink()
    (tmp_path / "bert" / "model.safetensors").write_bytes(b"not weights")
    found = survey(bench.job, "cpu", bench.works)
    assert found.seats == (Seat(0, "cpu", torch.get_num_threads()),)
    assert set(found.cut) == {False}
    # "[CLS] one voice [SEP]"
    assert dict(zip((work.source for work in bench.works), found.tokens, strict=True))["one voice"] == 4
    with pytest.raises(SettingError, match="Bad device 'tpu'"):
        survey(bench.job, "tpu", bench.works)


class Narrow:
    """An encoder whose device takes so many samples at once, padding included."""

    def __init__(self, most: int, error: type[Exception] = torch.OutOfMemoryError) -> None:
        self.device = torch.device("cpu")
        self.most = most
        self.error = error
        self.tried: list[int] = []

    def encode(self, inputs: Sequence[Any]) -> list[Row]:
        self.tried.append(len(inputs))
        if len(inputs) * max(map(len, inputs)) > self.most:
            raise self.error("CUDA out of memory. Tried to allocate 2.00 GiB")
        return [Row(np.array([sum(one)], dtype=np.float32)) for one in inputs]


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError, MemoryError])
@pytest.mark.parametrize("most", [5, 6, 11, 16, 100])
def test_the_rows_are_those_of_the_whole_batch(most: int, error: type[Exception]) -> None:
    inputs = [[number] * 5 for number in range(7)]
    rows = Halving(Narrow(most, error))(inputs)
    assert [row.values.tolist() for row in rows] == [[5.0 * number] for number in range(7)]


def test_what_did_not_fit_is_remembered_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    encoder = Narrow(20)
    encode = Halving(encoder)
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            encode([[1] * 5] * 8)
    assert encoder.tried == [8, 4, 4, 4, 4, 4, 4]
    assert caplog.messages == ["cpu ran out of memory with a batch of 8: it is halved, and so are others as large"]


def test_one_utterance_that_does_not_fit_is_an_error() -> None:
    with pytest.raises(
        ModelError,
        match=r"cpu has too little memory for one utterance alone \(5 samples.*OMP_NUM_THREADS=1.*--precision",
    ):
        Halving(Narrow(4))([[1] * 5, [2] * 5])


def test_what_fits_alone_and_not_beside_another_batch_waits_for_the_device() -> None:
    class Shared(Narrow):
        """Two calls at once share the room."""

        def __init__(self, most: int) -> None:
            super().__init__(most)
            self.used, self.lock, self.met = 0, threading.Lock(), threading.Barrier(2, timeout=30)

        def encode(self, inputs: Sequence[Any]) -> list[Row]:
            with self.lock:
                self.used += sum(map(len, inputs))
                first = len(self.tried) < 2
                self.tried.append(len(inputs))
            if first:
                self.met.wait()
            try:
                if self.used > self.most:
                    raise self.error("CUDA out of memory")
                return [Row(np.array([sum(one)], dtype=np.float32)) for one in inputs]
            finally:
                if first:
                    self.met.wait()
                with self.lock:
                    self.used -= sum(map(len, inputs))

    encode = Halving(Shared(7))
    with ThreadPoolExecutor(2) as threads:
        found = list(threads.map(encode, ([[1] * 5], [[2] * 5])))
    assert [rows[0].values.tolist() for rows in found] == [[5.0], [10.0]]


def test_another_error_is_none_of_memory() -> None:
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        Halving(Broken(0))([[1], [2]])


@pytest.mark.parametrize("device", ["cpu", "cuda", "mps"])
def test_memory_is_given_back_to_the_device_before_the_next_try(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    emptied: list[str] = []
    for kind in ("cuda", "mps"):
        monkeypatch.setattr(f"torch.{kind}.empty_cache", lambda kind=kind: emptied.append(kind))
    encoder = Narrow(10)
    encoder.device = torch.device(device)
    Halving(encoder)([[1] * 5] * 4)
    assert emptied == ([] if device == "cpu" else [device])


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc keeps free memory, and can be told not to")
def test_memory_between_what_is_kept_goes_back_to_the_system() -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    blocks = [bytes([number % 256]) * 100_000 for number in range(1_000)]
    kept = blocks[::50]
    del blocks
    before = resident()
    give_back()
    assert before - resident() > 60_000_000
    assert [block[0] for block in kept] == [number % 256 for number in range(0, 1_000, 50)]


def test_what_an_apple_gpu_cannot_do_is_one_line() -> None:
    class Apple(Narrow):
        def encode(self, inputs: Sequence[Any]) -> list[Row]:
            raise NotImplementedError("The operator 'aten::x' is not implemented for MPS. Please open an issue")

    encoder = Apple(9)
    with pytest.raises(NotImplementedError):
        Halving(encoder)([[1]])
    encoder.device = torch.device("mps")
    with pytest.raises(ModelError, match=r"^The operator 'aten::x' .* for MPS: set PYTORCH_ENABLE_MPS_FALLBACK=1 "):
        Halving(encoder)([[1]])


class Broken(Narrow):
    def encode(self, inputs: Sequence[Any]) -> list[Row]:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")
