"""Evidential heads: each head's outputs are evidence for classes, and with it a Dirichlet over raters' distributions.

α = g(z) + 1 and S = Σ α; the prediction is p = α/S, and C/S says how little evidence there is. `--evidential` is the
loss, in nats, summed over heads, its mean over the batch; n are an utterance's M votes, y = n/M, ε = epoch / annealing:

    dm           the Dirichlet–multinomial likelihood of the votes / M + λ min(1, ε) R1; ours
    edl-star-r1  NLL* + λ min(1, ε) R1 (EDL*: Wu et al. 2024, arXiv 2402.12862, Eqs. 11–13)
    edl-star-r2  NLL* + λ min(1, ε) R2 (likewise)
    dpn          20 KL(y ‖ softmax z) − Σ_c n_c ln Dir(m_c; α), α = exp z + 1e-6, p = softmax z: the prior network of
                 Wu et al. 2022 (arXiv 2203.04443), as in the code of the authors (W-Wu/ERC-SLT22)
    sensoy       squared error + λ min(1, ε) R1 of the label, one-hot, where raters have one (Sensoy et al. 2018,
                 arXiv 1806.01768, Eq. 5 with its annealed KL term)

The formulas stand in `amber2_core.dirichlet`. As in EDL* itself, NLL* is a sum over votes: an utterance counts as often
as it was heard. λ = 0.02 is ours, small because R1 punishes right evidence for a split vote; EDL* has λ = 0.8 or 0.2
and names no annealing, Sensoy et al. λ = 1. With R2 nothing but α ≥ 1 ties S, so its vacuity carries little. Softplus
is the default because ReLU, of most of the papers' results, has no gradient where all outputs are negative; exp is
of outputs within ±10. `dpn` has neither λ nor g, sums over the batch in its code, and its α may be below 1: no vacuity.
Heads, fusion, optimiser and the choice of epochs by dev JS are this project's, on frozen features.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from amber2_core.errors import SettingError

from ..stacked.system import HeadSettings, Loss, StackedSystem
from .system import FoldData, LearnFrom, Rows, option

if TYPE_CHECKING:
    from torch import Tensor

    from .system import Floats

Kind = Literal["dm", "edl-star-r1", "edl-star-r2", "dpn", "sensoy"]
EvidenceFunction = Literal["softplus", "relu", "exp"]
PRIOR_NETWORK_KL = 20.0  # beside the likelihood of a prior network


@dataclass(frozen=True)
class EvidentialSettings(HeadSettings):
    """Which evidential loss, what evidence is made by, and λ with its annealing."""

    evidential: Kind = option("dm", "Evidential loss", choices=get_args(Kind))
    evidence: EvidenceFunction = option(
        "softplus", "What makes evidence of outputs, of all but dpn", choices=get_args(EvidenceFunction)
    )
    lambda_evidence: float = option(0.02, "Weight of what ties evidence, of all but dpn.", least=0)
    annealing: int = option(10, "Epochs in which that weight rises to its value; 1: it begins there.", least=1)


class Evidential(StackedSystem):
    """The losses above; its fusion head's vacuity and entropies are kept for every test utterance."""

    name = "evidential"
    Settings = EvidentialSettings

    def loss(self, settings: Sequence[Any], *, heads: Sequence[str], fold: FoldData) -> Loss:
        """See `StackedSystem.loss`; settings of one stack have one kind of loss and one evidence function."""
        like, term = fold.train.targets, _terms()[settings[0].evidential]
        weight = like.new_tensor([setting.lambda_evidence for setting in settings])  # (settings,)
        annealing = like.new_tensor([setting.annealing for setting in settings])

        def losses(outputs: Tensor, target: Tensor, present: Tensor | None, epoch: Tensor) -> Tensor:
            if present is not None:
                outputs = outputs.masked_fill(~present.unsqueeze(-1), 0.0)
            rising = weight * (epoch / annealing).clamp_max(1)
            each = term(outputs, _alpha(outputs, settings[0]), target, rising.unsqueeze(-1))
            if present is not None:
                each = each.masked_fill(~present, 0.0)
            return each.mean(-1).sum(0)

        return losses

    def outputs_mean(self, setting: EvidentialSettings) -> str:
        """α/S; of a prior network a softmax."""
        return "softmax" if setting.evidential == "dpn" else f"evidence-{setting.evidence}"

    def learns_from(self, setting: EvidentialSettings) -> LearnFrom:
        """Sensoy's loss is of a label: of utterances that have one."""
        return "plurality" if (setting.evidential, setting.learn_from) == ("sensoy", "all") else setting.learn_from

    def learnt(self, setting: EvidentialSettings, rows: Rows) -> Tensor:
        """The votes (n, C), of Sensoy's loss the label, one-hot. SettingError: votes are not known."""
        from amber2_core.losses import one_hot_labels

        if setting.evidential == "sensoy":
            return one_hot_labels(rows.targets)
        if rows.votes is None:
            raise SettingError(f"evidential {setting.evidential} learns from votes, and there are shares alone")
        return rows.votes.to(rows.targets)

    def shape(self, setting: EvidentialSettings) -> Hashable:
        """One kind of loss and one map from outputs to distributions in a stack."""
        return (super().shape(setting), setting.evidential, setting.evidence)

    def measures(self, fitted: Any, rows: Rows) -> Mapping[str, Floats]:
        """Of the fusion head (n,): vacuity C/S, and in nats H(p), its aleatoric part and the rest, the epistemic one.

        Of one modality alone its own head. Without vacuity for a prior network.
        """
        from amber2_core import dirichlet

        alpha = _alpha(list(fitted.outputs(rows).values())[-1].double(), fitted.setting)
        total, within = dirichlet.total_entropy(alpha), dirichlet.aleatoric(alpha)
        found = {"total": total, "aleatoric": within, "epistemic": total - within}
        if fitted.setting.evidential != "dpn":
            found = {"vacuity": dirichlet.vacuity(alpha), **found}
        return {name: values.numpy() for name, values in found.items()}

    def remarks(self, setting: EvidentialSettings) -> Sequence[str]:
        """See `System.remarks`."""
        heads = "heads on frozen features, AdamW and the epoch of the best dev JS are this project's"
        if setting.evidential == "dpn":
            return (f"dpn is the published loss, its mean over the batch instead of the sum; {heads}",)
        if setting.evidential == "dm":
            return (f"dm is this project's own loss, the Dirichlet-multinomial likelihood of the votes; {heads}",)
        published = "1" if setting.evidential == "sensoy" else "0.8 or 0.2, without annealing,"
        own = f"weight {setting.lambda_evidence:g}, annealed over {setting.annealing} epochs"
        return (f"{setting.evidential}: {own}, for the paper's {published}; {heads}",)


