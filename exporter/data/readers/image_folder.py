"""A folder of pictures for each class: decoded, turned upright, resized, held as bytes.

Pixels are what the exported graph makes of the same file (`docs/signatures.md`): antialiased
bilinear resizing of floats, grey by the same weights, then rounded.
"""

from __future__ import annotations

import concurrent.futures
import functools
import io
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from contract.console.extras import import_extra
from contract.errors import DatasetError
from contract.pictures import (
    JPEG_MAGIC,
    MAX_PIXELS,
    PNG_MAGIC,
    read_orientation,
    turn_upright,
)
from contract.signature import Array
from exporter.config import DataConfig
from exporter.data.examples import Examples, RawData

if TYPE_CHECKING:
    import PIL.Image

_LOG = logging.getLogger(__name__)

_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp"})
_SPLITS = {
    "train": "train",
    "test": "test",
    "validation": "validation",
    "val": "validation",
    "valid": "validation",
}
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
"""As in the exported graph."""
_JPEG_END = b"\xff\xd9"
_SHOWN = 5
_IGNORED = ("__MACOSX", "__pycache__")


def read_image_folder(config: DataConfig) -> RawData:
    """Reads every picture below `data.path`, whose folders are the classes.

    Folders called `train`, `test` and `validation` (or `val`) are splits, with the classes in
    each; `data.test_path` is another way to bring a test split.

    Raises:
        DatasetError: A folder or class is empty, a picture cannot be read, or sizes differ and
            `data.image_size` does not say what to make of them.
    """
    import_extra("PIL.Image", "reading pictures")
    if not config.path:
        raise DatasetError("data.kind is 'image_folder', so data.path must name the folder")
    root = Path(config.path)
    folders = _find_splits(root)
    if config.test_path:
        folders["test"] = Path(config.test_path)
    classes = _list_folders(folders["train"])
    if not classes:
        raise DatasetError(
            f"{folders['train']} has no folders; give one folder of pictures for each class"
        )
    names = [folder.name for folder in classes]
    listed = {split: _list_pictures(folder, names) for split, folder in folders.items()}
    size = (config.image_size[0], config.image_size[1]) if config.image_size else None
    channels = config.channels or _find_channels([path for path, _ in listed["train"]])
    skipped: list[str] = []
    splits = {
        split: _read_pictures(pictures, size, channels, skipped)
        for split, pictures in listed.items()
    }
    _judge_skipped(skipped, config, root)
    _judge_shapes(splits, root)
    examples = {
        split: Examples({"": np.stack(pixels)}, {"": np.array(labels, np.int64)})
        for split, (pixels, labels) in splits.items()
        if pixels
    }
    return RawData(
        name=root.resolve().name,
        source=str(root),
        train=examples["train"],
        test=examples.get("test"),
        validation=examples.get("validation"),
        class_names={"": tuple(names)},
        num_skipped=len(skipped),
    )


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in _SUFFIXES and not path.name.startswith(".")


def _find_splits(root: Path) -> dict[str, Path]:
    """Split to folder: `root` itself, unless its folders are called after splits."""
    names = {folder.name.lower(): folder for folder in _list_folders(root)}
    if "train" in names and names.keys() <= _SPLITS.keys():
        return {_SPLITS[name]: folder for name, folder in sorted(names.items())}
    return {"train": root}


def _list_folders(root: Path) -> list[Path]:
    try:
        children = sorted(root.iterdir())
    except OSError as error:
        raise DatasetError(f"cannot read the folder {root}: {error.strerror}") from error
    return [
        child
        for child in children
        if child.is_dir() and not child.name.startswith(".") and child.name not in _IGNORED
    ]


def _list_pictures(folder: Path, names: Sequence[str]) -> list[tuple[Path, int]]:
    """Every picture with its class, in the order of names."""
    unknown = [child.name for child in _list_folders(folder) if child.name not in names]
    if unknown:
        raise DatasetError(
            f"{folder / unknown[0]} is a class that training lacks; the classes are "
            f"{', '.join(names)}"
        )
    pictures: list[tuple[Path, int]] = []
    for label, name in enumerate(names):
        found = [path for path in sorted((folder / name).rglob("*")) if _is_picture(path)]
        if not found and (folder / name).is_dir():
            raise DatasetError(
                f"{folder / name} holds no pictures ({', '.join(sorted(_SUFFIXES))}); a folder is "
                "a class: fill it, or remove it"
            )
        pictures += [(path, label) for path in found]
    if not pictures:
        raise DatasetError(f"{folder} holds no pictures")
    return pictures


