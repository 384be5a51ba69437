"""Tables and texts: columns become inputs and targets, and what fits none of it is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from contract.errors import DatasetError
from exporter.config import DataConfig
from exporter.data.dataset import Dataset, draw_export_examples, load_dataset
from exporter.data.statistics import describe_distributions

ROWS = 60


def load(path: Path, kind: str = "csv", **keys: Any) -> Dataset:
    keys = {"target": "label", **keys}
    return load_dataset(
        DataConfig(
            kind=kind,  # type: ignore[arg-type]
            path=str(path),
            seed=1,
            test_fraction=0.2,
            validation_fraction=0.2,
            **keys,
        )
    )


def write_csv(folder: Path, lines: list[str], heading: str = "age,color,label") -> Path:
    path = folder / "people.csv"
    path.write_text("\n".join([heading, *lines]) + "\n")
    return path


def make_lines(count: int = ROWS) -> list[str]:
    return [f"{n},{('red', 'blue')[n % 2]},{('yes', 'no')[n % 3 > 0]}" for n in range(count)]


def test_columns_become_one_vector_with_names(tmp_path: Path) -> None:
    dataset = load(write_csv(tmp_path, make_lines()))
    assert dataset.columns == ("age", "color=blue", "color=red")
    assert dataset.class_names == ("no", "yes")
    for age, blue, red in dataset.train.inputs[""].tolist():
        assert (blue, red) == ((1, 0) if age % 2 else (0, 1))


def test_columns_become_an_input_each(tmp_path: Path) -> None:
    dataset = load(write_csv(tmp_path, make_lines()), inputs="columns")
    age, color = dataset.train.inputs["age"], dataset.train.inputs["color"]
    assert age.dtype == np.float32 and age.shape[1:] == (1,)
    assert color.shape[1:] == (1,)
    assert all(
        c == (b"blue" if n % 2 else b"red") for n, c in zip(age[:, 0], color[:, 0], strict=True)
    )


def test_csv_and_parquet_give_the_same_rows(tmp_path: Path) -> None:
    from_csv = load(write_csv(tmp_path, make_lines()))
    rows = [line.split(",") for line in make_lines()]
    table = pa.table(
        {
            "age": [int(row[0]) for row in rows],
            "color": pa.array([row[1] for row in rows]).dictionary_encode(),
            "label": [row[2] for row in rows],
        }
    )
    parquet.write_table(table, tmp_path / "people.parquet")
    from_parquet = load(tmp_path / "people.parquet", "parquet")
    assert from_parquet.fingerprint == from_csv.fingerprint


def test_columns_are_chosen_by_name_and_several_are_learnt(tmp_path: Path) -> None:
    lines = [f"{n},{n % 2},{n / 7},{n % 3}" for n in range(ROWS)]
    path = write_csv(tmp_path, lines, "a,b,c,d")
    dataset = load(path, columns=("a",), target=("b", "c"))
    assert dataset.input_shape == (1,)
    assert [head.task for head in dataset.targets.values()] == ["multiclass", "regression"]
    joint = load(path, columns=("a", "d"), target=("b", "c"), task="regression")
    assert joint.train.targets[""].shape[1:] == (2,) and joint.targets[""].class_names == ("b", "c")


def test_a_test_file_is_the_test_split(tmp_path: Path) -> None:
    path = write_csv(tmp_path, make_lines())
    other = tmp_path / "test.csv"
    other.write_text("label,color,age\nyes,green,7\nno,red,8\n")
    dataset = load(path, test_path=str(other))
    assert dataset.test.inputs[""].tolist() == [[7, 0, 0], [8, 0, 1]]  # green is neither
    assert dataset.test.targets[""].tolist() == [1, 0]


@pytest.mark.parametrize(("rule", "filled"), [("mean", 4.0), ("median", 2.0), ("zero", 0.0)])
def test_a_missing_number_is_filled_by_the_rule(tmp_path: Path, rule: str, filled: float) -> None:
    lines = [f"{(1, 2, 9, '')[n // 2 % 4]},,{'yes' if n % 2 else 'no'}" for n in range(80)]
    lines += [f"{(1, 2, 9, '')[n // 2 % 4]},red,{'yes' if n % 2 else 'no'}" for n in range(80)]
    dataset = load(write_csv(tmp_path, lines), impute=rule)
    known = dataset.train.inputs[""][:, 0][np.isin(dataset.train.inputs[""][:, 0], (1, 2, 9))]
    expected = {"mean": known.mean(), "median": np.median(known), "zero": 0.0}[rule]
    if rule != "median":
        assert np.isclose(dataset.fillings[""][0], expected)
    assert abs(dataset.fillings[""][0] - filled) < 0.6
    assert set(dataset.train.inputs[""][:, 1]) == {0.0, 1.0}  # a category that is missing is none


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        ([*make_lines(), "old,red,yes"], "row 61 holds 'old', row 1 '0'"),
        ([*make_lines(), ",red,yes"], "row 61, column 'age' is empty (1 of 61 are)"),
        ([*make_lines(), "7,red,"], "row 61 has no 'label'"),
        ([*make_lines(), "7,red"], "not a readable csv"),
        ([*make_lines(), "inf,red,yes"], "row 61, column 'age' is infinite"),
        ([], "no rows"),
    ],
    ids=["mixed", "missing", "no target", "ragged", "infinite", "empty"],
)
def test_a_table_that_cannot_be_trained_on_names_row_and_column(
    tmp_path: Path, lines: list[str], sentence: str
) -> None:
    with pytest.raises(DatasetError) as caught:
        load(write_csv(tmp_path, lines))
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("heading", "keys", "sentence"),
    [
        ("age,age,label", {}, "two columns 'age'"),
        ("1,2,3", {}, "must name the columns"),
        ("age,color,label", {"target": "price"}, "no column 'price', only 'age', 'color', 'label'"),
        ("age,color,label", {"columns": ("size",)}, "no column 'size'"),
        ("age,color,label", {"target": ""}, "data.target must name the column"),
    ],
)
def test_headings_that_do_not_fit_are_refused(
    tmp_path: Path, heading: str, keys: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(DatasetError) as caught:
        load(write_csv(tmp_path, make_lines(), heading), **keys)
    assert sentence in str(caught.value)


def test_a_column_of_numbers_may_be_categories(tmp_path: Path) -> None:
    lines = [f"{1000 + n % 3},x,{'yes' if n % 2 else 'no'}" for n in range(ROWS)] + ["A12,x,no"]
    dataset = load(write_csv(tmp_path, lines), categories=("age",))
    assert dataset.columns[:4] == ("age=1000", "age=1001", "age=1002", "age=A12")


def test_an_identifier_is_no_category(tmp_path: Path) -> None:
    lines = [f"1,name {n},{'yes' if n % 2 else 'no'}" for n in range(1200)]
    with pytest.raises(DatasetError, match="1200 different texts"):
        load(write_csv(tmp_path, lines))


def test_semicolons_and_quotes_are_read(tmp_path: Path) -> None:
    lines = [f'{n};"a; b";{"yes" if n % 2 else "no"}' for n in range(ROWS)]
    assert load(write_csv(tmp_path, lines, "age;color;label")).columns == ("age", "color=a; b")


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "npz"])
def test_texts_are_bytes_of_one_input(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"reviews.{suffix}"
    texts = [f"text {n}, gr\u00fcn" for n in range(ROWS)]
    labels = ["good" if n % 2 else "bad" for n in range(ROWS)]
    if suffix == "csv":
        lines = [f'"{text}",{label}' for text, label in zip(texts, labels, strict=True)]
        path.write_text("\n".join(["review,label", *lines]))
    elif suffix == "jsonl":
        import json

        rows = [{"review": text, "label": label} for text, label in zip(texts, labels, strict=True)]
        path.write_text("\n".join(map(json.dumps, rows)))
    else:
        np.savez(path, x_train=np.array(texts), y_train=np.array(labels))
    dataset = load(path, "text")
    assert set(
        np.concatenate(
            [dataset.train.inputs[""], dataset.validation.inputs[""], dataset.test.inputs[""]]
        )
    ) == {text.encode() for text in texts}
    assert dataset.train.inputs[""].shape == (len(dataset.train),)
    assert dataset.class_names == ("bad", "good")


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        (['{"review": "a", "label": 1}', "{"], "line 2 is not JSON"),
        (['{"review": "a", "label": 1}', '{"review": 7, "label": 0}'], "mixes numbers and texts"),
        (['{"review": ["a"], "label": 1}'], "row 1, 'review' is list"),
        (["[1]"], "line 1 is list"),
    ],
)
def test_a_jsonl_file_that_is_none_is_refused(
    tmp_path: Path, lines: list[str], sentence: str
) -> None:
    path = tmp_path / "reviews.jsonl"
    path.write_text("\n".join(lines))
    with pytest.raises(DatasetError) as caught:
        load(path, "text")
    assert sentence in str(caught.value)


def test_a_parquet_column_of_another_type_is_named(tmp_path: Path) -> None:
    table = pa.table({"when": pa.array([1, 2], pa.timestamp("s")), "label": ["a", "b"]})
    parquet.write_table(table, tmp_path / "p.parquet")
    with pytest.raises(DatasetError, match=r"column 'when' is of type timestamp"):
        load(tmp_path / "p.parquet", "parquet")


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_file_that_is_no_table_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"people.{kind}"
    path.write_bytes(b"\xff\xfe\x00PAR")
    with pytest.raises(DatasetError, match=r"not a readable|not UTF-8"):
        load(path, kind)
    with pytest.raises(DatasetError, match=r"cannot read|not a readable"):
        load(tmp_path / f"nowhere.{kind}", kind)


def test_the_share_of_missing_values_is_of_training_although_they_are_filled(
    tmp_path: Path,
) -> None:
    lines = [
        f"{'' if n % 4 == 0 else n},{('red', 'blue', '')[n % 3]},{('yes', 'no')[n % 2]}"
        for n in range(240)
    ]
    dataset = load(write_csv(tmp_path, lines), impute="median")
    examples = draw_export_examples(dataset, num_golden=8, num_calibration=16, seed=1)
    known = describe_distributions(examples)[""]
    assert known["age"].missing == pytest.approx(1 / 4, abs=0.05)
    assert known["color=blue"].missing == pytest.approx(1 / 3, abs=0.05)
    assert known["color=red"].missing == 0  # said once of a category


def test_how_inputs_are_spread_is_not_evened_out_over_classes(tmp_path: Path) -> None:
    lines = [f"{n % 7 if n % 20 else 100},{'red'},{('no', 'yes')[n % 20 == 0]}" for n in range(600)]
    dataset = load(write_csv(tmp_path, lines))
    examples = draw_export_examples(dataset, num_golden=8, num_calibration=60, seed=1)
    shares = describe_distributions(examples)[""]["age"].shares
    assert shares[-1] == pytest.approx(1 / 20, abs=0.01)
