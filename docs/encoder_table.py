"""The table of docs/encoders.md: small random architectures of transformers, tried as `check-encoder` does it.

`python docs/encoder_table.py` makes it anew, in a minute. The architectures are those of the tests.
"""

from __future__ import annotations

import logging
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "encoders.md"
sys.path.insert(0, str(ROOT / "tests"))

HEADER = ("architecture", "model", "family", "a batch against each alone", "encoded")
BLOCK = re.compile(r"(?<=<!-- check-encoder -->\n).*?(?=<!-- end -->)", re.S)


def architectures() -> Mapping[str, Callable[[Path], Any]]:
    """By name, what saves a small random checkpoint in a folder."""
    from small_families import SPECTRA, WINDOWED, save_family
    from small_models import (
        KIN,
        SPEECH_FAMILIES,
        TEXT_FAMILIES,
        TEXT_KIN,
        save_language_model,
        save_speech,
        save_t5,
        save_text,
    )

    found: dict[str, Callable[[Path], Any]] = {}
    found |= {name: partial(save_speech, family=name) for name in (*SPEECH_FAMILIES, *KIN)}
    found |= {name: partial(save_family, family=name) for name in (*SPECTRA, *WINDOWED)}
    found |= {name: partial(save_text, family=name) for name in (*TEXT_FAMILIES, *TEXT_KIN)}
    found |= {"qwen3": save_language_model, "t5": partial(save_t5, whole=True)}
    return {**found, "t5-encoder": partial(save_t5, whole=False)}


def tried(folder: Path, name: str) -> Iterator[dict[str, Any]]:
    """What `check-encoder` finds for an architecture with each window and pooling that it can have."""
    from amber2_extract.checkpoint import PREPROCESSOR, find_checkpoint
    from amber2_extract.encoders import AUDIO_POOLINGS, TEXT_POOLINGS, WINDOWS
    from amber2_extract.plan import plan_jobs
    from amber2_extract.trial import tried as found

    is_speech = any((folder / file).is_file() for file in PREPROCESSOR)
    checkpoint = find_checkpoint(str(folder), modality="audio" if is_speech else "text")
    for window in WINDOWS.get(checkpoint.model_type, (None,)):
        for pooling in AUDIO_POOLINGS if is_speech else TEXT_POOLINGS:
            settings = {"audio_pooling" if is_speech else "text_pooling": pooling, "window": window}
            models = (str(folder), None) if is_speech else (None, str(folder))
            (job,) = plan_jobs(*models, **settings)  # type: ignore[arg-type]
            yield {**found(job, "cpu"), "encoder": name}


def rows() -> Iterator[tuple[str, ...]]:
    """The rows of the table: one for each architecture and window, with the differences of all poolings."""
    for name, save in architectures().items():
        with tempfile.TemporaryDirectory() as folder:
            save(Path(folder) / name)
            for window, some in groupby(tried(Path(folder) / name, name), key=itemgetter("window")):
                found = list(some)
                told = ", ".join(f"{one['pooling']} {_difference(one)}" for one in found)
                encoded = "in batches" if all(one["batched"] for one in found) else "**one at a time**"
                family = found[0]["family"] + (f", {window}" if window else "")
                yield name, f"`{found[0]['model']}`", family, told, encoded


def _difference(found: Mapping[str, Any]) -> str:
    return "takes none" if found["difference"] is None else f"{found['difference']:.0e}"


def table() -> str:
    """The table in Markdown."""
    lines = [HEADER, ("---",) * len(HEADER), *rows()]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main() -> None:
    """Rewrite the page."""
    logging.disable()
    PAGE.write_text(BLOCK.sub(lambda _: table(), PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    sys.stdout.write(f"wrote {PAGE}\n")


if __name__ == "__main__":
    main()
