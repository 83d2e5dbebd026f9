"""extract-features and inspect-cache as a user types them."""

from __future__ import annotations

import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import click
import h5py
import numpy as np
import pytest
import soundfile
from click.testing import CliRunner, Result
from extraction import work_here
from small_corpus import write_corpus
from small_models import save_classifier, save_speech, save_text

from amber2_core.cache import read_cache
from amber2_extract.cli import ProgressLines, describe, extract_features, inspect_cache
from amber2_extract.pipeline import Progress


class Desk:
    """A user's folder: a manifest with its recordings, and two models."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        save_speech(folder / "wav2vec2", "wav2vec2-group")
        save_text(folder / "bert", "bert")
        corpus = write_corpus(folder / "corpus", count=6)
        self.manifest = folder / "corpus" / "corpus.csv"
        votes = ("1,0,2", "0,3,0")
        rows = [
            f'{u.id},{u.audio},"{u.transcript}",{u.speaker},{votes[row % 2]}' for row, u in enumerate(corpus.utterances)
        ]
        self.manifest.write_text("\n".join(["id,audio,text,speaker,votes.neutral,votes.happy,votes.sad", *rows]))

    def run(self, *arguments: str, **changes: str | None) -> Result:
        options: dict[str, str | None] = {
            "corpus": "manifest",
            "root": str(self.manifest),
            "audio-model": str(self.folder / "wav2vec2"),
            "text-model": str(self.folder / "bert"),
            "cache-dir": str(self.folder / "cache"),
            **{name.replace("_", "-"): value for name, value in changes.items()},
        }
        given = [word for name, value in options.items() if value is not None for word in (f"--{name}", value)]
        return CliRunner().invoke(extract_features, [*given, *arguments])

    def error(self, **changes: str | None) -> str:
        """The one line of a user's error."""
        before = _files(self.folder)
        result = self.run("--quiet", **changes)
        assert result.exit_code == 1, result.output
        assert result.stdout == ""
        line, end = result.stderr.split("\n")
        assert end == ""
        assert line.startswith("error: ")
        assert _files(self.folder) == before
        return line


def _files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    for name in list(os.environ):
        if name.startswith("AMBER2_") and name != "AMBER2_TEST_DATA":
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    work_here(monkeypatch)
    return Desk(tmp_path)


# --- extract-features ---


def test_a_corpus_is_encoded_and_a_second_call_says_that_there_is_nothing_to_do(desk: Desk) -> None:
    first = desk.run()
    cache = desk.folder / "cache" / "manifest.h5"
    assert first.exit_code == 0, first.output
    lines = first.stdout.splitlines()
    assert lines[0] == "text/bert: 6 encoded, 0 up to date, 0 failed"
    assert lines[1].startswith("audio/wav2vec2: 6 encoded, 0 up to date, 0 failed; ")
    assert lines[2] == str(cache)
    assert first.stderr.splitlines()[0] == "reading 6 recordings of manifest"
    second = desk.run()
    assert second.exit_code == 0
    assert second.stdout.splitlines() == [
        "text/bert: 0 encoded, 6 up to date, 0 failed",
        "audio/wav2vec2: 0 encoded, 6 up to date, 0 failed",
        f"{cache} was up to date",
    ]


def test_quiet_says_nothing_but_the_result(desk: Desk) -> None:
    assert desk.run("--quiet").stderr == ""


