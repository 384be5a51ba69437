"""What people give `predict`: texts, several inputs, single values; and what comes out."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clients.cli import main
from contract.signature import Batch, Signature, TensorSpec
from tests.clients.grpc_servers import ModelServer


def spec(name: str, dtype: str, shape: tuple[int | None, ...]) -> dict[str, TensorSpec]:
    return {name: TensorSpec(name, dtype, shape)}


def describe(name: str, inputs: dict[str, TensorSpec], outputs: dict[str, TensorSpec]) -> Signature:
    return Signature(name, inputs, outputs)


SIGNATURES = {
    one.name: one
    for one in (
        describe("length", spec("text", "string", (None,)), spec("length", "int64", (None,))),
        describe(
            "mixed",
            spec("text", "string", (None,))
            | spec("features", "float32", (None, 2))
            | spec("member", "bool", (None,))
            | spec("id", "int64", (None, 1)),
            spec("sum", "float32", (None,)) | spec("same", "int64", (None, 1)),
        ),
        describe(
            "scale",
            spec("x", "float32", (None, 2)) | spec("k", "float32", ()),
            spec("y", "float32", (None, 2)),
        ),
        describe(
            "best",
            spec("x", "float32", (None,)) | spec("k", "int32", ()),
            spec("values", "float32", (None,)) | spec("places", "int32", (None,)),
        ),
        describe("double", spec("n", "int32", ()), spec("twice", "int32", ())),
        describe("sums", spec("rows", "float32", (None, None)), spec("sum", "float32", (None,))),
        describe(
            "tags", spec("words", "string", (None, 2)), spec("joined", "string", (None, None))
        ),
    )
}


def answer(inputs: Batch) -> dict[str, Any]:
    match sorted(inputs):
        case ["text"]:
            return {"length": np.array([len(one) for one in inputs["text"]])}
        case ["features", "id", "member", "text"]:
            sizes = np.array([len(one) for one in inputs["text"]])
            total = inputs["features"].sum(axis=1) + sizes + 100 * inputs["member"]
            return {"sum": total.astype(np.float32), "same": inputs["id"]}
        case ["k", "x"] if inputs["k"].dtype == np.float32:
            return {"y": inputs["x"] * inputs["k"]}
        case ["k", "x"]:
            order = np.argsort(-inputs["x"])[: int(inputs["k"])]
            return {"values": inputs["x"][order], "places": order.astype(np.int32)}
        case ["n"]:
            return {"twice": inputs["n"] * np.int32(2)}
        case ["rows"]:
            return {"sum": inputs["rows"].sum(axis=1)}
        case ["words"]:
            return {"joined": inputs["words"][:, ::-1]}
    raise AssertionError(inputs)


@pytest.fixture(scope="module")
def server() -> Iterator[ModelServer]:
    with ModelServer() as made:
        made.signatures = SIGNATURES
        made.answer = answer
        made._Predict = _predict(made)  # type: ignore[assignment, method-assign]
        yield made


def _predict(server: ModelServer) -> Callable[[bytes], bytes]:
    """As ModelServer's, of inputs that have no rows, too."""
    from contract.wire.predict import decode_predict_request, encode_predict_response

    def predict(body: bytes) -> bytes:
        found, inputs, _ = decode_predict_request(body)
        return encode_predict_response(found, server.answer(inputs))

    return predict


Predict = Callable[..., tuple[int, list[dict[str, Any]], dict[str, Any]]]


@pytest.fixture
def predict(server: ModelServer, capsys: pytest.CaptureFixture[str]) -> Predict:
    """Runs the command and gives its code, the outputs of each record, and all it said."""

    def run(
        signature: str, *arguments: str | Path
    ) -> tuple[int, list[dict[str, Any]], dict[str, Any]]:
        flags = ["--server", server.address, "--model_name", "m", "--signature_name", signature]
        code = main(["predict", *flags, "--json", *map(str, arguments)])
        document = json.loads(capsys.readouterr().out)
        rows = [
            {k: v for k, v in one.items() if k != "row" and not k.endswith("_class")}
            for one in document["predictions"]
        ]
        return code, rows, document

    return run


