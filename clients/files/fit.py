"""Rows as they were read, made to fit a signature: names, shapes, dtypes, pixels."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from clients.files.images import decode_image
from clients.files.read import (
    UNNAMED,
    FileRows,
    OnSkipped,
    Skipped,
    count_rows,
    list_files,
    read_files,
    to_array,
)
from clients.files.table import AUTO, Table
from contract.console.terminal import remark
from contract.errors import ConfigError, DatasetError, PlumblineError, TensorMismatchError
from contract.manifest import InputStatistics
from contract.pictures import PixelScaling
from contract.servable import DEFAULT_SIGNATURE_NAME
from contract.signature import (
    IMAGE_BYTES,
    PREDICT_METHOD,
    STRING,
    UINT8,
    Array,
    Hints,
    Signature,
    TensorSpec,
    check_batch,
    dtype_name,
    find_signature,
)
from contract.statistics import Remark, compare_inputs, describe_scaling

_NOTHING: Mapping[str, str] = {}


@dataclasses.dataclass(frozen=True, slots=True)
class Adjustment:
    """What is done to numbers before they are sent.

    Attributes:
        invert: Dark ink on paper becomes light ink on dark.
        scale: Numbers are divided by it; 0 leaves them, and decoded pixels, where a signature
            takes floats, become what `pixels` says.
        shift: Then added.
        pixels: What the version says of pixels, where it is known; else they are divided by 255.
    """

    invert: bool = False
    scale: float = 0.0
    shift: float = 0.0
    pixels: PixelScaling | None = None

    @property
    def scales(self) -> bool:
        """Whether flags say what numbers become."""
        return bool(self.scale or self.shift)

    def apply(self, rows: FileRows) -> FileRows:
        """Rows of arrays, adjusted; those of files of pictures are left to `scale_pixels`."""
        if rows.is_image or not (self.invert or self.scales):
            return rows
        batch = {
            name: self._adjust(array) if array.dtype.kind in "iuf" else array
            for name, array in rows.batch.items()
        }
        return dataclasses.replace(rows, batch=batch)

    def scale_pixels(self, pixels: Array) -> Array:
        """float32 of decoded pixels (rows, height, width[, channels])."""
        if self.pixels is not None and not self.scales:
            return self.pixels.apply(pixels)
        scaled: Array = pixels.astype(np.float32) / np.float32(self.scale or 255)
        return scaled + np.float32(self.shift) if self.shift else scaled

    def _adjust(self, array: Array) -> Array:
        if self.invert and array.size:
            # Bytes and floats of 0..255 about their middle, likewise floats of 0..1 and -1..1.
            is_bytes = array.dtype.kind in "iu" or array.max() > 1
            whole = 255 if is_bytes else (1 if array.min() >= 0 else 0)
            array = (whole - array).astype(array.dtype)
        if not self.scale and not self.shift:
            return array
        numbers: Array = array.astype(np.float32) / np.float32(self.scale or 1)
        return numbers + np.float32(self.shift)


class InputReader:
    """Reads files, names and skips what cannot be read, and fits the rest to a signature.

    Without a signature name the first rows choose the signature.

    Attributes:
        signature: The signature that the rows fit.
        skipped: Everything that was skipped so far.
        remarks: What looks wrong about the first rows, beside those of `known`.

    Raises:
        ConfigError: A path does not exist or is of an unknown kind.
        DatasetError: Nothing could be read.
        TensorMismatchError: The first rows fit no signature.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        signatures: Mapping[str, Signature],
        *,
        signature_name: str = "",
        array_name: str = "",
        adjustment: Adjustment = Adjustment(),
        known: Mapping[str, InputStatistics] | None = None,
        given: Mapping[str, str] | None = None,
        heading: str = AUTO,
    ) -> None:
        self.skipped: list[Skipped] = []
        self._given = dict(given or {})
        self._adjustment = adjustment
        self._pixel_shape = find_pixel_shape(signatures)
        self._hints = Hints(frozenset(signatures))
        self._told: set[str] = set()
        self._files, self._array_name = list_files(paths), array_name
        blocks = read_files(
            self._files,
            on_skipped=self._skip,
            array_name=array_name,
            signature_name=signature_name or DEFAULT_SIGNATURE_NAME,
            input_names={name for one in signatures.values() for name in one.inputs},
            heading=heading,
        )
        if given and not self._files:
            blocks = iter([FileRows("--input", {}, is_whole=True)])
        self._blocks = map(adjustment.apply, blocks)
        first = next(self._blocks, None)
        if first is None:
            raise DatasetError("no rows: none of the files could be read, or they are empty")
        self.signature = choose_signature(
            signatures,
            first,
            signature_name,
            is_scaled=adjustment.scales or bool(adjustment.pixels),
            given=self._given,
        )
        if first.is_image:
            check_adjustment(adjustment, self.signature, signatures)
        try:
            self._first = self._fit(first)
        except TensorMismatchError as error:
            raise advise_signature(
                error,
                self.signature if signature_name else None,
                lambda: choose_signature(
                    signatures,
                    first,
                    is_scaled=adjustment.scales or bool(adjustment.pixels),
                    given=self._given,
                ),
            ) from error
        batch = self._first[0].batch if self._first else {}
        self.remarks = list_remarks(batch, known or {}, adjustment, signatures)
        for one in self.remarks:
            remark(f"{one.text}: {one.flag} mends it" if one.flag else one.text)

    def count_rows(self) -> int | None:
        """About how many rows the files hold; None where they do not easily tell."""
        return count_rows(self._files, array_name=self._array_name)

    def __iter__(self) -> Iterator[FileRows]:
        """Blocks of rows whose batch fits the signature; may be iterated once."""
        yield from (rows for rows in self._first if rows.num_rows)
        failed = ""
        for rows in self._blocks:
            if rows.source == failed:
                continue
            try:
                fitted = self._fit(rows)
            except PlumblineError as error:
                if rows.num_rows == 1:  # a line of a shape of its own says nothing of the others
                    self._skip(Skipped(rows.name_row(0), str(error)))
                    continue
                self._skip(Skipped(rows.source, str(error)))
                failed = rows.source
                continue
            yield from (one for one in fitted if one.num_rows)

    def _fit(self, rows: FileRows) -> list[FileRows]:
        fitted = fit_rows(
            rows,
            self.signature,
            given=self._given,
            pixel_shape=self._pixel_shape,
            adjustment=self._adjustment,
            on_skipped=self._skip,
            hints=self._hints,
        )
        names = [name for name in find_surplus(rows, self.signature) if name not in self._told]
        if names:  # labels beside the rows, or a name that was misspelt
            self._told.update(names)
            remark(
                f"{rows.source}: left out {', '.join(names)}; signature {self.signature.name!r} "
                f"takes {', '.join(self.signature.inputs)}"
            )
        return fitted

    def _skip(self, skipped: Skipped) -> None:
        self.skipped.append(skipped)
        remark(f"skipped {skipped.name}: {skipped.reason}")


