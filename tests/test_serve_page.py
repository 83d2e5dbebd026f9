"""The page of serve-emotion in a real browser: what it shows is what the command says, and it asks nobody else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from browser import Page, browser, find_chromium
from running_server import GATED, Running, long_recording, running
from speaking_heads import Studio, made_studio

CHROMIUM = find_chromium()
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium")
# head → emotion → share
SHOWN = """
Object.fromEntries([...document.querySelectorAll("#detail table")].map((table) => [
  table.dataset.head,
  Object.fromEntries([...table.rows].map((row) => [row.cells[0].textContent, Number(row.querySelector("data").value)])),
]))
"""
DONE = "by('status').textContent === 'Done.' || !by('error').hidden"


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Studio:
    return made_studio(tmp_path_factory.mktemp("studio"), systems=("amber2",))


@pytest.fixture(scope="module")
def server(studio: Studio, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(studio, tmp_path_factory.mktemp("server") / "own", "--max-mb=5") as found:
        yield found


@pytest.fixture
def page(server: Running, studio: Studio) -> Iterator[Page]:
    """The page of the server, whose microphone hears a recording of the corpus."""
    microphone = [
        "--use-fake-device-for-media-stream",
        "--use-fake-ui-for-media-stream",
        f"--use-file-for-fake-audio-capture={studio.recordings[1]}",
    ]
    assert CHROMIUM is not None
    with browser(CHROMIUM, *microphone) as found:
        opened(found, server)
        yield found
        assert {url.split("/")[2] for url in found.requests() if not url.startswith("blob:")} == {own(server)}


def own(server: Running) -> str:
    return f"127.0.0.1:{server.port}"


def opened(page: Page, server: Running) -> None:
    page.open(f"http://{own(server)}/")
    page.wait_for("about !== null")


def type_words(page: Page, words: str) -> None:
    page.run(f"by('words').value = {json.dumps(words)}; by('words').dispatchEvent(new Event('input'))")


def predict(page: Page) -> dict[str, Any]:
    """Press the button; what heads say by emotion, as it is shown."""
    page.wait_for("!by('predict').disabled")
    page.run("by('predict').click()")
    page.wait_for(DONE)
    assert page.run("by('error').hidden"), page.run("by('error').textContent")
    found: dict[str, Any] = page.run(SHOWN)
    return found


def text(page: Page, selector: str) -> str:
    return str(page.run(f"document.querySelector({selector!r}).textContent"))


def test_what_is_shown_is_what_the_command_says(studio: Studio, page: Page, tmp_path: Path) -> None:
    heads = str(studio.run / "heads" / "amber2-fold1-seed0.safetensors")
    words = ["--heads", heads, studio.recordings[3], "--text", "one voice"]
    code, said, complaints = studio.command(*words, cwd=tmp_path)
    assert code == 0, complaints
    row = json.loads(said)
    page.put("#file", Path(studio.recordings[3]))
    type_words(page, "one voice")
    shown = predict(page)
    assert list(shown) == ["fusion", "audio", "text"]
    for head, distribution in row["heads"].items():
        assert shown[head] == pytest.approx(distribution, abs=1e-5)
    assert text(page, "#label") == row["label"]
    numbers = page.run("[...document.querySelectorAll('.card data')].map((one) => Number(one.value))")
    assert numbers == pytest.approx([row["rater_ambiguity"], row["modality_ambiguity"]], abs=1e-5)
    assert {"audio": "voice", "text": "words"}[row["trusted_expert"]] in text(page, ".facts")
    saved = page.run("fetch(by('save').href).then((reply) => reply.json()).catch(() => null)")
    assert saved is None  # the page may ask nobody but its server, not even itself
    assert page.run("by('save').href").startswith("blob:")


def test_words_alone_are_judged_and_what_looks_like_markup_stays_text(page: Page, tmp_path: Path) -> None:
    type_words(page, "<img src=x onerror=alert(1)> one voice")
    assert list(predict(page)) == ["text"]
    nasty = tmp_path / "<b>x<script>.wav"
    soundfile.write(nasty, 0.1 * np.random.default_rng(0).standard_normal(16_000), 16_000)
    page.put("#file", nasty)
    predict(page)
    assert text(page, "#chosen-name") == "<b>x<script>.wav"
    assert "<b>x<script>.wav" in text(page, ".facts")
    assert page.run("document.querySelectorAll('main b, main img, main script').length") == 0
    assert page.complaints() == []


def test_what_the_microphone_hears_is_predicted(page: Page) -> None:
    page.run("by('record').click()")
    page.wait_for("by('record').getAttribute('aria-pressed') === 'true'")
    page.wait_for("by('record-words').textContent >= 'Stop 00:02'")
    assert page.run("by('predict').disabled")
    page.run("by('record').click()")
    page.wait_for("!by('chosen').hidden")
    shown = predict(page)
    assert sum(shown["audio"].values()) == pytest.approx(1)
    assert text(page, "#chosen-name") == "recording.webm"


def test_the_course_of_a_long_recording_is_drawn_and_told(server: Running, page: Page, tmp_path: Path) -> None:
    body = long_recording(tmp_path / "long.wav", 63.0)
    page.put("#file", tmp_path / "long.wav")
    page.run("by('words').value = ''")
    predict(page)
    rows = server.rows(body)
    assert page.run("by('windows').tBodies[0].rows.length") == len(rows) == 12
    assert page.run("document.querySelectorAll('#chart path[class^=e]').length") == 4
    page.run("by('window').value = 7; by('window').dispatchEvent(new Event('input'))")
    assert page.run(SHOWN)["audio"] == pytest.approx(rows[7]["heads"]["audio"], abs=1e-5)
    page.run("by('windows').tBodies[0].rows[3].querySelector('button').click()")
    assert page.run(SHOWN)["audio"] == pytest.approx(rows[3]["heads"]["audio"], abs=1e-5)
    for width in (390, 1100):
        page.resize(width)
        assert page.run("document.documentElement.scrollWidth <= document.documentElement.clientWidth")


def test_errors_are_told_in_words_and_no_older_prediction_stays_beside_them(page: Page, tmp_path: Path) -> None:
    type_words(page, "one voice")
    predict(page)
    (tmp_path / "notes.wav").write_text("this is a text")
    page.put("#file", tmp_path / "notes.wav")
    page.run("by('predict').click()")
    page.wait_for("!by('error').hidden")
    assert text(page, "#error") == "notes.wav: cannot be decoded (Format not recognised)"
    assert page.run("by('result').hidden")
    (tmp_path / "large.wav").write_bytes(bytes(6_000_000))
    page.put("#file", tmp_path / "large.wav")
    page.wait_for("by('error').textContent.startsWith('large.wav has 6 MB')")


def test_a_busy_server_is_asked_again_by_itself(studio: Studio, tmp_path: Path) -> None:
    hurried = f"{GATED}\nfrom amber2_predict import service; service._RETRY_SECONDS = 1"
    assert CHROMIUM is not None
    with running(studio, tmp_path / "own", "--at-once=1", before=hurried) as server, browser(CHROMIUM) as page:
        waiting = server.begin("POST", "/predict", text="one voice")
        opened(page, server)
        type_words(page, "two voices")
        page.run("by('predict').click()")
        page.wait_for("by('status').textContent.startsWith('The server is busy. Trying again')")
        (server.folder / "open").touch()
        assert waiting.getresponse().status == 200
        page.wait_for(DONE)
        assert list(page.run(SHOWN)) == ["text"]


def test_every_control_has_a_name_and_is_reached_by_the_keyboard(page: Page) -> None:
    tree = page.ask("Accessibility.getFullAXTree")["nodes"]
    roles = {"button", "textbox", "slider", "combobox", "link"}
    controls = [node for node in tree if node.get("role", {}).get("value") in roles]
    assert len(controls) >= 3
    assert [node for node in controls if not node.get("name", {}).get("value")] == []
    assert page.run("[...document.querySelectorAll('[tabindex]')].every((one) => one.tabIndex >= 0)")
    page.run("by('words').focus()")
    page.ask("Input.insertText", text="one voice")
    page.ask("Input.dispatchKeyEvent", type="keyDown", key="Tab", windowsVirtualKeyCode=9)
    assert page.run("document.activeElement.id") == "predict"
    page.ask("Input.dispatchKeyEvent", type="keyDown", key="Enter", text="\r", windowsVirtualKeyCode=13)
    page.wait_for(DONE)
    assert list(page.run(SHOWN)) == ["text"]
