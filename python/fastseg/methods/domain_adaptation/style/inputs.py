# SPDX-License-Identifier: BSD-3-Clause
"""The configuration of the generator's run, made of that of the whole."""

from __future__ import annotations

import os

from fastseg.errors import InputError
from fastseg.methods.domain_adaptation.config import DomainAdaptationConfig
from fastseg.train.augment_config import AugmentConfig
from fastseg.train.config import Config
from fastseg.train.data_config import VolumeConfig


def style_config(config: Config) -> Config:
    """The configuration of the generator's run: what the section says under the keys that loaders and trainer read, and
    no labels. InputError without a target."""
    if not config.data.target:
        raise InputError(
            "domain_adaptation.strategy style needs data.target, the images to give another style"
        )
    style, train, data = config.section(DomainAdaptationConfig).style, config.train, config.data
    # Of augmentation only what leaves the style as it is.
    augment = AugmentConfig(
        enabled=train.augment.enabled, symmetry=train.augment.symmetry, contrast=0, brightness=0
    )
    return config.model_copy(
        update={
            "output": os.path.join(config.output, "style"),
            "network": config.network.model_copy(update={"weights": None}),
            "domain_adaptation": config.section(DomainAdaptationConfig).model_copy(update={"phase": "style"}),
            "data": data.model_copy(
                update={
                    "train": [_unlabelled(entry) for entry in data.train],
                    "target": [_unlabelled(entry) for entry in data.target],
                    "validation": [],
                    "patch": style.patch,
                    # Both loaders together take what one may.
                    "cache_mib": max(data.cache_mib // 2, 1),
                    "resident_mib": max(data.resident_mib // 2, 1),
                }
            ),
            "train": train.model_copy(
                update={
                    "steps": style.steps,
                    "batch": style.batch,
                    "learning_rate": style.learning_rate,
                    "weight_decay": 0.0,
                    "clip_norm": None,
                    "ema": None,
                    "stop": None,
                    "augment": augment,
                }
            ),
        }
    )


def _unlabelled(entry: VolumeConfig) -> VolumeConfig:
    return entry.model_copy(update={"labels": None, "mask": None, "annotated": None})
