"""What the documentation shows runs: every block of Python in it, page by page.

The blocks of a page share one namespace, as a reader types them in. An HTML comment
that starts with `<!-- python` is a block too, which the reader does not see.
"""

from __future__ import annotations

import re
from pathlib import Path

import jax
import matplotlib as mpl
import pytest

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [
    ROOT / "README.md",
    *sorted(DOCS.glob("*.md")),
    *sorted((DOCS / "frameworks").glob("*.md")),
]
BLOCK = re.compile(r"^(?:```python\n(.*?)^```|<!-- python\n(.*?)^-->)", re.M | re.S)
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[\w-]+)?\)")
SHELL = re.compile(r"^```sh\n(.*?)^```", re.M | re.S)


def blocks(page):
    """[(line, source)] of the page's blocks of Python."""
    text = page.read_text()
    return [
        (text[: match.start()].count("\n") + 2, match.group(1) or match.group(2))
        for match in BLOCK.finditer(text)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_block_of_python_runs(page, monkeypatch, tmp_path):
    if page.stem == "brax":
        pytest.importorskip("brax", reason="brax (with mujoco) is not among the extras")
    monkeypatch.chdir(tmp_path)
    namespace = {}
    with (
        jax.numpy_rank_promotion("allow"),
        jax.enable_x64(False),
        mpl.rc_context({"backend": "agg"}),
    ):
        for line, source in blocks(page):
            where = "\n" * (line - 1) + source  # so that a failure shows the line
            exec(compile(where, str(page), "exec"), namespace)


def test_blocks_are_found():
    """An unlabelled or misspelt fence would be skipped in silence."""
    assert len(blocks(ROOT / "docs" / "idea.md")) == 2
    for page in PAGES:
        fences = re.findall(r"^```(\S*)$", page.read_text(), re.M)
        assert set(fences) <= {"", "python", "sh", "toml"}, page
        opened = [fence for fence in fences if fence]
        assert fences.count("") >= len(opened), page


def test_links_lead_somewhere():
    for page in PAGES:
        for target in LINK.findall(page.read_text()):
            if not target.startswith("http"):
                there = (page.parent / target).resolve()
                assert there.exists(), f"{page}: {target}"
                # The site of the documentation holds nothing else.
                inside = there.is_relative_to(ROOT / "docs")
                assert inside or page.parent == ROOT, f"{page}: {target}"


def test_modules_that_shells_call_exist():
    for page in PAGES:
        for source in SHELL.findall(page.read_text()):
            for module in re.findall(r"python -m (benchmarks[\w.]*)", source):
                path = ROOT / module.replace(".", "/")
                assert path.is_dir() or path.with_suffix(".py").exists(), module
