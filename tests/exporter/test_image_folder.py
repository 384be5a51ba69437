"""Pictures in a folder for each class: upright, resized as the graph does it, none lost unsaid."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from contract.errors import DatasetError
from exporter.config import DataConfig
from exporter.data.dataset import Dataset, load_dataset
from exporter.data.readers.image_folder import read_picture

RNG = np.random.default_rng(2)


def load(path: Path, **keys: Any) -> Dataset:
    return load_dataset(
        DataConfig(
            kind="image_folder",
            path=str(path),
            seed=1,
            test_fraction=0.2,
            validation_fraction=0.2,
            **keys,
        )
    )


def write_picture(
    path: Path, size: tuple[int, int] = (6, 8), mode: str = "RGB", **keys: Any
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (*size, 3) if mode == "RGB" else size
    PIL.Image.fromarray(RNG.integers(0, 256, shape, np.uint8), mode).save(path, **keys)


def write_classes(root: Path, rows: int = 10, **keys: Any) -> Path:
    for name in ("cat", "dog"):
        for row in range(rows):
            write_picture(root / name / f"{row}.png", **keys)
    return root


def test_folders_are_classes(tmp_path: Path) -> None:
    (tmp_path / ".cache").mkdir()
    (tmp_path / "notes.txt").write_text("no picture")
    dataset = load(write_classes(tmp_path))
    assert dataset.class_names == ("cat", "dog")
    assert dataset.input_shape == (6, 8, 3) and dataset.is_image
    assert len(dataset.train) + len(dataset.validation) + len(dataset.test) == 20


def test_pictures_that_are_all_grey_have_one_channel(tmp_path: Path) -> None:
    assert load(write_classes(tmp_path, mode="L")).input_shape == (6, 8, 1)
    assert load(tmp_path, channels=3).input_shape == (6, 8, 3)


def test_folders_called_after_splits_are_splits(tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        write_classes(tmp_path / split, rows=4)
    dataset = load(tmp_path)
    assert [len(one) for one in (dataset.train, dataset.validation, dataset.test)] == [8, 8, 8]


def test_a_picture_on_its_side_is_turned_upright(tmp_path: Path) -> None:
    pixels = np.zeros((4, 6), np.uint8)
    pixels[0] = 255
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # turn clockwise by 90°
    PIL.Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    upright = read_picture(tmp_path / "a.png", size=None, channels=1)
    assert upright.shape == (6, 4, 1)
    assert (upright[:, -1] == 255).all() and not upright[:, :-1].any()


@pytest.mark.parametrize("size", [(9, 13), (5, 40), (64, 48), (48, 64)])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_pixels_are_those_of_the_exported_graph(
    tmp_path: Path, size: tuple[int, int], channels: int, suffix: str
) -> None:
    import tensorflow as tf

    path = tmp_path / f"a.{suffix}"
    write_picture(path, (48, 64))
    # As exporter/artifacts/signatures.py has it in the graph.
    if suffix == "png":
        decoded = tf.io.decode_png(path.read_bytes(), channels=3)
    else:
        decoded = tf.io.decode_jpeg(path.read_bytes(), 3, dct_method="INTEGER_ACCURATE")
    theirs = tf.image.resize(decoded, size, method="bilinear", antialias=True).numpy()
    if channels == 1:
        theirs = (theirs * np.float32([0.299, 0.587, 0.114])).sum(axis=-1, keepdims=True)
    theirs = np.clip(np.rint(theirs), 0, 255)
    ours = read_picture(path, size=size, channels=channels).astype(int)
    different = np.abs(ours - theirs)
    # A float that lies between two numbers may be rounded either way.
    assert different.max() <= 1 and (different > 0).mean() < 0.01


def test_a_corrupt_picture_is_named_and_skipped_only_when_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_classes(tmp_path)
    good = (tmp_path / "cat" / "1.png").read_bytes()
    (tmp_path / "cat" / "cut.png").write_bytes(good[:-60])
    (tmp_path / "dog" / "page.jpg").write_text("<html>")
    with pytest.raises(DatasetError) as caught:
        load(tmp_path)
    assert all(text in str(caught.value) for text in ("2 of", "cut.png", "page.jpg", "skip_unread"))
    dataset = load(tmp_path, skip_unreadable=True)
    assert dataset.num_skipped == 2 and "skipped 2 pictures" in caplog.text
    assert len(dataset.train) + len(dataset.validation) + len(dataset.test) == 20


def test_a_folder_without_pictures_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="has no folders"):
        load(tmp_path)
    write_classes(tmp_path)
    (tmp_path / "eel").mkdir()
    with pytest.raises(DatasetError, match="eel holds no pictures"):
        load(tmp_path)
    with pytest.raises(DatasetError, match="cannot read the folder"):
        load(tmp_path / "nowhere")


def test_pictures_of_different_sizes_need_a_size(tmp_path: Path) -> None:
    write_classes(tmp_path)
    write_picture(tmp_path / "cat" / "large.png", (30, 20))
    with pytest.raises(DatasetError, match=r"6 × 8, 30 × 20.*data\.image_size"):
        load(tmp_path)
    assert load(tmp_path, image_size=(5, 7)).input_shape == (5, 7, 3)


def test_a_test_folder_with_another_class_is_refused(tmp_path: Path) -> None:
    write_classes(tmp_path / "a")
    write_picture(tmp_path / "b" / "eel" / "1.png")
    with pytest.raises(DatasetError, match="eel is a class that training lacks"):
        load(tmp_path / "a", test_path=str(tmp_path / "b"))
