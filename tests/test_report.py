"""`report-runs` from end to end: what it writes, what it refuses, and what it says."""

from __future__ import annotations

import csv
import html
import itertools
import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
from click.testing import CliRunner, Result
from house import ROOT
from run_folders import GRID, Sketch, write_run
from synthetic_data import write_small_cache

from amber2_core.errors import RunFolderError
from amber2_core.metrics import METRICS, Metric
from amber2_core.run_folder import (
    read_experts,
    read_results,
    read_settings,
    write_json,
    write_predictions,
    write_results,
)
from amber2_core.tables import texts
from amber2_report.analysis import expert_weights
from amber2_report.cli import free_name, report_runs
from amber2_report.drawing import Drawing
from amber2_report.figures import modality_figures
from amber2_report.groups import grouped
from amber2_report.page import Options, write_report
from amber2_report.runs import read_run
from amber2_report.significance import headlines
from amber2_report.tables import AGAINST_PUBLISHED, PUBLISHED, by_table, published_tables
from amber2_train.cli import train_heads


def call(*arguments: object) -> Result:
    return CliRunner().invoke(report_runs, [str(one) for one in arguments])


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run", Sketch(grid=GRID), cache=tmp_path / "c.h5")


PARTS = ("whole", "ambiguity", "other_metrics", "confusions", "calibration", "modalities", "spread", "grid", "training")
NOTHING: dict[str, list[Drawing]] = {part: [] for part in PARTS}


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports without figures: drawing takes most of the time, and has its own tests."""
    monkeypatch.setattr("amber2_report.page.figures", lambda group, speaker: NOTHING)


@pytest.mark.usefixtures("undrawn")
def test_what_is_better_and_what_is_worse_is_said_in_one_breath(run: Path, tmp_path: Path) -> None:
    done = call(run, "--output", tmp_path / "out", "--json", "--quiet")
    rows = {one["metric"]: one for one in json.loads(done.stdout)["comparisons"] if one["second"] == "cb-ce fusion"}
    assert {one["runs"] for one in rows.values()} == {"run"}
    said = call(run, "--output", tmp_path / "again").stdout
    assert f"report: {tmp_path / 'again' / 'report.html'}" in said
    line = said.splitlines()[0]
    assert line.startswith("amber2 fusion against cb-ce fusion in run: ")
    assert line.endswith("after Holm's correction over the 3 comparisons of each metric, not over metrics).")
    assert "p by a bootstrap over speakers" in line
    titles = {"js": "JS", "bc": "BC", "r2": "R²", "accuracy": "ACC", "uar": "UAR", "macro_f1": "F1"}
    for metric, title in titles.items():
        change = f"{rows[metric]['difference']:+.4f}".replace("-", "−")
        p = rows[metric]["p_holm"]
        assert f" {title} {change} (p {'< 0.001' if p < 0.001 else f'= {p:.3f}'})" in line


def test_a_lower_divergence_is_better_and_a_lower_recall_is_worse() -> None:
    import pandas as pd

    changes = {"js": (-0.02, 0.001), "bc": (-0.01, 0.04), "uar": (-0.05, 0.0002), "accuracy": (0.1, 0.049),
               "r2": (0.3, 0.05), "macro_f1": (-0.2, 1.0)}  # fmt: skip
    rows = [("a", "b", metric, change, p) for metric, (change, p) in changes.items()]
    frame = pd.DataFrame(rows, columns=["first", "second", "metric", "difference", "p_holm"])
    (line,) = headlines(frame, {"a", "b"}, "x", "utterances")
    assert line.replace("\N{NO-BREAK SPACE}", " ") == (
        "a against b in x: better JS −0.0200 (p = 0.001), ACC +0.1000 (p = 0.049); worse BC −0.0100 (p = 0.040), UAR "
        "−0.0500 (p < 0.001); may be chance R² +0.3000 (p = 0.050), F1 −0.2000 (p = 1.000) (differences on test; p by "
        "a bootstrap over utterances, after Holm's correction over the 1 comparison of each metric, not over metrics)."
    )


def test_r2_of_two_classes_is_blank_and_not_tested_in_runs_of_before_too(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", Sketch(emotions=("calm", "angry")))
    rows = read_results(folder)
    assert all(np.isnan(row["r2"]) for row in rows)
    before = (folder / "results.csv").read_text(encoding="utf-8")
    write_results(folder / "results.csv", [{**row, "r2": 0.967} for row in rows])  # as earlier versions wrote it
    assert (folder / "results.csv").read_text(encoding="utf-8") != before
    done = call(folder, "--output", tmp_path / "out")
    assert done.exit_code == 0, done.output
    lines = (tmp_path / "out" / "tables" / "all-metrics.md").read_text(encoding="utf-8").splitlines()
    header, *cells = [[cell.strip() for cell in line.split("|")] for line in lines if line.startswith("|")]
    assert {row[header.index("R² ↑")] for row in cells[1:]} == {"–"}
    assert "R²" not in (tmp_path / "out" / "tables" / "significance.md").read_text(encoding="utf-8")


@pytest.mark.usefixtures("undrawn")
def test_of_very_many_utterances_the_page_says_how_many_it_holds(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("amber2_report.utterances.LARGEST_TABLE", 30)
    report = write_report([run], tmp_path / "out")
    count = len(json.loads(report.chapters[0].utterances)["id"])
    assert f"The table holds {count} of 60 utterances" in report.page.read_text(encoding="utf-8")


@pytest.mark.usefixtures("undrawn")
def test_json_tells_where_the_report_is_and_what_was_compared(run: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(report_runs, [str(run), "--output", str(tmp_path / "out"), "--json", "--quiet"])
    found = json.loads(done.stdout)
    assert found["report"] == str(tmp_path / "out" / "report.html")
    assert {one["metric"] for one in found["comparisons"]} >= {"js", "bc", "r2", "accuracy", "macro_f1"}


@pytest.mark.usefixtures("undrawn")
def test_runs_of_different_test_sets_have_chapters_and_are_not_compared(run: Path, tmp_path: Path) -> None:
    other = write_run(tmp_path / "other", Sketch(corpus="another", emotions=("up", "down")), cache=tmp_path / "d.h5")
    report = write_report([run, other], tmp_path / "out")
    assert [chapter.group.corpus for chapter in report.chapters] == ["made-up", "another"]
    page = report.page.read_text(encoding="utf-8")
    assert "nothing is compared across them" in page
    assert page.count('<article class="chapter"') == 2
    ids = re.findall(r' id="([^"]+)"', re.sub(r"<svg.*?</svg>", "", page, flags=re.DOTALL))
    assert len(set(ids)) == len(ids)
    assert (tmp_path / "out" / "tables" / "2-another-other-folds.csv").is_file()
    labels = [
        re.findall(r"\\label\{(.*?)\}", path.read_text(encoding="utf-8"))
        for path in (tmp_path / "out" / "tables").glob("*.tex")
    ]
    assert len({label for (label,) in labels}) == len(labels)


@pytest.mark.usefixtures("undrawn")
def test_the_command_of_a_run_is_shown_as_a_shell_takes_it(run: Path, tmp_path: Path) -> None:
    words = ["train-heads", "--cache", "my lab's <b>/c.h5", "--kappa", "2,4"]
    write_json(run / "settings.json", {**read_settings(run), "command": words})
    write_report([run], tmp_path / "out", Options(draws=200))
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    (shown,) = re.findall(r"<pre><code>(.*?)</code></pre>", page)
    assert shlex.split(html.unescape(shown)) == words


@pytest.mark.usefixtures("undrawn")
def test_two_kinds_of_votes_stand_side_by_side_and_are_told_not_to_compare(run: Path, tmp_path: Path) -> None:
    seen = write_run(tmp_path / "seen", Sketch(votes_seed=1))
    settings = read_settings(seen)
    settings |= {"command": ["train-heads", "--stimulus=audiovisual"]}
    write_json(seen / "settings.json", {**settings, "policy": {**settings["policy"], "stimulus": "audiovisual"}})
    done = call(run, seen, "--output", tmp_path / "out")
    assert "warning: not compared: Beside run, seen has other targets for" in done.output
    assert "audiovisual votes, not audio ones" in done.output
    assert done.output.count("Targets are audio votes: nobody chose these") == 1
    assert "Targets are audiovisual votes" not in done.output
    tables = tmp_path / "out" / "tables"
    lines = (tables / "side-by-side.csv").read_text(encoding="utf-8").splitlines()
    assert [line.split(",")[:3] for line in lines[1:]] == [
        [f"{name}: {system} fusion", '"made-up', f' {votes} votes"']
        for name, votes in (("run", "audio"), ("seen", "audiovisual"))
        for system in ("amber2", "cb-ce")
    ]  # fmt: skip
    summary = json.loads((seen / "summary.json").read_text(encoding="utf-8"))["table"]
    assert f",{summary['cb-ce']['fusion']['js']['mean']}," in lines[4]
    assert "Not comparable row by row" in (tables / "side-by-side.md").read_text(encoding="utf-8")
    assert "Not comparable row by row" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


@pytest.mark.usefixtures("undrawn")
def test_runs_of_other_data_are_compared_with_a_word(run: Path, tmp_path: Path) -> None:
    other = write_run(tmp_path / "other", Sketch(seed=1))
    for folder, text in ((run, "1"), (other, "2")):
        settings = read_settings(folder)
        write_json(folder / "settings.json", {**settings, "digests": {"ids": "0", "text": text, "votes": "0"}})
    done = call(run, other, "--output", tmp_path / "out")
    words = "other was not trained on the data of run: inputs of the text features differ."
    assert words in done.stdout
    assert words in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


@pytest.mark.usefixtures("undrawn")
def test_runs_of_one_test_set_are_compared_and_their_settings_told_apart(run: Path, tmp_path: Path) -> None:
    other = write_run(tmp_path / "no-mai", Sketch(seed=1, grid=((0.0, 4.0),), systems=("amber2",)))
    report = write_report([run, other], tmp_path / "out")
    (chapter,) = report.chapters
    assert chapter.group.differing_settings["lambda_mai"] == ["0.3, 0.5, 0.7", "0.0"]
    assert set(chapter.comparisons["second"]) >= {"no-mai: amber2 fusion", "run: cb-ce fusion"}


def test_one_system_with_one_head_has_a_report_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("run_folders.HEADS", ("audio",))
    drawn = lambda group, speaker: NOTHING | {"modalities": modality_figures(group)}  # noqa: E731
    monkeypatch.setattr("amber2_report.page.figures", drawn)
    run = write_run(tmp_path / "run", Sketch(systems=("emo-superb",), seeds=1))
    report = write_report([run], tmp_path / "out")
    page = report.page.read_text(encoding="utf-8")
    assert "There is only one head: nothing to compare it with." in page
    assert "no two heads of single modalities" in page
    assert "±" not in (tmp_path / "out" / "tables" / "all-metrics.md").read_text(encoding="utf-8").split("Mean")[0]


@pytest.mark.usefixtures("undrawn")
def test_a_report_without_its_cache_says_what_is_missing(run: Path, tmp_path: Path) -> None:
    (tmp_path / "c.h5").unlink()
    earlier = write_run(tmp_path / "earlier", Sketch(earlier=True))
    pages = []
    for place, words in ((run, "No feature cache at"), (earlier, "the run does not say where its feature cache was")):
        done = call(place, "--output", tmp_path / "out" / place.name)
        assert done.exit_code == 0
        assert f"warning: {place.name}: {words}" in done.output
        pages.append((tmp_path / "out" / place.name / "report.html").read_text(encoding="utf-8"))
    assert "Transcripts or votes are missing: No feature cache at" in pages[0]
    assert "draws of the 9 speakers, with replacement" in pages[0]
    assert "Transcripts, speakers or votes are missing: the run does not say" in pages[1]
    assert "draws of the 60 utterances, since their speakers are unknown" in pages[1]


def test_a_corpus_of_which_nothing_was_published_has_no_such_table(run: Path) -> None:
    assert published_tables(*grouped([read_run(run)])) == []


@pytest.mark.parametrize("corpus", ["iemocap", "msp_podcast", "crema_d"])
def test_published_numbers_stand_beside_runs_of_their_corpus_only(tmp_path: Path, corpus: str) -> None:
    (group,) = grouped([read_run(write_run(tmp_path / "run", Sketch(corpus=corpus)))])
    (table,) = published_tables(group)
    rows = table.frame.iloc[:2]
    for entry, row in zip(group.mains, rows.itertuples(), strict=True):
        assert row.entry == f"{entry.label} (this run)"
        assert row.uar == pytest.approx(entry.per_seed("uar").mean())
    notes = " ".join(table.notes)
    scores = table.frame.set_index("entry")
    of_the_paper = corpus in ("iemocap", "msp_podcast")
    assert ("AmbER², the paper" in scores.index) == of_the_paper
    assert ("√JS in nats under the name of JS" in notes) == of_the_paper
    assert [name for name in scores.index if name.endswith("(this run)")] == [*scores.index[:2]]
    if corpus == "iemocap":
        assert scores.loc["AmbER², the paper", ["js", "js_sd"]].tolist() == [0.193, 0.002]
        assert scores.loc["AER-LLM few-shot"].dropna().to_dict() == {
            "js_distance_nats": 0.35, "bc": 0.69, "r2": 0.59, "accuracy": 0.481, "weighted_f1": 0.492,
        }  # fmt: skip
        assert scores.loc["Emo_ent"].dropna().to_dict() == {"uar": 0.658, "macro_f1": 0.646}


def test_every_published_row_is_read_by_names_that_the_table_shows() -> None:
    import pandas as pd

    printed = pd.read_csv(PUBLISHED)
    assert {name.removesuffix("_sd") for name in printed} == {"corpus", "method", "note", *AGAINST_PUBLISHED}
    assert printed[["corpus", "method"]].notna().all(axis=None)
    assert not printed.duplicated(["corpus", "method"]).any()


@pytest.mark.usefixtures("undrawn")
def test_recordings_are_embedded_only_when_asked_for_and_only_from_the_root(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "a.wav").write_bytes(b"RIFF of a")
    (tmp_path / "secret.wav").write_bytes(b"not of the corpus")
    (tmp_path / "corpus" / "folder.wav").mkdir()
    no_name = f"{'n' * 300}.wav"  # longer than any file's
    sketch = Sketch(audio=("a.wav", "../secret.wav", "gone.wav", "folder.wav", no_name, ""))
    run = write_run(tmp_path / "run", sketch, cache=tmp_path / "c.h5")
    silent = write_report([run], tmp_path / "silent").page.read_text(encoding="utf-8")
    assert "data:audio" not in silent
    loud = write_report([run], tmp_path / "loud", Options(recordings=100, root=tmp_path / "corpus"))
    text = loud.page.read_text(encoding="utf-8")
    assert re.findall(r"data:audio/[^\"]*", text) == ["data:audio/wav;base64,UklGRiBvZiBh"]
    assert "4 more were not found" in text


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("variable", [True, False])
def test_the_root_of_the_recordings_is_found_or_its_names_are_told(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    if variable:
        monkeypatch.setenv("AMBER2_MADE_UP_ROOT", str(tmp_path))
        assert call(run, "--output", "out", "--with-audio").exit_code == 0
    else:
        done = call(run, "--output", "out", "--with-audio")
        assert done.exit_code == 1
        assert "name the root of the corpus with --root, or set AMBER2_MADE_UP_ROOT" in done.output
        assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("undrawn")
def test_mistakes_are_told_in_one_line_and_leave_nothing(run: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    for arguments, words in (
        ((tmp_path / "nowhere",), "is not a run folder"),
        ((run, run), "is named twice"),
        ((run, "--output", tmp_path / "taken"), "exists already"),
    ):
        done = call(*arguments, *(() if "--output" in arguments else ("--output", tmp_path / "out")))
        assert done.exit_code == 1
        assert len(done.output.strip().splitlines()) == 1
        assert words in done.output
    assert not (tmp_path / "out").exists()
    assert call().exit_code == 2


def test_help_waits_for_nothing_heavy() -> None:
    code = (
        "import sys, amber2_report.cli; print(*{'numpy', 'pandas', 'matplotlib', 'scipy', 'jinja2'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_torch_is_never_loaded() -> None:
    heavy = "{'torch', 'transformers', 'torchaudio'}"
    code = f"import sys, amber2_report.page, amber2_report.cli; print(*{heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.usefixtures("undrawn")
def test_what_train_heads_writes_is_what_the_report_reads(tmp_path: Path) -> None:
    cache = write_small_cache(tmp_path, count=90)
    arguments = ["--cache", str(cache), "--output", str(tmp_path / "run"), "--seeds", "2", "--epochs", "2"]
    trained = CliRunner().invoke(
        train_heads, [*arguments, "--kappa", "2,8", "--score-all", "--quiet", "--device", "cpu"]
    )
    assert trained.exit_code == 0, trained.output
    report = write_report([tmp_path / "run"], tmp_path / "out")
    (chapter,) = report.chapters
    assert chapter.facts.missing == ""
    assert all(chapter.facts.speaker)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text(encoding="utf-8"))["table"]
    for row in chapter.tables["all-metrics"].frame.to_dict("records"):
        system, head = row["entry"].split()
        for name in METRICS:
            assert row[name] == pytest.approx(summary[system][head][name]["mean"])
            assert row[f"{name}_sd"] == pytest.approx(summary[system][head][name]["sd"])
    weights = expert_weights(chapter.group, chapter.group.mains[0])
    assert weights is not None
    learnt = [row for row in read_experts(tmp_path / "run") if (row["system"], row["by"]) == ("amber2", "all")]
    for fold in sorted({row["fold"] for row in learnt}):
        rows = [row["weight_audio"] for row in learnt if row["fold"] == fold]
        ours = weights["audio"][chapter.group.predictions.fold == fold].mean()
        assert ours == pytest.approx(sum(rows) / len(rows), abs=1e-6)


def test_the_example_of_the_page_on_reports_runs(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = "".join(re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "report.md").read_text("utf-8"), re.DOTALL))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    run.rename(tmp_path / "runs" / "iemocap")
    exec(compile(code, "docs/report.md", "exec"), {})
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    summary = json.loads((tmp_path / "runs" / "iemocap" / "summary.json").read_text(encoding="utf-8"))["table"]
    for system in ("amber2", "cb-ce"):
        assert [system, str(round(summary[system]["fusion"]["js"]["mean"], 4))] in lines
    assert [line[0] for line in lines if line[0].isdecimal()] == ["1", "2", "3"]
    report = write_report([tmp_path / "runs" / "iemocap"], tmp_path / "out", Options(by=["speaker"]))
    scores = report.chapters[0].tables["by-speaker"].frame.set_index(["entry", "group"])["js"]
    shown = {(line[0], line[1]): float(line[-1]) for line in lines if len(line) == 4 and line[0] in summary}
    assert len(shown) == 2 * 9  # systems and speakers
    for (system, speaker), js in shown.items():
        assert js == pytest.approx(scores[f"{system} fusion", speaker], abs=0.00051)


@pytest.mark.usefixtures("undrawn")
def test_versions_of_a_system_are_told_apart_by_what_they_differ_in(run: Path, tmp_path: Path) -> None:
    other = write_run(tmp_path / "no-mai", Sketch(seed=1, grid=((0.0, 4.0),), systems=("amber2",)))
    (chapter,) = write_report([run, other], tmp_path / "out").chapters
    first, second = chapter.tables["ablation"].rows
    assert [cell.text for cell in first[:2]] == ["run: amber2 fusion", "–"]
    assert [cell.text for cell in second[:2]] == ["no-mai: amber2 fusion", "lambda_mai 0.0; kappa 4.0"]
    scores = {entry.label: entry.per_seed("js").mean() for entry in chapter.group.mains}
    assert second[-1].values == pytest.approx([scores["no-mai: amber2 fusion"] - scores["run: amber2 fusion"]])
    alone = write_report([run], tmp_path / "alone").chapters[0]
    assert "ablation" not in alone.tables


@pytest.mark.usefixtures("undrawn")
def test_a_metric_that_is_new_stands_in_the_report_of_every_run_of_before(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def certainty(target: Any, probs: Any) -> Any:
        return np.asarray(probs, np.float64).max(-1).mean(-1)

    monkeypatch.setitem(METRICS, "certainty", Metric(certainty, "Certainty", "higher"))  # type: ignore[arg-type]
    (chapter,) = write_report([run], tmp_path / "out").chapters
    table = chapter.tables["all-metrics"].frame.set_index("entry")
    p = chapter.group.predictions
    of_folds = [p.probs["cb-ce/text"][:, rows].astype(float).max(-1).mean(-1) for rows in p.folds.values()]
    assert table.loc["cb-ce text", "certainty"] == pytest.approx(np.mean(of_folds))
    assert "certainty" in chapter.tables["ambiguity"].frame


def test_a_head_that_diverged_is_a_dash_with_its_reason_and_stops_no_report(tmp_path: Path, undrawn: None) -> None:
    run = write_run(tmp_path / "run")
    with np.load(run / "predictions.npz") as arrays:
        kept = dict(arrays)
    kept["cb-ce/audio"][0, kept["fold"] == 1] = np.nan
    np.savez(run / "predictions.npz", **kept)
    rows = read_results(run)
    for row in rows:
        if (row["system"], row["head"], row["fold"], row["seed"]) == ("cb-ce", "audio", 1, 0):
            row.update({"epoch": 0, **dict.fromkeys(METRICS, float("nan"))})
    write_results(run / "results.csv", rows)
    (chapter,) = write_report([run], tmp_path / "report").chapters
    table = chapter.tables["all-metrics"]
    lines = {row[0].text: row[1:] for row in table.rows}
    assert [cell.text for cell in lines["cb-ce audio"]] == ["–"] * len(METRICS)
    assert all(cell.values for cell in lines["amber2 audio"])
    assert "cb-ce audio diverged at once in some run, and has no mean." in table.notes
    assert set(chapter.comparisons["second"]) == {"cb-ce fusion", "amber2 audio", "amber2 text"}


@pytest.mark.usefixtures("undrawn")
def test_scores_by_a_column_are_those_of_its_utterances_with_their_number(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", Sketch(lacking={"fusion": [3]}), cache=tmp_path / "c.h5")
    done = call(run, "--output", tmp_path / "out", "--by", "style", "--by", "speaker", "--by", "session")
    assert done.exit_code == 0, done.output
    with (run / "utterances.csv").open(encoding="utf-8", newline="") as file:
        styles = [row["style"] for row in csv.DictReader(file)]
    with (tmp_path / "out" / "tables" / "by-style.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["entry"], row["group"]) for row in rows] == [
        (f"{system} fusion", style) for system in ("amber2", "cb-ce") for style in ("free", "read")
    ]
    p = read_run(run).arrays
    for row in rows:
        own = [k for k, style in enumerate(styles) if style == row["group"] and k != 3]
        probs = p.probs[row["entry"].replace(" ", "/")]
        js = [np.mean([reference.js(p.target[k].tolist(), of_seed[k].tolist()) for k in own]) for of_seed in probs]
        assert int(row["n"]) == len(own)
        assert float(row["js"]) == pytest.approx(np.mean(js))
        assert float(row["js_sd"]) == pytest.approx(np.std(js, ddof=1))
        hits = probs[:, own].argmax(-1) == [int(np.flatnonzero(p.target[k] > p.target[k].max() - 1e-6)[0]) for k in own]
        assert float(row["accuracy"]) == pytest.approx(hits.mean())
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert all(f'data-table="by-{name}"' in page for name in ("style", "speaker", "session"))
    sessions = (tmp_path / "out" / "tables" / "by-session.md").read_text(encoding="utf-8")
    assert "| amber2 fusion | – | 59 |" in sessions  # nobody knows


def test_groups_come_numbers_first_then_words_and_last_who_is_of_none(run: Path) -> None:
    (group,) = grouped([read_run(run)])
    of_each = texts([("", "f", "10", "m", "9")[k % 5] for k in range(len(group.predictions.id))])
    table = by_table(group, "what", "what", of_each)
    assert table.frame["group"].fillna("–").tolist()[:5] == ["9", "10", "f", "m", "–"]


@pytest.mark.usefixtures("undrawn")
def test_a_column_that_is_not_there_names_those_that_are(run: Path, tmp_path: Path) -> None:
    done = call(run, "--output", tmp_path / "out", "--by", "gender", "--quiet")
    assert done.exit_code == 1
    assert done.output.startswith("error: Bad column 'gender', expected one of ['id', 'fold', 'speaker', 'session'")
    assert "'style'" in done.output
    assert "rated_" not in done.output
    earlier = write_run(tmp_path / "earlier", Sketch(earlier=True), cache=tmp_path / "e.h5")
    assert call(earlier, "--output", tmp_path / "out", "--by", "speaker").exit_code == 0


@pytest.mark.usefixtures("undrawn")
def test_confusions_are_numbers_for_every_head(run: Path, tmp_path: Path) -> None:
    from sklearn.metrics import confusion_matrix

    write_report([run], tmp_path / "out")
    p = read_run(run).arrays
    for name, probs in p.probs.items():
        path = tmp_path / "out" / "tables" / f"confusion-{name.replace('/', '-')}.csv"
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        assert [(row["rated"], row["predicted"]) for row in rows] == list(itertools.product(p.emotions, p.emotions))
        label = [int(np.flatnonzero(y > y.max() - 1e-6)[0]) for y in p.target]
        expected = sum(confusion_matrix(label, of_seed.argmax(-1), labels=range(4)) for of_seed in probs)
        np.testing.assert_array_equal([int(row["count"]) for row in rows], expected.ravel())
        shares = expected / expected.sum(1, keepdims=True)
        np.testing.assert_allclose([float(row["share"]) for row in rows], shares.ravel())
        votes = p.target.astype(float).T @ probs.astype(float).mean(0) / p.target.astype(float).sum(0)[:, None]
        np.testing.assert_allclose([float(row["vote_share"]) for row in rows], votes.ravel(), rtol=1e-6)


@pytest.mark.usefixtures("undrawn")
def test_the_head_that_was_asked_for_is_compared_across_runs(run: Path, tmp_path: Path) -> None:
    other = write_run(tmp_path / "other", Sketch(seed=1, systems=("amber2",)))
    report = write_report([run, other], tmp_path / "out", Options(head="audio", draws=200))
    (chapter,) = report.chapters
    labels = ["run: amber2 audio", "other: amber2 audio", "run: cb-ce audio"]
    assert [entry.label for entry in chapter.group.mains] == labels
    for line, label in zip(chapter.headline[:2], labels[1:], strict=True):
        assert re.match(rf"{labels[0]} against {label}: (better|worse|may be chance) ", line)
    assert chapter.tables["systems-distribution"].frame["entry"].tolist() == labels
    assert "Systems are told by their head audio, as was asked for." in chapter.tables["systems-distribution"].notes
    done = call(run, "--output", tmp_path / "none", "--head", "video", "--quiet")
    assert done.exit_code == 1
    assert done.output == "error: Bad head 'video', expected one of ['audio', 'text', 'fusion'] in run\n"


@pytest.mark.usefixtures("undrawn")
def test_a_head_that_predicts_the_same_for_all_is_told(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    p = read_run(run).arrays
    probs = {name: values.copy() for name, values in p.probs.items()}
    probs["cb-ce/text"][:] = probs["cb-ce/text"][:, :1]
    probs["amber2/audio"][1, p.fold == 2] = p.target[0]
    write_predictions(run / "predictions.npz", replace(p, probs=probs))
    rows = read_results(run)
    for row in rows:
        system, head, fold, seed = (row[name] for name in ("system", "head", "fold", "seed"))
        if row["split"] == "test" and (system, head) in {("cb-ce", "text"), ("amber2", "audio")}:
            own = p.fold == fold
            row.update(
                {name: float(m(p.target[own], probs[f"{system}/{head}"][seed, own])) for name, m in METRICS.items()}
            )
    write_results(run / "results.csv", rows)
    done = call(run, "--output", tmp_path / "out")
    warned = [line for line in done.output.splitlines() if "predicts the same for every utterance" in line]
    assert [line.partition(", in some")[0] for line in warned] == [
        "warning: run: amber2 audio predicts the same for every utterance of fold 2",
        "warning: run: cb-ce text predicts the same for every utterance of any fold",
    ]
    assert "cb-ce text predicts the same" in (tmp_path / "out" / "tables" / "all-metrics.md").read_text(
        encoding="utf-8"
    )


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    ("metric", "emotions", "why"),
    [
        ("accuracy_untied", ("a", "b", "c"), "no test utterance has one largest share"),
        ("ece", ("a", "b", "c"), "it tells nothing of these emotions and test folds"),
        ("r2", ("a", "b"), "two shares always lie on one line, so that it would be 1 whatever is predicted"),
    ],
)
def test_a_metric_without_a_value_anywhere_is_blank_and_its_reason_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, metric: str, emotions: tuple[str, ...], why: str
) -> None:
    blank = lambda target, probs: np.full(np.shape(probs)[:-2], np.nan)  # noqa: E731
    monkeypatch.setitem(METRICS, metric, replace(METRICS[metric], score=blank))  # type: ignore[arg-type]
    run = write_run(tmp_path / "run", Sketch(emotions=emotions))
    (chapter,) = write_report([run], tmp_path / "out", Options(draws=20)).chapters
    table = chapter.tables["all-metrics"]
    at = [column.name for column in table.columns].index(metric)
    assert {row[at].text for row in table.rows} == {"–"}
    assert [note.partition(" is blank: ")[2] for note in table.notes if "is blank" in note] == [f"{why}."]
    shown = chapter.tables["systems-classification"].notes
    assert not any("is blank" in note for note in shown)


SETTINGS = ("command", "corpus", "cache", "features", "policy", "emotions", "folds", "utterances", "systems", "axes",
            "metrics", "digest", "digests", "seeds", "grid", "versions")  # fmt: skip
ODD = (None, "\ud800" * 300, 3, [["x"]], {"sizes": 1}, {"emotions": [1, [2]], "merge": ["a"]})


@pytest.mark.thorough
@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("name", SETTINGS)
def test_settings_of_any_kind_make_a_page_or_one_line(tmp_path: Path, name: str) -> None:
    run = write_run(tmp_path / "run", Sketch(count=20, seeds=1), cache=tmp_path / "c.h5")
    settings = read_settings(run)
    refused = []
    for k, value in enumerate([..., *ODD]):
        odd = {**settings, name: value} if value is not ... else {key: settings[key] for key in settings if key != name}
        (run / "settings.json").write_text(json.dumps(odd), encoding="utf-8")
        try:
            read_settings(run)
        except RunFolderError as problem:
            refused.append(str(problem))
        else:
            assert write_report([run], tmp_path / str(k), Options(draws=20)).page.is_file()
    assert all(f"settings.json: {name}" in line and "\n" not in line for line in refused)
    assert len(refused) < len(ODD)


@pytest.mark.usefixtures("undrawn")
def test_reports_of_one_second_have_names_of_their_own(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("time.strftime", lambda form: "20260101-120000")
    assert call(run.parent / "nowhere").exit_code == 1
    assert not (tmp_path / "reports").exists()
    with free_name(Path("reports"), "20260101-120000-run"):  # by a command that is still at work
        assert call(run).exit_code == call(run).exit_code == 0
    assert call(run).exit_code == 0
    assert sorted(path.name for path in (tmp_path / "reports").iterdir()) == [
        f"20260101-120000-run{end}" for end in ("", "-2", "-3")
    ]


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    "name", ["a b", ".hidden", "--x", "r.html", "über/日本", "n" * 250, "back\\slash", "100%", "x/"]
)
def test_a_report_may_have_any_name(run: Path, tmp_path: Path, name: str) -> None:
    report = write_report([run], tmp_path / name, Options(draws=20))
    assert report.page.is_file()
    assert [path for path in report.folder.parent.iterdir() if path.suffix == ".writing"] == []


@pytest.mark.parametrize("name", [b"caf\xe9", b"n" * 250, "日本 <b>$x_1$ ½".encode()])
def test_a_run_may_have_any_name_even_of_bytes_that_are_no_text(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: bytes
) -> None:
    if b"$" not in name:  # what figures make of names is seen on the oddest
        request.getfixturevalue("undrawn")
    monkeypatch.chdir(tmp_path)
    run, other = Path(os.fsdecode(name)), Path("other")
    write_run(run, Sketch(count=30, seeds=1, grid=GRID), cache=tmp_path / "c.h5")
    write_run(other, Sketch(count=30, seeds=1, seed=1))
    done = CliRunner().invoke(report_runs, [os.fsdecode(name), "other"])
    assert done.exit_code == 0, done.output
    (folder,) = Path("reports").iterdir()
    shown = html.escape(name.decode("utf-8", "replace"))
    assert f"<bdi>{shown}</bdi>" in (folder / "report.html").read_text(encoding="utf-8")
    assert all(path.read_bytes().decode() for path in (folder / "tables").iterdir())


FULL = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv.pop(1)),) * 2)  # bytes of one file, as of a disk that is full
from amber2_report.cli import free_name, report_runs
report_runs()
"""


@pytest.mark.thorough
@pytest.mark.parametrize("size", [0, 4_000, 60_000])
def test_a_full_disk_is_one_line_and_leaves_nothing(run: Path, tmp_path: Path, size: int) -> None:
    output = tmp_path / "place" / "out"
    command = [sys.executable, "-c", FULL, str(size), str(run), "--output", str(output), "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith(f"error: Cannot write {output}: File too large")
    assert [*output.parent.iterdir()] == []
