# SPDX-License-Identifier: BSD-3-Clause
"""Pages written from the code: every key of a configuration, every command, every example."""

from __future__ import annotations

import ast
import re
import types
import typing
from pathlib import Path

import typer
import yaml
from pydantic_core import PydanticUndefined

from fastseg.cli import app
from fastseg.methods.config import config_type
from fastseg.methods.registry import METHODS
from fastseg.methods.template import TEMPLATE
from fastseg.train.section import Section

_LIKE_TRAIN = ("data.validation", "data.test", "data.target")


def configuration() -> str:
    """A table per section; meanings are the comments of what `fastseg init` writes."""
    meanings = _comments(TEMPLATE)
    tables = ["# Configuration", ""]
    tables += [
        "Every key of the YAML file, as `fastseg init` writes it; any can be overridden on the command line, as in",
        "`train.steps=500`. Unknown keys are refused with the nearest known one.",
    ]
    for name, section, chosen in _sections(config_type()):
        tables += ["", f"## {name or 'The run'}", ""]
        if meanings.get(name):
            tables += [_cell(meanings[name][0].upper() + meanings[name][1:]) + ".", ""]
        tables += ["| key | default | |", "|---|---|---|"]
        for key, field in section.model_fields.items():
            path = f"{name}.{key}".strip(".")
            if _section_of(field.annotation) is not None and path not in _LIKE_TRAIN:
                continue
            default = field.default if chosen is None else getattr(chosen, key)
            default = "required" if default is PydanticUndefined else f"`{_yaml(default)}`"
            meaning = meanings.get(path, "")
            if path in _LIKE_TRAIN:
                meaning = "; ".join(filter(None, ("entries as under data.train", meaning)))
            tables.append(f"| `{key}` | {default} | {_cell(meaning)} |")
    tables += ["", "## What a method changes", "", "| method | key | default |", "|---|---|---|"]
    for method in METHODS.values():
        rows = _flat(method.defaults, "")
        tables += [f"| `{method.name}` | `{key}` | `{_yaml(value)}` |" for key, value in rows]
    return "\n".join(tables) + "\n"


def _sections(section: type[Section], name: str = "", chosen: Section | None = None):
    """Dotted name, class, and the section that stands there by default, where there is one."""
    yield name, section, chosen
    for key, field in section.model_fields.items():
        inner = _section_of(field.annotation)
        if inner is not None and f"{name}.{key}" not in _LIKE_TRAIN:
            default = field.default if chosen is None else getattr(chosen, key)
            standing = default if isinstance(default, Section) else None
            yield from _sections(inner, f"{name}.{key}".strip("."), standing)


def _section_of(annotation) -> type[Section] | None:
    """The section that a field, a list of them, or one or nothing, holds."""
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return annotation if issubclass(annotation, Section) else None
    found = (_section_of(part) for part in typing.get_args(annotation))
    return next((part for part in found if part is not None), None)


def _comments(template: str) -> dict[str, str]:
    """By dotted key, the comment behind it and what goes on in the lines below."""
    found: dict[str, str] = {}
    above: list[tuple[int, str]] = []
    for line in template.splitlines()[1:]:
        goes_on = re.match(r"\s{20,}# (.*)$", line)
        entry = re.match(r"(\s*(?:- )?(?:# )?)(\w+):(?:.*?\s#\s+(.*))?", line)
        if goes_on and above:
            found[".".join(key for _, key in above)] += " " + goes_on[1]
        elif entry:
            depth = len(entry[1].replace("# ", ""))  # keys that are left out stand there as comments
            above = [*((d, key) for d, key in above if d < depth), (depth, entry[2])]
            found[".".join(key for _, key in above)] = entry[3] or ""
    return found


def _flat(values, prefix: str):
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _yaml(value) -> str:
    if isinstance(value, Section):
        value = value.model_dump()
    return yaml.safe_dump(_plain(value), default_flow_style=True, width=1000).removesuffix("...\n").strip()


def _plain(value):
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def command_line() -> str:
    """Every command with its arguments, as --help prints them."""
    lines = ["# Command line", ""]
    lines += [
        "`fastseg COMMAND --help` says the same. Exit codes: 0 done; 1 a bug of fastseg; 2 a mistake, which"
    ]
    lines += [
        "the message names; 75 stopped by a signal after a checkpoint; 130 Ctrl-C; see [reliability](reliability.md).",
        "",
    ]
    for name, command in typer.main.get_command(app).commands.items():
        lines += [f"## fastseg {name}", "", " ".join(command.help.split()), ""]
        if command.params:
            lines += ["| | |", "|---|---|"]
        for parameter in command.params:
            argument = parameter.param_type_name == "argument"
            shown = (parameter.metavar or parameter.name.upper()) if argument else parameter.opts[-1]
            default = parameter.default
            said = "" if default in (None, False) or callable(default) else f" Default: `{default}`."
            lines.append(f"| `{_cell(shown)}` | {_cell(parameter.help or '')}{said} |")
        lines.append("")
    return "\n".join(lines)


def examples(folder: Path) -> str:
    """Every script of `folder`, with what its docstring says."""
    parts = [
        "# Examples\n",
        "The ops in other people's code: the scripts of the folder `examples`, each of which the tests run.\n",
    ]
    for path in sorted(folder.glob("*.py")):
        source = path.read_text()
        said = ast.get_docstring(ast.parse(source))
        if "torchrun" not in said:
            said += f"\n\n    python examples/{path.name}"
        body = source.split('"""', 2)[2].strip()
        parts.append(f"## {path.stem}\n\n{said}\n\n```python\n{body}\n```\n")
    return "\n".join(parts)
