"""Emo_ent: class-balanced heads, and a rule after the fact by which the text decides where the audio is unsure."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from amber2_core.errors import SettingError
from amber2_core.heads import FUSION_HEAD, heads_of

from ..stacked.system import StackedSettings
from .system import FitOptions, Fitted, FoldData, History, LearnFrom, Need, Rows, System, option, system_of

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from amber2_core.features import Side
    from amber2_core.handover import Rule

AUDIO, TEXT, SENTIMENT = "audio", "text", "sentiment"
Decider = Literal["auto", "sentiment", "text"]
HEADS = "cb-ce"  # the system that trains its heads


@dataclass(frozen=True)
class EmoEntSettings(StackedSettings):
    """What decides where the audio is unsure, beside the settings of the heads."""

    decider: Decider = option(
        "auto",
        "What decides where the audio is unsure; auto: a sentiment where the cache has one and the label space its "
        "emotions, else the text head",
        choices=get_args(Decider),
    )


class EmoEnt(System):
    """CB-CE's heads, with `amber2_core.handover.Rule` in place of their fusion; its thresholds are of train and dev.

    The heads of audio and text are those of CB-CE under the same settings.
    """

    name = "emo-ent"
    Settings = EmoEntSettings

    def fit(
        self, fold: FoldData, settings: Sequence[Any], seeds: Sequence[int], options: FitOptions
    ) -> Iterator[Fitted]:
        """See `System.fit`. Settings of one shape differ in what decides alone: one training is for all of them."""
        deciders = [_decider(setting, fold) for setting in settings]
        for heads in system_of(HEADS).fit(fold, settings[:1], seeds, options):
            rule = _rule(heads, deciders[0], fold)  # whose thresholds do not ask what decides
            for setting, decider in zip(settings, deciders, strict=True):
                yield FittedEmoEnt(setting, heads, replace(rule, decider=decider), fold)

    def learns_from(self, setting: Any) -> LearnFrom:
        return system_of(HEADS).learns_from(setting)

    def reads(self, setting: Any, modality: str) -> Need:
        return system_of(HEADS).reads(setting, modality)

    def sides(self, setting: Any) -> Sequence[Side]:
        from amber2_core.features import Side

        return () if setting.decider == TEXT else (Side(SENTIMENT, needed=setting.decider == SENTIMENT),)

    def heads(self, modalities: Sequence[str]) -> tuple[str, ...]:
        """As ever, and a fusion also of the audio alone, of which a sentiment may decide."""
        return tuple(dict.fromkeys((*heads_of(modalities), FUSION_HEAD)))

    def shape(self, setting: Any) -> Hashable:
        return system_of(HEADS).shape(setting)

    def check(self, setting: Any, heads: Sequence[str]) -> None:
        system_of(HEADS).check(setting, heads)
        if AUDIO not in heads:
            raise SettingError(
                "emo-ent leaves to the text what the audio is unsure of, and there are no audio features, or several"
            )
        if setting.decider != SENTIMENT and TEXT not in heads:
            raise SettingError(
                "emo-ent leaves to the text what the audio is unsure of, and there are no text features: use --decider "
                "sentiment"
            )

    def measures(self, fitted: Any, rows: Rows) -> Mapping[str, npt.NDArray[np.floating[Any]]]:
        """``flagged``: 1 where the text decided, 0 where the audio did, NaN where there is no audio."""
        return {"flagged": fitted.applied(rows)[1]}

    def remarks(self, setting: Any) -> Sequence[str]:
        """What differs from the paper and its code."""
        by_text = "where a sentiment decides in the paper, the text head does"
        where = {"sentiment": (), "text": (by_text,), "auto": (f"{by_text}, unless the cache has a sentiment",)}
        return (
            "the encoders are frozen; the authors tune theirs, and take back changes of class that did harm on train "
            "and dev",
            *where[setting.decider],
        )


@dataclass(frozen=True, eq=False)
class FittedEmoEnt:
    """CB-CE's heads under one setting and seed, and the rule that was chosen for them."""

    setting: EmoEntSettings
    heads: Any  # a `amber2_train.stacked.system.FittedHeads`
    rule: Rule
    fold: FoldData

    @property
    def seed(self) -> int:
        """That of the heads."""
        return int(self.heads.seed)

    @property
    def history(self) -> History:
        """Of the heads that are kept; the rule has no epochs, and is judged where the audio is."""
        own: History = self.heads.history
        dev_js, epoch = ({h: x for h, x in some.items() if h != FUSION_HEAD} for some in (own.dev_js, own.epoch))
        unjudged = own.unjudged - {FUSION_HEAD} | ({FUSION_HEAD} if AUDIO in own.unjudged else set())
        return History(dev_js, epoch, unjudged)  # type: ignore[arg-type]

    def probs(self, rows: Rows) -> dict[str, npt.NDArray[np.float32]]:
        """See `Fitted`."""
        probs, _ = self.applied(rows)
        return probs

    def applied(self, rows: Rows) -> tuple[dict[str, npt.NDArray[np.float32]], npt.NDArray[np.float64]]:
        """Distributions by head, and where the text decided (n,)."""
        import torch

        sentiment = None
        if self.rule.decider == SENTIMENT:
            every = torch.arange(len(rows), device=rows.index.device)
            sentiment = rows.side(SENTIMENT, every).cpu().numpy()
        probs = self.heads.probs(rows)
        fusion, flagged = self.rule.applied(probs, sentiment)
        return {**probs, FUSION_HEAD: fusion}, flagged

    def save(self, path: Path, origin: Mapping[str, Any]) -> None:
        """See `Fitted`: the heads' file, with the rule and, where it decides, how the sentiment was made."""
        record = {"outputs": "amber2_core.handover.Rule", "rule": asdict(self.rule)}
        if self.rule.decider == SENTIMENT:
            record["sentiment"] = dict(self.fold.side_recipes.get(SENTIMENT, {}))
        self.heads.save(path, {**origin, **record})


def _decider(setting: EmoEntSettings, fold: FoldData) -> Literal["sentiment", "text"]:
    """What decides on this fold. SettingError: a sentiment would decide for emotions that are not there."""
    from amber2_core.handover import EMOTIONS_OF_SENTIMENT, check_emotions

    if setting.decider == "auto":
        can_say = SENTIMENT in fold.train.sides and set(EMOTIONS_OF_SENTIMENT) <= set(fold.emotions)
        return "sentiment" if can_say else "text"
    if setting.decider == SENTIMENT:
        check_emotions(fold.emotions)
    return setting.decider


def _rule(heads: Any, decider: Literal["sentiment", "text"], fold: FoldData) -> Rule:
    """The rule for heads that are trained; utterances of test have no say."""
    import numpy as np

    from amber2_core.handover import chosen_rule

    parts = (heads.fold.train, fold.dev)  # train as it was learnt from
    audio = np.concatenate([heads.probs(rows)[AUDIO] for rows in parts])
    target = np.concatenate([rows.targets.cpu().numpy() for rows in parts])
    on_dev = np.repeat([False, True], [len(rows) for rows in parts])
    return chosen_rule(decider, fold.emotions, audio, target, on_dev=on_dev)
