"""Checkpoints of every speech and text family at toy size, with random weights, as transformers saves them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from amber2_extract.encoders.encoder import silence

_SENTENCE = "we do not know what the raters heard in this voice but they were not of one mind"
WORDS = _SENTENCE.split()

_SPEECH: dict[str, Any] = {
    "conv_dim": (24,) * 7,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}
_LAYER_NORM: dict[str, Any] = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
_TEXT: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


def _random(family: str, **settings: Any) -> Any:
    """A model of one of transformers' families, with the weights that it starts from."""
    import transformers

    return getattr(transformers, f"{family}Model")(getattr(transformers, f"{family}Config")(**settings))


# takes frames in pairs, and so changes with its batch
_SQUEEZED: dict[str, Any] = {
    **_SPEECH,
    "conv_kernel": (10, 3, 3, 3, 3, 2, 2),
    "conv_stride": (5, 2, 2, 2, 2, 2, 2),
    "squeeze_factor": 2,
}


def _hubert_with_batch_norm() -> Any:
    model = _random("Hubert", **_SPEECH, conv_pos_batch_norm=True)
    torch.nn.init.normal_(model.encoder.pos_conv_embed.batch_norm.running_mean)
    return model


SPEECH_FAMILIES: dict[str, Callable[[], Any]] = {
    "wav2vec2-group": lambda: _random("Wav2Vec2", **_SPEECH),
    "wav2vec2-layer": lambda: _random("Wav2Vec2", **_SPEECH, **_LAYER_NORM),
    "hubert": lambda: _random("Hubert", **_SPEECH),
    "wavlm": lambda: _random("WavLM", **_SPEECH),
    "data2vec-audio": lambda: _random(
        "Data2VecAudio", **{**_SPEECH, "num_conv_pos_embeddings": 3}, conv_pos_kernel_size=9
    ),
    "hubert-batch-norm": _hubert_with_batch_norm,
}
# the kin of those, and what changes with its batch
KIN: dict[str, Callable[[], Any]] = {
    "sew": lambda: _random("SEW", **_SQUEEZED),
    "sew-d": lambda: _random("SEWD", **_SQUEEZED, position_buckets=8, max_position_embeddings=64),
    "unispeech": lambda: _random("UniSpeech", **_SPEECH, num_ctc_classes=8),
    "unispeech-sat": lambda: _random("UniSpeechSat", **_SPEECH),
    "wav2vec2-conformer": lambda: _random("Wav2Vec2Conformer", **_SPEECH),
    "wav2vec2-adapter": lambda: _random("Wav2Vec2", **_SPEECH, add_adapter=True),
}
TEXT_FAMILIES: dict[str, Callable[[int], Any]] = {
    "bert": lambda size: _random("Bert", **_TEXT, vocab_size=size, max_position_embeddings=40),
    "roberta": lambda size: _random("Roberta", **_TEXT, vocab_size=size, max_position_embeddings=42, pad_token_id=1),
    "mpnet": lambda size: _random("MPNet", **_TEXT, vocab_size=size, max_position_embeddings=42, pad_token_id=1),
}


TEXT_KIN: dict[str, Callable[[int], Any]] = {
    "distilbert": lambda size: _random(
        "DistilBert", dim=32, hidden_dim=48, n_layers=2, n_heads=4, vocab_size=size, max_position_embeddings=40
    ),
    "electra": lambda size: _random("Electra", **_TEXT, embedding_size=16, vocab_size=size, max_position_embeddings=40),
    "deberta-v2": lambda size: _random("DebertaV2", **_TEXT, vocab_size=size, max_position_embeddings=40),
    "xlm-roberta": lambda size: _random(
        "XLMRoberta", **_TEXT, vocab_size=size, max_position_embeddings=42, pad_token_id=1
    ),
    "modernbert": lambda size: _random(
        "ModernBert", **_TEXT, vocab_size=size, max_position_embeddings=40, pad_token_id=0, local_attention=8,
        global_attn_every_n_layers=2, cls_token_id=2, sep_token_id=3, bos_token_id=2, eos_token_id=3,
    ),
    "xlnet": lambda size: _random("XLNet", d_model=32, d_inner=48, n_layer=2, n_head=4, vocab_size=size),
    "longformer": lambda size: _random(
        "Longformer", **_TEXT, vocab_size=size, max_position_embeddings=42, attention_window=4, pad_token_id=1
    ),
    "mistral": lambda size: _random(
        "Mistral", **_TEXT, num_key_value_heads=2, head_dim=8, vocab_size=size, max_position_embeddings=64
    ),
}  # fmt: skip


def save_speech(folder: Path, family: str, *, seed: int = 0, do_normalize: bool = True) -> Any:
    """Save a speech encoder and its preprocessor; returns the model."""
    import transformers

    torch.manual_seed(seed)
    model = {**SPEECH_FAMILIES, **KIN}[family]().eval()
    preprocessor: Any = transformers.Wav2Vec2FeatureExtractor
    with silence():
        model.save_pretrained(folder)
    preprocessor(do_normalize=do_normalize, return_attention_mask="layer" in family).save_pretrained(folder)
    return model