def list_remarks(
    batch: Mapping[str, Array],
    known: Mapping[str, InputStatistics],
    adjustment: Adjustment,
    signatures: Mapping[str, Signature],
) -> list[Remark]:
    """What looks wrong about rows that were adjusted, with the flags that mend it in place of those
    that were given.

    Args:
        batch: Input name to array, as a signature takes them.
        known: Of the version's manifest.
        adjustment: What was done to the rows.
        signatures: Of the version.
    """
    return [_mend(one, adjustment, signatures) for one in compare_inputs(batch, known)]


def _mend(one: Remark, adjustment: Adjustment, signatures: Mapping[str, Signature]) -> Remark:
    if one.flag == "--invert":
        if not adjustment.invert:
            return one
        return dataclasses.replace(one, text=f"{one.text}: leave --invert out", flag="")
    flag = one.flag
    if adjustment.scales:
        scale = (adjustment.scale or 1) * one.scale
        shift = adjustment.shift / one.scale + one.shift
        flag = describe_scaling(scale, shift, has_shift=bool(adjustment.shift))
    if one.is_of_integers:
        default = signatures.get(DEFAULT_SIGNATURE_NAME)
        if default is None or {spec.dtype for spec in default.inputs.values()} != {"float32"}:
            return dataclasses.replace(one, text=f"{one.text}: multiply them by 255", flag="")
        flag += f" --signature_name {DEFAULT_SIGNATURE_NAME}"
    return dataclasses.replace(one, flag=flag)


