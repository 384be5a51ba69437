"""Files in, predictions out: what `predict` and `on-device run` share."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from clients.files.fit import Adjustment, InputReader
from clients.files.read import FileRows, Skipped
from clients.files.write import Sink, describe_row, open_sink
from clients.interruption import Interrupted
from clients.on_device import find_version_dir
from clients.results import flatten
from contract import layout, statistics
from contract.console.exits import ExitCode
from contract.console.progress import show_progress
from contract.console.terminal import print_json, remark
from contract.errors import ConfigError, ManifestError, RequestError, SignatureNotFoundError
from contract.lite import schema
from contract.manifest import InputStatistics, read_manifest
from contract.parity import Predictor
from contract.pictures import PixelScaling
from contract.servable import DEFAULT_SIGNATURE_NAME
from contract.signature import Batch, Signature


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """The answers to some rows of one block.

    Attributes:
        rows: The block.
        indices: Which of its rows were answered.
        outputs: Output name to array; axis 0 belongs to `indices`.
        failed: Those that were not.
    """

    rows: FileRows
    indices: Sequence[int]
    outputs: Batch
    failed: tuple[Skipped, ...] = ()

    @property
    def num_rows(self) -> int:
        """Rows dealt with."""
        return len(self.indices) + len(self.failed)


Answering = Callable[[Iterator[FileRows], str], Iterator[Answer]]
"""Takes blocks of rows and a signature name, gives their answers in order."""


def add_input_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of what goes in and where predictions go."""
    parser.add_argument(
        "inputs",
        nargs="*",
        type=Path,
        metavar="INPUT",
        help="npz, npy, csv, jsonl, PNG, JPEG, or a folder of images",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="an npz, csv or jsonl file; default: a table of the first rows",
    )
    parser.add_argument(
        "--signature_name", default="", metavar="NAME", help="default: chosen by what is given"
    )
    parser.add_argument(
        "--array_name", default="", metavar="NAME", help="the array to take of an npz"
    )
    add_adjustment_flags(parser)
    parser.add_argument(
        "--labels", type=Path, metavar="FILE", help="a text file, one class name per line"
    )
    parser.add_argument(
        "--allow_non_finite", action="store_true", help="send NaN and infinity as they are"
    )


