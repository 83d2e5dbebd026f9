"""A user's own encoder in a file is tried, run and cached as any other; and `check-encoder` tells of each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from extraction import Place, work_here
from small_families import save_family
from small_models import noise, save_speech, save_t5, save_text

from amber2_core.errors import ModelError
from amber2_extract.batches import Effort
from amber2_extract.checkpoint import find_checkpoint
from amber2_extract.cli import check_encoder
from amber2_extract.encoders.own import OwnEncoder
from amber2_extract.plan import plan_jobs

# loudness in stretches of 10 ms, and its square
GOOD = """
import numpy as np

class Loudness:
    sampling_rate = 8_000
    size = 2

    def encode(self, waveforms):
        lengths = [len(one) // 80 for one in waveforms]
        frames = np.zeros((len(waveforms), max(lengths), 2), np.float32)
        for row, (one, length) in enumerate(zip(waveforms, lengths)):
            level = np.abs(one[: 80 * length]).reshape(length, 80).mean(1)
            frames[row, :length] = np.stack([level, level**2], axis=1)
        return frames, lengths
"""
# what is padded changes what is not
LEAKY = GOOD.replace("return frames,", "return frames - frames.mean(1, keepdims=True) / 2,")


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch) -> None:
    work_here(monkeypatch)


def _file(folder: Path, text: str = GOOD) -> str:
    (folder / "my.py").write_text(text)
    return f"{folder / 'my.py'}:Loudness"


def _encoder(folder: Path, text: str = GOOD) -> OwnEncoder:
    return OwnEncoder(find_checkpoint(_file(folder, text), modality="audio"))


def test_an_own_encoder_is_run_in_batches_and_pooled(tmp_path: Path) -> None:
    encoder, waveforms = _encoder(tmp_path), noise(0.3, 1, 0.1)
    rows = encoder.encode(waveforms)
    for row, one in zip(rows, waveforms, strict=True):
        level = [np.abs(one[first : first + 80]).mean() for first in range(0, len(one) - 79, 80)]
        np.testing.assert_allclose(row.values, [np.mean(level), np.mean(np.square(level))], rtol=1e-5)
    assert encoder.is_one_at_a_time is False


def test_an_own_encoder_that_its_padding_changes_is_run_one_at_a_time(tmp_path: Path) -> None:
    encoder, waveforms = _encoder(tmp_path, LEAKY), noise(0.3, 1, 0.1)
    rows = encoder.encode(waveforms)
    assert encoder.is_one_at_a_time
    for row, one in zip(rows, waveforms, strict=True):
        np.testing.assert_array_equal(row.values, encoder.encode([one])[0].values)


def test_an_own_encoder_that_takes_no_batch_is_run_one_at_a_time(tmp_path: Path) -> None:
    encoder = _encoder(tmp_path, GOOD.replace("lengths = [", "assert len(waveforms) == 1\n        lengths = ["))
    assert len(encoder.encode(noise(0.3, 1))) == 2
    assert encoder.is_one_at_a_time


def test_its_file_is_its_recipe(tmp_path: Path) -> None:
    place = Place(tmp_path)
    settings: dict[str, Any] = {"audio_model": _file(tmp_path), "text_model": None, "audio_pooling": "mean+std"}
    place.extract(**settings, effort=Effort(batch_seconds=2))
    features = place.cache().feature_set("audio", "Loudness-mean+std")
    assert features.values.shape == (12, 4)
    assert (features.recipe["model"], features.recipe["sampling_rate"]) == ("Loudness", 8_000)
    (before,) = plan_jobs(_file(tmp_path), None)
    (after,) = plan_jobs(_file(tmp_path, GOOD + "# another\n"), None)
    assert before.recipe.fingerprint != after.recipe.fingerprint
    (elsewhere,) = plan_jobs(_file(tmp_path / "wav2vec2", GOOD), None)
    assert elsewhere.recipe.fingerprint == before.recipe.fingerprint


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("import nothing_that_is_there", r"Cannot import .*my\.py: ModuleNotFoundError: No module named"),
        ("def other(): ...", r"Cannot load 'Loudness': .*my\.py holds no such class"),
        (GOOD.replace("size = 2", "size = None"), r"Cannot use 'Loudness' of .*: it lacks size; wanted are"),
        (GOOD.replace("def encode", "def other"), "it lacks encode; wanted are sampling_rate"),
        (GOOD.replace("size = 2", "size = 3"), r"gives frames of shape \(1, 30, 2\), expected \(1, places, 3\)"),
        (GOOD.replace("return frames, lengths", "return frames, [0]"), r"gives lengths \[0\], expected 1 to 30"),
        (GOOD.replace("return frames, lengths", "1 / 0"), "cannot encode 2,400 samples: ZeroDivisionError"),
        (GOOD + "\n    def __init__(self): raise OSError('gone')", r"Cannot make 'Loudness' of .*: OSError\('gone'\)"),
    ],
)
def test_what_is_wrong_with_it_is_one_line(text: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=words) as caught:
        _encoder(tmp_path, text).encode(noise(0.15))
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_and_layers_of_one_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"there is no file .*nothing\.py"):
        find_checkpoint(str(tmp_path / "nothing.py:Loudness"), modality="audio")
    with pytest.raises(ModelError, match="Cannot give layers of 'Loudness'"):
        OwnEncoder(find_checkpoint(_file(tmp_path), modality="audio"), layer=1)


# --- check-encoder ---


def _checked(*arguments: str) -> dict[str, Any]:
    done = CliRunner().invoke(check_encoder, [*arguments, "--device", "cpu", "--json"])
    assert done.exit_code == 0, done.output
    record: dict[str, Any] = json.loads(done.stdout)
    return record


def test_check_encoder_tells_what_an_encoder_is_and_whether_its_batches_are_exact(tmp_path: Path) -> None:
    model = save_speech(tmp_path / "wav2vec2", "wav2vec2-group")
    record = _checked(str(tmp_path / "wav2vec2"), "--audio-pooling", "mean+std")
    # but for the lengths that a weight norm divides by, once
    assert record["parameters"] == sum(weight.numel() for weight in model.parameters()) - 16
    expected = {"family": "waveform", "model": "Wav2Vec2Model", "sampling_rate": 16_000, "size": 64, "layers": 2}
    assert {name: record[name] for name in expected} == expected
    assert record["batched"]
    assert 0 < record["difference"] <= 1e-5
    assert record["speed"] > 0


def test_check_encoder_finds_out_what_changes_with_its_batch(tmp_path: Path) -> None:
    save_speech(tmp_path / "sew", "sew")
    record = _checked(str(tmp_path / "sew"))
    assert not record["batched"]
    assert record["difference"] > 1e-3
    printed = CliRunner().invoke(check_encoder, [str(tmp_path / "sew"), "--device", "cpu"]).output
    assert "encoder     sew: SEWModel, family waveform" in printed
    assert "from each alone: encoded one at a time" in printed


@pytest.mark.parametrize(
    ("save", "family", "modality"),
    [
        (lambda folder: save_family(folder, "whisper"), "whisper", "audio"),
        (lambda folder: save_family(folder, "w2v-bert"), "spectra", "audio"),
        (lambda folder: save_text(folder, "bert"), "text", "text"),
        (lambda folder: save_t5(folder, whole=False), "text", "text"),
    ],
)
def test_check_encoder_knows_speech_from_text(save: Any, family: str, modality: str, tmp_path: Path) -> None:
    save(tmp_path)
    record = _checked(str(tmp_path))
    assert (record["family"], record["modality"], record["batched"]) == (family, modality, True)
    assert record["layers"] == 2


def test_check_encoder_takes_a_file_of_ones_own(tmp_path: Path) -> None:
    record = _checked(_file(tmp_path, LEAKY))
    assert (record["family"], record["model"], record["size"], record["batched"]) == ("own", "Loudness", 2, False)
    assert record["layers"] is None


def test_check_encoder_says_in_one_line_what_is_no_encoder(tmp_path: Path) -> None:
    done = CliRunner().invoke(check_encoder, [str(tmp_path)])
    assert done.exit_code == 1
    assert "holds no config.json" in done.output
    assert done.output.count("\n") == 1
