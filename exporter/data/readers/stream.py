"""Rows that do not fit into memory: read where they lie, in an order that is known beforehand.

The order of an epoch follows from the index, the seed and the epoch alone. Blocks of neighbouring
rows are shuffled, as many blocks as `data.shuffle_bytes` holds make a window, and the rows of a
window are shuffled: files are read in long pieces, memory holds two windows at most, and any epoch
can be begun anew. `tf.data.Dataset.shuffle` has neither property.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from contract.errors import ConfigError, DatasetError
from contract.heads import Head
from contract.signature import Array
from exporter.config import DataConfig
from exporter.data.examples import Examples
from exporter.data.readers.tfrecord import (
    Feature,
    Records,
    find_shards,
    guess_features,
    index_records,
    make_decoder,
    parse_batch,
    parse_features,
)
from exporter.tasks.targets import clean_class_names, clean_target

if TYPE_CHECKING:
    import tensorflow as tf

_BLOCK_BYTES = 2**20
_BLOCKS_PER_WINDOW = 16
"""At least: with fewer, rows that lie together would stay together."""

_GAP_BYTES = 64 * 1024
"""Between two wanted rows: read over rather than jumped over."""

_TAKE_BYTES = 32 * 2**20

_Window: TypeAlias = tuple[list[bytes], Array]
"""What some records hold, and their row numbers."""


@contextlib.contextmanager
def explain_read_errors() -> Iterator[None]:
    """Turns what TensorFlow makes of an error of ours, within its pipeline, back into it."""
    import tensorflow as tf

    try:
        yield
    except tf.errors.OpError as error:
        found = re.search(r"DatasetError: (.*)", error.message)
        if found is None:
            raise
        raise DatasetError(found[1]) from error


@dataclasses.dataclass(frozen=True)
class Layout:
    """How the features of a record become inputs and targets.

    Attributes:
        features: Feature name to what it holds; those that are read.
        inputs: Input name to feature name.
        targets: Target name to feature name.
        heads: Target name to its task.
        image_size: (height, width) of pictures.
        channels: Of pictures.
    """

    features: Mapping[str, Feature]
    inputs: Mapping[str, str]
    targets: Mapping[str, str]
    heads: Mapping[str, Head]
    image_size: tuple[int, int] = (0, 0)
    channels: int = 3

    def lay(
        self,
        serialized: tf.Tensor,
        rows: tf.Tensor,
        records: Records,
        known: Mapping[str, tf.Tensor],
    ) -> tuple[dict[str, tf.Tensor], dict[str, tf.Tensor]]:
        """Inputs and targets of (rows,) serialized records, as `Examples` has them.

        `rows` are their numbers in `records`, for errors. `known` holds the targets that the index
        has: classes, as numbers.
        """
        parsed = parse_batch(serialized, self.features)
        decode = make_decoder(self.image_size, self.channels, records.describe)
        inputs = {
            name: decode(parsed[key], rows)
            if self.features[key].kind == "image"
            else self._lay_input(parsed[key], key)
            for name, key in self.inputs.items()
        }
        targets = {
            name: known[name] if name in known else self._lay_target(parsed[key], name)
            for name, key in self.targets.items()
        }
        return inputs, targets

    def _lay_input(self, value: tf.Tensor, key: str) -> tf.Tensor:
        import tensorflow as tf

        feature = self.features[key]
        if feature.is_text:
            return value
        if feature.raw_dtype == "uint8" and len(feature.shape) in (2, 3):
            return value if len(feature.shape) == 3 else value[..., tf.newaxis]
        numbers = tf.cast(value, tf.float32)
        return numbers if feature.shape else numbers[:, tf.newaxis]

    def _lay_target(self, value: tf.Tensor, name: str) -> tf.Tensor:
        import tensorflow as tf

        if self.heads[name].task == "multiclass":
            return tf.cast(value, tf.int64)
        numbers = tf.cast(value, tf.float32)
        return numbers if numbers.shape.rank > 1 else numbers[:, tf.newaxis]


@dataclasses.dataclass(frozen=True)
class Stream:
    """Rows of a split that stay where they are until they are asked for.

    Attributes:
        records: Where they lie; `values` holds the classes, as numbers, by target name.
        layout: How each becomes inputs and targets.
        shuffle_bytes: Of records in memory, from which the next row is drawn.
        owner: Whatever must live as long as the files do.
    """

    records: Records
    layout: Layout
    shuffle_bytes: int
    owner: object = None

    def __len__(self) -> int:
        return len(self.records)

    @property
    def labels(self) -> Array | None:
        """int64 (rows,): the first target that is one class a row; None where none is."""
        return next(iter(self.records.values.values()), None)

    @property
    def row_bytes(self) -> int:
        """Of a record, on the average."""
        return max(1, int(self.records.lengths.mean())) if len(self) else 1

    def take(self, rows: Array | slice) -> Examples:
        """The rows of these numbers, in this order, in memory."""
        numbers = np.arange(len(self))[rows] if isinstance(rows, slice) else np.asarray(rows)
        size = max(1, _TAKE_BYTES // self.row_bytes)
        parts = [
            self._read_examples(numbers[first : first + size])
            for first in range(0, max(1, len(numbers)), size)
        ]
        return parts[0] if len(parts) == 1 else Examples.concatenate(parts)

    def read_targets(self, name: str) -> Iterator[Array]:
        """A target of every row, a block at a time; from the index where that holds it."""
        if name in self.records.values:
            yield self.records.values[name]
            return
        key = self.layout.targets[name]
        layout = dataclasses.replace(
            self.layout,
            features={key: self.layout.features[key]},
            inputs={},
            targets={name: key},
        )
        alone = dataclasses.replace(self, layout=layout)
        for block in self._cut_blocks(np.arange(len(self))):
            yield alone._read_examples(block).targets[name]

    def _read_examples(self, numbers: Array) -> Examples:
        import tensorflow as tf

        known = {name: values[numbers] for name, values in self.records.values.items()}
        serialized = tf.constant(self._read(numbers), tf.string, shape=(len(numbers),))
        with explain_read_errors():
            inputs, targets = self.layout.lay(
                serialized, tf.constant(numbers, tf.int64), self.records, known
            )
        return Examples(
            {name: np.asarray(value) for name, value in inputs.items()},
            {name: np.asarray(value) for name, value in targets.items()},
        )

    def open_batches(
        self,
        batch_size: int,
        *,
        seed: int | None = None,
        epochs: range = range(1),
        drop_remainder: bool = False,
        worker: int = 0,
        num_workers: int = 1,
    ) -> tf.data.Dataset:
        """Batches of (inputs, targets) by name, as the data have them.

        Args:
            batch_size: Rows of a step, over all workers.
            seed: With an epoch's number it gives the order; None for the order of the files.
            epochs: Which epochs, one after the other; a run that is resumed begins at another
                and sees what it would have seen.
            drop_remainder: Leave out the last, smaller batch of an epoch.
            worker: Which of several workers asks. Each reads a part of the rows, and so of the
                files, of its own; an element then holds the worker's rows of `num_workers` steps,
                which is what `tf.distribute` cuts apart when nothing else is to be shared out.
            num_workers: How many there are.
        """
        import tensorflow as tf

        if batch_size % num_workers:
            raise ConfigError(
                f"training.batch_size {batch_size} cannot be shared evenly by {num_workers} "
                f"workers; give a multiple of {num_workers}"
            )
        own = self._choose_part(worker, num_workers)
        whole_steps = len(self) // batch_size
        most = whole_steps * batch_size // num_workers if drop_remainder else None

        def iterate_epoch(epoch: int) -> Iterator[_Window]:
            return _limit(self._iterate_rows(own, seed, epoch), most)

        def generate() -> Iterator[_Window]:
            if num_workers > 1:
                all_epochs = itertools.chain.from_iterable(map(iterate_epoch, epochs))
                yield from _cut_batches(all_epochs, batch_size, fill=True)
                return
            for epoch in epochs:
                yield from _cut_batches(iterate_epoch(epoch), batch_size)

        data = tf.data.Dataset.from_generator(
            generate,
            output_signature=(
                tf.TensorSpec((None,), tf.string),
                tf.TensorSpec((None,), tf.int64),
            ),
        )
        known = {name: tf.constant(values) for name, values in self.records.values.items()}

        @tf.autograph.experimental.do_not_convert  # type: ignore[untyped-decorator]
        def lay(
            serialized: tf.Tensor, rows: tf.Tensor
        ) -> tuple[dict[str, tf.Tensor], dict[str, tf.Tensor]]:
            gathered = {name: tf.gather(values, rows) for name, values in known.items()}
            return self.layout.lay(serialized, rows, self.records, gathered)

        data = data.map(lay, num_parallel_calls=1, deterministic=True).prefetch(2)
        options = tf.data.Options()
        policy = tf.data.experimental.AutoShardPolicy
        options.experimental_distribute.auto_shard_policy = (
            policy.OFF if num_workers > 1 else policy.DATA
        )
        return data.with_options(options)

    def _choose_part(self, worker: int, num_workers: int) -> Array:
        """int64: the worker's rows, which lie together; as many for each."""
        size = len(self) // num_workers
        return np.arange(worker * size, (worker + 1) * size if num_workers > 1 else len(self))

    def _iterate_rows(self, own: Array, seed: int | None, epoch: int) -> Iterator[_Window]:
        """Windows of rows in their order: what they hold, and their numbers."""
        blocks = self._cut_blocks(own)
        if seed is None:
            for block in blocks:
                yield self._read(block), block
            return
        rng = np.random.default_rng([seed, epoch])
        blocks = [blocks[at] for at in rng.permutation(len(blocks))]
        for window in self._group(blocks):
            rows = np.concatenate(window)
            order = rng.permutation(len(rows))
            data = self._read(rows)
            yield [data[at] for at in order], rows[order]

    def _cut_blocks(self, own: Array) -> list[Array]:
        """Neighbouring rows of a shard, about `_BLOCK_BYTES` of them."""
        size = min(_BLOCK_BYTES, max(1, self.shuffle_bytes // _BLOCKS_PER_WINDOW))
        lengths, shards = self.records.lengths[own], self.records.shards[own]
        number = (np.cumsum(lengths) - lengths) // size
        is_edge = (np.diff(number) != 0) | (np.diff(shards) != 0)
        return np.split(own, np.flatnonzero(is_edge) + 1)

    def _group(self, blocks: list[Array]) -> Iterator[list[Array]]:
        window: list[Array] = []
        held = 0
        for block in blocks:
            size = int(self.records.lengths[block].sum())
            if window and held + size > self.shuffle_bytes:
                yield window
                window, held = [], 0
            window.append(block)
            held += size
        if window:
            yield window

    def _read(self, rows: Array) -> list[bytes]:
        """What records hold; neighbours are read in one go."""
        found: list[bytes] = []
        shards, offsets = self.records.shards[rows], self.records.offsets[rows]
        ends = offsets + self.records.lengths[rows]
        gaps = offsets[1:] - ends[:-1]
        is_edge = (np.diff(shards) != 0) | (gaps < 0) | (gaps > _GAP_BYTES)
        for group in np.split(np.arange(len(rows)), np.flatnonzero(is_edge) + 1):
            if not len(group):
                continue
            first, last = int(offsets[group[0]]), int(ends[group[-1]])
            path = self.records.paths[int(shards[group[0]])]
            try:
                with path.open("rb", buffering=0) as file:
                    data = os.pread(file.fileno(), last - first, first)
            except OSError as error:
                raise DatasetError(f"cannot read {path}: {error.strerror}") from error
            if len(data) < last - first:
                name = self.records.names[int(shards[group[0]])]
                raise DatasetError(f"{name} ends at byte {first + len(data)}; it was cut off since")
            starts = (offsets[group] - first).tolist()
            stops = (ends[group] - first).tolist()
            found += [data[start:stop] for start, stop in zip(starts, stops, strict=True)]
        return found


def _limit(windows: Iterator[_Window], most: int | None) -> Iterator[_Window]:
    """The first `most` rows."""
    for data, rows in windows:
        if most is None:
            yield data, rows
            continue
        if most > 0:
            yield data[:most], rows[:most]
        most -= len(data)


def _cut_batches(
    windows: Iterator[_Window], batch_size: int, *, fill: bool = False
) -> Iterator[_Window]:
    """Rows as batches; the last may be smaller, or is filled with its own rows again."""
    data: list[bytes] = []
    numbers: list[int] = []
    for window, rows in windows:
        data += window
        numbers += rows.tolist()
        first = 0
        while len(data) - first >= batch_size:
            yield data[first : first + batch_size], np.array(numbers[first : first + batch_size])
            first += batch_size
        data, numbers = data[first:], numbers[first:]
    if data and fill:
        data = (data * batch_size)[:batch_size]
        numbers = (numbers * batch_size)[:batch_size]
    if data:
        yield data, np.array(numbers)


@dataclasses.dataclass(frozen=True)
class StreamedData:
    """TFRecord files as splits.

    Attributes:
        name: What the data are called.
        splits: `train`, `validation` and `test`.
        heads: Target name to its task.
        fingerprint: sha256 (hex) over all records and how they are read.
        num_skipped: Records left out, since they or their pictures cannot be read.
    """

    name: str
    splits: dict[str, Stream]
    heads: dict[str, Head]
    fingerprint: str
    num_skipped: int = 0


def open_tfrecords(config: DataConfig) -> StreamedData:
    """Indexes `data.path`, and `data.test_path` if there is one, and draws the splits.

    A record's split follows from its bytes and `data.seed`: it stays in it when shards are added,
    renamed or put in another order, and records that are alike never lie in two splits.

    Raises:
        DatasetError: See `index_records`; or the features fit no model.
    """
    paths = find_shards(config.path, key="data.path")
    others = find_shards(config.test_path, key="data.test_path") if config.test_path else []
    features = parse_features(config.features) or guess_features(paths[0])
    return open_records(paths, others, features, config, name=Path(config.path).stem)


def open_records(
    paths: Sequence[Path],
    test_paths: Sequence[Path],
    features: Mapping[str, Feature],
    config: DataConfig,
    *,
    name: str,
    call: Callable[[str], str] = str,
    owner: object = None,
) -> StreamedData:
    """Likewise, of shards and features that are known.

    `call` makes names of inputs and targets of features' names. `owner` lives as long as the
    streams: of a temporary folder that holds the shards.
    """
    source = config.path or config.loader
    unpacked = tempfile.TemporaryDirectory(prefix="plumbline-unpacked-")
    targets = _name_targets(features, config, source, call)
    records = index_records(
        [*paths, *test_paths],
        features,
        list(targets.values()),
        unpack_to=Path(unpacked.name),
        skip_unreadable=config.skip_unreadable,
    )
    heads: dict[str, Head] = {}
    values: dict[str, Array] = {}
    for target, key in targets.items():
        heads[target], known = _describe_target(target, features[key], records, config, source)
        if known is not None:
            values[target] = known
    inputs = [key for key in features if key not in targets.values()]
    layout = Layout(
        features=features,
        inputs={call(key) if len(inputs) > 1 else "": key for key in inputs},
        targets=targets,
        heads=heads,
        image_size=_need_size(features, inputs, config, source),
        channels=config.channels or 3,
    )
    stream = Stream(
        dataclasses.replace(records, values=values), layout, config.shuffle_bytes, (owner, unpacked)
    )
    rows = _split_rows(records, len(paths) if test_paths else None, config)
    splits = {
        split: dataclasses.replace(stream, records=stream.records.take(chosen))
        for split, chosen in rows.items()
    }
    _check_splits(splits, heads, source)
    order = (layout.image_size, layout.channels, config.shuffle_bytes)
    read = repr((sorted(features.items()), sorted(targets.items()), order))
    digest = hashlib.sha256(f"{records.fingerprint} {read} {config.scale}".encode())
    for split, chosen in rows.items():
        digest.update(f"{split} {len(chosen)}".encode() + chosen.tobytes())
    return StreamedData(name, splits, heads, digest.hexdigest(), records.num_skipped)


def _name_targets(
    features: Mapping[str, Feature],
    config: DataConfig,
    source: str,
    call: Callable[[str], str],
) -> dict[str, str]:
    """Target name to feature name; a single target has no name."""
    given = (config.target,) if isinstance(config.target, str) else config.target
    wanted = [name for name in given if name]
    if not wanted:
        raise DatasetError(
            f"{source}: data.target must name the feature to be learnt; records hold "
            f"{', '.join(map(repr, features))}"
        )
    for name in wanted:
        if name not in features:
            raise DatasetError(
                f"{source} has no feature {name!r}, only {', '.join(map(repr, features))}"
            )
    if len(wanted) == len(features):
        raise DatasetError(f"{source} has no feature beside {', '.join(map(repr, wanted))}")
    return {call(name) if len(wanted) > 1 else "": name for name in wanted}


def _describe_target(
    target: str, feature: Feature, records: Records, config: DataConfig, source: str
) -> tuple[Head, Array | None]:
    """The task of a target, and its classes as numbers where it is one class a row."""
    task = config.tasks.get(target) or config.task
    names: Sequence[object] = config.class_names
    if feature.is_float and not task:
        task = "regression"
    if not feature.shape and task not in ("regression", "multilabel"):
        parts, head = clean_target(
            {"train": records.values[feature.name]},
            lambda split: f"{source}: feature {feature.name!r}",
            source=source,
            task=task or None,
            class_names=names,
        )
        return head, parts["train"]
    if task == "regression" or (task == "multilabel" and len(feature.shape) == 1):
        width = feature.shape[-1] if feature.shape else 1
        called = clean_class_names(names, source)
        if called and len(called) != width:
            raise DatasetError(f"{source}: {len(called)} class_names for {width} values a row")
        if not called and task == "multilabel":
            called = tuple(map(str, range(width)))
        return Head(task=task, class_names=called), None
    if len(feature.shape) > 1 or task == "multiclass":
        if not names:
            raise DatasetError(
                f"{source}: feature {feature.name!r} is a class for each of {feature.shape} "
                "places; say which classes there are: data.class_names"
            )
        return Head(task="multiclass", class_names=clean_class_names(names, source)), None
    raise DatasetError(
        f"{source}: feature {feature.name!r} holds {feature.describe()}; say what it is: "
        "data.task = 'multilabel', 'multiclass' or 'regression'"
    )


def _need_size(
    features: Mapping[str, Feature], inputs: Sequence[str], config: DataConfig, source: str
) -> tuple[int, int]:
    pictures = [name for name in inputs if features[name].kind == "image"]
    if pictures and not config.image_size:
        raise DatasetError(
            f"{source}: feature {pictures[0]!r} holds pictures; say what to resize them to: "
            "data.image_size = [height, width]"
        )
    return (config.image_size[0], config.image_size[1]) if config.image_size else (0, 0)


def _split_rows(
    records: Records, first_test_shard: int | None, config: DataConfig
) -> dict[str, Array]:
    """Split to row numbers, in the order of the files."""
    test = _draw(records.hashes, config.seed) < config.test_fraction
    if first_test_shard is not None:
        test = records.shards >= first_test_shard
    validation = ~test & (_draw(records.hashes, config.seed + 1) < config.validation_fraction)
    return {
        "train": np.flatnonzero(~test & ~validation),
        "validation": np.flatnonzero(validation),
        "test": np.flatnonzero(test),
    }


def _draw(hashes: Array, seed: int) -> Array:
    """float64 (rows,) in 0..1 that follow from hash and seed, by splitmix64."""
    with np.errstate(over="ignore"):
        mixed = hashes + np.uint64((seed + 1) * 0x9E3779B97F4A7C15 % 2**64)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed = mixed ^ (mixed >> np.uint64(31))
    drawn: Array = mixed / 2.0**64
    return drawn


def _check_splits(splits: Mapping[str, Stream], heads: Mapping[str, Head], source: str) -> None:
    for split, stream in splits.items():
        if not len(stream):
            total = sum(map(len, splits.values()))
            raise DatasetError(
                f"{source}: none of the {total} records fell into the {split} split; bring more, "
                f"or raise its share (data.validation_fraction, data.test_fraction)"
            )
    for name, labels in splits["train"].records.values.items():
        missing = np.setdiff1d(np.arange(len(heads[name].class_names)), labels)
        if len(missing):
            raise DatasetError(
                f"{source}: class {heads[name].class_names[int(missing[0])]!r} has no training "
                "rows; bring more of it"
            )
