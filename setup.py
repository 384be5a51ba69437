"""What pyproject.toml cannot say of a wheel and an sdist.

Two folders lie in the wheel elsewhere than in the tree (`configs/`, and `web/dist/`, which
`make web` builds), and README.md has links that lead nowhere away from the tree.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist
from setuptools.errors import SetupError

ROOT = Path(__file__).resolve().parent
PAGES = ROOT / "web" / "dist"
PACKED = {ROOT / "configs": "exporter/configs", PAGES: "clients/web/dist"}
"""Folder of the tree to that of the wheel. An editable install finds those of the tree."""

_CODE_OR_LINK = re.compile(
    r"^```.*?^```$|`[^`]+`"
    r"|(?P<picture>!?)\[(?P<text>[^\]]*)\]\((?P<target>(?![a-z]+:|#)[^)\s]+)\)",
    re.MULTILINE | re.DOTALL,
)


class BuildWithFolders(build_py):
    """Packs the folders that lie elsewhere."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        if not (PAGES / "index.html").is_file():
            self.warn("web/dist is not built (make web): no page of `demo` and `parity` is packed")
        for source, target in PACKED.items():
            packed = Path(self.build_lib, target)
            shutil.rmtree(packed, ignore_errors=True)  # of an older build
            if source.is_dir():
                # The compressed twins spare nothing on loopback, and are half of the wheel.
                shutil.copytree(source, packed, ignore=shutil.ignore_patterns("*.gz"))


class SdistWithPages(sdist):
    """Whoever builds from it shall need no Node.js."""

    def run(self) -> None:
        if not (PAGES / "index.html").is_file():
            raise SetupError(
                "web/dist is not built, and an sdist carries the pages: make web, which needs "
                "Node.js 20, or make dist, which does both"
            )
        super().run()


def write_for_an_index(readme: str, repository: str) -> str:
    """README.md as an index shows it: links are absolute, or text where no address is known."""

    def rewrite(found: re.Match[str]) -> str:
        picture, text, target = found["picture"], found["text"], found["target"]
        if target is None:
            return found[0]  # code stays as it is
        if repository:
            return f"{picture}[{text}]({repository}/{'raw' if picture else 'blob'}/HEAD/{target})"
        return f"*{text}*" if picture else text

    return _CODE_OR_LINK.sub(rewrite, readme)


def find_repository() -> str:
    """Where the repository can be read: as pyproject.toml says, else as git or an sdist knows it.

    The remote `origin` of a clone that has one on the web; "" where there is none.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    known = project["tool"]["plumbline"]["repository"]
    if not known and (ROOT / ".git").exists():
        asked = ["git", "-C", str(ROOT), "remote", "get-url", "origin"]
        known = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()
    elif not known and (ROOT / "PKG-INFO").is_file():
        lines = (ROOT / "PKG-INFO").read_text(encoding="utf-8")
        found = re.search(r"^Project-URL: Repository, (.+)$", lines, re.MULTILINE)
        known = found[1] if found else ""
    return make_web_address(known)


def make_web_address(remote: str) -> str:
    """https://HOST/OWNER/NAME of a remote of git; "" of a folder, and of what is none.

    Whatever stands before the host is left out: a token may.
    """
    found = re.fullmatch(
        r"(?:https?://(?:[^/@]*@)?|ssh://(?:[^/@]*@)?|[\w.-]+@)(?P<host>[\w.-]+\.[a-z]+)(?::\d+)?[:/]"
        r"(?P<path>[\w./-]+?)(?:\.git)?/?",
        remote,
    )
    return f"https://{found['host']}/{found['path']}" if found else ""


def list_urls(repository: str) -> dict[str, str]:
    """The links beside the text on an index."""
    if not repository:
        return {}
    return {
        "Repository": repository,
        "Documentation": f"{repository}/tree/HEAD/docs",
        "Changelog": f"{repository}/blob/HEAD/CHANGELOG.md",
        "Issues": f"{repository}/issues",
    }


if __name__ == "__main__":
    repository = find_repository()
    setup(
        cmdclass={"build_py": BuildWithFolders, "sdist": SdistWithPages},
        long_description=write_for_an_index(
            (ROOT / "README.md").read_text(encoding="utf-8"), repository
        ),
        long_description_content_type="text/markdown",
        project_urls=list_urls(repository),
    )
