# SPDX-License-Identifier: BSD-3-Clause
"""Pages of the site that are made of something else, and links that fit both the site and the repository.

Links are written as the repository wants them. What leads out of docs/ is turned to the page that the site has of it.
"""

from __future__ import annotations

import posixpath
import re
import sys
from pathlib import Path

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

sys.path.insert(0, str(Path(__file__).parent))
from pages import command_line, configuration, examples

ROOT = Path(__file__).parents[2]

# The site's page of a file outside docs/.
TAKEN = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
TAKEN |= {
    path: path for path in (f"benchmarks/results/{p.name}" for p in ROOT.glob("benchmarks/results/*.md"))
}
GENERATED = {
    "configuration.md": configuration,
    "command_line.md": command_line,
    "examples.md": lambda: examples(ROOT / "examples"),
}

_LINK = re.compile(r"(\]\()([^)#:\s]+)((?:#[^)\s]*)?\))")


def on_files(files, config):
    for path, page in TAKEN.items():
        files.append(File.generated(config, page, content=(ROOT / path).read_text()))
    style = (Path(__file__).parent / "site.css").read_text()
    files.append(File.generated(config, "site.css", content=style))
    for page, write in GENERATED.items():
        files.append(File.generated(config, page, content=write()))
    return files


def on_page_markdown(markdown, page, config, files):
    source = next((path for path, name in TAKEN.items() if name == page.file.src_uri), None)
    source = source or f"docs/{page.file.src_uri}"

    def turned(link):
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), link[2]))
        to = _on_site(target)
        if to is None:
            return link[0]
        return link[1] + posixpath.relpath(to, posixpath.dirname(page.file.src_uri) or ".") + link[3]

    return _LINK.sub(turned, markdown)


def on_post_page(output, page, config):
    """Nothing that a reader's browser loads comes from another host."""
    loaded = re.search(
        r'<(?:script|img|iframe)[^>]*src="https?:|<link[^>]*rel="stylesheet"[^>]*href="https?:', output
    )
    if loaded:
        raise PluginError(f"{page.file.src_uri} loads from elsewhere: {loaded[0]}")
    return output.replace("::</p>", ":</p>")  # what announces a formula in docstrings


def _on_site(path: str) -> str | None:
    """Where the site has a file of the repository."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if path in TAKEN:
        return TAKEN[path]
    if path == "examples" or path.startswith("examples/"):
        return "examples.md"
    return None