def _find_channels(paths: list[Path]) -> int:
    """1 where every picture is grey, else 3; those that cannot be opened have no say."""
    import PIL.Image

    for path in paths:
        try:
            with PIL.Image.open(path) as image:
                if image.mode not in ("1", "L", "LA", "I", "F") and image.mode[:2] != "I;":
                    return 3
        except (OSError, SyntaxError, ValueError):
            continue
    return 1


def _read_pictures(
    pictures: list[tuple[Path, int]],
    size: tuple[int, int] | None,
    channels: int,
    skipped: list[str],
) -> tuple[list[Array], list[int]]:
    """Pixels and classes of those that can be read; the others go to `skipped`."""
    read = functools.partial(_try_to_read, size=size, channels=channels)
    pixels: list[Array] = []
    labels: list[int] = []
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as threads:
        # Decoding releases the GIL.
        for (path, label), found in zip(
            pictures, threads.map(read, [path for path, _ in pictures]), strict=True
        ):
            if isinstance(found, str):
                skipped.append(f"{path} ({found})")
            else:
                pixels.append(found)
                labels.append(label)
    return pixels, labels


def _try_to_read(path: Path, size: tuple[int, int] | None, channels: int) -> Array | str:
    """The pixels, or why there are none."""
    import PIL.Image

    try:
        return read_picture(path, size=size, channels=channels)
    except (OSError, SyntaxError, ValueError, PIL.Image.DecompressionBombError) as error:
        return explain_fault(error)


def read_picture(path: Path, *, size: tuple[int, int] | None, channels: int) -> Array:
    """`decode_picture` of a file."""
    return decode_picture(path.read_bytes(), size=size, channels=channels)


def decode_picture(content: bytes, *, size: tuple[int, int] | None, channels: int) -> Array:
    """uint8 (height, width, channels) of a picture's bytes.

    Args:
        content: Of its file; EXIF orientation is honoured, transparency dropped.
        size: (height, width) to resize to; None leaves it as it is.
        channels: 1 (grey) or 3 (RGB).

    Raises:
        OSError: It is no picture, or cut off.
        ValueError: It has more pixels than the exported graph would decode.
    """
    import PIL.Image
    import PIL.ImageOps

    with PIL.Image.open(io.BytesIO(content)) as image:
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(
                f"{image.width} × {image.height} pixels; at most {MAX_PIXELS:,} are decoded"
            )
        image.load()
        if content.startswith((PNG_MAGIC, JPEG_MAGIC)):  # as graphs and clients do it
            upright = turn_upright(image, read_orientation(content))
        else:
            upright = PIL.ImageOps.exif_transpose(image)
        if upright.mode.startswith("I"):  # 16 bits: the high byte, as TensorFlow's decoder
            high = np.asarray(upright, np.uint32) >> 8
            upright = PIL.Image.fromarray(high.clip(0, 255).astype(np.uint8))
        pixels = _resize(upright.convert("RGB"), size)
    if channels == 1:
        pixels = (pixels * _LUMA).sum(axis=-1, keepdims=True)
    whole: Array = np.clip(np.rint(pixels), 0, 255).astype(np.uint8)
    return whole


def find_fault(content: bytes, *, thoroughly: bool = False) -> str:
    """Why a picture's bytes cannot be read; "" where they can.

    Its header is looked at, and of PNG files the checksums. It is decoded too where that is asked
    for, and a JPEG whose end is missing: all others would have to be decoded to find one in many.
    """
    import PIL.Image

    try:
        with PIL.Image.open(io.BytesIO(content)) as image:
            if image.width * image.height > MAX_PIXELS:
                return f"{image.width} × {image.height} pixels; at most {MAX_PIXELS:,} are decoded"
            image.verify()
        ends = not content.startswith(JPEG_MAGIC) or content.rstrip(b"\0").endswith(_JPEG_END)
        if thoroughly or not ends:
            with PIL.Image.open(io.BytesIO(content)) as image:
                image.load()
    except (OSError, SyntaxError, ValueError, PIL.Image.DecompressionBombError) as error:
        return explain_fault(error)
    return ""


def explain_fault(error: Exception) -> str:
    """What Pillow says of a picture, without the object that it read it from."""
    return str(error).partition("\n")[0].partition(" <_io")[0] or type(error).__name__


