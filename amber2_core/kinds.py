"""The two kinds of what systems predict, each with metrics of its own; no table holds both."""

from __future__ import annotations

from typing import Literal

# of an utterance: shares of its raters' votes, which sum to one; or of each class whether any vote is for it
Kind = Literal["distribution", "multi-label"]
DISTRIBUTION: Kind = "distribution"
MULTI_LABEL: Kind = "multi-label"
