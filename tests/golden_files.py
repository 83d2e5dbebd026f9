"""How every file in tests/golden/ was made, but for cache_v1.h5: `python tests/golden_files.py`.

The files were written by the first version that these tests hold later ones to, on a CPU in fp32. They stay as they
are: whoever writes them anew gives up the promise that a command gives the numbers that it gave before.
"""

from __future__ import annotations

import csv
import json
import shutil
import tempfile
import wave
from contextlib import chdir
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from click.testing import CliRunner, Result

GOLDEN = Path(__file__).parent / "golden"
FEATURES = GOLDEN / "features_v1.h5"
RUN = GOLDEN / "run_v1"
MODELS = GOLDEN / "models"
EXTRACTED = GOLDEN / "extracted_v1.h5"
COMPARISONS = GOLDEN / "comparisons.json"

EMOTIONS = ("neutral", "happy", "angry", "sad")
UTTERANCES, SESSIONS = 90, 5

# --- training ---

_SMALL = "--device cpu --seeds 2 --hidden 8 --lr 0.02 --batch-size 16"
RUN_COMMAND = f"{_SMALL} --epochs 6 --kappa 2,8"
# sweep → the words after `train-heads --cache features_v1.h5`
SWEEPS = {
    "grid": f"{_SMALL} --epochs 6 --kappa 2,8 --lambda-mai 0.3,0.7",
    "mask": f"{_SMALL} --epochs 6 --missing mask --video faces --kappa 2,8 --folds speaker",
    "three": f"{_SMALL} --epochs 8 --video faces --fusion softmax-gate --dropout 0.2 --lambda-mai 0.2,0.8 "
    "--folds official",
    "options": f"{_SMALL} --epochs 5 --score-all --inputs standardized --system amber2 --student audio --fusion concat "
    "--labels hard --loss kl --lambda-expert 1 --kappa 0,8 --folds stratified --raters all --multi-label split "
    "--out-of-space other --merge none --keep any-vote",
    "gradients": f"{_SMALL} --epochs 5 --patience 2 --system amber2 --fusion gmu,self-gate --expert-gradient all,own "
    "--loss js,soft-ce --lambda-expert 0.5 --folds column:room --weight-decay 0.1",
    "ablation": f"{_SMALL} --epochs 5 --preset ablation --folds official",
}
# what tells settings of one system apart in results.csv
VARIED = {
    "grid": ("kappa", "lambda_mai"),
    "mask": ("kappa",),
    "three": ("lambda_mai",),
    "options": ("kappa",),
    "gradients": ("fusion", "expert_gradient", "loss"),
    "ablation": (),
}


def train(words: str, output: Path | str, *, cache: Path | str = FEATURES) -> Result:
    """train-heads on the golden features; its table is printed as JSON."""
    from amber2_train.cli import train_heads

    places = ["--cache", str(cache), "--output", str(output)]
    return CliRunner().invoke(train_heads, [*words.split(), *places, "--json", "--quiet"])


def report(output: Path) -> Result:
    """report-runs on the golden run folder; what it finds is printed as JSON."""
    from amber2_report.cli import report_runs

    return CliRunner().invoke(report_runs, [str(RUN), "--cache", str(FEATURES), "--output", str(output), "--json"])


