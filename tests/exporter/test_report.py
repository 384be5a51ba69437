"""Reports: what they say of each task, what hostile names do not do, and that they are the same."""

from __future__ import annotations

import functools
import html.parser
import itertools
import json
import math
import re
import shlex
import subprocess
import sys
import xml.etree.ElementTree
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeAlias

import msgspec
import numpy as np
import pytest

from contract import layout
from contract.errors import ConfigError, ManifestError
from contract.golden import GoldenExamples
from contract.heads import Head
from contract.manifest import DataEntry, hash_files, read_manifest, write_manifest
from contract.shadow import ShadowRow, write_shadow_rows
from contract.signature import Signature, TensorSpec
from exporter.report.compare import compare_versions
from exporter.report.evaluation import Evaluation, read_evaluation
from exporter.report.facts import read_facts
from exporter.report.page import draw_static, render
from exporter.report.snippets import write_snippet
from exporter.report.verb import find_version, make_comparison, make_report
from exporter.verification.measurement import Measurement, WorstRow
from tests.exporter import report_versions as made
from tests.exporter.report_versions import MAKERS, ROWS, make_version

ROOT = Path(__file__).resolve().parents[2]
HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "$\\frac{1}{2}$ & </text></svg>",
    "line\nbreak\x00\u202e",
    "很长的名字" * 60,
    "{{ 7 * 7 }}",
    "",
    "'; DROP TABLE",
    "normal",
    "ß" * 300,
)


class Page(html.parser.HTMLParser):
    """The elements, ids and texts of a page, and what is wrong with its nesting."""

    VOID = frozenset({"meta", "link", "img", "br", "path", "use"})

    def __init__(self, content: bytes) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self._open: list[str] = []
        self.unclosed: list[str] = []
        self.feed(content.decode())
        self.unclosed += self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag in self.VOID:
            return
        if not self._open or self._open.pop() != tag:
            self.unclosed.append(tag)

    def handle_data(self, data: str) -> None:
        if not self._open or self._open[-1] != "style":
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def render_page(version: Path) -> bytes:
    return render(read_facts(version))


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, bytes]]:
    """Task to a version of it, which nobody changes, and its page."""
    folder = tmp_path_factory.mktemp("versions")

    @functools.cache
    def find(task: str) -> tuple[Path, bytes]:
        version = MAKERS[task](folder / task / "1")
        return version, render_page(version)

    return find


Versions: TypeAlias = Callable[[str], tuple[Path, bytes]]


@pytest.mark.parametrize("task", MAKERS)
def test_a_version_of_every_task_has_a_page_of_sound_html(versions: Versions, task: str) -> None:
    page = Page(versions(task)[1])
    assert not page.unclosed
    ids = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert "nan" not in page.text.lower().split()
    assert "None" not in page.text


@pytest.mark.parametrize("task", MAKERS)
def test_every_picture_can_be_read_aloud_and_every_table_has_scopes(
    versions: Versions, task: str
) -> None:
    page = Page(versions(task)[1])
    for tag, attrs in page.elements:
        if tag == "svg":
            assert attrs["role"] == "img"
            assert attrs["aria-labelledby"]
        if tag == "img":
            assert "alt" in attrs
        if tag == "th":
            assert attrs["scope"] in ("col", "row")
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))


@pytest.mark.parametrize("task", MAKERS)
def test_nothing_of_a_page_comes_from_elsewhere(versions: Versions, task: str) -> None:
    page = Page(versions(task)[1])
    for tag, attrs in page.elements:
        assert tag not in ("script", "iframe", "object", "embed", "base", "form")
        for name in ("src", "href", "xlink:href", "style"):
            value = attrs.get(name) or ""
            assert "//" not in value or value.startswith("data:")
            assert (
                not name.endswith(("src", "href"))
                or value[:1] in ("#", "")
                or (value.startswith("data:"))
            )


