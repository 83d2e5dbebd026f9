"""The synthetic corpus: its shape, its truth, its voices and words, and the ceiling that is claimed for it."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import soundfile
from click.testing import CliRunner

from amber2_core.errors import CorpusError, SettingError
from amber2_core.utterance import Corpus
from amber2_data.corpora import synthetic
from amber2_data.corpora.registry import read_corpus
from amber2_data.synthesis import (
    CARRYING,
    EMOTIONS,
    FRAMES,
    PLAIN,
    RELIABLE,
    SHARED,
    Carrier,
    Latents,
    Turn,
    best_prediction,
    law,
    lowest_js,
    turns,
)
from amber2_data.voice import MANNERS, SAMPLING_RATE, SOUNDS, manner_of, speak

Array = npt.NDArray[np.float64]

CONFLICT = 0.3
SIZE = 120  # of the corpus that most tests share


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus on disk."""
    folder = tmp_path_factory.mktemp("synthetic") / "corpus"
    synthetic.write(folder, utterances=SIZE, seed=3, conflict=CONFLICT)
    return folder


@pytest.fixture(scope="module")
def corpus(root: Path) -> Corpus:
    return read_corpus("synthetic", root)


@pytest.fixture(scope="module")
def many() -> list[Turn]:
    """Turns enough for statistics, unspoken."""
    return list(turns(2000, seed=11, conflict=CONFLICT))


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- on disk ---


def test_equal_seeds_give_equal_bytes_and_others_do_not(tmp_path: Path) -> None:
    for name, seed in (("one", 5), ("two", 5), ("other", 6)):
        synthetic.write(tmp_path / name, utterances=10, seed=seed)
    one, two, other = (files(tmp_path / name) for name in ("one", "two", "other"))
    assert len(one) == 2 + 10
    assert one == two
    assert not {name for name in one.keys() & other.keys() if one[name] == other[name]}


def test_more_utterances_change_none_of_the_earlier_ones(tmp_path: Path) -> None:
    synthetic.write(tmp_path / "few", utterances=10)
    synthetic.write(tmp_path / "more", utterances=12)
    few, more = files(tmp_path / "few"), files(tmp_path / "more")
    assert all(more[name] == few[name] for name in few if name.endswith(".wav"))
    assert more["utterances.csv"].startswith(few["utterances.csv"])


def test_recordings_are_16_khz_mono_pcm16_of_some_seconds_and_neither_clip_nor_are_silent(
    root: Path, corpus: Corpus
) -> None:
    seconds = []
    for utterance in corpus.utterances:
        info = soundfile.info(root / str(utterance.audio))
        assert (info.samplerate, info.channels, info.subtype, info.format) == (16_000, 1, "PCM_16", "WAV")
        seconds.append(info.duration)
        waveform, _ = soundfile.read(root / str(utterance.audio))
        assert 0.02 < np.abs(waveform).max() < 1.0
        assert np.abs(waveform.mean()) < 0.01
    assert 1.0 < min(seconds) < max(seconds) < 6.0
    assert 2.0 < np.mean(seconds) < 3.0
    assert sum(seconds) == pytest.approx(synthetic.read_description(root).seconds)


