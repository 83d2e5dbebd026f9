"""A heads folder as an ONNX graph beside it: named inputs, one output per head, compared with the heads' own numbers.

Inputs, by modality M: `M`, what `reads` says, float32 vectors (batch, D), layers (batch, layers, D) or frames
(batch, frames of M, D), these with `M.valid`, booleans (batch, frames of M); and `M.present`, booleans (batch,): False
where an utterance lacks the modality. A rule's `sentiment` is another one, of (batch, 3) probabilities. Outputs:
`probs.HEAD` (batch, classes) of every head, the mean over members, NaN where it predicts nothing, and `probs`, that of
the main head again. description.json tells all of it.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from amber2_core.errors import ModelError, SettingError
from amber2_core.files import write_json
from amber2_core.heads_folder import SENTIMENT
from amber2_extract.recipe import SENTIMENTS

from .folder import DESCRIPTION, GRAPH, HeadsFolder

FORMAT, FORMAT_VERSION = "amber2-onnx", 1
TOLERANCE = 1e-5
BATCHES = (1, 2, 7)  # none that the graph was written with
TRACED, FRAMES = 3, 5
VALID, PRESENT, PROBS = ".valid", ".present", "probs"


class Graph(torch.nn.Module):
    """The mean of a folder's members, of tensors in the order of `names`."""

    def __init__(self, heads: HeadsFolder) -> None:
        super().__init__()
        self.heads, self.names = heads, list(inputs_of(heads))
        models = heads.members if heads.at_once is None else (heads.at_once,)
        for m, model in enumerate(models):  # what is registered is stored once, by its name
            for k, parameter in enumerate(model.model.parameters.values()):
                self.register_buffer(f"model{m + 1}_{k}", parameter)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Tensors of all inputs → probabilities (batch, classes) of every head, and of the main one."""
        given, features, present = dict(zip(self.names, tensors, strict=True)), {}, {}
        for name in self.heads.reads:
            valid = given.get(name + VALID)
            features[name] = given[name] if valid is None else (given[name], valid)
            present[name] = given[name + PRESENT]
        probs = self.heads.probs(features, present)
        # the same tensor under two names is one output to ONNX
        return (*probs.values(), probs[self.heads.head] + 0.0)


def check_extra() -> None:
    """SettingError: the libraries that write and run graphs are not installed, or the heads cannot be a graph."""
    try:
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as problem:
        raise SettingError(f"--onnx needs {problem.name}, which is not installed: pip install 'amber2[onnx]'") from None


def write_graph(folder: Path, heads: HeadsFolder) -> None:
    """Write model.onnx and description.json, if onnxruntime predicts by them what the heads predict, to 1e-5.

    Raises:
        SettingError: as `check_extra`.
        ModelError: the graph cannot be written, or predicts something else.
    """
    check_extra()
    described, path = description(heads), folder / GRAPH
    vary = tuple(
        {k: torch.export.Dim.DYNAMIC for k, size in enumerate(told["shape"]) if isinstance(size, str)}
        for told in described["inputs"].values()
    )
    try:
        with _quiet():
            program = torch.onnx.export(
                Graph(heads).eval(), tuple(random_inputs(heads, TRACED).values()), dynamic_shapes=(vary,),
                input_names=list(described["inputs"]), output_names=list(described["outputs"]), dynamo=True,
                verbose=False,
            )  # fmt: skip
            assert program is not None
            _without_places(program.model.graph)
            program.save(path, external_data=False)
    except Exception as problem:  # the exporter's own classes
        raise ModelError(f"{path.name} cannot be written ({_line(problem)}): export without --onnx") from None
    write_json(folder / DESCRIPTION, described)
    check_graph(path, heads)


def check_graph(path: Path, heads: HeadsFolder) -> None:
    """Compare a graph with heads, on random utterances of which some lack a modality, in batches of several sizes.

    Raises:
        ModelError: it cannot be run, or a probability differs by more than 1e-5.
    """
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        for batch in BATCHES:
            given = random_inputs(heads, batch, seed=batch)
            found = session.run(None, {name: x.numpy() for name, x in given.items()})
            for some, own in zip(found, Graph(heads)(*given.values()), strict=True):
                torch.testing.assert_close(torch.from_numpy(some), own, rtol=0, atol=TOLERANCE, equal_nan=True)
    except AssertionError as problem:
        raise ModelError(f"{path.name} predicts other numbers ({_line(problem)}): export without --onnx") from None
    except Exception as problem:  # the runtime's own classes
        raise ModelError(f"{path.name} cannot be run ({_line(problem)}): export without --onnx") from None


def _line(problem: Exception) -> str:
    return " ".join(str(problem).split())[:200] or type(problem).__name__


def inputs_of(heads: HeadsFolder) -> dict[str, list[int | str]]:
    """Name → shape of every input; what may vary is a word."""
    shape = heads.members[0].model.architecture
    found: dict[str, list[int | str]] = {}
    for place, (name, size) in enumerate(shape.inputs):
        need, frames = heads.reads[name], f"frames of {name}"
        found[name] = ["batch", size]
        if need == "layers":
            found[name] = ["batch", shape.layer_counts[place], size]
        elif need == "frames":
            found[name], found[name + VALID] = ["batch", frames, size], ["batch", frames]
        found[name + PRESENT] = ["batch"]
    if SENTIMENT in heads.reads:
        found |= {SENTIMENT: ["batch", len(SENTIMENTS)], SENTIMENT + PRESENT: ["batch"]}
    return found


def description(heads: HeadsFolder) -> dict[str, Any]:
    """description.json: every input and output of the graph, by name."""
    kinds = {name: "bool" if name.endswith((VALID, PRESENT)) else "float32" for name in inputs_of(heads)}
    output = {"shape": ["batch", len(heads.emotions)], "dtype": "float32", "labels": list(heads.emotions)}
    outputs = [*(f"{PROBS}.{head}" for head in heads.heads), PROBS]
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "path": GRAPH,
        "inputs": {name: {"shape": shape, "dtype": kinds[name]} for name, shape in inputs_of(heads).items()},
        "outputs": dict.fromkeys(outputs, output),
        "main": heads.head,
        "reads": heads.reads,
        "features": heads.config["features"],
    }


def random_inputs(heads: HeadsFolder, batch: int, *, seed: int = 0) -> dict[str, Tensor]:
    """Input → random numbers; of some utterances a modality is missing, and of most some frames are."""
    stream, found = torch.Generator().manual_seed(seed), {}
    for name, shape in inputs_of(heads).items():
        sizes = [batch if size == "batch" else FRAMES + seed if isinstance(size, str) else size for size in shape]
        if name.endswith(PRESENT):
            found[name] = torch.rand(sizes, generator=stream) < 0.75
        elif name.endswith(VALID):
            lengths = torch.randint(1, sizes[1] + 1, (batch, 1), generator=stream)
            found[name] = torch.arange(sizes[1]) < lengths
        else:
            found[name] = torch.randn(sizes, generator=stream)
    return found


def _without_places(graph: Any) -> None:
    """Take away what the exporter notes of every node: the lines of source that made it, with their paths here."""
    for node in graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's warnings, which are about itself."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
