"""Parity: agreement is said only where answers agree."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.cells import cell_len

from clients.cli import main
from clients.parity import (
    AGREES,
    DIFFERS,
    FAILED,
    IN_PART,
    ON_DEVICE,
    Hop,
    HopReport,
    check_hop,
    list_hops,
)
from contract import layout
from contract.errors import (
    ConfigError,
    InternalError,
    ServableUnavailableError,
    UnimplementedError,
)
from contract.golden import Golden, GoldenExamples, read_golden, write_golden
from contract.parity import VersionTolerances
from contract.signature import Batch
from tests.clients.serving_mlp import serve_mlp
from tests.versions import write_tolerances

ROWS = 64
DEFAULTS = VersionTolerances()
SCORES = np.eye(10, dtype=np.float32)[np.arange(ROWS) % 10] * np.float32(0.9)
GOLDEN = Golden(
    {
        "serving_default": GoldenExamples(
            {"images": np.arange(2 * ROWS, dtype=np.float32).reshape(ROWS, 2)},
            {"probabilities": SCORES},
            (1, 31, 32),
        )
    }
)


class Echo:
    """Answers golden scores, changed by `spoil`."""

    def __init__(self, spoil: Any = None) -> None:
        self.spoil = spoil
        self.row = 0
        self.batch_sizes: list[int] = []

    def predict(self, batch: Batch, *, signature_name: str) -> Batch:
        size = len(batch["images"])
        self.batch_sizes.append(size)
        scores = SCORES[self.row : self.row + size].copy()
        self.row += size
        if self.spoil is not None:
            self.spoil(scores)
        return {"probabilities": scores}


def make_hop(predictor: Any, name: str = "grpc", *, asked: VersionTolerances = DEFAULTS) -> Hop:
    is_on_device = name.startswith(ON_DEVICE)
    tolerance = asked.of_variant(name.removeprefix(ON_DEVICE)) if is_on_device else asked.of_server

    @contextmanager
    def open_predictor() -> Iterator[Any]:
        yield predictor

    return Hop(name, tolerance, open_predictor)


def test_equal_answers_agree_and_golden_batches_are_kept() -> None:
    predictor = Echo()
    report = check_hop(make_hop(predictor), GOLDEN)
    assert (report.verdict, report.num_rows, report.max_abs_difference) == (AGREES, ROWS, 0.0)
    assert predictor.batch_sizes == [1, 31, 32]


@pytest.mark.parametrize("amount", [2e-5, np.nan, np.inf])
def test_one_number_off_in_one_row_is_a_difference(amount: float) -> None:
    def spoil(scores: np.ndarray) -> None:
        if len(scores) == 31:
            scores[4, 0] += amount

    report = check_hop(make_hop(Echo(spoil)), GOLDEN)
    assert report.verdict == DIFFERS
    assert report.worst_row == "serving_default[5]"


def test_swapped_rows_are_a_difference() -> None:
    def spoil(scores: np.ndarray) -> None:
        scores[:] = scores[::-1].copy()

    assert check_hop(make_hop(Echo(spoil)), GOLDEN).verdict == DIFFERS


@pytest.mark.parametrize(("changed", "verdict"), [(3, AGREES), (10, DIFFERS)])
def test_int8_may_change_the_class_of_few_golden_rows(changed: int, verdict: str) -> None:
    def spoil(scores: np.ndarray) -> None:
        if len(scores) == 32:
            scores[:changed] = scores[:changed, ::-1].copy()

    assert check_hop(make_hop(Echo(spoil), "on-device:int8"), GOLDEN).verdict == verdict


class Raising:
    def __init__(self, error: Exception) -> None:
        self.error = error

    def predict(self, batch: Batch, *, signature_name: str) -> Batch:
        raise self.error


@pytest.mark.parametrize(
    ("error", "verdict"),
    [
        (ServableUnavailableError("gone"), "unreachable"),
        (InternalError("broken"), FAILED),
        (UnimplementedError("needs TensorFlow"), IN_PART),
    ],
)
def test_what_cannot_be_compared_never_agrees(error: Exception, verdict: str) -> None:
    report = check_hop(make_hop(Raising(error)), GOLDEN)
    assert report.verdict == verdict
    assert str(error) in report.problems[0]


@pytest.mark.parametrize(
    ("hop", "counts"),
    [
        *(("grpc", True), ("rest", True), ("browser", True)),
        *(("on-device:float32", True), ("on-device:web", True)),
        *((f"on-device:{one}", False) for one in ("float16", "dynamic_range", "int8")),
        ("on-device:int8_float_io", False),
    ],
)
def test_floats_are_counted_where_a_copy_has_all_their_bits(hop: str, counts: bool) -> None:
    assert HopReport(hop, AGREES).counts_ulp is counts


def test_unknown_hops_are_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="grpc-aio, rest, v2-grpc, v2-rest, on-device:float32"):
        list_hops("grcp", None)


def test_all_means_servers_and_every_variant_there_is(published_mlp: Path) -> None:
    variants = [f"on-device:{variant}" for variant in layout.DEFAULT_VARIANTS]
    assert list_hops("all", published_mlp / "mlp" / "1") == [
        *("grpc", "grpc-aio", "rest", "v2-grpc", "v2-rest"),
        *variants,
        "browser",
    ]
    assert list_hops("grpc,all", None) == ["grpc", "grpc-aio", "rest", "v2-grpc", "v2-rest"]


def test_a_hop_that_all_brings_is_skipped_where_it_cannot_run_and_a_named_one_is_refused(
    published_mlp: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    hops = ",".join(f"on-device:{variant}" for variant in layout.DEFAULT_VARIANTS)
    folder = ["parity", "--version_dir", str(published_mlp / "mlp" / "1"), "--via"]
    brought = [*folder, f"{hops}, all", "--server", "127.0.0.1:9", "--timeout_s", "0.1"]
    assert main([*brought, "--json"]) == 3  # the servers are not there
    verdicts = {one["hop"]: one["verdict"] for one in json.loads(capsys.readouterr().out)["hops"]}
    assert verdicts["browser"] == "skipped"
    assert verdicts["on-device:int8"] == AGREES
    assert main([*folder, f"{hops},browser"]) == 2
    assert "browser" in capsys.readouterr().err


def test_the_command_agrees_over_grpc_asyncio_and_every_variant(
    published_mlp: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    golden = _write_numeric_golden(published_mlp, tmp_path)
    with serve_mlp(published_mlp / "mlp" / "1") as server:
        variants = ",".join(f"on-device:{variant}" for variant in layout.DEFAULT_VARIANTS)
        status = main(
            [
                *_arguments(published_mlp, server.address, f"grpc,grpc-aio,{variants}"),
                *("--golden", str(golden), "--json"),
            ]
        )
    hops = json.loads(capsys.readouterr().out)["hops"]
    assert status == 0
    assert [hop["verdict"] for hop in hops] == [AGREES] * (2 + len(layout.DEFAULT_VARIANTS))
    assert all(hop["num_rows"] > 0 for hop in hops)


@pytest.mark.parametrize(
    ("numbers", "status"),
    [
        ({"max_class_loss": 0.05}, 1),
        ({"max_class_loss": 0.5}, 0),
        ({"max_class_loss": 0.5, "min_top1_agreement": 0.99}, 1),
        ({"max_class_loss": 0.5, "max_abs_difference": 1e-6}, 1),
    ],
    ids=["a twentieth", "half of each class", "half, and 99 % of all", "half, and numbers"],
)
def test_the_command_asks_what_the_manifest_says(
    numbers: dict[str, float],
    status: int,
    published_mlp: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    version_dir = Path(shutil.copytree(published_mlp / "mlp" / "1", tmp_path / "1"))
    write_tolerances(version_dir, {"int8": numbers})
    golden = _write_golden_of_other_classes(version_dir, tmp_path, num_rows=8)
    arguments = ["parity", "--version_dir", str(version_dir), "--golden", str(golden)]
    assert main([*arguments, "--via", "on-device:int8"]) == status
    shown = capsys.readouterr()
    assert ("differs" if status else "agrees") in shown.out


@pytest.mark.parametrize("hop", ["grpc", "on-device:float32"])
@pytest.mark.parametrize(("limit", "verdict"), [(1e-5, DIFFERS), (1e-3, AGREES)])
def test_servers_may_be_as_far_off_as_the_float32_variant(
    hop: str, limit: float, verdict: str, published_mlp: Path, tmp_path: Path
) -> None:
    version_dir = Path(shutil.copytree(published_mlp / "mlp" / "1", tmp_path / "1"))
    write_tolerances(version_dir, {"float32": {"max_abs_difference": limit}})
    golden = _write_numeric_golden(published_mlp, tmp_path, add=1e-4)
    with serve_mlp(version_dir) as server:
        arguments = ["--version_dir", str(version_dir), "--server", server.address]
        status = main(["parity", *arguments, "--via", hop, "--golden", str(golden)])
    assert status == (0 if verdict == AGREES else 1)


def test_the_command_exits_1_on_a_difference_and_names_it(
    published_mlp: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    golden = _write_numeric_golden(published_mlp, tmp_path, add=1e-4)
    status = main([*_arguments(published_mlp, "x:1", "on-device:float32"), "--golden", str(golden)])
    shown = capsys.readouterr()
    assert status == 1
    assert "differs" in shown.out
    assert "serving_default: probabilities differs by up to 0.0001" in shown.err


def test_the_table_has_a_line_of_80_columns_for_each_hop_however_long_the_path(
    published_mlp: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    version = tmp_path / "a base path that is longer than a line" / "模型" / "1"
    shutil.copytree(published_mlp / "mlp" / "1", version)
    hops = [f"on-device:{variant}" for variant in layout.DEFAULT_VARIANTS]
    command = ["parity", "--version_dir", str(version), "--via", ",".join(hops)]
    assert main(command) == 0
    title, *lines = capsys.readouterr().out.splitlines()
    assert title.startswith("parity with ")
    assert title.endswith("/1/assets.extra/golden.npz")
    assert all(cell_len(line) <= 80 for line in (title, *lines))
    assert [line.split()[0] for line in lines if line.endswith("agrees")] == hops
    assert main([*command, "--per_signature"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(cell_len(line) <= 80 for line in lines)
    assert sum(line.endswith("agrees") for line in lines) == 3 * 3 + 2 * 2


def test_the_command_exits_3_when_nobody_answers(
    published_mlp: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = main(_arguments(published_mlp, "127.0.0.1:9", "grpc,on-device:float32"))
    assert status == 3
    assert "unreachable" in capsys.readouterr().out


def test_golden_that_is_missing_is_a_usage_error(
    published_mlp: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["parity", "--via", "grpc"]) == 2
    assert main(["parity", "--via", "grpc", "--golden", str(tmp_path / "none.npz")]) == 2
    assert "Traceback" not in capsys.readouterr().err


def _arguments(published: Path, server: str, via: str) -> list[str]:
    return ["parity", "--version_dir", str(published / "mlp"), "--server", server, "--via", via]


def _write_golden_of_other_classes(version_dir: Path, folder: Path, *, num_rows: int) -> Path:
    """Golden of `serving_default` with the classes of some rows turned round."""
    one = read_golden(version_dir / layout.GOLDEN).signatures["serving_default"]
    (name,) = one.outputs
    scores = one.outputs[name].copy()
    scores[:num_rows] = np.roll(scores[:num_rows], 1, axis=1)
    path = folder / "golden.npz"
    examples = GoldenExamples(one.inputs, {name: scores}, one.batch_sizes)
    write_golden(path, Golden({"serving_default": examples}))
    return path


def _write_numeric_golden(published: Path, folder: Path, *, add: float = 0.0) -> Path:
    signatures = read_golden(published / "mlp" / "1" / layout.GOLDEN).signatures
    chosen = {}
    for name in ("serving_default", "serving_uint8"):
        one = signatures[name]
        outputs = {key: array + np.float32(add) for key, array in one.outputs.items()}
        chosen[name] = GoldenExamples(one.inputs, outputs, one.batch_sizes)
    path = folder / "golden.npz"
    write_golden(path, Golden(chosen))
    return path


def test_a_rest_port_that_nobody_named_is_named_where_nobody_answers(
    published_mlp: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    version_dir = published_mlp / "mlp" / "1"
    flags = ("--version_dir", str(version_dir), "--via", "rest", "--signatures", "serving_default")
    main(["parity", *flags, "--server", "[::1]:9"])
    told = capsys.readouterr().err
    assert "[::1]:8501" in told
    assert "--rest_server=HOST:PORT" in told
