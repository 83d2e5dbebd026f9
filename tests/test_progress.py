"""What is said of an encoding under way is true, and said as often as promised."""

from __future__ import annotations

import logging

import pytest

from amber2_extract.encoding import Progress
from amber2_extract.progress import ProgressLines, describe


def _progress(share: float, elapsed: float, *, seconds: float = 3600.0) -> Progress:
    done = round(1000 * share)
    return Progress("audio/hubert", done, 1000, share * seconds, seconds, share, elapsed, 0.004)


def test_the_words_hold_utterances_hours_speed_padding_and_time_left() -> None:
    assert describe(_progress(0.2, 72)) == (
        "200 of 1,000, 0.20 of 1.00 h, 10.0 times real time, 0.4 % padding, 5 min left"
    )
    assert describe(_progress(0.5, 72, seconds=0)) == "500 of 1,000, 0.4 % padding, 72 s left"
    assert describe(_progress(0.0, 0)) == "0 of 1,000, 0.00 of 1.00 h, 0.4 % padding"
    assert "15.0 h left" in describe(_progress(0.25, 5 * 3600))


def test_a_line_is_said_when_it_is_time_for_one(caplog: pytest.LogCaptureFixture) -> None:
    now = 100.0
    lines = ProgressLines(every=30, clock=lambda: now)
    with caplog.at_level(logging.INFO):
        for now in (101.0, 129.9, 130.0, 131.0, 159.0, 190.0):
            lines(_progress(0.5, now - 100))
    assert len(caplog.messages) == 2
    assert caplog.messages[0] == (
        "audio/hubert: 500 of 1,000, 0.50 of 1.00 h, 60.0 times real time, 0.4 % padding, 30 s left"
    )
