"""amber2-doctor tells ten lines whatever is wrong, and a broken library is one of them."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from amber2_extract import doctor
from amber2_extract.doctor import corpora, describe, disk, examine, locks, memory, problems


def call(*arguments: str) -> Result:
    return CliRunner().invoke(doctor.doctor, list(arguments))


def broken(folder: Path, library: str, line: str) -> None:
    """A library of that name that cannot be loaded."""
    (folder / f"{library}.py").write_text(f"raise {line}\n")


def test_ten_lines_tell_what_is_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.chdir(tmp_path)
    result = call("--cache-dir", str(tmp_path / "cache"))
    assert result.exit_code == 0, result.output
    assert len(result.stdout.splitlines()) == 10
    for words in (f"torch {torch.__version__.split('+')[0]}", "cpu (", "GiB free", "locks: work", "load together"):
        assert words in result.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_broken_install_is_a_line_in_words_and_in_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken(tmp_path, "torchaudio", "OSError('undefined symbol: torch_list_push_back')")
    broken(tmp_path, "transformers", "ImportError('tokenizers is required')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    record = examine(tmp_path)
    assert record["torch"]["problem"] == ""
    assert record["torch"]["threads"] >= 1
    lines = describe(record)
    assert len(lines) == 10
    assert lines[5] == "audio       OSError: undefined symbol: torch_list_push_back"
    assert lines[6] == "encoders    ImportError: tokenizers is required"
    assert len(problems(record)) == 2
    broken(tmp_path, "torch", "ImportError('libcudart.so.12: cannot open shared object file')")
    result = call("--cache-dir", str(tmp_path), "--json")
    assert result.exit_code == 3
    assert json.loads(result.stdout)["torch"]["problem"].endswith("libcudart.so.12: cannot open shared object file")
    lines = describe(json.loads(result.stdout))
    assert len(lines) == 10
    assert "libcudart" in lines[2]


def test_a_library_that_kills_its_process_is_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torch.py").write_text("import os\nos.abort()\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert doctor._apart("torch_here")["problem"]


def test_a_file_system_without_locks_is_told_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert locks(tmp_path / "not" / "yet") == {"found": "work"}

    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", flock)
    assert locks(tmp_path) == {"found": f"none ({os.strerror(errno.ENOLCK)})"}
    assert list(tmp_path.iterdir()) == []


def test_roots_that_are_set_are_told_with_whether_they_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "corpora" / "iemocap").mkdir(parents=True)
    found = corpora({"AMBER2_MELD_ROOT": str(tmp_path), "AMBER2_CREMA_D_ROOT": "/nowhere/crema"})
    assert {name: one["problem"] for name, one in found.items()} == {
        "iemocap": "",
        "meld": "",
        "crema_d": "/nowhere/crema does not exist",
    }


def test_memory_and_disk_are_those_of_the_system(tmp_path: Path) -> None:
    free = memory()
    assert 0 < free["free"] <= free["total"]
    place = disk(tmp_path / "not" / "yet")
    assert place["problem"] == ""
    assert place["free"] == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.2)
    (tmp_path / "file").touch()
    assert disk(tmp_path / "file" / "cache")["problem"] == f"{tmp_path / 'file'} cannot be written"