@pytest.mark.parametrize("task", MAKERS)
def test_the_same_version_gives_the_same_bytes(versions: Versions, task: str) -> None:
    version, page = versions(task)
    facts = read_facts(version)
    with ThreadPoolExecutor(1) as thread:  # as an export draws it
        drawn = thread.submit(draw_static, facts).result()
    assert render(facts, drawn) == page
    code = (
        "import sys; from pathlib import Path; from exporter.report.facts import read_facts; "
        "from exporter.report.page import render; "
        "sys.stdout.buffer.write(render(read_facts(Path(sys.argv[1]))))"
    )
    if task == "several heads":  # another process, with other hashes of its strings
        done = subprocess.run(
            [sys.executable, "-c", code, str(version)], cwd=ROOT, capture_output=True, check=True
        )
        assert done.stdout == page


@pytest.mark.parametrize("maker", [made.make_digits, made.make_binary], ids=["digits", "binary"])
def test_hostile_names_stay_text(tmp_path: Path, maker: object) -> None:
    assert callable(maker)
    names = HOSTILE if maker is made.make_digits else HOSTILE[:2]
    version = maker(tmp_path / "1", names=names)
    manifest = read_manifest(version)
    data = msgspec.structs.replace(manifest.data, name=HOSTILE[0], columns=HOSTILE[:4])
    changed = msgspec.structs.replace(
        manifest, model_name=HOSTILE[1], data=data, config={"training": {HOSTILE[0]: HOSTILE[1]}}
    )
    write_manifest(version, changed)
    content = render_page(version)
    page = Page(content)
    assert not page.unclosed
    assert not {"script", "text/svg"} & {tag for tag, _ in page.elements}
    assert not any("onerror" in attrs for _, attrs in page.elements)
    assert "49" not in {text.strip() for text in page.texts}
    assert max(map(len, page.text.split())) < 700
    for svg in re.findall(rb"<svg.*?</svg>", content, re.DOTALL):
        xml.etree.ElementTree.fromstring(svg)


def test_a_thousand_classes_are_capped_and_said_so(tmp_path: Path) -> None:
    version = made.make_many_classes(tmp_path / "1", 1000)
    content = render_page(version)
    assert len(content) < 200_000
    assert (version / layout.EVALUATION).stat().st_size < 300_000
    text = Page(content).text
    assert "60 of 1,000 are listed, those with the lowest F1" in text
    assert "A matrix of 1,000 classes cannot be read" in text


def test_the_digits_report_is_small(tmp_path: Path) -> None:
    assert len(render_page(made.make_digits(tmp_path / "1"))) < 1_500_000


@pytest.mark.parametrize(
    ("task", "sentence"),
    [
        ("binary", "The model was trained elsewhere, so there are no training curves."),
        ("embedding", "An embedding means something only beside another"),
        ("unlabelled", "Nobody said what the right answers are, so there is no accuracy"),
        ("several heads", "This page shows 4 outputs in full"),
    ],
)
def test_what_is_absent_is_said_in_a_sentence(versions: Versions, task: str, sentence: str) -> None:
    assert sentence in Page(versions(task)[1]).text


@pytest.mark.parametrize(
    ("task", "figures"),
    [
        ("digits", ["when kept", "rows are right", "Confidence is off by"]),
        ("binary", ["rows are right", "Confidence is off by"]),
        ("regression", ["Answers against truth: RMSE", "Residuals:"]),
        ("labels", ["Confidence is off by"]),
        ("masks", ["places are right", "Confidence is off by"]),
    ],
)
def test_each_task_has_its_figures(versions: Versions, task: str, figures: list[str]) -> None:
    content = versions(task)[1].decode()
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", content, re.DOTALL)
    for wanted in figures:
        assert any(wanted in caption for caption in captions), (wanted, captions)


def test_dummy_data_is_said_at_the_top(tmp_path: Path) -> None:
    version = made.make_digits(tmp_path / "1")
    manifest = read_manifest(version)
    data = msgspec.structs.replace(manifest.data, dummy=True)
    write_manifest(version, msgspec.structs.replace(manifest, data=data))
    text = Page(render_page(version)).text
    assert "Dummy data" in text[:120]


def test_a_copy_that_was_left_out_has_its_reasons(tmp_path: Path) -> None:
    text = Page(render_page(made.make_binary(tmp_path / "1"))).text
    assert "int8: left out" in text
    assert "Because of <b>reasons</b>." in text  # as text, not as an element
    assert "6.0e-07 in golden 3 of serving_default" in text


