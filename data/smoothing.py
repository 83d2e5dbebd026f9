"""Label smoothing and its inverse: EMO-SUPERB hands out distributions that are smoothed already."""

from __future__ import annotations

from collections.abc import Mapping

EMO_SUPERB_EPSILON = 0.05
ROUNDING = 5e-4  # of shares that were written with three digits; one vote of a hundred is far more


def smoothed(shares: Mapping[str, float], epsilon: float = EMO_SUPERB_EPSILON) -> dict[str, float]:
    """y' = (1 − ε) y + ε (1 − y) / (C − 1) for C classes.

    >>> smoothed({"happy": 1.0, "sad": 0.0})
    {'happy': 0.95, 'sad': 0.05}
    """
    others = len(shares) - 1
    return {name: (1 - epsilon) * share + epsilon * (1 - share) / others for name, share in shares.items()}


def unsmoothed(shares: Mapping[str, float], epsilon: float = EMO_SUPERB_EPSILON) -> dict[str, float]:
    """y = (y' − ε / (C − 1)) / (1 − ε C / (C − 1)), the inverse of `smoothed`; rounding below 0 becomes 0.

    Raises:
        ValueError: a share lies below what smoothing gives to a class that nobody chose.
    """
    floor = smoothing_floor(len(shares), epsilon)
    for name, share in shares.items():
        if share < floor - ROUNDING:
            raise ValueError(f"{share:g} for {name} is below {floor:g}, the least that smoothing leaves")
    scale = 1 - epsilon * len(shares) / (len(shares) - 1)
    return {name: max(0.0, (share - floor) / scale) for name, share in shares.items()}


def restored(shares: Mapping[str, float]) -> dict[str, float]:
    """EMO-SUPERB's shares before they were smoothed; what is left of rounding to few digits becomes 0.

    Raises:
        ValueError: as `unsmoothed`.
    """
    return {name: share if share > 2 * ROUNDING else 0.0 for name, share in unsmoothed(shares).items()}


def smoothing_floor(classes: int, epsilon: float = EMO_SUPERB_EPSILON) -> float:
    """What smoothing makes of a share of 0."""
    return epsilon / (classes - 1)
