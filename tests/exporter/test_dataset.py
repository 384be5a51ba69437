"""Data are read, checked and split; what cannot be trained on is refused in one sentence."""

import gzip
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contract.errors import DatasetError
from exporter.config import DataConfig
from exporter.data.dataset import (
    Dataset,
    fingerprint_arrays,
    load_dataset,
    split_stratified,
    to_float32,
)
from exporter.data.readers.arrays import IDX_FILES

ROOT = Path(__file__).parents[2]
RNG = np.random.default_rng(0)


def data_config(kind: str, **keys: Any) -> DataConfig:
    numbers: dict[str, Any] = {"seed": 7, "test_fraction": 0.2, "validation_fraction": 0.1}
    return DataConfig(kind=kind, **{**numbers, **keys})  # type: ignore[arg-type]


def images(count: int = 60, side: int = 5) -> np.ndarray:
    return RNG.integers(0, 256, (count, side, side), dtype=np.uint8)


def labels(count: int = 60, classes: int = 3) -> np.ndarray:
    return np.arange(count) % classes


def load_npz(path: Path, **arrays: Any) -> Dataset:
    np.savez(path / "mine.npz", **arrays)
    return load_dataset(data_config("npz", path=str(path / "mine.npz")))


def write_idx(path: Path, array: np.ndarray, *, compress: bool = False) -> None:
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    data = header + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(data) if compress else data)


def write_mnist(folder: Path, *, compress: bool = False) -> dict[str, np.ndarray]:
    arrays = {"x_train": images(40, 28), "y_train": labels(40, 10)}
    arrays |= {"x_test": images(20, 28), "y_test": labels(20, 10)}
    for name, array in arrays.items():
        ending = ".gz" if compress else ""
        write_idx(folder / (IDX_FILES[name] + ending), array, compress=compress)
    return arrays


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset(data_config("digits"))


def test_digits_are_1797_real_scans_as_28_by_28_bytes(digits: Dataset) -> None:
    splits = (digits.train.inputs[""], digits.validation.inputs[""], digits.test.inputs[""])
    assert sum(len(split) for split in splits) == 1797
    assert digits.input_shape == (28, 28, 1)
    assert all(split.dtype == np.uint8 for split in splits)
    assert digits.num_classes == 10
    assert digits.is_image and not digits.dummy


def test_digits_are_light_ink_on_dark(digits: Dataset) -> None:
    border = digits.train.inputs[""][:, :, [0, 1, -2, -1]].mean()
    assert border < 30 < digits.train.inputs[""][:, 6:22, 8:20].mean()
    assert digits.train.inputs[""].max() == 255


def test_digits_are_those_of_scikit_learn(digits: Dataset) -> None:
    from sklearn.datasets import load_digits

    theirs = load_digits()
    ours = np.concatenate(
        [digits.train.targets[""], digits.validation.targets[""], digits.test.targets[""]]
    )
    assert (np.bincount(ours) == np.bincount(theirs.target)).all()
    enlarged_mean = digits.train.inputs[""].mean() / 255
    assert abs(enlarged_mean - theirs.images.mean() / 16) < 0.01