@pytest.mark.parametrize(
    ("content", "lengths"),
    [
        ('text\n"the cat"\n"a dog"\n', [7, 5]),
        ("text\nthe cat\na dog, a cat\n", [7, 12]),
        ('review\n"say ""no"", twice"\nyes\n', [15, 3]),
        ('"the cat"\n"a dog"\n', [7, 5]),
        ('text\n"two\nlines"\n""\n007\n', [9, 0, 3]),
        ("label,text\n1,one\n0,three\n", [3, 5]),
        ("\ufefftext;label\nä;1\n", [2]),
    ],
)
def test_a_csv_of_texts_is_sent_as_it_is_written(
    predict: Predict, tmp_path: Path, content: str, lengths: list[int]
) -> None:
    (tmp_path / "x.csv").write_text(content, encoding="utf-8")
    code, rows, _ = predict("length", tmp_path / "x.csv")
    assert (code, [row["length"] for row in rows]) == (0, lengths)


def test_what_the_first_line_is_taken_for_can_be_said(predict: Predict, tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("good\nbad\n")
    for heading, lengths in (("auto", [3]), ("yes", [3]), ("no", [4, 3])):
        _, rows, _ = predict("length", tmp_path / "x.csv", "--heading", heading)
        assert [row["length"] for row in rows] == lengths


def test_a_guess_about_the_first_line_is_said(
    server: ModelServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x.csv").write_text("good\nbad\n")
    flags = ["--server", server.address, "--model_name", "m", "--signature_name", "length"]
    assert main(["predict", *flags, str(tmp_path / "x.csv")]) == 0
    assert "(good) is taken for a heading" in " ".join(capsys.readouterr().err.split())


MIXED = """features_1,id,text,features_0,member
2,9007199254740993,"a, b",1,true
,2,c,1,no
5,three,c,1,0
5,4,,1,FALSE
5,5,c,six,1
"""


def test_columns_of_a_csv_are_the_inputs_that_they_name(predict: Predict, tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text(MIXED)
    code, rows, document = predict("mixed", tmp_path / "x.csv")
    assert code == 1
    assert rows == [
        {"same": [9007199254740993], "sum": 107.0},
        {"same": [4], "sum": 6.0},
    ]
    reasons = {Path(one["file"]).name: one["reason"] for one in document["skipped"]}
    assert reasons == {
        "x.csv:2": "column 'id' holds 'three', where int64 is wanted",
        "x.csv:4": "column 'features_0' holds 'six', where a number is wanted",
    }
    (failed,) = document["failed"]
    assert failed["row"].endswith("x.csv:1")
    assert "NaN" in failed["reason"]


def test_a_missing_number_is_sent_as_nan_where_that_is_allowed(
    predict: Predict, tmp_path: Path
) -> None:
    (tmp_path / "x.csv").write_text("features_0,features_1,id,text,member\n,1,1,a,1\nNA,1,1,a,1\n")
    code, rows, _ = predict("mixed", tmp_path / "x.csv", "--allow_non_finite")
    assert (code, [row["sum"] for row in rows]) == (0, ["nan", "nan"])


def test_a_csv_that_lacks_an_input_says_how_to_head_columns(
    server: ModelServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x.csv").write_text("text,id\na,1\n")
    flags = ["--server", server.address, "--model_name", "m", "--signature_name", "mixed"]
    assert main(["predict", *flags, str(tmp_path / "x.csv")]) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert "no column of features, member (its heading has text, id)" in told


def test_each_line_is_a_request_where_an_input_has_no_entry_per_row(
    predict: Predict, tmp_path: Path
) -> None:
    lines = ('{"x": [1, 2], "k": 3}', '{"x": [1, 2], "k": 4}', '{"x": [[1, 2], [3, 4]], "k": 2}')
    (tmp_path / "x.jsonl").write_text("\n".join(lines))
    code, rows, document = predict("scale", tmp_path / "x.jsonl")
    assert code == 0
    assert rows == [{"y": [3, 6]}, {"y": [4, 8]}, {"y": [[2, 4], [6, 8]]}]
    assert [Path(one["row"]).name for one in document["predictions"]] == [
        "x.jsonl:0",
        "x.jsonl:1",
        "x.jsonl:2",
    ]


def test_requests_of_all_shapes_come_out_whole(predict: Predict, tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"x": [3, 1, 2], "k": 2}\n{"x": [5, 7], "k": 1}\n')
    code, rows, _ = predict("best", tmp_path / "x.jsonl")
    assert code == 0
    assert rows == [{"values": [3, 2], "places": [0, 2]}, {"values": [7], "places": [1]}]


def test_an_npz_with_a_single_value_is_one_request(predict: Predict, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=np.array([[1, 2], [3, 4]], np.float32), k=np.float32(2))
    assert predict("scale", tmp_path / "x.npz")[:2] == (0, [{"y": [2, 4]}, {"y": [6, 8]}])


def test_an_npz_with_a_value_per_row_is_a_request_per_row(predict: Predict, tmp_path: Path) -> None:
    np.savez(
        tmp_path / "x.npz", x=np.array([[1, 2], [3, 4]], np.float32), k=np.array([2, 3], np.float32)
    )
    assert predict("scale", tmp_path / "x.npz")[:2] == (0, [{"y": [2, 4]}, {"y": [9, 12]}])


def test_a_csv_gives_single_values_by_row(predict: Predict, tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("k,x_0,x_1\n2,1,2\n3,3,4\n")
    assert predict("scale", tmp_path / "x.csv")[:2] == (0, [{"y": [2, 4]}, {"y": [9, 12]}])
    (tmp_path / "n.csv").write_text("4\n5\n")
    assert predict("double", tmp_path / "n.csv")[:2] == (0, [{"twice": 8}, {"twice": 10}])


@pytest.mark.parametrize(
    ("signature", "given", "expected"),
    [
        ("double", ["n=4"], [{"twice": 8}]),
        ("scale", ["x=[1,2]", "k=3"], [{"y": [3, 6]}]),
        ("scale", ["x=[[1,2],[3,4]]", "k=3"], [{"y": [3, 6]}, {"y": [9, 12]}]),
        ("best", ["x=[3,1,2]", "k=2"], [{"values": [3, 2], "places": [0, 2]}]),
        ("length", ["text=the cat"], [{"length": 7}]),
        ("length", ["text=007"], [{"length": 3}]),
        ("length", ['text=["a", "bc"]'], [{"length": 1}, {"length": 2}]),
        ("length", ['text={"b64": "AP8="}'], [{"length": 2}]),
        (
            "mixed",
            ["text=ab", "features=[1,2]", "member=true", "id=[7]"],
            [{"sum": 105.0, "same": [7]}],
        ),
    ],
)
def test_inputs_are_given_by_name(
    predict: Predict, signature: str, given: list[str], expected: list[dict[str, Any]]
) -> None:
    flags = [part for one in given for part in ("--input", one)]
    assert predict(signature, *flags)[:2] == (0, expected)


def test_an_input_may_be_an_array_in_a_file(predict: Predict, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array([[1, 2]], np.float32))
    given = ("--input", f"x=@{tmp_path / 'x.npy'}", "--input", "k=2")
    assert predict("scale", *given)[:2] == (0, [{"y": [2, 4]}])


def test_given_inputs_hold_for_every_row_of_a_file(predict: Predict, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array([[1, 2], [3, 4]], np.float32))
    expected = [{"y": [2, 4]}, {"y": [6, 8]}]
    assert predict("scale", tmp_path / "x.npy", "--input", "k=2")[:2] == (0, expected)
    (tmp_path / "x.csv").write_text("features_0,features_1,id,text\n1,2,1,a\n3,4,2,b\n")
    _, rows, _ = predict("mixed", tmp_path / "x.csv", "--input", "member=true")
    assert [row["sum"] for row in rows] == [104.0, 108.0]


@pytest.mark.parametrize(
    ("signature", "given", "told"),
    [
        ("double", "m=4", "has the inputs n"),
        ("double", "n=four", "int32 () is wanted, as JSON"),
        ("scale", "k=3", "missing x"),
        ("double", "n=[1,2]", "wants int32 ()"),
    ],
)
def test_a_given_input_that_does_not_fit_is_refused_in_words(
    server: ModelServer, capsys: pytest.CaptureFixture[str], signature: str, given: str, told: str
) -> None:
    flags = ["--server", server.address, "--model_name", "m", "--signature_name", signature]
    assert main(["predict", *flags, "--input", given]) == 2
    assert told in " ".join(capsys.readouterr().err.split())


def test_lines_of_different_lengths_are_sent_each_by_itself(
    predict: Predict, tmp_path: Path
) -> None:
    (tmp_path / "x.jsonl").write_text('{"rows": [1]}\n{"rows": [1, 2]}\n{"rows": [1, null]}\n')
    code, rows, document = predict("sums", tmp_path / "x.jsonl")
    assert [row["sum"] for row in rows] == [1, 3]
    assert code == 1
    assert document["failed"][0]["row"].endswith("x.jsonl:2")


def test_strings_in_lists_are_rows_of_strings(predict: Predict, tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"words": ["a", {"b64": "Yg=="}]}\n')
    assert predict("tags", tmp_path / "x.jsonl")[:2] == (0, [{"joined": ["b", "a"]}])
    (tmp_path / "x.csv").write_text("words_0,words_1\na,b\n")
    assert predict("tags", tmp_path / "x.csv")[:2] == (0, [{"joined": ["b", "a"]}])


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "npz"])
def test_whole_answers_are_kept_in_every_kind_of_file(
    server: ModelServer, tmp_path: Path, suffix: str
) -> None:
    (tmp_path / "x.jsonl").write_text('{"x": [3, 1, 2], "k": 2}\n{"x": [5, 7], "k": 1}\n')
    output = tmp_path / f"out.{suffix}"
    flags = ["--server", server.address, "--model_name", "m", "--signature_name", "best"]
    assert main(["predict", *flags, str(tmp_path / "x.jsonl"), "--output", str(output)]) == 0
    if suffix == "csv":
        with output.open() as stream:
            found = [json.loads(line["values"]) for line in csv.DictReader(stream)]
    elif suffix == "jsonl":
        found = [json.loads(line)["values"] for line in output.read_text().splitlines()]
    else:
        with np.load(output, allow_pickle=False) as archive:
            ends = archive["values_shapes"][:, 0].cumsum()
            found = [part.tolist() for part in np.split(archive["values"], ends[:-1])]
    assert found == [[3, 2], [7]]


def test_rows_of_different_widths_stay_in_their_columns_of_a_csv(
    server: ModelServer, tmp_path: Path
) -> None:
    (tmp_path / "x.csv").write_text("words_0,words_1\na,b\n")
    output = tmp_path / "out.csv"
    flags = ["--server", server.address, "--model_name", "m", "--signature_name", "tags"]
    assert main(["predict", *flags, str(tmp_path / "x.csv"), "--output", str(output)]) == 0
    assert output.read_text().splitlines()[0] == "row,joined"
    assert output.read_text().splitlines()[1].endswith(',"[""b"", ""a""]"')


def test_an_output_of_the_whole_batch_stands_beside_each_row(
    server: ModelServer, predict: Predict, tmp_path: Path
) -> None:
    np.save(tmp_path / "x.npy", np.array([[1, 2], [3, 4]], np.float32))
    signature = SIGNATURES["sums"]
    outputs = dict(signature.outputs) | spec("count", "int32", ())
    server.signatures = SIGNATURES | {"sums": Signature("sums", signature.inputs, outputs)}
    kept, server.answer = server.answer, lambda i: {**answer(i), "count": np.int32(len(i["rows"]))}
    try:
        rows = predict("sums", tmp_path / "x.npy")[1]
    finally:
        server.answer, server.signatures = kept, SIGNATURES
    assert rows == [{"sum": 3, "count": 2}, {"sum": 7, "count": 2}]
