# SPDX-License-Identifier: BSD-3-Clause
"""A configuration's file: one YAML, checked whole before anything starts, with dotted overrides."""

from __future__ import annotations

import copy
import difflib
import os
from collections.abc import Sequence
from typing import Any

import yaml
from pydantic import ValidationError

from fastseg.errors import InputError
from fastseg.methods.config import config_type
from fastseg.train.config import Config
from fastseg.train.section import Section


def load_config(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Config:
    """Read ``path``, apply overrides such as ``train.steps=100``, check all. InputError names the key."""
    path = os.fspath(path)
    try:
        with open(path, encoding="utf-8") as file:
            values = yaml.safe_load(file)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except Exception as error:  # dates, numbers and the like fail in their own ways
        raise InputError(f"{path} is no readable YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise InputError(f"{path} must hold keys and values, got {type(values).__name__}")
    config = parse_config(apply_overrides(values, overrides), path)
    root = config.data.root if config.data.root is not None else os.path.dirname(path) or "."
    data = config.data.model_copy(update={"root": os.path.abspath(os.path.expanduser(root))})
    return config.model_copy(update={"data": data})


def parse_config(values: dict[str, Any], path: str) -> Config:
    """Check a dictionary; ``path`` names its origin in the error."""
    try:
        return config_type().model_validate(values)
    except ValidationError as error:
        lines = [_explain(item) for item in error.errors(include_url=False)]
        more = f" (and {len(lines) - 1} more)" if len(lines) > 1 else ""
        raise InputError(f"{path}: {lines[0]}{more}") from error


def apply_overrides(values: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A copy of a configuration's dictionary with each ``key.name=value`` put in its place."""
    values = copy.deepcopy(values)
    for override in overrides:
        _apply_override(values, override)
    return values


def dump_config(config: Config) -> str:
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise InputError(f"override {override!r} must look like key.name=value, as in train.steps=100")
    try:
        value = yaml.safe_load(text)
    except Exception as error:
        raise InputError(f"override {override!r}: {text!r} is no YAML value") from error
    *parents, last = key.split(".")
    here: Any = values
    for name in parents:
        here = _child(here, name, override)
    if isinstance(here, list):
        _child(here, last, override)
        here[int(last)] = value
    elif isinstance(here, dict):
        here[last] = value
    else:
        raise InputError(f"override {override!r}: {'.'.join(parents)} holds no keys")


def _child(here: Any, name: str, override: str) -> Any:
    if isinstance(here, list):
        if not name.isdigit() or int(name) >= len(here):
            raise InputError(
                f"override {override!r}: {name!r} must be 0 to {len(here) - 1}, a place in the list"
            )
        return here[int(name)]
    if not isinstance(here, dict):
        raise InputError(f"override {override!r}: there are no keys below {name!r}")
    if here.get(name) is None:
        here[name] = {}
    return here[name]


def _explain(item: Any) -> str:
    # Union branches and the like add parts to the location that are no keys of the file.
    location = [
        str(part) for part in item["loc"] if not str(part).startswith(("list[", "function-", "constrained"))
    ]
    key = ".".join(location)
    if item["type"] == "extra_forbidden":
        known = _keys_at(location[:-1])
        close = difflib.get_close_matches(location[-1], known, 1, 0.5)
        hint = (
            f"did you mean {'.'.join([*location[:-1], close[0]])}?"
            if close
            else f"known are {', '.join(known)}"
        )
        return f"unknown key {key}; {hint}"
    if item["type"] == "missing":
        return f"missing key {key}"
    message = item["msg"].removeprefix("Value error, ")
    shown = repr(item["input"])
    if not key or item["type"] == "value_error" or len(shown) > 80:
        return f"{key}: {message}" if key else message
    return f"{key}: {message[0].lower()}{message[1:]}, got {shown}"


def _keys_at(location: Sequence[str]) -> list[str]:
    """The known keys of the section at ``location``, list places included."""
    section: Any = config_type()
    for name in location:
        if name.isdigit():
            continue
        kind = section.model_fields[name].annotation
        options = [kind, *getattr(kind, "__args__", ())]
        section = next(o for o in options if isinstance(o, type) and issubclass(o, Section))
    return list(section.model_fields)
