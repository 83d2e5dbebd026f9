"""Shards of a corpus: each encodes its part, and together they are what one call gives, to the last bit."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from extraction import Place, after, counts, deal_singly, work_here
from hypothesis import given
from hypothesis import strategies as st
from small_corpus import with_utterance, write_recording
from small_models import save_classifier, save_speech

from amber2_core.cache import FeatureCache, read_cache, write_cache
from amber2_core.errors import Amber2Error, CacheError, SettingError
from amber2_core.features import Features
from amber2_core.shards import Shard, is_part, shard_named, shard_of, shard_of_environment, whole_of
from amber2_core.tables import rating_table, take, texts
from amber2_core.utterance import Rating
from amber2_extract.batches import Effort, plan_batches
from amber2_extract.cli import inspect_cache
from amber2_extract.evidence import Evidence
from amber2_extract.inspection import compare
from amber2_extract.merge_cli import merge_shards
from amber2_extract.merging import merge_caches
from amber2_extract.pipeline import Summary
from amber2_extract.previous import with_features
from amber2_train.training_data import find_cache, read_material

COUNT = 3
# several utterances in a batch
EFFORT = Effort(device="cpu", batch_seconds=1.0, batch_tokens=24)


@pytest.fixture(autouse=True)
def _workers(monkeypatch: pytest.MonkeyPatch) -> None:
    work_here(monkeypatch)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path, count=20)


def encode(place: Place, number: int, count: int = COUNT, **settings: Any) -> Summary:
    return place.extract(shard=Shard(number, count), **{"effort": EFFORT, **settings})


def encode_all(place: Place, **settings: Any) -> list[Path]:
    return [encode(place, number, **settings).output for number in range(1, COUNT + 1)]


def held(cache: FeatureCache, modality: str) -> set[str]:
    """Ids of what is encoded."""
    sets = [some for some in cache.features if some.modality == modality]
    return {str(id_) for some in sets for id_ in cache.utterances.id[some.encoded]}


def assert_same(merged: Path, plain: Path) -> None:
    """Everything but the time of the work."""
    one, other = read_cache(merged), read_cache(plain)
    assert compare(merged, plain)["same"]
    assert (one.failures, one.corpus, one.defaults) == (other.failures, other.corpus, other.defaults)
    for column in ("id", "transcript", "audio_sha256", "duration", "start", "speaker"):
        np.testing.assert_array_equal(getattr(one.utterances, column), getattr(other.utterances, column))
    for a, b in zip(one.features, other.features, strict=True):
        assert (a.modality, a.name, a.recipe) == (b.modality, b.name, b.recipe)
        np.testing.assert_array_equal(a.values, b.values)
        np.testing.assert_array_equal(a.inputs, b.inputs)
        assert (a.frames is None) == (b.frames is None)
        if a.frames is not None and b.frames is not None:
            np.testing.assert_array_equal(a.frames.values, b.frames.values)
            np.testing.assert_array_equal(a.frames.offsets, b.frames.offsets)


@given(
    sizes=st.lists(st.floats(0.1, 30, allow_nan=False), max_size=60),
    budget=st.floats(0, 60),
    count=st.integers(1, 70),
)
def test_every_batch_is_in_exactly_one_shard(sizes: Sequence[float], budget: float, count: int) -> None:
    planned = plan_batches(sizes, budget=budget)
    dealt = [batch for number in range(1, count + 1) for batch in Shard(number, count).of(planned)]
    assert sorted(dealt) == sorted(planned)
    shares = [len(Shard(number, count).of(planned)) for number in range(1, count + 1)]
    assert max(shares) - min(shares) <= 1


def test_merged_shards_are_what_one_call_gives_and_that_call_finds_nothing_to_do(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier = place.folder / "moods"
    save_classifier(classifier, "bert", ["negative", "neutral", "positive"])
    settings: dict[str, Any] = {"layers": "all", "frames": 3, "sentiment_model": str(classifier), "effort": EFFORT}
    plain = place.folder / "plain.h5"
    place.extract(output=plain, **settings)
    shards = encode_all(place, **settings)
    assert [path.name for path in shards] == [f"example.shard-{number}-of-3.h5" for number in (1, 2, 3)]
    caches = [read_cache(path) for path in shards]
    parts = [held(cache, "audio") for cache in caches]
    assert all(parts)
    assert set.union(*parts) == set(read_cache(plain).utterances.id)
    assert sum(map(len, parts)) == 20
    assert all(len(cache.ratings) == 60 for cache in caches)
    merged = merge_caches(list(reversed(shards)))
    assert merged.output == place.output
    assert merged.features["audio/wav2vec2-layers-frames3"] == 20
    assert_same(place.output, plain)
    data = [read_material(path, {"audio": None, "text": None}, {}).data for path in (place.output, plain)]
    assert data[0].checksum == data[1].checksum
    # whole again, and no part of anything
    assert "shard" not in read_cache(place.output).summary
    monkeypatch.setattr("amber2_core.engine.deal", None)
    monkeypatch.setattr("amber2_core.engine.call", None)
    assert not place.extract(**settings).written
    work = [read_cache(path).summary["features"]["text/bert-layers-frames3"] for path in (place.output, plain)]
    assert work[0]["distinct"] == work[1]["distinct"] > 0
    assert work[0]["evidence"]["checked"] == work[1]["evidence"]["checked"] > 0


def test_a_shard_that_is_run_again_has_the_same_part_and_nothing_to_encode(place: Place) -> None:
    first = encode(place, 2)
    encoded, _, _ = counts(first, "audio")
    assert 0 < encoded < 20
    again = encode(place, 2)
    assert counts(again, "audio") == (0, encoded, 0)
    assert not again.written


def test_a_shard_that_is_stopped_goes_on_with_the_rest_of_its_part(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    deal_singly(monkeypatch)
    plain = place.folder / "plain.h5"
    place.extract(output=plain, effort=EFFORT)
    whole = counts(encode(place, 1, output=place.folder / "other.h5"), "audio")[0]

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encode(place, 1, on_progress=after(1, stop))
    assert place.kept() > 0
    done = [counts(encode(place, number), "audio") for number in (1, 2, 3)]
    assert 0 < done[0][0] < whole
    assert done[0][0] + done[0][1] == whole
    merge_caches([Shard(number, 3).file(place.output) for number in (1, 2, 3)])
    assert_same(place.output, plain)


def test_there_may_be_more_shards_than_batches(place: Place) -> None:
    plain = place.folder / "plain.h5"
    place.corpus = replace(place.corpus, utterances=place.corpus.utterances[:3])
    place.extract(output=plain)
    shards = [encode(place, number, 4, effort=None).output for number in range(1, 5)]
    assert [len(read_cache(path).features) for path in shards] == [2, 1, 1, 0]
    merge_caches(shards)
    assert_same(place.output, plain)


def test_what_cannot_be_read_or_encoded_is_a_failure_once_and_no_gap(place: Place) -> None:
    (place.corpus.root / "wav/u03.wav").write_bytes(b"no sound")
    place.corpus = with_utterance(place.corpus, 5, audio=None)
    # read, and of no use to the encoder
    write_recording(place.corpus.root / "wav/u07.wav", 0.002, seed=7)
    plain = place.folder / "plain.h5"
    expected = place.extract(output=plain, effort=EFFORT).failures
    shards = encode_all(place)
    merged = merge_caches(shards)
    assert [failure.utterance for failure in merged.failures] == ["u03", "u05", "u07"]
    assert merged.failures == expected
    assert_same(place.output, plain)
    assert sum("u07" in {one.utterance for one in read_cache(path).failures} for path in shards) == 1


def test_where_a_whole_cache_stands_shards_encode_only_what_it_lacks(place: Place) -> None:
    every, few = place.corpus, replace(place.corpus, utterances=place.corpus.utterances[:12])
    place.extract(few, effort=EFFORT)
    before = read_cache(place.output).feature_set("audio").values
    features = Features("video", "faces", np.ones((12, 2), np.float32), texts(["imported"] * 12), {"imported": True})
    write_cache(place.output, with_features(read_cache(place.output), features, force=False))
    place.corpus = every
    shards = encode_all(place)
    assert sum(len(held(read_cache(path), "audio")) for path in shards) == 8
    assert merge_caches(shards).features == {"audio/wav2vec2": 20, "text/bert": 20, "video/faces": 12}
    np.testing.assert_array_equal(read_cache(place.output).feature_set("audio").values[:12], before)
    assert not place.extract(effort=EFFORT).written
    assert counts(encode(place, 1), "audio")[0] == 0


def test_what_has_changed_since_the_whole_cache_is_not_taken_from_it(place: Place) -> None:
    place.extract(effort=EFFORT)
    write_recording(place.corpus.root / "wav/u04.wav", 0.3, seed=99)
    other = save_speech(place.folder / "hubert", "hubert")
    assert other is not None
    shards = encode_all(place, audio_model=str(place.folder / "hubert"), text_model=None)
    assert merge_caches(shards).features == {"audio/hubert": 20, "audio/wav2vec2": 19, "text/bert": 20}


def test_imported_features_of_any_shard_are_taken_over(place: Place) -> None:
    shards = encode_all(place)
    faces = Features("video", "faces", np.full((20, 2), 3, np.float32), texts(["imported"] * 20), {"imported": True})
    write_cache(shards[1], with_features(read_cache(shards[1]), faces, force=False))
    assert merge_caches(shards).features == {"audio/wav2vec2": 20, "text/bert": 20, "video/faces": 20}
    np.testing.assert_array_equal(read_cache(place.output).feature_set("video").values, faces.values)


def test_models_votes_in_the_whole_cache_are_kept(place: Place) -> None:
    place.extract(text_model=None, effort=EFFORT)
    cache = read_cache(place.output)
    rating = Rating("model", "happy", source="synthetic", stimulus=cache.defaults.stimulus)
    utterances = [replace(one, ratings=(*one.ratings, rating)) for one in place.corpus.utterances]
    write_cache(place.output, replace(cache, ratings=rating_table(replace(place.corpus, utterances=tuple(utterances)))))
    merge_caches(encode_all(place, audio_model=None))
    assert (read_cache(place.output).ratings.source == "synthetic").sum() == 20


def changed(path: Path, output: Path, **changes: Any) -> Path:
    """A shard with something else in it."""
    write_cache(output, replace(read_cache(path), **changes))
    return output


def refused(paths: Sequence[Path], output: Path) -> str:
    with pytest.raises(Amber2Error) as error:
        merge_caches(paths, output)
    assert not output.exists()
    line = str(error.value)
    assert "\n" not in line
    return line


def test_whatever_does_not_fit_is_told_by_name(place: Place, tmp_path: Path) -> None:
    shards, new = encode_all(place), tmp_path / "new.h5"
    one, two, three = shards
    assert refused([one, three], new) == "Missing of 3 shards: 2; run these, and name all shards to merge-shards"
    assert refused([one, two, two, three], new) == f"{two} is named twice: name each shard once"
    again = tmp_path / "again.h5"
    shutil.copyfile(two, again)
    assert f"{two} and {again} are both shard 2 of 3" in refused([one, two, again, three], new)
    fourth = encode(place, 4, 4).output
    assert f"{fourth} is shard 4 of 4 and {one} shard 1 of 3" in refused([one, two, fourth], new)
    plain = place.folder / "plain.h5"
    place.extract(output=plain, effort=EFFORT)
    assert f"{plain} is no shard but a whole cache" in refused([one, two, plain], new)
    with pytest.raises(CacheError, match="is one of the shards: name the cache to write with --output"):
        merge_caches(shards, one)
    with pytest.raises(CacheError, match="is a folder: name the file of the cache to write with --output"):
        merge_caches(shards, tmp_path)
    with pytest.raises(CacheError, match="is no shard but a whole cache"):
        merge_caches([plain])  # nor is it told that it would be written over


def test_another_corpus_or_vote_is_told_by_the_first_that_differs(place: Place, tmp_path: Path) -> None:
    (one, two, three), new, other = encode_all(place), tmp_path / "new.h5", tmp_path / "other.h5"
    cache = read_cache(three)
    assert "corpus is 'example' and 'foreign'" in refused([one, two, changed(three, other, corpus="foreign")], new)
    transcripts = cache.utterances.transcript.copy()
    transcripts[7] = "something else"
    utterances = replace(cache.utterances, transcript=transcripts)
    line = refused([one, two, changed(three, other, utterances=utterances)], new)
    assert f"{one} and {other} are not of one corpus: their utterances differ, the first in transcript of 'u07'" == line
    fewer = take(cache.ratings, np.arange(59))
    line = refused([one, two, changed(three, other, ratings=fewer)], new)
    assert "their ratings differ, the first in utterance of 'u19'" in line
    attributes = {"valence": cache.attributes["valence"] + np.eye(20)[4]}
    line = refused([one, two, changed(three, other, attributes=attributes)], new)
    assert "their attributes differ, the first in valence of 'u04'" in line


def test_another_recipe_a_gap_and_an_overlap_are_told(place: Place, tmp_path: Path) -> None:
    (one, two, three), new, other = encode_all(place), tmp_path / "new.h5", tmp_path / "other.h5"
    sets = {some.modality: some for some in read_cache(three).features}
    recipe = {**sets["audio"].recipe, "precision": "bf16"}
    foreign = (replace(sets["audio"], recipe=recipe), sets["text"])
    line = refused([one, two, changed(three, other, features=foreign)], new)
    assert line == (
        f"audio/wav2vec2 is encoded in other ways in {one} and {other}: precision changed from fp32 to bf16"
    )
    lost = np.flatnonzero(sets["audio"].encoded)
    values, inputs = sets["audio"].values.copy(), sets["audio"].inputs.copy()
    values[lost], inputs[lost] = np.nan, ""
    emptied = (replace(sets["audio"], values=values, inputs=inputs), sets["text"])
    line = refused([one, two, changed(three, other, features=emptied)], new)
    assert line.startswith(f"No shard encoded 'u{lost[0]:02d}' and {len(lost) - 1} more as audio/wav2vec2: give all")
    # a row that shard 1 has already: the same is nothing, another one is
    theirs = next(some for some in read_cache(one).features if some.modality == "audio")
    row = int(np.flatnonzero(theirs.encoded)[0])
    values, inputs = sets["audio"].values.copy(), sets["audio"].inputs.copy()
    values[row], inputs[row] = theirs.values[row], theirs.inputs[row]
    same = (replace(sets["audio"], values=values, inputs=inputs), sets["text"])
    merge_caches([one, two, changed(three, other, features=same)], tmp_path / "fine.h5")
    values[row, 0] = np.nextafter(values[row, 0], np.float32(9))
    line = refused([one, two, changed(three, other, features=same)], new)
    assert line.startswith(f"{one} and {other} hold other values of 'u{row:02d}' as audio/wav2vec2: ")


def test_shards_that_were_batched_otherwise_are_told_what_to_do(place: Place, tmp_path: Path) -> None:
    one, two = encode(place, 1).output, encode(place, 2).output
    three = encode(place, 3, effort=replace(EFFORT, batch_seconds=0.3)).output
    assert "give all shards the same --batch-seconds" in refused([one, two, three], tmp_path / "new.h5")


def test_a_shard_that_was_not_asked_for_a_feature_set_is_named(place: Place, tmp_path: Path) -> None:
    one, two, three = encode(place, 1).output, encode(place, 2).output, encode(place, 3, text_model=None).output
    assert refused([one, two, three], tmp_path / "new.h5").endswith(
        f" as text/bert: {three} was not asked for it: give all shards the same options, and remove those that were "
        "run with others first"
    )


def test_evidence_of_all_shards_counts_and_one_that_is_against_batches_counts_for_all(
    place: Place, tmp_path: Path
) -> None:
    (one, two, three), new, other = encode_all(place), tmp_path / "new.h5", tmp_path / "other.h5"

    def with_evidence(evidence: Evidence) -> Path:
        summary: dict[str, Any] = dict(read_cache(three).summary)
        work = dict(summary["features"])
        work["audio/wav2vec2"] = {**work["audio/wav2vec2"], "evidence": vars(evidence)}
        return changed(three, other, summary={**summary, "features": work})

    checked = sum(read_cache(path).summary["features"]["audio/wav2vec2"]["evidence"]["checked"] for path in (one, two))
    merge_caches([one, two, with_evidence(Evidence(5, 3e-6))], tmp_path / "fine.h5")
    found = read_cache(tmp_path / "fine.h5").summary["features"]["audio/wav2vec2"]["evidence"]
    assert found == {"checked": checked + 5, "largest": 3e-6, "singly": False}
    line = refused([one, two, with_evidence(Evidence(5, 3e-2, singly=True))], new)
    assert line.startswith(f"{other} found that batches change the values of audio/wav2vec2 (")
    assert line.endswith(f"{one} encoded in batches: encode all shards again with --batch-seconds 0 --force")


def test_a_part_that_falls_back_to_one_at_a_time_stays_the_same_part(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = held(read_cache(encode(place, 2, output=place.folder / "other.h5").output), "audio")
    monkeypatch.setattr(
        "amber2_extract.evidence.Evidence.is_against", lambda self, _: self.checked > 0 and not self.singly
    )
    output = encode(place, 2).output
    assert held(read_cache(output), "audio") == expected
    assert read_cache(output).summary["features"]["audio/wav2vec2"]["evidence"]["singly"]


def test_a_part_says_that_it_is_one(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    output = encode(place, 3).output
    shown = CliRunner().invoke(inspect_cache, [str(output)])
    assert "shard       3 of 3: features of this part; merge-shards makes them one" in shown.output
    read_material(output, {"audio": None}, {})
    assert f"{output} is shard 3 of 3: " in caplog.text
    with pytest.raises(
        CacheError, match=r"No feature cache in .* but shards, as example\.shard-3-of-3\.h5: merge-shards"
    ):
        find_cache(None, output.parent)
    merge_caches([encode(place, 1).output, encode(place, 2).output, output])
    assert find_cache(None, output.parent) == place.output


def test_the_command_merges_and_tells_failures(place: Place) -> None:
    (place.corpus.root / "wav/u03.wav").write_bytes(b"no sound")
    shards = encode_all(place)
    done = CliRunner().invoke(merge_shards, list(map(str, shards)))
    assert done.exit_code == 3
    assert done.stdout.splitlines() == [
        "audio/wav2vec2: 19 of 20 utterances", "text/bert: 20 of 20 utterances", str(place.output),
    ]  # fmt: skip
    assert "failed: u03 (audio/wav2vec2): " in done.stderr
    mixed = CliRunner().invoke(merge_shards, [str(shards[0]), str(place.folder)])
    assert (mixed.exit_code, mixed.stderr.count("\n")) == (1, 1)


ARRAY = {"SLURM_ARRAY_TASK_ID": "11", "SLURM_ARRAY_TASK_MIN": "3", "SLURM_ARRAY_TASK_MAX": "15"}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({**ARRAY, "SLURM_ARRAY_TASK_COUNT": "13"}, (9, 13)),
        ({**ARRAY, "SLURM_ARRAY_TASK_COUNT": "4"}, (3, 4)),
        ({**ARRAY, "SLURM_ARRAY_TASK_COUNT": "7", "SLURM_PROCID": "0", "SLURM_NTASKS": "1"}, (5, 7)),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "RANK": "2", "WORLD_SIZE": "3"}, (1, 4)),
        ({"RANK": "2", "WORLD_SIZE": "3"}, (3, 3)),
        ({"RANK": "2", "SLURM_PROCID": "1", "WORLD_SIZE": "3"}, (3, 3)),
    ],
)
def test_the_environment_tells_the_shard(environment: dict[str, str], expected: tuple[int, int]) -> None:
    shard = shard_of_environment(environment)
    assert (shard.number, shard.count) == expected
    assert shard.told_by in environment


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({}, "none of SLURM_ARRAY_TASK_ID, SLURM_PROCID and RANK is set"),
        ({**ARRAY, "SLURM_ARRAY_TASK_COUNT": "5", "SLURM_ARRAY_TASK_ID": "10"}, "do not lie at even distances"),
        ({**ARRAY, "SLURM_ARRAY_TASK_COUNT": "4", "SLURM_ARRAY_TASK_ID": "4"}, "do not lie at even distances"),
        ({"RANK": "two", "WORLD_SIZE": "3"}, "RANK=two WORLD_SIZE=3 are not all numbers"),
    ],
)
def test_an_environment_that_tells_none_is_one_line(environment: dict[str, str], words: str) -> None:
    with pytest.raises(SettingError, match=words):
        shard_of_environment(environment)


@pytest.mark.parametrize("text", ["0/4", "5/4", "x", "3", "-1/4", "1/0", "1/4/2", ""])
def test_a_word_that_is_no_shard_is_bad_usage(text: str) -> None:
    from amber2_extract.cli import extract_features

    done = CliRunner().invoke(extract_features, ["--corpus", "crema_d", "--shard", text])
    assert done.exit_code == 2
    assert "Invalid value for '--shard': Bad shard" in done.stderr


@pytest.mark.parametrize("found", [{}, 3, {"number": 0, "of": 2}, {"number": "x", "of": 2}])
def test_a_record_that_tells_no_shard_is_one_line(found: Any) -> None:
    with pytest.raises(SettingError, match="Bad shard"):
        shard_of({"shard": found})


def test_files_and_folders_of_parts_are_called_for_the_whole() -> None:
    shard = shard_named("3/16")
    for whole, part in (
        (Path("a/x.h5"), shard.file(Path("a/x.h5"))),
        (Path("a/run.v2"), shard.folder(Path("a/run.v2"))),
    ):
        assert is_part(part)
        assert not is_part(whole)
        assert whole_of(part) == whole
