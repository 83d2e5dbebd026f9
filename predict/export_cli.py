"""The command `export-heads`: models of a run in, one portable folder out, on a hub too if asked for."""

from __future__ import annotations

import json
from pathlib import Path

import click

from amber2_core.command import Command, command_body


@click.command(cls=Command, context_settings={"show_default": True, "max_content_width": 110})
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--output", required=True, type=click.Path(path_type=Path), help="The folder to write.")
@click.option("--system", help="System of the run. [default: of those that can, the one with the lowest dev JS]")
@click.option("--fold", type=click.IntRange(1), help="Models of this fold alone.")
@click.option("--seed", type=click.IntRange(0), help="Models of this seed alone.")
@click.option(
    "--ensemble",
    is_flag=True,
    help="All models of these folds and seeds, whose prediction is the mean. [default: the one with the lowest dev JS]",
)
@click.option("--onnx", is_flag=True, help="Write the heads as a graph, too, compared with onnxruntime to 1e-5.")
@click.option("--push", metavar="ID", help="Bring the folder to the Hugging Face hub, as owner/name; new ones private.")
@click.option("--public", is_flag=True, help="What --push makes is public. See the licences of corpus and encoders.")
@click.option("--json", "as_json", is_flag=True, help="Print config.json, and where the folder is, as JSON.")
@command_body
def export_heads(
    *,
    run: Path,
    output: Path,
    system: str | None,
    fold: int | None,
    seed: int | None,
    ensemble: bool,
    onnx: bool,
    push: str | None,
    public: bool,
    as_json: bool,
) -> None:
    """Make a folder of a run's trained heads that predicts without cache and run: weights, config, and a card.

    It is read back before it stands under its name. predict-emotion takes it, or the id that it was pushed to.
    """
    from amber2_core.errors import SettingError

    from .export import export_heads
    from .hub import check_id
    from .hub import push as pushed

    if onnx:
        from .graph import check_extra

        check_extra()
    if push is not None:
        check_id(push)
    elif public:
        raise SettingError("--public without --push: name the id that is to be public, or leave it out")
    chosen = export_heads(run, output, system=system, fold=fold, seed=seed, ensemble=ensemble, onnx=onnx)
    address = None if push is None else pushed(output, push, public=public)
    config = chosen.heads.config
    if as_json:
        click.echo(json.dumps({"folder": str(output), "pushed": address, **config}, indent=2, ensure_ascii=False))
        return
    first, count = chosen.models[0], len(chosen.models)
    which = f"fold {first.fold}, seed {first.seed}" if count == 1 else f"{count} models"
    click.echo(f"{output}: {config['system']}, {which}, head {chosen.heads.head}, {' '.join(chosen.heads.emotions)}")
    if address:
        click.echo(address)