def test_why_a_model_of_texts_has_no_copies_is_said(tmp_path: Path) -> None:
    version = made.make_labels(tmp_path / "1")
    manifest = read_manifest(version)
    parity = {name: manifest.parity[name] for name in ("in_process", "saved_model")}
    write_manifest(version, msgspec.structs.replace(manifest, parity=parity))
    assert (
        "There are no TFLite copies: every signature takes strings"
        in Page(render_page(version)).text
    )


def test_a_version_from_before_there_were_reports_has_what_golden_allows(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(ROWS, 4)).astype(np.float32)
    version = make_version(
        tmp_path / "1",
        heads={},
        inputs={"features": rows},
        answers={"y": made.make_scores(np.arange(ROWS) % 3, 3)},
        data=DataEntry(name="old", fingerprint="", class_names=("a", "b", "c")),
        keeps_evaluation=False,
    )
    text = Page(render_page(version)).text
    assert "The twelve golden examples that it is least sure of" in text
    assert "made before versions kept what a report needs" in text


def test_evaluation_counts_what_is_counted_by_hand(tmp_path: Path) -> None:
    version = make_version(
        tmp_path / "1",
        heads={"y": Head(task="multiclass", class_names=("a", "b"))},
        inputs={"features": np.zeros((4, 1), np.float32)},
        answers={"y": np.array([[0.95, 0.05], [0.85, 0.15], [0.25, 0.75], [0.65, 0.35]])},
        targets={"y": np.array([0, 1, 1, 0])},
    )
    found = read_evaluation(version)
    assert found is not None
    head = found.heads["y"]
    a, b = head.classes
    assert (a.num_rows, a.num_answered, a.num_right) == (2, 3, 2)
    assert (b.precision, b.recall, b.f1) == (1.0, 0.5, pytest.approx(2 / 3))
    assert [(one.truth, one.answer, one.count) for one in head.confusions] == [(1, 0, 1)]
    assert head.worst[0].row == 1
    assert head.worst[0].is_right is False
    # Four bins of one row each, whose gaps are 0.05, 0.85, 0.25 and 0.35.
    assert head.calibration is not None
    assert head.calibration.error == pytest.approx(0.375)


def test_an_evaluation_that_is_none_is_refused_in_a_sentence(tmp_path: Path) -> None:
    version = made.make_digits(tmp_path / "1")
    (version / layout.EVALUATION).write_text('{"heads": 3}')
    with pytest.raises(ManifestError, match="not the evaluation of a version"):
        read_facts(version)


def test_scores_that_are_no_numbers_have_a_report(tmp_path: Path) -> None:
    answers = made.make_scores(np.arange(ROWS) % 3, 3)
    answers[5] = np.nan
    answers[6] = np.inf
    version = make_version(
        tmp_path / "1",
        heads={"y": Head(task="multiclass")},
        inputs={"features": np.full((ROWS, 2), np.nan, np.float32)},
        answers={"y": answers},
        targets={"y": np.arange(ROWS) % 3},
    )
    text = Page(render_page(version)).text
    assert "the scores are no numbers" in text


def test_values_and_differences_that_are_no_numbers_are_read_again(tmp_path: Path) -> None:
    truth = np.arange(ROWS, dtype=np.float32)[:, None]
    answers = truth.copy()
    truth[3], answers[4] = np.nan, np.inf
    worst = WorstRow(signature_name="serving_default", output="y", row=4, difference=math.inf)
    version = make_version(
        tmp_path / "1",
        heads={"y": Head(task="regression")},
        inputs={"features": truth},
        answers={"y": answers},
        targets={"y": truth},
        parity=[
            Measurement(name=layout.FLOAT32, max_abs_difference=math.inf, worst_row=worst),
        ],
    )
    text = Page(render_page(version)).text
    assert "not a number in golden 4" in text
    assert compare_versions(version, version).num_changed == 0


def test_a_run_of_one_epoch_with_metrics_that_were_not_told_has_curves(tmp_path: Path) -> None:
    version = made.make_digits(tmp_path / "1")
    training = made.make_training(1, val_accuracy=(None,))
    manifest = msgspec.structs.replace(read_manifest(version), training=training)
    write_manifest(version, manifest)
    assert "epoch 1 kept" in render_page(version).decode()