def test_the_shape_is_that_of_iemocap(corpus: Corpus) -> None:
    assert Counter(utterance.session for utterance in corpus.utterances) == {f"Ses0{k}": SIZE // 5 for k in range(1, 6)}
    speakers = Counter((utterance.session, utterance.speaker) for utterance in corpus.utterances)
    assert speakers == {(f"Ses0{k}", f"Ses0{k}{sex}"): SIZE // 10 for k in range(1, 6) for sex in "FM"}
    assert len({utterance.id for utterance in corpus.utterances}) == SIZE
    assert all(utterance.id.startswith(f"{utterance.dialogue}_") for utterance in corpus.utterances)
    assert set(Counter(utterance.dialogue for utterance in corpus.utterances).values()) == {20, SIZE // 5 - 20}
    assert corpus.defaults.emotions == ("neutral", "happy", "angry", "sad")
    assert corpus.defaults.folds == "session"


def test_what_is_read_is_what_was_drawn(corpus: Corpus) -> None:
    drawn = list(turns(SIZE, seed=3, conflict=CONFLICT))
    assert corpus.utterances == tuple(turn.utterance for turn in drawn)
    for turn in drawn:
        truth, known = turn.utterance.attributes, turn.latents
        assert [truth[f"{which}_emotion"] for which in ("true", "audio", "text")] == [
            known.true,
            known.audio,
            known.text,
        ]
        assert [truth[f"mixture.{emotion}"] for emotion in EMOTIONS] == known.mixture.tolist()


def test_a_second_call_leaves_the_same_corpus_as_it_is(tmp_path: Path) -> None:
    first = synthetic.write(tmp_path / "corpus", utterances=10)
    os.utime(tmp_path / "corpus" / "corpus.json", (1, 1))
    assert synthetic.write(tmp_path / "corpus", utterances=10) == first
    assert (tmp_path / "corpus" / "corpus.json").stat().st_mtime == 1


def test_what_is_there_is_never_overwritten(tmp_path: Path) -> None:
    synthetic.write(tmp_path / "corpus", utterances=10)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.tex").write_text("x")
    (tmp_path / "file").write_text("x")
    before = files(tmp_path)
    for settings in ({"utterances": 11}, {"seed": 1}, {"conflict": 0.5}):
        with pytest.raises(CorpusError, match=r"holds a synthetic corpus of 10 utterances, seed 0, conflict 0\.3: na"):
            synthetic.write(tmp_path / "corpus", **{"utterances": 10, **settings})  # type: ignore[arg-type]
    for name in ("folder", "file"):
        with pytest.raises(CorpusError, match=f"{name} exists and is no synthetic corpus: name another folder"):
            synthetic.write(tmp_path / name, utterances=10)
    with pytest.raises(CorpusError, match=r"Cannot write a synthetic corpus to .*file/corpus: Not a directory"):
        synthetic.write(tmp_path / "file" / "corpus", utterances=10)
    assert files(tmp_path) == before


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    synthetic.write(tmp_path, utterances=10)
    assert len(read_corpus("synthetic", tmp_path).utterances) == 10


def test_an_interrupted_writer_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoken = 0

    def interrupted(*args: object) -> npt.NDArray[np.float32]:
        nonlocal spoken
        spoken += 1
        if spoken > 3:
            raise KeyboardInterrupt
        return np.zeros(16_000, dtype=np.float32)

    monkeypatch.setattr(synthetic, "speak", interrupted)
    with pytest.raises(KeyboardInterrupt):
        synthetic.write(tmp_path / "corpus", utterances=10)
    assert spoken == 4
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("setting", "what"),
    [
        ({"utterances": 9}, "Bad utterances 9, expected at least 10"),
        ({"seed": -1}, "Bad seed -1"),
        ({"conflict": 1.1}, "Bad conflict 1.1"),
        ({"conflict": float("nan")}, "Bad conflict nan"),
        ({"clarity": -0.1}, "Bad clarity -0.1, expected a number in 0 … 1"),
        ({"clarity": float("nan")}, "Bad clarity nan"),
    ],
)
def test_a_setting_without_meaning_is_refused(setting: dict[str, Any], what: str, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=what):
        synthetic.write(tmp_path / "corpus", **setting)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_corpus_says_what_is_wrong(tmp_path: Path) -> None:
    synthetic.write(tmp_path, utterances=10)
    for file, pattern, replacement, what in (
        ("corpus.json", r"\{", "[", "corpus.json describes no amber2-synthetic corpus"),
        ("corpus.json", 'version": 2', 'version": 4', "no amber2-synthetic corpus of version 2 or 3: write it anew"),
        ("corpus.json", 'version": 2', 'version": 3', "no amber2-synthetic corpus of version 2 or 3: write it anew"),
        ("corpus.json", '"seed": 0', '"seed": 0, "more": 1', "no amber2-synthetic corpus of version 2 or 3"),
        ("corpus.json", '"utterances": 10', '"utterances": 11', r"Not 11 but 10 utterances are in .*utterances\.csv"),
        ("utterances.csv", "ratings", "votes", r"utterances\.csv, line 1: no label"),
        ("utterances.csv", r"\n(.*)\n", r"\n\1\n\1\n", r"utterances\.csv, line 3: id 'Ses01_d000_F000' stands in line"),
    ):
        text = (tmp_path / file).read_text()
        (tmp_path / file).write_text(re.sub(pattern, replacement, text, count=1))
        with pytest.raises(CorpusError, match=what):
            read_corpus("synthetic", tmp_path)
        (tmp_path / file).write_text(text)


def test_the_command_writes_a_corpus_and_tells_its_ceiling(tmp_path: Path) -> None:
    result = CliRunner().invoke(synthetic.main, [str(tmp_path / "corpus"), "--utterances", "10", "--seed", "4"])
    assert result.exit_code == 0, result.output
    description = synthetic.read_description(tmp_path / "corpus")
    assert (description.utterances, description.seed) == (10, 4)
    assert f"JS below {description.lowest_js:.3f}" in result.output
    again = CliRunner().invoke(synthetic.main, [str(tmp_path / "corpus"), "--utterances", "20"])
    assert again.exit_code == 1
    assert again.output.startswith("error: ")
    assert again.output.count("\n") == 1


# --- the truth ---


def test_voice_and_words_conflict_in_the_known_share(many: list[Turn]) -> None:
    from scipy.stats import binomtest

    for emotion in EMOTIONS:
        known = [turn.latents for turn in many if turn.latents.true == emotion]
        conflicts = sum(latents.audio != latents.text for latents in known)
        assert binomtest(conflicts, len(known), CONFLICT).pvalue > 1e-3
        assert all(getattr(latents, RELIABLE[emotion]) == emotion for latents in known)


def test_the_description_counts_the_conflicts_that_were_drawn(root: Path, corpus: Corpus) -> None:
    conflicts = [u.attributes["audio_emotion"] != u.attributes["text_emotion"] for u in corpus.utterances]
    assert synthetic.read_description(root).conflicts_drawn == pytest.approx(np.mean(conflicts))


def test_voice_and_words_together_determine_the_true_emotion() -> None:
    known = law(CONFLICT)
    assert sum(known.values()) == pytest.approx(1)
    assert len({(latents.audio, latents.text) for latents in known}) == len(known) == 8
    assert all(latents.audio == latents.text for latents in law(0))
    assert all(latents.audio != latents.text for latents in law(1))


def test_three_raters_tick_as_the_mixture_says(many: list[Turn]) -> None:
    from scipy.stats import chisquare

    ticks: dict[Latents, Counter[str]] = defaultdict(Counter)
    for turn in many:
        ticks[turn.latents].update(rating.label for rating in turn.utterance.ratings)
        assert len({rating.rater for rating in turn.utterance.ratings}) == len(turn.utterance.ratings) == 3
    assert len(ticks) == 8
    for latents, counts in ticks.items():
        observed = np.array([counts[emotion] for emotion in EMOTIONS])
        assert chisquare(observed, latents.mixture * observed.sum()).pvalue > 1e-3


def test_votes_are_nearer_to_the_modality_that_is_reliable_for_the_emotion(many: list[Turn]) -> None:
    for emotion in EMOTIONS:
        conflicts = [t for t in many if t.latents.true == emotion and t.latents.audio != t.latents.text]
        said = {
            modality: np.mean([_label(turn)[EMOTIONS.index(getattr(turn.latents, modality))] for turn in conflicts])
            for modality in ("audio", "text")
        }
        assert max(said, key=lambda modality: said[modality]) == RELIABLE[emotion]
        assert abs(said["audio"] - said["text"]) > 0.3


# --- the ceiling ---


def _label(turn: Turn) -> Array:
    votes = [rating.label for rating in turn.utterance.ratings]
    return np.array([votes.count(emotion) for emotion in EMOTIONS]) / len(votes)


def _js(label: Array, prediction: Array) -> Array:
    """Over the last axis, as scipy has it."""

    from scipy.spatial.distance import jensenshannon

    return np.asarray(jensenshannon(label, np.broadcast_to(prediction, label.shape), base=2, axis=-1)) ** 2


def _simulated_votes(mixture: Array, count: int, random: np.random.Generator) -> Array:
    return random.multinomial(3, mixture, size=count) / 3


def _lowest(labels: Array) -> float:
    """The lowest mean JS of one prediction for all labels, by a general-purpose optimiser on logits."""

    from scipy.optimize import minimize
    from scipy.special import softmax

    kinds, counts = np.unique(labels, axis=0, return_counts=True)

    def mean_js(logits: Array) -> float:
        return float(np.average(_js(kinds, softmax(logits)), weights=counts))

    start = np.log(labels.mean(axis=0) + 1e-3)
    return float(minimize(mean_js, start, method="Nelder-Mead", options={"maxiter": 4000, "fatol": 1e-7}).fun)


@pytest.mark.parametrize("latents", sorted(law(CONFLICT), key=str)[::3])
def test_the_best_prediction_is_what_an_independent_simulation_finds(latents: Latents) -> None:
    labels = _simulated_votes(latents.mixture, 40_000, np.random.default_rng(1))
    prediction, expected = best_prediction([latents.mixture], [1.0])
    scores = _js(labels, prediction)
    assert expected == pytest.approx(scores.mean(), abs=4 * scores.std() / np.sqrt(len(scores)))
    # over so many draws the best prediction in hindsight is hardly better than the best in expectation
    assert _lowest(labels) == pytest.approx(scores.mean(), abs=1e-4)


def test_the_raters_own_mixture_expects_a_higher_js_than_the_best_prediction() -> None:
    """What minimising JS gains by itself over minimising cross-entropy, which aims at the mixture."""
    random = np.random.default_rng(3)
    gain = 0.0
    for latents, probability in law(CONFLICT).items():
        labels = _simulated_votes(latents.mixture, 4_000, random)
        best, _ = best_prediction([latents.mixture], [1.0])
        gain += probability * float((_js(labels, latents.mixture) - _js(labels, best)).mean())
    assert gain == pytest.approx(0.0226, abs=0.002)


def test_the_ceilings_of_a_corpus_are_reproduced_from_its_votes_and_by_drawing_them_anew(
    root: Path, corpus: Corpus
) -> None:
    random = np.random.default_rng(2)
    description = synthetic.read_description(root)
    drawn, anew = [], []
    for turn in turns(SIZE, seed=3, conflict=CONFLICT):
        best, _ = best_prediction([turn.latents.mixture], [1.0])
        drawn.append(float(_js(_label(turn), best)))
        anew.append(_js(_simulated_votes(turn.latents.mixture, 100, random), best))
    assert description.lowest_js_on_these_votes == pytest.approx(np.mean(drawn))
    assert description.lowest_js == pytest.approx(np.mean(anew), abs=4 * np.std(anew) / np.sqrt(100 * SIZE))
    assert description.lowest_js == pytest.approx(np.mean([u.attributes["lowest_js"] for u in corpus.utterances]))


@pytest.mark.parametrize("modalities", [("audio",), ("text",), ()])
def test_who_knows_less_expects_what_a_simulation_finds(modalities: tuple[Carrier, ...], many: list[Turn]) -> None:
    told: dict[tuple[str, ...], list[Array]] = defaultdict(list)
    for turn in many:
        told[tuple(getattr(turn.latents, modality) for modality in modalities)].append(_label(turn))
    found = sum(len(labels) * _lowest(np.array(labels)) for labels in told.values()) / len(many)
    assert lowest_js(CONFLICT, knowing=modalities) == pytest.approx(found, abs=0.008)


def test_the_less_is_known_the_higher_is_the_ceiling(root: Path) -> None:
    known = synthetic.read_description(root)
    both, nothing = (lowest_js(CONFLICT, knowing=modalities) for modalities in (("audio", "text"), ()))
    assert both < known.lowest_js_from_text < nothing
    assert both < known.lowest_js_from_audio < nothing


@pytest.mark.parametrize("conflict", [0.0, 1.0])
def test_a_modality_that_never_or_always_conflicts_has_a_ceiling_too(conflict: float, tmp_path: Path) -> None:
    known = synthetic.write(tmp_path / "corpus", utterances=10, conflict=conflict)
    both = lowest_js(conflict, knowing=["audio", "text"])
    assert known.lowest_js == pytest.approx(both)  # the utterances then differ in emotion alone
    assert both <= min(known.lowest_js_from_audio, known.lowest_js_from_text) + 1e-9


# --- a second cause of disagreement ---

LOWEST = 0.2


@pytest.fixture(scope="module")
def unclear() -> list[Turn]:
    """The turns of `many`, whose emotions are not all clear."""
    return list(turns(2000, seed=11, conflict=CONFLICT, clarity=LOWEST))


def test_a_corpus_whose_emotions_are_all_clear_is_what_earlier_versions_wrote(tmp_path: Path) -> None:
    """Votes, words and truth to the last byte, but for the last digits of the lowest JS, which are a processor's; of
    sound, whose last bits are, too, the length.
    """
    synthetic.write(tmp_path / "corpus", utterances=10, seed=5)
    text = (tmp_path / "corpus" / "utterances.csv").read_bytes()
    text = re.sub(rb"0\.\d{14,}", lambda found: b"%.12f" % float(found[0]), text)
    assert hashlib.sha256(text).hexdigest() == "a8c722d9f5bd6e96d73e7147b176d21277a93205e6cedddf9defb198f8e140ad"
    record = json.loads((tmp_path / "corpus" / "corpus.json").read_text())
    assert (record["format_version"], "clarity" in record) == (2, False)
    assert record["seconds"] == pytest.approx(23.3803125)
    assert read_corpus("synthetic", tmp_path / "corpus").version == "2, seed 5"


def test_clarity_is_drawn_evenly_and_independently_of_emotion_and_conflict(unclear: list[Turn]) -> None:
    from scipy.stats import chi2_contingency, chisquare

    levels = Counter(turn.latents.clarity for turn in unclear)
    assert sorted(levels) == pytest.approx(np.linspace(LOWEST, 1, 9))
    assert chisquare([*levels.values()]).pvalue > 1e-3
    for other in ("is_conflict", "true"):
        pairs = Counter((getattr(turn.latents, other), turn.latents.clarity) for turn in unclear)
        kinds = sorted({kind for kind, _ in pairs}, key=str)
        table = [[pairs[kind, level] for level in sorted(levels)] for kind in kinds]
        assert chi2_contingency(table).pvalue > 1e-3


def test_emotions_conflicts_and_speakers_are_the_same_whatever_the_clarity(
    many: list[Turn], unclear: list[Turn]
) -> None:
    for clear, other in zip(many, unclear, strict=True):
        assert replace(other.latents, clarity=1.0) == clear.latents
        assert other.speaker == clear.speaker
        assert other.utterance.id == clear.utterance.id


def test_the_truth_of_both_causes_is_told_where_there_are_two(many: list[Turn], unclear: list[Turn]) -> None:
    assert not {"conflict", "clarity"} & many[0].utterance.attributes.keys()
    for turn in unclear:
        truth = turn.utterance.attributes
        assert truth["conflict"] == float(truth["audio_emotion"] != truth["text_emotion"])
        assert truth["clarity"] == turn.latents.clarity


def test_raters_tick_anything_the_more_often_the_less_clear_an_emotion_is(unclear: list[Turn]) -> None:
    from scipy.stats import chisquare

    for turn in unclear[:50]:
        c, known = turn.latents.clarity, turn.latents
        reliable = RELIABLE[known.true]
        heard = {"audio": known.audio, "text": known.text}
        weight = {name: 0.75 if name == reliable else 0.25 for name in heard}
        mixture = [
            c * 0.84 * sum(weight[name] for name in heard if heard[name] == emotion) + (1 - c * 0.84) / 4
            for emotion in EMOTIONS
        ]
        assert turn.latents.mixture == pytest.approx(np.array(mixture))
    levels = {turn.latents.clarity for turn in unclear}
    for level in levels:
        own = [turn for turn in unclear if turn.latents.clarity == level]
        observed = np.sum([_label(turn) * 3 for turn in own], axis=0)
        expected = np.sum([turn.latents.mixture * 3 for turn in own], axis=0)
        assert chisquare(observed, expected).pvalue > 1e-4


def test_words_carry_the_emotion_as_often_as_it_is_clear(unclear: list[Turn]) -> None:
    from scipy.stats import binomtest

    for level in (LOWEST, 0.6, 1.0):
        carried = plain = 0
        for turn in unclear:
            if turn.latents.clarity == level:
                words = set(re.findall("[a-z]+", turn.utterance.transcript.lower()))
                own = {word for choices in CARRYING[turn.latents.text].values() for word in choices.split()}
                carried += len(words & own)
                plain += len(words & {word for choices in PLAIN.values() for word in choices.split()})
        assert binomtest(carried, carried + plain, level).pvalue > 1e-3


def test_a_voice_without_clarity_tells_of_no_emotion_and_a_clear_one_is_the_emotions_own() -> None:
    assert {manner_of(emotion) for emotion in EMOTIONS} == {MANNERS[emotion] for emotion in EMOTIONS}
    assert len({manner_of(emotion, clarity=0) for emotion in EMOTIONS}) == 1
    for name in ("pitch", "tempo", "brightness", "level", "melody", "breath", "pause"):
        mean = np.mean([getattr(manner, name) for manner in MANNERS.values()])
        half = getattr(manner_of("angry", clarity=0.5), name)
        assert half == pytest.approx((mean + getattr(MANNERS["angry"], name)) / 2)


def test_the_ceilings_of_unclear_emotions_are_what_a_simulation_finds(unclear: list[Turn]) -> None:
    told: dict[tuple[Any, ...], list[Array]] = defaultdict(list)
    for turn in unclear:
        told[turn.latents.audio, turn.latents.clarity].append(_label(turn))
    # a prediction for each of 36 groups fits their few votes better than votes to come
    found = sum(len(labels) * _lowest(np.array(labels)) for labels in told.values()) / len(unclear)
    expected = lowest_js(CONFLICT, clarity=LOWEST, knowing=["audio"])
    assert expected - 0.02 < found < expected + 0.002
    both = lowest_js(CONFLICT, clarity=LOWEST, knowing=["audio", "text"])
    assert both == pytest.approx(np.mean([turn.utterance.attributes["lowest_js"] for turn in unclear]), abs=0.004)
    assert both < expected


def test_a_corpus_of_unclear_emotions_is_read_back_and_known_by_its_settings(tmp_path: Path) -> None:
    result = CliRunner().invoke(
        synthetic.main, [str(tmp_path / "corpus"), "--utterances", "10", "--seed", "3", "--clarity", "0.2"]
    )
    assert result.exit_code == 0, result.output
    known = synthetic.read_description(tmp_path / "corpus")
    assert (known.version, known.clarity) == (3, LOWEST)
    corpus = read_corpus("synthetic", tmp_path / "corpus")
    assert corpus.version == "3, seed 3"
    drawn = turns(10, seed=3, conflict=CONFLICT, clarity=LOWEST)
    assert corpus.utterances == tuple(turn.utterance for turn in drawn)
    assert synthetic.write(tmp_path / "corpus", utterances=10, seed=3, clarity=LOWEST) == known
    for clarity in (1.0, 0.5):
        with pytest.raises(CorpusError, match=r"seed 3, conflict 0\.3, clarity 0\.2: name another folder"):
            synthetic.write(tmp_path / "corpus", utterances=10, seed=3, clarity=clarity)


# --- words and voices ---


def test_no_word_carries_two_emotions_and_every_letter_can_be_spoken() -> None:
    words = [word for lists in CARRYING.values() for choices in lists.values() for word in choices.split()]
    words += [word for choices in PLAIN.values() for word in choices.split()]
    assert len(set(words)) == len(words)
    assert set("".join([*words, *SHARED.values(), *FRAMES]).lower()) - set("{},.") <= SOUNDS.keys()


def test_a_bag_of_words_recovers_the_emotion_of_the_words(corpus: Corpus) -> None:
    from sklearn.feature_extraction.text import CountVectorizer

    sentences = [utterance.transcript for utterance in corpus.utterances]
    assert _accuracy(CountVectorizer().fit_transform(sentences).toarray(), corpus, "text_emotion") > 0.85


def test_the_spectrum_recovers_the_emotion_of_the_voice_in_unseen_speakers(root: Path, corpus: Corpus) -> None:
    features = np.array([_spectral_statistics(root / str(utterance.audio)) for utterance in corpus.utterances])
    accuracy = _accuracy(features, corpus, "audio_emotion")
    majority = Counter(utterance.attributes["audio_emotion"] for utterance in corpus.utterances).most_common(1)[0][1]
    assert accuracy > majority / len(corpus.utterances) + 0.25


def _accuracy(features: Array, corpus: Corpus, attribute: str) -> float:
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GroupKFold, cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    emotions = [utterance.attributes[attribute] for utterance in corpus.utterances]
    sessions = [utterance.session for utterance in corpus.utterances]
    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2000))
    return float(cross_val_score(classifier, features, emotions, groups=sessions, cv=GroupKFold(5)).mean())


