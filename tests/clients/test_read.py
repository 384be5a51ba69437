"""People's files: what is read, which signature it is for, what is skipped."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from clients.files.fit import Adjustment, InputReader
from clients.files.images import decode_image
from clients.files.read import BLOCK_ROWS
from contract.errors import ConfigError, DatasetError, SignatureNotFoundError, TensorMismatchError
from contract.golden import Golden, GoldenExamples, write_golden
from contract.manifest import InputStatistics
from contract.pictures import PixelScaling
from contract.signature import Array, Signature, TensorSpec


def make_signature(name: str, dtype: str, shape: tuple[int | None, ...]) -> Signature:
    key = "image_bytes" if dtype == "string" else "images"
    output = TensorSpec("probabilities", "float32", (None, 10))
    return Signature(name, {key: TensorSpec(key, dtype, shape)}, {"probabilities": output})


SIGNATURES: Mapping[str, Signature] = {
    "serving_default": make_signature("serving_default", "float32", (None, 6)),
    "serving_uint8": make_signature("serving_uint8", "uint8", (None, 2, 3)),
    "serving_image_bytes": make_signature("serving_image_bytes", "string", (None,)),
}


def read(paths: list[Path], **options: object) -> tuple[InputReader, Array]:
    reader = InputReader(paths, SIGNATURES, **options)  # type: ignore[arg-type]
    arrays = [next(iter(rows.batch.values())) for rows in reader]
    return reader, np.concatenate(arrays)


def encode_image(pixels: Array, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


FLOATS = np.linspace(0, 1, 24, dtype=np.float32).reshape(4, 6)
PIXELS = np.arange(24, dtype=np.uint8).reshape(4, 2, 3) * 10


def test_rows_are_counted_before_they_are_read(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", FLOATS)
    np.savez(tmp_path / "x.npz", images=FLOATS)
    (tmp_path / "x.jsonl").write_text("[0, 1, 2, 3, 4, 5]\n" * 7)
    (tmp_path / "pictures").mkdir()
    for number in range(3):
        (tmp_path / "pictures" / f"{number}.png").write_bytes(encode_image(PIXELS[0]))
    for name, count in (("x.npy", 4), ("x.npz", 4), ("x.jsonl", 7), ("pictures", 3)):
        assert InputReader([tmp_path / name], SIGNATURES).count_rows() == count


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_floats_go_to_serving_default_whatever_their_width(tmp_path: Path, dtype: str) -> None:
    np.save(tmp_path / "x.npy", FLOATS.astype(dtype))
    reader, array = read([tmp_path / "x.npy"])
    assert reader.signature.name == "serving_default"
    assert array.dtype == np.float32
    assert np.array_equal(array, FLOATS.astype(dtype).astype(np.float32))


@pytest.mark.parametrize("dtype", ["uint8", "int64"])
def test_whole_numbers_up_to_255_are_raw_pixels(tmp_path: Path, dtype: str) -> None:
    np.save(tmp_path / "x.npy", PIXELS.astype(dtype))
    reader, array = read([tmp_path / "x.npy"])
    assert reader.signature.name == "serving_uint8"
    assert np.array_equal(array, PIXELS)


def test_flat_pixels_are_reshaped(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", PIXELS.reshape(4, 6))
    assert np.array_equal(read([tmp_path / "x.npy"])[1], PIXELS)


def test_a_single_row_gets_its_batch_axis(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", FLOATS[0])
    assert np.array_equal(read([tmp_path / "x.npy"])[1], FLOATS[:1])


def test_an_npz_of_one_array_needs_no_name(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", whatever=FLOATS)
    assert np.array_equal(read([tmp_path / "x.npz"])[1], FLOATS)


def test_an_npz_with_the_inputs_name_may_hold_labels_too(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", images=FLOATS, labels=np.arange(4))
    assert np.array_equal(read([tmp_path / "x.npz"])[1], FLOATS)


def test_an_array_of_an_npz_is_taken_by_name(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x_train=FLOATS, x_test=FLOATS * 0.5)
    assert np.array_equal(read([tmp_path / "x.npz"], array_name="x_test")[1], FLOATS * 0.5)
    with pytest.raises(ConfigError, match="x_train, x_test"):
        read([tmp_path / "x.npz"], array_name="y_test")


def test_golden_files_give_their_inputs(tmp_path: Path) -> None:
    examples = GoldenExamples({"images": FLOATS}, {"probabilities": np.zeros((4, 10))}, (4,))
    write_golden(tmp_path / "golden.npz", Golden({"serving_default": examples}))
    assert np.array_equal(read([tmp_path / "golden.npz"])[1], FLOATS)
    with pytest.raises(ConfigError, match="not of 'serving_uint8'"):
        read([tmp_path / "golden.npz"], signature_name="serving_uint8")


@pytest.mark.parametrize(("header", "delimiter"), [("", ","), ("a,b,c,d,e,f\n", ","), ("", ";")])
def test_csv_is_read_with_or_without_a_heading(tmp_path: Path, header: str, delimiter: str) -> None:
    lines = [delimiter.join(repr(float(value)) for value in row) for row in FLOATS]
    (tmp_path / "x.csv").write_text(header.replace(",", delimiter) + "\n".join(lines) + "\n")
    reader, array = read([tmp_path / "x.csv"])
    assert reader.signature.name == "serving_default"
    assert np.array_equal(array, FLOATS)


def test_csv_of_raw_pixels_goes_to_serving_uint8(tmp_path: Path) -> None:
    np.savetxt(tmp_path / "x.csv", PIXELS.reshape(4, 6), fmt="%d", delimiter=",")
    reader, array = read([tmp_path / "x.csv"])
    assert reader.signature.name == "serving_uint8"
    assert np.array_equal(array, PIXELS)


def test_a_csv_larger_than_a_block_comes_in_order(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).random((BLOCK_ROWS * 2 + 5, 6)).astype(np.float32)
    np.savetxt(tmp_path / "x.csv", rows, fmt="%.9g", delimiter=",")
    reader = InputReader([tmp_path / "x.csv"], SIGNATURES)
    blocks = list(reader)
    assert [block.num_rows for block in blocks] == [BLOCK_ROWS, BLOCK_ROWS, 5]
    assert blocks[2].name_row(4) == f"{tmp_path / 'x.csv'}:{BLOCK_ROWS * 2 + 4}"
    assert np.array_equal(np.concatenate([block.batch["images"] for block in blocks]), rows)


def test_a_bad_line_of_a_csv_is_left_out_and_named(tmp_path: Path) -> None:
    np.save(tmp_path / "good.npy", FLOATS)
    lines = ("0,0,0,0,0,0", "1,2,three,4,5,6", "1,2", "1,2,3,4,5,6", "a,b,c,d,e,f")
    (tmp_path / "bad.csv").write_text("\n".join(lines))
    reader = InputReader([tmp_path / "good.npy", tmp_path / "bad.csv"], SIGNATURES)
    found = {
        rows.name_row(row): rows.batch["images"][row].tolist()
        for rows in reader
        for row in range(rows.num_rows)
    }
    assert len(found) == 6
    assert found[f"{tmp_path}/bad.csv:3"] == [1, 2, 3, 4, 5, 6]
    reasons = {Path(name).name: reason for name, reason in reader.skipped}
    assert list(reasons) == ["bad.csv:2", "bad.csv:1", "bad.csv:4"]
    assert reasons["bad.csv:1"] == "column 3 holds 'three', where a number is wanted"
    assert reasons["bad.csv:2"] == "2 cells, where the first line has 6"


def test_jsonl_takes_bare_rows_named_rows_and_base64(tmp_path: Path) -> None:
    (tmp_path / "bare.jsonl").write_text("".join(f"{row.tolist()}\n" for row in FLOATS))
    named = [json.dumps({"images": row.tolist()}) for row in FLOATS]
    (tmp_path / "named.jsonl").write_text("\n\n".join(named))
    content = encode_image(PIXELS[0])
    coded = json.dumps({"image_bytes": {"b64": base64.b64encode(content).decode()}})
    (tmp_path / "bytes.jsonl").write_text(coded)
    assert np.array_equal(read([tmp_path / "bare.jsonl"])[1], FLOATS)
    assert np.array_equal(read([tmp_path / "named.jsonl"])[1], FLOATS)
    reader, array = read([tmp_path / "bytes.jsonl"])
    assert reader.signature.name == "serving_image_bytes"
    assert array.tolist() == [content]


@pytest.mark.parametrize("line", ["{", "[1, 2", "nonsense", '["a", [1]]', "[[" * 5000])
def test_a_broken_jsonl_is_skipped_by_name(tmp_path: Path, line: str) -> None:
    np.save(tmp_path / "good.npy", FLOATS)
    (tmp_path / "bad.jsonl").write_text(line)
    reader, _ = read([tmp_path / "good.npy", tmp_path / "bad.jsonl"])
    assert [name for name, _ in reader.skipped] == [str(tmp_path / "bad.jsonl")]


def test_a_folder_stands_for_its_images_and_broken_ones_are_named(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "b.png").write_bytes(encode_image(PIXELS[1]))
    (tmp_path / "deep" / "c.PNG").write_bytes(encode_image(PIXELS[2]))
    (tmp_path / "a.png").write_bytes(b"no image")
    (tmp_path / "notes.txt").write_text("not read")
    reader = InputReader([tmp_path], SIGNATURES)
    blocks = list(reader)
    assert reader.signature.name == "serving_uint8"
    assert np.array_equal(blocks[0].batch["images"], PIXELS[1:3])
    assert [blocks[0].name_row(i) for i in range(2)] == [
        str(tmp_path / "b.png"),
        str(tmp_path / "deep" / "c.PNG"),
    ]
    assert reader.skipped == [
        (str(tmp_path / "a.png"), "not a readable PNG or JPEG (cannot identify image file)")
    ]


def test_image_bytes_are_sent_as_they_are_by_choice(tmp_path: Path) -> None:
    content = encode_image(PIXELS[0])
    (tmp_path / "a.png").write_bytes(content)
    _, array = read([tmp_path / "a.png"], signature_name="serving_image_bytes")
    assert array.tolist() == [content]


def test_images_for_serving_default_are_scaled(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encode_image(PIXELS[3]))
    _, array = read([tmp_path / "a.png"], signature_name="serving_default")
    assert np.array_equal(array, PIXELS[3:].reshape(1, 6).astype(np.float32) / np.float32(255))


@pytest.mark.parametrize(
    ("low", "high", "expected"), [(0.0, 1.0, PIXELS[:1] / 255), (0.0, 255.0, PIXELS[:1])]
)
def test_images_become_what_the_version_says(
    tmp_path: Path, low: float, high: float, expected: Array
) -> None:
    (tmp_path / "a.png").write_bytes(encode_image(PIXELS[0]))
    adjustment = Adjustment(pixels=PixelScaling.between(low, high))
    named = {"signature_name": "serving_default", "adjustment": adjustment}
    _, array = read([tmp_path / "a.png"], **named)
    assert np.array_equal(array, expected.reshape(1, 6).astype(np.float32))


def test_a_flag_is_stronger_than_what_the_version_says(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encode_image(PIXELS[3]))
    adjustment = Adjustment(scale=10, pixels=PixelScaling.between(0, 1))
    _, array = read([tmp_path / "a.png"], signature_name="serving_default", adjustment=adjustment)
    assert np.array_equal(array, PIXELS[3:].reshape(1, 6) / np.float32(10))


def test_that_pixels_are_divided_by_255_unasked_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.png").write_bytes(encode_image(PIXELS[3]))
    read([tmp_path / "a.png"], signature_name="serving_default")
    assert "--signature_name serving_uint8, or --version_dir" in flat(capsys)
    read([tmp_path / "a.png"])
    read(
        [tmp_path / "a.png"],
        signature_name="serving_default",
        adjustment=Adjustment(pixels=PixelScaling.between(0, 1)),
    )
    assert "divided" not in flat(capsys)


def flat(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().err.split())


def test_flags_that_would_do_nothing_to_pictures_are_refused_or_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.png").write_bytes(encode_image(PIXELS[0]))
    with pytest.raises(ConfigError, match="serving_image_bytes takes files as they are; give --si"):
        read(
            [tmp_path / "a.png"],
            signature_name="serving_image_bytes",
            adjustment=Adjustment(invert=True),
        )
    _, array = read([tmp_path / "a.png"], adjustment=Adjustment(scale=255))
    assert np.array_equal(array, PIXELS[:1])
    assert "left out: serving_uint8 takes raw pixels" in flat(capsys)


def test_pictures_go_to_floats_where_it_is_known_what_pixels_become(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encode_image(PIXELS[0]))
    alone = {"serving_default": make_signature("serving_default", "float32", (None, 2, 3))}
    with pytest.raises(TensorMismatchError, match="--version_dir, or --scale"):
        InputReader([tmp_path / "a.png"], alone)
    adjustment = Adjustment(pixels=PixelScaling.between(-1, 1))
    reader = InputReader([tmp_path / "a.png"], alone, adjustment=adjustment)
    (rows,) = reader
    assert np.allclose(rows.batch["images"], PIXELS[:1] / 127.5 - 1, atol=1e-6)


def test_inverted_images_have_light_ink(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encode_image(PIXELS[0]))
    assert np.array_equal(
        read([tmp_path / "a.png"], adjustment=Adjustment(invert=True))[1], 255 - PIXELS[:1]
    )


def test_numbers_are_divided_then_shifted(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", FLOATS * 255)
    scaled = read([tmp_path / "x.npy"], adjustment=Adjustment(scale=255))[1]
    assert np.array_equal(scaled, FLOATS * 255 / np.float32(255))
    shifted = read([tmp_path / "x.npy"], adjustment=Adjustment(scale=127.5, shift=-1))[1]
    assert np.allclose(shifted, FLOATS * 2 - 1)


def test_arrays_of_pixels_are_inverted_too(tmp_path: Path) -> None:
    np.save(tmp_path / "bytes.npy", PIXELS)
    np.save(tmp_path / "floats.npy", FLOATS)
    adjustment = Adjustment(invert=True)
    assert np.array_equal(read([tmp_path / "bytes.npy"], adjustment=adjustment)[1], 255 - PIXELS)
    assert np.array_equal(read([tmp_path / "floats.npy"], adjustment=adjustment)[1], 1 - FLOATS)


def test_rows_on_another_scale_than_the_version_s_are_remarked(tmp_path: Path) -> None:
    known = {"": InputStatistics(min=0, max=1, mean=0.2, std=0.3, num_rows=9)}
    np.save(tmp_path / "x.npy", FLOATS * 255)
    reader, _ = read([tmp_path / "x.npy"], known=known)
    assert [one.flag for one in reader.remarks] == ["--scale 255"]
    mended, _ = read([tmp_path / "x.npy"], known=known, adjustment=Adjustment(scale=255))
    assert mended.remarks == []


def test_an_inversion_too_many_is_to_be_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known = {
        "": InputStatistics(
            min=0, max=1, mean=0.2, std=0.3, num_rows=9, image_shape=(28, 28, 1), light_borders=0.0
        )
    }
    light = np.zeros((3, 28, 28), np.uint8)
    light[:, 10:18, 10:18] = 255
    np.save(tmp_path / "x.npy", light)
    signatures = {"serving_uint8": make_signature("serving_uint8", "uint8", (None, 28, 28))}
    assert InputReader([tmp_path / "x.npy"], signatures, known=known).remarks == []
    capsys.readouterr()
    inverted = InputReader(
        [tmp_path / "x.npy"], signatures, known=known, adjustment=Adjustment(invert=True)
    )
    assert [one.flag for one in inverted.remarks] == [""]
    said = capsys.readouterr().err
    assert "leave --invert out" in said and "mends it" not in said


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
def test_images_of_every_mode_become_grey_pixels(mode: str) -> None:
    stream = io.BytesIO()
    image = Image.new(mode, (40, 30))
    image.save(stream, "JPEG" if mode == "CMYK" else "PNG")
    assert decode_image(stream.getvalue(), (28, 28, 1)).shape == (28, 28, 1)


def test_images_over_16_megapixels_are_refused_before_they_are_decoded() -> None:
    stream = io.BytesIO()
    Image.new("L", (5000, 4000)).save(stream, "PNG")
    with pytest.raises(DatasetError, match="5000 × 4000"):
        decode_image(stream.getvalue(), (28, 28))


@given(st.binary(max_size=200))
def test_no_bytes_crash_the_decoder(content: bytes) -> None:
    for data in (content, encode_image(PIXELS[0])[:30] + content):
        try:
            decode_image(data, (2, 3))
        except DatasetError:
            continue


def test_what_fits_nothing_says_what_is_wanted(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((4, 5)))
    with pytest.raises(TensorMismatchError, match=r"wants float32 \(batch, 6\)"):
        read([tmp_path / "x.npy"])


def test_an_unknown_signature_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", FLOATS)
    with pytest.raises(SignatureNotFoundError, match="serving_uint8"):
        read([tmp_path / "x.npy"], signature_name="predict")


@pytest.mark.parametrize("name", ["x.txt", "missing.npy", "empty"])
def test_paths_that_cannot_be_meant_are_refused_at_once(tmp_path: Path, name: str) -> None:
    (tmp_path / "x.txt").write_text("")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=name):
        read([tmp_path / name])


def test_pickles_are_never_loaded(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(DatasetError, match="could be read"):
        read([tmp_path / "x.npy"])


def test_a_table_of_texts_where_numbers_are_wanted_says_so(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("a,b,c,d,e,f\nr,s,t,u,v,w\n1,2,3,4,5,x\nr,s,t,u,v,w\n")
    alone = {"serving_default": SIGNATURES["serving_default"]}
    with pytest.raises(TensorMismatchError, match="column 'a' holds 'r', where a number is wanted"):
        InputReader([tmp_path / "x.csv"], alone)


def test_a_column_of_numbers_in_quotes_and_whole_floats_are_read(tmp_path: Path) -> None:
    signature = Signature(
        "serving_default",
        {"n": TensorSpec("n", "int32", (None,)), "on": TensorSpec("on", "bool", (None,))},
        {},
    )
    (tmp_path / "x.csv").write_text('on, n\n"true", "3.0"\n0, 4\n')
    (rows,) = InputReader([tmp_path / "x.csv"], {"serving_default": signature})
    assert rows.batch["n"].tolist() == [3, 4]
    assert rows.batch["on"].tolist() == [True, False]
    (tmp_path / "x.jsonl").write_text('{"n": 3, "on": true}\n{"n": 4, "on": false}\n')
    (rows,) = InputReader([tmp_path / "x.jsonl"], {"serving_default": signature})
    assert (rows.batch["n"].dtype, rows.batch["on"].dtype) == (np.int32, np.bool_)


@pytest.mark.parametrize("suffix", ["npz", "jsonl", "csv"])
def test_what_stands_beside_the_inputs_is_left_out_and_said_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], suffix: str
) -> None:
    path = tmp_path / f"rows.{suffix}"
    rows, labels = np.ones((2, 3), np.float32), np.array([7, 8])
    if suffix == "npz":
        np.savez(path, x=rows, label=labels)
    elif suffix == "jsonl":
        path.write_text('{"x": [1, 1, 1], "label": 7}\n' * 2)
    else:
        path.write_text("x_0,x_1,x_2,label\n1,1,1,7\n1,1,1,8\n")
    signature = Signature("serving_default", {"x": TensorSpec("x", "float32", (None, 3))}, {})
    first, second = InputReader([path, path], {"serving_default": signature})
    assert first.batch.keys() == second.batch.keys() == {"x"}
    told = [line for line in capsys.readouterr().err.splitlines() if "left out" in line]
    assert told == [f"{path}: left out label; signature 'serving_default' takes x"]