def test_the_cache_folder_is_an_option_or_a_variable_or_here(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    assert desk.run(cache_dir=None).exit_code == 0
    assert (desk.folder / "cache" / "manifest.h5").exists()
    monkeypatch.setenv("AMBER2_CACHE_DIR", str(desk.folder / "elsewhere"))
    assert desk.run(cache_dir=None).exit_code == 0
    assert (desk.folder / "elsewhere" / "manifest.h5").exists()
    assert desk.run(cache_dir=None, output=str(desk.folder / "named.h5")).exit_code == 0
    assert (desk.folder / "named.h5").exists()


def test_one_modality_at_a_time(desk: Desk) -> None:
    assert desk.run(modality="text", audio_model="there/is-no-such-model").exit_code == 0
    result = desk.run(modality="audio", text_model="there/is-no-such-model", layers="all")
    assert result.exit_code == 0, result.output
    cache = read_cache(desk.folder / "cache" / "manifest.h5")
    assert [(f.modality, f.name, f.values.ndim) for f in cache.features] == [
        ("audio", "wav2vec2-layers", 3),
        ("text", "bert", 2),
    ]


def test_failures_are_listed_and_the_exit_code_is_3(desk: Desk) -> None:
    soundfile.write(desk.folder / "corpus/wav/u02.wav", np.zeros(8_000), 16_000)
    (desk.folder / "corpus/wav/u04.wav").write_bytes(b"")
    for expected in ("4 encoded, 0 up to date, 2 failed", "0 encoded, 4 up to date, 2 failed"):
        result = desk.run("--quiet")
        assert result.exit_code == 3
        assert result.stdout.splitlines()[1].startswith(f"audio/wav2vec2: {expected}")
        assert result.stderr.splitlines() == [
            "failed: u02 (audio/wav2vec2): u02.wav: is silent: every sample is zero",
            "failed: u04 (audio/wav2vec2): u04.wav: is empty (0 bytes)",
        ]


def test_transcripts_that_are_cut_are_counted(desk: Desk) -> None:
    text = desk.manifest.read_text()
    desk.manifest.write_text(text.replace("one voice", "voice " * 100))
    assert "text/bert: 6 encoded, 0 up to date, 0 failed; 1 cut to the model's limit" in desk.run().stdout


def test_every_users_mistake_is_one_line(desk: Desk) -> None:
    assert "Bad corpus 'nothing', expected one of ['crema_d'" in desk.error(corpus="nothing")
    assert "No corpus 'manifest' at" in desk.error(root=str(desk.folder / "nothing.csv"))
    assert "No folder AudioWAV in" in desk.error(corpus="crema_d", root=str(desk.folder / "corpus"))
    (desk.folder / "empty").mkdir()
    assert f"{desk.folder / 'empty'} holds no config.json" in desk.error(audio_model=str(desk.folder / "empty"))
    shutil.copy(desk.folder / "wav2vec2/config.json", desk.folder / "empty")
    shutil.copy(desk.folder / "wav2vec2/preprocessor_config.json", desk.folder / "empty")
    assert "holds no weights" in desk.error(audio_model=str(desk.folder / "empty"))
    assert "no such folder" in desk.error(text_model="./nothing")
    assert "not downloaded yet" in desk.error(text_model="nobody/nothing-at-all")
    assert "Bad device 'gpu', expected one of ['auto', 'cpu'" in desk.error(device="gpu")
    assert "Cannot write" in desk.error(output=str(desk.manifest / "cache.h5"))
    assert "Cannot write /proc/cache.h5" in desk.error(output="/proc/cache.h5")


def test_a_file_that_is_no_cache_is_left_alone(desk: Desk) -> None:
    (desk.folder / "notes.h5").write_text("not a cache")
    assert "is not an HDF5 file" in desk.error(output=str(desk.folder / "notes.h5"))
    with h5py.File(desk.folder / "other.h5", "w") as file:
        file["numbers"] = [1, 2, 3]
    assert "not a feature cache" in desk.error(output=str(desk.folder / "other.h5"))


@pytest.mark.parametrize(
    "option",
    ["--max-seconds=0", "--max-seconds=-1", "--batch-seconds=-1", "--batch-tokens=x", "--modality=video", "--no-such"],
)
def test_bad_usage_is_exit_2(option: str, desk: Desk) -> None:
    assert desk.run(option).exit_code == 2


@pytest.mark.parametrize("command", [extract_features, inspect_cache])
def test_every_option_is_explained(command: click.Command) -> None:
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, parameter.name


# --- progress ---


def _progress(share: float, elapsed: float, *, seconds: float = 3600.0) -> Progress:
    done = round(1000 * share)
    return Progress("audio/hubert", done, 1000, share * seconds, seconds, share, elapsed, 0.004)


def test_the_words_hold_utterances_hours_speed_padding_and_time_left() -> None:
    assert describe(_progress(0.2, 72)) == (
        "200 of 1,000, 0.20 of 1.00 h, 10.0 times real time, 0.4 % padding, 5 min left"
    )
    assert describe(_progress(0.5, 72, seconds=0)) == "500 of 1,000, 0.4 % padding, 72 s left"
    assert describe(_progress(0.0, 0)) == "0 of 1,000, 0.00 of 1.00 h, 0.4 % padding"
    assert "15.0 h left" in describe(_progress(0.25, 5 * 3600))


def test_a_line_is_said_when_it_is_time_for_one(caplog: pytest.LogCaptureFixture) -> None:
    now = 100.0
    lines = ProgressLines(every=30, clock=lambda: now)
    with caplog.at_level(logging.INFO, "amber2_extract"):
        for now in (101.0, 129.9, 130.0, 131.0, 159.0, 190.0):
            lines(_progress(0.5, now - 100))
    assert len(caplog.messages) == 2
    assert caplog.messages[0] == (
        "audio/hubert: 500 of 1,000, 0.50 of 1.00 h, 60.0 times real time, 0.4 % padding, 30 s left"
    )


# --- inspect-cache ---


def _inspect(*arguments: str) -> Result:
    return CliRunner().invoke(inspect_cache, list(arguments))


@pytest.fixture
def cache(desk: Desk) -> Path:
    (desk.folder / "corpus/wav/u04.wav").write_bytes(b"")
    assert desk.run().exit_code == 3
    return desk.folder / "cache" / "manifest.h5"


def test_a_cache_tells_what_it_holds(cache: Path) -> None:
    result = _inspect(str(cache))
    assert result.exit_code == 0, result.output
    words = result.stdout.split()
    for expected in ("manifest,", "audio/wav2vec2:", "text/bert:", "weights_digest:", "neutral", "bits"):
        assert expected in words, expected
    assert "6 × 32 float32" in result.stdout
    assert "6, " in result.stdout
    assert "u04 (audio/wav2vec2): u04.wav: is empty (0 bytes)" in result.stdout
    assert "verified" not in result.stdout


def test_json_holds_the_same_for_machines(cache: Path) -> None:
    record: dict[str, Any] = json.loads(_inspect(str(cache), "--json").stdout)
    held = read_cache(cache)
    assert record["utterances"] == 6
    assert record["speakers"] == 4
    assert record["hours"] == pytest.approx(np.nansum(held.utterances.duration) / 3600, abs=1e-4)
    assert [features["fingerprint"] for features in record["features"]] == [f.fingerprint for f in held.features]
    assert record["features"][0]["recipe"] == held.features[0].recipe
    assert record["failures"] == [
        {"utterance": "u04", "stage": "audio/wav2vec2", "reason": "u04.wav: is empty (0 bytes)"}
    ]
    labels = record["labels"]
    assert labels["utterances"] == 6
    assert labels["shares"] == pytest.approx({"neutral": 1 / 6, "happy": 1 / 2, "sad": 1 / 3})
    # half of them unanimous, half with one vote against two, which is 0.918 bits
    assert labels["mean_entropy"] == pytest.approx(0.9182958 / 2)
    assert (labels["unanimous"], labels["tied"]) == (0.5, 0)


def test_verify_finds_a_flipped_bit_that_a_glance_does_not_see(cache: Path) -> None:
    assert "every checksum verified" in _inspect(str(cache), "--verify").stdout
    with h5py.File(cache) as file:
        offset = file["features/audio/wav2vec2/values"].id.get_offset()
    with cache.open("r+b") as handle:
        handle.seek(offset + 5)
        byte = handle.read(1)[0]
        handle.seek(offset + 5)
        handle.write(bytes([byte ^ 1]))
    assert _inspect(str(cache)).exit_code == 0
    result = _inspect(str(cache), "--verify")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    assert "does not match its checksum" in result.stderr


def test_what_is_no_cache_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "notes.h5").write_text("not a cache")
    for name, reason in (("notes.h5", "is not an HDF5 file"), ("nothing.h5", "No feature cache at")):
        result = _inspect(str(tmp_path / name))
        assert result.exit_code == 1
        assert reason in result.stderr
        assert result.stderr.count("\n") == 1