def test_report_finds_the_newest_version_of_a_base_path(tmp_path: Path) -> None:
    for number in ("1", "10", "9"):
        made.make_embedding(tmp_path / number)
    assert find_version(tmp_path) == tmp_path / "10"


def test_report_never_writes_into_a_version(tmp_path: Path) -> None:
    version = made.make_binary(tmp_path / "1")
    before = hash_files(version)
    with pytest.raises(ConfigError, match="a published version never changes"):
        make_report(version, out=version / "assets.extra" / "report.html")
    found = make_report(version)
    assert found.is_made_now
    assert version not in found.report.parents
    assert hash_files(version) == before


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: path / "nowhere", "is no folder that exists"),
        (lambda path: path, "is no version directory and has no version below"),
    ],
    ids=["nothing", "an empty folder"],
)
def test_bad_paths_are_a_sentence(tmp_path: Path, make: object, said: str) -> None:
    assert callable(make)
    with pytest.raises(ConfigError, match=said):
        make_report(make(tmp_path))


def test_two_versions_say_which_rows_changed(tmp_path: Path) -> None:
    first = made.make_digits(tmp_path / "1", seed=0)
    second = made.make_digits(tmp_path / "2", seed=5)
    found = compare_versions(first, second)
    assert found.num_rows == made.GOLDEN
    answers = [read_facts(one).golden.signatures["serving_default"] for one in (first, second)]  # type: ignore[union-attr]
    changed = answers[0].outputs["y"].argmax(1) != answers[1].outputs["y"].argmax(1)
    assert found.num_changed == int(changed.sum())
    labels = np.arange(made.GOLDEN) % 10
    right = [one.outputs["y"].argmax(1) == labels for one in answers]
    assert found.num_better == int((right[1] & ~right[0]).sum())
    assert found.num_worse == int((right[0] & ~right[1]).sum())
    assert all(row.inputs[0].kind == "picture" for row in found.rows)
    page = Page(_render_comparison(first, second, tmp_path))
    assert not page.unclosed
    assert {row.f1.verdict for row in found.classes} <= {"better", "worse"}


def test_rows_that_a_shadow_kept_stand_for_golden_examples(tmp_path: Path) -> None:
    first = made.make_digits(tmp_path / "1", seed=0)
    second = made.make_digits(tmp_path / "2", seed=5)
    golden = [read_facts(one).golden.signatures["serving_default"] for one in (first, second)]  # type: ignore[union-attr]
    before, after = (one.outputs["y"] for one in golden)
    at = int(np.flatnonzero(before.argmax(1) != after.argmax(1))[0])
    inputs = {name: array[at : at + 1] for name, array in golden[0].inputs.items()}
    answers = {"y": before[at : at + 1]}, {"y": after[at : at + 1]}
    path = tmp_path / "rows.npz"
    write_shadow_rows(path, [ShadowRow("serving_default", inputs, *answers, 0.5, True)])
    found = compare_versions(first, second, shadow=path)
    assert (found.num_rows, found.num_changed) == (1, 1)
    assert found.rows[0].before != found.rows[0].after and "rows.npz" in found.asked
    with pytest.raises(ManifestError, match="promote --shadow_s"):
        compare_versions(first, second, shadow=first / layout.GOLDEN)


def _render_comparison(first: Path, second: Path, folder: Path) -> bytes:
    done = make_comparison(first, second, out=folder / "page.html")
    assert done.report is not None
    return done.report.read_bytes()


def test_a_version_is_not_shown_beside_itself(tmp_path: Path) -> None:
    version = make_version(
        tmp_path / "model" / "1",
        heads={"y": Head(task="regression")},
        inputs={"features": np.zeros((ROWS, 2), np.float32)},
        answers={"y": np.zeros((ROWS, 1), np.float32)},
        targets={"y": np.zeros((ROWS, 1), np.float32)},
    )
    with pytest.raises(ConfigError, match=r"are the same version, .*; give the folders of two"):
        make_comparison(version.parent, version)