def write_features(path: Path) -> None:
    """90 utterances of ten speakers in five sessions; what raters heard shows in the features, more or less clearly."""
    from amber2_core.cache import Failure, FeatureCache, Features, Frames, write_cache
    from amber2_core.tables import RatingTable, UtteranceTable, texts
    from amber2_core.utterance import LabelDefaults

    random = np.random.default_rng(5)
    rows = np.arange(UTTERANCES)
    ids = [f"u{row:02}" for row in rows]
    session = rows % SESSIONS
    speaker = session * 2 + rows // SESSIONS % 2
    ratings, felt = _ratings(random)
    # each modality tells little of every third utterance, so that it matters how much each expert counts
    audio = _carrying(random, felt, 8, np.where(rows // 5 % 3 == 0, 2.0, 0.5))
    text = _carrying(random, felt, 6, np.where(rows // 5 % 3 == 1, 2.0, 0.4))
    video = _carrying(random, felt, 5, np.where(rows // 5 % 3 == 2, 2.0, 0.5))
    unseen = np.flatnonzero(rows % 7 == 3)
    video[unseen] = np.nan
    digests = [f"{row:064x}" for row in rows]
    seen = texts(["" if row in unseen else f"{row + 1000:064x}" for row in rows])
    lengths = rows % 3
    frames = Frames(
        random.normal(size=(int(lengths.sum()), 8)).astype(np.float16),
        np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
    )
    layers = np.stack([random.normal(size=audio.shape).astype(np.float32), audio[:, ::-1] * 0.1, audio], axis=1)
    write_cache(
        path,
        FeatureCache(
            corpus="golden",
            utterances=UtteranceTable(
                id=texts(ids),
                speaker=texts([f"s{who}" for who in speaker]),
                session=texts([f"Ses{where + 1}" for where in session]),
                dialogue=texts([f"Ses{where + 1}-{row // 30}" for where, row in zip(session, rows, strict=True)]),
                split=texts([("train", "train", "train", "dev", "test")[where] for where in session]),
                language=texts(["en"] * UTTERANCES),
                transcript=texts([f"sentence {row % 11}" for row in rows]),
                audio=texts([f"wav/{name}.wav" for name in ids]),
                audio_sha256=texts(digests),
                start=np.full(UTTERANCES, np.nan, np.float32),
                duration=(1 + rows % 4).astype(np.float32),
            ),
            ratings=RatingTable(
                utterance=np.array([rating[0] for rating in ratings], dtype=np.int32),
                rater=texts([rating[1] for rating in ratings]),
                source=texts([rating[2] for rating in ratings]),
                stimulus=texts([rating[3] for rating in ratings]),
                label=texts([rating[4] for rating in ratings]),
                weight=np.ones(len(ratings), dtype=np.float32),
            ),
            defaults=LabelDefaults(EMOTIONS, merge=(("excited", "happy"),), keep="plurality", folds="session"),
            features=(
                Features(
                    "audio", "voices", layers, texts(digests), {"layers": "all", "model": "golden/voices"}, frames
                ),
                Features("text", "words", text, texts(digests), {"model": "golden/words"}),
                Features("video", "faces", video, seen, {"model": "golden/faces"}),
            ),
            attributes={
                "valence": rows % 5 + 0.5,
                "room": texts([("hall", "studio", "kitchen")[row % 3] for row in rows]),
            },
            failures=tuple(Failure(ids[row], "video/faces", "no face in the picture") for row in unseen),
            corpus_version="1",
            created="2026-01-02T03:04:05+00:00",
        ),
    )


def _ratings(random: np.random.Generator) -> tuple[list[tuple[int, str, str, str, str]], npt.NDArray[np.float64]]:
    """Utterance, rater, source, stimulus and label of every vote, and the shares (N, C) that they come from."""
    clarity = random.uniform(0.55, 0.95, UTTERANCES)
    emotion = random.permutation(np.arange(UTTERANCES) % len(EMOTIONS))
    other = (emotion + random.integers(1, len(EMOTIONS), UTTERANCES)) % len(EMOTIONS)
    felt = np.full((UTTERANCES, len(EMOTIONS)), 0.02)
    np.put_along_axis(felt, emotion[:, None], clarity[:, None], axis=1)
    np.put_along_axis(felt, other[:, None], 0.96 - clarity[:, None], axis=1)
    felt /= felt.sum(axis=1, keepdims=True)
    votes: list[tuple[int, str, str, str, str]] = []
    for row in range(UTTERANCES):
        for rater in range(4):
            word = EMOTIONS[random.choice(len(EMOTIONS), p=felt[row])]
            word = "excited" if word == "happy" and row % 4 == 0 else word
            votes.append((row, f"E{rater + row % 2}", "external", "audiovisual", word))
        if row % 6 == 1:  # two ticks of one rater
            votes.append((row, f"E{row % 2}", "external", "audiovisual", EMOTIONS[other[row]]))
        if row % 5 == 2:
            votes.append((row, "E9", "external", "audiovisual", "surprised"))
        if row % 3 == 0:
            votes.append((row, "self", "self", "audiovisual", EMOTIONS[emotion[row]]))
        if row % 10 == 4:
            votes.append((row, "E0", "external", "audio", EMOTIONS[other[row]]))
    return votes, felt


def _carrying(
    random: np.random.Generator, felt: npt.NDArray[np.float64], size: int, noise: npt.NDArray[np.float64]
) -> npt.NDArray[np.float32]:
    """Vectors (N, size) that tell of shares (N, C), each with so much noise (N,), and off centre."""
    signal = 3 * felt @ random.normal(size=(felt.shape[1], size))
    return np.asarray(0.5 + signal + noise[:, None] * random.normal(size=signal.shape)).astype(np.float32)


def write_runs() -> None:
    """The run folder, and of every sweep its results and predictions."""
    shutil.rmtree(RUN, ignore_errors=True)
    with chdir(GOLDEN):  # so that settings.json names no place of one machine
        _must(train(RUN_COMMAND, RUN.name, cache=FEATURES.name))
    for file in (RUN / "heads").iterdir():
        file.chmod(0o644)
    with tempfile.TemporaryDirectory() as folder:
        for name, words in SWEEPS.items():
            _must(train(words, Path(folder, name)))
            (GOLDEN / "sweeps" / name).mkdir(parents=True, exist_ok=True)
            for kept in ("results.csv", "predictions.npz"):
                shutil.copy(Path(folder, name, kept), GOLDEN / "sweeps" / name)


# --- extraction ---

EXTRACT_OPTIONS = "--corpus manifest --layers all --frames 5 --device cpu --quiet"
RECORDINGS = 12
SENTENCES = ("we do not know what the raters heard", "they were not of one mind.", "one voice", "the voice", "")


def extract_words(manifest: Path, output: Path) -> list[str]:
    """What to type after `extract-features`."""
    models = ["--audio-model", str(MODELS / "wav2vec2"), "--text-model", str(MODELS / "bert")]
    return [*EXTRACT_OPTIONS.split(), "--root", str(manifest), "--output", str(output), *models]


def extract(manifest: Path, output: Path) -> Result:
    """extract-features with the golden encoders."""
    from amber2_extract.cli import extract_features

    return CliRunner().invoke(extract_features, extract_words(manifest, output))


def write_manifest(folder: Path, *, count: int = RECORDINGS) -> Path:
    """The first recordings of a corpus of twelve, and one that is not there; a manifest lists them."""
    rows = []
    for number in range(count):
        _write_recording(folder / f"r{number:02}.wav", number)
        cut = ("0.05", "0.2") if number == 5 else ("", "")
        text = SENTENCES[number % len(SENTENCES)]
        rows.append((f"r{number:02}", f"r{number:02}.wav", text, f"s{number % 4}", *cut, number % 3, 1))
    rows.append(("gone", "gone.wav", "what do they know", "s0", "", "", 1, 0))
    manifest = folder / "utterances.csv"
    with manifest.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("id", "audio", "text", "speaker", "start", "end", "votes.neutral", "votes.sad"))
        writer.writerows(rows)
    return manifest


def _write_recording(path: Path, number: int) -> None:
    """A triangle wave with noise, of whole numbers alone: the same bytes on every machine; one in stereo at 8 kHz."""
    rate, channels = (8_000, 2) if number == 3 else (16_000, 1)
    count = channels * (2_000 + 437 * number)
    steps = np.arange(count, dtype=np.uint64) + np.uint64(7919 * number + 1)
    mixed = steps * np.uint64(0x9E3779B97F4A7C15)
    mixed ^= mixed >> np.uint64(31)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    noise = (mixed >> np.uint64(52)).astype(np.int64) - 2048
    period = 40 + 14 * number
    triangle = np.abs(np.arange(count) % period - period // 2) * (16_000 // period) - 4_000
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((noise + triangle).astype("<i2").tobytes())


def write_models() -> None:
    """A wav2vec 2.0 and a BERT of two layers and eight units, with random weights and a tokenizer of a few words."""
    import small_models
    import torch
    import transformers

    tiny: dict[str, Any] = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2}
    positions: dict[str, Any] = {"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}
    torch.manual_seed(20)
    preprocessor: Any = transformers.Wav2Vec2FeatureExtractor
    speech = transformers.Wav2Vec2Config(conv_dim=(8,) * 7, **tiny, **positions)
    transformers.Wav2Vec2Model(speech).save_pretrained(MODELS / "wav2vec2")
    preprocessor(do_normalize=True).save_pretrained(MODELS / "wav2vec2")
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = {word: place for place, word in enumerate(dict.fromkeys([*specials, *small_models.WORDS, ".", ","]))}
    transformers.BertModel(
        transformers.BertConfig(vocab_size=len(words), max_position_embeddings=40, **tiny)
    ).save_pretrained(MODELS / "bert")
    transformers.BertTokenizer(vocab=words).save_pretrained(MODELS / "bert")
    for file in MODELS.rglob("*.safetensors"):
        file.chmod(0o644)


def write_extracted() -> None:
    """The cache that the golden encoders make of the recordings."""
    with tempfile.TemporaryDirectory() as folder:
        _must(extract(write_manifest(Path(folder)), Path(folder, EXTRACTED.name)), code=3)
        shutil.copy(Path(folder, EXTRACTED.name), EXTRACTED)


def write_comparisons() -> None:
    """What report-runs finds of the run folder's systems and heads."""
    with tempfile.TemporaryDirectory() as folder:
        result = report(Path(folder, "report"))
        _must(result)
        comparisons = json.loads(result.stdout)["comparisons"]
        COMPARISONS.write_text(json.dumps(comparisons, indent=1) + "\n", encoding="utf-8")


def _must(result: Result, *, code: int = 0) -> None:
    if result.exit_code != code:
        raise SystemExit(result.output)


if __name__ == "__main__":
    write_features(FEATURES)
    write_runs()
    write_comparisons()
    write_models()
    write_extracted()
