"""The server of predictions, asked over sockets: the command's own rows, limits, bad clients, doors, and its end."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from media_clips import tone_and_noise, write_media
from running_server import COMMAND, GATED, Running, answer, long_recording, running, words_of
from speaking_heads import Studio, made_studio
from test_transcriber import save_recogniser

from amber2_predict.units import Unit

IMPATIENT = "from amber2_predict import server, uploads; uploads.IDLE_SECONDS = 1.0; server.HEAD_SECONDS = 1.0"
MB = 1_000_000


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Studio:
    return made_studio(tmp_path_factory.mktemp("studio"), systems=("amber2",))


@pytest.fixture(scope="module")
def server(studio: Studio, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(studio, tmp_path_factory.mktemp("server") / "own", "--max-mb=8") as found:
        yield found
        assert list(found.scratch.iterdir()) == []


def said_by_the_command(studio: Studio, folder: Path, *arguments: str) -> list[dict[str, Any]]:
    heads = str(studio.run / "heads" / "amber2-fold1-seed0.safetensors")
    code, said, complaints = studio.command("--heads", heads, *arguments, cwd=folder)
    assert code == 0, complaints
    return [json.loads(line) for line in said.splitlines()]


def agree(rows: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    """The same rows, whose numbers may differ in the last digits."""
    assert len(rows) == len(expected)
    for row, other in zip(rows, expected, strict=True):
        assert row.keys() == other.keys()
        for name in row.keys() - {"file", "heads"}:
            assert row[name] == (pytest.approx(other[name], abs=1e-5) if isinstance(row[name], float) else other[name])
        assert row["heads"].keys() == other["heads"].keys()
        for head in row["heads"]:
            assert row["heads"][head] == pytest.approx(other["heads"][head], abs=1e-5)


# --- what is answered ---


def test_rows_are_those_of_predict_emotion(studio: Studio, server: Running, tmp_path: Path) -> None:
    file = Path(studio.recordings[3])
    (row,) = server.rows(file.read_bytes(), text="one voice", name="a.wav")
    assert row["file"] == "a.wav"
    agree([row], said_by_the_command(studio, tmp_path, str(file), "--text", "one voice"))
    long_recording(tmp_path / "long.wav", 23.0)
    windows = said_by_the_command(studio, tmp_path, "long.wav", "--window", "10", "--hop", "5")
    assert [row["end"] for row in windows] == [10, 15, 20, 23]
    agree(server.rows((tmp_path / "long.wav").read_bytes()), windows)


def test_windows_of_what_a_browser_records_are_those_of_predict_emotion(
    studio: Studio, server: Running, tmp_path: Path
) -> None:
    """A container that has no index is unpacked first; nobody hears of it."""
    path = write_media(tmp_path / "a.webm", tone_and_noise(21.0, 48_000), codec="libopus", rate=48_000)
    windows = said_by_the_command(studio, tmp_path, "a.webm", "--window", "10", "--hop", "5")
    assert len(windows) == 4
    agree(server.rows(path.read_bytes()), windows)


def test_words_alone_need_no_recording(studio: Studio, server: Running) -> None:
    (row,) = server.rows(text=" one   voice\n")
    expected = studio.predictor().predict(None, transcript="one voice")
    assert row["heads"]["text"] == pytest.approx(expected.heads["text"], abs=1e-6)
    assert (row["predicted_by"], row["inputs"], row["start"]) == ("text", ["text"], None)


def test_a_recording_of_half_a_minute_is_heard_with_its_words_and_a_longer_one_in_windows_without(
    server: Running, tmp_path: Path
) -> None:
    _, _, short = server.ask("POST", "/predict", long_recording(tmp_path / "s.wav", 29.0), text="one voice")
    assert [(row["end"], row["inputs"]) for row in short["rows"]] == [(29.0, ["audio", "text"])]
    assert short["note"] is None
    _, _, long = server.ask("POST", "/predict", long_recording(tmp_path / "l.wav", 31.0), text="one voice")
    assert [row["inputs"] for row in long["rows"]] == [["audio"]] * 6
    assert long["note"] == "The words belong to no window of 10 s: voice alone is judged."


def test_rows_come_one_by_one_where_lines_are_asked_for(server: Running, tmp_path: Path) -> None:
    body = long_recording(tmp_path / "long.wav", 23.0)
    status, headers, said = server.ask("POST", "/predict", body, headers={"Accept": "application/x-ndjson"})
    assert (status, headers["content-type"]) == (200, "application/x-ndjson")
    head, *rows = map(json.loads, said.splitlines())
    assert head == {"emotions": server.ask("GET", "/about")[2]["emotions"], "note": None, "count": 4}
    agree(rows, server.rows(body))


def test_a_silent_window_is_a_row_with_its_error(server: Running, tmp_path: Path) -> None:
    sound = np.random.default_rng(0).standard_normal(8000 * 30) * 0.1
    sound[: 8000 * 11] = 0.0
    soundfile.write(tmp_path / "half.wav", sound, 8000)
    rows = server.rows((tmp_path / "half.wav").read_bytes(), name="half.wav")
    assert [row["error"] for row in rows] == ["half.wav: is silent: every sample is zero", *[None] * 4]


def test_a_recogniser_hears_what_has_no_words(studio: Studio, tmp_path: Path) -> None:
    save_recogniser(tmp_path / "asr")
    predictor = studio.predictor(transcribe=str(tmp_path / "asr"))
    with running(studio, tmp_path / "own", f"--transcribe={tmp_path / 'asr'}") as server:
        assert server.ask("GET", "/about")[2]["transcribes"] is True
        (row,) = server.rows(Path(studio.recordings[0]).read_bytes())
        (expected,) = predictor.rows([Unit("", Path(studio.recordings[0]))])
        assert (row["transcript"], row["transcript_from"]) == (expected["transcript"], "recogniser")
        assert row["heads"]["fusion"] == pytest.approx(expected["heads"]["fusion"], abs=1e-5)
        _, _, long = server.ask("POST", "/predict", long_recording(tmp_path / "l.wav", 31.0), text="one voice")
        assert [row["transcript_from"] for row in long["rows"]] == ["recogniser"] * 6
        assert long["note"].endswith("what a recogniser hears in each is read instead.")


def test_about_tells_what_a_caller_must_know(server: Running) -> None:
    status, _, about = server.ask("GET", "/about")
    assert status == 200
    assert (about["version"], about["device"]) == (version("amber2"), "cpu")
    assert about["emotions"] == ["neutral", "happy", "angry", "sad"]
    assert about["heads"] == ["audio", "text", "fusion"]
    assert about["reads"] == {"audio": "audio", "text": "text"}
    assert about["encoders"] == {"audio": "wav2vec2", "text": "bert"}
    assert about["limits"] == {"megabytes": 8, "seconds": 7200.0, "at_once": 16, "characters": 5000}
    assert (about["windows"]["seconds"], about["windows"]["hop"]) == (10.0, 5.0)


def test_the_page_and_all_else_come_from_this_process_alone(server: Running) -> None:
    for path, kind in {"/": "text/html", "/page.js": "text/javascript", "/page.css": "text/css"}.items():
        status, headers, said = server.ask("GET", path)
        assert (status, headers["content-type"]) == (200, f"{kind}; charset=utf-8")
        assert b"http://" not in said.replace(b"http://www.w3.org/2000/svg", b"")
        assert b"https://" not in said
        rules = dict(rule.split(" ", 1) for rule in headers["content-security-policy"].split("; "))
        assert (rules["default-src"], rules["script-src"], rules["connect-src"]) == ("'none'", "'self'", "'self'")
        assert headers["x-content-type-options"] == "nosniff"


# --- what is refused ---


def test_bad_requests_are_one_line_of_json_with_their_status(server: Running, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "silent.wav", np.zeros(16_000), 16_000)
    soundfile.write(tmp_path / "short.wav", np.full(100, 0.1), 16_000)
    silent, short = ((tmp_path / f"{name}.wav").read_bytes() for name in ("silent", "short"))
    asked: list[tuple[int, str, str, str, bytes | None]] = [
        (400, "Nothing to predict: send a recording as the body", "POST", "/predict", None),
        (400, "Nothing to predict", "POST", "/predict?text=%20&name=a.wav", None),
        (400, "Bad query 'words': expected text and name, each once", "POST", "/predict?words=a", b""),
        (400, "Bad query: expected text and name, each once", "POST", "/predict?text=a&text=b", b""),
        (400, "The query cannot be read", "POST", "/predict?text=%ff", b""),
        (400, "The text has 5,001 characters, more than 5,000", "POST", f"/predict?text={'a' * 5001}", b""),
        (422, "notes.wav: cannot be decoded", "POST", "/predict?name=notes.wav", b"this is a text"),
        (422, "page.wav: is an HTML or XML page, not sound", "POST", "/predict?name=page.wav", b"<html><body>"),
        (422, "s.wav: is silent: every sample is zero", "POST", "/predict?name=s.wav", silent),
        (422, "is too short: 100 samples", "POST", "/predict?name=%00%0a", short),
        (413, "The recording has 9 MB, more than 8", "POST", "/predict", bytes(9 * MB)),
        (404, "Not Found", "GET", "/predictions", None),
        (404, "Not Found", "GET", "/../setup.cfg", None),
        (405, "Method Not Allowed", "GET", "/predict", None),
        (405, "Method Not Allowed", "DELETE", "/", None),
    ]
    for status, line, method, path, body in asked:
        found, _, said = server.ask(method, path, body)
        assert (found, list(said)) == (status, ["error"]), (path, said)
        assert line in said["error"]
        assert "\n" not in said["error"]


def test_a_form_or_json_is_told_how_a_recording_is_sent(server: Running) -> None:
    for kind in ("multipart/form-data; boundary=x", "Application/JSON"):
        status, _, said = server.ask("POST", "/predict", b"--x", headers={"Content-Type": kind})
        assert status == 415
        assert said["error"].endswith("send the recording as it is (curl --data-binary @FILE), and words as ?text=")


def test_what_is_too_long_or_finds_no_room_on_the_disk_is_refused(studio: Studio, tmp_path: Path) -> None:
    full = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))"
    with running(studio, tmp_path / "own", "--max-seconds=20", before=full) as server:
        status, _, said = server.ask("POST", "/predict", long_recording(tmp_path / "l.wav", 21.0), name="l.wav")
        assert (status, said) == (413, {"error": "l.wav: is 21 s long, more than 20 s"})
        status, _, said = server.ask("POST", "/predict", bytes(2 * MB))
        assert (status, said) == (507, {"error": "The recording cannot be held: File too large"})
        server.rows(text="one voice")


def test_two_gigabytes_are_refused_without_memory(server: Running) -> None:
    server.rows(text="one voice")
    before = server.peak()
    connection = server.begin("POST", "/predict", headers={"Content-Length": str(2**31)})
    status, _, said = answer(connection)
    assert (status, said["error"]) == (413, "The recording has 2,147 MB, more than 8")
    pieces = 0

    def endless() -> Iterator[bytes]:
        nonlocal pieces
        for _ in range(2**31 // MB):
            pieces += 1
            yield bytes(MB)

    try:
        connection = server.begin("POST", "/predict", endless())
        status, _, said = answer(connection)
        assert (status, said["error"]) == (413, "The recording has more than 8 MB")
    except ConnectionError:
        assert pieces > 8  # hung up on, for not having heard the answer
    assert server.peak() - before < 30 * MB
    server.rows(text="one voice")


# --- many, slow and rude clients ---


def test_ten_at_once_each_get_their_own_answer(studio: Studio, server: Running) -> None:
    files = [Path(name) for name in studio.recordings[:10]]
    expected = [studio.predictor().predict(*soundfile.read(file), f"voice {k}") for k, file in enumerate(files)]
    with ThreadPoolExecutor(10) as pool:
        found = list(pool.map(lambda k: server.rows(files[k].read_bytes(), text=f"voice {k}"), range(10)))
    for (row,), own in zip(found, expected, strict=True):
        assert row["heads"]["fusion"] == pytest.approx(own.heads["fusion"], abs=1e-5)


def test_more_than_may_wait_are_told_to_come_again(studio: Studio, tmp_path: Path) -> None:
    with running(studio, tmp_path / "own", "--at-once=2", before=GATED) as server:
        waiting = [server.begin("POST", "/predict", text="one voice") for _ in range(2)]
        wait_until(lambda: server.ask("GET", "/about")[0] == 200)
        status, headers, said = server.ask("POST", "/predict", text="one voice")
        assert (status, headers["retry-after"]) == (503, "5")
        assert said == {"error": "The server is busy: as many requests wait as it takes. Ask again in a moment"}
        assert server.ask("GET", "/about")[0] == 200
        (server.folder / "open").touch()
        assert [answer(connection)[0] for connection in waiting] == [200, 200]
        server.rows(text="one voice")


def test_slow_clients_are_dropped_and_others_are_served_meanwhile(studio: Studio, tmp_path: Path) -> None:
    with running(studio, tmp_path / "own", before=IMPATIENT) as server:
        slow, mute, half = (socket.create_connection(("127.0.0.1", server.port), timeout=60) for _ in range(3))
        slow.sendall(b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nRIFF")
        half.sendall(b"GET /about HTT")
        server.rows(text="one voice")
        assert slow.recv(1 << 16).startswith(b"HTTP/1.1 408 Request Timeout")
        for one in (slow, mute, half):
            while one.recv(1 << 16):
                pass
            one.close()
        server.rows(text="one voice")


def test_who_hangs_up_half_way_ends_nothing_but_their_own_work(studio: Studio, tmp_path: Path) -> None:
    body = long_recording(tmp_path / "long.wav", 1000.0)
    with running(studio, tmp_path / "own", before=GATED) as server:
        half = socket.create_connection(("127.0.0.1", server.port))
        half.sendall(b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nRIFF")
        half.close()
        for headers in ({"Accept": "application/x-ndjson"}, {}):
            server.begin("POST", "/predict", body, headers).close()
        (server.folder / "open").touch()
        server.rows(text="one voice")
        wait_until(lambda: list(server.scratch.iterdir()) == [])
        server.rows(text="one voice")
        assert len((server.folder / "counted").read_text()) < 100  # of twice 199 windows


@pytest.mark.thorough
def test_an_hour_keeps_nobody_waiting_and_takes_no_memory(studio: Studio, tmp_path: Path) -> None:
    body, rows = long_recording(tmp_path / "hour.wav", 3600.0), []
    with running(studio, tmp_path / "own") as server:
        server.rows(long_recording(tmp_path / "minute.wav", 60.0))
        before = server.peak()
        response = server.begin("POST", "/predict", body, {"Accept": "application/x-ndjson"}).getresponse()
        assert json.loads(response.readline())["count"] == 719
        rows.append(json.loads(response.readline()))
        reader = threading.Thread(target=lambda: rows.extend(map(json.loads, response)))
        reader.start()
        server.rows(text="one voice")
        assert len(rows) < 719
        reader.join()
        assert [row["start"] for row in rows] == [5.0 * k for k in range(719)]
        assert all(row["error"] is None for row in rows)
        assert server.peak() - before < 60 * MB


def wait_until(is_so: Any) -> None:
    limit = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < limit
        time.sleep(0.02)


# --- doors ---


def test_only_the_page_itself_and_programs_may_ask(server: Running) -> None:
    own = f"127.0.0.1:{server.port}"
    names: dict[str, int] = {
        own: 200, "localhost": 200, f"LOCALHOST:{server.port}": 200, "[::1]:1": 200,
        "attacker.example": 400, "localhost.attacker.example": 400, "169.254.169.254": 400, "[::1": 400, "": 400,
    }  # fmt: skip
    for name, status in names.items():
        assert server.ask("GET", "/about", headers={"Host": name})[0] == status, name
    origins: list[tuple[dict[str, str], int]] = [
        ({"Origin": f"http://{own}"}, 200),
        ({"Origin": f"http://{own}", "Sec-Fetch-Site": "same-origin"}, 200),
        ({"Origin": "https://attacker.example"}, 403),
        ({"Origin": "http://127.0.0.1:1"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://[::1"}, 403),
        ({"Origin": f"http://{own}.attacker.example"}, 403),
        ({"Origin": f"http://{own}@attacker.example"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site", "Origin": f"http://{own}"}, 403),
    ]
    for headers, status in origins:
        assert server.ask("POST", "/predict", headers={"Host": own, **headers}, text="a")[0] == status, headers


def test_an_open_door_is_told_in_one_line_and_opens_to_any_name(studio: Studio, tmp_path: Path) -> None:
    with running(studio, tmp_path / "own", "--host=0.0.0.0") as server:
        assert server.ask("GET", "/about", headers={"Host": "lab.example"})[0] == 200
        server.process.terminate()
        code, complaints = server.ended()
    assert (code, complaints.splitlines()) == (
        0,
        ["warning: 0.0.0.0 is open to the network: there is no password, and nothing is encrypted"],
    )


# --- the beginning and the end ---


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_at_once_whoever_waits(studio: Studio, tmp_path: Path, number: int) -> None:
    """One computes and never ends, one waits for a turn, one still sends."""
    with running(studio, tmp_path / "own", before=GATED) as server:
        waiting = [server.begin("POST", "/predict", text="one voice") for _ in range(2)]
        half = socket.create_connection(("127.0.0.1", server.port))
        half.sendall(b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nRIFF")
        assert server.ask("GET", "/about")[0] == 200
        time.sleep(0.5)
        server.process.send_signal(number)
        answers = [answer(connection) for connection in waiting]
        assert [(status, said) for status, _, said in answers] == [(503, {"error": "The server is ending"})] * 2
        assert server.ended() == (0, "")
        assert list(server.scratch.iterdir()) == []
        half.close()


def test_stopped_in_the_moment_it_is_ready_it_ends_as_ever(studio: Studio, tmp_path: Path) -> None:
    stopping = """
