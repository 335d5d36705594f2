"""The documentation as a site: its navigation has every page, and links out of docs/ survive."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import site_links

ROOT = Path(__file__).parent.parent


def render(markdown: str, root: Path, page: str = "a.md", repo_url: str | None = None) -> str:
    config = {"docs_dir": str(root / "docs"), "repo_url": repo_url}
    made = SimpleNamespace(file=SimpleNamespace(src_uri=page))
    return site_links.on_page_markdown(markdown, page=made, config=config)


def test_links_out_of_docs(tmp_path: Path) -> None:
    (tmp_path / "docs/deep").mkdir(parents=True)
    (tmp_path / "tools").mkdir()
    (tmp_path / "README.md").write_text("")
    (tmp_path / "docs/b.md").write_text("")
    assert render("[start](../README.md) [b](b.md)", tmp_path) == "start (`README.md`) [b](b.md)"
    assert render("[b](../b.md) [t](../../tools)", tmp_path, "deep/c.md") == (
        "[b](../b.md) t (`tools`)"
    )
    assert render("[`README.md`](../README.md)", tmp_path) == "`README.md`"
    assert render("[gone](../gone.md)", tmp_path) == "[gone](../gone.md)"  # strict says so
    linked = render("[start](../README.md#numbers)", tmp_path, repo_url="https://example.org/x/")
    assert linked == "[start](https://example.org/x/blob/main/README.md#numbers)"


def test_the_navigation_has_every_page() -> None:
    pages = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}
    listed = re.findall(r":\s+([\w/-]+\.md)\s*$", (ROOT / "mkdocs.yml").read_text(), re.M)
    assert sorted(pages) == sorted(listed)


def test_the_site_builds(tmp_path: Path) -> None:
    if importlib.util.find_spec("mkdocs") is None or importlib.util.find_spec("material") is None:
        pytest.skip("mkdocs-material is not installed: pip install '.[docs]'")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "<h1" in (tmp_path / "glossary/index.html").read_text()
