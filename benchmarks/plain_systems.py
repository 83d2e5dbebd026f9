"""Every gradient system as one writes it down: modules, DataLoader, torch's AdamW, one model at a time.

Their sizes, losses, draws and schedules are those of the systems' defaults; nothing of the project's own is in them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stage2_workers import CLASSES, SIZE, WIDTH, timed, users_js
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from amber2_train.folds import make_folds
from amber2_train.training_data import read_material

Loss = Callable[[Tensor, Tensor], Tensor]  # logits (heads, batch, C), targets (batch, C) → ()


class Gated(nn.Module):
    """The gated unit of two modalities."""

    width = WIDTH

    def __init__(self, size: int) -> None:
        super().__init__()
        self.w_audio, self.w_text = (nn.Linear(size, WIDTH, bias=False) for _ in range(2))
        self.gate = nn.Linear(2 * size, WIDTH, bias=False)

    def forward(self, audio: Tensor, text: Tensor) -> Tensor:
        z = torch.sigmoid(self.gate(torch.cat([audio, text], -1)))
        return z * torch.tanh(self.w_audio(audio)) + (1 - z) * torch.tanh(self.w_text(text))


class Side(nn.Module):
    """Both vectors, side by side."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.width = 2 * size

    def forward(self, audio: Tensor, text: Tensor) -> Tensor:
        return torch.cat([audio, text], -1)


class PlainLeg(nn.Module):
    """A leg of MEDUSA."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(size, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH))
        self.one, self.two = (
            nn.TransformerEncoderLayer(WIDTH, 4, 2 * WIDTH, dropout=0, batch_first=True) for _ in range(2)
        )

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        h1 = self.one(self.first(tokens))
        return h1, self.two(h1)


class DeepFusion(nn.Module):
    """The deep fusion of MEDUSA, of one token from each modality."""

    width = 3 * WIDTH

    def __init__(self, size: int) -> None:
        super().__init__()
        self.audio, self.text, self.joint1, self.joint2 = (PlainLeg(n) for n in (size, size, WIDTH, WIDTH))

    def forward(self, audio: Tensor, text: Tensor) -> Tensor:
        a, t = self.audio(audio.unsqueeze(1)), self.text(text.unsqueeze(1))
        _, f2 = self.joint1(torch.cat([a[0], t[0]], 1))
        _, last = self.joint2(torch.cat([a[1], t[1], f2], 1))
        return torch.cat([a[1].mean(1), t[1].mean(1), last.mean(1)], -1)


def pointwise() -> nn.Module:
    """SAILER's three layers."""
    return nn.Sequential(nn.Linear(SIZE, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH))


class PlainHeads(nn.Module):
    """A head of each modality and one on their fusion."""

    def __init__(self, fusion: type[nn.Module], *, through_layers: bool = False) -> None:
        super().__init__()
        size = WIDTH if through_layers else SIZE
        self.inputs = nn.ModuleList(pointwise() if through_layers else nn.Identity() for _ in range(4))
        self.fusion = fusion(size)
        sizes = (size, size, self.fusion.width)
        self.hidden = nn.ModuleList(nn.Linear(n, WIDTH) for n in sizes)  # type: ignore[arg-type]
        self.output = nn.ModuleList(nn.Linear(WIDTH, CLASSES) for _ in sizes)

    def forward(self, audio: Tensor, text: Tensor, mixing: tuple[Tensor, Tensor] | None = None) -> Tensor:
        own_audio, own_text, for_audio, for_text = (
            layers(x) for layers, x in zip(self.inputs, (audio, text) * 2, strict=True)
        )
        read = (own_audio, own_text, self.fusion(for_audio, for_text))
        logits = []
        for x, hidden, output in zip(read, self.hidden, self.output, strict=True):
            units = hidden(x)
            if mixing is not None:
                partner, share = mixing
                units = share * units + (1 - share) * units[partner]
            logits.append(output(units.relu()))
        return torch.stack(logits)


@dataclass(frozen=True)
class PlainSystem:
    """What differs between the systems in a plain loop."""

    model: Callable[[], PlainHeads]
    loss: Callable[[Tensor], Loss]  # of all train targets
    # train tensors and the epoch → those of the epoch: audio, text, targets
    epoch: Callable[[Mapping[str, Tensor], int], tuple[Tensor, Tensor, Tensor]]
    batch: int = 128
    lr: float = 3e-4
    mixes: float = 0.0
    # epochs of a first stage, whose loss is `loss`; thereafter it is without weights, at a tenth of the rate
    first_stage: int | None = None


