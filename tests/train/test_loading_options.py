# SPDX-License-Identifier: BSD-3-Clause
"""Options of loading in the configuration, and what a run and fastseg check make of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fastseg.data.augment import Augmentation
from fastseg.errors import InputError
from fastseg.methods.config_file import load_config
from fastseg.train.inputs import augmentation, build_sampler
from tests.project import fastseg, make_project


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return make_project(tmp_path)


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "log.jsonl").open()]


def test_resident_or_streamed_is_the_same_run(config: Path) -> None:
    free = "train.augment={rotate: 30, elastic: 1, noise: 0.1, missing: 1}"
    for name, options in {
        "resident": ["data.resident=true"],
        "streamed": ["data.resident=false", "data.threads=3", "data.cache_mib=1"],
        "apart": ["data.resident=true", "data.patches_per_block=1"],
        "fitting": ["data.resident=auto"],
    }.items():
        done = fastseg("train", config, "train.steps=6", free, f"output={config.parent}/{name}", *options)
        assert done.returncode == 0, done.stderr
    found = {name: losses(config.parent / name) for name in ("resident", "streamed", "apart", "fitting")}
    assert found["resident"] == found["streamed"] == found["fitting"]
    assert found["resident"] != found["apart"]


@pytest.mark.long
def test_check_says_how_patches_come(config: Path) -> None:
    resident = fastseg("check", config)
    assert "patches: copied from volumes kept on the device" in resident.stdout, resident.stderr
    turned = [
        "data.resident=false",
        "train.augment.rotate=45",
        "data.patch=[2, 8, 8]",
        "network.pooling=[[1, 2, 2]]",
    ]
    streamed = fastseg("check", config, *turned)
    assert streamed.returncode == 0, streamed.stderr
    assert "patches: (2, 12, 12) (z, y, x) read by 2 threads, 4 from a block of chunks" in streamed.stdout
    assert "are large beside the patch" in streamed.stdout


def test_one_word_turns_augmentation_off(config: Path) -> None:
    assert augmentation(load_config(config, ["train.augment=none"])) == Augmentation(enabled=False)
    assert augmentation(load_config(config, ["train.augment.enabled=false"])) == Augmentation(enabled=False)
    assert augmentation(load_config(config)).enabled
    changed = augmentation(
        load_config(config, ["train.augment.probability.blur=0.7", "train.augment.blur=2"])
    )
    assert (changed.blur, changed.probability.blur, changed.probability.noise) == (2, 0.7, 1)


def test_weights_are_for_every_volume_or_none(config: Path) -> None:
    from fastseg.data.annotations import index_labels
    from fastseg.train.inputs import open_training

    entry = load_config(config).data.train[0].model_dump(mode="json", exclude_none=True)
    two = [{**entry, "weight": 3.0}, {**entry, "weight": 1.0}]
    loaded = load_config(
        config, [f"data.train={json.dumps(two)}", "data.sampling={uniform: 1, labelled: 0, foreground: 0}"]
    )
    volumes = open_training(loaded)
    sampler = build_sampler(loaded, volumes, [index_labels(volume, 0) for volume in volumes])
    assert sampler.ways[0].edges == [3.0, 4.0]
    assert sampler.patches_per_block == loaded.data.patches_per_block
    assert sampler.batch == loaded.train.batch
    del two[1]["weight"]
    with pytest.raises(InputError, match=r"give every training volume a weight or none"):
        load_config(config, [f"data.train={json.dumps(two)}"])
