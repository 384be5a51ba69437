"""The user's own function that returns a `tf.data.Dataset`: held in memory, or spooled to files.

What does not fit `data.memory_bytes` goes to TFRecord files in a temporary folder as it is read, so
that a loader streams like any shards, with splits, fingerprint and position, whatever it does.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec
import numpy as np

from contract.console.extras import require_extra
from contract.errors import DatasetError
from contract.signature import Array
from contract.wire.plumbline_wire import example_pb2
from contract.wire.tfrecord import frame_record
from exporter.config import DataConfig, import_function
from exporter.data.examples import Examples, RawData, count_bytes
from exporter.data.readers.stream import StreamedData, open_records
from exporter.data.readers.tfrecord import Feature

if TYPE_CHECKING:
    import tensorflow as tf

_SHARD_BYTES = 256 * 2**20
_BATCH_ROWS = 256
_X, _Y = "x", "y"

_Rows: TypeAlias = dict[str, Array]
"""A batch: `x`, `y`, or `x/NAME`, `y/NAME` to (rows, ...)."""


def read_loader(config: DataConfig) -> RawData | StreamedData:
    """Calls `data.loader` and reads all that its data set holds, once.

    Raises:
        ConfigError: The function cannot be imported.
        DatasetError: It fails, returns something else, or rows that are not alike.
    """
    require_extra("tensorflow", "a loader")
    batches = _iterate(_call(config), config)
    held: list[_Rows] = []
    num_bytes = 0
    for batch in batches:
        held.append(batch)
        num_bytes += sum(map(count_bytes, batch.values()))
        if num_bytes > config.memory_bytes:
            return _spool(itertools.chain(_drain(held), batches), config)
    if not held:
        raise DatasetError(f"data.loader {config.loader!r}: its data set is empty")
    arrays = {name: np.concatenate([one[name] for one in held]) for name in held[0]}
    return RawData(
        name=_name(config),
        source=config.loader,
        train=Examples(*(_unprefix(arrays, letter) for letter in (_X, _Y))),
    )


def _name(config: DataConfig) -> str:
    return config.loader.rpartition(":")[2]


def _drain(held: list[_Rows]) -> Iterator[_Rows]:
    """Gives up what it hands on: it is in files by then."""
    while held:
        yield held.pop(0)


def _unprefix(arrays: Mapping[str, Array], letter: str) -> dict[str, Array]:
    return {
        name.partition("/")[2]: array
        for name, array in arrays.items()
        if name.partition("/")[0] == letter
    }


def _call(config: DataConfig) -> tf.data.Dataset:
    import tensorflow as tf

    function = import_function(config.loader, key="data.loader")
    try:
        data = function()
    except Exception as error:  # the user's code: whatever it raises is theirs to read
        raise DatasetError(
            f"data.loader {config.loader!r} failed: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(data, tf.data.Dataset):
        kind = f"{type(data).__module__}.{type(data).__name__}"
        raise DatasetError(
            f"data.loader {config.loader!r} returned a {kind}; return a tf.data.Dataset of "
            "(inputs, targets), each a tensor or a dict of tensors"
        )
    if data.cardinality() == tf.data.INFINITE_CARDINALITY:
        raise DatasetError(
            f"data.loader {config.loader!r} returned a data set without end; leave out .repeat(), "
            "epochs are training.epochs"
        )
    return data


def _iterate(data: tf.data.Dataset, config: DataConfig) -> Iterator[_Rows]:
    """Batches of the data set, each row checked to be like the others."""
    import tensorflow as tf

    spec = data.element_spec
    leaves = tf.nest.flatten(spec)
    if not all(isinstance(one, tf.TensorSpec) for one in leaves):
        raise DatasetError(
            f"data.loader {config.loader!r} gives {spec}; give plain tensors: pad ragged ones, "
            "and make sparse ones dense"
        )
    _name_tensors(spec, config)  # says what is wrong before anything is read
    # A batch of the user's has an axis of unknown size, or rows could not be left over.
    is_batched = all(one.shape.rank and one.shape[0] is None for one in leaves)
    if is_batched:
        data = data.unbatch()
    data = data.batch(_BATCH_ROWS).prefetch(1)
    try:
        for element in data:
            named = _name_tensors(element, config)
            yield {name: np.asarray(value) for name, value in named.items()}
    except tf.errors.InvalidArgumentError as error:
        text = error.message.partition("[Op:")[0].strip()
        raise DatasetError(
            f"data.loader {config.loader!r}: its rows cannot be put together, since they are not "
            f"of one shape: {text}; pad or resize them"
        ) from error
    except tf.errors.OpError as error:
        text = error.message.partition("[Op:")[0].strip()
        raise DatasetError(f"data.loader {config.loader!r} failed: {text}") from error


def _name_tensors(element: Any, config: DataConfig) -> dict[str, Any]:
    """`x`, `y`, or `x/NAME`, `y/NAME` to tensor."""
    given = (config.target,) if isinstance(config.target, str) else config.target
    wanted = [name for name in given if name]
    if isinstance(element, dict) and wanted and all(name in element for name in wanted):
        inputs = {name: value for name, value in element.items() if name not in wanted}
        targets: Any = {name: element[name] for name in wanted}
        element = (inputs, targets if len(targets) > 1 else targets[wanted[0]])
    if not isinstance(element, tuple) or len(element) != 2:
        shown = (
            f"a dict of {', '.join(map(repr, element))}, of which data.target must name what is "
            "to be learnt"
            if isinstance(element, dict)
            else f"a tuple of {len(element)}"
            if isinstance(element, tuple)
            else "one tensor"
        )
        raise DatasetError(
            f"data.loader {config.loader!r}: its data set gives {shown}; give (inputs, targets), "
            "each a tensor or a dict of tensors"
        )
    named: dict[str, Any] = {}
    for letter, part in zip((_X, _Y), element, strict=True):
        if isinstance(part, dict):
            named |= {f"{letter}/{name}": value for name, value in part.items()}
        elif isinstance(part, tuple | list):
            raise DatasetError(
                f"data.loader {config.loader!r}: its data set gives a {type(part).__name__} of "
                f"{'inputs' if letter == _X else 'targets'}; give a dict, so that each has a name"
            )
        else:
            named[letter] = part
    return named


def _spool(batches: Iterator[_Rows], config: DataConfig) -> StreamedData:
    """Writes the rows to shards, and opens those."""
    folder = tempfile.TemporaryDirectory(prefix="plumbline-loader-")
    paths: list[Path] = []
    features: dict[str, Feature] = {}
    left = 0
    file = None
    try:
        for batch in batches:
            batch = {name: _plain(array) for name, array in batch.items()}
            features = features or {name: _describe(name, one) for name, one in batch.items()}
            for row in range(len(next(iter(batch.values())))):
                if file is None or left <= 0:
                    if file is not None:
                        file.close()
                    paths.append(Path(folder.name) / f"{len(paths):05}.tfrecord")
                    file, left = paths[-1].open("wb"), _SHARD_BYTES
                left -= file.write(frame_record(_encode(batch, row)))
    except OSError as error:
        raise DatasetError(
            f"data.loader {config.loader!r}: its rows are kept in {folder.name}, which cannot be "
            f"written: {error.strerror}; set TMPDIR to a disk with more room"
        ) from error
    finally:
        if file is not None:
            file.close()
    return open_records(
        paths,
        [],
        features,
        _name_features(config, list(features)),
        name=_name(config),
        call=lambda name: name.partition("/")[2] or name,
        owner=folder,
    )


def _plain(array: Array) -> Array:
    """Of a dtype whose bytes can be kept; numbers that are no pixels as float32 or int64."""
    if array.dtype == object or array.dtype == np.uint8:
        return array
    return array.astype(np.float32 if array.dtype.kind == "f" else np.int64)


def _describe(name: str, array: Array) -> Feature:
    if array.dtype == object:
        return Feature(name, "string", array.shape[1:])
    if array.ndim == 1:
        return Feature(name, "float32" if array.dtype.kind == "f" else "int64")
    return Feature(name, f"raw:{array.dtype.name}", array.shape[1:])


def _encode(batch: _Rows, row: int) -> bytes:
    example = example_pb2.Example()
    for name, array in batch.items():
        feature = example.features.feature[name]
        value = array[row]
        if array.dtype == object:
            feature.bytes_list.value.extend(np.ravel(value).tolist())
        elif array.ndim > 1:
            feature.bytes_list.value.append(value.tobytes())
        elif array.dtype.kind == "f":
            feature.float_list.value.append(float(value))
        else:
            feature.int64_list.value.append(int(value))
    return bytes(example.SerializeToString(deterministic=True))


def _name_features(config: DataConfig, names: list[str]) -> DataConfig:
    """The configuration whose targets are those features that the loader gave as targets."""
    return msgspec.structs.replace(
        config, target=tuple(name for name in names if name.partition("/")[0] == _Y)
    )
