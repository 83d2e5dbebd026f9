"""Any corpus that a user describes in one table: a CSV file or JSON lines → utterances with their votes.

```
id,audio,text,speaker,session,votes.neutral,votes.happy,votes.angry,votes.sad
a1,wav/a1.wav,"Well, no.",mary,1,2,0,1,0
```
The root is the file itself; recordings are relative to its folder and stay inside it. A .csv or .tsv file is UTF-8,
quoted as in RFC 4180, separated by comma, semicolon or tab, whichever the header holds. In a .jsonl file every line is
an object with these keys, `votes` and `distribution` being objects of their own. Upper and lower case are the same:

| column | holds |
|---|---|
| `id` | a name of its own for each utterance |
| `audio` (or `wav`, `file`, `path`, `FileName`, `audio_path`) | the recording |
| `text` (or `transcript`, `transcription`, `Utterance`, `sentence`, `raw_text`) | what is said |
| `speaker` (or `speaker_id`, `SpkrID`), `session` (or `fold`) | may be missing, as may all below |
| `dialogue`, `split` (or `Split_Set`), `language` | |
| `start`, `end` | seconds into the recording |

The label stands in one of four forms; an empty cell is nobody's vote:
- `votes.<emotion>`: how many raters chose the emotion, one column for each;
- `distribution.<emotion>`, or just `<emotion>` where it is one of the field's words: shares that sum to 1, with the
  number of raters in `raters` if it is known;
- `ratings`: JSON, a list of labels or of `{"rater": …, "label": …}`;
- `label` (or `emotion`): one word. Beside one of the others it is the corpus's consensus, the attribute `consensus`.

EMO-SUPERB's tables (`FileName,<classes>,[EmoAct,EmoVal,EmoDom,]SpkrID,Gender,Split_Set`) are read as they are, without
id and text. Their labels are smoothed with ε = 0.05; where the least share of the file is just what smoothing leaves of
none, the smoothing is undone, and a problem of the corpus says so.

Any other column becomes an attribute: numbers if all its cells are numbers or empty, else text.
"""

from __future__ import annotations

from pathlib import Path

from amber2_core.errors import CorpusError, bad_choice
from amber2_core.utterance import Corpus

from ..described import described_corpus
from ..manifest_columns import NAMES
from ..release import Table, read_json_lines, read_table

__all__ = ["NAMES", "ORIGIN", "read"]

ORIGIN = (
    "The root is a CSV or .jsonl file with the columns id, audio, text, and votes.<emotion> (counts), "
    "distribution.<emotion> (shares), ratings (JSON) or label."
)

TABLES, JSON_LINES = (".csv", ".tsv"), (".jsonl", ".ndjson")


def read(root: Path) -> Corpus:
    """The utterances of a manifest, in its order; the corpus' root is the folder of the file.

    Raises:
        CorpusError: the file is no such table, or a row of it has no meaning; the message names the line.
    """
    return described_corpus("manifest", root, root.parent, lambda: _table(root))


def _table(root: Path) -> Table:
    if root.is_dir():
        raise CorpusError(f"{root} is a folder. {ORIGIN}")
    suffix = root.suffix.lower()
    if suffix not in (*TABLES, *JSON_LINES):
        raise CorpusError(f"{bad_choice('manifest suffix', root.suffix, (*TABLES, *JSON_LINES))}: {root}")
    return read_json_lines(root) if suffix in JSON_LINES else read_table(root, delimiters=",;\t")
