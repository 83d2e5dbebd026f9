"""From the name of a corpus and a place on disk to the corpus, through the one module that reads it."""

from __future__ import annotations

import logging
import os
from importlib import import_module
from pathlib import Path
from typing import Protocol, cast

from amber2_core.errors import CorpusError, bad_choice
from amber2_core.utterance import Corpus, LabelDefaults

from ..release import first_of

# name, as given to --corpus → module of this package; loaded only when it is asked for
READERS: dict[str, str] = {
    "crema_d": "crema_d",
    "hf": "hugging_face",
    "iemocap": "iemocap",
    "m3ed": "m3ed",
    "manifest": "manifest",
    "meld": "meld",
    "mosei": "mosei",
    "msp_podcast": "msp_podcast",
    "synthetic": "synthetic",
}

_log = logging.getLogger(__name__)


class Reader(Protocol):
    """What every reader module offers."""

    ORIGIN: str  # one line for who does not have it: what the root is, and where it comes from

    def read(self, root: Path) -> Corpus:
        """The corpus at a root that exists.

        Raises:
            CorpusError: a file is missing or cannot be parsed; the message names it, and the line.
        """
        ...


def reader(name: str) -> Reader:
    """The module that reads a corpus.

    Raises:
        CorpusError: no reader has that name.
    """
    if name not in READERS:
        raise CorpusError(bad_choice("corpus", name, READERS))
    return cast(Reader, import_module(f".{READERS[name]}", __package__))


def label_defaults(name: str) -> LabelDefaults:
    """How the corpus of that name is labelled by default.

    Raises:
        CorpusError: no reader has that name, or its labels are the user's own.
    """
    defaults = getattr(reader(name), "DEFAULTS", None)
    if not isinstance(defaults, LabelDefaults):
        raise CorpusError(f"The corpus {name!r} has no label defaults of its own: leave the name out")
    return defaults


def corpus_root(name: str, root_option: str | Path | None = None) -> Path:
    """Where a corpus lies: the option, else AMBER2_<NAME>_ROOT, else ./corpora/<name>.

    Raises:
        CorpusError: no reader has that name, or there is nothing at the place.
    """
    origin = reader(name).ORIGIN
    variable = f"AMBER2_{name.upper()}_ROOT"
    default = Path("corpora") / name
    root = Path(root_option or os.environ.get(variable) or default).expanduser()
    if not os.path.exists(root):
        raise CorpusError(
            f"No corpus {name!r} at {root}: give --root, set {variable}, or put it at ./{default.as_posix()}. {origin}"
        )
    return root


def read_corpus(name: str, root: str | Path) -> Corpus:
    """The corpus of that name at a root.

    Raises:
        CorpusError: no reader has that name, the root is not there, or a file is missing or cannot be parsed.
    """
    module, root = reader(name), Path(root)
    if not os.path.exists(root):
        raise CorpusError(f"No corpus {name!r} at {root}. {module.ORIGIN}")
    corpus = module.read(root)
    if corpus.problems:
        _log.warning("%s was not read without problems%s; check-corpus lists all", root, first_of(corpus.problems))
    return corpus
