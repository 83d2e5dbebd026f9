"""The command predict-emotion with workers of its own: what it prints and writes, bad files, kills, no torch."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner
from speaking_heads import COMMAND, Studio, made_studio

from amber2_core import engine
from amber2_core.run_folder import read_results
from amber2_predict.cli import predict_emotion

BARE = (
    f"import sys\ntry:\n    {COMMAND}\nfinally:\n"
    "    print(*sorted({'torch', 'torchaudio', 'transformers'} & set(sys.modules)), 'loaded', file=sys.stderr)"
)


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Studio:
    return made_studio(tmp_path_factory.mktemp("studio"), systems=("amber2",))


def test_a_table_of_the_corpus_is_predicted_as_the_run_did_and_bad_files_are_rows(
    studio: Studio, tmp_path: Path
) -> None:
    """By the model that is best on dev, chosen by the command itself."""
    (tmp_path / "words.wav").write_text("this is a text")
    (tmp_path / "empty.wav").touch()
    bad = ["words.wav", "empty.wav", "missing.wav"]
    code, said, complained = studio.command("--heads", str(studio.run), str(studio.table), *bad, cwd=tmp_path)
    assert code == 3, complained
    rows = [json.loads(line) for line in said.splitlines()]
    assert [row["file"] for row in rows[-3:]] == bad
    assert all(row["error"].startswith(row["file"]) for row in rows[-3:])
    assert [line for line in complained.splitlines() if line.startswith("failed: ")] == [
        f"failed: {row['error']}" for row in rows[-3:]
    ]  # whose errors begin with the name
    dev = [r for r in read_results(studio.run) if (r["split"], r["head"], r["selected"]) == ("dev", "fusion", 1)]
    best = min(dev, key=lambda row: row["js"])
    place = {u.id: k for k, u in enumerate(studio.corpus.utterances)}
    for row in studio.said.folds[best["fold"]]:
        own = rows[place[studio.said.id[row]]]
        for head in ("audio", "text", "fusion"):
            expected = studio.said.probs[f"amber2/{head}"][best["seed"], row]
            np.testing.assert_allclose([*own["heads"][head].values()], expected, atol=1e-5)


def test_words_alone_on_standard_output_and_the_conductor_loads_no_torch(studio: Studio, tmp_path: Path) -> None:
    heads = str(studio.run / "heads" / "amber2-fold1-seed0.safetensors")
    words = [sys.executable, "-c", BARE, "--heads", heads, "--text", "one voice", *studio.options, "--device=cpu"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    (row,) = map(json.loads, done.stdout.splitlines())
    by_hand = studio.predictor().predict(None, transcript="one voice")
    assert row["heads"]["text"] == pytest.approx(by_hand.heads["text"], abs=1e-6)
    assert (row["predicted_by"], row["start"], row["transcript_from"]) == ("text", None, "text")
    assert done.stderr.splitlines()[-1].strip() == "loaded"


def test_a_users_mistake_is_one_line_before_anything_is_loaded(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "prepare", None)
    asked = {
        (): "Nothing to predict",
        ("a.wav", "--hop", "1"): "--hop without --window",
        ("a.wav", "--resume"): "--resume without --output",
        ("a.wav", "--column", "sound=a"): "Bad column role",
        ("a.wav", "--output", "a.xlsx"): "Bad output suffix",
        ("a.csv",): "No table a.csv",
    }
    for words, expected in asked.items():
        result = CliRunner().invoke(predict_emotion, ["--heads", str(studio.run), *words])
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr.startswith("error: ")
        assert expected in result.stderr


@pytest.mark.thorough
def test_killed_half_way_and_resumed_there_is_no_row_twice_and_none_missing(studio: Studio, tmp_path: Path) -> None:
    import pandas as pd

    folder, count = tmp_path / "calls", 400
    folder.mkdir()
    random = np.random.default_rng(0)
    for k in range(count):
        soundfile.write(folder / f"{k:03}.wav", 0.1 * random.standard_normal(3200), 16_000)
    (folder / "131.wav").write_bytes(b"RIFF")
    heads = ["--heads", str(studio.run / "heads" / "amber2-fold1-seed0.safetensors"), "calls"]
    code, _, complained = studio.command(*heads, "--output", "whole.csv", cwd=tmp_path)
    assert code == 3, complained
    words = [sys.executable, "-c", COMMAND, *heads, "--output", "rows.csv", *studio.options, "--device=cpu"]
    unfinished = tmp_path / "rows.csv.unfinished" / "rows.jsonl"
    process = subprocess.Popen(words, cwd=tmp_path, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    while process.poll() is None and not (unfinished.exists() and unfinished.read_bytes().count(b"\n") > 60):
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    lines = unfinished.read_bytes().split(b"\n")[1:-1]
    kept = sum(json.loads(line)["row"]["error"] is None for line in lines)
    assert 59 <= kept < count
    code, said, complained = studio.command(*heads, "--output", "rows.csv", "--resume", cwd=tmp_path)
    assert code == 3, complained
    assert said == f"rows.csv: {count} rows, {kept} of them of an earlier call, 1 errors, which --resume tries again\n"
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "rows.csv"), pd.read_csv(tmp_path / "whole.csv"))
    assert len(set(pd.read_csv(tmp_path / "rows.csv")["file"])) == count
    (folder / "131.wav").write_bytes((folder / "130.wav").read_bytes())
    code, said, complained = studio.command(*heads, "--output", "rows.csv", "--resume", cwd=tmp_path)
    assert (code, said) == (0, f"rows.csv: {count} rows, {count - 1} of them of an earlier call, 0 errors\n"), (
        complained
    )
    twins = pd.read_csv(tmp_path / "rows.csv").iloc[130:132].drop(columns="file")
    assert twins.iloc[0].dropna().to_dict() == pytest.approx(twins.iloc[1].dropna().to_dict(), abs=1e-6)
    assert not unfinished.exists()
