"""What is sent to the server, before it is predicted: queries, bodies that come by and by, files without a name."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amber2_predict import uploads
from amber2_predict.units import Windows
from amber2_predict.uploads import Limits, Query, RefusedError, asked_of, received, unnamed_file, upload_of


@given(st.binary(max_size=60))
def test_any_query_is_understood_or_refused_in_one_line(query: bytes) -> None:
    refusal = ""
    try:
        asked = asked_of(query)
    except RefusedError as problem:
        refusal = f"{problem.status} {problem}"
        asked = Query()
    assert not refusal or (refusal.startswith("400 ") and refusal.isprintable())
    assert asked.words is None or asked.words.strip()
    assert asked.name
    assert "\n" not in f"{asked.words}{asked.name}"


def test_words_and_names_are_those_of_the_query_without_what_ends_lines() -> None:
    assert asked_of(b"text=%20I+never%0Asaid%20that.&name=a%0ab.wav") == Query("I never said that.", "ab.wav")
    assert asked_of(b"") == Query(None, "recording")
    assert asked_of(b"text=gr%C3%BC%C3%9Fe") == Query("grüße", "recording")


@pytest.mark.parametrize("has_open_files", [True, False])
def test_a_file_can_be_read_where_it_is_said_to_lie_and_is_gone_afterwards(
    has_open_files: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the system does not let open files be opened again."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    if not has_open_files:
        monkeypatch.setattr(uploads, "_OPEN_FILES", tmp_path / "none")
    with suppress(KeyError), unnamed_file() as (file, path):
        file.write(b"sound")
        file.flush()
        assert path.read_bytes() == path.read_bytes() == b"sound"
        named = list(tmp_path.iterdir())
        assert all(one.stat().st_mode & 0o77 == 0 for one in named)
        assert not has_open_files or named == []
        raise KeyError("whatever happens")
    assert list(tmp_path.iterdir()) == []


def come(*chunks: bytes, pause: float = 0.0) -> tuple[int, int]:
    """The size of a body that comes in pieces, and how many of them were waited for."""
    count = 0

    async def pieces() -> AsyncIterator[bytes]:
        nonlocal count
        for chunk in chunks:
            await asyncio.sleep(pause)
            count += 1
            yield chunk

    with unnamed_file() as (file, path):
        size = asyncio.run(received(pieces(), file, Limits(megabytes=1)))
        assert path.read_bytes() == b"".join(chunks)
    return size, count


def test_a_body_is_written_as_it_comes() -> None:
    assert come(b"RI", b"", b"FF") == (4, 3)


def test_a_body_that_is_too_large_is_waited_for_no_longer() -> None:
    with pytest.raises(RefusedError, match="more than 1 MB") as problem:
        come(*[bytes(600_000)] * 50)
    assert problem.value.status == 413


@pytest.mark.parametrize("limit", ["IDLE_SECONDS", "BODY_SECONDS"])
def test_a_body_that_pauses_or_never_ends_is_waited_for_no_longer(limit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, limit, 0.05)
    with pytest.raises(RefusedError, match="stopped arriving") as problem:
        come(*[b"a"] * 20, pause=10.0 if limit == "IDLE_SECONDS" else 0.01)
    assert problem.value.status == 408


def test_heads_that_hear_nothing_get_the_words_and_the_recording_is_not_looked_at(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"no sound")
    settings: dict[str, Any] = {"transcribes": False, "windows": Windows(10.0, 5.0), "limits": Limits()}
    with unnamed_file() as room:
        asked, recording = Query("one voice", "a.wav"), tmp_path / "a"
        (unit,) = upload_of(asked, recording, room, listens=False, **settings).units
        assert (unit.file, unit.transcript, unit.transcript_from, unit.start) == ("a.wav", "one voice", "text", None)
        with pytest.raises(RefusedError, match=r"^a\.wav: cannot be decoded") as problem:
            upload_of(asked, recording, room, listens=True, **settings)
        assert problem.value.status == 422
