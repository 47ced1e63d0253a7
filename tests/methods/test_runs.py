# SPDX-License-Identifier: BSD-3-Clause
"""What may differ between a run and its continuation."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastseg.errors import InputError
from fastseg.methods.config_file import load_config
from fastseg.methods.runs import require_fresh_or_same
from fastseg.train.checkpoint import RunFolder
from tests.project import make_project


def test_sections_of_other_methods_do_not_keep_a_run_from_going_on(tmp_path: Path) -> None:
    config = load_config(make_project(tmp_path))
    run = RunFolder(config.output)
    stored = config.model_dump(mode="json")
    stored["sparse_2d3d"]["steps"] = 17
    del stored["patch_contrast"]  # as of a release that did not have it
    whole = {"step": 3, "network": {}, "channels": 1}
    run.save(3, {**whole, "config": stored})
    require_fresh_or_same(config, run, resume=True)
    with pytest.raises(InputError, match="already holds a run at step 3: add --resume"):
        require_fresh_or_same(config, run, resume=False)
    longer = config.model_copy(update={"train": config.train.model_copy(update={"steps": 99})})
    with pytest.raises(
        InputError, match=r"train\.steps = 30, now it is 99: .* output=OTHER network\.weights=.*/run "
    ):
        require_fresh_or_same(longer, run, resume=True)
    run.save(6, {**whole, "config": {**stored, "method": "sparse_2d3d", "seed": 1}})
    with pytest.raises(InputError, match=r"was begun with method = 'sparse_2d3d', now it is 'supervised'"):
        require_fresh_or_same(config, run, resume=True)
