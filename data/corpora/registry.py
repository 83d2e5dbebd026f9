"""From the name of a corpus and a place on disk to the corpus, through the one module that reads it."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, cast

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
# what is described by a table, of which a user may say where its recordings are and what its columns mean
TABLES = ("manifest", "hf")

_log = logging.getLogger(__name__)


class Reader(Protocol):
    """What every reader module offers."""

    ORIGIN: str  # one line for who does not have it: what the root is, and where it comes from

    def read(self, root: Path, **settings: Any) -> Corpus:
        """The corpus at a root that exists; `TABLES` take settings.

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


def read_corpus(
    name: str, root: str | Path, *, audio_root: Path | None = None, columns: Sequence[str] = (), warns: bool = True
) -> Corpus:
    """The corpus of that name at a root.

    Args:
        name: of its reader.
        root: where it lies.
        audio_root: where the recordings of a table lie.
        columns: roles of a table's columns, as ``id=filename``.
        warns: whether the log tells of problems; not where they are listed anyway.

    Raises:
        CorpusError: no reader has that name, the root is not there, a file is missing or cannot be parsed, or it is no
            table of a user's own, and something is said of one.
        SettingError: a column has a role that there is not.
    """
    module, root = reader(name), Path(root)
    settings: dict[str, Any] = {}
    if audio_root is not None or columns:
        if name not in TABLES:
            raise CorpusError(f"--audio-root and --column are for tables ({', '.join(TABLES)}), not for {name!r}")
        from ..manifest_columns import named_columns

        settings = {"audio_root": audio_root, "columns": named_columns(columns)}
    if not os.path.exists(root):
        raise CorpusError(f"No corpus {name!r} at {root}. {module.ORIGIN}")
    corpus = module.read(root, **settings)
    if corpus.problems and warns:
        _log.warning("%s was not read without problems%s; check-corpus lists all", root, first_of(corpus.problems))
    return corpus
