"""A recogniser gives words to what has none; compared with the model itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from amber2_core.errors import ModelError
from amber2_extract.encoders.encoder import silence
from amber2_predict.encoding import Sound
from amber2_predict.transcriber import Transcriber


def save_recogniser(folder: Path) -> tuple[Any, list[str]]:
    """A CTC recogniser of letters with random weights; returns the model, and the letters."""
    import transformers

    folder.mkdir()
    letters = ["<pad>", "<s>", "</s>", "<unk>", "|", *"abcdefghij"]
    (folder / "vocab.json").write_text(json.dumps({letter: place for place, letter in enumerate(letters)}))
    tokenizer: Any = transformers.Wav2Vec2CTCTokenizer
    features: Any = transformers.Wav2Vec2FeatureExtractor
    processor: Any = transformers.Wav2Vec2Processor
    processor(features(), tokenizer(str(folder / "vocab.json"))).save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.Wav2Vec2Config(
        vocab_size=len(letters), pad_token_id=0, conv_dim=(16,) * 7, hidden_size=16, intermediate_size=16,
        num_hidden_layers=1, num_attention_heads=2, num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2,
    )  # fmt: skip
    model = transformers.Wav2Vec2ForCTC(config).eval()
    torch.nn.init.normal_(model.lm_head.weight, std=3.0)
    with torch.no_grad():
        model.lm_head.bias[1:4] = -1e3  # no signs that are no letters
    with silence():
        model.save_pretrained(folder)
    return model, letters


def test_a_transcript_is_the_models_own_best_path(tmp_path: Path) -> None:
    model, letters = save_recogniser(tmp_path / "asr")
    samples = 0.1 * np.random.default_rng(0).standard_normal(16_000).astype(np.float32)
    normal = (samples - samples.mean()) / np.sqrt(samples.var() + 1e-7)
    with torch.no_grad():
        path = model(torch.from_numpy(normal)[None]).logits[0].argmax(-1).tolist()
    # repeated letters are one, blanks are none
    kept = [letters[a] for a, before in zip(path, [None, *path], strict=False) if a != before and a]
    expected = "".join(kept).replace("|", " ").strip()
    assert expected
    assert Transcriber(str(tmp_path / "asr")).transcript(Sound(samples, 16_000)) == expected


def test_what_recognises_no_speech_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="Cannot transcribe by"):
        Transcriber(str(tmp_path / "empty"))
