"""Label distributions as raw ratings make them under a label policy, in which every choice has a name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from .errors import LabelError, bad_choice
from .tables import AttributeColumns, RatingTable, Texts, attribute_of, take, texts
from .utterance import STIMULI, LabelDefaults, Source, Stimulus

Raters = Literal["external", "all"]
# whose votes make a distribution: people's, as `LabelPolicy.raters` has them; those of models that stand in for raters;
# or both, pooled: every vote counts alike, whoever gave it
Voters = Literal["human", "synthetic", "combined"]
VOTERS: tuple[Voters, ...] = get_args(Voters)
MultiLabel = Literal["pooled", "split", "first"]
OutOfSpace = Literal["drop", "other"]
Keep = Literal["consensus", "plurality", "majority", "any-vote"]
Secondary = Literal["drop", "merge"]

# Grammatical forms of one word: releases name a class by its noun or by its adjective.
SAME_WORD = {
    "anger": "angry",
    "contemptuous": "contempt",
    "disgusted": "disgust",
    "excitement": "excited",
    "fearful": "fear",
    "frustration": "frustrated",
    "happiness": "happy",
    "sadness": "sad",
    "surprised": "surprise",
}
OTHER = "other"
SECONDARY = "secondary"  # the attribute that holds raters' secondary labels: "RATER: word,word; RATER: word"
CONSENSUS = "consensus"  # the attribute that holds a release's own consensus label, "" where raters did not agree
ROUNDING = 1e-6  # shares of votes that differ by less, relative to the larger, are equal: weights are float32


@dataclass(frozen=True)
class LabelPolicy:
    """How ratings become a target y_c = n_c / N (Eq. 1); see `label_distributions` for what each value does.

    Raises:
        LabelError: a value outside its choices, fewer than two emotions, one named twice, or a word merged twice.
    """

    emotions: tuple[str, ...]
    # which ratings count: those given to the voice alone, to the face alone, or to both
    stimulus: Stimulus = "audiovisual"
    # external: other people's ratings; all: the speaker's own as well. Synthetic raters are in neither (see `Voters`)
    raters: Raters = "external"
    # a rater who ticks k labels gives k votes (pooled), 1/k of a vote to each (split), or the first tick alone (first);
    # words outside the space are among the k, and may be the first
    multi_label: MultiLabel = "pooled"
    # a vote for a word outside the space is dropped, or counts for "other", an extra class
    out_of_space: OutOfSpace = "drop"
    # pairs (word, emotion): votes for the word count for the emotion
    merge: tuple[tuple[str, str], ...] = ()
    # consensus: the release's own consensus label is in the space; plurality: one emotion has more counting votes than
    # any other; majority: one has more than half of them; any-vote: at least one vote counts
    keep: Keep = "any-vote"
    # a rater's secondary labels, where a release keeps them apart, are dropped, or are further ticks of the rater
    secondary: Secondary = "drop"

    def __post_init__(self) -> None:
        for name, value, choices in (
            ("stimulus", self.stimulus, STIMULI),
            ("raters", self.raters, get_args(Raters)),
            ("multi-label", self.multi_label, get_args(MultiLabel)),
            ("out-of-space", self.out_of_space, get_args(OutOfSpace)),
            ("keep", self.keep, get_args(Keep)),
            ("secondary", self.secondary, get_args(Secondary)),
        ):
            if value not in choices:
                raise LabelError(bad_choice(name, value, choices))
        repeated = _repeated(self.emotions)
        if repeated:
            raise LabelError(f"Bad emotions {list(self.emotions)}: {repeated[0]!r} is named twice")
        if len(self.emotions) < 2:
            raise LabelError(f"Bad emotions {list(self.emotions)}, expected at least two")
        for word, emotion in self.merge:
            if canonical(emotion) not in map(canonical, self.emotions):
                raise LabelError(bad_choice(f"merge {word!r} into", emotion, self.emotions))
        twice = _repeated(word for word, _ in self.merge)
        if twice:
            raise LabelError(f"Bad merge: {twice[0]!r} is merged twice")

    @classmethod
    def of_corpus(cls, defaults: LabelDefaults) -> LabelPolicy:
        """The policy that a corpus is used with by default."""
        return cls(emotions=defaults.emotions, stimulus=defaults.stimulus, merge=defaults.merge, keep=defaults.keep)

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the C columns of a target."""
        return (*self.emotions, OTHER) if self.out_of_space == "other" and not self.has_other else self.emotions

    @property
    def has_other(self) -> bool:
        """Whether "other" is one of the emotions, which votes outside the space then join."""
        return OTHER in map(canonical, self.emotions)


