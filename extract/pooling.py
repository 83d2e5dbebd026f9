"""Hidden states of a padded batch go in; one vector per utterance, or a short sequence, comes out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from amber2_core.devices import on


def mask_of(lengths: Sequence[int], *, device: torch.device | str = "cpu") -> Tensor:
    """(batch, longest) bool, True at the first `lengths[i]` places of row i."""
    places = torch.arange(max(lengths), device=device)
    return places < on(torch.device(device), torch.tensor(lengths))[:, None]


def masked_mean(hidden: Tensor, mask: Tensor) -> Tensor:
    """Mean over the valid places: Σ_t mask_t · h_t / Σ_t mask_t.

    Args:
        hidden: (batch, places, dimensions); what stands at invalid places, even NaN, does not count.
        mask: (batch, places) bool, at least one True in each row.

    Returns:
        (batch, dimensions), in float32 whatever the precision of `hidden`.
    """
    valid = mask[..., None]  # (batch, places, 1)
    total = torch.where(valid, hidden, 0).sum(dim=1, dtype=torch.float32)  # (batch, dimensions)
    return total / valid.sum(dim=1)


def binned(states: Tensor, most: int) -> Tensor:
    """A sequence in at most `most` bins: the means of stretches that differ by one place at most in length.

    Bin k of K holds the places ⌊kT/K⌋ to ⌊(k+1)T/K⌋; a sequence that is short enough stays as it is.

    Args:
        states: (T, dimensions).
        most: K.

    Returns:
        (min(T, K), dimensions) in float32.
    """
    places = len(states)
    if places <= most:
        return states.float()
    edges = torch.arange(most + 1, device=states.device) * places // most
    place = torch.arange(places, device=states.device)
    inside = (place >= edges[:-1, None]) & (place < edges[1:, None])  # (bins, places)
    # A product, not a scattered sum: its order is fixed on every device.
    return (inside / inside.sum(dim=1, keepdim=True)) @ states.float()