def _spectral_statistics(path: Path) -> Array:
    """Mean and deviation over time of 20 bands of log energy; at unit variance, so that loudness does not count."""
    waveform, _ = soundfile.read(path)
    waveform = (waveform - waveform.mean()) / waveform.std()
    frames = np.lib.stride_tricks.sliding_window_view(waveform, 400)[::160] * np.hanning(400)
    power = np.abs(np.fft.rfft(frames, 512))[:, 1:] ** 2
    bands = np.log(power.reshape(len(frames), 32, 8).mean(axis=2)[:, :20] + 1e-3)
    return np.concatenate([bands.mean(axis=0), bands.std(axis=0)])


def test_emotions_change_pitch_tempo_treble_and_loudness_and_women_speak_higher() -> None:
    cast = [turn.speaker for turn in turns(10, seed=7, conflict=CONFLICT)]
    text = "The letter is in the garden, the ticket in the office."
    measured = {
        emotion: np.array(
            [_measures(speak(text, cast[k], MANNERS[emotion], np.random.default_rng(k))) for k in range(10)]
        )
        for emotion in EMOTIONS
    }
    pitch, seconds, treble, level = np.array([measured[emotion].mean(axis=0) for emotion in EMOTIONS]).T
    neutral, happy, angry, sad = range(4)
    assert pitch[happy] > pitch[angry] > pitch[neutral] > pitch[sad]
    assert seconds[sad] > seconds[neutral] > seconds[happy] > seconds[angry]
    assert treble[angry] > treble[happy] > treble[neutral] > treble[sad]
    assert level[angry] > level[happy] > level[neutral] > level[sad]
    # each session of turns(10) gives its woman first, then its man
    pitches = measured["neutral"][:, 0]
    assert min(pitches[:5]) > 1.2 * max(pitches[5:])