@dataclass(frozen=True, eq=False)
class Targets:
    """The label distributions of the utterances that a policy keeps."""

    rows: npt.NDArray[np.intp]  # (K,) rows of the utterance table, ascending
    soft_labels: npt.NDArray[np.float64]  # (K, C), rows sum to one
    votes: npt.NDArray[np.float64]  # (K, C) the counting votes behind them
    emotions: tuple[str, ...]  # C names
    dropped: Mapping[str, int] = field(default_factory=dict)  # utterances by reason
    ignored: Mapping[str, int] = field(default_factory=dict)  # ratings by reason


def canonical(word: str) -> str:
    """The form in which words of raters and of label spaces are compared: lower case, noun = adjective.

    >>> canonical("Happiness"), canonical(" Angry")
    ('happy', 'angry')
    """
    word = word.strip().casefold()
    return SAME_WORD.get(word, word)


def label_distributions(ratings: RatingTable, attributes: AttributeColumns, count: int, policy: LabelPolicy) -> Targets:
    """The targets of a corpus of `count` utterances under a policy.

    Votes that do not count are ignored and the rest renormalised; utterances without a counting vote are dropped, then
    those that `policy.keep` leaves out.

    Raises:
        LabelError: nobody rated the stimulus, none of the wanted raters did, nothing is kept, an emotion has no vote in
            what is kept, or `keep="consensus"` where the corpus has no consensus label; or as `all_ticks`.
    """
    ratings = all_ticks(ratings, attributes, count, policy)
    _check_stimulus(ratings, policy)
    right_stimulus = ratings.stimulus == policy.stimulus
    right_rater = np.isin(ratings.source, _sources(policy, "human"))
    has_weight = ratings.weight > 0
    considered = right_stimulus & right_rater & has_weight
    class_of_rating, weight = _classes(ratings.label, policy), _weights(ratings, considered, policy)
    votes = _sums(ratings, class_of_rating, weight, (count, len(policy.classes)))
    total = votes.sum(axis=1)
    voted = total > 0
    kept = voted & _keep(votes, attributes, policy)
    rows = np.flatnonzero(kept)
    targets = Targets(
        rows=rows,
        soft_labels=votes[rows] / total[rows, None],
        votes=votes[rows],
        emotions=policy.classes,
        dropped={"no counting vote": int((~voted).sum()), f"not keep={policy.keep}": int((voted & ~kept).sum())},
        ignored={
            "other stimulus": int((~right_stimulus).sum()),
            "not raters=" + policy.raters: int((right_stimulus & ~right_rater).sum()),
            "of weight 0": int((right_stimulus & right_rater & ~has_weight).sum()),
            "outside the label space": int((considered & (class_of_rating < 0)).sum()),
            "not multi-label=" + policy.multi_label: int((considered & (class_of_rating >= 0) & (weight == 0)).sum()),
        },
    )
    _check_targets(targets, ratings.label[considered], policy)
    return targets


def counted_votes(ratings: RatingTable, count: int, policy: LabelPolicy, voters: Voters) -> npt.NDArray[np.float64]:
    """(N, C) the votes that count of these voters, for `count` utterances; zeros where there is none.

    All of a policy applies but `keep`, which says what a corpus is tested on: that is people's to say.
    """
    right_source = np.isin(ratings.source, _sources(policy, voters))
    considered = (ratings.stimulus == policy.stimulus) & right_source & (ratings.weight > 0)
    weight = _weights(ratings, considered, policy)
    return _sums(ratings, _classes(ratings.label, policy), weight, (count, len(policy.classes)))


