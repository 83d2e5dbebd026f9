"""`report-runs` from end to end: what it writes, what it refuses, and what it says."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from house import ROOT
from run_folders import GRID, Sketch, write_run
from synthetic_data import write_small_cache

from amber2_core.metrics import METRICS, Metric
from amber2_core.run_folder import read_experts, read_results, write_results
from amber2_report.analysis import expert_weights
from amber2_report.cli import report_runs
from amber2_report.drawing import Drawing
from amber2_report.figures import modality_figures
from amber2_report.groups import grouped
from amber2_report.page import Options, write_report
from amber2_report.runs import read_run
from amber2_report.tables import AGAINST_PUBLISHED, PUBLISHED, published_table
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
def test_what_was_found_is_said_and_where_it_stands(run: Path, tmp_path: Path) -> None:
    done = call(run, "--output", tmp_path / "out")
    assert done.exit_code == 0, done.output
    said = r"JS of amber2 fusion is 0\.\d{4} (lower|higher) than that of cb-ce fusion \(95 % interval"
    assert re.search(said, done.output)
    assert f"report: {tmp_path / 'out' / 'report.html'}" in done.output


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
    assert "draws of the 9 speakers with replacement" in pages[0]
    assert "Transcripts, speakers or votes are missing: the run does not say" in pages[1]
    assert "draws of the 60 utterances, since their speakers are unknown" in pages[1]


@pytest.mark.parametrize("corpus", ["iemocap", "msp_podcast", "crema_d", "made-up"])
def test_published_numbers_stand_beside_runs_of_their_corpus_only(tmp_path: Path, corpus: str) -> None:
    (group,) = grouped([read_run(write_run(tmp_path / "run", Sketch(corpus=corpus)))])
    table = published_table(group)
    notes = " ".join(table.notes)
    scores = table.frame.set_index("entry")
    of_the_paper = corpus in ("iemocap", "msp_podcast")
    assert ("AmbER², the paper" in scores.index) == of_the_paper
    assert ("√JS in nats under the name of JS" in notes) == of_the_paper
    assert ("Nothing that this project knows of was published" in notes) == (corpus == "made-up")
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
    sketch = Sketch(audio=("a.wav", "../secret.wav", "gone.wav", ""))
    run = write_run(tmp_path / "run", sketch, cache=tmp_path / "c.h5")
    silent = write_report([run], tmp_path / "silent").page.read_text(encoding="utf-8")
    assert "data:audio" not in silent
    loud = write_report([run], tmp_path / "loud", Options(recordings=100, root=tmp_path / "corpus"))
    text = loud.page.read_text(encoding="utf-8")
    assert re.findall(r"data:audio/[^\"]*", text) == ["data:audio/wav;base64,UklGRiBvZiBh"]
    assert "2 more were not found" in text


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
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "report.md").read_text(encoding="utf-8"), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    run.rename(tmp_path / "runs" / "iemocap")
    exec(compile(code, "docs/report.md", "exec"), {})
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    summary = json.loads((tmp_path / "runs" / "iemocap" / "summary.json").read_text(encoding="utf-8"))["table"]
    for system in ("amber2", "cb-ce"):
        assert [system, str(round(summary[system]["fusion"]["js"]["mean"], 4))] in lines
    assert [line[0] for line in lines if line[0].isdecimal()] == ["1", "2", "3"]


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
