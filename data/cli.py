"""The command `check-corpus`: the name of a corpus in, what there is and what is wrong with it out."""

from __future__ import annotations

import json
from pathlib import Path

import click

from amber2_core.command import INCOMPLETE, command_body


@click.command()
@click.option("--corpus", required=True, help="Name of a corpus, such as iemocap, msp_podcast, crema_d or manifest.")
@click.option(
    "--root",
    help="Where the corpus lies (a manifest: its file). [default: AMBER2_<CORPUS>_ROOT, else ./corpora/<corpus>]",
)
@click.option(
    "--emotions",
    metavar="LIST",
    help="Label space, in order, or its name: iemocap-4, iemocap-9, msp-podcast-8, msp-podcast-4, crema-d-6. "
    "[default: the corpus's own]",
)
@click.option("--stimulus", help="Whose votes: audio, video, audiovisual. [default: the corpus's own]")
@click.option(
    "--raters",
    default="external",
    show_default=True,
    help="Other people's votes, or the speaker's own too: external, all.",
)
@click.option(
    "--multi-label", default="pooled", show_default=True, help="A rater's several ticks: pooled, split, first."
)
@click.option("--out-of-space", default="drop", show_default=True, help="Votes outside the label space: drop, other.")
@click.option(
    "--merge", metavar="LIST", help="Count a word for an emotion, as excited=happy; none. [default: the corpus's own]"
)
@click.option("--keep", help="Utterances: consensus, plurality, majority, any-vote. [default: the corpus's own]")
@click.option("--figure", type=click.Path(path_type=Path), help="Draw it, too: a .png, .pdf or .svg file.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@command_body
def check_corpus(
    corpus: str, root: str | None, figure: Path | None, as_json: bool, **options: str | None
) -> int | None:
    """Look at a corpus before encoding it: utterances, hours, speakers, raters, labels, and all that is wrong with it.

    The headers of all recordings are read. The exit code is 3 when recordings are missing or cannot be read, or when
    no utterance has a label under the policy that the options name.
    """
    from amber2_core.label_spaces import policy_of

    from .check import check, check_recordings, describe
    from .corpora.registry import corpus_root, read_corpus

    if figure is not None:
        from .figure import check_figure_path, draw

        check_figure_path(figure)
    found = read_corpus(corpus, corpus_root(corpus, root))
    policy = policy_of(found.defaults, options)
    recordings = check_recordings(found)
    record = check(found, policy, recordings)
    click.echo(json.dumps(record, indent=2, ensure_ascii=False) if as_json else describe(record))
    if figure is not None:
        draw(record, [seconds for seconds in recordings.seconds if seconds is not None], figure)
    return INCOMPLETE if "labels_error" in record or recordings.missing or recordings.unreadable else None