# --- a real corpus ---


def test_clips_of_crema_d_are_encoded_with_their_votes(desk: Desk, test_data: Path) -> None:
    root = desk.folder / "crema_d"
    root.mkdir()
    for path in (test_data / "crema_d").iterdir():
        if path.name != "AudioWAV":
            (root / path.name).symlink_to(path)
    (root / "AudioWAV").mkdir()
    for path in sorted((test_data / "crema_d" / "AudioWAV").glob("*.wav"))[::60]:
        (root / "AudioWAV" / path.name).symlink_to(path)
    result = desk.run(corpus="crema_d", root=str(root))
    assert result.exit_code == 3, result.output
    assert "7434 failed; 1" in result.output
    cache = read_cache(desk.folder / "cache" / "crema_d.h5")
    assert len(cache.utterances) == 7441
    there = np.isfinite(cache.feature_set("audio").values).all(axis=1)
    assert there.sum() == 7, "of a part of the release, what is there"
    assert set(cache.ratings.stimulus) == {"audio", "video", "audiovisual"}


def test_a_sentiment_is_added_to_a_cache_by_its_modality_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work_here(monkeypatch)
    desk = Desk(tmp_path)
    save_classifier(tmp_path / "classifier", "bert", ("LABEL_0", "LABEL_1", "LABEL_2"))
    assert desk.run(modality="text").exit_code == 0
    asked_for = {"modality": "sentiment", "sentiment_model": str(tmp_path / "classifier")}
    assert desk.error(modality="sentiment").endswith("name an audio model, a text model, or a --sentiment-model")
    assert "say in which order, as with --sentiment-labels negative,neutral,positive" in desk.error(**asked_for)
    done = desk.run("--sentiment-labels", "negative,neutral,positive", **asked_for)
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[0] == "sentiment/classifier: 6 encoded, 0 up to date, 0 failed"
    held = read_cache(tmp_path / "cache" / "manifest.h5").features
    assert [(features.modality, features.name) for features in held] == [("sentiment", "classifier"), ("text", "bert")]
