"""README.md as an index shows it, where no file of the tree is beside it."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
REPOSITORY = "https://example.org/someone/plumbline"


@pytest.fixture(scope="module")
def write_for_an_index() -> Callable[[str, str], str]:
    """Of setup.py."""
    write: Callable[[str, str], str] = runpy.run_path(str(ROOT / "setup.py"))["write_for_an_index"]
    return write


def parse(text: str) -> list[Token]:
    """The blocks of a text and what is within, in one row."""
    blocks = MarkdownIt("commonmark").enable("table").parse(text)
    return [token for block in blocks for token in [block, *(block.children or [])]]


def list_targets(text: str) -> list[str]:
    """Where links and pictures lead."""
    found = [token.attrGet("href") or token.attrGet("src") for token in parse(text)]
    return [str(target) for target in found if target]


def list_code(text: str) -> list[str]:
    return [token.content for token in parse(text) if token.type in ("fence", "code_inline")]


def test_every_link_of_the_readme_leads_somewhere() -> None:
    relative = [one for one in list_targets(README) if "://" not in one and one[0] != "#"]
    assert relative
    assert [one for one in relative if not (ROOT / one.partition("#")[0]).exists()] == []


def test_with_an_address_every_link_is_absolute(
    write_for_an_index: Callable[[str, str], str],
) -> None:
    given, written = list_targets(README), list_targets(write_for_an_index(README, REPOSITORY))
    assert len(written) == len(given)
    assert all("://" in one or one.startswith("#") for one in written)
    assert f"{REPOSITORY}/blob/HEAD/docs/architecture.md" in written
    assert f"{REPOSITORY}/raw/HEAD/docs/pictures/page.webp" in written


def test_without_an_address_no_link_leads_nowhere(
    write_for_an_index: Callable[[str, str], str],
) -> None:
    written = write_for_an_index(README, "")
    assert all("://" in one or one.startswith("#") for one in list_targets(written))
    assert "docs/architecture.md" in written  # its text


@pytest.mark.parametrize("repository", ["", REPOSITORY])
def test_code_stays_as_it_is(
    repository: str, write_for_an_index: Callable[[str, str], str]
) -> None:
    text = "`a[0](b)`\n\n```python\nrows[0](docs/x.md)\n```\n\n[a](docs/x.md) and `x[i](j)`\n"
    for one in (README, text):
        assert list_code(write_for_an_index(one, repository)) == list_code(one)


@pytest.mark.parametrize(
    ("remote", "address"),
    [
        ("git@host.example:owner/name.git", "https://host.example/owner/name"),
        ("https://host.example/owner/name.git", "https://host.example/owner/name"),
        ("https://user:secret@host.example/owner/name", "https://host.example/owner/name"),
        (
            "ssh://git@host.example:2222/group/owner/name.git",
            "https://host.example/group/owner/name",
        ),
        ("/home/me/name", ""),
        ("file:///home/me/name", ""),
        ("../name", ""),
        ("", ""),
    ],
)
def test_a_remote_on_the_web_is_where_the_project_is_read(remote: str, address: str) -> None:
    make: Callable[[str], str] = runpy.run_path(str(ROOT / "setup.py"))["make_web_address"]
    assert make(remote) == address
