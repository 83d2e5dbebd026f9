"""Small random checkpoints of encoders that are neither wav2vec 2.0's nor BERT's kin, whole, as the hub holds them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from amber2_extract.encoders.encoder import silence

SMALL: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
_WHISPER: dict[str, Any] = {
    "d_model": 16,
    "encoder_layers": 2,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "max_source_positions": 100,
    "num_mel_bins": 80,
}
# windows of two seconds
_TWO_SECONDS: dict[str, Any] = {"feature_size": 80, "chunk_length": 2}


def whisper() -> tuple[Any, Any]:
    """Whisper with its decoder, as a model of transcription."""
    import transformers

    decoder = {"decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 24, "vocab_size": 60}
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    config = transformers.WhisperConfig(**_WHISPER, **decoder, **tokens)
    return transformers.WhisperForConditionalGeneration(config), transformers.WhisperFeatureExtractor(**_TWO_SECONDS)


def qwen2_audio() -> tuple[Any, Any]:
    """Qwen2-Audio with its language model."""
    import transformers

    text = {"model_type": "qwen2", "num_key_value_heads": 2, "vocab_size": 60, **SMALL}
    config = transformers.Qwen2AudioConfig(
        audio_config={"model_type": "qwen2_audio_encoder", **_WHISPER}, text_config=text, audio_token_index=5
    )
    model = transformers.Qwen2AudioForConditionalGeneration(config)
    return model, transformers.WhisperFeatureExtractor(**_TWO_SECONDS)


def ast() -> tuple[Any, Any]:
    """AST as a classifier of sounds."""
    import transformers

    config = transformers.ASTConfig(**SMALL, max_length=204, num_mel_bins=32)
    model: Any = transformers.ASTForAudioClassification(config)
    inner = model.audio_spectrogram_transformer.embeddings
    for parameter in (inner.cls_token, inner.distillation_token, inner.position_embeddings):
        torch.nn.init.normal_(parameter)
    return model, transformers.ASTFeatureExtractor(max_length=204, num_mel_bins=32)


def clap(**settings: Any) -> tuple[Any, Any]:
    """CLAP with its text tower; windows of one second."""
    import transformers

    audio: dict[str, Any] = {
        "depths": [1, 1],
        "num_attention_heads": [2, 2],
        "patch_embeds_hidden_size": 8,
        "hidden_size": 16,
        "spec_size": 64,
        "num_mel_bins": 16,
        "window_size": 4,
        "patch_size": 4,
        "patch_stride": [4, 4],
    }
    fusion = settings.get("truncation") == "fusion"
    config = transformers.ClapConfig(
        audio_config={**audio, "enable_fusion": fusion},
        text_config={**SMALL, "vocab_size": 60},
        projection_dim=8,
    )
    model: Any = transformers.ClapModel(config)
    norm = model.audio_model.audio_encoder.batch_norm
    torch.nn.init.normal_(norm.running_mean)
    extractor: Any = transformers.ClapFeatureExtractor
    sizes = {"feature_size": 16, "sampling_rate": 16_000, "hop_length": 64, "max_length_s": 1, "fft_window_size": 256}
    return model, extractor(**sizes, frequency_max=8_000, **{"truncation": "rand_trunc", **settings})


def clap_fusion() -> tuple[Any, Any]:
    """CLAP of the kind that fuses the parts of long clips."""
    return clap(truncation="fusion")


def w2v_bert(**settings: Any) -> tuple[Any, Any]:
    """w2v-BERT 2.0."""
    import transformers

    config = transformers.Wav2Vec2BertConfig(**SMALL, **settings)
    return transformers.Wav2Vec2BertModel(config), transformers.SeamlessM4TFeatureExtractor()


def w2v_bert_adapter() -> tuple[Any, Any]:
    """w2v-BERT 2.0 with an adapter, whose convolution takes frames in pairs."""
    return w2v_bert(add_adapter=True, output_hidden_size=16)


def seamless() -> tuple[Any, Any]:
    """SeamlessM4T, of speech to text."""
    import transformers

    kinds = ("encoder", "decoder", "t2u_encoder", "t2u_decoder")
    sizes = {f"{kind}_layers": 1 for kind in kinds} | {f"{kind}_ffn_dim": 16 for kind in kinds}
    sizes |= {f"{kind}_attention_heads": 2 for kind in kinds}
    tokens = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "vocab_size": 60, "t2u_vocab_size": 60}
    config = transformers.SeamlessM4TConfig(
        **sizes,
        **tokens,
        hidden_size=16,
        speech_encoder_layers=2,
        speech_encoder_attention_heads=2,
        speech_encoder_intermediate_size=24,
        max_position_embeddings=64,
        t2u_pad_token_id=1,
    )
    return transformers.SeamlessM4TForSpeechToText(config), transformers.SeamlessM4TFeatureExtractor()


def parakeet() -> tuple[Any, Any]:
    """Parakeet with its head for transcription."""
    import transformers

    encoder = transformers.ParakeetEncoderConfig(**SMALL, subsampling_conv_channels=8)
    config = transformers.ParakeetCTCConfig(vocab_size=20, encoder_config=encoder, pad_token_id=0)
    return transformers.ParakeetForCTC(config), transformers.ParakeetFeatureExtractor()


def speech_to_text() -> tuple[Any, Any]:
    """Speech2Text, whose encoder takes spectra in fours."""
    import transformers

    kinds = ("encoder", "decoder")
    sizes = {f"{kind}_layers": 2 for kind in kinds} | {f"{kind}_attention_heads": 2 for kind in kinds}
    sizes |= {f"{kind}_ffn_dim": 24 for kind in kinds} | {"d_model": 16, "conv_channels": 16, "vocab_size": 60}
    config = transformers.Speech2TextConfig(**sizes)
    return transformers.Speech2TextForConditionalGeneration(config), transformers.Speech2TextFeatureExtractor()


WINDOWED: dict[str, Callable[[], tuple[Any, Any]]] = {
    "whisper": whisper,
    "qwen2-audio": qwen2_audio,
    "ast": ast,
    "clap": clap,
    "clap-fusion": clap_fusion,
}
SPECTRA: dict[str, Callable[[], tuple[Any, Any]]] = {
    "w2v-bert": w2v_bert,
    "w2v-bert-adapter": w2v_bert_adapter,
    "seamless": seamless,
    "parakeet": parakeet,
    "speech-to-text": speech_to_text,
}


def save_family(folder: Path, family: str, *, seed: int = 0) -> tuple[Any, Any]:
    """Save a model and its preprocessor; returns both."""
    torch.manual_seed(seed)
    with silence():
        model, preprocessor = {**WINDOWED, **SPECTRA}[family]()
        model.eval().save_pretrained(folder)
        preprocessor.save_pretrained(folder)
    return model, preprocessor
