"""New speech, a distribution out: experts alone, stretches, threads, encoders."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from small_models import WORDS, save_speech, save_text
from speaking_heads import Studio, made_studio

from amber2_core.errors import AudioError, ModelError, RunFolderError, SettingError
from amber2_core.heads_folder import read_heads
from amber2_predict.encoding import plan_encodings, recipe_of
from amber2_predict.units import Unit, Windows, units_of


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Studio:
    return made_studio(tmp_path_factory.mktemp("studio"))


def waveform_of(file: str) -> tuple[Any, int]:
    return soundfile.read(file, dtype="float32")


# --- the numbers ---


def test_an_expert_alone_is_its_head_on_what_its_encoder_gives(studio: Studio) -> None:
    """The heads in numpy, the text encoder by transformers: nothing of the code that is tested."""
    import transformers

    words = "we do not know what the raters heard"
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(studio.models["text_model"])
    model: Any = transformers.AutoModel.from_pretrained(studio.models["text_model"]).eval()
    with torch.no_grad():
        h = model(**tokenizer(words, return_tensors="pt")).last_hidden_state[0].mean(0)
    trained = read_heads(studio.run / "heads" / "amber2-fold1-seed0.safetensors")
    mean, sd = trained.standardisation["text"]
    own = {name.removeprefix("heads.text."): x.numpy() for name, x in trained.model.parameters.items()}
    x = ((h - mean) / sd).numpy()
    z = np.maximum(own["hidden.weight"] @ x + own["hidden.bias"], 0) @ own["output.weight"].T + own["output.bias"]
    found = studio.predictor().predict(None, transcript=words)
    assert (found.predicted_by, found.inputs, tuple(found.heads)) == ("text", ("text",), ("text",))
    assert found.modality_ambiguity is found.trusted_expert is found.ensemble_spread is None
    np.testing.assert_allclose([*found.distribution.values()], np.exp(z) / np.exp(z).sum(), atol=1e-5)


def test_audio_alone_is_the_audio_head_of_the_same_utterance_with_its_words(studio: Studio) -> None:
    predictor, words = studio.predictor(), studio.corpus.utterances[0].transcript
    alone, both = (predictor.predict(*waveform_of(studio.recordings[0]), text) for text in (None, words))
    assert (alone.predicted_by, alone.inputs) == ("audio", ("audio",))
    assert (both.predicted_by, both.inputs) == ("fusion", ("audio", "text"))
    assert alone.distribution == pytest.approx(both.heads["audio"])
    assert set(both.heads) == {"audio", "text", "fusion"}


def test_heads_that_met_utterances_without_words_let_their_fusion_speak_of_one(studio: Studio, tmp_path: Path) -> None:
    heads = read_heads(studio.run / "heads" / "amber2-fold1-seed0.safetensors")
    origin = {**heads.origin, "missing": {"text": 3}}
    type(heads)(heads.model, heads.emotions, heads.standardisation, origin).write(tmp_path / "met.safetensors")
    found = studio.predictor(tmp_path / "met.safetensors").predict(*waveform_of(studio.recordings[0]))
    assert (found.predicted_by, found.inputs, tuple(found.heads)) == ("fusion", ("audio",), ("audio", "fusion"))


def test_an_ensemble_is_the_mean_of_its_members(studio: Studio) -> None:
    sound, words = waveform_of(studio.recordings[0]), "one voice"
    each = [studio.predictor(seed=seed).predict(*sound, words) for seed in (0, 1)]
    both = studio.predictor(seed=None, ensemble=True).predict(*sound, words)
    for head, own in both.heads.items():
        mean = np.mean([[*one.heads[head].values()] for one in each], axis=0)
        np.testing.assert_allclose([*own.values()], mean, atol=1e-6)
    assert both.ensemble_spread is not None
    assert both.ensemble_spread > 0


def test_a_waveform_of_another_rate_and_of_two_channels_is_that_of_its_file(studio: Studio, tmp_path: Path) -> None:
    samples = 0.1 * np.random.default_rng(0).standard_normal((22_050, 2)).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", samples, 22_050, subtype="FLOAT")
    predictor = studio.predictor()
    (row,) = predictor.rows([Unit("a.wav", tmp_path / "a.wav")])
    assert row["heads"]["audio"] == pytest.approx(predictor.predict(samples.T, 22_050).heads["audio"])


# --- stretches ---


def test_windows_are_the_waveform_cut_by_hand_and_a_short_last_one_is_told(studio: Studio) -> None:
    predictor = studio.predictor()
    file = max(studio.recordings, key=lambda one: soundfile.info(one).frames)
    waveform, rate = waveform_of(file)
    rows = list(predictor.rows(units_of([file], windows=Windows(1.0, 0.5))))
    seconds = len(waveform) / rate
    assert [row["start"] for row in rows] == [0.5 * k for k in range(len(rows))]
    assert (rows[-1]["end"], rows[-1]["short_window"]) == (seconds, True)
    assert [row["short_window"] for row in rows[:-1]] == [False] * (len(rows) - 1)
    for row in rows:
        cut = waveform[round(row["start"] * rate) : round(row["end"] * rate)]
        assert row["heads"]["audio"] == pytest.approx(predictor.predict(cut, rate).heads["audio"], abs=1e-6)


def test_segments_of_a_table_are_the_waveform_cut_by_hand_with_the_words_of_each(
    studio: Studio, tmp_path: Path
) -> None:
    file, predictor = studio.recordings[0], studio.predictor()
    waveform, rate = waveform_of(file)
    table = tmp_path / "segments.csv"
    table.write_text(f"file,start,end,text\n{file},0.25,0.75,one voice\n{file},0.5,,the raters\n{file},,0.5,\n")
    rows = list(predictor.rows(units_of([str(table)])))
    seconds = len(waveform) / rate
    expected = [(0.25, 0.75, "one voice"), (0.5, seconds, "the raters"), (0.0, 0.5, None)]
    for row, (start, end, words) in zip(rows, expected, strict=True):
        assert (row["file"], row["start"]) == (file, start)
        assert row["end"] == pytest.approx(end)
        by_hand = predictor.predict(waveform[round(start * rate) : round(end * rate)], rate, words)
        assert row["heads"] == {head: pytest.approx(own, abs=1e-6) for head, own in by_hand.heads.items()}


def test_a_table_of_pandas_comes_back_under_the_index_of_audformat(studio: Studio) -> None:
    import pandas as pd

    predictor, file = studio.predictor(), studio.recordings[0]
    times = pd.to_timedelta([0.0, 0.25], unit="s"), pd.to_timedelta([None, 0.75], unit="s")
    index = pd.MultiIndex.from_arrays([[file, file], *times], names=["file", "start", "end"])
    table = predictor.process_files(index, transcripts=["one voice", None])
    seconds = soundfile.info(file).duration
    assert table.index.names == ["file", "start", "end"]
    assert [one.total_seconds() for one in table.index.get_level_values("end")] == pytest.approx([seconds, 0.75])
    by_hand = predictor.predict(*waveform_of(file), "one voice")
    assert table["fusion.happy"].iloc[0] == pytest.approx(by_hand.heads["fusion"]["happy"])
    assert table["predicted_by"].tolist() == ["fusion", "audio"]
    assert table["modality_ambiguity"].isna().tolist() == [False, True]
    flat = predictor.process_files([file, "nowhere.wav"])
    assert flat["label"].notna().tolist() == [True, False]
    assert flat["error"].iloc[1].startswith("nowhere.wav: No such file")


# --- many at once ---


def test_threads_that_share_a_predictor_get_what_each_would_get_alone(studio: Studio) -> None:
    predictor = studio.predictor()
    asked = [
        (*waveform_of(file), " ".join(WORDS[: k % 9 + 1]) if k % 3 else None)
        for k, file in enumerate(studio.recordings)
    ]
    alone = [predictor.predict(*one) for one in asked]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda one: predictor.predict(*one), asked * 3))
    for one, other in zip(alone * 3, together, strict=True):
        assert (one.predicted_by, one.label) == (other.predicted_by, other.label)
        assert one.distribution == pytest.approx(other.distribution, abs=1e-6)


def test_rows_come_in_the_order_of_their_units_and_one_bad_file_is_one_row(studio: Studio, tmp_path: Path) -> None:
    (tmp_path / "words.wav").write_text("this is a text")
    (tmp_path / "empty.wav").touch()
    soundfile.write(tmp_path / "short.wav", np.full(100, 0.1), 16_000)
    soundfile.write(tmp_path / "silent.wav", np.zeros(16_000), 16_000)
    bad = ["words.wav", "empty.wav", "missing.wav", "short.wav", "silent.wav"]
    files = [str(tmp_path / bad[k // 15]) if k % 15 == 7 else studio.recordings[k % 30] for k in range(75)]
    rows = list(studio.predictor().rows([Unit(file, Path(file)) for file in files]))
    assert [row["file"] for row in rows] == files
    errors = [row["error"] for row in rows if row["error"] is not None]
    assert [one.partition(":")[0] for one in errors[:3]] == bad[:3]
    for error, said in zip(
        errors, ("cannot be decoded", "is empty", "No such file", "is too short", "is silent"), strict=True
    ):
        assert said in error
    assert all("label" in row for row in rows if row["error"] is None)


@pytest.mark.parametrize(
    ("waveform", "rate", "said"),
    [
        (np.zeros(16_000), 16_000, "silent"),
        (np.array([0.1, np.nan] * 8000), 16_000, "not finite"),
        (np.full(100, 0.1), 16_000, "too short"),
        (np.full(16_000, 0.1), 100, "sampling rate of 100 Hz"),
        (np.full((2, 3, 4), 0.1), 16_000, "shape"),
        (None, 16_000, "nothing that these heads read"),
    ],
)
def test_a_waveform_of_no_use_says_why(studio: Studio, waveform: Any, rate: int, said: str) -> None:
    with pytest.raises(AudioError, match=said):
        studio.predictor().predict(waveform, rate)


# --- encoders ---


def test_another_encoder_is_refused_with_what_differs(studio: Studio, tmp_path: Path) -> None:
    save_speech(tmp_path / "wav2vec2", "wav2vec2-group", seed=1)
    save_text(tmp_path / "bert", "roberta")
    with pytest.raises(ModelError, match=r"another encoder lies at .*wav2vec2: weights_digest changed from \w+… to"):
        studio.predictor(audio_model=str(tmp_path / "wav2vec2"))
    with pytest.raises(ModelError, match=r"trained on bert for text, .*: config_digest changed"):
        studio.predictor(text_model=str(tmp_path / "bert"))
    save_speech(tmp_path / "rough", "wav2vec2-group", do_normalize=False)
    with pytest.raises(ModelError, match="preprocessor_digest changed"):
        studio.predictor(audio_model=str(tmp_path / "rough"))
    # the right one, under another name, and among others
    moved = tmp_path / "elsewhere"
    save_speech(moved, "wav2vec2-group")
    found = studio.predictor(audio_model=[str(tmp_path / "wav2vec2"), str(moved)])
    sound = waveform_of(studio.recordings[0])
    assert found.predict(*sound).distribution == studio.predictor().predict(*sound).distribution


def test_an_encoder_from_a_folder_has_to_be_named(studio: Studio) -> None:
    with pytest.raises(ModelError, match="from a folder called wav2vec2 for audio: say where it lies by --audio-model"):
        studio.predictor(audio_model=None)


def test_features_that_were_imported_cannot_be_made_of_new_speech() -> None:
    imported = {"name": "mine", "recipe": {"modality": "audio", "imported_from": "mine.npy"}}
    with pytest.raises(ModelError, match="read audio features that nothing here can make"):
        plan_encodings({"audio": imported})
    with pytest.raises(SettingError, match="these heads read no text"):
        plan_encodings({"audio": imported}, text_models=["bert"])


def test_a_recipe_comes_back_from_its_record(studio: Studio) -> None:
    origin = read_heads(studio.run / "heads" / "amber2-fold1-seed0.safetensors").origin
    for name, features in origin["features"].items():
        recipe = recipe_of(name, features["recipe"])
        assert (recipe.record(), recipe.fingerprint) == (features["recipe"], features["fingerprint"])


def test_what_is_no_run_is_not_chosen_from(studio: Studio, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="is no run folder"):
        studio.predictor(studio.run / "heads" / "amber2-fold1-seed0.safetensors", ensemble=True)
    with pytest.raises(RunFolderError, match="No heads"):
        studio.predictor(tmp_path / "nowhere")
