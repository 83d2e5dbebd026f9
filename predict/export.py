"""From a run folder to a heads folder, written whole and read back."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from amber2_core.errors import RunFolderError
from amber2_core.files import folder_written_whole, sha256_of, write_json, write_text

from .card import card
from .chosen import Chosen, choose
from .folder import CARD, CONFIG, read_folder


def export_heads(
    run: Path,
    output: Path,
    *,
    system: str | None = None,
    fold: int | None = None,
    seed: int | None = None,
    ensemble: bool = False,
    onnx: bool = False,
) -> Chosen:
    """Write models of a run as a heads folder, which is read back before it stands under its name.

    Args:
        output: the folder; nothing may stand under its name.
        system, fold, seed, ensemble: as of `choose`.
        onnx: whether the heads are written as a graph, too, and compared with the graph's own predictions.

    Raises:
        RunFolderError: as `choose`, or the place cannot be written.
        SettingError: as `choose`.
        ModelError: the graph cannot be written, or predicts otherwise.
    """
    chosen = choose(run, system=system, fold=fold, seed=seed, ensemble=ensemble)
    names = chosen.heads.config["members"]
    if output.exists():
        raise RunFolderError(f"{output} exists already: name another folder with --output, or remove that one")
    try:
        with folder_written_whole(output) as writing:
            for name, model in zip(names, chosen.models, strict=True):
                shutil.copyfile(model.path, writing / name)
            config = {**chosen.heads.config, "digests": {name: sha256_of(writing / name) for name in names}}
            write_json(writing / CONFIG, config)
            write_text(writing / CARD, card(config, graph=onnx))
            heads = read_folder(writing)
            if onnx:
                from .graph import write_graph

                write_graph(writing, heads)
    except OSError as problem:
        raise RunFolderError(f"Cannot write {output}: {problem.strerror}; nothing stands under that name") from None
    return replace(chosen, heads=heads)
