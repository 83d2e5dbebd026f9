"""What the formulas say, written as slow loops, to check the fast code against. Imports nothing of ours.

Distributions are sequences of floats, one utterance at a time; a data set is a list of them. Only the training loop at
the end uses torch: plain `nn.functional` on one utterance after the other, and `torch.optim.AdamW`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

Distribution = Sequence[float]

# --- one utterance: votes ---


def ticks_with_secondary(ticks: Sequence[tuple[str, str]], secondary: str) -> list[list[str]]:
    """The words of every rater, in order: the primary ones, then those of "RATER: word,word; RATER: word"."""
    ballots: dict[str, list[str]] = {}
    for rater, word in ticks:
        ballots.setdefault(rater, []).append(word)
    names = "|".join(map(re.escape, ballots))
    _, *parts = re.split(rf"(?:^|; )({names}): ", secondary)
    for rater, words in zip(parts[::2], parts[1::2], strict=True):
        for word in re.split("; |,", words):
            if word.strip() and word.strip() not in ballots[rater]:
                ballots[rater].append(word.strip())
    return list(ballots.values())


def counted(ballots: Sequence[Sequence[str]], emotions: Sequence[str], multi_label: str) -> list[Fraction]:
    """The votes for each emotion; words beside them take part in the ballot of a rater, and count for nothing."""
    votes = [Fraction(0)] * len(emotions)
    for words in ballots:
        for word in words[:1] if multi_label == "first" else words:
            if word in emotions:
                votes[emotions.index(word)] += Fraction(1, len(words) if multi_label == "split" else 1)
    return votes


# --- one utterance: divergences, in bits ---


def entropy(p: Distribution) -> float:
    total = 0.0
    for share in p:
        if share > 0:
            total -= share * math.log2(share)
    return total


def kl(p: Distribution, q: Distribution) -> float:
    total = 0.0
    for p_c, q_c in zip(p, q, strict=True):
        if p_c > 0:
            if q_c == 0:
                return math.inf
            total += p_c * math.log2(p_c / q_c)
    return total


def js(p: Distribution, q: Distribution) -> float:
    middle = [(p_c + q_c) / 2 for p_c, q_c in zip(p, q, strict=True)]
    return kl(p, middle) / 2 + kl(q, middle) / 2


def js_distance_nats(p: Distribution, q: Distribution) -> float:
    return math.sqrt(js(p, q) * math.log(2))


def bhattacharyya(p: Distribution, q: Distribution) -> float:
    return sum(math.sqrt(p_c * q_c) for p_c, q_c in zip(p, q, strict=True))


def r2(p: Distribution, q: Distribution) -> float:
    if len(p) < 3:  # two points always lie on one line
        return math.nan
    mean_p, mean_q = sum(p) / len(p), sum(q) / len(q)
    covariance = variance_p = variance_q = 0.0
    for p_c, q_c in zip(p, q, strict=True):
        covariance += (p_c - mean_p) * (q_c - mean_q) / len(p)
        variance_p += (p_c - mean_p) ** 2 / len(p)
        variance_q += (q_c - mean_q) ** 2 / len(p)
    return covariance**2 / (variance_p * variance_q + 1e-10)


def argmax(p: Distribution) -> int:
    best = 0
    for c, share in enumerate(p):
        if share > p[best]:
            best = c
    return best


# --- a data set: metrics ---


def accuracy(target: Sequence[Distribution], probs: Sequence[Distribution]) -> float:
    return sum(argmax(y) == argmax(p) for y, p in zip(target, probs, strict=True)) / len(target)


def accuracy_untied(target: Sequence[Distribution], probs: Sequence[Distribution]) -> float:
    untied = [i for i, y in enumerate(target) if list(y).count(max(y)) == 1]
    return accuracy([target[i] for i in untied], [probs[i] for i in untied]) if untied else math.nan


def uar(target: Sequence[Distribution], probs: Sequence[Distribution]) -> float:
    recalls = []
    for c in range(len(target[0])):
        found = [argmax(p) == c for y, p in zip(target, probs, strict=True) if argmax(y) == c]
        if found:
            recalls.append(sum(found) / len(found))
    return sum(recalls) / len(recalls)


def balanced(score: Callable[[Distribution, Distribution], float]) -> Callable[..., float]:
    """The mean over the classes that are somebody's label of the mean score over the utterances of each."""

    def mean(target: Sequence[Distribution], probs: Sequence[Distribution]) -> float:
        by_label: dict[int, list[float]] = {}
        for y, p in zip(target, probs, strict=True):
            by_label.setdefault(argmax(y), []).append(score(y, p))
        return sum(sum(scores) / len(scores) for scores in by_label.values()) / len(by_label)

    return mean


