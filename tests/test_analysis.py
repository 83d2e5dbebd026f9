"""What the figures show: equal to plain loops over utterances, and whole where the loops are whole."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import reference
from run_folders import GRID, Sketch, write_run

from amber2_core.run_folder import read_results
from amber2_report import analysis
from amber2_report.groups import Entry, Group, grouped
from amber2_report.runs import read_run


@pytest.fixture(scope="module")
def group(run_folder: Path) -> Group:
    return grouped([read_run(run_folder)])[0]


def test_scores_by_bin_are_those_of_the_bins_utterances_alone(group: Group) -> None:
    entry, target = group.mains[0], group.predictions.target
    bins = analysis.bins_of(group)
    scores = analysis.scores_by_bin(group, entry, bins)
    assert bins.counts.sum() == len(target)
    for b, count in enumerate(bins.counts):
        inside = [k for k in range(len(target)) if bins.member[k] == b]
        assert len(inside) == count
        for k in inside:
            assert bins.edges[b] - 1e-6 <= reference.entropy(target[k].tolist()) <= bins.edges[b + 1] + 1e-6
        for seed in range(2):
            if inside:
                pairs = [(target[k].tolist(), entry.probs[seed, k].tolist()) for k in inside]
                loop = sum(reference.js(y, p) for y, p in pairs) / len(pairs)
                assert scores["js"][seed, b] == pytest.approx(loop, abs=1e-6)
            else:
                assert np.isnan(scores["js"][seed, b])


def test_the_confusion_is_scikit_learns_and_its_rows_are_whole(group: Group) -> None:
    from sklearn.metrics import confusion_matrix

    entry, target = group.mains[0], group.predictions.target
    label = [reference.argmax(y.tolist()) for y in target]
    theirs = sum(confusion_matrix(label, probs.argmax(1), labels=range(4)) for probs in entry.probs)
    np.testing.assert_allclose(analysis.confusion_shares(group, entry), theirs / theirs.sum(1, keepdims=True))


def test_vote_shares_count_every_rater(group: Group) -> None:
    entry, target = group.mains[0], group.predictions.target
    wanted = np.zeros((4, 4))
    for k, y in enumerate(target):
        for c in range(4):
            for d in range(4):
                wanted[c, d] += y[c] * entry.probs[:, k, d].mean()
    found = analysis.vote_shares(group, entry)
    np.testing.assert_allclose(found, wanted / target.sum(0)[:, None], rtol=1e-5)
    np.testing.assert_allclose(found.sum(1), 1, rtol=1e-5)


def test_reliability_is_scikit_learns_calibration_curve(group: Group) -> None:
    from sklearn.calibration import calibration_curve

    entry = group.mains[0]
    confidence, accuracy, share = analysis.reliability(group, entry)
    label = np.array([reference.argmax(y.tolist()) for y in group.predictions.target])
    hits = np.concatenate([probs.argmax(1) == label for probs in entry.probs])
    theirs = calibration_curve(hits, entry.probs.max(-1).astype(float).ravel(), n_bins=10)
    np.testing.assert_allclose(accuracy[share > 0], theirs[0])
    np.testing.assert_allclose(confidence[share > 0], theirs[1], rtol=1e-5)
    assert share.sum() == pytest.approx(1)


def test_expert_weights_are_equation_5_on_test(group: Group) -> None:
    main = group.mains[0]
    weights = analysis.expert_weights(group, main)
    assert weights is not None
    assert list(weights) == ["audio", "text"]
    heads = group.heads(main)
    for k in (0, 17, 119):
        y = group.predictions.target[k].tolist()
        loops = [
            reference.expert_weights(y, [heads[name].probs[seed, k].tolist() for name in ("audio", "text")], GRID[0][1])
            for seed in range(2)
        ]
        np.testing.assert_allclose([weights[name][k] for name in weights], np.mean(loops, axis=0), atol=1e-6)
    assert analysis.expert_weights(group, group.mains[1]) is None


def test_disagreement_is_the_divergence_of_the_heads_of_single_modalities(group: Group) -> None:
    heads = group.heads(group.mains[1])
    found = analysis.disagreement(group, group.mains[1])
    assert found is not None
    for k in (0, 60, 119):
        loops = [
            reference.js(heads["audio"].probs[s, k].tolist(), heads["text"].probs[s, k].tolist()) for s in range(2)
        ]
        assert found[k] == pytest.approx(np.mean(loops), abs=1e-6)


def test_every_known_speaker_has_a_score(group: Group) -> None:
    entry, speaker = group.mains[0], group.runs[0].utterances["speaker"].to_numpy(object)
    scores = analysis.speaker_scores(group, entry, np.where(speaker == "s0", "", speaker))
    assert scores.is_monotonic_increasing
    assert sorted(scores.index) == sorted(set(speaker) - {"s0"})
    for name, score in scores.items():
        own = np.flatnonzero(speaker == name)
        pairs = [(group.predictions.target[k].tolist(), entry.probs[s, k].tolist()) for k in own for s in range(2)]
        assert score == pytest.approx(np.mean([reference.js(y, p) for y, p in pairs]), abs=1e-6)


def test_the_grid_holds_every_point_and_how_often_it_was_chosen(group: Group) -> None:
    found = analysis.grid_map(group.mains[0])
    assert found is not None
    js, chosen = found
    assert (js.index.tolist(), js.columns.tolist()) == ([0.3, 0.5, 0.7], [2.0, 4.0, 8.0])
    assert chosen.to_numpy().tolist() == [[3, 0, 0], [0, 0, 0], [0, 0, 0]]
    rows = read_results(group.runs[0].path)
    own = [row for row in rows if (row["system"], row["head"], row["split"]) == ("amber2", "fusion", "dev")]
    for mai, kappa in GRID:
        scores = [row["js"] for row in own if (row["lambda_mai"], row["kappa"]) == (mai, kappa)]
        assert js.loc[mai, kappa] == pytest.approx(np.mean(scores))
    assert analysis.grid_map(group.mains[1]) is None


def test_where_more_than_lambda_and_kappa_varies_the_best_stands_in_the_grid(group: Group) -> None:
    import pandas as pd

    run = group.runs[0]
    worse = run.results.assign(hidden=128, js=run.results["js"] + 1, selected=0)
    results = pd.concat([run.results.assign(hidden=64), worse], ignore_index=True)
    (both,) = grouped([replace(run, axes=(*run.axes, "hidden"), results=results)])
    found, before = analysis.grid_map(both.mains[0]), analysis.grid_map(group.mains[0])
    assert found is not None
    assert before is not None
    for ours, theirs in zip(found, before, strict=True):
        np.testing.assert_allclose(ours, theirs)


# --- heads that predict nothing for some utterances ---

LACKING = {"audio": [1, 7, 8, 40], "text": [0, 2, 8, 9, 60, 61, 119]}


@pytest.fixture(scope="module")
def partial(tmp_path_factory: pytest.TempPathFactory) -> Group:
    """Where neither audio nor text is there, the fusion is; such an utterance has no expert."""
    place = tmp_path_factory.mktemp("partial")
    write_run(place / "run", Sketch(count=120, seeds=2, grid=GRID, lacking=LACKING))
    return grouped([read_run(place / "run")])[0]


def text_of(group: Group) -> Entry:
    return group.heads(group.mains[0])["text"]


def test_scores_confusion_and_votes_are_of_the_predicted_utterances(partial: Group) -> None:
    from sklearn.metrics import confusion_matrix

    entry, target, bins = text_of(partial), partial.predictions.target, analysis.bins_of(partial)
    own = [k for k in range(120) if k not in LACKING["text"]]
    assert entry.rows.tolist() == own
    scores = analysis.scores_by_bin(partial, entry, bins)
    for b in range(len(bins.counts)):
        inside = [k for k in own if bins.member[k] == b]
        for seed in range(2):
            loop = [reference.js(target[k].tolist(), entry.probs[seed, k].tolist()) for k in inside]
            if inside:
                assert scores["js"][seed, b] == pytest.approx(np.mean(loop), abs=1e-6)
    label = [reference.argmax(y.tolist()) for y in target[own]]
    theirs = sum(confusion_matrix(label, probs.argmax(1), labels=range(4)) for probs in entry.probs[:, own])
    np.testing.assert_allclose(analysis.confusion_shares(partial, entry), theirs / theirs.sum(1, keepdims=True))
    votes = analysis.vote_shares(partial, entry)
    np.testing.assert_allclose(votes.sum(1), 1, rtol=1e-5)
    confidence, _, share = analysis.reliability(partial, entry)
    assert np.nansum(confidence * share) == pytest.approx(entry.probs[:, own].max(-1).mean(), abs=1e-6)
    assert share.sum() == pytest.approx(1)
    rated, predicted = analysis.entropies(partial, entry)
    assert len(rated) == len(predicted) == len(own)
    assert np.isfinite(predicted).all()


def test_an_expert_that_is_not_there_has_weight_0_and_without_any_there_is_none(partial: Group) -> None:
    weights = analysis.expert_weights(partial, partial.mains[0])
    conflict = analysis.disagreement(partial, partial.mains[0])
    assert weights is not None
    assert conflict is not None
    heads = partial.heads(partial.mains[0])
    for k, y in enumerate(partial.predictions.target.tolist()):
        own = [m for m in ("audio", "text") if k not in LACKING[m]]
        assert np.isnan(conflict[k]) == (len(own) < 2)
        if not own:
            assert all(np.isnan(u[k]) for u in weights.values())
            continue
        of_seeds = [reference.expert_weights(y, [heads[m].probs[s, k].tolist() for m in own], 2.0) for s in range(2)]
        expected = dict.fromkeys(("audio", "text"), 0.0) | dict(zip(own, np.mean(of_seeds, axis=0), strict=True))
        for m, u in weights.items():
            assert u[k] == pytest.approx(expected[m], abs=1e-6)


def test_speakers_are_scored_on_what_is_predicted_of_them(partial: Group) -> None:
    entry = text_of(partial)
    speaker = np.array([f"s{k % 5}" for k in range(120)], dtype=object)
    speaker[LACKING["text"]] = "nobody hears him"
    scores = analysis.speaker_scores(partial, entry, speaker)
    assert sorted(scores.index) == [f"s{k}" for k in range(5)]
    assert np.isfinite(scores).all()