def advise_signature(
    error: TensorMismatchError, named: Signature | None, choose: Callable[[], Signature]
) -> TensorMismatchError:
    """The error of rows that do not fit, with the signature that they fit without being told.

    Args:
        error: Of the rows.
        named: The signature that --signature_name asked for; None where it was not given.
        choose: Lets the rows choose.
    """
    if named is None:
        return error
    try:
        other = choose()
    except PlumblineError:
        return error
    if other.name == named.name:
        return error
    return TensorMismatchError(
        f"{error.message}; or leave --signature_name out: they fit {other.name}"
    )


def check_adjustment(
    adjustment: Adjustment, signature: Signature, signatures: Mapping[str, Signature]
) -> None:
    """Says what is done to the pixels of pictures, and refuses what would not be done."""
    spec = next(iter(signature.inputs.values()))
    if spec.dtype == STRING and adjustment.invert:
        other = f"--signature_name {UINT8}" if UINT8 in signatures else "arrays of pixels"
        raise ConfigError(
            f"--invert changes pixels, and {signature.name} takes files as they are; give {other}, "
            "or files that are inverted already"
        )
    if spec.dtype != "float32":
        if adjustment.scales:
            remark(
                f"--scale and --shift are left out: {signature.name} takes "
                f"{'files' if spec.dtype == STRING else 'raw pixels'}, and scales them itself"
            )
    elif adjustment.pixels is None and not adjustment.scales:
        better = f"--signature_name {UINT8}, or " if UINT8 in signatures else ""
        remark(
            f"pixels are divided by 255, as nothing says what {signature.name} takes; if it takes "
            f"something else, give {better}--version_dir, or --scale and --shift"
        )


def choose_signature(
    signatures: Mapping[str, Signature],
    rows: FileRows,
    signature_name: str = "",
    *,
    is_scaled: bool = False,
    given: Mapping[str, str] = _NOTHING,
) -> Signature:
    """The signature that `rows` are meant for.

    Images go to `serving_uint8`, decoded here, else as bytes to `serving_image_bytes`, else, where
    it is known what pixels become (`is_scaled`), to `serving_default`.
    Whole numbers from 0 to 255 (and beyond 1) are raw pixels: `serving_uint8` too, since
    `serving_default` wants them scaled. Everything else goes to `serving_default`, or to
    the first signature that it fits.
    """
    if signature_name:
        return find_signature(signatures, signature_name)
    preferred: tuple[str, ...] = (DEFAULT_SIGNATURE_NAME, UINT8)
    if rows.is_image:
        preferred = (UINT8, IMAGE_BYTES, *([DEFAULT_SIGNATURE_NAME] if is_scaled else []))
    elif _looks_like_pixels(rows):
        preferred = (UINT8, DEFAULT_SIGNATURE_NAME)
    rest = sorted(
        name
        for name, signature in signatures.items()
        if name not in preferred and signature.method_name == PREDICT_METHOD and not rows.is_image
    )
    for name in (*preferred, *rest):
        if name in signatures and _fits(rows, signatures[name], given):
            return signatures[name]
    if rows.is_image:
        raise TensorMismatchError(
            f"images need the signature {UINT8} or {IMAGE_BYTES}; this version has "
            f"{', '.join(signatures)}; say what pixels become for one of them with --version_dir, "
            "or --scale and --shift, or give arrays"
        )
    fallback = signatures.get(DEFAULT_SIGNATURE_NAME) or next(iter(signatures.values()))
    hints = Hints(frozenset(signatures))
    skipped: list[Skipped] = []
    for one in fit_rows(rows, fallback, given=given, on_skipped=skipped.append, hints=hints):
        check_batch(one.batch, fallback, hints)  # raises, and says why
    if skipped:
        raise TensorMismatchError(
            f"{skipped[0].name}: {skipped[0].reason}, as in {len(skipped) - 1} more rows"
        )
    raise TensorMismatchError(f"{rows.source} fits none of {', '.join(signatures)}")