def f1(rated: Sequence[bool], predicted: Sequence[bool]) -> float:
    hits = sum(r and p for r, p in zip(rated, predicted, strict=True))
    return 2 * hits / (sum(rated) + sum(predicted)) if sum(rated) + sum(predicted) else 0.0


def macro_f1(target: Sequence[Distribution], probs: Sequence[Distribution]) -> float:
    labels, predictions = [argmax(y) for y in target], [argmax(p) for p in probs]
    occurring = sorted({*labels, *predictions})
    return sum(f1([x == c for x in labels], [x == c for x in predictions]) for c in occurring) / len(occurring)


def weighted_f1(target: Sequence[Distribution], probs: Sequence[Distribution]) -> float:
    labels, predictions = [argmax(y) for y in target], [argmax(p) for p in probs]
    total = 0.0
    for c in set(labels):
        total += labels.count(c) / len(labels) * f1([x == c for x in labels], [x == c for x in predictions])
    return total


def macro_f1_threshold(target: Sequence[Distribution], probs: Sequence[Distribution]) -> float:
    classes = len(target[0])
    return (
        sum(f1([y[c] > 1 / classes for y in target], [p[c] > 1 / classes for p in probs]) for c in range(classes))
        / classes
    )


def ece(target: Sequence[Distribution], probs: Sequence[Distribution], bins: int = 10) -> float:
    total = 0.0
    for b in range(bins):
        members = [i for i, p in enumerate(probs) if b / bins < max(p) <= (b + 1) / bins]
        if members:
            hits = sum(argmax(target[i]) == argmax(probs[i]) for i in members) / len(members)
            confidence = sum(max(probs[i]) for i in members) / len(members)
            total += len(members) / len(probs) * abs(hits - confidence)
    return total


# --- Emo_ent: the text decides where the audio is spread evenly ---


def nats(p: Distribution) -> float:
    return -sum(share * math.log(share) for share in p if share > 0)


def varentropy(p: Distribution) -> float:
    h = nats(p)
    return sum(share * (math.log(share) + h) ** 2 for share in p if share > 0)


def quantile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def steps(values: Sequence[float], low: float, high: float, count: int) -> list[float]:
    first, last = quantile(values, low), quantile(values, high)
    return [first + (last - first) * k / (count - 1) for k in range(count)]


def precision_of_flags(
    audio: Sequence[Distribution], target: Sequence[Distribution], c: int, least: float, most: float
) -> tuple[float, int]:
    """The share of wrong ones among those predicted as c that are flagged, and how many are flagged."""
    flagged = wrong = 0
    for p, y in zip(audio, target, strict=True):
        if argmax(p) == c and nats(p) >= least and varentropy(p) <= most:
            flagged += 1
            wrong += argmax(y) != c
    return (wrong / flagged if flagged else 0.0), flagged


def class_of_sentiment(sentiment: Sequence[float], p: Distribution, emotions: Sequence[str]) -> int:
    name = {0: "negative", 1: "neutral", 2: "happy"}[argmax(sentiment)]
    if name == "negative":
        name = "sad" if p[emotions.index("sad")] > p[emotions.index("angry")] else "angry"
    return emotions.index(name)


# --- losses ---


def expert_weights(target: Distribution, experts: Sequence[Distribution], kappa: float) -> list[float]:
    powers = [math.exp(-kappa * js(expert, target)) for expert in experts]
    return [power / sum(powers) for power in powers]