def save_text(folder: Path, family: str, *, seed: int = 0) -> Any:
    """Save a text encoder and a word-level BERT tokenizer; returns the model."""
    return _save_text(folder, family, {**TEXT_FAMILIES, **TEXT_KIN}[family], seed)


def save_classifier(folder: Path, family: str, classes: Sequence[str], *, seed: int = 0) -> Any:
    """Save a text classifier whose outputs are called so, and a word-level BERT tokenizer; returns the model."""
    import transformers

    def made(size: int) -> Any:
        config = TEXT_FAMILIES[family](size).config
        config.id2label = dict(enumerate(classes))
        model: Any = transformers.AutoModelForSequenceClassification
        found = model.from_config(config)
        for parameter in found.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.3)  # outputs that differ from one transcript to the other
        return found

    return _save_text(folder, family, made, seed)


def save_language_model(folder: Path, *, seed: int = 0) -> Any:
    """Save a causal model that pads at the left, as embedders of its kind do; returns the model."""

    def made(size: int) -> Any:
        heads = {"num_key_value_heads": 2, "head_dim": 8}
        return _random("Qwen3", **_TEXT, **heads, vocab_size=size, max_position_embeddings=64)

    model = _save_text(folder, "qwen3", made, seed)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "padding_side": "left"}))
    return model


def save_t5(folder: Path, *, whole: bool, seed: int = 0) -> Any:
    """Save a T5, or its encoder alone as checkpoints of sentence encoders hold it; returns the encoder."""
    import transformers

    def made(size: int) -> Any:
        config = transformers.T5Config(vocab_size=size, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4)
        return (transformers.T5Model if whole else transformers.T5EncoderModel)(config)

    return _save_text(folder, "t5", made, seed).get_encoder()


def _save_text(folder: Path, family: str, make: Callable[[int], Any], seed: int) -> Any:
    import transformers

    torch.manual_seed(seed)
    pads_first = family == "bert" or family in TEXT_KIN.keys() - {"xlm-roberta", "longformer"}
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    specials = specials if pads_first else ["[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]"]
    vocabulary = {word: place for place, word in enumerate(dict.fromkeys([*specials, *WORDS, ".", ","]))}
    model = make(len(vocabulary)).eval()
    with silence():
        model.save_pretrained(folder)
    transformers.BertTokenizer(vocab=vocabulary).save_pretrained(folder)
    return model


def save_language(folder: Path, *, is_hearing: bool = True, seed: int = 0) -> None:
    """Save a language model that says labels and braces at random, and that listens, or reads text alone."""
    import tokenizers
    import transformers

    specials = ["<pad>", "<unk>", "<|im_start|>", "<|im_end|>", "<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>"]
    words = [*specials, "neutral", "happy", "sad", *"{}:,.01", *WORDS]
    vocabulary = {word: place for place, word in enumerate(dict.fromkeys(words))}
    level = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    level.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer: Any = transformers.PreTrainedTokenizerFast(
        tokenizer_object=level, pad_token="<pad>", unk_token="<unk>", eos_token="<|im_end|>"
    )
    tokenizer.add_special_tokens({"additional_special_tokens": specials[2:]})
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    text: dict[str, Any] = {"vocab_size": len(vocabulary), "initializer_range": 0.5, **sizes, **heads}
    torch.manual_seed(seed)
    if is_hearing:
        ear = {"d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 16}
        audio = {"model_type": "qwen2_audio_encoder", "num_mel_bins": 16, "initializer_range": 0.5, **ear}
        config: Any = transformers.Qwen2AudioConfig(
            audio_config=audio,
            text_config={"model_type": "qwen2", **text},
            audio_token_index=vocabulary["<|AUDIO|>"],
        )
        model: Any = transformers.Qwen2AudioForConditionalGeneration(config)
        spectrograms: Any = transformers.WhisperFeatureExtractor
        transformers.Qwen2AudioProcessor(spectrograms(feature_size=16), tokenizer).save_pretrained(folder)
    else:
        # of a family that keeps the tokenizer it is given
        model = transformers.GraniteForCausalLM(transformers.GraniteConfig(**text))
        tokenizer.save_pretrained(folder)
    # a model's own ways of sampling, which are not to count
    model.generation_config.update(eos_token_id=vocabulary["<|im_end|>"], do_sample=True, top_k=1, temperature=9.0)
    with silence():
        model.save_pretrained(folder)


def noise(*seconds: float, seed: int = 0) -> list[npt.NDArray[np.float32]]:
    """Waveforms at 16 kHz, each with an offset and a loudness of its own."""
    generator = np.random.default_rng(seed)
    return [
        (generator.standard_normal(round(16_000 * length)) * generator.uniform(0.01, 2) + generator.normal()).astype(
            np.float32
        )
        for length in seconds
    ]


def vectors(encoder: Any, inputs: Sequence[Any]) -> npt.NDArray[np.float32]:
    """(batch, D) or (batch, layers + 1, D): the values of the rows that an encoder gives."""
    return np.stack([row.values for row in encoder.encode(inputs)])
