"""Hundreds of damaged releases over all parsers: each is a corpus, or one line that names the file; nothing else.

Text is damaged at random places, by bytes that mean something in its format. A file of text that is refused is named
with its line. Where the corpus is read with fewer utterances or ratings than before, a problem says so.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import pytest
from iemocap_tree import Written, evaluation
from media_trees import write_m3ed, write_meld, write_mosei
from podcast_tree import turns
from podcast_tree import write as write_podcast

from amber2_core.errors import Amber2Error
from amber2_core.utterance import Corpus
from amber2_data.corpora.registry import reader

SECONDS = 20  # in which a small release has to be read: a hang is a failure
TOKENS = (
    *(b'"', b",", b";", b"\n", b"\r", b"\t", b"{", b"}", b"[", b"]", b":", b"\\", b"\0", b"\xff", b"\xef\xbb\xbf"),
    *(b"-1", b"1e999", b"nan", b"NaN", b"9" * 400, b"../", b"/etc/passwd", b"=1+1", b"null", b"true", b"\\u0000"),
    *(b"\\ud800", b"[" * 5000, b"\xc3\xa9", b"\xe2\x80\xa8", b"  ", b"", b"", b""),
)


def write_iemocap(root: Path) -> None:
    written, chance = Written(), random.Random(1)
    name = "Ses01F_impro01"
    ids = [f"{name}_{'FM'[k % 2]}{k // 2:03d}" for k in range(6)]
    for folder in ("dialog/EmoEvaluation", "dialog/transcriptions", f"sentences/wav/{name}"):
        (root / "Session1" / folder).mkdir(parents=True)
    codes = ["neu", "ang", "xxx", "exc", "sad", "hap"]
    text = evaluation(ids, codes, written, chance)
    (root / f"Session1/dialog/EmoEvaluation/{name}.txt").write_text(text)
    lines = [f"{id_} [{k:08.4f}-{k + 1:08.4f}]: Words {k}." for k, id_ in enumerate(ids)]
    (root / f"Session1/dialog/transcriptions/{name}.txt").write_text("\n".join([*lines, "M: sorry"]) + "\n")
    for id_ in ids:
        (root / f"Session1/sentences/wav/{name}/{id_}.wav").touch()


def write_crema_d(root: Path) -> None:
    (root / "AudioWAV").mkdir(parents=True)
    (root / "processedResults").mkdir()
    clips = ["1001_DFA_ANG_XX", "1001_IEO_HAP_HI", "1002_TAI_SAD_LO"]
    rows = ['"","A","D","F","H","N","S","fileName","numResponses"']
    for mode in (1, 2, 3):
        rows += [f'"{mode}0000{k}",{k},1,0,2,3,0,"{clip}",{6 + k}' for k, clip in enumerate(clips)]
    (root / "processedResults/tabulatedVotes.csv").write_text("\n".join(rows) + "\n")
    (root / "VideoDemographics.csv").write_text("ActorID,Age,Sex,Race,Ethnicity\n1001,51,Male,Caucasian,Not Hispanic\n")
    for clip in clips:
        (root / f"AudioWAV/{clip}.wav").touch()


def write_manifest(rows: str, suffix: str) -> Callable[[Path], None]:
    def write(root: Path) -> None:
        (root / "wav").mkdir(parents=True)
        for name in "abc":
            (root / f"wav/{name}.wav").touch()
        (root / f"corpus{suffix}").write_text(rows, "utf-8")

    return write


COUNTS = "id,audio,text,speaker,start,end,votes.happy,votes.sad\n" + "".join(
    f'{k},wav/{k}.wav,"Well, {k}.",s{k},0,1.5,{n},2\n' for n, k in enumerate("abc")
)
RATINGS = "id;audio;text;ratings\n" + "".join(
    f'{k};wav/{k}.wav;x;"[""sad"", {{""rater"": ""r"", ""label"": ""b""}}]"\n' for k in "abc"
)
SHARES = "FileName,Angry,Sad,Happy,EmoAct,SpkrID,Gender,Split_Set\n" + "".join(
    f"wav/{k}.wav,0.95,0.025,0.025,3.5,{n},Female,Train\n" for n, k in enumerate("abc")
)
LINES = "".join(
    f'{{"id": "{k}", "audio": "wav/{k}.wav", "text": "é {k}", "votes": {{"sad": 2, "happy": 1}}, "v": 1.5}}\n'
    for k in "abc"
)


def podcast(layout: str) -> Callable[[Path], None]:
    return lambda root: write_podcast(root, tuple(turns(6)), layout)


# name → (reader, how to write a release, what of it to damage, the root within it)
RELEASES: dict[str, tuple[str, Callable[[Path], None], tuple[str, ...], str]] = {
    "iemocap": ("iemocap", write_iemocap, ("dialog/EmoEvaluation/*.txt", "dialog/transcriptions/*.txt"), ""),
    "podcast, one string a rater": ("msp_podcast", podcast("detail"), ("labels/*", "Partitions.txt"), ""),
    "podcast, columns": ("msp_podcast", podcast("columns-2.0"), ("Labels/*",), ""),
    "podcast, JSON": ("msp_podcast", podcast("json"), ("labels/*.json",), ""),
    "podcast, text": ("msp_podcast", podcast("txt"), ("label/*.txt",), ""),
    "crema_d": ("crema_d", write_crema_d, ("processedResults/*", "VideoDemographics.csv"), ""),
    "meld": ("meld", write_meld, ("*.csv",), ""),
    "m3ed": ("m3ed", write_m3ed, ("annotation.json", "splitInfo/*_train.txt"), ""),
    "mosei": ("mosei", write_mosei, ("*.csd",), ""),
    "manifest, counts": ("manifest", write_manifest(COUNTS, ".csv"), ("corpus.csv",), "corpus.csv"),
    "manifest, ratings": ("manifest", write_manifest(RATINGS, ".csv"), ("corpus.csv",), "corpus.csv"),
    "manifest, shares": ("manifest", write_manifest(SHARES, ".csv"), ("corpus.csv",), "corpus.csv"),
    "manifest, JSON lines": ("manifest", write_manifest(LINES, ".jsonl"), ("corpus.jsonl",), "corpus.jsonl"),
}
EACH = 60


@contextmanager
def within(seconds: int) -> Iterator[None]:
    """Fail instead of hanging."""

    def alarm(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"not read within {seconds} s")

    before = signal.signal(signal.SIGALRM, alarm)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def damaged(raw: bytes, chance: random.Random) -> bytes:
    """Another file: cut off, or bytes replaced, inserted, removed or doubled at one to three places."""
    if chance.random() < 0.1:
        return raw[: chance.randrange(len(raw))]
    for _ in range(chance.randint(1, 3)):
        at = chance.randrange(len(raw) + 1)
        kind = chance.random()
        if kind < 0.1:
            raw = raw[:at] + raw[at : at + chance.randint(1, 200)] + raw[at:]
        elif kind < 0.2:
            raw = raw[:at] + chance.randbytes(chance.randint(1, 4)) + raw[at + chance.randint(0, 4) :]
        else:
            raw = raw[:at] + chance.choice(TOKENS) + raw[at + chance.randint(0, 6) :]
    return raw


def sizes(corpus: Corpus) -> tuple[int, int]:
    return len(corpus.utterances), sum(len(u.ratings) for u in corpus.utterances)


@pytest.mark.parametrize("release", RELEASES)
def test_a_damaged_release_is_a_corpus_or_one_line_with_file_and_line(release: str, tmp_path: Path) -> None:
    name, write, patterns, inside = RELEASES[release]
    root = tmp_path / "release"
    write(root)
    read = reader(name).read
    files = sorted(
        path for pattern in patterns for path in root.rglob(pattern) if path.is_file() and path.name[0] != "."
    )
    assert files
    whole = read(root / inside)
    known = {(problem.file, problem.what) for problem in whole.problems}
    chance = random.Random(release)
    refused = 0
    for _ in range(EACH):
        path = chance.choice(files)
        raw = path.read_bytes()
        path.write_bytes(damaged(raw, chance))
        refusal = ""
        try:
            with within(SECONDS):
                corpus = read(root / inside)
        except Amber2Error as error:
            refusal = str(error)
        if refusal:
            refused += 1
            assert "\n" not in refusal, refusal
            assert str(tmp_path) in refusal, refusal
            assert path.name in refusal or "No recording" in refusal or "No utterance" in refusal, refusal
            # what is missing as a whole has no line: no turn left, no header …
            assert "line " in refusal or path.suffix in (".csd", ".json") or refusal[:3] in ("No ", "Non", "Not"), (
                refusal
            )
        else:
            told = {(problem.file, problem.what) for problem in corpus.problems} - known
            fewer = any(now < before for now, before in zip(sizes(corpus), sizes(whole), strict=True))
            fewer &= not raw.startswith(path.read_bytes())  # whole rows are gone, and nobody could know of them
            if name in (
                "manifest",
                "synthetic",
            ):  # columns mean what they are called, and an empty cell is nobody's vote
                fewer = len(corpus.utterances) < len(whole.utterances) and not raw.startswith(path.read_bytes())
            assert told or not fewer, (release, path, path.read_bytes()[-10000:])
            assert len({u.id for u in corpus.utterances}) == len(corpus.utterances)
            assert not any(str(u.audio).startswith(("/", "..")) for u in corpus.utterances)
        path.write_bytes(raw)
    assert 0 < refused < EACH or name in ("iemocap", "mosei")
    assert sizes(read(root / inside)) == sizes(whole)
    shutil.rmtree(root)


@pytest.mark.skipif(sys.platform != "linux", reason="names that are no text")
@pytest.mark.parametrize("release", RELEASES)
def test_a_release_in_a_folder_whose_name_is_no_text_is_read_as_elsewhere(release: str, tmp_path: Path) -> None:
    name, write, _, inside = RELEASES[release]
    elsewhere = tmp_path / os.fsdecode(b"\xe9t\xe9")
    write(tmp_path / "release")
    whole = reader(name).read(tmp_path / "release" / inside)
    (tmp_path / "release").rename(elsewhere)
    corpus = reader(name).read(elsewhere / inside)
    assert corpus.utterances == whole.utterances
    assert [problem.what for problem in corpus.problems] == [problem.what for problem in whole.problems]
