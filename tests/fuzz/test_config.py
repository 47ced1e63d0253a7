# SPDX-License-Identifier: BSD-3-Clause
"""Odd values at every key of a configuration, as YAML spells them: a configuration, or one line that says why not."""

from __future__ import annotations

import contextlib
import itertools
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fastseg.errors import InputError
from fastseg.methods.config_file import dump_config, load_config
from tests.project import CONFIG

ODD = [
    *(
        "null",
        "~",
        "true",
        "no",
        "''",
        '"\\0"',
        "x",
        "[]",
        "{}",
        "[[[]]]",
        "{a: {b: c}}",
        "[null, null]",
        "{1: 2}",
    ),
    *(
        "0",
        "-0",
        "-1",
        "1e400",
        "-1e400",
        ".nan",
        ".inf",
        "1e-400",
        "0x10",
        "0o7",
        "1_000",
        "12:30:45",
        "9" * 400,
    ),
    *(
        "2026-13-45",
        "2026-02-30",
        "2026-11-27",
        "2026-11-27T99:00:00Z",
        "!!binary /w==",
        "!!binary x",
        "!!set {a, b}",
    ),
    *(
        "!!python/object/apply:os.system [true]",
        "!!timestamp x",
        "!!int x",
        "!!float x",
        "!!bool x",
        "&a [*a]",
    ),
    *(
        "*a",
        "<<: 3",
        "{<<: 3}",
        "? x",
        "[1",
        "{",
        "'",
        "|",
        ">",
        "%",
        "@",
        "`",
        "!!str 3",
        "!x y",
        "=",
        "{? [1]: 2}",
    ),
    *(
        "[" * 2000,
        "{a: " * 500,
        "\\ud800",
        "'\u2028'",
        "../../x",
        "a" * 5000,
        "--- 1\n--- 2",
        "\t",
        "9" * 5000,
    ),
]


def keys(values: Any, prefix: str = "") -> Iterator[str]:
    items = (
        values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    )
    for name, value in items:
        yield f"{prefix}{name}"
        yield from keys(value, f"{prefix}{name}.")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Of volumes that nothing here opens."""
    (tmp_path / "run.yaml").write_text(CONFIG.format(folder=tmp_path))
    return tmp_path / "run.yaml"


def require_one_line(path: Path, overrides: list[str]) -> None:
    said = ""
    try:
        load_config(path, overrides)
    except InputError as error:
        said = str(error)
    assert "\n" not in said, f"{overrides}: {said}"


def test_any_value_at_any_key(config: Path) -> None:
    found = list(keys(load_config(config).model_dump(mode="json")))
    assert len(found) > 100
    cases = list(itertools.product(found, ODD))
    for key, value in random.Random(0).sample(cases, 400):
        require_one_line(config, [f"{key}={value}"])


@pytest.mark.parametrize("value", ODD)
def test_any_value_in_the_file(config: Path, value: str) -> None:
    text = config.read_text()
    with contextlib.suppress(UnicodeEncodeError):
        for changed in (f"{text}seed: {value}\n", f"{value}\n", f"{text}{value}\n"):
            config.write_text(changed)
            require_one_line(config, [])


def test_any_bytes_in_the_file(config: Path) -> None:
    rng, content = random.Random(0), config.read_bytes()
    for _ in range(150):
        damaged = bytearray(content)
        for _ in range(rng.randint(1, 6)):
            place = rng.randrange(len(damaged))
            damaged[place : place + rng.randint(0, 4)] = rng.randbytes(rng.randint(0, 4))
        config.write_bytes(damaged)
        require_one_line(config, [])


def test_what_was_loaded_can_be_stored(config: Path) -> None:
    assert dump_config(load_config(config, ["seed=0x10"]))