def _resize(image: PIL.Image.Image, size: tuple[int, int] | None) -> Array:
    """float32 (height, width, 3), unrounded: Pillow rounds between its passes unless in floats."""
    import PIL.Image

    if size is None or size == (image.height, image.width):
        return np.asarray(image, np.float32)
    height, width = size
    bands = [
        band.convert("F").resize((width, height), PIL.Image.Resampling.BILINEAR)
        for band in image.split()
    ]
    return np.stack([np.asarray(band, np.float32) for band in bands], axis=-1)


def _judge_skipped(skipped: list[str], config: DataConfig, root: Path) -> None:
    if not skipped:
        return
    shown = "; ".join(skipped[:_SHOWN]) + ("; …" if len(skipped) > _SHOWN else "")
    if not config.skip_unreadable:
        raise DatasetError(
            f"{root}: {len(skipped)} of the pictures cannot be read: {shown}; replace or remove "
            "them, or leave them out: data.skip_unreadable = true"
        )
    _LOG.warning("%s: skipped %d pictures that cannot be read: %s", root, len(skipped), shown)


def _judge_shapes(splits: dict[str, tuple[list[Array], list[int]]], root: Path) -> None:
    shapes = {pixels.shape for read, _ in splits.values() for pixels in read}
    if not splits["train"][0]:
        raise DatasetError(f"{root}: none of the pictures can be read")
    if len(shapes) > 1:
        shown = ", ".join(f"{height} × {width}" for height, width, _ in sorted(shapes)[:_SHOWN])
        raise DatasetError(
            f"{root}: the pictures are of {len(shapes)} sizes (height × width: {shown} …); say "
            "what to resize them to: data.image_size = [height, width]"
        )


def read_example_pictures(
    root: Path,
    *,
    size: tuple[int, int] | None = None,
    channels: int = 0,
    class_names: Sequence[str] = (),
    skip_unreadable: bool = False,
) -> tuple[Array, Array | None, tuple[str, ...]]:
    """The pictures of a folder, as examples for a model that is trained already.

    Args:
        root: A folder per class, or the pictures themselves; of `train` and `test` in it, `test`.
        size: (height, width) that the model takes; None leaves pictures as they are.
        channels: 1 or 3; 0 is grey where all pictures are.
        class_names: The model's own order; () takes the folders' names in order.
        skip_unreadable: Leave out pictures that cannot be read.

    Returns:
        uint8 (rows, height, width, channels); int64 (rows,) classes, None without folders; their
        names.

    Raises:
        DatasetError: There are none, one cannot be read, or their sizes differ.
    """
    import_extra("PIL.Image", "reading pictures")
    splits = _find_splits(root)
    folder = splits.get("test") or splits.get("validation") or splits["train"]
    names = tuple(class_names) or tuple(child.name for child in _list_folders(folder))
    has_classes = bool(_list_folders(folder))
    if has_classes:
        pictures = _list_pictures(folder, names)
    else:
        found = (path for path in sorted(folder.iterdir()) if path.suffix.lower() in _SUFFIXES)
        pictures = [(path, 0) for path in found]
    if not pictures:
        raise DatasetError(
            f"{folder} holds no pictures ({', '.join(sorted(_SUFFIXES))}); give a folder of "
            "pictures, or a folder per class"
        )
    channels = channels or _find_channels([path for path, _ in pictures])
    skipped: list[str] = []
    pixels, labels = _read_pictures(pictures, size, channels, skipped)
    if skipped and not skip_unreadable:
        shown = "; ".join(skipped[:_SHOWN]) + ("; …" if len(skipped) > _SHOWN else "")
        raise DatasetError(
            f"{len(skipped)} of {len(pictures)} pictures cannot be read: {shown}; replace or "
            "remove them, or leave them out with skip_unreadable=True (--skip_unreadable)"
        )
    if skipped:
        _LOG.warning("skipped %d pictures that cannot be read: %s", len(skipped), skipped[0])
    if not pixels:
        raise DatasetError(f"{folder}: none of the pictures can be read")
    shapes = {one.shape[:2] for one in pixels}
    if len(shapes) > 1:
        shown = ", ".join(f"{height} x {width}" for height, width in sorted(shapes)[:_SHOWN])
        raise DatasetError(
            f"{folder}: the pictures are of {len(shapes)} sizes ({shown} …), and the model does "
            "not say which it takes; give pictures of one size, or an array"
        )
    return np.stack(pixels), np.array(labels, np.int64) if has_classes else None, names
