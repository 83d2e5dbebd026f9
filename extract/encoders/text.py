"""Frozen encoders of transcripts with their tokenizers: BERT, RoBERTa, MPNet and their kin."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from amber2_core.devices import on
from amber2_core.errors import ModelError

from ..checkpoint import Checkpoint
from ..recipe import Precision
from ..rows import Row
from .encoder import Encoder, from_pretrained
from .exactness import mask_of, trial_lengths

# Transcripts tokenized together.
_AT_ONCE = 256
# Tokens of the longest input with which batches are tried.
_TRIAL_TOKENS = 100


class TextEncoder(Encoder):
    """A frozen text encoder with its tokenizer.

    `encode` takes token ids of each transcript, at least one; the mean is over all of them, special ones included.
    A batch is padded at the end, whatever the tokenizer prefers: under a mask, and where no token sees a later one, as
    in a language model, what is padded changes nothing, and positions are those that a transcript has alone.
    """

    def _set_up(self, checkpoint: Checkpoint) -> None:
        self.tokenizer = Tokenizer(checkpoint, self._model)
        if getattr(self._model.config, "use_cache", False):
            # What a language model would need to go on writing.
            self._model.config.use_cache = False

    @torch.inference_mode()
    def _encode(self, inputs: Sequence[Sequence[int]], precision: Precision) -> list[Row]:
        output = self._output(inputs, precision, output_hidden_states=self.looks_inside)
        return self._pooled(output, [len(ids) for ids in inputs])

    def _output(self, inputs: Sequence[Sequence[int]], precision: Precision, **settings: Any) -> Any:
        """What the model makes of token ids, padded at the end."""
        ids = pad_sequence(
            [torch.tensor(ids) for ids in inputs], batch_first=True, padding_value=self.tokenizer.padding
        )
        lengths = [len(ids) for ids in inputs]
        with self._half(precision):
            return self._model(
                input_ids=on(self.device, ids),
                attention_mask=mask_of(lengths, device=self.device).long(),
                **settings,
            )

    def _probe(self) -> Sequence[Any]:
        (words,), _ = self.tokenizer.tokens(["this sentence is as long as it must be, and longer than all the others"])
        longest = min(_TRIAL_TOKENS, self.tokenizer.most_tokens)
        ids = (words * (1 + longest // max(1, len(words))))[:longest]
        return [ids[:length] for length in trial_lengths(1, 1, most=longest) if length <= longest]


class Tokenizer:
    """The tokenizer of a text encoder."""

    def __init__(self, checkpoint: Checkpoint, model: Any) -> None:
        """Load it, and see that the model, whose weights do not matter, takes tokens.

        Raises:
            ModelError: it cannot be loaded, or the model takes something else.
        """
        import transformers

        self._tokenizer = from_pretrained(checkpoint, transformers.AutoTokenizer.from_pretrained)
        if model.main_input_name != "input_ids":
            raise ModelError(
                f"Cannot use {checkpoint.name!r} for text: {type(model).__name__} takes "
                f"{model.main_input_name}, not tokens"
            )
        self.most_tokens = _token_limit(self._tokenizer, model)
        self.padding = self._tokenizer.pad_token_id or 0

    def tokens(self, transcripts: Sequence[str]) -> tuple[list[list[int]], list[bool]]:
        """Token ids of each transcript, special tokens included, and whether it had to be cut to `most_tokens`."""
        tokens: list[list[int]] = []
        # A tokenizer notes more of each word than its id: not of a whole corpus at once.
        for first in range(0, len(transcripts), _AT_ONCE):
            tokens += self._tokens(transcripts[first : first + _AT_ONCE], truncation=False)
        cut = [len(ids) > self.most_tokens for ids in tokens]
        for place in (place for place, is_cut in enumerate(cut) if is_cut):
            tokens[place] = self._tokens([transcripts[place]], truncation=True)[0]
        return tokens, cut

    def _tokens(self, transcripts: Sequence[str], *, truncation: bool) -> list[list[int]]:
        settings: dict[str, Any] = {"truncation": truncation, "max_length": self.most_tokens if truncation else None}
        tokens: list[list[int]] = self._tokenizer(list(transcripts), verbose=False, **settings)["input_ids"]
        return tokens


def load_tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    """The tokenizer of a checkpoint without its encoder: the model is built, but its weights are not loaded.

    Raises:
        ModelError: as `Tokenizer`.
    """
    import transformers

    def without_weights(folder: Any, **settings: Any) -> Any:
        models: Any = transformers.AutoModel
        with torch.device("meta"):
            return models.from_config(transformers.AutoConfig.from_pretrained(folder, **settings))

    return Tokenizer(checkpoint, from_pretrained(checkpoint, without_weights))


def _token_limit(tokenizer: Any, model: Any) -> int:
    """What the tokenizer says, or the number of position embeddings, whichever is less."""
    limit = int(min(tokenizer.model_max_length, 1_000_000))
    positions = getattr(model.config, "max_position_embeddings", None) or limit
    if positions < 0:  # XLNet's, for any number
        return limit
    table = getattr(getattr(model, "embeddings", None), "position_embeddings", None)
    # RoBERTa and MPNet count positions from behind their padding index.
    padding = getattr(table, "padding_idx", None)
    return min(limit, int(positions) - (0 if padding is None else int(padding) + 1))
