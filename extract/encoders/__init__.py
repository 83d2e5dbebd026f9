"""Frozen models of speech and text, each giving an utterance what it gives it alone, whatever the batch."""

from collections.abc import Mapping
from typing import Literal

# (modality, the model_type of a checkpoint's config, or else the main input of its model) → module and class of the
# family that runs it; the first of a modality says why it cannot run what no family takes
ENCODERS: Mapping[tuple[str, str], str] = {
    ("audio", "input_values"): "waveform:SpeechEncoder",
    ("audio", "input_features"): "spectra:SpectraEncoder",
    ("audio", "whisper"): "whisper:WhisperEncoder",
    ("audio", "qwen2_audio"): "qwen2_audio:Qwen2AudioEncoder",
    ("audio", "qwen2_audio_encoder"): "qwen2_audio:Qwen2AudioEncoder",
    ("audio", "audio-spectrogram-transformer"): "patches:PatchEncoder",
    ("audio", "seamless_m4t"): "spectra:SpectraEncoder",
    ("audio", "seamless_m4t_v2"): "spectra:SpectraEncoder",
    ("audio", "clap"): "clap:ClapEncoder",
    ("audio", "clap_audio_model"): "clap:ClapEncoder",
    ("audio", "file"): "own:OwnEncoder",
    ("text", "input_ids"): "text:TextEncoder",
    ("sentiment", "input_ids"): "sentiment:SentimentClassifier",
}
# model_type of what hears in windows of a fixed length → how long these may be, the default first
WINDOWS: Mapping[str, tuple[Literal["trained", "fit"], ...]] = {
    "whisper": ("trained", "fit"),
    "qwen2_audio": ("trained", "fit"),
    "qwen2_audio_encoder": ("trained", "fit"),
    "audio-spectrogram-transformer": ("trained", "fit"),
    "clap": ("trained",),
    "clap_audio_model": ("trained",),
}
# model_type of what is more than its encoder of speech → the encoder's class under transformers.models, the part of the
# config that it is made of, and what its weights are called by
TOWERS: Mapping[str, tuple[str, str, str]] = {
    "whisper": ("whisper.modeling_whisper:WhisperEncoder", "", r"^(model\.)?encoder\."),
    "qwen2_audio": ("qwen2_audio.modeling_qwen2_audio:Qwen2AudioEncoder", "audio_config", r"^(model\.)?audio_tower\."),
    "clap": ("clap.modeling_clap:ClapAudioModel", "audio_config", r"^audio_model\."),
    "clap_audio_model": ("clap.modeling_clap:ClapAudioModel", "", r"^audio_model\."),
    "seamless_m4t": ("seamless_m4t.modeling_seamless_m4t:SeamlessM4TSpeechEncoder", "", r"^speech_encoder\."),
    "seamless_m4t_v2": (
        "seamless_m4t_v2.modeling_seamless_m4t_v2:SeamlessM4Tv2SpeechEncoder", "", r"^speech_encoder\.",
    ),
    "parakeet_ctc": ("parakeet.modeling_parakeet:ParakeetEncoder", "encoder_config", r"^encoder\."),
}  # fmt: skip
# model_type of audio-language models: what their tower gives is not what the whole model says
AUDIO_LANGUAGE = ("qwen2_audio",)
# how an utterance's hidden states become one vector → the function of `exactness` that does it
AUDIO_POOLINGS: Mapping[str, str] = {
    "mean": "masked_mean",
    "mean+std": "mean_and_deviation",
}
TEXT_POOLINGS: Mapping[str, str] = {
    "mean": "masked_mean",
    "cls": "first_place",
    "last": "last_place",
}
