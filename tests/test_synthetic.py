"""The synthetic corpus: its shape, its truth, its voices and words, and the ceiling that is claimed for it."""

from __future__ import annotations

import csv
import json
import os
import re
from collections import Counter, defaultdict
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
from amber2_data.synthesis.description import Description, read_description
from amber2_data.synthesis.perception import (
    EMOTIONS,
    RELIABLE,
    Carrier,
    Emotion,
    Latents,
    best_prediction,
    law,
    lowest_js,
)
from amber2_data.synthesis.phones import PHONES, SPELLINGS, phones_of
from amber2_data.synthesis.sentences import CARRYING, sentence, vocabulary
from amber2_data.synthesis.turns import Turn, turns
from amber2_data.synthesis.voice import SAMPLING_RATE, speak

Array = npt.NDArray[np.float64]

CONFLICT = 0.3
SIZE = 150  # of the corpus that most tests share


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
    return list(turns(4000, seed=11, conflict=CONFLICT))


def external(turn: Turn) -> list[str]:
    return [rating.label for rating in turn.ratings if rating.source == "external"]


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- on disk ---


def test_equal_seeds_give_equal_bytes_and_others_do_not(tmp_path: Path) -> None:
    for name, seed in (("one", 5), ("two", 5), ("other", 6)):
        synthetic.write(tmp_path / name, utterances=12, seed=seed)
    one, two, other = (files(tmp_path / name) for name in ("one", "two", "other"))
    assert len(one) == 3 + 12
    assert one == two
    assert not {name for name in one.keys() & other.keys() if one[name] == other[name]}


def test_more_utterances_change_none_of_the_earlier_ones(tmp_path: Path) -> None:
    synthetic.write(tmp_path / "few", utterances=12)
    synthetic.write(tmp_path / "more", utterances=14)
    few, more = files(tmp_path / "few"), files(tmp_path / "more")
    assert {name for name in few if name.endswith(".wav")} < more.keys()
    assert all(more[name] == few[name] for name in few if name.endswith(".wav"))
    for name in ("utterances.csv", "ratings.csv"):
        assert more[name].startswith(few[name])


def test_recordings_are_16_khz_mono_pcm16_of_some_seconds(root: Path, corpus: Corpus) -> None:
    seconds = []
    for utterance in corpus.utterances:
        info = soundfile.info(root / str(utterance.audio))
        assert (info.samplerate, info.channels, info.subtype, info.format) == (16_000, 1, "PCM_16", "WAV")
        seconds.append(info.duration)
    assert 1.0 < min(seconds) < max(seconds) < 6.0
    assert 2.0 < np.mean(seconds) < 3.0
    assert sum(seconds) == pytest.approx(read_description(root).seconds)


def test_no_recording_clips_or_is_silent(root: Path, corpus: Corpus) -> None:
    for utterance in corpus.utterances[:60]:
        waveform, _ = soundfile.read(root / str(utterance.audio))
        assert 0.02 < np.abs(waveform).max() < 1.0
        assert np.abs(waveform.mean()) < 0.01


