# SPDX-License-Identifier: BSD-3-Clause
"""The tutorial runs whole, as a reader would follow it, and configurations and commands on all other pages are valid.

Those commands name data, clusters or hours that tests do not have: they are parsed instead, so that no command, option,
key or file of the repository is named that is not there.
"""

from __future__ import annotations

import re
import runpy
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
import yaml

from fastseg.cli import app
from fastseg.methods.config import config_type
from fastseg.methods.config_file import load_config, parse_config
from fastseg.methods.registry import METHODS
from tests.pages import ROOT, TUTORIAL, blocks, each_page, name_of
from tests.project import fastseg


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


@pytest.mark.long
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
        if page.stem in METHODS:
            values.setdefault("method", page.stem)
        data = values.setdefault("data", {})
        data.setdefault("train", [{"raw": "brain.h5:/raw"}])
        data.setdefault("patch", [32, 64, 64])
        parse_config(values, name_of(page))


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


def test_the_site_has_every_key_and_command() -> None:
    """The pages made from code, and the comments of the template in their place."""
    pages = runpy.run_path(str(ROOT / "docs/_site/pages.py"))
    configuration, command_line = pages["configuration"](), pages["command_line"]()
    for name, section, _ in pages["_sections"](config_type()):
        part = configuration.partition(f"\n## {name or 'The run'}\n")[2].partition("\n## ")[0]
        for key, field in section.model_fields.items():
            if pages["_section_of"](field.annotation) is None:
                assert f"\n| `{key}` | " in part, f"{name}.{key}"
    for row in (
        "| `patch` | required | z, y, x for a 3D network; [256, 256] makes it a 2D one |",
        "| `mask` | `null` | per voxel 0 ignored, 1 labelled, 2 pseudo-labelled |",
        "| `kind` | `sliding_cnn` |",  # the default of sparse_2d3d.network, not that of network
        "that of patch_contrast; attention_unet: that of domain_adaptation, for slices |",
        "| `patch_contrast` | `train.batch` | `10` |",
    ):
        assert row in configuration, row
    for name in typer.main.get_command(app).commands:
        assert f"\n## fastseg {name}\n" in command_line
    assert "| `--resume` | Go on from the newest checkpoint. |" in command_line
