# SPDX-License-Identifier: BSD-3-Clause
"""The whole configuration of a run: the sections that all runs have, and one for each method."""

from __future__ import annotations

import functools
from typing import Any, Literal

from pydantic import create_model, model_validator

from fastseg.methods.base import Method
from fastseg.methods.registry import METHODS, method_of
from fastseg.train.config import Config


def config_type() -> type[Config]:
    """The class of configurations, with a section for each method of the registry."""
    return _config_type(tuple(METHODS.values()))


@functools.cache
def _config_type(methods: tuple[Method, ...]) -> type[Config]:
    names = tuple(method.name for method in methods)
    fields: dict[str, Any] = {m.name: (m.section, m.section()) for m in methods if m.section is not None}
    fields["method"] = (Literal[names], names[0])  # type: ignore[valid-type]
    return create_model("WholeConfig", __base__=_WithMethod, __module__=__name__, **fields)


def __getattr__(name: str) -> Any:
    """Where pickle looks the class up, on either side of a process's start."""
    if name == "WholeConfig":
        return config_type()
    raise AttributeError(f"module {__name__} has no attribute {name}")


class _WithMethod(Config):
    """What a configuration must hold for its method."""

    @model_validator(mode="before")
    @classmethod
    def _method_has_its_defaults(cls, values: Any) -> Any:
        method = METHODS.get(str(values.get("method"))) if isinstance(values, dict) else None
        return _under(values, method.defaults) if method else values

    @model_validator(mode="after")
    def _method_has_its_section(self) -> _WithMethod:
        for name, field in type(self).model_fields.items():
            if name in METHODS and name != self.method and getattr(self, name) != field.default:
                raise ValueError(f"{name} is a section of method {name}, the method is {self.method}")
        return self

    @model_validator(mode="after")
    def _method_has_its_rules(self) -> _WithMethod:
        method_of(self).check(self)
        return self


def _under(values: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """``values`` with what they leave out, at any depth, taken from ``defaults``."""
    filled = dict(values)
    for key, default in defaults.items():
        if key not in filled:
            filled[key] = default
        elif isinstance(filled[key], dict) and isinstance(default, dict):
            filled[key] = _under(filled[key], default)
    return filled