def test_the_shape_is_that_of_iemocap(corpus: Corpus) -> None:
    assert Counter(utterance.session for utterance in corpus.utterances) == {f"Ses0{k}": SIZE // 5 for k in range(1, 6)}
    speakers = Counter((utterance.session, utterance.speaker) for utterance in corpus.utterances)
    assert speakers == {(f"Ses0{k}", f"Ses0{k}{sex}"): SIZE // 10 for k in range(1, 6) for sex in "FM"}
    assert len({utterance.id for utterance in corpus.utterances}) == SIZE
    assert all(utterance.id.startswith(f"{utterance.dialogue}_") for utterance in corpus.utterances)
    assert {len(group) for group in _by_dialogue(corpus).values()} == {20, SIZE // 5 - 20}
    assert corpus.defaults.emotions == ("neutral", "happy", "angry", "sad")
    assert corpus.defaults.folds == "session"


def _by_dialogue(corpus: Corpus) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = defaultdict(list)
    for utterance in corpus.utterances:
        groups[utterance.dialogue].append(utterance.id)
    return groups


def test_what_is_read_is_what_was_drawn(corpus: Corpus) -> None:
    for utterance, turn in zip(corpus.utterances, turns(SIZE, seed=3, conflict=CONFLICT), strict=True):
        assert (utterance.id, utterance.transcript, utterance.ratings) == (turn.id, turn.transcript, turn.ratings)
        known = turn.latents
        attributes = utterance.attributes
        truth = tuple(attributes[f"{which}_emotion"] for which in ("true", "audio", "text"))
        assert truth == (known.true, known.audio, known.text)
        assert [attributes[f"mixture.{emotion}"] for emotion in EMOTIONS] == known.mixture.tolist()


def test_a_second_call_leaves_the_same_corpus_as_it_is(tmp_path: Path) -> None:
    first = synthetic.write(tmp_path / "corpus", utterances=10)
    os.utime(tmp_path / "corpus" / "corpus.json", (1, 1))
    assert synthetic.write(tmp_path / "corpus", utterances=10) == first
    assert (tmp_path / "corpus" / "corpus.json").stat().st_mtime == 1


@pytest.mark.parametrize("settings", [{"utterances": 11}, {"seed": 1}, {"conflict": 0.5}])
def test_another_corpus_is_never_overwritten(settings: dict[str, Any], tmp_path: Path) -> None:
    synthetic.write(tmp_path / "corpus", utterances=10)
    before = files(tmp_path)
    with pytest.raises(CorpusError, match=r"holds a synthetic corpus of 10 utterances, seed 0, conflict 0\.3: name"):
        synthetic.write(tmp_path / "corpus", **{"utterances": 10, **settings})
    assert files(tmp_path) == before


def test_a_folder_or_file_of_somebody_else_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.tex").write_text("x")
    (tmp_path / "file").write_text("x")
    for name in ("folder", "file"):
        with pytest.raises(CorpusError, match=f"{name} exists and is no synthetic corpus: name another folder"):
            synthetic.write(tmp_path / name, utterances=10)
    assert files(tmp_path) == {"folder/thesis.tex": b"x", "file": b"x"}


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


def test_a_place_that_cannot_be_written_to_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CorpusError, match=r"Cannot write a synthetic corpus to .*file/corpus: Not a directory"):
        synthetic.write(tmp_path / "file" / "corpus", utterances=10)


@pytest.mark.parametrize(
    ("setting", "what"),
    [
        ({"utterances": 9}, "Bad utterances 9, expected at least 10"),
        ({"seed": -1}, "Bad seed -1"),
        ({"conflict": 1.1}, "Bad conflict 1.1"),
        ({"conflict": float("nan")}, "Bad conflict nan"),
    ],
)
def test_a_setting_without_meaning_is_refused(setting: dict[str, Any], what: str, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=what):
        synthetic.write(tmp_path / "corpus", **setting)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("file", "pattern", "replacement", "what"),
    [
        ("corpus.json", r"\{", "[", "corpus.json describes no amber2-synthetic corpus"),
        (
            "corpus.json",
            '"format_version": 1',
            '"format_version": 2',
            "describes no amber2-synthetic corpus of version 1",
        ),
        ("corpus.json", '"lapse": 0.16', '"lapse": 0.2', "write it anew"),
        ("corpus.json", '"utterances": 10', '"utterances": 11', "utterances.csv holds 10 utterances, not 11"),
        ("utterances.csv", "lowest_js", "js", r"utterances.csv, line 1: no column 'lowest_js'"),
        ("utterances.csv", r"0\.\d+\n", "much\n", r"utterances.csv, line 2: 'much' in column lowest_js is no number"),
        ("utterances.csv", r"\n(.*)\n", r"\n\1\n\1\n", r"utterances.csv, line 3: second row for Ses01_d000_F000"),
        ("ratings.csv", "external", "friend", r"ratings.csv, line 2: Bad source 'friend', expected one of"),
        (
            "ratings.csv",
            "Ses01_d000_F000",
            "Ses09_d000_F000",
            r"ratings.csv, line 2: utterances.csv does not hold Ses09_d000_F000",
        ),
    ],
)
def test_a_damaged_corpus_says_what_is_wrong(
    file: str, pattern: str, replacement: str, what: str, tmp_path: Path
) -> None:
    synthetic.write(tmp_path, utterances=10)
    text = (tmp_path / file).read_text()
    (tmp_path / file).write_text(re.sub(pattern, replacement, text, count=1))
    with pytest.raises(CorpusError, match=what):
        read_corpus("synthetic", tmp_path)


def test_the_command_writes_a_corpus_and_tells_its_ceiling(tmp_path: Path) -> None:
    result = CliRunner().invoke(synthetic.main, [str(tmp_path / "corpus"), "--utterances", "10", "--seed", "4"])
    assert result.exit_code == 0, result.output
    description = read_description(tmp_path / "corpus")
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
    from scipy.stats import binomtest

    conflicts = [u.attributes["audio_emotion"] != u.attributes["text_emotion"] for u in corpus.utterances]
    description = read_description(root)
    assert description.conflicts_drawn == pytest.approx(np.mean(conflicts))
    assert binomtest(sum(conflicts), len(conflicts), description.conflict).pvalue > 1e-3


@pytest.mark.parametrize(("conflict", "expected"), [(0.0, 0.0), (1.0, 1.0)])
def test_without_conflict_voice_and_words_agree_always_and_with_it_never(conflict: float, expected: float) -> None:
    drawn = [turn.latents for turn in turns(200, seed=0, conflict=conflict)]
    assert np.mean([latents.audio != latents.text for latents in drawn]) == expected


def test_voice_and_words_together_determine_the_true_emotion() -> None:
    known = law(CONFLICT)
    assert sum(known.values()) == pytest.approx(1)
    assert len({(latents.audio, latents.text) for latents in known}) == len(known) == 8


def test_external_raters_tick_as_the_mixture_says(many: list[Turn]) -> None:
    from scipy.stats import chisquare

    ticks: dict[Latents, Counter[str]] = defaultdict(Counter)
    for turn in many:
        ticks[turn.latents].update(external(turn))
    assert len(ticks) == 8
    for latents, counts in ticks.items():
        observed = np.array([counts[emotion] for emotion in EMOTIONS])
        assert chisquare(observed, latents.mixture * observed.sum()).pvalue > 1e-3


def test_three_or_four_external_raters_and_sometimes_the_speaker_rate(many: list[Turn]) -> None:
    from scipy.stats import binomtest

    counts = Counter(len(external(turn)) for turn in many)
    assert counts.keys() == {3, 4}
    assert binomtest(counts[3], len(many), 0.7).pvalue > 1e-3
    own = [rating for turn in many for rating in turn.ratings if rating.source == "self"]
    assert binomtest(len(own), len(many), 0.4).pvalue > 1e-3
    for turn in many:
        raters = [rating.rater for rating in turn.ratings]
        assert len(set(raters)) == len(raters)
        assert all((rating.rater == turn.speaker.name) == (rating.source == "self") for rating in turn.ratings)


def test_raters_often_disagree(many: list[Turn]) -> None:
    unanimous = np.mean([len(set(external(turn))) == 1 for turn in many])
    assert 0.3 < unanimous < 0.7


def test_votes_are_nearer_to_the_modality_that_is_reliable_for_the_emotion(many: list[Turn]) -> None:
    for emotion in EMOTIONS:
        conflicts = [t for t in many if t.latents.true == emotion and t.latents.audio != t.latents.text]
        distance = {
            modality: np.mean([_js(_label(turn), _one_hot(getattr(turn.latents, modality))) for turn in conflicts])
            for modality in ("audio", "text")
        }
        assert min(distance, key=lambda modality: distance[modality]) == RELIABLE[emotion]
        assert abs(distance["audio"] - distance["text"]) > 0.1


# --- the ceiling ---


def _label(turn: Turn) -> Array:
    votes = external(turn)
    return np.array([votes.count(emotion) for emotion in EMOTIONS]) / len(votes)


def _one_hot(emotion: Emotion) -> Array:
    return np.array([float(emotion == other) for other in EMOTIONS])


def _js(label: Array, prediction: Array) -> Array:
    """Over the last axis, as scipy has it."""

    from scipy.spatial.distance import jensenshannon

    return np.asarray(jensenshannon(label, np.broadcast_to(prediction, label.shape), base=2, axis=-1)) ** 2


def _simulated_votes(mixture: Array, count: int, random: np.random.Generator) -> Array:
    raters = random.choice([3, 4], p=[0.7, 0.3], size=count)
    return np.array([random.multinomial(number, mixture) / number for number in raters])


def _lowest(labels: Array) -> float:
    """The lowest mean JS of one prediction for all labels, by a general-purpose optimiser on logits."""

    from scipy.optimize import minimize
    from scipy.special import softmax

    kinds, counts = np.unique(labels, axis=0, return_counts=True)

    def mean_js(logits: Array) -> float:
        return float(np.average(_js(kinds, softmax(logits)), weights=counts))

    start = np.log(labels.mean(axis=0) + 1e-3)
    result = minimize(mean_js, start, method="Nelder-Mead", options={"maxiter": 4000, "fatol": 1e-7})
    return float(result.fun)


@pytest.mark.parametrize("latents", sorted(law(CONFLICT), key=str)[::3])
def test_the_best_prediction_is_what_an_independent_simulation_finds(latents: Latents) -> None:
    mixture = latents.mixture
    labels = _simulated_votes(mixture, 40_000, np.random.default_rng(1))
    best = best_prediction([mixture], [1.0])
    scores = _js(labels, best.prediction)
    error = scores.std() / np.sqrt(len(scores))
    assert best.js == pytest.approx(scores.mean(), abs=4 * error)
    # over so many draws the best prediction in hindsight is hardly better than the best in expectation
    assert _lowest(labels) == pytest.approx(scores.mean(), abs=1e-4)


def test_no_other_prediction_expects_less(many: list[Turn]) -> None:
    random = np.random.default_rng(0)
    mixture = np.array([0.6, 0.25, 0.05, 0.1])
    best = best_prediction([mixture], [1.0])
    labels = _simulated_votes(mixture, 20_000, random)
    kinds, counts = np.unique(labels, axis=0, return_counts=True)
    for other in [mixture, *random.dirichlet(np.ones(4), size=20)]:
        for step in (1.0, 0.1):
            moved = (1 - step) * best.prediction + step * other
            loss = _js(kinds, moved) - _js(kinds, best.prediction)
            assert np.average(loss, weights=counts) > 0


def test_the_raters_own_mixture_expects_a_higher_js_than_the_best_prediction() -> None:
    """What minimising JS gains by itself over minimising cross-entropy, which aims at the mixture."""
    random = np.random.default_rng(3)
    gain = 0.0
    for latents, probability in law(CONFLICT).items():
        labels = _simulated_votes(latents.mixture, 4_000, random)
        best = best_prediction([latents.mixture], [1.0]).prediction
        gain += probability * float((_js(labels, latents.mixture) - _js(labels, best)).mean())
    assert gain == pytest.approx(0.021, abs=0.002)


def test_the_ceiling_of_a_corpus_is_reproduced_by_simulating_its_raters_anew(root: Path) -> None:
    random = np.random.default_rng(2)
    description = read_description(root)
    with (root / "utterances.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    mixtures = np.array([[float(row[f"mixture.{emotion}"]) for emotion in EMOTIONS] for row in rows])
    kinds, counts = np.unique(mixtures, axis=0, return_counts=True)
    scores = np.concatenate(
        [
            _js(_simulated_votes(mixture, 100 * count, random), best_prediction([mixture], [1.0]).prediction)
            for mixture, count in zip(kinds, counts, strict=True)
        ]
    )
    error = np.std(scores) / np.sqrt(len(scores))
    assert np.mean(scores) == pytest.approx(description.lowest_js, abs=4 * error)
    assert np.mean([float(row["lowest_js"]) for row in rows]) == pytest.approx(description.lowest_js)


def test_the_score_of_the_best_predictor_on_the_drawn_votes_is_recomputed(root: Path, corpus: Corpus) -> None:
    scores = [
        _js(_label(turn), best_prediction([turn.latents.mixture], [1.0]).prediction)
        for turn in turns(SIZE, seed=3, conflict=CONFLICT)
    ]
    description = read_description(root)
    assert description.lowest_js_on_these_votes == pytest.approx(np.mean(scores))
    error = np.std(scores) / np.sqrt(len(scores))
    assert abs(description.lowest_js_on_these_votes - description.lowest_js) < 4 * error


@pytest.mark.parametrize("modalities", [("audio",), ("text",), ()])
def test_who_knows_less_expects_what_a_simulation_finds(modalities: tuple[Carrier, ...], many: list[Turn]) -> None:
    told: dict[tuple[str, ...], list[Array]] = defaultdict(list)
    for turn in many:
        told[tuple(getattr(turn.latents, modality) for modality in modalities)].append(_label(turn))
    found = sum(len(labels) * _lowest(np.array(labels)) for labels in told.values()) / len(many)
    assert lowest_js(CONFLICT, knowing=modalities) == pytest.approx(found, abs=0.006)


def test_the_less_is_known_the_higher_is_the_ceiling(root: Path) -> None:
    known: Description = read_description(root)
    assert lowest_js(CONFLICT, knowing=["audio", "text"]) < known.lowest_js_from_text < known.lowest_js_from_nothing
    assert lowest_js(CONFLICT, knowing=["audio", "text"]) < known.lowest_js_from_audio < known.lowest_js_from_nothing


def test_experts_that_know_one_modality_earn_more_weight_where_it_is_reliable(many: list[Turn]) -> None:
    # u = softmax(-4 D), D = JS(p‖y), of the best predictor that hears only the voice and of the one that reads only
    from scipy.special import softmax

    modalities: tuple[Carrier, Carrier] = ("audio", "text")
    experts = {(m, e): _expert(m, e) for m in modalities for e in EMOTIONS}
    for emotion in EMOTIONS:
        conflicts = [t for t in many if t.latents.true == emotion and t.latents.audio != t.latents.text]
        labels = np.array([_label(turn) for turn in conflicts])
        heard, read = (
            _js(labels, np.array([experts[modality, getattr(turn.latents, modality)] for turn in conflicts]))
            for modality in modalities
        )
        weights = softmax(-4 * np.stack([heard, read]), axis=0).mean(axis=1)
        assert weights[modalities.index(RELIABLE[emotion])] > 0.57


def _expert(modality: Carrier, emotion: Emotion) -> Array:
    cases = [(latents, p) for latents, p in law(CONFLICT).items() if getattr(latents, modality) == emotion]
    return best_prediction([latents.mixture for latents, _ in cases], [p for _, p in cases]).prediction


@pytest.mark.parametrize("conflict", [0.0, 1.0])
def test_a_modality_that_never_or_always_conflicts_has_a_ceiling_too(conflict: float, tmp_path: Path) -> None:
    known = synthetic.write(tmp_path / "corpus", utterances=10, conflict=conflict)
    both = lowest_js(conflict, knowing=["audio", "text"])
    assert known.lowest_js == pytest.approx(both)  # the utterances then differ in emotion alone
    assert both <= min(known.lowest_js_from_audio, known.lowest_js_from_text) + 1e-9


def test_corpus_json_holds_the_law_of_its_generator(root: Path) -> None:
    fields = json.loads((root / "corpus.json").read_text())
    assert fields["format"] == "amber2-synthetic"
    assert fields["generator"]["reliable_modality"] == RELIABLE
    assert sum(fields["generator"]["prior"].values()) == pytest.approx(1)


# --- words and voices ---


def test_no_word_carries_two_emotions() -> None:
    words = [word for lists in CARRYING.values() for choices in lists.values() for word in choices]
    assert len(set(words)) == len(words)


def test_the_vocabulary_holds_every_word_of_every_sentence_and_all_can_be_spoken() -> None:
    random = np.random.default_rng(0)
    words = {word for k in range(800) for word in re.findall("[a-z]+", sentence(EMOTIONS[k % 4], random).lower())}
    assert words <= set(vocabulary())
    assert all(phones_of(word) for word in vocabulary())
    assert {name for names in SPELLINGS.values() for name in names.split()} <= PHONES.keys()


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


@pytest.fixture(scope="module")
def spoken() -> dict[Emotion, list[Array]]:
    """One sentence in each emotion by the ten speakers."""
    cast = [turn.speaker for turn in turns(10, seed=7, conflict=CONFLICT)]
    text = "The letter is in the garden, the ticket in the office."
    return {
        emotion: [
            speak(text, speaker, emotion, np.random.default_rng(k)).astype(float) for k, speaker in enumerate(cast)
        ]
        for emotion in EMOTIONS
    }


def test_emotions_change_pitch_tempo_tilt_and_loudness(spoken: dict[Emotion, list[Array]]) -> None:
    pitch = {emotion: np.mean([_pitch(voice) for voice in voices]) for emotion, voices in spoken.items()}
    seconds = {emotion: np.mean([len(voice) for voice in voices]) for emotion, voices in spoken.items()}
    treble = {emotion: np.mean([_treble(voice) for voice in voices]) for emotion, voices in spoken.items()}
    level = {emotion: np.mean([np.std(voice) for voice in voices]) for emotion, voices in spoken.items()}
    assert pitch["happy"] > pitch["angry"] > pitch["neutral"] > pitch["sad"]
    assert seconds["sad"] > seconds["neutral"] > seconds["happy"] > seconds["angry"]
    assert treble["angry"] > treble["happy"] > treble["neutral"] > treble["sad"]
    assert level["angry"] > level["happy"] > level["neutral"] > level["sad"]


def test_women_speak_higher_than_men(spoken: dict[Emotion, list[Array]]) -> None:
    # each session of turns(10) gives its woman first, then its man
    pitches = [_pitch(voice) for voice in spoken["neutral"]]
    assert min(pitches[:5]) > 1.2 * max(pitches[5:])


def _pitch(waveform: Array) -> float:
    """Hz at the highest peak of the autocorrelation between 70 and 450 Hz, median over voiced frames."""
    frames = np.lib.stride_tricks.sliding_window_view(waveform, 800)[::400]
    frames = frames[frames.std(axis=1) > waveform.std()]
    spectra = np.fft.rfft(frames - frames.mean(axis=1, keepdims=True), 2048)
    lags = np.fft.irfft(np.abs(spectra) ** 2)[:, SAMPLING_RATE // 450 : SAMPLING_RATE // 70]
    return float(np.median(SAMPLING_RATE / (lags.argmax(axis=1) + SAMPLING_RATE // 450)))


def _treble(waveform: Array) -> float:
    """Share of energy in 1–4 kHz."""
    power = np.abs(np.fft.rfft(waveform)) ** 2
    frequencies = np.fft.rfftfreq(len(waveform), 1 / SAMPLING_RATE)
    return float(power[(frequencies > 1000) & (frequencies < 4000)].sum() / power[frequencies > 50].sum())