def fit_rows(
    rows: FileRows,
    signature: Signature,
    *,
    pixel_shape: tuple[int, ...] = (),
    adjustment: Adjustment = Adjustment(),
    on_skipped: OnSkipped,
    hints: Hints,
    given: Mapping[str, str] = _NOTHING,
) -> list[FileRows]:
    """The rows as `signature` wants them, with the values of inputs that are `given`.

    Where an input has no entry per row, a block that is no batch as it is becomes a request for
    each row.
    """
    if rows.is_image:
        return [_fit_images(rows, signature, pixel_shape, adjustment, on_skipped)]
    constants = _read_given(given, signature)
    named, rows = _name_arrays(rows, signature, constants, on_skipped)
    if not all(map(has_rows, signature.inputs.values())):
        return _fit_requests(rows, named, constants, signature, hints)
    for name, array in constants.items():
        if len(array) == 1 and (named or rows.batch):  # the same for every row
            constants[name] = np.repeat(array, rows.num_rows, axis=0)
    batch = _fit_arrays(named, signature, is_text=rows.is_text) | constants
    check_batch(batch, signature, hints)
    return [dataclasses.replace(rows, batch=batch, table=None)]


def has_rows(spec: TensorSpec) -> bool:
    """Whether an input has an entry per row: its first axis is free."""
    return spec.shape is None or (bool(spec.shape) and spec.shape[0] is None)


def _fit_requests(
    rows: FileRows,
    named: Mapping[str, Array],
    constants: Mapping[str, Array],
    signature: Signature,
    hints: Hints,
) -> list[FileRows]:
    """Requests of a signature with inputs that have no entry per row."""
    batch = {**_fit_arrays(named, signature, is_text=rows.is_text), **constants}
    try:
        num_rows = check_batch(batch, signature, hints)
    except TensorMismatchError:
        if rows.is_whole or not named or not named.keys() <= signature.inputs.keys():
            raise
    else:
        request_rows = num_rows if any(map(has_rows, signature.inputs.values())) else 0
        return [dataclasses.replace(rows, batch=batch, table=None, request_rows=request_rows)]
    return [
        dataclasses.replace(_fit_request(rows, row, named, constants, signature, hints), table=None)
        for row in range(rows.num_rows)
    ]


def _fit_request(
    rows: FileRows,
    row: int,
    named: Mapping[str, Array],
    constants: Mapping[str, Array],
    signature: Signature,
    hints: Hints,
) -> FileRows:
    """One row of a file as a request of its own."""
    batch, request_rows = dict(constants), 0
    for name, array in named.items():
        value, spec = np.asarray(array[row]), signature.inputs[name]
        if has_rows(spec) and spec.shape is not None and value.ndim == len(spec.shape) - 1:
            value, request_rows = value[None], 1
        batch[name] = _fit_array(value, spec, is_text=rows.is_text)
    check_batch(batch, signature, hints)
    names = (rows.name_row(row),)
    return dataclasses.replace(rows, batch=batch, names=names, request_rows=request_rows)


def _read_given(given: Mapping[str, str], signature: Signature) -> dict[str, Array]:
    """The arrays of `--input NAME=VALUE`: JSON, a text, or `@FILE.npy`."""
    arrays = {}
    for name, text in given.items():
        spec = signature.inputs.get(name)
        if spec is None:
            raise TensorMismatchError(
                f"--input {name}: signature {signature.name!r} has the inputs "
                f"{', '.join(signature.inputs)}"
            )
        try:
            array = _read_value(text, spec)
        except (ValueError, OSError, RecursionError) as error:
            raise TensorMismatchError(
                f"--input {name}={text[:40]}: {spec.describe()} is wanted, as JSON or @FILE.npy: "
                f"{error}"
            ) from error
        lacks_batch = has_rows(spec) and spec.shape and array.ndim == len(spec.shape) - 1
        arrays[name] = _convert(array[None] if lacks_batch else array, spec.dtype, is_text=True)
    return arrays


