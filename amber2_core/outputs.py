"""What heads' outputs mean: maps from outputs (…, C) to log-probabilities (…, C), by the names in files of heads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from torch import Tensor

from amber2_core.dirichlet import EVIDENCE

SOFTMAX = "softmax"


def log_softmax(outputs: Tensor) -> Tensor:
    """Of logits."""
    return outputs.log_softmax(-1)


def log_mean(outputs: Tensor, *, evidence: Callable[[Tensor], Tensor]) -> Tensor:
    """ln α/S, the mean of the Dirichlet distribution of evidence, α = g(z) + 1."""
    alpha = evidence(outputs) + 1
    return alpha.log() - alpha.sum(-1, keepdim=True).log()


OUTPUTS: Mapping[str, Callable[[Tensor], Tensor]] = {
    SOFTMAX: log_softmax,
    **{f"evidence-{name}": partial(log_mean, evidence=of) for name, of in EVIDENCE.items()},
}
