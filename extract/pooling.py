"""Hidden states of a padded batch go in; one vector per utterance comes out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def mask_of(lengths: Sequence[int], *, device: torch.device | str = "cpu") -> Tensor:
    """(batch, longest) bool, True at the first `lengths[i]` places of row i."""
    places = torch.arange(max(lengths), device=device)
    return places < torch.tensor(lengths, device=device)[:, None]


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