def _read_value(text: str, spec: TensorSpec) -> Array:
    if text.startswith("@"):
        return np.asarray(np.load(text[1:], allow_pickle=False))
    try:
        value = json.loads(text)
    except ValueError:
        if spec.dtype != STRING:
            raise
        value = text
    if spec.dtype == STRING and not isinstance(value, str | list | dict):
        value = text  # 7 and true are texts, too
    return to_array(value)


def find_pixel_shape(signatures: Mapping[str, Signature]) -> tuple[int, ...]:
    """(height, width[, channels]) of the model's images, () when no signature tells."""
    for name in (UINT8, *signatures):
        if name in signatures and len(signatures[name].inputs) == 1:
            shape = next(iter(signatures[name].inputs.values())).shape or ()
            if len(shape) in (3, 4) and None not in shape[1:]:
                return tuple(size for size in shape[1:] if size is not None)
    return ()


def _looks_like_pixels(rows: FileRows) -> bool:
    array = rows.batch.get(UNNAMED)
    if array is None:
        return any(one.dtype == np.uint8 for one in rows.batch.values())
    if array.dtype == np.uint8:
        return True
    if array.dtype.kind not in "iu" and not (rows.is_text and array.dtype.kind == "f"):
        return False
    whole = array.size > 0 and bool(np.all(array == np.floor(array)))
    return whole and bool(array.min() >= 0) and bool(1 < array.max() <= 255)


def _fits(rows: FileRows, signature: Signature, given: Mapping[str, str]) -> bool:
    if rows.is_image:
        return len(signature.inputs) == 1
    try:
        fitted = fit_rows(rows, signature, given=given, on_skipped=lambda _: None, hints=Hints())
    except PlumblineError:
        return False
    # Most of a table of texts is left out where numbers are wanted.
    return rows.table is None or sum(one.num_rows for one in fitted) * 2 >= rows.num_rows


def _fit_arrays(
    batch: Mapping[str, Array], signature: Signature, *, is_text: bool
) -> dict[str, Array]:
    return {
        name: _fit_array(array, signature.inputs[name], is_text=is_text)
        if name in signature.inputs
        else array
        for name, array in batch.items()
    }


def _name_arrays(
    rows: FileRows, signature: Signature, constants: Mapping[str, Array], on_skipped: OnSkipped
) -> tuple[dict[str, Array], FileRows]:
    """Input name to array, of the inputs that are no constants; and rows without those at fault."""
    batch = dict(rows.batch)
    names = [name for name in signature.inputs if name not in constants]
    if UNNAMED not in batch:
        if len(batch) > len(names) and set(names) <= batch.keys():
            batch = {name: batch[name] for name in names}  # see `find_surplus`
        return batch, rows
    if rows.table is not None:
        return _read_table(rows, rows.table, [signature.inputs[name] for name in names], on_skipped)
    if len(names) == 1:
        return {names[0]: batch[UNNAMED]}, rows
    raise TensorMismatchError(
        f"{rows.source} holds one unnamed array, and signature {signature.name!r} has the inputs "
        f"{', '.join(names)}; give an npz, jsonl or csv with these names"
    )


def find_surplus(rows: FileRows, signature: Signature) -> list[str]:
    """Arrays, or columns of a table, that stand beside the inputs and are none."""
    inputs = signature.inputs
    if UNNAMED not in rows.batch:
        return [name for name in rows.batch if name not in inputs]
    if rows.table is None:
        return []
    used = {place for name in inputs for place in rows.table.find_columns(name)}
    return [name for place, name in enumerate(rows.table.columns) if used and place not in used]


