"""Feeds every parser a number of inputs, guided by the branches that they reach.

Run: make fuzz [ARGS="--runs 1000000 --only JSON"]
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.fuzz.targets import TARGETS, Target
from contract.console.exits import ExitCode
from contract.console.terminal import print_json, print_table, remark

HERE = Path(__file__).resolve().parent
PACKAGES = HERE.parent / ".envs" / "fuzz"
REQUIREMENTS = HERE.parent / "rivals" / "fuzz.txt"
CRASHES = HERE.parent / ".envs" / "crashes"
TIMEOUT_S = 10
MEMORY_MIB = 2048


@dataclasses.dataclass(frozen=True)
class Result:
    """Of one parser.

    Attributes:
        parser: Its name.
        inputs: How many it was fed.
        seconds: How long that took.
        branches: How many were reached.
        verdict: `ok`, or `fails`.
        reason: The end of what a crash printed.
    """

    parser: str
    inputs: int
    seconds: float
    branches: int
    verdict: str
    reason: str = ""


def install() -> None:
    """atheris, beside what is installed: nothing else needs it."""
    wanted, stamp = REQUIREMENTS.read_text(), PACKAGES / ".installed"
    if stamp.exists() and stamp.read_text() == wanted:
        return
    remark(f"installing {wanted.strip()} into {PACKAGES}")
    command = [sys.executable, "-m", "pip", "install", "-q", "--target", str(PACKAGES)]
    subprocess.run([*command, "-r", str(REQUIREMENTS)], check=True)
    stamp.write_text(wanted)


def fuzz(name: str, target: Target, runs: int, seed: int) -> Result:
    """Runs one parser until it has had its inputs, or crashes."""
    CRASHES.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for number, one in enumerate(target.seeds()):
            (Path(folder) / f"seed-{number}").write_bytes(one)
        flags = [f"-runs={runs}", f"-seed={seed}", f"-max_len={target.max_len}"]
        flags += [f"-timeout={TIMEOUT_S}", f"-rss_limit_mb={MEMORY_MIB}"]
        flags += [f"-artifact_prefix={CRASHES}/{name.replace('/', '-')}-"]
        started = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.fuzz.run", name, folder, *flags],
            cwd=HERE.parents[1],
            env=os.environ | {"PYTHONPATH": f"{HERE.parents[1]}:{PACKAGES}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
        )
        seconds = time.perf_counter() - started
    count = re.findall(r"^#(\d+)\t", done.stdout, re.MULTILINE)
    branches = re.findall(r" cov: (\d+)", done.stdout)
    is_whole = done.returncode == 0 and f"Done {runs} runs" in done.stdout
    return Result(
        name,
        runs if is_whole else int(count[-1]) if count else 0,
        round(seconds, 1),
        int(branches[-1]) if branches else 0,
        "ok" if is_whole else "fails",
        "" if is_whole else done.stdout[-4000:],
    )


def main() -> int:
    """Fuzzes and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=20_000, help="inputs for each parser")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", choices=[*TARGETS], action="append")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    install()
    results = []
    for name in args.only or TARGETS:
        remark(f"{name}: {args.runs:,} inputs")
        results.append(fuzz(name, TARGETS[name], args.runs, args.seed))
        if results[-1].reason:
            remark(results[-1].reason)
    if args.json:
        print_json(results)
    else:
        headings = ("parser", "inputs", "s", "inputs/s", "branches", "verdict")
        rows = [
            (
                one.parser,
                f"{one.inputs:,}",
                one.seconds,
                f"{one.inputs / one.seconds:,.0f}",
                one.branches,
                one.verdict,
            )
            for one in results
        ]
        print_table(headings, rows)
    return ExitCode.DONE if all(one.verdict == "ok" for one in results) else ExitCode.FAILED


if __name__ == "__main__":
    sys.exit(main())