def all_ticks(ratings: RatingTable, attributes: AttributeColumns, count: int, policy: LabelPolicy) -> RatingTable:
    """The ratings, and after them, with `secondary="merge"`, what raters ticked beside their primary label.

    A secondary label stands in the attribute `SECONDARY` of its utterance. It becomes a rating of the same rater, with
    the source, stimulus and weight of the primary one. A word that the rater has ticked already is no second tick.

    Raises:
        LabelError: the corpus tells no secondary label, or the attribute names none of the utterance's raters.
    """
    if policy.secondary == "drop":
        return ratings
    said = attribute_of(attributes, SECONDARY, count)
    if not (said != "").any():
        raise LabelError(
            "Bad secondary 'merge': this corpus has no secondary labels, or its cache does not hold them; use "
            "--secondary drop"
        )
    ticks = list(_secondary_ticks(ratings, said))
    rows = np.array([row for row, _ in ticks], dtype=np.intp)
    further = replace(take(ratings, rows), label=texts([word for _, word in ticks]))
    return RatingTable(
        *(np.concatenate([getattr(some, f.name) for some in (ratings, further)]) for f in fields(ratings))
    )


def label_words(labels: Iterable[str]) -> list[str]:
    """The distinct words of raters, the most frequent first."""
    return [word for word, _ in Counter(labels).most_common()]


def places(policy: LabelPolicy) -> dict[str, int]:
    """The class of every word, in canonical form, that votes for one: the emotions, and what is merged into them."""
    place = {canonical(emotion): index for index, emotion in enumerate(policy.emotions)}
    return place | {canonical(word): place[canonical(emotion)] for word, emotion in policy.merge}


def codes(column: Sequence[str] | npt.NDArray[np.object_]) -> tuple[npt.NDArray[np.int64], list[str]]:
    """A column of text as (rows,) whole numbers and the words they stand for, in order of appearance."""
    place: dict[str, int] = {}
    numbers = [place.setdefault(word, len(place)) for word in column]
    return np.array(numbers, dtype=np.int64), list(place)


def _secondary_ticks(ratings: RatingTable, said: Texts) -> Iterator[tuple[int, str]]:
    """The row of the rater's first rating, and the word, of every secondary label (N,) that is a tick of its own."""
    own: dict[int, dict[str, list[int]]] = {}  # utterance → rater → rows of his ratings
    for row in np.flatnonzero((said != "")[ratings.utterance]).tolist():
        own.setdefault(int(ratings.utterance[row]), {}).setdefault(ratings.rater[row], []).append(row)
    for utterance in np.flatnonzero(said != "").tolist():
        raters, rows, ticked = own.get(utterance, {}), list[int](), set[str]()
        for part in said[utterance].split("; "):  # which may stand among the words of a rater, too
            name, sign, words = part.partition(": ")
            if sign and name in raters:
                rows = raters[name]
                ticked = {canonical(ratings.label[row]) for row in rows}
            elif not rows:
                raise LabelError(
                    f"Bad attribute {SECONDARY!r} {part[:60]!r}, expected RATER: words of one of {[*raters]}"
                )
            else:
                words = part
            for word in filter(None, map(str.strip, words.split(","))):
                if canonical(word) not in ticked:
                    ticked.add(canonical(word))
                    yield rows[0], word


def _repeated(words: Iterable[str]) -> list[str]:
    """The words that stand there more than once, in canonical form."""
    return [word for word, count in Counter(map(canonical, words)).items() if count > 1]


def _classes(labels: npt.NDArray[np.object_], policy: LabelPolicy) -> npt.NDArray[np.int64]:
    """(R,) the class that each rating votes for, -1 where it votes for none."""
    place = places(policy)
    outside = place.get(OTHER, len(policy.emotions)) if policy.out_of_space == "other" else -1
    numbers, words = codes(labels)
    class_of_word = [place.get(canonical(word), outside) for word in words]
    return np.array(class_of_word, dtype=np.int64)[numbers] if words else numbers


def _sources(policy: LabelPolicy, voters: Voters) -> list[Source]:
    """The sources of ratings that count."""
    people: list[Source] = ["external", "self"] if policy.raters == "all" else ["external"]
    return [*(people if voters != "synthetic" else ()), *(["synthetic"] if voters != "human" else ())]