def _read_table(
    rows: FileRows, table: Table, specs: Sequence[TensorSpec], on_skipped: OnSkipped
) -> tuple[dict[str, Array], FileRows]:
    numbers = rows.batch[UNNAMED]
    columns = {spec.name: table.find_columns(spec.name) for spec in specs}
    if len(specs) == 1 and not columns[specs[0].name]:
        columns = {specs[0].name: list(range(numbers.shape[1]))}
    if missing := [name for name, found in columns.items() if not found]:
        heading = f"its heading has {', '.join(table.columns)}" if table.columns else "no heading"
        raise TensorMismatchError(
            f"{rows.source}: no column of {', '.join(missing)} ({heading}); head columns NAME, or "
            "NAME_0, NAME_1 and so on"
        )
    arrays: dict[str, Array] = {}
    faults: dict[int, str] = {}
    for spec in specs:
        found = columns[spec.name]
        if spec.dtype == STRING or spec.dtype == "bool" or spec.dtype.startswith(("int", "uint")):
            array, wrong = table.read(spec, found)
        else:
            array, wrong = numbers[:, found], table.find_faults(numbers, found)
        # A column is a value per row; whether it is (batch, 1) or (batch,) the signature says.
        is_flat = len(found) == 1 and spec.shape is not None and len(spec.shape) <= 1
        arrays[spec.name] = array[:, 0] if is_flat else array
        faults |= wrong
    if not faults:
        return arrays, rows
    for row, reason in sorted(faults.items()):
        on_skipped(Skipped(rows.name_row(row), reason))
    kept = [row for row in range(rows.num_rows) if row not in faults]
    arrays = {name: array[kept] for name, array in arrays.items()}
    return arrays, dataclasses.replace(rows.take(kept, arrays), is_text=True)


def _fit_array(array: Array, spec: TensorSpec, *, is_text: bool) -> Array:
    """Reshaped and converted where nothing is lost; else as it is, for `check_batch` to refuse."""
    array = _convert(array, spec.dtype, is_text=is_text)
    if spec.shape is None or spec.admits_shape(array.shape):
        return array
    rest = spec.shape[1:]
    if not spec.shape or spec.shape[0] is not None or None in rest or not array.ndim:
        return array
    wanted = tuple(size for size in rest if size is not None)
    if array.size == len(array) * int(np.prod(wanted, dtype=np.int64)):
        return array.reshape(len(array), *wanted)
    return array[None] if array.shape == wanted else array


def _convert(array: Array, dtype: str, *, is_text: bool) -> Array:
    given = dtype_name(array.dtype)
    if given == dtype or STRING in (given, dtype):
        return array
    wanted = TensorSpec("", dtype, None).numpy_dtype
    if array.dtype.kind == "f" and (wanted.kind == "f" or dtype == "bfloat16"):
        return array.astype(wanted)
    if not is_text and (array.dtype.kind not in "iu" or wanted.kind not in "iu"):
        return array
    with np.errstate(invalid="ignore"):
        converted = array.astype(wanted)
    is_same = wanted.kind == "f" or bool(np.array_equal(converted, array))
    return converted if is_same else array


def _fit_images(
    rows: FileRows,
    signature: Signature,
    pixel_shape: tuple[int, ...],
    adjustment: Adjustment,
    on_skipped: OnSkipped,
) -> FileRows:
    name, spec = next(iter(signature.inputs.items()))
    contents = rows.batch[UNNAMED]
    if spec.dtype == STRING:
        return rows.take(list(range(len(contents))), {name: contents})
    shape = tuple(size for size in (spec.shape or ())[1:] if size is not None)
    shape = shape if len(shape) in (2, 3) else pixel_shape
    if not shape or spec.dtype not in ("uint8", "float32"):
        raise TensorMismatchError(
            f"`{name}` of signature {signature.name!r} wants {spec.describe()}, which says not "
            f"how large an image is; use signature {UINT8} or {IMAGE_BYTES}, or give arrays"
        )
    kept, images = [], []
    for index, content in enumerate(contents):
        try:
            images.append(decode_image(content, shape, invert=adjustment.invert))
            kept.append(index)
        except DatasetError as error:
            on_skipped(Skipped(rows.name_row(index), str(error)))
    pixels: Array = np.array(images, dtype=np.uint8).reshape(len(images), *shape)
    if spec.dtype == "float32":
        pixels = adjustment.scale_pixels(pixels)
    return rows.take(kept, {name: _fit_array(pixels, spec, is_text=False)})
