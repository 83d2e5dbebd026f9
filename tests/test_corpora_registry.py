"""Names of corpora, places on disk, and what is said when either is wrong."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from amber2_core.errors import CorpusError
from amber2_data import corpora
from amber2_data.cli import check_corpus
from amber2_data.corpora.registry import READERS, corpus_root, label_defaults, read_corpus, reader


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty working folder, and no corpus named by the environment."""
    monkeypatch.chdir(tmp_path)
    for name in READERS:
        monkeypatch.delenv(f"AMBER2_{name.upper()}_ROOT", raising=False)


def test_the_option_goes_before_the_variable_and_the_variable_before_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("option", "variable", "corpora/crema_d"):
        (tmp_path / name).mkdir(parents=True)
    assert corpus_root("crema_d") == Path("corpora/crema_d")
    monkeypatch.setenv("AMBER2_CREMA_D_ROOT", str(tmp_path / "variable"))
    assert corpus_root("crema_d") == tmp_path / "variable"
    assert corpus_root("crema_d", tmp_path / "option") == tmp_path / "option"


def test_an_empty_variable_is_no_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "corpora" / "crema_d").mkdir(parents=True)
    monkeypatch.setenv("AMBER2_CREMA_D_ROOT", "")
    assert corpus_root("crema_d") == Path("corpora/crema_d")


@pytest.mark.parametrize("name", READERS)
def test_a_missing_root_names_all_three_places_and_where_the_corpus_comes_from(name: str) -> None:
    with pytest.raises(CorpusError) as error:
        corpus_root(name)
    message = str(error.value)
    assert "\n" not in message
    for part in ("--root", f"AMBER2_{name.upper()}_ROOT", f"./corpora/{name}", reader(name).ORIGIN):
        assert part in message


@pytest.mark.parametrize("root", ["nowhere", "a" * 5000, "nul\0byte"])
def test_a_root_that_cannot_exist_is_a_missing_root(root: str) -> None:
    with pytest.raises(CorpusError, match="No corpus 'crema_d' at"):
        corpus_root("crema_d", root)
    with pytest.raises(CorpusError, match="No corpus 'crema_d' at"):
        read_corpus("crema_d", root)


def test_the_missing_root_of_a_synthetic_corpus_tells_the_command_that_writes_one() -> None:
    with pytest.raises(CorpusError, match=r"python -m amber2_data\.corpora\.synthetic DIR"):
        corpus_root("synthetic", "nowhere")


@pytest.mark.parametrize("name", ["iemocapp", "", "../crema_d", "registry"])
def test_an_unknown_corpus_lists_the_known_ones(name: str) -> None:
    for function in (reader, corpus_root, lambda name: read_corpus(name, ".")):
        with pytest.raises(CorpusError) as error:
            function(name)
        assert str(error.value) == f"Bad corpus {name!r}, expected one of {list(READERS)}"


@pytest.mark.parametrize(
    ("name", "file"),
    [("crema_d", "AudioWAV"), ("synthetic", "corpus.json"), ("manifest", "is a folder")],
)
def test_a_root_without_the_expected_files_says_which_is_missing(name: str, file: str, tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=file) as error:
        read_corpus(name, tmp_path)
    assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize("name", READERS)
def test_every_reader_shows_the_tree_or_table_that_it_expects(name: str) -> None:
    module = reader(name)
    assert "```" in (module.__doc__ or "")
    assert callable(module.read)


def test_readers_are_loaded_only_when_they_are_asked_for() -> None:
    code = (
        "import sys, amber2_data.corpora.registry as registry;"
        "loaded = {f'amber2_data.corpora.{module}' for module in registry.READERS.values()} | {'numpy', 'soundfile'};"
        "print(sorted(loaded & sys.modules.keys()))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_problems_of_a_corpus_are_told_once_with_the_first_that_has_a_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a.wav").touch()
    rows = '1,a.wav,"two\nlines",sad\n2,a.wav,"three\nlines",sad\n'
    (tmp_path / "m.csv").write_text("id,audio,text,label\n" + rows)
    with caplog.at_level(logging.WARNING):
        corpus = read_corpus("manifest", tmp_path / "m.csv")
    assert len(corpus.problems) == 2
    (line,) = caplog.messages
    assert "m.csv was not read without problems (m.csv, line 2: a cell of '1' goes on" in line
    assert line.endswith("and 1 more); check-corpus lists all")


def test_label_defaults_are_those_of_the_reader(tmp_path: Path) -> None:
    assert label_defaults("iemocap").keep == "consensus"
    with pytest.raises(CorpusError, match="'manifest' has no label defaults of its own"):
        label_defaults("manifest")


def test_a_new_corpus_is_one_module_and_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "diary.py").write_text(
        "from amber2_core.utterance import Corpus, LabelDefaults, Rating, Utterance\n"
        "ORIGIN = 'The root is a diary.'\n"
        "DEFAULTS = LabelDefaults(emotions=('calm', 'tense'))\n"
        "def read(root):\n"
        "    days = [Utterance(word, None, 'Rain.', (Rating('me', word),)) for word in DEFAULTS.emotions]\n"
        "    return Corpus('diary', root, tuple(days), DEFAULTS)\n"
    )
    monkeypatch.setattr(corpora, "__path__", [*corpora.__path__, str(tmp_path)])
    monkeypatch.setitem(READERS, "diary", "diary")
    monkeypatch.setitem(sys.modules, "amber2_data.corpora.diary", None)  # removed again after the test
    del sys.modules["amber2_data.corpora.diary"]
    assert label_defaults("diary").emotions == ("calm", "tense")
    found = CliRunner().invoke(check_corpus, ["--corpus", "diary", "--root", str(tmp_path), "--json"])
    assert json.loads(found.stdout)["emotions"] == {"calm": 1, "tense": 1}