def amber_loss(train: Tensor) -> Loss:
    def loss(logits: Tensor, y: Tensor) -> Tensor:
        p_a, p_t, s = logits.softmax(-1)
        u = torch.softmax(-4 * torch.stack([users_js(p_a, y), users_js(p_t, y)]).detach(), dim=0)
        return (users_js(y, s) + 0.5 * (u[0] * users_js(s, p_a) + u[1] * users_js(s, p_t))).mean()

    return loss


def balanced_loss(train: Tensor) -> Loss:
    beta = (len(train) - 1) / len(train)
    w = (1 - beta) / (1 - beta ** (train > 1 / CLASSES).sum(0).clamp_min(1).double())
    w = (CLASSES * w / w.sum()).float()
    return lambda logits, y: -((w * y).sum(-1) * (y * logits.log_softmax(-1)).sum(-1)).mean(-1).sum()


def divergence(train: Tensor) -> Loss:
    return lambda logits, y: functional.kl_div(logits.log_softmax(-1), y.expand_as(logits), reduction="sum") / len(y)


def weighted_loss(train: Tensor) -> Loss:
    w = (len(train) / (CLASSES * train.sum(0))).sqrt()
    return lambda logits, y: -(w * y * logits.log_softmax(-1)).sum((0, 2)).mean()


def unweighted(logits: Tensor, y: Tensor) -> Tensor:
    return -(y * logits.log_softmax(-1)).sum((0, 2)).mean()


def votes_likelihood(train: Tensor) -> Loss:
    """The Dirichlet-multinomial likelihood of votes over their number, and a hundredth for evidence against them."""

    def loss(logits: Tensor, n: Tensor) -> Tensor:
        alpha, total = functional.softplus(logits) + 1, n.sum(-1)
        rest = alpha.sum(-1)
        likelihood = rest.lgamma() - (rest + total).lgamma() + ((alpha + n).lgamma() - alpha.lgamma()).sum(-1)
        y = n / total.unsqueeze(-1)
        other = y + (1 - y) * alpha
        whole = other.sum(-1, keepdim=True)
        tie = whole.squeeze(-1).lgamma() - other.lgamma().sum(-1)
        tie = tie + ((other - 1) * (other.digamma() - whole.digamma())).sum(-1)
        return (0.02 * tie - likelihood / total).mean(-1).sum()

    return loss


def agreed(train: Mapping[str, Tensor], epoch: int) -> tuple[Tensor, Tensor, Tensor]:
    """The utterances with one largest share, and that class."""
    top, label = train["targets"].topk(2, dim=-1)
    rows = torch.nonzero(top[:, 0] - top[:, 1] > 1e-6).flatten()
    return train["audio"][rows], train["text"][rows], functional.one_hot(label[rows, 0], CLASSES).float()


def voted(train: Mapping[str, Tensor], epoch: int) -> tuple[Tensor, Tensor, Tensor]:
    return train["audio"], train["text"], train["votes"].float()


def whole(train: Mapping[str, Tensor], epoch: int) -> tuple[Tensor, Tensor, Tensor]:
    return train["audio"], train["text"], train["targets"]


def dropped_and_mixed(train: Mapping[str, Tensor], epoch: int) -> tuple[Tensor, Tensor, Tensor]:
    """Votes dropped with probability .2, as of fewer than five; half of the majority's mixed with a minority's."""
    votes, labels, audio, text = train["votes"], train["targets"].argmax(-1), train["audio"], train["text"]
    majority = votes.sum(0) > votes.sum() / CLASSES
    kept = votes - torch.binomial(votes, torch.where(majority, 0.2, 0.0).expand_as(votes))
    kept = torch.where(kept.sum(-1, keepdim=True) > 0, kept, votes)
    y = kept / kept.sum(-1, keepdim=True)
    some = torch.nonzero(majority[labels] & (torch.rand(len(labels)) < 0.5)).flatten()
    rare = torch.nonzero(~majority[labels]).flatten()
    if not len(rare) or not len(some):
        return audio, text, y
    chances = 1.0 / labels.bincount(minlength=CLASSES)[labels[rare]].square()  # a class first, then one of it
    partners = rare[torch.multinomial(chances, len(some), replacement=True)]
    mixed = [x.clone() for x in (audio, text, y)]
    for x in mixed:
        x[some] = (x[some] + x[partners]) / 2
    return mixed[0], mixed[1], mixed[2]


