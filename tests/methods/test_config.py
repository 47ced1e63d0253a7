# SPDX-License-Identifier: BSD-3-Clause
"""The configuration: overrides, defaults, and one clear line for each mistake."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from fastseg.errors import InputError
from fastseg.methods.config import config_type
from fastseg.methods.config_file import dump_config, load_config
from fastseg.methods.template import TEMPLATE, write_template

MINIMAL = "output: out\ndata: {train: [{raw: a.h5:/raw, labels: a.h5:/l}], patch: [8, 16, 16]}\n"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(MINIMAL)
    return path


def test_template_is_whole_and_states_the_defaults(tmp_path: Path) -> None:
    write_template(str(tmp_path / "t.yaml"))
    assert (tmp_path / "t.yaml").read_text() == TEMPLATE
    values = yaml.safe_load(TEMPLATE)

    def hold(section: object, given: dict, path: str, defaults: object = None) -> None:
        """``defaults``: the section as it is when nothing is given, where it has a default as a whole."""
        fields = type(section).model_fields
        missing = set(fields) - set(given) - {"root", "mask", "axes"}
        assert not missing, f"the template leaves out {path} {missing}"
        for name, value in given.items():
            default = getattr(defaults, name, fields[name].default)
            if isinstance(value, dict) and name not in ("annotated", "region"):
                hold(getattr(section, name), value, f"{path}.{name}", default)
            elif not isinstance(value, list | dict) and not fields[name].is_required():
                assert value == default, f"{path}.{name} states {value}, the default is {default}"

    loaded = config_type().model_validate(values)
    hold(loaded, values, "template")
    with pytest.raises(InputError, match=r"t\.yaml exists already"):
        write_template(str(tmp_path / "t.yaml"))


def test_paths_are_relative_to_the_file_or_to_root(config: Path, tmp_path: Path) -> None:
    assert load_config(config).data.root == str(tmp_path)
    assert load_config(config, ["data.root=/elsewhere"]).data.root == "/elsewhere"


def test_a_dump_loads_to_the_same(config: Path, tmp_path: Path) -> None:
    loaded = load_config(config, ["data.train.0.region.z=[0, 8]", "loss.pos_weight=[2]"])
    (tmp_path / "again.yaml").write_text(dump_config(loaded))
    assert load_config(tmp_path / "again.yaml") == loaded


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (
            "3",
            r"data.classes: must be ids, as in \[1, 2\], .* or parts of objects, interior and boundary, got 3$",
        ),
        ("[one]", r"got \['one'\]$"),
        ("{one: two}", r"got {'one': 'two'}$"),
        ("{1: 2}", r"got {1: 2}$"),
        ("[1.0, 2]", r"got \[1.0, 2\]$"),
        ("{one: 4, two: 4}", r"data: classes must be different ids, got \[4, 4\]$"),
        ("[0, 1]", "data: classes must leave out 0: what is none of them is background$"),
    ],
)
def test_classes_that_are_none(config: Path, classes: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_config(config, [f"data.classes={classes}"])


def test_classes_are_ids_or_names_of_ids(config: Path) -> None:
    for classes, ids, names in (
        ("null", None, []),
        ("[5, 2]", (5, 2), ["5", "2"]),
        ("{cell: 3, wall: 1}", (3, 1), ["cell", "wall"]),
    ):
        loaded = load_config(config, [f"data.classes={classes}"])
        assert (loaded.data.class_ids, loaded.data.class_names) == (ids, names)
        assert loaded.exclusive == (len(names) > 1)
    assert not load_config(config, ["data.classes=[0, 1]", "data.exclusive=false"]).exclusive


def test_overrides_reach_any_depth(config: Path) -> None:
    loaded = load_config(
        config,
        [
            "train.steps=7",
            "train.learning_rate=1e-3",
            "data.train.0.annotated.every=4",
            "data.patch=[16, 16]",
            "network.pooling=[2, 2]",
            "train.augment.symmetry=none",
            "seed=3",
        ],
    )
    assert (loaded.train.steps, loaded.train.learning_rate, loaded.seed) == (7, 1e-3, 3)
    assert loaded.data.train[0].annotated is not None
    assert loaded.data.train[0].annotated.every == 4
    assert loaded.patch == (1, 16, 16)


def test_a_method_has_defaults_of_its_own_where_nothing_is_stated(config: Path) -> None:
    stated = ["method=patch_contrast", "data.patch=[16, 16]", "train.batch=3"]
    loaded = load_config(config, stated)
    assert (loaded.network.kind, loaded.network.width, loaded.train.learning_rate) == ("fcnn", 8, 2e-4)
    assert (loaded.train.batch, loaded.data.normalize) == (3, "percentile")
    assert load_config(config).train.learning_rate == 1e-3
    assert loaded.halo == (0, 83, 83)
    assert loaded.predict.morphology_steps(2, 0)[0] == ("open", (0, 3, 3))
    assert loaded.predict.morphology_steps(2, 1)[0] == ("open", (3, 0, 3))


def test_patch_contrast_begins_at_random(config: Path) -> None:
    stated = ["method=patch_contrast", "data.patch=[16, 16]", "network.weights=runs/pretraining"]
    with pytest.raises(InputError, match=r"network\.weights is for methods that train a U-Net"):
        load_config(config, stated)


MISTAKES = {
    "train.stepps=3": "unknown key train.stepps; did you mean train.steps?",
    "sead=3": "unknown key sead; did you mean seed?",
    "xyz=3": "unknown key xyz; known are method, output, seed, data, network, loss, train, predict, sparse_2d3d, "
    "patch_contrast, region_contrast, domain_adaptation",
    "data.train.0.lables=x": "unknown key data.train.0.lables; did you mean data.train.0.labels?",
    "train.augment.contrst=1": "unknown key train.augment.contrst; did you mean train.augment.contrast?",
    "data.train.0.region.q=[0, 1]": "unknown key data.train.0.region.q; known are z, y, x",
    "train.steps=0": "train.steps: input should be greater than 0, got 0",
    "train.steps=many": "train.steps: input should be a valid integer.*got 'many'",
    "train.precision=fp8": "train.precision: input should be 'auto', 'fp32', 'bf16' or 'fp16', got 'fp8'",
    "data.patch=[8, 20]": r"data.patch \[8, 20\] must be a multiple of \[8, 8\]",
    "data.patch=[12, 16, 16]": r"data.patch \[12, 16, 16\] must be a multiple of \[8, 8, 8\]",
    "data.patch=[16]": r"patch must be \[y, x\] for a 2D or \[z, y, x\]",
    "network.pooling=[[1, 2], 2]": r"network.pooling: \[1, 2\] must have one stride per axis",
    "data.train=[]": "data.train: list should have at least 1 item",
    "data.train.3.raw=x": "override 'data.train.3.raw=x': '3' must be 0 to 0",
    "data.train.0.annotated.axis=z": "data.train.0.annotated: give either every or slices",
    "output.name=x": "override 'output.name=x': output holds no keys",
    "train.steps": "override 'train.steps' must look like key.name=value",
    "loss.pos_weight=[1, 2]": "loss.pos_weight must have 1 values, one per class",
    "data.sampling={uniform: 0, labelled: 0, foreground: 0}": "data.sampling: at least one share must be positive",
    "data.patch=[8, 8, 8]": r"data.patch \[8, 8, 8\] must be larger than \[8, 8, 8\]",
    "method=magic": "method: input should be 'supervised', 'sparse_2d3d', 'patch_contrast', 'region_contrast' or "
    "'domain_adaptation', got 'magic'",
    "sparse_2d3d.steps=5": "sparse_2d3d is a section of method sparse_2d3d, the method is supervised",
    "network.kind=sliding_cnn": r"network.kind sliding_cnn sees single slices: it needs a patch \[y, x\]",
    "patch_contrast.channels=2": "patch_contrast is a section of method patch_contrast, the method is supervised",
    "patch_contrast.foreground=[0.6, 0.2]": r"foreground must be \[least, most\] shares of the image, got \[0.6, 0.2\]",
    "network={kind: fcnn, dilations: [1, [1, 2]]}": r"network.dilations: \[1, 2\] must have one number per axis",
    "predict.morphology=[[open, [1, 2]]]": r"predict.morphology: open \[1, 2\] must have one radius per axis of the 3",
    "predict.morphology=[[shut, 1]]": r"predict.morphology.0.0: input should be 'open' or 'close', got 'shut'",
    "predict.window=[16, 16]": r"predict.window \[16, 16\] must have the axes of data.patch \[8, 16, 16\]",
    "predict.window=[8, 20, 16]": r"predict.window \[8, 20, 16\] must be a multiple of \[8, 8, 8\]",
    "loss.pseudo_ramp=[0.5, 0.2]": r"pseudo_ramp must be \[first, last\] shares of the steps, got \[0.5, 0.2\]",
}


@pytest.mark.parametrize("override", MISTAKES)
def test_each_mistake_is_one_clear_line(config: Path, override: str) -> None:
    with pytest.raises(InputError, match=MISTAKES[override]) as caught:
        load_config(config, [override])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2]", "must hold keys and values, got list"),
        ("a: [1", "is no readable YAML"),
        ("output: x", "missing key data"),
        ("", "must hold keys and values, got NoneType"),
    ],
)
def test_unusable_files(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(InputError, match=message):
        load_config(tmp_path / "c.yaml")
    with pytest.raises(InputError, match=r"none\.yaml does not exist"):
        load_config(tmp_path / "none.yaml")
