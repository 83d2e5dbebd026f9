"""The card of a heads folder: README.md with the metadata of the hub, out of config.json, every word of it escaped."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from amber2_core.heads import FUSION_HEAD
from amber2_core.kinds import DISTRIBUTION, MULTI_LABEL, Kind
from amber2_core.metrics import METRICS_OF, MULTI_LABEL_METRICS

SHOWN = {
    DISTRIBUTION: ("js", "bc", "r2", "accuracy", "uar", "macro_f1", "ece"),
    MULTI_LABEL: tuple(MULTI_LABEL_METRICS),
}
LONGEST = 300  # letters of anything that others wrote
USE = """\
Research on how people perceive emotion in speech, with the spread of raters as part of the answer: the prediction is a
distribution over raters, not a fact about the speaker. What somebody feels cannot be read off it."""
NOT_FOR = """\
- decisions about people: work, school, credit, insurance, health, policing, borders, courts. Inferring the emotions of
  people at work or in education is forbidden in the European Union (Regulation (EU) 2024/1689, Art. 5 (1) (f)), with
  narrow exceptions;
- lie detection, diagnosis, or surveillance; people who have not been told, or have not agreed;
- speech unlike that of the corpus (language, age, acted or spontaneous, recording) without a test on it."""
LICENCE = """\
These weights were learnt from the corpus named above, with encoders that have licences of their own: before you publish
or sell, see what these licences say of models that are made with them. The card grants nothing."""


def card(config: Mapping[str, Any], *, graph: bool = False) -> str:
    """The text of README.md for a config.json; `graph`: model.onnx stands beside it.

    Names of corpora, emotions, systems and encoders are text of other people: no markup of theirs remains.
    """
    title = f"{text(config['system'])} on {text(config['corpus']['name'] or 'an unnamed corpus')}"
    parts = [
        _metadata(config),
        f"# Emotion heads: {title}",
        _opening(config, graph=graph),
        "## What it must not be used for\n\n" + NOT_FOR,
        "## What it is for\n\n" + USE,
        "## Data\n\n" + "\n".join(_data(config)),
        "## Label policy\n\n" + "\n".join(_policy(config["policy"] or {})),
        "## Features\n\n" + "\n".join(_features(config)),
        "## Results\n\n" + "\n".join(_results(config)),
        "## Licence\n\n" + LICENCE,
    ]
    if config["remarks"]:
        parts.insert(-1, "## Remarks\n\n" + "\n".join(f"- {text(line)}" for line in config["remarks"]))
    return "\n\n".join(parts) + "\n"


def text(value: Any) -> str:
    """Anything as plain words of Markdown, on one line; an address stays text, and no link."""
    return html.escape(re.sub(r"([\\`*_{}\[\]()#+\-.!|~:@/$])", r"\\\1", _line(value)), quote=False)


def _line(value: Any) -> str:
    """Anything on one line of at most 300 letters that can be printed."""
    line = "".join(letter if letter.isprintable() else "�" for letter in " ".join(str(value).split()))
    return line if len(line) <= LONGEST else line[: LONGEST - 1] + "…"


def _metadata(config: Mapping[str, Any]) -> str:
    """YAML, whose strings are those of JSON."""
    return "\n".join(
        [
            "---",
            "library_name: amber2",
            "pipeline_tag: audio-classification",
            "license: other",
            "license_name: see-the-card",
            "tags:",
            *(f"- {json.dumps(tag)}" for tag in ("speech-emotion-recognition", "label-distribution", "amber2")),
            "model_name: " + json.dumps(_line(f"{config['system']} on {config['corpus']['name']}"), ensure_ascii=False),
            "---",
        ]
    )


def _opening(config: Mapping[str, Any], *, graph: bool) -> str:
    count = len(config["members"])
    what = "One model" if count == 1 else f"An ensemble of {count} models, whose prediction is the mean of theirs"
    emotions = ", ".join(text(emotion) for emotion in config["emotions"])
    given = f"a distribution over {emotions}: which shares of raters would hear what"
    if _kind(config) == MULTI_LABEL:
        given = f"the probability that any rater would hear each of {emotions}"
    lines = [
        f"{what}, of the system {text(config['system'])} of amber2. It reads features of frozen encoders and gives, "
        f"for each utterance, {given}.",
        "",
        "```sh",
        "predict-emotion --heads THIS_FOLDER recording.wav",
        "```",
    ]
    if graph:
        lines += ["", "`model.onnx` is the same as a graph; `description.json` names its inputs and outputs."]
    return "\n".join(lines)


def _data(config: Mapping[str, Any]) -> Iterator[str]:
    corpus, protocol = config["corpus"], config["protocol"]
    counts = corpus["utterances"]
    yield f"- corpus: {text(corpus['name'] or 'unnamed')} {text(corpus['version'])}".rstrip()
    yield f"- utterances: {text(counts.get('kept', '?'))} of {text(counts.get('in the cache', '?'))}"
    for name, what in (("dropped", "dropped"), ("missing", "without")):
        if some := {key: count for key, count in counts.get(name, {}).items() if count}:
            yield f"- {what}: " + ", ".join(f"{text(key)} {text(count)}" for key, count in some.items())
    yield f"- folds: {text(protocol.get('protocol', '?'))}"
    if shared := protocol.get("shared_speakers"):
        yield f"- **{text(shared)} speakers stand in more than one part of a fold: for new speakers, expect worse**"
    sizes = protocol.get("sizes", {})
    for member in config["metrics"]["members"]:
        of_fold = sizes.get(str(member["fold"]), {})
        told = ", ".join(f"{text(part)} {text(count)}" for part, count in of_fold.items())
        yield f"- {member['file']}: fold {text(member['fold'])}, seed {text(member['seed'])}; {told}"


def _policy(policy: Mapping[str, Any]) -> Iterator[str]:
    for name, value in policy.items():
        if value not in (None, [], {}, ()):
            yield f"- {text(name)}: {text(_words(value))}"


def _words(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _features(config: Mapping[str, Any]) -> Iterator[str]:
    for modality, features in config["features"].items():
        recipe, need = features["recipe"], config["reads"].get(modality, "vector")
        yield f"- {text(modality)}: {text(features['name'])}, read as {text(need)}"
        yield f"  - fingerprint: {text(features['fingerprint'])}"
        for name, value in recipe.items():
            if value is not None and (name in ("model", "revision") or name.endswith("digest")):
                yield f"  - {text(name)}: {text(value)}"


def _results(config: Mapping[str, Any]) -> Iterator[str]:
    """Tables: the system over folds and seeds, each member on its own test fold, and seeds averaged."""
    metrics, kind = config["metrics"], _kind(config)
    for split, of_heads in metrics["system"].items():
        yield f"\nThe system on {split}, mean ± sd over seeds of the means over folds:\n"
        yield from _table(kind, ((head, [_with_sd(own.get(m)) for m in SHOWN[kind]]) for head, own in of_heads.items()))
    for member in metrics["members"] if len(metrics["members"]) == 1 else ():
        for split in ("dev", "test"):
            yield f"\nThis model on the {split} part of its fold:\n"
            yield from _table(kind, _numbers(member[split], kind))
    if metrics["ensemble"]:
        yield "\nOn test, each fold by the mean of its own seeds:\n"
        yield from _table(kind, _numbers(metrics["ensemble"], kind))
    if len({member["fold"] for member in metrics["members"]}) > 1:
        yield (
            "\nThe members were trained on different folds: each utterance of the corpus was learnt by some of them. "
            "The ensemble as a whole can be scored on other corpora alone, and no number above is of it."
        )
    yield f"\nThe main head of several modalities is the student's, in general {FUSION_HEAD}."


def _kind(config: Mapping[str, Any]) -> Kind:
    return MULTI_LABEL if config.get("kind") == MULTI_LABEL else DISTRIBUTION


def _numbers(of_heads: Mapping[str, Any], kind: Kind) -> Iterator[tuple[str, Sequence[str]]]:
    for head, scores in of_heads.items():
        yield head, [_number(scores.get(name)) for name in SHOWN[kind]]


def _table(kind: Kind, rows: Iterable[tuple[str, Sequence[str]]]) -> Iterator[str]:
    metrics = [METRICS_OF[kind][name] for name in SHOWN[kind]]
    yield "| head | " + " | ".join(f"{metric.title} {metric.arrow}" for metric in metrics) + " |"
    yield "|---|" + "---:|" * len(metrics)
    for head, cells in rows:
        yield f"| {text(head)} | " + " | ".join(cells) + " |"


def _with_sd(score: Mapping[str, float | None] | None) -> str:
    mean, sd = (score or {}).get("mean"), (score or {}).get("sd")
    return _number(mean) if sd is None or mean is None else f"{mean:.3f} ± {sd:.3f}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