def test_loading_imports_neither_tensorflow_nor_scikit_learn() -> None:
    program = (
        "import sys; from exporter.config import load_config\n"
        "from exporter.data.dataset import load_dataset\n"
        "load_dataset(load_config('configs/mlp.toml').data)\n"
        "print([m for m in ('tensorflow', 'tf_keras', 'sklearn', 'scipy') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_the_same_data_seed_gives_the_same_split(digits: Dataset) -> None:
    assert load_dataset(data_config("digits")).fingerprint == digits.fingerprint


def test_another_data_seed_gives_another_split(digits: Dataset) -> None:
    assert load_dataset(data_config("digits", seed=8)).fingerprint != digits.fingerprint


@settings(max_examples=50, deadline=None)
@given(
    counts=st.lists(st.integers(3, 40), min_size=2, max_size=6),
    fraction=st.floats(0.05, 0.6),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_split_keeps_every_row_once_and_every_class_in_proportion(
    counts: list[int], fraction: float, seed: int
) -> None:
    y = np.repeat(np.arange(len(counts)), counts)
    first, second = split_stratified(y, fraction, seed=seed)
    assert sorted([*first, *second]) == list(range(len(y)))
    for label, count in enumerate(counts):
        assert np.sum(y[second] == label) == max(1, round(count * fraction))


def test_pixels_are_scaled_by_division_in_one_place() -> None:
    pixels = np.arange(256, dtype=np.uint8).reshape(4, 8, 8, 1)
    scaled = to_float32(pixels, (64,))
    assert scaled.shape == (4, 64)
    assert scaled.dtype == np.float32
    assert (scaled.ravel() == np.arange(256, dtype=np.float32) / np.float32(255)).all()


def test_features_that_are_no_pixels_are_not_scaled() -> None:
    features = RNG.random((3, 4), np.float32)
    assert (to_float32(features) == features).all()


def test_a_fingerprint_changes_with_a_byte_a_shape_or_a_name() -> None:
    array = np.zeros((2, 3), np.uint8)
    changed = array.copy()
    changed[1, 2] = 1
    prints = {
        fingerprint_arrays({"a": array}),
        fingerprint_arrays({"a": changed}),
        fingerprint_arrays({"a": array.reshape(3, 2)}),
        fingerprint_arrays({"b": array}),
        fingerprint_arrays({"a": array.astype(np.int8)}),
    }
    assert len(prints) == 5


def test_random_data_say_that_they_are_dummy() -> None:
    dataset = load_dataset(data_config("random", num_examples=100))
    assert dataset.dummy and not dataset.is_image
    assert dataset.input_shape == (784,)
    assert dataset.train.inputs[""].min() >= 0 and dataset.train.inputs[""].max() < 1
    assert dataset.num_classes == 10


def test_an_npz_of_greyscale_images_gets_its_channel_and_classes(tmp_path: Path) -> None:
    dataset = load_npz(tmp_path, x_train=images(side=7), y_train=labels(classes=4))
    assert dataset.input_shape == (7, 7, 1)
    assert dataset.class_names == ("0", "1", "2", "3")
    assert dataset.name == "mine"


def test_an_npz_with_a_test_split_keeps_it(tmp_path: Path) -> None:
    x_test = images(9)
    dataset = load_npz(
        tmp_path, x_train=images(), y_train=labels(), x_test=x_test, y_test=labels(9)
    )
    assert (dataset.test.inputs[""][..., 0] == x_test).all()
    assert len(dataset.train.inputs[""]) + len(dataset.validation.inputs[""]) == 60


def test_an_npz_may_bring_class_names(tmp_path: Path) -> None:
    names = np.array(["cat", "dog", "eel"])
    dataset = load_npz(tmp_path, x_train=images(), y_train=labels(), class_names=names)
    assert dataset.class_names == ("cat", "dog", "eel")


def test_an_npz_may_hold_features_that_are_no_images(tmp_path: Path) -> None:
    features = RNG.random((60, 5))
    dataset = load_npz(tmp_path, x_train=features, y_train=labels())
    assert not dataset.is_image
    assert dataset.train.inputs[""].dtype == np.float32


def test_pixels_as_wide_integers_are_taken_as_bytes(tmp_path: Path) -> None:
    dataset = load_npz(tmp_path, x_train=images().astype(np.int64), y_train=labels())
    assert dataset.train.inputs[""].dtype == np.uint8


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        ({"x_train": images()}, "has no array 'y_train'"),
        ({"x_train": images(), "y_train": labels(59)}, "60 examples in x_train but 59 labels"),
        ({"x_train": images(), "y_train": labels() * 1.0}, "labels must be integers"),
        ({"x_train": images(), "y_train": labels() * 2}, "1 never appears"),
        ({"x_train": images(), "y_train": labels() - 1}, "holds -1"),
        ({"x_train": images(), "y_train": labels() * 0}, "one class only"),
        ({"x_train": images(), "y_train": labels()[:, None]}, "one integer per example"),
        ({"x_train": images() / 255, "y_train": labels()}, "uint8"),
        ({"x_train": images().astype(int) + 1, "y_train": labels()}, "pixels must be 0..255"),
        ({"x_train": images().astype(int) - 1, "y_train": labels()}, "pixels must be 0..255"),
        ({"x_train": images().reshape(60, 25), "y_train": labels()}, "reshape images"),
        ({"x_train": np.zeros((60, 4, 4, 2), np.uint8), "y_train": labels()}, "1 or 3 channels"),
        ({"x_train": np.zeros((0, 4)), "y_train": labels(0)}, "none of it 0"),
        ({"x_train": np.full((60, 2), np.nan), "y_train": labels()}, "nan in row 0"),
        ({"x_train": np.full((60, 2), 1e300), "y_train": labels()}, "finite"),
        ({"x_train": np.zeros(60), "y_train": labels()}, "(examples, ...)"),
        ({"x_train": images(), "y_train": labels(), "x_test": images()}, "both or neither"),
        (
            {"x_train": images(), "y_train": labels(), "x_test": images(6, 4), "y_test": labels(6)},
            "both must be alike",
        ),
        (
            {"x_train": images(), "y_train": labels(), "x_test": images(6), "y_test": labels(6, 4)},
            "y_test holds class 3",
        ),
        ({"x_train": images(4), "y_train": labels(4)}, "too few training rows"),
        ({"x_train": images(), "y_train": labels(), "class_names": np.array(["a"])}, "1 class_n"),
        ({"x_train": images(), "y_train": np.array([""] * 60)}, "empty text in row 0"),
        ({"x_train": images(), "y_train": np.full(60, np.inf)}, "finite"),
        ({"x_train": images(), "y_train": RNG.random((60, 2)), "y_train/b": labels()}, "name all"),
        ({"x_train/a": images(), "x_train/b": images(9), "y_train": labels()}, "the same rows"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_data_that_cannot_be_trained_on_are_refused(
    tmp_path: Path, arrays: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(DatasetError) as caught:
        load_npz(tmp_path, **arrays)
    assert sentence in str(caught.value)


def test_an_npz_of_python_objects_is_never_unpickled(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="Python objects"):
        load_npz(tmp_path, x_train=np.array([{}, 1], dtype=object), y_train=labels(2))


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04 not a zip", b"\x80\x04K\x01."])
def test_a_file_that_is_no_npz_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "mine.npz"
    path.write_bytes(content)
    with pytest.raises(DatasetError, match=r"is not a readable npz|one array"):
        load_dataset(data_config("npz", path=str(path)))


def test_a_truncated_npz_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.npz"
    np.savez_compressed(path, x_train=images(), y_train=labels())
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DatasetError, match="not a readable npz"):
        load_dataset(data_config("npz", path=str(path)))


def test_a_damaged_byte_in_an_npz_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.npz"
    np.savez_compressed(path, x_train=images(), y_train=labels())
    data = bytearray(path.read_bytes())
    data[300] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(DatasetError, match="not a readable npz"):
        load_dataset(data_config("npz", path=str(path)))


@pytest.mark.parametrize("path", ["nowhere.npz", "", "."])
def test_a_path_without_a_file_is_refused(path: str) -> None:
    with pytest.raises(DatasetError, match=r"cannot read|must name the file"):
        load_dataset(data_config("npz", path=path))


@pytest.mark.parametrize("compress", [False, True], ids=["plain", "gzipped"])
def test_mnist_is_read_from_its_four_files(tmp_path: Path, compress: bool) -> None:
    arrays = write_mnist(tmp_path, compress=compress)
    dataset = load_dataset(data_config("mnist", path=str(tmp_path)))
    assert dataset.input_shape == (28, 28, 1)
    assert (dataset.test.inputs[""][..., 0] == arrays["x_test"]).all()
    assert len(dataset.train.targets[""]) + len(dataset.validation.targets[""]) == 40


def test_mnist_may_be_given_by_one_of_its_files(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    path = tmp_path / IDX_FILES["y_test"]
    assert load_dataset(data_config("mnist", path=str(path))).num_classes == 10


def test_mnist_is_found_in_the_cache_of_keras(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "datasets").mkdir()
    np.savez(
        tmp_path / "datasets" / "mnist.npz",
        x_train=images(40, 28),
        y_train=labels(40, 10),
        x_test=images(20, 28),
        y_test=labels(20, 10),
    )
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    assert load_dataset(data_config("mnist")).name == "mnist"


def test_mnist_is_not_downloaded_unasked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    with pytest.raises(DatasetError, match=r"data\.download = true"):
        load_dataset(data_config("mnist"))
    assert not list(tmp_path.iterdir())


def test_a_download_that_fails_is_one_sentence_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setattr("exporter.data.readers.arrays.URL", "http://127.0.0.1:9/mnist.npz")
    with pytest.raises(DatasetError, match="cannot download"):
        load_dataset(data_config("mnist", download=True))
    assert not list((tmp_path / "datasets").iterdir())


def test_a_download_that_is_not_mnist_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "other").write_text("an error page")
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setattr("exporter.data.readers.arrays.URL", (tmp_path / "other").as_uri())
    with pytest.raises(DatasetError, match=r"not mnist\.npz"):
        load_dataset(data_config("mnist", download=True))
    assert not list((tmp_path / "datasets").iterdir())


@pytest.mark.parametrize("keep", [0, 5, 100])
def test_a_truncated_gzip_is_refused(tmp_path: Path, keep: int) -> None:
    write_mnist(tmp_path, compress=True)
    path = tmp_path / (IDX_FILES["x_train"] + ".gz")
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DatasetError, match=r"truncated gzip|not an IDX file"):
        load_dataset(data_config("mnist", path=str(tmp_path)))


def test_a_truncated_idx_file_is_refused(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    path = tmp_path / IDX_FILES["x_train"]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DatasetError, match="truncated or damaged"):
        load_dataset(data_config("mnist", path=str(tmp_path)))


def test_a_missing_idx_file_is_named(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    (tmp_path / IDX_FILES["y_test"]).unlink()
    with pytest.raises(DatasetError, match="t10k-labels-idx1-ubyte"):
        load_dataset(data_config("mnist", path=str(tmp_path)))


def test_a_file_that_is_neither_npz_nor_idx_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "digits.jpg"
    path.write_bytes(b"\xff\xd8\xff\xe0 a picture")
    with pytest.raises(DatasetError, match="not a readable npz"):
        load_dataset(data_config("mnist", path=str(path)))


def test_several_inputs_and_targets_come_by_name(tmp_path: Path) -> None:
    dataset = load_npz(
        tmp_path,
        **{
            "x_train/picture": images(),
            "x_train.age": RNG.random(60),
            "y_train/kind": labels(),
            "y_train/price": RNG.random(60),
            "class_names/kind": np.array(["a", "b", "c"]),
        },
    )
    assert dataset.train.inputs["picture"].shape[1:] == (5, 5, 1)
    assert dataset.train.inputs["age"].shape[1:] == (1,)
    assert {name: head.task for name, head in dataset.targets.items()} == {
        "kind": "multiclass",
        "price": "regression",
    }
    assert dataset.targets["kind"].class_names == ("a", "b", "c")


@pytest.mark.parametrize(
    ("values", "task", "shape", "dtype"),
    [
        (RNG.random(60), "regression", (1,), np.float32),
        (RNG.random((60, 4)), "regression", (4,), np.float32),
        (np.arange(180).reshape(60, 3) % 7 % 2, "multilabel", (3,), np.float32),
        (np.eye(3)[labels()], "multiclass", (), np.int64),
        (np.arange(60) % 2 == 0, "binary", (), np.int64),
        (np.arange(60 * 20).reshape(60, 4, 5) % 3, "multiclass", (4, 5), np.int64),
        (np.array(["cat", "dog"] * 30), "multiclass", (), np.int64),
    ],
    ids=["value", "values", "multi-hot", "one-hot", "bool", "mask", "text"],
)
def test_a_target_tells_its_task(
    tmp_path: Path, values: np.ndarray, task: str, shape: tuple[int, ...], dtype: type
) -> None:
    dataset = load_npz(tmp_path, x_train=images(), y_train=values)
    assert dataset.targets[""].task == task
    assert dataset.train.targets[""].shape[1:] == shape and dataset.train.targets[""].dtype == dtype


def test_a_task_that_is_asked_for_is_taken(tmp_path: Path) -> None:
    np.savez(tmp_path / "mine.npz", x_train=images(), y_train=labels() * 10)
    config = data_config("npz", path=str(tmp_path / "mine.npz"), task="regression")
    assert load_dataset(config).train.targets[""].dtype == np.float32
    with pytest.raises(DatasetError, match="a binary target is 0 or 1"):
        load_dataset(data_config("npz", path=config.path, task="binary"))


def test_sequences_are_numbers_whatever_their_shape(tmp_path: Path) -> None:
    np.savez(tmp_path / "mine.npz", x_train=RNG.random((60, 7, 2)), y_train=labels())
    dataset = load_dataset(data_config("sequence", path=str(tmp_path / "mine.npz")))
    assert dataset.input_shape == (7, 2) and not dataset.is_image


def test_a_gap_is_filled_from_the_training_rows_alone(tmp_path: Path) -> None:
    features = np.arange(120, dtype=np.float64).reshape(60, 2)
    features[::5, 1] = np.nan
    np.savez(tmp_path / "mine.npz", x_train=features, y_train=labels())
    config = data_config("npz", path=str(tmp_path / "mine.npz"), impute="median")
    dataset = load_dataset(config)
    known = {row[1] for row in features[~np.isnan(features[:, 1])].tolist()}
    filled = ~np.isin(dataset.train.inputs[""][:, 1], sorted(known)) | (
        dataset.train.inputs[""][:, 1] == dataset.fillings[""][1]
    )
    whole = dataset.train.inputs[""][
        np.isin(dataset.train.inputs[""][:, 0], features[:, 0][np.isfinite(features[:, 1])])
    ]
    assert filled.any() and np.isfinite(dataset.test.inputs[""]).all()
    assert dataset.fillings[""][1] == np.median(whole[:, 1])
    with pytest.raises(DatasetError, match=r"data\.impute"):
        load_dataset(data_config("npz", path=config.path))


def test_the_scale_of_pixels_is_the_user_s(tmp_path: Path) -> None:
    np.savez(tmp_path / "mine.npz", x_train=images(), y_train=labels())
    path = str(tmp_path / "mine.npz")
    dataset = load_dataset(data_config("npz", path=path, scale=(0, 255)))
    assert dataset.pixels is not None and dataset.pixels.high == 255
    assert dataset.fingerprint != load_dataset(data_config("npz", path=path)).fingerprint


def test_class_names_lose_their_line_ends(tmp_path: Path) -> None:
    names = np.array([b"red\n", b" green ", "gr\u00fcn\r\n".encode()])
    dataset = load_npz(tmp_path, x_train=images(), y_train=labels(), class_names=names)
    assert dataset.class_names == ("red", "green", "gr\u00fcn")


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (["a", "b\n", "b"], "'b\\n' and 'b' are the same"),
        (["a", " ", "c"], "class name 1 is empty"),
        (["a", "b\nc", "d"], "several lines"),
        ([b"a", b"\xff", b"c"], "not UTF-8"),
    ],
)
def test_class_names_that_are_none_are_refused(
    tmp_path: Path, names: list[Any], sentence: str
) -> None:
    with pytest.raises(DatasetError) as caught:
        load_npz(tmp_path, x_train=images(), y_train=labels(), class_names=np.array(names))
    assert sentence in str(caught.value)


@pytest.mark.parametrize("compress", [False, True], ids=["plain", "gzipped"])
def test_emnist_stands_upright_and_has_its_class_names(tmp_path: Path, compress: bool) -> None:
    arrays = {"train-images": images(40, 28), "train-labels": labels(40) + 1}
    arrays |= {"test-images": images(20, 28), "test-labels": labels(20) + 1}
    for name, array in arrays.items():
        path = tmp_path / f"emnist-letters-{name}-idx{array.ndim}-ubyte{'.gz' if compress else ''}"
        write_idx(path, array, compress=compress)
    (tmp_path / "emnist-letters-mapping.txt").write_text("1 65 97\n2 66 98\n3 67 99\n")
    dataset = load_dataset(data_config("mnist", path=str(tmp_path)))
    assert (dataset.test.inputs[""][..., 0] == arrays["test-images"].swapaxes(1, 2)).all()
    assert dataset.class_names == ("A", "B", "C")


def test_kaggle_s_folder_for_each_file_is_known(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    for stem in IDX_FILES.values():
        (tmp_path / stem).rename(tmp_path / "moved")
        (tmp_path / stem).mkdir()
        (tmp_path / "moved").rename(tmp_path / stem / stem)
    inner = tmp_path / IDX_FILES["x_train"] / IDX_FILES["x_train"]
    for path in (tmp_path, inner):
        assert load_dataset(data_config("mnist", path=str(path))).num_classes == 10


def test_several_sets_of_idx_files_in_one_folder_are_told_apart(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    for stem in IDX_FILES.values():
        name = "emnist-digits-" + stem.replace("t10k", "test")
        (tmp_path / name).write_bytes((tmp_path / stem).read_bytes())
    with pytest.raises(DatasetError, match="several sets"):
        load_dataset(data_config("mnist", path=str(tmp_path)))
    one = tmp_path / "emnist-digits-test-labels-idx1-ubyte"
    assert load_dataset(data_config("mnist", path=str(one))).num_classes == 10


def test_a_test_split_that_is_the_other_way_round_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    x_train = np.zeros((60, 9, 9), np.uint8)
    x_train[:, 3:6, 3:6] = 200
    arrays = {"x_train": x_train, "y_train": labels(), "y_test": labels()}
    load_npz(tmp_path, x_test=x_train, **arrays)
    assert not caplog.text
    load_npz(tmp_path, x_test=255 - x_train, **arrays)
    assert "in the test split, the pictures in the only input look dark on light" in caplog.text