def mai(target: Distribution, student: Distribution, experts: Sequence[Distribution], kappa: float) -> float:
    weights = expert_weights(target, experts, kappa)
    return sum(weight * js(student, expert) for weight, expert in zip(weights, experts, strict=True))


def amber(
    target: Sequence[Distribution],
    heads: Sequence[Sequence[Distribution]],
    *,
    student: int,
    lambda_rai: float,
    lambda_mai: float,
    lambda_expert: float,
    kappa: float,
) -> float:
    """Mean loss of a batch; heads[m][i] is what head m says of utterance i."""
    total = 0.0
    for i, y in enumerate(target):
        experts = [head[i] for m, head in enumerate(heads) if m != student]
        total += lambda_rai * js(y, heads[student][i])
        total += lambda_mai * mai(y, heads[student][i], experts, kappa)
        total += lambda_expert * sum(js(y, expert) for expert in experts)
    return total / len(target)


def class_balanced_weights(target: Sequence[Distribution]) -> list[float]:
    classes, total = len(target[0]), len(target)
    beta = (total - 1) / total
    weights = []
    for c in range(classes):
        count = sum(y[c] > 1 / classes for y in target)
        weights.append((1 - beta) / (1 - beta ** max(count, 1)))
    return [classes * weight / sum(weights) for weight in weights]


def class_balanced_cross_entropy(
    target: Sequence[Distribution], probs: Sequence[Distribution], weights: Sequence[float]
) -> float:
    """Mean over the batch, in nats; every probability must be above 0."""
    total = 0.0
    for y, p in zip(target, probs, strict=True):
        weight = sum(w_c * y_c for w_c, y_c in zip(weights, y, strict=True))
        total -= weight * sum(y_c * math.log(p_c) for y_c, p_c in zip(y, p, strict=True))
    return total / len(target)


def smooth_labels(target: Distribution, epsilon: float) -> list[float]:
    return [(1 - epsilon) * y_c + epsilon * (1 - y_c) / (len(target) - 1) for y_c in target]


def soft_cross_entropy(target: Sequence[Distribution], probs: Sequence[Distribution]) -> float:
    """Mean over the batch, in nats."""
    pairs = [(y_c, p_c) for y, p in zip(target, probs, strict=True) for y_c, p_c in zip(y, p, strict=True)]
    return -sum(y_c * math.log(p_c) for y_c, p_c in pairs if y_c > 0) / len(target)


# --- evidence: Dirichlet distributions, in nats ---


def digamma(x: float) -> float:
    found = 0.0
    while x < 10:
        found -= 1 / x
        x += 1
    return found + math.log(x) - 1 / (2 * x) - 1 / (12 * x**2) + 1 / (120 * x**4) - 1 / (252 * x**6)


def votes_in_order(alpha: Sequence[float], votes: Sequence[int]) -> float:
    """−ln of the probability of whole votes, drawn one by one, each by α and the votes before it."""
    total, seen = 0.0, [0] * len(alpha)
    for c, count in enumerate(votes):
        for _ in range(int(count)):
            total -= math.log((alpha[c] + seen[c]) / (sum(alpha) + sum(seen)))
            seen[c] += 1
    return total


def votes_alone(alpha: Sequence[float], votes: Sequence[float]) -> float:
    return -sum(n * math.log(a / sum(alpha)) for a, n in zip(alpha, votes, strict=True))


def squared_error(alpha: Sequence[float], target: Distribution) -> float:
    strength, total = sum(alpha), 0.0
    for a, y in zip(alpha, target, strict=True):
        p = a / strength
        total += (y - p) ** 2 + p * (1 - p) / (strength + 1)
    return total


def misleading_evidence(alpha: Sequence[float], target: Distribution) -> float:
    kept = [y + (1 - y) * a for a, y in zip(alpha, target, strict=True)]
    total = math.lgamma(sum(kept)) - math.lgamma(len(kept))
    for a in kept:
        total += (a - 1) * (digamma(a) - digamma(sum(kept))) - math.lgamma(a)
    return total


