"""Models of a run: which of them are meant, and what is known of their training."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from amber2_core.errors import RunFolderError, SettingError, bad_choice
from amber2_core.heads_folder import TrainedHeads, read_tensors
from amber2_core.kinds import DISTRIBUTION, MULTI_LABEL
from amber2_core.metrics import METRICS_OF, evaluate
from amber2_core.run_folder import Predictions, Row, read_predictions, read_results, read_settings, summarise

from .folder import FORMAT, FORMAT_VERSION, HeadsFolder, check_alike, facts_of
from .members import cannot_predict, read_member, refused

NAMED = re.compile(r"(?P<system>.+)-fold(?P<fold>\d+)-seed(?P<seed>\d+)\.safetensors")
SPLITS = ("dev", "test")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Model:
    """One saved model of a run."""

    system: str
    fold: int
    seed: int
    path: Path
    # JS on dev of the head that decides, of presence −macro F1; infinite where dev has no such head
    dev_loss: float = math.inf


@dataclass(frozen=True, eq=False)
class Chosen:
    """Models of one system of a run, and the heads folder that they make."""

    models: tuple[Model, ...]
    heads: HeadsFolder


def choose(
    run: Path,
    *,
    system: str | None = None,
    fold: int | None = None,
    seed: int | None = None,
    ensemble: bool = False,
) -> Chosen:
    """The models of a run that are asked for.

    Args:
        system: None: of those that predict new speech the one with the lowest dev JS of the head that decides, averaged
            over folds and seeds; of presence, where no other is there, the highest macro F1.
        fold: None: any.
        seed: None: any.
        ensemble: all models of these folds and seeds, each of the setting that dev chose in its fold; else the one of
            them with the lowest such dev JS.

    Raises:
        RunFolderError: not a run folder, damaged, or without such models; a model is not as it should be.
        SettingError: there is no such system, fold or seed; what is asked for predicts no new speech; or an ensemble
            whose members read or tell different things.
    """
    rows = read_results(run)
    kinds = read_settings(run).get("kinds", {})
    models = _saved(run, rows)
    name = _system(models, system, kinds)
    own = [model for model in models if model.system == name]
    for what, value in (("fold", fold), ("seed", seed)):
        known = sorted({getattr(model, what) for model in own})
        if value is not None and value not in known:
            raise SettingError(bad_choice(what, value, known))
    own = [model for model in own if fold in (None, model.fold) and seed in (None, model.seed)]
    if not ensemble:
        own = [min(own, key=lambda model: (model.dev_loss, model.fold, model.seed))]
        _log.info("%s of fold %d, seed %d: dev %s", name, own[0].fold, own[0].seed, _told(own[0].dev_loss, kinds, name))
    members = [read_member(model.path, within=run) for model in own]
    config = _config(run, rows, own, members)
    with refused(run):
        check_alike(members, config)
    return Chosen(tuple(own), HeadsFolder(tuple(members), config))


def _saved(run: Path, rows: Sequence[Row]) -> list[Model]:
    """The models in heads/, by system, fold and seed, with the dev score that results.csv has of them."""
    folder, found = run / "heads", []
    dev = {_key(row): row for row in rows if row["split"] == "dev" and row["selected"]}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if match := NAMED.fullmatch(path.name):
            system, fold, seed = match["system"], int(match["fold"]), int(match["seed"])
            heads = {key[1]: row for key, row in dev.items() if (key[0], *key[2:]) == (system, fold, seed)}
            found.append(Model(system, fold, seed, path, _decisive(heads)))
    if not found:
        raise RunFolderError(f"{run} holds no trained heads: train again")
    return sorted(found, key=lambda model: (model.system, model.fold, model.seed))


def _key(row: Row) -> tuple[Any, ...]:
    return row["system"], row["head"], row["fold"], row["seed"]


def _decisive(heads: Mapping[str, Row]) -> float:
    """`Model.dev_loss` of the student, else the fusion, else the only head, of rows by head."""
    student = str(next(iter(heads.values()), {}).get("student"))
    row = next((heads[name] for name in (student, "fusion") if name in heads), next(iter(heads.values()), {}))
    losses = _finite(row.get("js")), _finite(row.get("ml_macro_f1"))
    return losses[0] if losses[0] is not None else math.inf if losses[1] is None else -losses[1]


def _told(loss: float, kinds: Mapping[str, str], system: str) -> str:
    """A `Model.dev_loss` as it is called."""
    return f"ml_macro_f1 {-loss:.4f}" if kinds.get(system) == MULTI_LABEL else f"js {loss:.4f}"


def _system(models: Sequence[Model], wanted: str | None, kinds: Mapping[str, str]) -> str:
    """The system asked for, or the best of those whose models predict; one of presence where there is no other."""
    names = list(dict.fromkeys(model.system for model in models))
    if wanted is not None and wanted not in names:
        raise SettingError(bad_choice("system", wanted, names))
    why = {name: cannot_predict(read_tensors(next(m.path for m in models if m.system == name))[1]) for name in names}
    if wanted is not None:
        if why[wanted]:
            raise SettingError(f"Cannot export {wanted}: its heads {why[wanted]}")
        return wanted
    able = {name: float(np.mean([m.dev_loss for m in models if m.system == name])) for name in names if not why[name]}
    if not able:
        name = names[0]
        raise SettingError(f"Cannot export {name}: its heads {why[name]}")
    best = min(able, key=lambda name: (kinds.get(name) == MULTI_LABEL, able[name]))
    if len(names) > 1:
        _log.info("%s: dev %s, the best of %s", best, _told(able[best], kinds, best), ", ".join(able))
    return best


def _config(run: Path, rows: Sequence[Row], models: Sequence[Model], members: Sequence[TrainedHeads]) -> dict[str, Any]:
    """config.json of these models, which have facts in common; nothing tells where things lie on this machine."""
    settings, facts = read_settings(run), facts_of(members[0])
    metrics = METRICS_OF[facts["kind"]]
    names, system = [f"heads-{number}.safetensors" for number in range(1, len(models) + 1)], models[0].system
    said = {"dropped": {}, "missing": {}, **settings.get("utterances", {})}
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "members": names,
        **facts,
        "corpus": {
            "name": settings.get("corpus", ""), "version": settings.get("corpus_version", ""), "utterances": said,
        },
        "protocol": dict(settings.get("folds", {})),
        "metrics": {
            "system": {
                split: dict(summarise(rows, split=split, kinds={system: facts["kind"]}).get(system, {}))
                for split in SPLITS
            },
            "members": [
                {"file": name, "fold": model.fold, "seed": model.seed, **_scores(rows, model, metrics)}
                for name, model in zip(names, models, strict=True)
            ],
            "ensemble": _of_ensemble(run, rows, models, members),
        },
        "remarks": list(settings.get("remarks", {}).get(system, [])),
        "versions": dict(settings.get("versions", {})),
    }  # fmt: skip


def _scores(rows: Sequence[Row], model: Model, metrics: Iterable[str]) -> dict[str, dict[str, dict[str, float | None]]]:
    """Split → head → metric of one model; None for what is no number."""
    found: dict[str, dict[str, dict[str, float | None]]] = {split: {} for split in SPLITS}
    own = (model.system, model.fold, model.seed)
    for row in rows:
        if row["selected"] and row["split"] in SPLITS and (row["system"], row["fold"], row["seed"]) == own:
            found[row["split"]][row["head"]] = {name: _finite(row.get(name)) for name in metrics if name in row}
    return found


def _of_ensemble(
    run: Path, rows: Sequence[Row], models: Sequence[Model], members: Sequence[TrainedHeads]
) -> dict[str, dict[str, float | None]]:
    """Head → metric of the mean of each fold's seeds on that fold's test, averaged over folds.

    Members of other folds have learnt from a fold's test utterances, so they have no say there: an ensemble over folds
    cannot be scored on its own corpus. Empty where no fold has several models.
    """
    system, predictions = models[0].system, read_predictions(run)
    seeds = sorted({row["seed"] for row in rows if row["system"] == system and row["split"] == "test"})
    folds = {fold: [seeds.index(m.seed) for m in models if m.fold == fold] for fold in {m.fold for m in models}}
    if max(map(len, folds.values())) < 2:
        return {}
    found, thresholds = {}, dict.fromkeys(folds)
    if members[0].model.architecture.kind == MULTI_LABEL:
        of_models = [(model.fold, one.origin["threshold"]) for model, one in zip(models, members, strict=True)]
        thresholds = {fold: np.mean([own for k, own in of_models if k == fold]) for fold in folds}
    for name, probs in predictions.probs.items():
        if name.partition("/")[0] == system and len(probs) == len(seeds):
            found[name.partition("/")[2]] = _mean_scores(predictions, probs, folds, thresholds)
    return found


def _mean_scores(
    predictions: Predictions, probs: Any, folds: Mapping[int, Sequence[int]], thresholds: Mapping[int, Any]
) -> dict[str, float | None]:
    """Metric → mean over folds of the mean of some seeds (places in `probs`), at a threshold of presence if any."""
    scores: list[Mapping[str, Any]] = []
    for fold, places in sorted(folds.items()):
        rows = predictions.folds[fold]
        mean = probs[list(places)][:, rows].astype(np.float64).mean(0)  # (n, C), NaN where a head predicts nothing
        there = ~np.isnan(mean).any(-1)
        if there.any():
            scores.append(evaluate(predictions.target[rows][there], mean[there], threshold=thresholds[fold]))
    metrics = METRICS_OF[DISTRIBUTION if None in thresholds.values() else MULTI_LABEL]
    return {name: _finite(np.mean([one[name] for one in scores])) if scores else None for name in metrics}


def _finite(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float | np.floating) and math.isfinite(value) else None
