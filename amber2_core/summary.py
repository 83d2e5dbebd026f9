"""Rows of results.csv go in; mean and sd over seeds, of the mean over folds, come out."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from .csv_rows import Row
from .metrics import METRICS

# system → head → metric → {"mean", "sd"}
Summary = dict[str, dict[str, dict[str, dict[str, float | None]]]]


def summarise(rows: Sequence[Row]) -> Summary:
    """system → head → metric → mean and sd, over the test rows of the selected settings.

    A metric is averaged over the folds of each seed first, those with nothing to score (n 0) left out; mean and sd
    (ddof 1, None for a single seed) are over seeds. None for a head that was scored nowhere, or diverged.
    """
    table: Summary = {}
    tested = [row for row in rows if row["split"] == "test" and row["selected"]]
    for system, head in dict.fromkeys((row["system"], row["head"]) for row in tested):
        own = [row for row in tested if (row["system"], row["head"]) == (system, head)]
        seeds = sorted({row["seed"] for row in own})
        table.setdefault(system, {})[head] = {
            metric: _mean_and_sd([fold_mean([row for row in own if row["seed"] == seed], metric) for seed in seeds])
            for metric in METRICS
        }
    return table


def fold_mean(rows: Sequence[Row], metric: str) -> float:
    """A metric averaged over rows of results.csv, one per fold; NaN where no fold had anything to score."""
    values = [row[metric] for row in rows if row["n"]]
    return float(np.mean(np.array(values, dtype=np.float64))) if values else math.nan


def _mean_and_sd(per_seed: Sequence[float]) -> dict[str, float | None]:
    mean = float(np.mean(per_seed))
    sd = float(np.std(per_seed, ddof=1)) if len(per_seed) > 1 else math.nan
    return {"mean": mean if math.isfinite(mean) else None, "sd": sd if math.isfinite(sd) else None}
