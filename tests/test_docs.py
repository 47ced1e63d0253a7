# SPDX-License-Identifier: BSD-3-Clause
"""Every Python block of the README and the docs runs, those of one page one after the other; links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path
from unittest.mock import patch

import pytest

import fastseg
from fastseg import nets, nn
from fastseg.methods.registry import METHODS
from tests.pages import PAGES, ROOT, TUTORIAL, blocks, each_page, name_of


@each_page
def test_languages_are_known(page: Path) -> None:
    """A block in a language that no test looks at would go unchecked."""
    fences = re.findall(r"^```(\S*)", page.read_text(), re.MULTILINE)
    assert set(fences) <= {"", "python", "sh", "bash", "yaml"}


@pytest.mark.parametrize("page", [page for page in PAGES if page != TUTORIAL], ids=name_of)
def test_python_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    with patch.dict(METHODS):  # a page may add a method
        for _, block in blocks(page, "python"):
            exec(compile(block, str(page), "exec", dont_inherit=True), names)


@each_page
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", page.read_text())
    missing = [link for link in links if not (page.parent / link).exists()]
    assert not missing


def test_all_that_is_public_is_in_the_reference() -> None:
    written = "".join(path.read_text() for path in (ROOT / "docs/api").glob("*.md"))
    for module in (fastseg, nn, nets):
        for name in set(module.__all__) - {"nn", "__version__"}:
            assert f"`{module.__name__}.{name}`" in written or f"::: {module.__name__}.{name}\n" in written, (
                name
            )