def _measures(waveform: npt.NDArray[np.float32]) -> tuple[float, float, float, float]:
    """Pitch in Hz, length in samples, share of energy in 1–4 kHz, standard deviation."""
    power = np.abs(np.fft.rfft(waveform)) ** 2
    hertz = np.fft.rfftfreq(len(waveform), 1 / SAMPLING_RATE)
    treble = power[(hertz > 1000) & (hertz < 4000)].sum() / power[hertz > 50].sum()
    return _pitch(waveform.astype(float)), len(waveform), float(treble), float(np.std(waveform))


def _pitch(waveform: Array) -> float:
    """Hz at the highest peak of the autocorrelation between 70 and 450 Hz, median over voiced frames."""
    frames = np.lib.stride_tricks.sliding_window_view(waveform, 800)[::400]
    frames = frames[frames.std(axis=1) > waveform.std()]
    spectra = np.fft.rfft(frames - frames.mean(axis=1, keepdims=True), 2048)
    spectra[:, np.fft.rfftfreq(2048, 1 / SAMPLING_RATE) > 600] = 0  # the first formant would pass for a pitch
    lags = np.fft.irfft(np.abs(spectra) ** 2)[:, SAMPLING_RATE // 450 : SAMPLING_RATE // 70]
    return float(np.median(SAMPLING_RATE / (lags.argmax(axis=1) + SAMPLING_RATE // 450)))
