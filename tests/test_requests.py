"""What a language model is to be asked of a cache: a prompt's parts, honest shots, raters, and the whole file."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from synthetic_data import cache_of

from amber2_core.cache import FeatureCache, write_cache
from amber2_core.errors import Amber2Error, CacheError, SettingError
from amber2_core.tables import texts
from amber2_core.votes import LabelPolicy, label_distributions
from amber2_extract.language_models import write_prompts as command
from amber2_extract.prompts import FOCI
from amber2_extract.requests import Questions, Source, write_prompts

COUNT = 24


def talk(**columns: Any) -> FeatureCache:
    """24 utterances of six speakers in two sessions, in dialogues of four turns whose order is not the cache's."""
    cache = cache_of(COUNT, speakers=6, sessions=3)
    table = replace(
        cache.utterances,
        transcript=texts([f"words of {i}" for i in range(COUNT)]),
        dialogue=texts([f"d{i // 4}" for i in range(COUNT)]),
        audio=texts([f"wav/{i}.wav" for i in range(COUNT)]),
        duration=np.full(COUNT, 1.5, np.float32),
        **columns,
    )
    begins = np.array([-float(i) for i in range(COUNT)])
    pitch = np.array([np.nan, *(100.0 + i for i in range(1, COUNT))])
    return replace(cache, utterances=table, attributes={"turn_start": begins, "pitch": pitch})


def source(cache: FeatureCache, **questions: Any) -> Source:
    policy = LabelPolicy.of_corpus(cache.defaults)
    targets = label_distributions(cache.ratings, cache.attributes, len(cache.utterances), policy)
    return Source(cache, policy, targets, Questions(**questions))


def written(tmp_path: Path, cache: FeatureCache, **options: Any) -> list[dict[str, Any]]:
    write_cache(tmp_path / "c.h5", cache)
    beside = {name: options.pop(name) for name in ("labels", "asked", "force") if name in options}
    write_prompts(tmp_path / "c.h5", tmp_path / "p.jsonl", Questions(**options), **beside)
    return [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]


def test_a_prompt_tells_classes_words_sound_context_and_rated_examples(tmp_path: Path) -> None:
    requests = written(tmp_path, talk(), shots=2, context=2, acoustic=("pitch",))
    assert [one["utterance"] for one in requests] == [f"u{i:03}" for i in range(COUNT)]
    request = requests[1]  # turns 3, 2, 1, 0 in time
    assert (request["audio"], request["annotator"], request["temperature"]) == ("wav/1.wav", "aer-llm", 0)
    assert "neutral, happy, angry, sad" in request["prompt"]
    told = 'Transcript: "words of 1"\nAcoustic description: length (s) 1.5; words per second 2; pitch 101\n\nAnswer'
    assert told in request["prompt"]
    assert '- another speaker: "words of 3"\n- another speaker: "words of 2"\n' in request["prompt"]
    shares = [json.loads(found) for found in re.findall("Shares: (.*)", request["prompt"])]
    assert len(shares) == 2
    assert all(sum(one.values()) == pytest.approx(1, abs=0.002) for one in shares)
    assert "pitch" not in requests[0]["prompt"].rpartition("The utterance:")[2]


def test_the_shares_of_a_shot_are_the_raters(tmp_path: Path) -> None:
    cache = talk()
    (request, *_) = written(tmp_path, cache, shots=3)
    for place, shares in re.findall(r'"words of (\d+)"\n.*\nShares: (.*)', request["prompt"]):
        ticks = cache.ratings.label[cache.ratings.utterance == int(place)].tolist()
        own = {emotion: round(ticks.count(emotion) / len(ticks), 3) for emotion in cache.defaults.emotions}
        assert json.loads(shares) == own


@given(st.integers(0, COUNT - 1), st.integers(0, 100), st.sampled_from([None, "session", "fold"]))
def test_no_shot_is_of_the_same_speaker_dialogue_or_fold(row: int, seed: int, column: str | None) -> None:
    cache = talk()
    fold = texts(["a" if i % 5 else "b" for i in range(COUNT)])
    cache = replace(cache, attributes={**cache.attributes, "fold": fold})
    asked = source(cache, shots=2, seed=seed, fold_column=column)
    shots, table = asked.shots(row), cache.utterances
    assert len(set(shots)) == 2
    for shot in shots:
        assert table.speaker[shot] != table.speaker[row]
        assert table.dialogue[shot] != table.dialogue[row]
        assert column != "session" or table.session[shot] != table.session[row]
        assert column != "fold" or fold[shot] != fold[row]
    assert shots == source(cache, shots=2, seed=seed, fold_column=column).shots(row)


def test_by_official_split_every_shot_is_of_train() -> None:
    split = texts(["train" if i < 12 else "test" for i in range(COUNT)])
    asked = source(talk(split=split), shots=3, fold_column="split")
    assert all(shot < 12 for row in range(COUNT) for shot in asked.shots(row))


def test_another_seed_draws_other_shots() -> None:
    drawn = {tuple(source(talk(), shots=2, seed=seed).shots(0)) for seed in range(8)}
    assert len(drawn) > 1


