"""The page: its numbers are those of results.csv, its text is text, and a real browser finds nothing wrong with it."""

from __future__ import annotations

import csv
import html.parser
import json
import re
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
from browser import Page, browser, find_chromium
from run_folders import GRID, HEADS, Sketch, write_run

from amber2_core.metrics import METRICS
from amber2_core.run_folder import load, read_predictions, write_predictions
from amber2_report.drawing import Drawing, house_style
from amber2_report.figures import calibration_figures, confusion_figures
from amber2_report.groups import Group
from amber2_report.page import Report, write_report

HOSTILE = (
    "</script><script>document.title = 'taken'</script>",
    '"quoted" & \'single\' <img src=x onerror="document.title=1">',
    "مرحبا بالعالم – hello",
    "I am fine 🙂\u2028{{ 7 * 7 }}",
)
NASTY_EMOTION = "<b>sad</b>"


class Tables(html.parser.HTMLParser):
    """The tables of a page: name → rows of (texts of the cell, values of its data elements)."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: dict[str, list[list[tuple[str, list[float]]]]] = {}
        self.columns: dict[str, list[str]] = {}
        self._table = ""
        self._in_cell = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        if tag == "table":
            self._table = attributes.get("data-table") or ""
        elif tag == "th" and self._table and attributes.get("data-column"):
            self.columns.setdefault(self._table, []).append(attributes["data-column"] or "")
        elif tag == "tr" and self._table:
            self.found.setdefault(self._table, []).append([])
        elif tag == "td" and self._table:
            self.found[self._table][-1].append(("", []))
            self._in_cell = True
        elif tag == "data" and self._in_cell:
            self.found[self._table][-1][-1][1].append(float(attributes["value"] or "nan"))

    def handle_endtag(self, tag: str) -> None:
        if tag == "td":
            self._in_cell = False
        elif tag == "table":
            self._table = ""

    def handle_data(self, data: str) -> None:
        if self._in_cell and self._table:
            text, values = self.found[self._table][-1][-1]
            self.found[self._table][-1][-1] = (text + data, values)

    def rows(self, name: str) -> list[dict[str, tuple[str, list[float]]]]:
        return [dict(zip(self.columns[name], row, strict=True)) for row in self.found[name] if row]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """A report of a run with a grid, an emotion and transcripts that would like to be markup."""
    place = tmp_path_factory.mktemp("report")
    sketch = Sketch(
        count=90, grid=GRID, transcripts=HOSTILE, emotions=("neutral", NASTY_EMOTION, "angry", "happy"), seeds=3
    )
    write_run(place / "run", sketch, cache=place / "cache.h5")
    return write_report([place / "run"], place / "out")


@pytest.fixture(scope="module")
def text(report: Report) -> str:
    return report.page.read_text(encoding="utf-8")


def results(report: Report) -> list[dict[str, str]]:
    with (report.folder.parent / "run" / "results.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def mean_and_sd(rows: list[dict[str, str]], metric: str) -> tuple[float, float]:
    """Over seeds, of the mean over folds, without any code of ours."""
    seeds = sorted({row["seed"] for row in rows})
    means = [statistics.fmean(float(row[metric]) for row in rows if row["seed"] == seed) for seed in seeds]
    return statistics.fmean(means), statistics.stdev(means)


def agrees(cell: tuple[str, list[float]], mean: float, sd: float) -> None:
    words, values = cell
    assert values == pytest.approx([mean, sd], abs=1e-12)
    assert [float(word) for word in re.findall(r"\d+\.\d+", words)] == [round(mean, 3), round(sd, 3)]


def test_every_number_of_the_result_tables_is_that_of_results_csv(report: Report, text: str) -> None:
    tables, rows = Tables(text), results(report)
    checked = 0
    for name in ("heads-distribution", "heads-classification", "systems-distribution", "systems-classification",
                 "all-metrics"):  # fmt: skip
        for row in tables.rows(name):
            system, head = row.pop("entry")[0].split()
            own = [r for r in rows if (r["system"], r["head"], r["split"]) == (system, head, "test")]
            for metric, cell in row.items():
                agrees(cell, *mean_and_sd(own, metric))
                checked += 1
    assert checked == 6 * 3 + 6 * 3 + 2 * 3 + 2 * 3 + 6 * len(METRICS)


def test_every_number_of_the_fold_table_is_that_of_results_csv(report: Report, text: str) -> None:
    rows = results(report)
    listed = Tables(text).rows("folds")
    assert len(listed) == 6 * 3
    for row in listed:
        system, head = row.pop("entry")[0].split()
        key = (system, head, "test", row.pop("fold")[0])
        own = [r for r in rows if (r["system"], r["head"], r["split"], r["fold"]) == key]
        assert {row.pop("n")[0]} == {r["n"] for r in own}
        for metric, cell in row.items():
            numbers = [float(r[metric]) for r in own]
            agrees(cell, statistics.fmean(numbers), statistics.stdev(numbers))


def test_every_number_of_the_settings_table_is_that_of_results_csv(report: Report, text: str) -> None:
    rows = results(report)
    listed = Tables(text).rows("settings-amber2-fusion")
    assert len(listed) == len(GRID)
    for row in listed:
        point = (row.pop("lambda_mai")[0], row.pop("kappa")[0])
        own = [r for r in rows if (r["system"], r["head"], r["split"], r["lambda_mai"], r["kappa"])
               == ("amber2", "fusion", "dev", *point)]  # fmt: skip
        chosen = len({r["fold"] for r in own if r["selected"] == "1"})
        assert row.pop("folds_that_chose_it")[0] == str(chosen)
        for metric, cell in row.items():
            agrees(cell, *mean_and_sd(own, metric))


def test_every_number_by_ambiguity_is_that_of_the_predictions(report: Report, text: str) -> None:
    run = load(report.folder.parent / "run")
    rated = np.stack([run.utterances[name] for name in run.utterances if name.startswith("rated_")], axis=1)
    bits = np.array([reference.entropy(y.tolist()) for y in rated])
    checked = 0
    for row in Tables(text).rows("ambiguity"):
        system, head = row["entry"][0].split()
        low, high = (float(end) for end in row["ambiguity"][0].split("–"))
        inside = (bits >= low - 0.005) & ((bits < high - 0.005) | (high == 2.0))
        assert int(row["n"][0]) == inside.sum()
        if not inside.any():
            continue
        own = (run.predictions["system"] == system) & (run.predictions["head"] == head)
        scores = []
        for seed in np.unique(run.predictions["seed"]):
            rows = own & (run.predictions["seed"] == seed)
            names = [name for name in run.predictions if name.startswith("predicted_")]
            shares = np.stack([run.predictions[name][rows] for name in names], axis=1)
            pairs = zip(rated[inside].tolist(), shares[inside].tolist(), strict=True)
            scores.append(statistics.fmean(reference.js(y, p) for y, p in pairs))
        assert row["js"][1] == pytest.approx([statistics.fmean(scores), statistics.stdev(scores)], abs=1e-6)
        checked += 1
    assert checked >= 4


def test_every_difference_is_that_of_results_csv(report: Report, text: str) -> None:
    rows = results(report)
    compared = list(report.chapters[0].comparisons.itertuples())
    listed = Tables(text).rows("significance")
    assert len(listed) == len(compared) == 3 * 7
    for row, one in zip(listed, compared, strict=True):
        means = []
        for entry in row["comparison"][0].split(" − "):
            system, head = entry.split()
            own = [r for r in rows if (r["system"], r["head"], r["split"]) == (system, head, "test")]
            means.append(mean_and_sd(own, one.metric)[0])
        assert row["difference"][1] == pytest.approx([means[0] - means[1]], abs=1e-6)
        assert row["interval"][1] == [one.low, one.high]
        assert row["p_holm"][1] == [one.p_holm]


def test_the_best_of_a_column_is_bold_and_nothing_else(report: Report, text: str) -> None:
    table = re.search(r'data-table="systems-distribution".*?</table>', text, re.DOTALL)
    assert table
    bold = [float(value) for value in re.findall(r'<strong><data value="([^"]+)"', table[0])]
    own = {
        system: [r for r in results(report) if (r["system"], r["head"], r["split"]) == (system, "fusion", "test")]
        for system in ("amber2", "cb-ce")
    }
    best = [
        (min if metric == "js" else max)(mean_and_sd(rows, metric)[0] for rows in own.values())
        for metric in ("js", "bc", "r2")
    ]
    assert {round(x, 3) for x in best} == {round(x, 3) for x in bold}


def test_a_run_becomes_a_page_tables_and_figures(report: Report) -> None:
    names = {path.relative_to(report.folder).as_posix() for path in report.folder.rglob("*") if path.is_file()}
    tables = {"heads-distribution", "heads-classification", "systems-distribution", "systems-classification",
              "all-metrics", "significance", "folds", "ambiguity", "subsets", "settings-amber2-fusion"}  # fmt: skip
    figures = {"ambiguity", "confusion-amber2-fusion", "confusion-cb-ce-fusion", "votes-amber2-fusion", "entropy",
               "votes-cb-ce-fusion", "reliability", "experts-class", "experts-bin", "conflict-class", "conflict-bin",
               "spread-folds", "spread-speakers", "grid-amber2-fusion", "training", "training-amber2",
               "training-cb-ce"}  # fmt: skip
    assert names == {
        "report.html",
        *(f"tables/{name}.{kind}" for name in tables for kind in ("csv", "md", "tex")),
        *(f"tables/confusion-{system}-{head}.csv" for system in ("amber2", "cb-ce") for head in HEADS),
        *(f"figures/{name}.{kind}" for name in figures for kind in ("svg", "pdf")),
    }


def test_a_report_comes_out_the_same_when_it_is_made_again(
    report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def some_anew(group: Group, speaker: Any) -> dict[str, Sequence[Drawing]]:
        with house_style():
            anew = {"calibration": calibration_figures(group), "confusions": confusion_figures(group)}
        return {**report.chapters[0].figures, **anew}

    monkeypatch.setattr("amber2_report.page.figures", some_anew)
    again = write_report([report.folder.parent / "run"], tmp_path / "again")
    files = sorted(path.relative_to(report.folder) for path in report.folder.rglob("*") if path.is_file())
    assert [f for f in files if (report.folder / f).read_bytes() != (again.folder / f).read_bytes()] == []


def test_figures_carry_their_fonts_and_nothing_from_elsewhere(report: Report) -> None:
    for path in (report.folder / "figures").glob("*.pdf"):
        pdf = path.read_bytes()
        assert b"/FontFile2" in pdf
        assert b"/Type3" not in pdf
    for path in (report.folder / "figures").glob("*.svg"):
        svg = path.read_text(encoding="utf-8")
        assert "<text" not in svg
        assert "var(" not in svg
        assert re.findall(r'href="(?!#)', svg) == []


def test_every_table_holds_its_numbers_in_full_as_csv(report: Report, text: str) -> None:
    tables = Tables(text)
    for name in tables.found:
        with (report.folder / "tables" / f"{name}.csv").open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        for row, shown in zip(rows, tables.rows(name), strict=True):
            for column, (_, values) in shown.items():
                parts = [row.get(column + end) for end in ("", "_sd", "_low", "_high")]
                assert not values or [float(part) for part in parts if part] == values


def test_the_page_names_nothing_outside_of_itself(text: str) -> None:
    loaded = re.findall(r'(?:src|href|action|data)="([^"#][^"]*)"|url\(([^)#]+)\)|@import', text)
    assert [one for one in loaded if one[0] or one[1]] == []
    assert "default-src 'none'" in text


def test_how_the_run_was_made_is_told_in_words(text: str) -> None:
    made = re.sub(r"\s+", " ", text[text.index("How it was made</h3>") :])
    for name, words in (
        ("emotions", "neutral, &lt;b&gt;sad&lt;/b&gt;, angry, happy"),
        ("utterances", "kept: 90; dropped: no counting vote 0"),
        ("folds", "3 by speaker"),
    ):
        assert f"<dt>{name}</dt><dd><bdi>{words}</bdi></dd>" in made
    assert "<code>train-heads --seeds 3</code>" in made
    assert "merge: none" in made


def test_hostile_words_are_text_in_the_file(text: str) -> None:
    assert text.count("<script") == 2 == text.count("</script")
    assert "<img" not in text
    assert "<b>" not in text
    assert "taken" in text


# --- in a browser ---


@pytest.fixture(scope="module")
def chromium() -> str:
    executable = find_chromium()
    if executable is None:
        pytest.skip("no chromium on the path: the page cannot be looked at")
    return executable


@pytest.fixture(scope="module")
def window(chromium: str) -> Iterator[Page]:
    with browser(chromium) as page:
        yield page


@pytest.fixture
def shown(window: Page, report: Report) -> Page:
    """The report, opened anew on a wide screen in the light."""
    window.events.clear()
    window.ask("Emulation.setEmulatedMedia", media="screen")
    window.prefer("light")
    window.resize(1400)
    window.open(report.page)
    return window


def ids(page: Page) -> list[str]:
    found: list[str] = page.run("[...document.querySelectorAll('tr[data-id]')].map((row) => row.dataset.id)")
    return found


def press(page: Page, words: str) -> None:
    found = f"[...document.querySelectorAll('button')].find((one) => one.textContent === {json.dumps(words)})"
    page.run(f"{found}.click()")


def first_ids(record: dict[str, Any], column: str, *, down: bool) -> list[str]:
    """The utterances of the first 25 rows, sorted by a column; equal ones stay in their order."""
    sign = -1 if down else 1
    order = sorted(range(len(record["id"])), key=lambda k: sign * record[column][k])
    return [record["id"][k] for k in order[:25]]


def settle(page: Page) -> None:
    """Longer than the search waits for the next key."""
    page.run("new Promise((done) => setTimeout(done, 250))")


def test_the_browser_has_nothing_to_complain_of_and_loads_nothing(shown: Page, report: Report) -> None:
    press(shown, "Raters split")
    press(shown, "All heads")
    settle(shown)
    assert shown.complaints() == []
    assert shown.requests() == [report.page.resolve().as_uri()]


def test_hostile_words_are_text_in_the_browser(shown: Page) -> None:
    press(shown, "All")
    assert shown.run("document.title") == "Emotion recognition: made-up"
    said = shown.run("[...document.querySelectorAll('.said')].slice(0, 4).map((one) => one.textContent)")
    assert sorted(said) == sorted(HOSTILE)
    assert shown.run("document.querySelectorAll('img, .utterances b').length") == 0
    assert shown.run(f"document.body.textContent.includes({json.dumps(NASTY_EMOTION)})")
    arabic = "[...document.querySelectorAll('.said')].find((one) => one.textContent.startsWith('مرحبا'))"
    assert shown.run(f"getComputedStyle({arabic}).direction") == "rtl"


def test_presets_and_heads_of_columns_sort(shown: Page, report: Report) -> None:
    record = json.loads(report.chapters[0].utterances)
    for preset, column in (
        ("Raters split", "ambiguity"),
        ("Modalities conflict", "conflict"),
        ("Worst predicted", "js"),
    ):
        press(shown, preset)
        assert ids(shown) == first_ids(record, column, down=True)
    shown.run("document.querySelector('th[data-name=js] button').click()")
    assert ids(shown) == first_ids(record, "js", down=False)
    assert shown.run("document.querySelector('th[data-name=js]').getAttribute('aria-sort')") == "ascending"


def test_search_finds_transcripts_speakers_and_ids_and_more_shows_more(shown: Page) -> None:
    def search(words: str) -> tuple[list[str], str]:
        shown.run(
            f"{{ const box = document.querySelector('input[type=search]'); box.value = {json.dumps(words)}; "
            "box.dispatchEvent(new Event('input')); }"
        )
        settle(shown)
        return ids(shown), str(shown.run("document.querySelector('[role=status]').textContent"))

    assert search("u00007") == (["u00007"], "1 of 90 utterances")
    assert search("🙂")[1].split()[0] == "22"
    assert search("مرحبا S4")[1] == "2 of 90 utterances"
    assert search("nothing like it") == ([], "0 of 90 utterances")
    assert len(search("")[0]) == 25
    press(shown, "Show more")
    assert len(ids(shown)) == 50


def test_a_measure_is_a_column_that_sorts(window: Page, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", Sketch(count=30), cache=tmp_path / "c.h5")
    found = read_predictions(run)
    values = np.random.default_rng(0).permutation(30) / 29
    write_predictions(run / "predictions.npz", replace(found, measures={"cb-ce/<doubt>": np.stack([values, values])}))
    window.events.clear()
    window.open(write_report([run], tmp_path / "report").page)
    assert window.run("document.querySelector('th[data-name=measure0]').textContent") == "cb-ce <doubt>"
    for order in (-1, 1):
        window.run("document.querySelector('th[data-name=measure0] button').click()")
        assert ids(window) == list(found.id[np.argsort(order * values)][:25])
    shown = window.run("[...document.querySelectorAll('td[data-name=\"cb-ce <doubt>\"]')].map((td) => td.textContent)")
    assert shown == [f"{k / 29:.3f}" for k in range(25)]
    assert window.complaints() == []


def test_what_a_head_does_not_predict_is_a_dash_and_comes_last_whichever_way_one_sorts(
    window: Page, tmp_path: Path
) -> None:
    lacking = {"text": [2, 5], "fusion": [7]}
    run = write_run(tmp_path / "run", Sketch(count=30, lacking=lacking), cache=tmp_path / "c.h5")
    report = write_report([run], tmp_path / "report")
    record = json.loads(report.chapters[0].utterances)
    names = {head: [record["id"][k] for k in rows] for head, rows in lacking.items()}
    window.events.clear()
    window.open(report.page)
    for column, last in (("conflict", names["text"]), ("js", names["fusion"])):
        for _ in range(2):
            window.run(f"document.querySelector('th[data-name={column}] button').click()")
            press(window, "Show more")
            assert ids(window)[-len(last) :] == last
    (name,) = names["fusion"]
    row = f"document.querySelector('tr[data-id={name}]')"
    assert window.run(f"[...{row}.querySelectorAll('td.n')].map((cell) => cell.textContent)")[-1] == "–"
    window.run(f"{row}.querySelector('.open button').click()")
    cells = window.run("[...document.querySelectorAll('.heads td td')].map((cell) => cell.textContent)")
    for place, head in enumerate(["raters", *record["heads"]]):
        own = cells[4 * place : 4 * place + 4]
        assert (own == ["–"] * 4) == head.endswith("fusion")
    assert window.complaints() == []


def test_all_heads_of_an_utterance_are_shown_with_their_numbers(shown: Page, report: Report) -> None:
    record = json.loads(report.chapters[0].utterances)
    press(shown, "All")
    press(shown, "All heads")
    cells = shown.run("[...document.querySelectorAll('.heads td td')].map((cell) => cell.textContent)")
    k, classes = record["id"].index("u00000"), len(record["emotions"])
    wanted = [record["target"], *record["probs"]]
    assert [float(cell) for cell in cells] == [
        x / 1000 for line in wanted for x in line[k * classes : (k + 1) * classes]
    ]
    assert "Expert weights: audio 0." in shown.run("document.querySelector('.heads .note').textContent")


@pytest.mark.parametrize("width", [400, 700, 1000, 1400])
def test_nothing_is_wider_than_the_window(shown: Page, width: int) -> None:
    shown.resize(width)
    shown.run("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    press(shown, "All heads")
    assert shown.run("document.documentElement.scrollWidth") <= width
    outside = shown.run(
        "[...document.querySelectorAll('body *')].filter((one) => !one.closest('.scroll, nav, pre, .heads, svg, bdi') "
        f"&& one.getBoundingClientRect().right > {width} + 1).map((one) => one.outerHTML.slice(0, 80))"
    )
    assert outside == []


def test_print_fits_on_its_paper_and_leaves_out_what_paper_cannot_do(shown: Page) -> None:
    shown.ask("Emulation.setEmulatedMedia", media="print")
    shown.resize(700)
    assert shown.run("document.documentElement.scrollWidth") <= 700
    assert shown.run("[...document.querySelectorAll('nav, .tools')].map((one) => getComputedStyle(one).display)") == [
        "none", "none",
    ]  # fmt: skip


# WCAG's contrast of an element's text with what lies behind it
CONTRAST = """(() => {
  const linear = (x) => x <= 0.03928 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4;
  const light = (colour) => colour.match(/[\\d.]+/g).slice(0, 3).map((x) => linear(x / 255))
    .reduce((sum, x, k) => sum + x * [0.2126, 0.7152, 0.0722][k], 0);
  const clear = (one) => /, 0\\)$|transparent/.test(getComputedStyle(one).backgroundColor);
  const behind = (one) => {
    while (clear(one)) one = one.parentElement;
    return getComputedStyle(one).backgroundColor;
  };
  const worst = {};
  const texts = 'p, td, th, h1, h3, a, button, summary, figcaption, .id, .voted, .class, svg text';
  for (const one of document.querySelectorAll(texts)) {
    if (!one.textContent.trim() || one.closest('details:not([open])')) continue;
    const style = getComputedStyle(one), inSvg = one.closest('svg');
    const ink = inSvg ? style.fill : style.color;
    if (inSvg && /^rgb\\((255, 255, 255|17, 17, 17)\\)$/.test(ink)) continue;  // words on the cells of a heat map
    const [a, b] = [light(ink), light(behind(one))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05), name = inSvg ? 'svg' : one.tagName + '.' + one.className;
    if (!(ratio >= worst[name])) worst[name] = ratio;
  }
  return worst;
})()"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_in_both_colour_schemes(shown: Page, scheme: str) -> None:
    shown.prefer(scheme)
    settle(shown)
    worst = shown.run(CONTRAST)
    assert len(worst) > 8
    assert {name: ratio for name, ratio in worst.items() if ratio < 4.5} == {}
    background = shown.run("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(255, 255, 255)") == (scheme == "light")


def test_a_recording_in_the_page_plays(
    tmp_path: Path, window: Page, report: Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wave

    from amber2_report.page import Options

    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(b"\0\1" * 4000)
    write_run(tmp_path / "run", Sketch(audio=("a.wav", "gone.wav")), cache=tmp_path / "cache.h5")
    drawn = report.chapters[0].figures  # drawing takes its time
    monkeypatch.setattr("amber2_report.page.figures", lambda group, speaker: drawn)
    made = write_report([tmp_path / "run"], tmp_path / "out", Options(recordings=100, root=tmp_path))
    window.events.clear()
    window.open(made.page)
    length = "new Promise((done) => { const one = document.querySelector('audio'); one.preload = 'auto'; "
    length += "one.addEventListener('loadedmetadata', () => done(one.duration)); one.load(); })"
    assert window.run(length) == pytest.approx(0.5)
    assert window.complaints() == []
    assert "1 more were not found" in window.run("document.body.textContent")
