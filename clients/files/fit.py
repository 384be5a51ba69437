"""Rows as they were read, made to fit a signature: names, shapes, dtypes, pixels."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from clients.files.read import (
    UNNAMED,
    FileRows,
    OnSkipped,
    Skipped,
    count_rows,
    list_files,
    read_files,
)
from clients.images import decode_image
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
from contract.statistics import compare_inputs


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
    ) -> None:
        self.skipped: list[Skipped] = []
        self._adjustment = adjustment
        self._pixel_shape = find_pixel_shape(signatures)
        self._hints = Hints(frozenset(signatures))
        self._files, self._array_name = list_files(paths), array_name
        blocks = read_files(
            self._files,
            on_skipped=self._skip,
            array_name=array_name,
            signature_name=signature_name or DEFAULT_SIGNATURE_NAME,
        )
        self._blocks = map(adjustment.apply, blocks)
        first = next(self._blocks, None)
        if first is None:
            raise DatasetError("no rows: none of the files could be read, or they are empty")
        self.signature = choose_signature(
            signatures,
            first,
            signature_name,
            is_scaled=adjustment.scales or bool(adjustment.pixels),
        )
        if first.is_image:
            _check_adjustment(adjustment, self.signature, signatures)
        self._first = self._fit(first)
        self.remarks = compare_inputs(self._first.batch, known or {})
        for one in self.remarks:
            remark(f"{one.text}: {one.flag} mends it")

    def count_rows(self) -> int | None:
        """About how many rows the files hold; None where they do not easily tell."""
        return count_rows(self._files, array_name=self._array_name)

    def __iter__(self) -> Iterator[FileRows]:
        """Blocks of rows whose batch fits the signature; may be iterated once."""
        if self._first.num_rows:
            yield self._first
        failed = ""
        for rows in self._blocks:
            if rows.source == failed:
                continue
            try:
                fitted = self._fit(rows)
            except PlumblineError as error:
                self._skip(Skipped(rows.source, str(error)))
                failed = rows.source
                continue
            if fitted.num_rows:
                yield fitted

    def _fit(self, rows: FileRows) -> FileRows:
        return fit_rows(
            rows,
            self.signature,
            pixel_shape=self._pixel_shape,
            adjustment=self._adjustment,
            on_skipped=self._skip,
            hints=self._hints,
        )

    def _skip(self, skipped: Skipped) -> None:
        self.skipped.append(skipped)
        remark(f"skipped {skipped.name}: {skipped.reason}")


def _check_adjustment(
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
        if name in signatures and _fits(rows, signatures[name]):
            return signatures[name]
    if rows.is_image:
        raise TensorMismatchError(
            f"images need the signature {UINT8} or {IMAGE_BYTES}; this version has "
            f"{', '.join(signatures)}; say what pixels become for one of them with --version_dir, "
            "or --scale and --shift, or give arrays"
        )
    fallback = signatures.get(DEFAULT_SIGNATURE_NAME) or next(iter(signatures.values()))
    hints = Hints(frozenset(signatures))
    check_batch(_shape_batch(rows, fallback), fallback, hints)  # raises, and says why
    raise TensorMismatchError(f"{rows.source} fits none of {', '.join(signatures)}")


def fit_rows(
    rows: FileRows,
    signature: Signature,
    *,
    pixel_shape: tuple[int, ...] = (),
    adjustment: Adjustment = Adjustment(),
    on_skipped: OnSkipped,
    hints: Hints,
) -> FileRows:
    """The rows as `signature` wants them."""
    if rows.is_image:
        return _fit_images(rows, signature, pixel_shape, adjustment, on_skipped)
    batch = _shape_batch(rows, signature)
    check_batch(batch, signature, hints)
    return dataclasses.replace(rows, batch=batch)


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


def _fits(rows: FileRows, signature: Signature) -> bool:
    if rows.is_image:
        return len(signature.inputs) == 1
    try:
        check_batch(_shape_batch(rows, signature), signature)
    except PlumblineError:
        return False
    return True


def _shape_batch(rows: FileRows, signature: Signature) -> dict[str, Array]:
    batch = dict(rows.batch)
    if UNNAMED in batch:
        batch = _name_array(rows, batch[UNNAMED], signature)
    elif len(batch) > len(signature.inputs) and signature.inputs.keys() <= batch.keys():
        batch = {name: batch[name] for name in signature.inputs}  # labels beside the images
    return {
        name: _fit_array(array, signature.inputs[name], is_text=rows.is_text)
        if name in signature.inputs
        else array
        for name, array in batch.items()
    }


def _name_array(rows: FileRows, array: Array, signature: Signature) -> dict[str, Array]:
    names = list(signature.inputs)
    if rows.columns and set(names) <= set(rows.columns):
        return {name: array[:, rows.columns.index(name)] for name in names}
    if len(names) == 1:
        return {names[0]: array}
    raise TensorMismatchError(
        f"{rows.source} holds one unnamed array, and signature {signature.name!r} has the inputs "
        f"{', '.join(names)}; give an npz or jsonl with these names"
    )


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
