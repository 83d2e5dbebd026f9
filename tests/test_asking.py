"""A language model asked request by request: seeded, in batches, with recordings or without, killed and resumed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from small_corpus import write_recording
from small_models import save_language

from amber2_core.errors import CacheError, CorpusError, ModelError, SettingError
from amber2_extract import asking
from amber2_extract.asking import Speaker, Tempered, ask_model
from amber2_extract.language_models import ask_model as command

SECONDS = (0.3, 0.9, 0.5, 0.7, 0.4, 0.6)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "listener"
    save_language(folder)
    return folder


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "reader"
    save_language(folder, is_hearing=False)
    return folder


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    (tmp_path / "wav").mkdir()
    requests = []
    for k, seconds in enumerate(SECONDS):
        write_recording(tmp_path / f"wav/u{k}.wav", seconds, seed=k)
        prompt = " ".join(["what do we know"] * (k + 1))
        told = {"annotator": "a", "audio": f"wav/u{k}.wav", "start": None, "duration": None, "seed": k}
        requests.append({"utterance": f"u{k}", "prompt": prompt, "temperature": 1.5 * (k % 2), **told})
    return written(tmp_path / "prompts.jsonl", requests)


def written(path: Path, records: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def said(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def ask(prompts: Path, model: Path, output: Path, **options: Any) -> list[dict[str, Any]]:
    settings = {"root": prompts.parent, "device": "cpu", "max_tokens": 6, "weights": "fp32", **options}
    ask_model(prompts, str(model), output, **settings)
    return said(output)


def test_answers_depend_neither_on_the_batch_nor_on_what_else_is_asked(
    prompts: Path, model: Path, tmp_path: Path
) -> None:
    alone = ask(prompts, model, tmp_path / "a.jsonl", batch_size=1)
    assert [record["utterance"] for record in alone] == [f"u{k}" for k in range(6)]
    assert len({record["answer"] for record in alone}) > 2
    assert ask(prompts, model, tmp_path / "b.jsonl", batch_size=4) == alone
    some = written(tmp_path / "some.jsonl", [json.loads(line) for line in prompts.read_text().splitlines()[3:]])
    assert ask(some, model, tmp_path / "c.jsonl", batch_size=3) == alone[3:]


def test_at_temperature_0_an_answer_is_what_transformers_generates_alone(
    prompts: Path, model: Path, tmp_path: Path
) -> None:
    import soundfile
    import transformers

    found = ask(prompts, model, tmp_path / "a.jsonl", batch_size=6)
    processor: Any = transformers.AutoProcessor.from_pretrained(model)
    own: Any = transformers.Qwen2AudioForConditionalGeneration.from_pretrained(model).eval()
    for k in (0, 2, 4):
        prompt = json.loads(prompts.read_text().splitlines()[k])["prompt"]
        heard, _ = soundfile.read(tmp_path / f"wav/u{k}.wav", dtype="float32")
        sound = "Audio 1: <|audio_bos|><|AUDIO|><|audio_eos|>\n"
        system = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        text = f"{system}<|im_start|>user\n{sound}{prompt}<|im_end|>\n<|im_start|>assistant\n"
        inputs = processor(text=text, audio=[heard], sampling_rate=16_000, return_tensors="pt")
        tokens = own.generate(**inputs, max_new_tokens=6, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        assert found[k]["answer"] == processor.decode(tokens, skip_special_tokens=True).strip()


def test_what_is_heard_changes_the_answer(prompts: Path, model: Path, tmp_path: Path) -> None:
    record = {"prompt": "one voice", "annotator": "a", "temperature": 0}
    requests = [{"utterance": f"u{k}", "audio": f"wav/u{k}.wav", **record} for k in range(6)]
    same = written(tmp_path / "same.jsonl", requests)
    heard = ask(same, model, tmp_path / "a.jsonl")
    unheard = ask(same, model, tmp_path / "b.jsonl", recordings="left-out", root=None)
    assert len({one["answer"] for one in unheard}) == 1
    assert len({one["answer"] for one in heard}) > 1


def test_draws_are_of_the_tempered_softmax() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -torch.inf])
    draw = Tempered([{"temperature": 2.0, "seed": 3}])
    counts = torch.zeros(4)
    for _ in range(4000):
        counts[draw(torch.empty(0), logits[None]).argmax()] += 1
    expected = (logits / 2).softmax(-1)
    sd = (expected * (1 - expected) / 4000).sqrt()
    assert ((counts / 4000 - expected).abs() <= 4 * sd).all()


def test_a_seed_gives_another_answer_and_the_same_seed_the_same(reader: Path, tmp_path: Path) -> None:
    requests = [{"utterance": f"u{k}", "prompt": "one voice", "temperature": 2, "seed": k // 2} for k in range(12)]
    answers = [one["answer"] for one in ask(written(tmp_path / "p.jsonl", requests), reader, tmp_path / "a.jsonl")]
    assert answers[::2] == answers[1::2]
    assert len(set(answers)) > 3


def test_a_model_that_reads_text_alone_says_so(
    prompts: Path, reader: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    answers = ask(prompts, reader, tmp_path / "a.jsonl", root=None, batch_size=4)
    assert "reader reads text alone: 6 recordings are left out" in caplog.text
    assert ask(prompts, reader, tmp_path / "b.jsonl", batch_size=1) == answers


@pytest.mark.parametrize("torn", ["", '{"utterance": "u3", "annot'])
def test_a_killed_command_goes_on_where_it_stopped(
    prompts: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, torn: str
) -> None:
    whole = ask(prompts, model, tmp_path / "whole.jsonl")
    answers, output = Speaker.answers, tmp_path / "a.jsonl"
    asked: list[str] = []
    once: list[bool] = []

    def counted(self: Speaker, requests: Sequence[Any], waveforms: Any) -> list[str]:
        if requests[0]["utterance"] == "u3" and not once:
            once.append(True)
            raise KeyboardInterrupt
        asked.extend(request["utterance"] for request in requests)
        return answers(self, requests, waveforms)

    monkeypatch.setattr(Speaker, "answers", counted)
    with pytest.raises(KeyboardInterrupt):
        ask(prompts, model, output)
    assert not output.exists()
    with (tmp_path / "a.jsonl.parts" / "answers.jsonl").open("a") as part:
        part.write(torn)
    assert ask(prompts, model, output) == whole
    assert asked == [f"u{k}" for k in range(6)]
    assert not (tmp_path / "a.jsonl.parts").exists()


def interrupted(path: Path) -> None:
    raise KeyboardInterrupt


def test_what_other_settings_answered_is_asked_again(
    prompts: Path, reader: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = ask(prompts, reader, tmp_path / "whole.jsonl", max_tokens=2)
    with monkeypatch.context() as patch:
        patch.setattr(asking, "written_whole", interrupted)
        with pytest.raises(KeyboardInterrupt):
            ask(prompts, reader, tmp_path / "a.jsonl", max_tokens=6)
    assert ask(prompts, reader, tmp_path / "a.jsonl", max_tokens=2) == whole


def test_a_recording_that_cannot_be_read_has_no_answer_and_is_listed(
    prompts: Path, model: Path, tmp_path: Path
) -> None:
    (tmp_path / "wav/u2.wav").write_bytes(b"")
    arguments = [prompts, "--model", model, "--output", tmp_path / "a.jsonl", "--root", tmp_path, "--max-tokens", 2]
    done = CliRunner().invoke(command, [str(one) for one in (*arguments, "--device", "cpu", "--batch-size", 4)])
    assert (done.exit_code, "not asked: u2: u2.wav: is empty (0 bytes)" in done.stderr) == (3, True)
    assert [record["answer"] is None for record in said(tmp_path / "a.jsonl")] == [k == 2 for k in range(6)]


def test_a_recording_longer_than_the_model_listens_is_told(model: Path, tmp_path: Path) -> None:
    write_recording(tmp_path / "long.wav", 31, seed=0)
    record = {"utterance": "u", "prompt": "one voice", "audio": "long.wav"}
    prompts = written(tmp_path / "p.jsonl", [record, {**record, "annotator": "b", "duration": 29.0}])
    done = ask_model(prompts, str(model), tmp_path / "a.jsonl", root=tmp_path, device="cpu", max_tokens=1)
    assert done.cut == 1


def test_mistakes_are_one_line(prompts: Path, model: Path, tmp_path: Path) -> None:
    output = tmp_path / "a.jsonl"
    with pytest.raises(SettingError, match="listener listens: name the folder of recordings with --root"):
        ask(prompts, model, output, root=None)
    with pytest.raises(SettingError, match="Bad recordings 'some'"):
        ask(prompts, model, output, recordings="some")
    with pytest.raises(ModelError, match="no such folder"):
        ask(prompts, tmp_path / "nowhere", output)
    request = {"utterance": "u", "prompt": "p"}
    for records, why in (
        ([], "holds no request"),
        ([{"utterance": "u"}], "line 1: expected an object with texts"),
        ([request, request], "line 2: a second request"),
        ([{**request, "temperature": -1}], "line 1: expected a temperature"),
        ([{**request, "seed": 0.5}], "line 1: expected a temperature"),
    ):
        with pytest.raises(CorpusError, match=why):
            ask(written(tmp_path / "p.jsonl", records), model, output)
    output.write_text("mine")
    with pytest.raises(CacheError, match="exists"):
        ask(prompts, model, output)
    assert output.read_text() == "mine"
