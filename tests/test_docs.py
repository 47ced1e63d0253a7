# SPDX-License-Identifier: BSD-3-Clause
"""Every code block of the README and the docs holds.

Python blocks run, those of one page one after the other. The tutorial runs whole, commands included, as a reader would
follow it. YAML blocks are valid configurations. Commands elsewhere name data, clusters or hours that tests do not have:
they are parsed, so that no command, option, key or file of the repository is named that is not there.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
import yaml

from fastseg.cli import app
from fastseg.train.config import METHOD_SECTIONS
from fastseg.train.config_file import load_config, parse_config
from tests.project import fastseg

ROOT = Path(__file__).parents[1]
TUTORIAL = ROOT / "docs/tutorial.md"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def blocks(page: Path, *languages: str) -> Iterator[tuple[str, str]]:
    """(language, text) of the fenced blocks of a page."""
    for language, text in re.findall(r"^```(\w+)\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
        if language in languages:
            yield language, text


def commands(text: str) -> Iterator[list[str]]:
    """The words of each simple command of a shell block, without comments and continued lines joined."""
    for line in text.replace("\\\n", " ").splitlines():
        try:
            words = shlex.split(line, comments=True)
        except ValueError:  # a quote that goes on in the next line
            words = line.split()
        while words and re.fullmatch(r"(exec|\w+=\S*)", words[0]):
            words = words[1:]
        if words:
            yield words


@each_page
def test_languages_are_known(page: Path) -> None:
    """A block in a language that no test looks at would go unchecked."""
    fences = re.findall(r"^```(\S*)", page.read_text(), re.MULTILINE)
    assert set(fences) <= {"", "python", "sh", "bash", "yaml"}


@pytest.mark.parametrize(
    "page", [p for p in PAGES if p != TUTORIAL], ids=lambda page: str(page.relative_to(ROOT))
)
def test_python_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for _, block in blocks(page, "python"):
        exec(compile(block, str(page), "exec"), names)


def test_the_tutorial_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Block by block; a YAML block is saved under the name in its first line."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for language, block in blocks(TUTORIAL, "python", "yaml", "sh"):
        if language == "python":
            exec(compile(block, str(TUTORIAL), "exec"), names)
        elif language == "yaml":
            Path(block.splitlines()[0].removeprefix("# ")).write_text(block)
        else:
            for words in commands(block):
                assert words[0] == "fastseg", "the tutorial's commands are fastseg's, which every system has"
                done = fastseg(*words[1:])
                assert done.returncode == 0, f"{shlex.join(words)}: {done.stderr}"
    assert names["volume"].voxel_size == (2.0, 1.0, 1.0)
    assert names["dice"] > 0.7
    assert names["objects"].max() > 1


@each_page
def test_yaml_blocks_are_configurations(page: Path) -> None:
    """What a block leaves out, as it shows what the page is about, is filled in."""
    for _, block in blocks(page, "yaml"):
        values = yaml.safe_load(block)
        values.setdefault("output", "run")
        if page.stem in METHOD_SECTIONS:
            values.setdefault("method", page.stem)
        data = values.setdefault("data", {})
        data.setdefault("train", [{"raw": "brain.h5:/raw"}])
        data.setdefault("patch", [32, 64, 64])
        parse_config(values, str(page.relative_to(ROOT)))


@each_page
def test_commands_exist(page: Path) -> None:
    targets = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1].split()
    for _, block in blocks(page, "sh", "bash"):
        for words in commands(block):
            if "fastseg.cli" in words:  # python -m fastseg.cli, torchrun -m fastseg.cli
                words = ["fastseg", *words[words.index("fastseg.cli") + 1 :]]
            if words[0] == "make":
                assert {word for word in words[1:] if "=" not in word} <= {*targets}, words
            if words[0] in ("python", "pytest", "python3"):
                scripts = [w for w in words[1:] if w.endswith(".py") or w in ("benchmarks", "tests")]
                missing = [name for name in scripts if not (ROOT / name).exists()]
                assert not missing, words
            if words[0] == "fastseg":
                check_command(words[1:])


def check_command(words: list[str]) -> None:
    """That the command line takes these words; of a configuration in the repository also the overrides."""
    command = typer.main.get_command(app).commands[words[0]]
    context = command.make_context(words[0], [word.rstrip("'") for word in words[1:]])
    config = context.params.get("config")
    if config is not None and str(config).startswith("configs/"):
        load_config(ROOT / config, context.params["overrides"] or [])


@each_page
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", page.read_text())
    missing = [link for link in links if not (page.parent / link).exists()]
    assert not missing


def test_all_that_is_public_is_in_the_reference() -> None:
    import fastseg as package
    from fastseg import nets, nn

    written = "".join(path.read_text() for path in (ROOT / "docs/api").glob("*.md"))
    for module in (package, nn, nets):
        for name in set(module.__all__) - {"nn", "__version__"}:
            assert f"`{module.__name__}.{name}`" in written or f"::: {module.__name__}.{name}\n" in written, (
                name
            )
