"""A seed goes in; a folder with a small random wav2vec 2.0 and one with a small random BERT and its tokenizer come out.

**They are not pretrained encoders.** They have the structure and the file formats of `facebook/wav2vec2-base` and
`bert-base-uncased`, so that demo and tests run the real loading and encoding without a download; but nobody trained
them, and no result obtained with them says anything about speech emotion recognition.

    python -m amber2_extract.stand_ins DIR --seed 0 --words transcripts.txt
"""

from __future__ import annotations

import os
import re
import shutil
import string
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from amber2_core.command import Command, command_body
from amber2_core.errors import ModelError
from amber2_core.files import folder_written_whole, write_text

if TYPE_CHECKING:
    from transformers import BertConfig, Wav2Vec2Config

# Weight of the last normalisation. Utterances differ little in what a random encoder makes of them; at this scale a
# head can learn from the few hundred of them that a demo has.
_GAIN = 6.0

# The first two convolutions tell spectra apart. Random ones above them would take differences over time, of which the
# mean over all frames keeps little; from here on they average instead.
_AVERAGING_FROM = 2

SPEECH_FOLDER, TEXT_FOLDER = "stand-in-wav2vec2", "stand-in-bert"

_CARD = """# A stand-in, not a pretrained encoder

Random weights (seed {seed}) in the structure of {structure}, for demos and tests of amber2 without a download.
No result obtained with it says anything about speech emotion recognition.
"""


@contextmanager
def _whole(folder: Path) -> Iterator[Path]:
    """A folder to write in, whose files stand in `folder` when all of them are complete; those that do are replaced."""
    from safetensors import SafetensorError

    new = folder.with_name(f".{folder.name}.{os.getpid()}.new")
    try:
        with folder_written_whole(new) as writing:
            try:
                yield writing
            except SafetensorError as problem:
                raise ModelError(f"Cannot write {folder}: {problem}") from None
        folder.mkdir(parents=True, exist_ok=True)
        for file in new.iterdir():
            file.replace(folder / file.name)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def save_speech_encoder(folder: Path, *, seed: int = 0, config: Wav2Vec2Config | None = None) -> None:
    """Save a random wav2vec 2.0 with its preprocessor, as ``save_pretrained`` does.

    Args:
        folder: made where it does not exist.
        seed: of the weights.
        config: its structure; None is that of wav2vec2-base (seven convolutions, group norm), made small.
            ``Wav2Vec2Config()`` is the base model at full size.
    """
    import torch
    from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2Model

    from .encoders.encoder import silence

    config = config or Wav2Vec2Config(
        conv_dim=(64,) * 7,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_conv_pos_embeddings=32,
        num_conv_pos_embedding_groups=8,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any = Wav2Vec2Model(config)
        for layer in model.feature_extractor.conv_layers[_AVERAGING_FROM:]:
            _average_over_time(layer.conv.weight)
        last = model.encoder.layer_norm if config.do_stable_layer_norm else model.encoder.layers[-1].final_layer_norm
        torch.nn.init.constant_(last.weight, _GAIN)
    # Group norm checkpoints were trained without attention masks, and their preprocessors say so.
    preprocessor: Any = Wav2Vec2FeatureExtractor
    with _whole(folder) as writing, silence():
        model.save_pretrained(writing)
        preprocessor(return_attention_mask=config.feat_extract_norm == "layer").save_pretrained(writing)
        write_text(writing / "README.md", _CARD.format(seed=seed, structure="wav2vec 2.0"))


def _average_over_time(kernel: Any) -> None:
    """Make a random convolution (outputs, inputs, time) an orthogonal mixture of moving averages of its inputs."""
    import torch

    mixture = torch.nn.init.orthogonal_(torch.empty(kernel.shape[:2])) / kernel.shape[2]
    with torch.no_grad():
        kernel.copy_(mixture.unsqueeze(-1).expand_as(kernel))


def save_text_encoder(
    folder: Path, *, words: Iterable[str] = (), seed: int = 0, config: BertConfig | None = None
) -> None:
    """Save a random BERT with a tokenizer, as ``save_pretrained`` does.

    Args:
        folder: made where it does not exist.
        words: have a token each; all other words are spelled in letters.
        seed: of the weights.
        config: its structure, but for the size of the vocabulary; None is that of bert-base-uncased, made small.
            ``BertConfig()`` is the base model at full size.
    """
    import torch
    from transformers import BertConfig, BertModel, BertTokenizer

    from .encoders.encoder import silence

    vocabulary = _vocabulary(words)
    config = config or BertConfig(hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4)
    config.vocab_size = len(vocabulary)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any = BertModel(config)
        torch.nn.init.constant_(model.encoder.layer[-1].output.LayerNorm.weight, _GAIN)
    # A dictionary: transformers 5 takes no notice of vocab_file= here, and every word would become [UNK].
    tokenizer = BertTokenizer(vocab=vocabulary, model_max_length=config.max_position_embeddings)
    with _whole(folder) as writing, silence():
        model.save_pretrained(writing)
        tokenizer.save_pretrained(writing)
        write_text(writing / "README.md", _CARD.format(seed=seed, structure="BERT"))


def words_of(text: str) -> set[str]:
    """The words of a text in the lower case, as BERT's tokenizer splits them."""
    return set(re.findall(r"[a-z]+", text.lower()))


def _vocabulary(words: Iterable[str]) -> dict[str, int]:
    characters = string.ascii_lowercase + string.digits
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *string.punctuation, *characters]
    tokens += [f"##{character}" for character in characters]
    tokens += sorted({word for given in words for word in words_of(given)} - set(tokens))
    return {token: place for place, token in enumerate(tokens)}


@click.command(cls=Command)
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--seed", default=0, show_default=True, help="Seed of the weights.")
@click.option(
    "--words",
    "files",
    multiple=True,
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Text file whose words get a token each, such as a corpus's transcripts; may be given several times.",
)
@click.option("--full-size", is_flag=True, help="As large as wav2vec2-base and bert-base, for measuring speed.")
@command_body
def main(folder: Path, seed: int, files: tuple[Path, ...], full_size: bool) -> None:
    """Save random stand-ins for wav2vec2-base and bert-base-uncased in FOLDER.

    They let demo and tests run without a download. They are NOT pretrained encoders.
    """
    from transformers import BertConfig, Wav2Vec2Config

    words = {word for file in files for word in words_of(file.read_text(encoding="utf-8", errors="replace"))}
    speech, text = folder / SPEECH_FOLDER, folder / TEXT_FOLDER
    save_speech_encoder(speech, seed=seed, config=Wav2Vec2Config() if full_size else None)
    save_text_encoder(text, words=words, seed=seed, config=BertConfig() if full_size else None)
    click.echo(f"{speech}\n{text}")
    click.echo("These are stand-ins with random weights, not pretrained encoders.", err=True)


if __name__ == "__main__":
    main()