@pytest.mark.parametrize("task", MAKERS)
def test_a_version_beside_itself_changes_nothing(versions: Versions, task: str) -> None:
    version, _ = versions(task)
    found = compare_versions(version, version)
    assert found.num_changed == 0
    assert not found.settings
    assert {one.verdict for one in found.metrics} <= {"same"}


def test_versions_without_a_common_signature_are_a_sentence(tmp_path: Path) -> None:
    first, second = made.make_digits(tmp_path / "1"), made.make_binary(tmp_path / "2")
    with pytest.raises(ConfigError, match="no signature in common"):
        compare_versions(first, second)


def test_other_golden_examples_are_asked_of_both(published_mlp: Path, tmp_path: Path) -> None:
    import shutil

    from contract.golden import Golden, read_golden, write_golden

    first = published_mlp / "mlp" / "1"
    second = tmp_path / "2"
    shutil.copytree(first, second)
    golden = read_golden(second / layout.GOLDEN).signatures
    rows = np.arange(32, 64)
    fewer = {
        name: GoldenExamples(
            {key: array[rows] for key, array in one.inputs.items()},
            {key: array[rows] for key, array in one.outputs.items()},
            (len(rows),),
        )
        for name, one in golden.items()
    }
    write_golden(second / layout.GOLDEN, Golden(fewer))
    manifest = read_manifest(second)
    write_manifest(second, msgspec.structs.replace(manifest, files=hash_files(second)))
    found = compare_versions(first, second)
    assert "float32 TFLite copy" in found.asked
    assert found.num_rows == 64  # the union: the second's are among the first's
    assert found.num_changed == 0


def test_the_command_says_where_the_report_is_without_tensorflow(tmp_path: Path) -> None:
    version = made.make_digits(tmp_path / "1")
    code = (
        "import sys; from exporter.cli import main; "
        "status = main(sys.argv[1:]); assert 'tensorflow' not in sys.modules; sys.exit(status)"
    )
    out = tmp_path / "there" / "page.html"
    done = subprocess.run(
        [sys.executable, "-c", code, "report", str(version), "--out", str(out), "--json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["report"] == str(out)
    assert out.read_bytes() == render_page(version)


def test_lines_of_a_signature_can_be_pasted(tmp_path: Path) -> None:
    signature = Signature(
        "it's",
        {
            'a "b"': TensorSpec('a "b"', "float32", (None, 2)),
            "flag": TensorSpec("flag", "bool", (None,)),
            "text": TensorSpec("text", "string", (None,)),
            "picture": TensorSpec("picture", "uint8", (None, 64, 64)),
        },
        {"y": TensorSpec("y", "float32", (None, 1))},
    )
    texts = np.array([b"it's"], object)
    inputs = {
        'a "b"': np.array([[0.1, 2.0]], np.float32),
        "flag": np.array([True]),
        "text": texts,
        "picture": np.ones((1, 64, 64), np.uint8),
    }
    examples = GoldenExamples(inputs, {"y": np.zeros((1, 1), np.float32)}, (1,))
    snippet = write_snippet("a model", signature, examples)
    assert snippet.is_made_up
    compile(snippet.python, "python", "exec")
    words = shlex.split(snippet.curl)
    body = json.loads(
        subprocess.run(
            [sys.executable, *words[1 : words.index("|")]], capture_output=True, check=True
        ).stdout
    )
    assert body["signature_name"] == "it's"
    assert body["inputs"]['a "b"'] == [[0.1, 2.0]]
    assert body["inputs"]["flag"] == [True]
    assert np.shape(body["inputs"]["picture"]) == (1, 64, 64)
    assert words[-1] == "http://localhost:8501/v1/models/a%20model:predict"


def test_evaluations_of_an_older_schema_are_read(tmp_path: Path) -> None:
    old = msgspec.json.encode({"num_rows": 3, "heads": {}, "num_heads": 0})
    path = tmp_path / layout.EVALUATION
    path.parent.mkdir(parents=True)
    path.write_bytes(old)
    assert read_evaluation(tmp_path) == Evaluation(num_rows=3, heads={}, num_heads=0)


def test_drawing_opens_no_window() -> None:
    """matplotlib is only ever used through figures of our own: no window, no global figure."""
    code = (
        "import sys, contract.console.plots, exporter.report.figures; "
        "sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