def _weights(ratings: RatingTable, considered: npt.NDArray[np.bool_], policy: LabelPolicy) -> npt.NDArray[np.float64]:
    """(R,) how much of a vote each rating is, 0 for those that are not considered."""
    weight = ratings.weight.astype(np.float64) * considered
    return weight * _share_of_rater(ratings, considered, policy.multi_label)


def _sums(
    ratings: RatingTable, class_of_rating: npt.NDArray[np.int64], weight: npt.NDArray[np.float64],
    shape: tuple[int, int],
) -> npt.NDArray[np.float64]:  # fmt: skip
    """(N, C) the votes of each utterance for each class."""
    counting = (class_of_rating >= 0) & (weight > 0)
    cell = ratings.utterance[counting].astype(np.int64) * shape[1] + class_of_rating[counting]
    votes = np.bincount(cell, weight[counting], shape[0] * shape[1])
    return np.asarray(votes.astype(np.float64).reshape(shape))


def _share_of_rater(
    ratings: RatingTable, considered: npt.NDArray[np.bool_], multi_label: MultiLabel
) -> npt.NDArray[np.float64]:
    """(R,) how much of a vote each tick is, among the ticks of the same rater on the same utterance."""
    shares = np.ones(len(ratings))
    if multi_label == "pooled" or not considered.any():
        return shares
    ticks = np.flatnonzero(considered)
    people, _ = codes([f"{source} {rater}" for source, rater in zip(ratings.source, ratings.rater, strict=True)])
    ballot = ratings.utterance[ticks].astype(np.int64) * (people.max() + 1) + people[ticks]
    _, first, group, size = np.unique(ballot, return_index=True, return_inverse=True, return_counts=True)
    if multi_label == "split":
        shares[ticks] = 1.0 / size[group]
    else:
        shares[ticks] = 0.0
        shares[ticks[first]] = 1.0
    return shares


def _keep(votes: npt.NDArray[np.float64], attributes: AttributeColumns, policy: LabelPolicy) -> npt.NDArray[np.bool_]:
    """(N,) which utterances `policy.keep` keeps."""
    if policy.keep == "any-vote":
        return np.ones(len(votes), dtype=bool)
    if policy.keep == "consensus":
        labels = attribute_of(attributes, CONSENSUS, len(votes))
        agreed = labels != ""
        if not agreed.any():
            raise LabelError(
                "Bad keep 'consensus': this corpus has no consensus labels of its own; choose another --keep"
            )
        return np.asarray(agreed & (_classes(labels, policy) >= 0))
    largest = votes.max(axis=1)
    if policy.keep == "majority":
        return np.asarray(largest > (0.5 + ROUNDING) * votes.sum(axis=1))
    return np.asarray((votes >= (1 - ROUNDING) * largest[:, None]).sum(axis=1) == 1)


def _check_stimulus(ratings: RatingTable, policy: LabelPolicy) -> None:
    rated = label_words(ratings.stimulus)
    if not rated:
        raise LabelError("The corpus holds no ratings: there is nothing to train on")
    if policy.stimulus not in rated:
        raise LabelError(bad_choice("stimulus", policy.stimulus, rated) + ": no rater was given that")


def _check_targets(targets: Targets, labels: npt.NDArray[np.object_], policy: LabelPolicy) -> None:
    heard = label_words(labels)[:12]
    if not heard:
        raise LabelError(
            f"No rating of stimulus={policy.stimulus} is by raters={policy.raters}: choose other --raters or --stimulus"
        )
    if not len(targets.rows):
        raise LabelError(
            f"No utterance has a label under emotions {list(policy.emotions)}, keep={policy.keep}: raters said {heard}"
        )
    unheard = [e for e, total in zip(targets.emotions, targets.votes.sum(axis=0), strict=True) if total == 0]
    if unheard == [OTHER] and policy.out_of_space == "other":
        raise LabelError(f"No kept utterance has a vote outside {list(policy.emotions)}: use --out-of-space drop")
    if unheard:
        raise LabelError(
            f"No kept utterance has a vote for {unheard[0]!r}: leave it out of --emotions (raters said {heard})"
        )
