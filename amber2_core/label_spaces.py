"""Label spaces by name, and the label policy that options (--emotions, --merge, …) make of a corpus's defaults."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .errors import SettingError
from .utterance import LabelDefaults
from .votes import LabelPolicy, canonical

# The field's label spaces, each in the order that decides ties.
LABEL_SPACES: Mapping[str, tuple[str, ...]] = {
    "iemocap-4": ("neutral", "happy", "angry", "sad"),
    # without "other", as EMO-SUPERB has it
    "iemocap-9": ("neutral", "happy", "angry", "sad", "excited", "frustrated", "surprise", "fear", "disgust"),
    "msp-podcast-8": ("neutral", "happy", "sad", "angry", "disgust", "fear", "surprise", "contempt"),
    "msp-podcast-4": ("neutral", "happy", "sad", "angry"),
    "crema-d-6": ("neutral", "happy", "angry", "sad", "disgust", "fear"),
}
# options of commands that are fields of a policy
POLICY_OPTIONS = ("emotions", "stimulus", "raters", "multi_label", "out_of_space", "merge", "keep", "secondary")


def parse_emotions(text: str) -> tuple[str, ...]:
    """A label space by its name, or a comma list of emotions.

    Raises:
        SettingError: neither.

    >>> parse_emotions("msp-podcast-4"), parse_emotions("calm, tense")
    (('neutral', 'happy', 'sad', 'angry'), ('calm', 'tense'))
    """
    space = LABEL_SPACES.get(text.strip().casefold())
    if space:
        return space
    emotions = tuple(part.strip() for part in text.split(","))
    if len(emotions) < 2 or not all(emotions):
        raise SettingError(f"Bad emotions {[*emotions]}, expected at least two, or one of {[*LABEL_SPACES]}")
    return emotions


def parse_merge(text: str) -> tuple[tuple[str, str], ...]:
    """Pairs of a word and the emotion that it counts for: ``none``, or a list such as ``excited=happy,calm=neutral``.

    Raises:
        SettingError: neither.
    """
    if text.strip() == "none":
        return ()
    pairs = []
    for part in text.split(","):
        word, sign, emotion = part.partition("=")
        if not (sign and word.strip() and emotion.strip()):
            raise SettingError(f"Bad merge {text!r}, expected none or a list such as excited=happy")
        pairs.append((word.strip(), emotion.strip()))
    return tuple(pairs)


def policy_changes(options: Mapping[str, str | None]) -> dict[str, Any]:
    """The fields of a `LabelPolicy` that options set; None is an option that was not given.

    Raises:
        SettingError: as `parse_emotions` and `parse_merge`.
    """
    changes: dict[str, Any] = {name: options[name] for name in POLICY_OPTIONS if options.get(name) is not None}
    for name, parse in (("emotions", parse_emotions), ("merge", parse_merge)):
        if name in changes:
            changes[name] = parse(changes[name])
    return changes


def policy_with(defaults: LabelDefaults, changes: Mapping[str, Any]) -> LabelPolicy:
    """A corpus's own policy with some fields changed.

    A word that the changes merge leaves the corpus's own emotions; emotions that they name stand as they are.
    The corpus's own merges stand unless the changes name others, as far as they fit the emotions: a word that is one
    of the emotions is not merged away, and none is merged into an emotion that is not there.

    Raises:
        LabelError: a field has no meaning.
    """
    fields = {
        "emotions": defaults.emotions,
        "stimulus": defaults.stimulus,
        "merge": defaults.merge,
        "keep": defaults.keep,
        **changes,
    }
    if "merge" in changes and "emotions" not in changes:
        gone = {canonical(word) for word, emotion in changes["merge"] if canonical(word) != canonical(emotion)}
        fields["emotions"] = tuple(emotion for emotion in defaults.emotions if canonical(emotion) not in gone)
    if "merge" not in changes:
        space = {canonical(emotion) for emotion in fields["emotions"]}
        fields["merge"] = tuple(
            (word, emotion)
            for word, emotion in defaults.merge
            if canonical(word) not in space and canonical(emotion) in space
        )
    return LabelPolicy(**fields)


def policy_of(defaults: LabelDefaults, options: Mapping[str, str | None]) -> LabelPolicy:
    """A corpus's own policy, with what the options change.

    Raises:
        SettingError: as `policy_changes`.
        LabelError: as `policy_with`.
    """
    return policy_with(defaults, policy_changes(options))