import click, os, signal
echo = click.echo
def echo_and_stop(line):
    echo(line)
    os.kill(os.getpid(), signal.SIGINT)
click.echo = echo_and_stop
"""
    with running(studio, tmp_path / "own", before=stopping) as server:
        assert server.ended() == (0, "")


def test_killed_in_the_midst_of_an_upload_it_leaves_nothing(studio: Studio, tmp_path: Path) -> None:
    with running(studio, tmp_path / "own") as server, socket.create_connection(("127.0.0.1", server.port)) as half:
        half.sendall(b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000000\r\n\r\n" + bytes(MB))
        held = Path(f"/proc/{server.process.pid}/fd")
        wait_until(lambda: any("(deleted)" in os.readlink(file) for file in held.iterdir()))
        server.process.kill()
        server.process.wait()
        assert list(server.scratch.iterdir()) == []


def complaint(studio: Studio, *options: str, before: str = "") -> tuple[int, str]:
    words = [sys.executable, "-c", f"{before}\n{COMMAND}", *words_of(studio, *options)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def test_a_mistake_of_the_programs_own_is_one_line_here_and_there(studio: Studio, tmp_path: Path) -> None:
    broken = "from amber2_predict import predictor; predictor.probs_of = None"
    with running(studio, tmp_path / "own", before=broken) as server:
        expected = {"error": "The request failed, by a mistake of this program's"}
        assert server.ask("POST", "/predict", text="one voice")[::2] == (500, expected)
        lines = server.ask("POST", "/predict", headers={"Accept": "application/x-ndjson"}, text="one voice")[2]
        assert json.loads(lines.splitlines()[1]) == expected
        assert server.ask("GET", "/about")[0] == 200
        server.process.terminate()
        code, complaints = server.ended()
    assert (code, complaints.splitlines()) == (0, ["warning: a request failed: TypeError"] * 2)


def test_a_port_that_is_taken_is_one_line_before_anything_is_loaded(studio: Studio) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        code, said = complaint(studio, f"--port={port}", before="import sys; sys.modules['torch'] = None")
    reason = f"Cannot listen on 127.0.0.1 port {port} (Address already in use): name another --port, or 0 for any"
    assert (code, said) == (1, f"error: {reason}\n")


def test_without_its_extra_it_says_what_to_install(studio: Studio) -> None:
    code, said = complaint(studio, before="import sys; sys.modules['uvicorn'] = None")
    assert (code, said) == (1, "error: A server needs starlette and uvicorn: pip install 'amber2[app]'\n")


def test_heads_that_are_not_there_are_one_line(studio: Studio, tmp_path: Path) -> None:
    code, said = complaint(studio, "--port=0", "--heads", str(tmp_path / "none.safetensors"))
    assert code == 1
    assert said.startswith("error: ")
    assert said.count("\n") == 1


def test_memory_and_files_stay_as_they_are_over_many_requests(studio: Studio, server: Running) -> None:
    body = Path(studio.recordings[0]).read_bytes()

    def held() -> int:
        """Files that are still open a while after the last answer, behind which the server tidies up."""
        counts = []
        for _ in range(50):
            counts.append(len(list(Path(f"/proc/{server.process.pid}/fd").iterdir())))
            time.sleep(0.02)
        return min(counts)

    def ask(count: int) -> None:
        for k in range(count):
            server.ask("POST", "/predict", body if k % 2 else b"no sound", headers={"Connection": "close"})

    ask(20)
    files, before, threads = held(), server.peak(), threading.active_count()
    ask(150)
    assert threading.active_count() == threads
    assert held() <= files
    assert server.peak() - before < 20 * MB


def test_as_many_words_as_may_be_are_taken(server: Running) -> None:
    """In signs that are longest in a query."""
    (row,) = server.rows(text="𝄞" * 5000)
    assert row["error"] is None