def prior_network(alpha: Sequence[float], votes: Sequence[float], floor: float = 1e-6) -> float:
    total = 0.0
    for c, n in enumerate(votes):
        density = math.lgamma(sum(alpha))
        for j, a in enumerate(alpha):
            share = 1 - (len(alpha) - 1) * floor if j == c else floor
            density += (a - 1) * math.log(share) - math.lgamma(a)
        total -= n * density
    return total


def evidential(kind: str, evidence: str, outputs: Sequence[float], votes: Sequence[int], weight: float) -> float:
    """One utterance's loss; `weight` is that of the regulariser now."""
    share = [n / sum(votes) for n in votes]
    powers = [math.exp(z) for z in outputs]
    if kind == "dpn":
        divergence = kl(share, [power / sum(powers) for power in powers]) * math.log(2)
        return 20 * divergence + prior_network([power + 1e-6 for power in powers], votes)
    made = {"softplus": lambda z: math.log1p(math.exp(z)), "relu": lambda z: max(z, 0.0), "exp": math.exp}
    alpha = [made[evidence](z) + 1 for z in outputs]
    if kind == "sensoy":
        label = [float(c == argmax(share)) for c in range(len(share))]
        return squared_error(alpha, label) + weight * misleading_evidence(alpha, label)
    if kind == "edl-star-r2":
        divergence = kl(share, [a / sum(alpha) for a in alpha]) * math.log(2)
        return votes_alone(alpha, votes) + weight * divergence
    tied = weight * misleading_evidence(alpha, share)
    if kind == "edl-star-r1":
        return votes_alone(alpha, votes) + tied
    return votes_in_order(alpha, votes) / sum(votes) + tied


# --- one model, one training ---


def fused_vector(parameters: Mapping[str, Tensor], vectors: Mapping[str, Tensor], fusion: str) -> Tensor:
    """The fused vector of one utterance, from vectors (D_m,)."""
    joined = torch.cat(list(vectors.values()))
    if fusion == "concat":
        return joined
    if fusion == "deep":
        return deep_vector(parameters, vectors, list(vectors))
    if fusion == "self-gate":
        return torch.sigmoid(functional.linear(joined, parameters["fusion.gate.weight"])) * joined
    values = {
        m: torch.tanh(functional.linear(h, parameters[f"fusion.projection.{m}.weight"])) for m, h in vectors.items()
    }
    fused = torch.zeros_like(next(iter(values.values())))
    if fusion == "softmax-gate":
        scores = [functional.linear(value, parameters["fusion.score.weight"]) for value in values.values()]
        for share, value in zip(torch.softmax(torch.cat(scores), 0), values.values(), strict=True):
            fused = fused + share * value
        return fused
    gate = torch.sigmoid(functional.linear(joined, parameters["fusion.gate.weight"]))
    if len(values) == 2:
        first, second = values.values()
        return gate * first + (1 - gate) * second
    width = len(fused)
    for m, value in enumerate(values.values()):
        fused = fused + gate[m * width : (m + 1) * width] * value
    return fused


def fused_vector_of_some(
    parameters: Mapping[str, Tensor], vectors: Mapping[str, Tensor], fusion: str, sizes: Mapping[str, int]
) -> Tensor:
    """The fused vector of one utterance that has only the modalities of `vectors`, of those of `sizes` (D_m).

    Of every weight only the rows and columns of these are used. What a concatenation has no part of is zero.
    """
    if len(vectors) == len(sizes):
        return fused_vector(parameters, {m: vectors[m] for m in sizes}, fusion)
    if fusion == "deep":
        return deep_vector(parameters, {m: vectors[m] for m in sizes if m in vectors}, list(sizes))
    columns, end = {}, 0
    for m, size in sizes.items():
        columns[m] = range(end, end + size)
        end += size
    own = [column for m in sizes if m in vectors for column in columns[m]]
    some = {m: vectors[m] for m in sizes if m in vectors}
    if fusion in ("concat", "self-gate"):
        whole = torch.zeros(end, dtype=next(iter(some.values())).dtype)
        parts = dict(parameters)
        if fusion == "self-gate":
            parts["fusion.gate.weight"] = parameters["fusion.gate.weight"][own][:, own]
        return whole.index_put((torch.tensor(own),), fused_vector(parts, some, fusion))
    if fusion == "softmax-gate":
        return fused_vector(parameters, some, fusion)
    values = {m: torch.tanh(functional.linear(h, parameters[f"fusion.projection.{m}.weight"])) for m, h in some.items()}
    if len(sizes) == 2:
        return next(iter(values.values()))
    fused = torch.zeros_like(next(iter(values.values())))
    gates = parameters["fusion.gate.weight"].chunk(len(sizes))
    for place, m in enumerate(sizes):
        if m in some:
            gate = torch.sigmoid(functional.linear(torch.cat(list(some.values())), gates[place][:, own]))
            fused = fused + gate * values[m]
    return fused


