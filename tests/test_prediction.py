"""What is measured of a prediction, against loops: entropy, experts' disagreement, whom to trust, members' spread."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import reference
from hypothesis import given
from hypothesis import strategies as st

from amber2_predict.prediction import predictions_of
from amber2_predict.table import scores_of

EMOTIONS = ("neutral", "happy", "angry", "sad")


def heads(inputs: tuple[str, ...], members: int, *, student: str = "fusion", missing: Any = ()) -> Any:
    """What is asked of a heads folder, without one."""
    member = SimpleNamespace(
        model=SimpleNamespace(architecture=SimpleNamespace(modalities=inputs)),
        origin={"missing": dict.fromkeys(missing, 1)},
    )
    return SimpleNamespace(members=(member,) * members, emotions=EMOTIONS, head=student, kind="distribution")


def drawn(names: tuple[str, ...], members: int, count: int, seed: int) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    return {name: random.dirichlet(np.full(4, 0.6), size=(members, count)) for name in names}


@given(st.integers(1, 4), st.sampled_from([("audio", "text"), ("audio", "text", "video")]), st.integers(0, 10**6))
def test_measures_are_those_of_loops(members: int, inputs: tuple[str, ...], seed: int) -> None:
    probs = drawn((*inputs, "fusion"), members, 3, seed)
    for row, found in enumerate(predictions_of(heads(inputs, members), probs, [inputs] * 3)):
        assert not isinstance(found, str)
        mean = {name: x[:, row].mean(0).tolist() for name, x in probs.items()}
        assert found.predicted_by == "fusion"
        assert found.label == EMOTIONS[reference.argmax(mean["fusion"])]
        assert found.rater_ambiguity == pytest.approx(reference.entropy(mean["fusion"]))
        pairs = [reference.js(mean[a], mean[b]) for a, b in itertools.combinations(inputs, 2)]
        assert found.modality_ambiguity == pytest.approx(sum(pairs) / len(pairs))
        assert found.trusted_expert == min(inputs, key=lambda name: reference.js(mean[name], mean["fusion"]))
        if members == 1:
            assert found.ensemble_spread is None
        else:
            of_members = [reference.entropy(p.tolist()) for p in probs["fusion"][:, row]]
            spread = reference.entropy(mean["fusion"]) - sum(of_members) / members
            assert found.ensemble_spread == pytest.approx(spread, abs=1e-12)


def test_the_student_is_meant_where_it_is_no_fusion_and_the_other_expert_is_compared_with_it() -> None:
    probs = drawn(("audio", "text", "fusion"), 1, 1, 0)
    (found,) = predictions_of(heads(("audio", "text"), 1, student="audio"), probs, [("audio", "text")])
    assert not isinstance(found, str)
    assert (found.predicted_by, found.trusted_expert) == ("audio", "text")
    assert [*found.distribution.values()] == probs["audio"][0, 0].tolist()


def test_a_member_without_a_head_has_no_say_and_a_head_that_none_has_says_nothing() -> None:
    probs = drawn(("audio", "text", "fusion"), 2, 1, 0)
    probs["fusion"][1] = np.nan
    probs["text"][:] = np.nan
    (found,) = predictions_of(heads(("audio", "text"), 2), probs, [("audio", "text")])
    assert not isinstance(found, str)
    assert [*found.heads["fusion"].values()] == probs["fusion"][0, 0].tolist()
    assert set(found.heads) == {"audio", "fusion"}
    assert found.modality_ambiguity is found.trusted_expert is None
    nothing = {name: np.full((2, 1, 4), np.nan) for name in probs}
    (why,) = predictions_of(heads(("audio", "text"), 2), nothing, [("audio",)])
    assert why == "no head was trained for what there is of it (audio)"


def test_of_presence_what_is_above_the_threshold_is_present_and_there_are_no_ambiguities() -> None:
    both = heads(("audio", "text"), 2)
    both.kind, both.threshold = "multi-label", 0.4
    probs = {"fusion": np.array([[[0.9, 0.2, 0.3, 0.6]], [[0.7, 0.4, 0.5, 0.4]]])}
    (found,) = predictions_of(both, probs, [("audio", "text")])
    assert not isinstance(found, str)
    assert found.distribution == pytest.approx({"neutral": 0.8, "happy": 0.3, "angry": 0.4, "sad": 0.5})
    assert (found.label, found.present) == ("neutral", ("neutral", "sad"))
    assert found.rater_ambiguity is found.modality_ambiguity is found.ensemble_spread is None


def test_scores_are_what_the_audio_classification_task_gives() -> None:
    found = scores_of({"neutral": 0.2, "happy": 0.5, "sad": 0.3})
    assert found == [
        {"label": "happy", "score": 0.5},
        {"label": "sad", "score": 0.3},
        {"label": "neutral", "score": 0.2},
    ]
