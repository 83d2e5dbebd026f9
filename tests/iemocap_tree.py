"""Writes IEMOCAP's tree at full size, with the consensus counts of the release and every trap of its files."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

# consensus code → turns of the release
CONSENSUS = {
    "neu": 1708, "hap": 595, "exc": 1041, "ang": 1103, "sad": 1084,
    "fru": 1849, "sur": 107, "fea": 40, "dis": 2, "oth": 3, "xxx": 2507,
}  # fmt: skip
TURNS = (1819, 1811, 2136, 2103, 2170)  # by session
IN_FOUR = (1085, 1023, 1151, 1031, 1241)  # of them neutral, happy, excited, angry or sad
DIALOGUES = (28, 30, 32, 30, 31)
WORD = {
    "neu": "Neutral", "hap": "Happiness", "exc": "Excited", "ang": "Anger", "sad": "Sadness",
    "fru": "Frustration", "sur": "Surprise", "fea": "Fear", "dis": "Disgust", "oth": "Other",
}  # fmt: skip
ODD_NAMES = {3: ["Ses03M_impro05a", "Ses03M_impro05b", "Ses03M_impro08a", "Ses03M_impro08b"], 5: ["Ses05M_script01_1b"]}


@dataclass
class Written:
    """What the tree holds, for the tests to compare with."""

    consensus: dict[str, str] = field(default_factory=dict)  # turn → code
    external: dict[str, list[tuple[str, str]]] = field(default_factory=dict)  # turn → (rater, word)
    own: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    transcript: dict[str, str] = field(default_factory=dict)
    several_labels: int = 0
    without_dominance: int = 0


def write(root: Path) -> Written:
    """Write the tree; recordings are empty files."""
    written, chance = Written(), random.Random(7)
    codes = _codes_by_session(chance)
    for session in range(1, 6):
        base = root / f"Session{session}"
        evaluations, transcripts = base / "dialog/EmoEvaluation", base / "dialog/transcriptions"
        for sub in ("Attribute", "Categorical", "Self-evaluation"):
            (evaluations / sub).mkdir(parents=True)
            (evaluations / sub / "Ses01F_impro01_e2_cat.txt").write_text("Ses01F_impro01_F000 :Neutral state; ()\n")
        transcripts.mkdir()
        names = _dialogue_names(session)
        shares = [codes[session - 1][k :: len(names)] for k in range(len(names))]
        for name, share in zip(names, shares, strict=True):
            folder = base / "sentences/wav" / name
            folder.mkdir(parents=True)
            (folder / f"._{name}_F000.wav").touch()
            turns = [f"{name}_{'FM'[k % 2]}{k // 2:03d}" for k in range(len(share))]
            for turn in turns:
                (folder / f"{turn}.wav").touch()
            (evaluations / f"._{name}.txt").write_bytes(b"\x00\x05\x16\x07AppleDouble")
            (evaluations / f"{name}.txt").write_text(evaluation(turns, share, written, chance), encoding="ascii")
            (transcripts / f"{name}.txt").write_text(_transcripts(turns, written, chance), encoding="ascii")
    return written


def _dialogue_names(session: int) -> list[str]:
    odd = ODD_NAMES.get(session, [])
    plain = (f"Ses0{session}{wearer}_{kind}" for kind in _kinds() for wearer in "FM")
    return [*itertools.islice(plain, DIALOGUES[session - 1] - len(odd)), *odd]


def _kinds() -> Iterator[str]:
    yield from ("impro01", "impro02", "impro03", "impro04", "impro06", "impro07")
    yield from (f"script{n:02d}_{part}" for n in (1, 2, 3) for part in (1, 2, 3))
    yield from (f"impro{n:02d}" for n in range(9, 30))


def _codes_by_session(chance: random.Random) -> list[list[str]]:
    """Consensus codes for every session, with the right sums by code and by session."""
    four = ("neu", "hap", "exc", "ang", "sad")
    inside = [code for code in four for _ in range(CONSENSUS[code])]
    outside = [code for code in CONSENSUS if code not in four for _ in range(CONSENSUS[code])]
    chance.shuffle(inside)
    chance.shuffle(outside)
    sessions = []
    for turns, in_four in zip(TURNS, IN_FOUR, strict=True):
        session = [inside.pop() for _ in range(in_four)] + [outside.pop() for _ in range(turns - in_four)]
        chance.shuffle(session)
        sessions.append(session)
    assert not inside
    assert not outside
    return sessions


def evaluation(turns: list[str], codes: list[str], written: Written, chance: random.Random) -> str:
    """The file of one dialogue, with these consensus codes; what is drawn is noted in `written`."""
    lines = ["% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]", ""]
    for k, (turn, code) in enumerate(zip(turns, codes, strict=True)):
        numbers = ", ".join(f"{chance.uniform(1, 5):.4f}" for _ in range(3))
        lines.append(f"[{6.29 + 3 * k:.4f} - {8.2357 + 3 * k:.4f}]\t{turn}\t{code}\t[{numbers}]")
        written.consensus[turn] = code
        written.external[turn], written.own[turn] = _ratings(turn, code, written, chance)
        by_rater: dict[str, list[str]] = {}
        for rater, word in written.external[turn] + written.own[turn]:
            by_rater.setdefault(rater, []).append(word)
        comment = chance.choice(["()", "()", "(a comment: half; (nested))"])
        lines += [f"C-{rater}:\t{'; '.join(words)};\t{comment}" for rater, words in by_rater.items()]
        for rater in by_rater:
            dominance = "dom  2;" if written.without_dominance >= 36 or k % 7 else "dom  ;"
            written.without_dominance += dominance == "dom  ;"
            lines.append(f"A-{rater}:\tval 3; act 2; {dominance}\t()")
        lines.append("")
    return "\n".join(lines) + "\n"


def _ratings(
    turn: str, code: str, written: Written, chance: random.Random
) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    words = list(WORD.values())
    chosen = chance.sample(words, 3) if code == "xxx" else [WORD[code], WORD[code], chance.choice(words)]
    external = [(f"E{k + 2}", word) for k, word in enumerate(chosen)]
    if chance.random() < 0.1:
        external.append(("E5", chosen[0]))
    if written.several_labels < 1750 and chance.random() < 0.2:
        second = chance.choice([word for word in words if word != chosen[2]])
        external.insert(3, ("E4", second))
        written.several_labels += 1
    own = [(f"{turn[-4]}1", chance.choice(words))] if chance.random() < 0.7 else []
    return external, own


def _transcripts(turns: list[str], written: Written, chance: random.Random) -> str:
    lines = []
    for k, turn in enumerate(turns):
        words = chance.choice(["Excuse me.", "He said: yes.", "[LAUGHTER]", "It's at [six]: no, seven."])
        written.transcript[turn] = words
        lines.append(f"{turn} [{6.29 + 3 * k:08.4f}-{8.2357 + 3 * k:08.4f}]: {words}")
    chance.shuffle(lines)  # joined by id, never by order
    lines.insert(0, f"{turns[0][:-3]}XX0 [001.0000-002.0000]: nobody rated this")
    lines += ["M: sorry", "F: what?"]
    repeated = next(line for line in lines if line.startswith(turns[-1]))
    return "\n".join([*lines, repeated.split("]: ")[0] + "]: said again"]) + "\n"
