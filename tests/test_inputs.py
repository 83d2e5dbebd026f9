"""What heads learn to read: a sum of layers, and poolings of frames, against loops over one utterance."""

import math

import pytest
import torch
from reference import attentive_pooling, layer_sum, pointwise_pooling
from torch import Tensor

from amber2_core.heads import Architecture, Heads, Mixing, initial_parameters
from amber2_core.inputs import LAYER_NORMS, attentive_statistics, weighted_layers


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_a_learnt_layer_sum_is_that_of_the_published_vector() -> None:
    layers = torch.tensor([[[1.0, 2, 3], [2, 0, 1]], [[10.0, -10, 0], [4, 4, 1]]], dtype=torch.float64)  # layer, frame
    mean = layers.mean(1)[None]  # (1, layers, D)
    found = weighted_layers(mean, torch.tensor([[0.3, -0.2]], dtype=torch.float64))
    torch.testing.assert_close(found[0], torch.tensor([3.576474, -0.510163, 1.433689]).double(), atol=1e-6, rtol=0)


def test_a_sum_of_normed_layers_is_that_of_the_published_vector() -> None:
    layers = torch.tensor([[[1.0, 2, 3], [2, 0, 1]], [[10.0, -10, 0], [4, 4, 1]]], dtype=torch.float64)  # layer, frame
    stage = LAYER_NORMS["pooled"]("heads.audio", 3, 2)
    scores = {"heads.audio.layers.weight": torch.tensor([[0.3, -0.2]], dtype=torch.float64)}
    found = stage.vectors(layers.mean(1)[None], scores)
    torch.testing.assert_close(found[0], torch.tensor([0.501168, -1.172378, 0.671210]).double(), atol=1e-6, rtol=0)