def add_adjustment_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of what is done to numbers before they are sent."""
    parser.add_argument(
        "--invert",
        action="store_true",
        help="turn dark ink on paper into light on dark, in pictures and in arrays of pixels",
    )
    parser.add_argument(
        "--scale",
        type=_read_number,
        default=0.0,
        metavar="N",
        help="divide numbers by N: 255 for pixels where the model takes 0..1; 1/255 the reverse; "
        "default for pictures: what --version_dir says, else 255",
    )
    parser.add_argument(
        "--shift",
        type=_read_number,
        default=0.0,
        metavar="N",
        help="then add N: --scale 127.5 --shift -1 makes -1..1 of pixels",
    )


def _read_number(text: str) -> float:
    """An argparse type: a number, or a fraction of two."""
    above, _, below = text.partition("/")
    divisor = float(below or 1)
    value = float(above) / divisor if divisor else float("inf")
    if not abs(value) < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a finite number")
    return value


def find_adjustment(args: argparse.Namespace) -> Adjustment:
    """What the flags of `add_adjustment_flags` ask for."""
    return Adjustment(invert=args.invert, scale=args.scale, shift=args.shift)


def find_scaling(
    path: Path | None, signatures: Mapping[str, Signature], signature_name: str = ""
) -> PixelScaling | None:
    """What pixels become for a signature that takes floats, as a version or file says.

    Args:
        path: A version directory, a base path, or a `.tflite` file; None where none is known.
        signatures: Of that version.
        signature_name: "" stands for `serving_default`.

    Returns:
        What the manifest says, else the metadata of `model.tflite`; None where neither does.
    """
    name = signature_name or DEFAULT_SIGNATURE_NAME
    if path is None or name not in signatures or len(signatures[name].inputs) != 1:
        return None
    known = list(find_statistics(path).values())
    if len(known) == 1 and (found := statistics.find_scaling(known[0])):
        return found
    try:
        file = path if path.is_file() else find_version_dir(path) / layout.TFLITE
        scalings = schema.find_scalings(file.read_bytes())
    except (OSError, ManifestError, ConfigError):
        return None
    return scalings.get(name) or (scalings.get("") if len(scalings) == 1 else None)


def find_statistics(version_dir: Path | None) -> Mapping[str, InputStatistics]:
    """What the inputs of a version looked like; nothing where its manifest does not say."""
    if version_dir is None:
        return {}
    try:
        return read_manifest(find_version_dir(version_dir)).inputs
    except (ManifestError, ConfigError):
        return {}


def predict_files(
    args: argparse.Namespace, signatures: Mapping[str, Signature], answer: Answering
) -> ExitCode:
    """Reads, asks and writes: what `predict` and `on-device run` share."""
    if not args.inputs and args.version_dir is None:
        raise ConfigError("nothing to predict: give INPUT files, or --version_dir for golden ones")
    reader = InputReader(
        args.inputs or [find_version_dir(args.version_dir) / layout.GOLDEN],
        signatures,
        signature_name=args.signature_name,
        array_name=args.array_name,
        adjustment=dataclasses.replace(
            find_adjustment(args),
            pixels=find_scaling(args.version_dir, signatures, args.signature_name),
        ),
        known=find_statistics(args.version_dir),
    )
    if not args.signature_name:
        remark(f"signature {reader.signature.name}")
    if args.json:
        return _predict_json(args, reader, answer)
    sink = open_sink(args.output, find_labels(args))
    try:
        failed = _fill(sink, reader, answer)
    except KeyboardInterrupt:
        raise Interrupted(f"kept {sink.describe()}" if sink.num_rows else "") from None
    finally:
        sink.close()
    remark(sink.describe())
    return ExitCode.FAILED if failed or reader.skipped else ExitCode.DONE


def _fill(sink: Sink, reader: InputReader, answer: Answering) -> int:
    num_failed = 0
    with show_progress("predict", total=reader.count_rows) as progress:
        for part in answer(iter(reader), reader.signature.name):
            if len(part.indices):
                sink.write(part.rows, part.indices, part.outputs)
            for name, reason in part.failed:
                remark(f"failed {name}: {reason}")
            num_failed += len(part.failed)
            progress.advance(part.num_rows)
    return num_failed


def _predict_json(args: argparse.Namespace, reader: InputReader, answer: Answering) -> ExitCode:
    labels = find_labels(args)
    parts = []
    with show_progress("predict", total=reader.count_rows) as progress:
        for part in answer(iter(reader), reader.signature.name):
            parts.append(part)
            progress.advance(part.num_rows)
    failed = list(itertools.chain.from_iterable(part.failed for part in parts))
    rows = [
        describe_row(part.rows.name_row(index), place, part.outputs, labels)
        for part in parts
        for place, index in enumerate(part.indices)
    ]
    print_json(
        {
            "signature_name": reader.signature.name,
            "predictions": rows,
            "failed": [{"row": name, "reason": reason} for name, reason in failed],
            "remarks": [{"text": one.text, "flag": one.flag} for one in reader.remarks],
            "skipped": [{"file": name, "reason": reason} for name, reason in reader.skipped],
        }
    )
    return ExitCode.FAILED if failed or reader.skipped else ExitCode.DONE


def find_labels(args: argparse.Namespace) -> list[str]:
    """Class names: of --labels, else of --version_dir's assets, else none."""
    path: Path | None = args.labels
    if path is None and args.version_dir and args.version_dir.is_dir():
        path = find_version_dir(args.version_dir) / layout.LABELS
        if not path.is_file():
            return []
    if path is None:
        return []
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--labels {path} cannot be read: {error}") from error


def answer_one_by_one(
    predictor: Predictor, blocks: Iterable[FileRows], signature_name: str
) -> Iterator[Answer]:
    """Asks for one block after the other.

    A block that the model refuses is halved until the rows at fault are found.
    """
    for rows in blocks:
        yield from _ask(predictor, rows, range(rows.num_rows), signature_name)


def _ask(
    predictor: Predictor, rows: FileRows, indices: range, signature_name: str
) -> Iterator[Answer]:
    batch = {name: array[indices.start : indices.stop] for name, array in rows.batch.items()}
    try:
        outputs = predictor.predict(batch, signature_name=signature_name)
    except SignatureNotFoundError:
        raise
    except RequestError as error:
        if len(indices) == 1:
            yield Answer(rows, (), {}, (Skipped(rows.name_row(indices.start), flatten(error)),))
            return
        middle = (indices.start + indices.stop) // 2
        yield from _ask(predictor, rows, range(indices.start, middle), signature_name)
        yield from _ask(predictor, rows, range(middle, indices.stop), signature_name)
        return
    yield Answer(rows, indices, outputs)