def staged(train: Mapping[str, Tensor], epoch: int) -> tuple[Tensor, Tensor, Tensor]:
    """All for four epochs, then the same of each class and an eighth as many ambiguous ones."""
    if epoch <= 4:
        return whole(train, epoch)
    top, label = train["targets"].topk(2, dim=-1)
    agreed = top[:, 0] - top[:, 1] > 1e-6
    classes = [torch.nonzero(agreed & (label[:, 0] == c)).flatten() for c in range(CLASSES)]
    size = min(len(rows) for rows in classes if len(rows))
    rest = torch.nonzero(~agreed).flatten()
    ambiguous = rest[torch.randperm(len(rest))[: size * CLASSES // 8]]
    rows = torch.cat([*(rows[:size] for rows in classes), ambiguous])
    return train["audio"][rows], train["text"][rows], train["targets"][rows]


SYSTEMS: Mapping[str, PlainSystem] = {
    "amber2": PlainSystem(lambda: PlainHeads(Gated), amber_loss, whole),
    "cb-ce": PlainSystem(lambda: PlainHeads(Gated), balanced_loss, whole),
    "ldl-kl": PlainSystem(lambda: PlainHeads(Gated), lambda train: unweighted, whole),
    "majority-ce": PlainSystem(lambda: PlainHeads(Gated), lambda train: unweighted, agreed),
    "evidential": PlainSystem(lambda: PlainHeads(Gated), votes_likelihood, voted),
    "sailer": PlainSystem(lambda: PlainHeads(Side, through_layers=True), divergence, dropped_and_mixed, lr=5e-4),
    "medusa": PlainSystem(lambda: PlainHeads(DeepFusion), weighted_loss, staged, batch=32, mixes=0.3, first_stage=4),
}


def seconds_of_plain_loop(name: str, cache: Path, epochs: int, threads: int) -> float:
    """Of one training of one setting on the first fold, with the data in memory."""
    torch.set_num_threads(threads)
    material = read_material(cache, {"audio": None, "text": None}, {})
    fold, data = make_folds(material.cache.defaults.folds, material.data)[0], material.data
    arrays: dict[str, Any] = {
        name: data.inputs[name].values[: len(data.inputs[name].inputs)][data.rows] for name in ("audio", "text")
    }
    arrays |= {"targets": data.targets, "votes": data.votes}
    train, dev = (
        {key: torch.from_numpy(np.ascontiguousarray(x[rows])) for key, x in arrays.items()}
        for rows in (fold.train, fold.dev)
    )
    return timed(lambda: _trained(SYSTEMS[name], train, dev, epochs))


def parameters_of(name: str) -> int:
    """How many numbers the plain model learns."""
    return sum(parameter.numel() for parameter in SYSTEMS[name].model().parameters())


def _trained(system: PlainSystem, train: Mapping[str, Tensor], dev: Mapping[str, Tensor], epochs: int) -> None:
    model, weighted = system.model(), system.loss(train["targets"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=system.lr)
    for epoch in range(1, epochs + 1):
        first = system.first_stage is None or epoch <= system.first_stage
        for group in optimizer.param_groups:
            group["lr"] = system.lr if first else system.lr / 10
        loss = weighted if first else unweighted
        for audio, text, y in _batches(system.epoch(train, epoch), system.batch, shuffle=True):
            mixing = None
            if torch.rand(()) < system.mixes:
                share = torch.distributions.Beta(0.2, 0.2).sample((len(y), 1))
                mixing = torch.randperm(len(y)), share
                y = share * y + (1 - share) * y[mixing[0]]
            optimizer.zero_grad()
            loss(model(audio, text, mixing), y).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        with torch.no_grad():
            scored = [
                users_js(y, model(audio, text).softmax(-1)).mean(-1)
                for audio, text, y in _batches((dev["audio"], dev["text"], dev["targets"]), system.batch, shuffle=False)
            ]
            torch.stack(scored).mean(0)


def _batches(data: tuple[Tensor, Tensor, Tensor], size: int, *, shuffle: bool) -> Iterator[Any]:
    yield from DataLoader(TensorDataset(*data), batch_size=size, shuffle=shuffle)
