"""Flags, exit codes, and one sentence for whatever is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from exporter.cli import main
from tests.exporter.candidates import make_candidate, make_signature

ROOT = Path(__file__).resolve().parents[2]
MLP = str(ROOT / "configs" / "mlp.toml")


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    code = "import sys; from exporter.cli import main; sys.exit(main(sys.argv[1:]))"
    return subprocess.run(
        [
            sys.executable,
            "-c",
            f"import sys; sys.path.insert(0, {str(ROOT)!r}); {code}",
            *arguments,
        ],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_publish_prints_where_the_version_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    candidate = make_candidate(tmp_path / "candidate")
    flags = ["publish", str(candidate), "--base_path", str(tmp_path / "mlp")]
    assert main(flags) == 0
    assert f"Published {tmp_path / 'mlp' / '1'}" in capsys.readouterr().out
    assert main([*flags, "--json", "--keep=1"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert [one.partition(":")[0] for one in printed.pop("lacks")] == [
        "golden examples",
        "warmup records",
    ]
    assert printed == {
        "path": str(tmp_path / "mlp" / "2"),
        "version": 2,
        "retired": [1],
        "changes": [],
        "signed_with": None,
    }


def test_publish_goes_to_models_and_the_models_name_by_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    candidate = make_candidate(tmp_path / "candidate", model_name="digits")
    monkeypatch.chdir(tmp_path)
    assert main(["publish", str(candidate)]) == 0
    assert (tmp_path / "models" / "digits" / "1").is_dir()


def test_publish_finds_the_candidate_in_a_run_directory(tmp_path: Path) -> None:
    make_candidate(tmp_path / "run" / "candidate")
    flags = ["publish", str(tmp_path / "run"), "--base_path", str(tmp_path / "mlp")]
    assert main(flags) == 0


def test_a_broken_contract_is_exit_code_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base_path = ["--base_path", str(tmp_path / "mlp")]
    assert main(["publish", str(make_candidate(tmp_path / "a")), *base_path]) == 0
    other = make_candidate(tmp_path / "b", make_signature(given="pixels"))
    assert main(["publish", str(other), *base_path]) == 1
    assert "'images' is gone or renamed" in capsys.readouterr().err
    assert main(["publish", str(other), *base_path, "--allow_signature_change"]) == 0


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["export", "--config", "missing.toml"], "cannot read the configuration missing.toml"),
        (
            ["export", "--config", MLP, "--set", "training.epoch=3"],
            "did you mean 'training.epochs'",
        ),
        (["export", "--config", MLP, "--set", "training.epochs=many"], "training.epochs"),
        (["export", "--config", MLP, "--base_path", "file"], "a file stands where the base path"),
        (["export", "--config", MLP, "--base_path", "file/mlp"], "a file stands where"),
        (["export", "--config", MLP, "--keep", "0"], "--keep 0: give 1 or more"),
        (["export", "--config", MLP, "--resume"], "no run with checkpoints"),
        (["export", "--config", MLP, "--trained", "nowhere"], "holds no trained model"),
        (["export", "--config", MLP, "--run_dir", "file/run"], "--run_dir file/run cannot be made"),
        (["publish", "nowhere"], "nowhere is no directory"),
        (["predict", "nowhere", "--input", "x.npy", "--output", "g.npz"], "is no directory"),
        (["verify", "nowhere"], "is no directory"),
        (["inspect", "nowhere"], "is no directory"),
        (["inspect", "models/mlp"], "is no version"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(
    tmp_path: Path, arguments: list[str], text: str
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "models" / "mlp").mkdir(parents=True)
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert text in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert done.stdout == ""
    assert list((tmp_path / "models" / "mlp").iterdir()) == []


def test_a_directory_that_is_no_candidate_is_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["publish", str(tmp_path)]) == 2
    assert "no manifest" in capsys.readouterr().err


def test_a_candidate_that_did_not_pass_is_exit_code_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "candidate").mkdir()
    assert main(["publish", str(tmp_path)]) == 1
    assert "did not pass verification" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["nonsense"], ["export", "--nonsense"]])
def test_a_wrong_command_line_is_exit_code_2(arguments: list[str]) -> None:
    try:
        code = main(arguments)
    except SystemExit as stop:  # argparse's own way
        code = stop.code
    assert code == 2
