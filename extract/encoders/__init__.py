"""Frozen models of speech and text, each giving an utterance what it gives it alone, whatever the batch."""

from collections.abc import Mapping

# (modality, the main input of a model of transformers) → module and class of the family that runs it; the first of a
# modality says why it cannot run what no family takes
ENCODERS: Mapping[tuple[str, str], str] = {
    ("audio", "input_values"): "waveform:SpeechEncoder",
    ("text", "input_ids"): "text:TextEncoder",
    ("sentiment", "input_ids"): "sentiment:SentimentClassifier",
}
# how an utterance's hidden states become one vector → the function of `exactness` that does it
POOLINGS: Mapping[str, str] = {
    "mean": "masked_mean",
}