def test_raters_have_five_foci_and_rising_temperatures(tmp_path: Path) -> None:
    requests = written(tmp_path, talk(), style="rater", annotators=6, temperatures=(0.2, 1.2), context=1)
    own = [one for one in requests if one["utterance"] == "u001"]
    assert [one["annotator"] for one in own] == [f"synthetic{k}" for k in range(1, 7)]
    assert [one["focus"] for one in own] == [*FOCI, "overall"]
    assert [one["temperature"] for one in own] == [0.2, 0.4, 0.6, 0.8, 1.0, 1.2]
    assert len({one["seed"] for one in requests}) == 6 * COUNT
    for one in own:
        assert FOCI[one["focus"]].words in one["prompt"]
        shows = one["focus"] != "prosody"
        assert ('"words of 1"' in one["prompt"], '"words of 2"' in one["prompt"]) == (shows, shows)
        assert one["prompt"].endswith("Answer with that one word alone.")


def test_without_a_recording_a_rater_reads_and_with_nothing_nobody_is_asked(tmp_path: Path) -> None:
    cache = talk()
    words = texts(["", "", *(["spoken"] * (COUNT - 2))])
    table = replace(cache.utterances, audio=texts(["", "a.wav", *([""] * (COUNT - 2))]), transcript=words)
    requests = written(tmp_path, replace(cache, utterances=table), style="rater", annotators=2)
    assert {one["utterance"] for one in requests} == {f"u{i:03}" for i in range(1, COUNT)}
    assert ["Listen" in one["prompt"] for one in requests[:4]] == [True, True, False, False]
    assert '"spoken"' in requests[3]["prompt"]


def test_the_class_list_and_who_is_asked_follow_the_label_policy(tmp_path: Path) -> None:
    cache = talk()
    sad = [i for i in range(COUNT) if "sad" in cache.ratings.label[cache.ratings.utterance == i]]
    happy = [i for i in range(COUNT) if "happy" in cache.ratings.label[cache.ratings.utterance == i]]
    requests = written(tmp_path, cache, labels={"emotions": "sad,happy"})
    assert [one["utterance"] for one in requests] == [f"u{i:03}" for i in sorted({*sad, *happy})]
    assert '{"sad": …, "happy": …}' in requests[0]["prompt"]
    assert len(written(tmp_path, cache, labels={"emotions": "sad,happy"}, asked="all", force=True)) == COUNT


def test_the_file_is_the_same_again_and_another_one_is_not_replaced(tmp_path: Path) -> None:
    written(tmp_path, talk(), shots=2)
    before = (tmp_path / "p.jsonl").read_bytes()
    written(tmp_path, talk(), shots=2)
    assert (tmp_path / "p.jsonl").read_bytes() == before
    with pytest.raises(CacheError, match="holds other prompts"):
        written(tmp_path, talk(), shots=1)
    assert (tmp_path / "p.jsonl").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.h5", "p.jsonl"]
    assert len(written(tmp_path, talk(), shots=1, force=True)) == COUNT


@pytest.mark.parametrize(
    ("questions", "kind", "why"),
    [
        ({"style": "poem"}, SettingError, "Bad style 'poem'"),
        ({"style": "rater", "shots": 1}, SettingError, "shows no shots"),
        ({"temperatures": (1.0, 0.5)}, SettingError, "Bad temperatures 1:0.5"),
        ({"acoustic": ("loudness",)}, SettingError, "Bad acoustic 'loudness'"),
        ({"fold_column": "moon"}, SettingError, "Bad fold-column 'moon'"),
        ({"fold_column": "pitch", "shots": 1}, SettingError, "1 labelled utterances have no value"),
        ({"shots": 23}, CacheError, "can be shots of 'u000', 23 are asked for"),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, questions: Mapping[str, Any], kind: type[Amber2Error], why: str) -> None:
    with pytest.raises(kind, match=why):
        written(tmp_path, talk(), **questions)
    assert not (tmp_path / "p.jsonl").exists()


def test_the_command_says_what_prompts_do_not_tell(tmp_path: Path) -> None:
    write_cache(tmp_path / "c.h5", talk())
    output = ["--output", str(tmp_path / "p.jsonl"), "--force"]

    def told(*options: str) -> str:
        done = CliRunner().invoke(command, [str(tmp_path / "c.h5"), *output, *options])
        assert done.exit_code == 0, done.stderr
        return done.stderr + done.stdout

    assert "no acoustic attribute is named" in told()
    assert "pitch: unknown of 1 utterances" in told("--acoustic", "pitch")
    raters = told("--style", "rater", "--annotators", "3", "--temperature", "0.2:0.6")
    assert "annotators: synthetic1 overall 0.2, synthetic2 prosody 0.4, synthetic3 words 0.6" in raters
    assert "p.jsonl: 72 requests of 24 utterances" in raters
    assert (
        "Bad temperature 'hot'"
        in CliRunner().invoke(command, [str(tmp_path / "c.h5"), *output, "--temperature", "hot"]).stderr
    )