def test_attentive_statistics_are_those_of_the_published_vector() -> None:
    x = torch.tensor([[1.0, 0], [2, 1], [0, 3]], dtype=torch.float64)
    weight, bias = torch.tensor([[0.5, -0.5], [0.25, 1]]).double(), torch.tensor([0.1, -0.2]).double()
    scores = (x @ weight.T + bias).tanh() @ torch.tensor([1.0, -1]).double()
    found = attentive_statistics(x[None], scores[None], torch.ones(1, 3, dtype=torch.bool))
    torch.testing.assert_close(
        found[0], torch.tensor([1.227651, 0.471972, 0.545881, 0.784663]).double(), atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("pooling", ["attentive", "pointwise", "layers"])
@pytest.mark.parametrize("fusion", ["gmu", "concat"])
def test_runs_that_learn_what_to_read_give_what_each_gives_alone(pooling: str, fusion: str) -> None:
    lengths, sizes = (4, 1, 3), {"audio": 5, "text": 3}
    shape = Architecture(
        tuple(sizes.items()),
        3,
        fusion,
        hidden=4,
        fusion_width=4,
        pooling="mean" if pooling == "layers" else pooling,
        layer_counts=(4, 2) if pooling == "layers" else (),
    )
    runs = [initial_parameters(shape, torch.Generator().manual_seed(k)) for k in range(2)]
    runs = [{name: x.double() + 0.1 * drawn(*x.shape, seed=7) for name, x in run.items()} for run in runs]
    stacked = {name: torch.stack([run[name] for run in runs])[None] for name in runs[0]}  # (1, 2, …)
    valid = torch.arange(4) < torch.tensor(lengths)[:, None]
    inputs: dict[str, object] = {}
    for k, (name, size) in enumerate(sizes.items()):
        if pooling == "layers":
            inputs[name] = drawn(3, shape.layer_counts[k], size, seed=k)
        else:
            inputs[name] = (drawn(3, 4, size, seed=k) * valid[..., None], valid)
    alone = [Heads(shape, run).logits(inputs) for run in runs]
    shared = {m: tuple(y[None, None] for y in x) if isinstance(x, tuple) else x[None, None] for m, x in inputs.items()}  # type: ignore[index]
    together = Heads(shape, stacked).logits(shared)  # (heads, 1, 2, 3, C)
    for k, expected in enumerate(alone):
        torch.testing.assert_close(together[:, 0, k], expected, atol=1e-12, rtol=0)


def test_input_stages_are_what_loops_over_utterances_give() -> None:
    frames, lengths = drawn(3, 4, 5), (4, 1, 3)
    valid = torch.arange(4) < torch.tensor(lengths)[:, None]
    for pooling, slow in (("attentive", attentive_pooling), ("pointwise", pointwise_pooling)):
        shape = Architecture((("audio", 5),), 3, pooling=pooling)
        made = initial_parameters(shape, torch.Generator().manual_seed(0))
        parameters = {name: x.double() + 0.1 * drawn(*x.shape, seed=3) for name, x in made.items()}
        found = Heads(shape, parameters).vectors({"audio": (frames, valid)})["audio"]
        for i, length in enumerate(lengths):
            torch.testing.assert_close(found[i], slow(parameters, "heads.audio", frames[i, :length]))
    shape = Architecture((("audio", 5),), 3, layer_counts=(4,))
    parameters = {"heads.audio.layers.weight": drawn(1, 4)}
    found = Heads(shape, parameters).vectors({"audio": frames})["audio"]
    for i in range(3):
        torch.testing.assert_close(found[i], layer_sum(parameters["heads.audio.layers.weight"][0], frames[i]))


def test_attention_starts_as_mean_and_standard_deviation_and_a_layer_sum_as_the_mean() -> None:
    frames = drawn(2, 6, 5).float()
    shape = Architecture((("audio", 5),), 3, pooling="attentive")
    parameters = initial_parameters(shape, torch.Generator().manual_seed(0))
    found = Heads(shape, parameters).vectors({"audio": (frames, torch.ones(2, 6, dtype=torch.bool))})["audio"]
    torch.testing.assert_close(found, torch.cat((frames.mean(1), frames.std(1, correction=0)), dim=-1))
    shape = Architecture((("audio", 5),), 3, layer_counts=(6,))
    parameters = initial_parameters(shape, torch.Generator().manual_seed(0))
    torch.testing.assert_close(Heads(shape, parameters).vectors({"audio": frames})["audio"], frames.mean(1))


@pytest.mark.parametrize("pooling", ["attentive", "pointwise", "pointwise-of-mean", "layers"])
def test_what_an_utterance_lacks_is_zero_and_changes_nothing(pooling: str) -> None:
    shape = Architecture(
        (("audio", 5), ("text", 5)),
        3,
        pooling="mean" if pooling == "layers" else pooling,
        layer_counts=(4, 4) if pooling == "layers" else (),
    )
    heads = Heads(shape, initial_parameters(shape, torch.Generator().manual_seed(0)))
    present = torch.tensor([True, False])

    def logits(filling: float) -> Tensor:
        x = drawn(2, 4, 5).float()
        x[1] = filling
        whole, valid = drawn(2, 4, 5, seed=1).float(), torch.ones(2, 4, dtype=torch.bool)
        inputs = {"audio": (x, valid), "text": (whole, valid)}
        if pooling == "layers":
            inputs = {"audio": x, "text": whole}  # type: ignore[dict-item]
        if pooling == "pointwise-of-mean":
            inputs = {"audio": x[:, 0], "text": whole[:, 0]}  # type: ignore[dict-item]
        return heads.logits(inputs, present={"audio": present})

    assert torch.equal(logits(0.0)[1:], logits(5.0)[1:])


def test_manifold_mixup_mixes_hidden_units_before_their_activation() -> None:
    shape = Architecture((("audio", 5),), 3, hidden=4)
    parameters = initial_parameters(shape, torch.Generator().manual_seed(0))
    x, partner, share = drawn(3, 5).float(), torch.tensor([1, 2, 0]), torch.tensor([0.3, 1.0, 0.5])
    found = Heads(shape, parameters).logits({"audio": x}, mixing=Mixing(partner, share))[0]
    hidden = x @ parameters["heads.audio.hidden.weight"].T + parameters["heads.audio.hidden.bias"]
    for i, (j, part) in enumerate(zip(partner.tolist(), share.tolist(), strict=True)):
        active = (part * hidden[i] + (1 - part) * hidden[j]).relu()
        expected = parameters["heads.audio.output.weight"] @ active + parameters["heads.audio.output.bias"]
        torch.testing.assert_close(found[i], expected)
    assert not math.isclose(found[0, 0].item(), Heads(shape, parameters).logits({"audio": x})[0, 0, 0].item())