def deep_vector(parameters: Mapping[str, Tensor], vectors: Mapping[str, Tensor], modalities: Sequence[str]) -> Tensor:
    """[h3 of every modality; f3] of one utterance, by `torch.nn.TransformerEncoderLayer`; 0 for what lacks."""
    legs = {m: deep_leg(parameters, f"fusion.leg.{m}", h.unsqueeze(0)) for m, h in vectors.items()}
    _, f2 = deep_leg(parameters, "fusion.joint1", torch.cat([h1 for h1, _ in legs.values()]))
    _, last = deep_leg(parameters, "fusion.joint2", torch.cat([*(h2 for _, h2 in legs.values()), f2]))
    f3 = last.mean(0)
    return torch.cat([*(legs[m][1].mean(0) if m in legs else torch.zeros_like(f3) for m in modalities), f3])


def deep_leg(parameters: Mapping[str, Tensor], name: str, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """h1 and h2 of tokens (T, D)."""
    x = functional.linear(tokens, parameters[f"{name}.in.weight"], parameters[f"{name}.in.bias"]).relu()
    x = functional.linear(x, parameters[f"{name}.out.weight"], parameters[f"{name}.out.bias"])
    h1 = encoder_layer(parameters, f"{name}.encoder1", x)
    return h1, encoder_layer(parameters, f"{name}.encoder2", h1)


def encoder_layer(parameters: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    """torch's encoder layer of a transformer on tokens (T, width), with our parameters."""
    width = x.shape[-1]
    layer = torch.nn.TransformerEncoderLayer(width, math.gcd(4, width), 2 * width, dropout=0, dtype=x.dtype)
    theirs = {
        "self_attn.in_proj_weight": parameters[f"{name}.attention.in.weight"],
        "self_attn.in_proj_bias": parameters[f"{name}.attention.in.bias"],
    }
    parts = {"self_attn.out_proj": "attention.out", "linear1": "feed.in", "linear2": "feed.out"}
    for their, ours in parts.items():
        theirs |= {f"{their}.{kind}": parameters[f"{name}.{ours}.{kind}"] for kind in ("weight", "bias")}
    for norm in ("norm1", "norm2"):
        theirs[f"{norm}.weight"] = 1 + parameters[f"{name}.{norm}.weight"][:, 0]
        theirs[f"{norm}.bias"] = parameters[f"{name}.{norm}.bias"]
    made: Tensor = torch.func.functional_call(layer, theirs, (x,))
    return made


def head_logits(
    parameters: Mapping[str, Tensor],
    vectors: Mapping[str, Tensor],
    fusion: str,
    sizes: Mapping[str, int] | None = None,
) -> dict[str, Tensor]:
    """Logits (classes,) of one utterance by head: the modalities in the order of `vectors`, then "fusion".

    Parameters are named `heads.<head>.{hidden,output}.{weight,bias}`, `fusion.projection.<modality>.weight`,
    `fusion.gate.weight` and `fusion.score.weight`. `sizes` gives every modality's D_m, where `vectors` lacks some.
    """
    fused = fused_vector_of_some(parameters, vectors, fusion, sizes or {m: len(h) for m, h in vectors.items()})
    return {
        head: output_of_head(parameters, head, hidden_of_head(parameters, head, h))
        for head, h in {**vectors, "fusion": fused}.items()
    }


def hidden_of_head(parameters: Mapping[str, Tensor], head: str, h: Tensor) -> Tensor:
    """A head's hidden units before their activation."""
    return functional.linear(h, parameters[f"heads.{head}.hidden.weight"], parameters[f"heads.{head}.hidden.bias"])


def output_of_head(parameters: Mapping[str, Tensor], head: str, hidden: Tensor) -> Tensor:
    weight, bias = (parameters[f"heads.{head}.output.{name}"] for name in ("weight", "bias"))
    return functional.linear(functional.relu(hidden), weight, bias)


def js_tensor(p: Tensor, q: Tensor) -> Tensor:
    """JS in bits of two distributions (classes,), zeros allowed in p."""
    middle = torch.log((p + q) / 2)
    nats = functional.kl_div(middle, p, reduction="sum") / 2 + functional.kl_div(middle, q, reduction="sum") / 2
    return nats / math.log(2)


def amber_tensor(
    target: Tensor,
    logits: Mapping[str, Tensor],
    *,
    student: str,
    lambda_rai: float,
    lambda_mai: float,
    lambda_expert: float,
    kappa: float,
    weight_gradient: Literal["detach", "flow"],
) -> Tensor:
    """The loss of one utterance, from logits (classes,) by head; without those that it has not got."""
    probs = {head: functional.softmax(x, dim=-1) for head, x in logits.items()}
    experts = [p for head, p in probs.items() if head != student]
    loss = torch.zeros_like(target[0])
    if student in probs:
        loss = loss + lambda_rai * js_tensor(target, probs[student])
    if experts:
        distances = torch.stack([js_tensor(target, p) for p in experts])
        loss = loss + lambda_expert * distances.sum()
        if student in probs:
            weights = torch.softmax(-kappa * (distances.detach() if weight_gradient == "detach" else distances), dim=0)
            disagreements = torch.stack([js_tensor(probs[student], p) for p in experts])
            loss = loss + lambda_mai * (weights * disagreements).sum()
    return loss


def train_reference(
    parameters: Mapping[str, Tensor],
    vectors: Mapping[str, Tensor],
    target: Tensor,
    batches: Sequence[Sequence[Sequence[int]]],
    *,
    system: Literal["amber2", "cb-ce"] = "amber2",
    fusion: str = "gmu",
    student: str = "fusion",
    lambda_rai: float = 1.0,
    lambda_mai: float = 0.5,
    lambda_expert: float = 0.0,
    kappa: float = 4.0,
    weight_gradient: Literal["detach", "flow"] = "detach",
    class_weights: Sequence[float] | None = None,
    learning_rate: float = 3e-4,
    weight_decay: float = 1e-2,
    lacking: Mapping[str, Sequence[int]] | None = None,
) -> list[dict[str, Tensor]]:
    """Train one model from the given initial parameters; what it has become after each epoch, one dict per epoch.

    `vectors` are (N, D_m) by modality, `target` (N, classes), `batches` one list per epoch of lists of rows, in the
    order in which they are seen. Only "cb-ce" reads `class_weights`. `lacking` names the rows without a modality.
    """
    lacking, sizes = lacking or {}, {m: h.shape[1] for m, h in vectors.items()}
    trained = {name: value.clone().requires_grad_() for name, value in parameters.items()}
    optimizer = torch.optim.AdamW(trained.values(), lr=learning_rate, weight_decay=weight_decay)
    epochs = []
    for epoch in batches:
        for rows in epoch:
            loss = torch.zeros((), dtype=target.dtype)
            for row in rows:
                own = {m: h[row] for m, h in vectors.items() if row not in lacking.get(m, ())}
                logits = head_logits(trained, own, fusion, sizes)
                if system == "cb-ce":
                    assert class_weights is not None
                    utterance_weight = sum(w * y for w, y in zip(class_weights, target[row].tolist(), strict=True))
                    for x in logits.values():
                        loss = loss + utterance_weight * functional.cross_entropy(x, target[row])
                else:
                    loss = loss + amber_tensor(
                        target[row], logits, student=student, lambda_rai=lambda_rai, lambda_mai=lambda_mai,
                        lambda_expert=lambda_expert, kappa=kappa, weight_gradient=weight_gradient,
                    )  # fmt: skip
            optimizer.zero_grad()
            (loss / len(rows)).backward()  # type: ignore[no-untyped-call]
            for value in (
                trained.values() if lacking else ()
            ):  # a batch in which nobody has a head is a step all the same
                value.grad = torch.zeros_like(value) if value.grad is None else value.grad
            optimizer.step()
        epochs.append({name: value.detach().clone() for name, value in trained.items()})
    return epochs


# --- recipes ---


def annotations_left(
    votes: Sequence[float], droppable: Sequence[bool], keys: Sequence[float], share: float
) -> list[float]:
    """The votes of one utterance after annotation dropout, by a key for each vote in the order of classes."""
    ballots = [c for c, count in enumerate(votes) for _ in range(int(count + 1e-4))]
    may_go = sorted((keys[k], k) for k, c in enumerate(ballots) if droppable[c])
    if share * len(ballots) < 1 - 1e-9:
        may_go = [pair for pair in may_go if pair[0] < share]
        most = len(ballots) - 1
    else:
        most = min(max(1, math.floor(share * len(ballots) + 1e-9)), len(ballots) - 1)
    left = list(votes)
    for _, k in may_go[:most]:
        left[ballots[k]] -= 1
    return left


def mixed_with(
    labels: Sequence[int], majority: Sequence[bool], draws: Sequence[Sequence[float]], p: float
) -> list[int]:
    """Whom each utterance is mixed with: one of a class drawn as 1 / its utterances, or itself where it is not."""
    minority = [c for c, is_majority in enumerate(majority) if not is_majority and c in labels]
    weights = [1 / list(labels).count(c) for c in minority]
    partners = []
    for i, (label, (whether, which_class, which)) in enumerate(zip(labels, draws, strict=True)):
        if not minority or not majority[label] or whether >= p:
            partners.append(i)
            continue
        passed, k = weights[0] / sum(weights), 0
        while which_class >= passed and k < len(minority) - 1:
            k += 1
            passed += weights[k] / sum(weights)
        members = [j for j, other in enumerate(labels) if other == minority[k]]
        partners.append(members[int(which * len(members))])
    return partners


Step = tuple[list[Mapping[str, Tensor]], list[Tensor], list[tuple[int, float]]]


def train_recipe(
    parameters: Mapping[str, Tensor],
    epochs: Sequence[tuple[float, Sequence[float], Sequence[Step]]],
    *,
    fusion: str,
    pointwise: bool,
    weight_decay: float,
) -> list[dict[str, Tensor]]:
    """Train one model on class-weighted cross-entropies; what it has become after each epoch.

    An epoch is its learning rate, its class weights and its steps: each the vectors and targets of a batch's
    utterances, and with whom each is mixed in its hidden units, at which share of its own. `pointwise`: heads read
    vectors through three layers.
    """
    trained = {name: value.clone().requires_grad_() for name, value in parameters.items()}
    optimizer = torch.optim.AdamW(trained.values(), lr=1.0, weight_decay=weight_decay)
    history = []
    for rate, weights, steps in epochs:
        optimizer.param_groups[0]["lr"] = rate
        for vectors, targets, mixing in steps:
            hidden = [recipe_hidden(trained, each, fusion, pointwise) for each in vectors]
            loss = torch.zeros((), dtype=targets[0].dtype)
            for i, (j, share) in enumerate(mixing):
                y = share * targets[i] + (1 - share) * targets[j]
                for head in hidden[i]:
                    logits = output_of_head(trained, head, share * hidden[i][head] + (1 - share) * hidden[j][head])
                    loss = loss - (torch.tensor(weights) * y * functional.log_softmax(logits, -1)).sum()
            optimizer.zero_grad()
            (loss / len(vectors)).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        history.append({name: value.detach().clone() for name, value in trained.items()})
    return history


def recipe_hidden(
    parameters: Mapping[str, Tensor], vectors: Mapping[str, Tensor], fusion: str, pointwise: bool
) -> dict[str, Tensor]:
    """The hidden units of every head before their activation, of one utterance's vectors (D_m,)."""
    own = fused = dict(vectors)
    if pointwise:
        own = {m: pointwise_pooling(parameters, f"heads.{m}", h.unsqueeze(0)) for m, h in vectors.items()}
        fused = {m: pointwise_pooling(parameters, f"fusion.inputs.{m}", h.unsqueeze(0)) for m, h in vectors.items()}
    read = {**own, "fusion": fused_vector(parameters, fused, fusion)}
    return {head: hidden_of_head(parameters, head, h) for head, h in read.items()}


def layer_sum(scores: Tensor, layers: Tensor) -> Tensor:
    """Σ_l softmax(a)_l h_l of one utterance: a (layers,), h (layers, D)."""
    powers = [math.exp(score) for score in scores.tolist()]
    shares = [power / sum(powers) for power in powers]
    return sum((share * layer for share, layer in zip(shares, layers, strict=True)), torch.zeros_like(layers[0]))


def attentive_pooling(parameters: Mapping[str, Tensor], prefix: str, frames: Tensor) -> Tensor:
    """[μ; σ] of one utterance's frames (T, D), weighed by v·tanh(W x + b)."""
    scores = []
    for frame in frames:
        hidden = parameters[f"{prefix}.attention.weight"] @ frame + parameters[f"{prefix}.attention.bias"]
        scores.append((parameters[f"{prefix}.score.weight"][0] @ hidden.tanh()).item())
    shares = [math.exp(score) / sum(math.exp(s) for s in scores) for score in scores]
    mean = sum((a * x for a, x in zip(shares, frames, strict=True)), torch.zeros_like(frames[0]))
    square = sum((a * x * x for a, x in zip(shares, frames, strict=True)), torch.zeros_like(frames[0]))
    return torch.cat((mean, (square - mean * mean).clamp_min(1e-5).sqrt()))


def pointwise_pooling(parameters: Mapping[str, Tensor], prefix: str, frames: Tensor) -> Tensor:
    """Three layers of each of one utterance's frames (T, D), ReLU after the first two, then the mean."""
    made = []
    for frame in frames:
        x = frame
        for k in range(3):
            x = parameters[f"{prefix}.conv{k}.weight"] @ (x.relu() if k else x) + parameters[f"{prefix}.conv{k}.bias"]
        made.append(x)
    return torch.stack(made).mean(0)


def supervised_contrast(
    anchors: Sequence[Sequence[float]],
    groups: Sequence[int | None],
    queue: Sequence[Sequence[float]],
    queue_groups: Sequence[int | None],
    temperature: float,
) -> float:
    """Supervised contrast of LDDU, one anchor after the other; a group None: not there."""
    keys = list(zip([*anchors, *queue], [*groups, *queue_groups], strict=True))
    losses = []
    for a, (anchor, group) in enumerate(zip(anchors, groups, strict=True)):
        if group is None:
            continue
        others = [(key, own) for k, (key, own) in enumerate(keys) if k != a and own is not None]
        scores = [sum(x * y for x, y in zip(anchor, key, strict=True)) / 2 / temperature for key, _ in others]
        whole = math.log(sum(math.exp(score) for score in scores))
        alike = [score - whole for score, (_, own) in zip(scores, others, strict=True) if own == group]
        losses.append(-sum(alike) / len(alike) if alike else 0.0)
    return sum(losses) / len(losses)


def symmetric_kl_of_softmax(first: Sequence[float], second: Sequence[float]) -> float:
    """½ KL(u‖v) + ½ KL(v‖u) of two softmaxes, in nats."""
    u, v = ([math.exp(x) / sum(math.exp(y) for y in some) for x in some] for some in (first, second))
    return sum(a * math.log(a / b) + b * math.log(b / a) for a, b in zip(u, v, strict=True)) / 2