def _alpha(outputs: Tensor, setting: EvidentialSettings) -> Tensor:
    """The Dirichlet (…, C) of outputs (…, C)."""
    from amber2_core.dirichlet import DPN_FLOOR, EVIDENCE

    if setting.evidential == "dpn":
        return outputs.exp() + DPN_FLOOR
    return EVIDENCE[setting.evidence](outputs) + 1


def _terms() -> Mapping[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]]:
    """Each loss of outputs, α, what is learnt, all (…, batch, C), and λ now (…, 1) → (…, batch)."""
    from amber2_core import dirichlet as of

    def share(votes: Tensor) -> Tensor:
        return votes / votes.sum(-1, keepdim=True)

    def dm(z: Tensor, alpha: Tensor, votes: Tensor, weight: Tensor) -> Tensor:
        return of.marginal_nll(alpha, votes) / votes.sum(-1) + weight * of.misleading(alpha, share(votes))

    def r1(z: Tensor, alpha: Tensor, votes: Tensor, weight: Tensor) -> Tensor:
        return of.votes_nll(alpha, votes) + weight * of.misleading(alpha, share(votes))

    def r2(z: Tensor, alpha: Tensor, votes: Tensor, weight: Tensor) -> Tensor:
        log_p = alpha.log() - alpha.sum(-1, keepdim=True).log()
        return of.votes_nll(alpha, votes) + weight * of.kl(share(votes), log_p)

    def dpn(z: Tensor, alpha: Tensor, votes: Tensor, weight: Tensor) -> Tensor:
        return PRIOR_NETWORK_KL * of.kl(share(votes), z.log_softmax(-1)) + of.prior_network_nll(alpha, votes)

    def sensoy(z: Tensor, alpha: Tensor, label: Tensor, weight: Tensor) -> Tensor:
        return of.squared_error(alpha, label) + weight * of.misleading(alpha, label)

    return {"dm": dm, "edl-star-r1": r1, "edl-star-r2": r2, "dpn": dpn, "sensoy": sensoy}
