"""What bfloat16 changes: a sweep in both precisions on real features, differences in standard deviations over seeds.

    AMBER2_TEST_DATA=FOLDER python benchmarks/stage2_precision.py [--seeds 5] [--epochs 30]

FOLDER holds crema_d_features.npz. Both systems at their defaults, folds by speaker. Every metric is the mean over folds
of each seed, then over seeds, as in the table of `train-heads`; 1.0 is one sd over seeds of the fp32 sweep.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

from amber2_core.run_folder import Summary
from amber2_extract.imported import Wanted, import_features
from amber2_train.options import Grid, TrainOptions
from amber2_train.run import train
from amber2_train.systems.system import Precision

FEATURES = "crema_d_features.npz"
OF_CPUS: tuple[Precision, ...] = ("fp32", "bf16")


def print_differences(fp32: Summary, bf16: Summary) -> None:
    largest, where = 0.0, ""
    for system, heads in fp32.items():
        for head, metrics in heads.items():
            for metric, score in metrics.items():
                mean, sd, other = score["mean"], score["sd"], bf16[system][head][metric]["mean"]
                if mean is None or sd is None or other is None:
                    continue
                ratio = abs(other - mean) / sd if sd > 0 else 0.0 if other == mean else float("inf")
                if head == "fusion":
                    print(f"{system:7} {metric:18} fp32 {mean:.4f} ± {sd:.4f}   bf16 {other:.4f}   {ratio:4.1f} sd")
                if ratio > largest:
                    largest, where = ratio, f"{metric} of {system}'s {head} head"
    print(f"largest difference of any head and metric: {largest:.2f} sd ({where})")


def main() -> None:
    parser = argparse.ArgumentParser(description="What bfloat16 changes.")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=30)
    options = parser.parse_args()
    source = Path(os.environ.get("AMBER2_TEST_DATA", "")) / FEATURES
    if not source.is_file():
        print(f"not measured: AMBER2_TEST_DATA names no folder with {FEATURES}")
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cache = folder / "crema_d.h5"
        wanted = [Wanted("audio", "logmel", "audio_logmel_stats"), Wanted("text", "minilm", "text_minilm")]
        import_features(source, wanted, cache, name="crema_d")
        tables = []
        for precision in OF_CPUS:
            grid = Grid(seeds=options.seeds, epochs=options.epochs)
            options_of_run = TrainOptions(grid=grid, folds="speaker", precision=precision, device="cpu")
            tables.append(train(cache, folder / precision, options_of_run).table)
    print_differences(*tables)


if __name__ == "__main__":
    main()
