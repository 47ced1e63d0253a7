# SPDX-License-Identifier: BSD-3-Clause
"""What an installation of the ops alone says about itself, and what it answers to commands that need more."""

import sys

import pytest
import torch

import fastseg
from fastseg import __main__ as program
from fastseg.commands import info

BUILD = {
    "cuda": None,
    "openmp": 201511,
    "libstdc++": "shared",
    "ops": {"masked_bce": ("cpu",), "region_contrast": ("cpu",), "region_pool": ("cpu",)},
}


@pytest.fixture
def ops_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if none of the training layer's packages were installed."""
    version = info._version
    present = ("fastseg", "torch", "numpy")
    monkeypatch.setattr(info, "_version", lambda name: version(name) if name in present else None)
    for name in [name for name in sys.modules if name.split(".")[0] in ("typer", "click")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "typer", None)
    monkeypatch.delitem(sys.modules, "fastseg.cli", raising=False)
    if hasattr(fastseg, "cli"):
        monkeypatch.delattr(fastseg, "cli")


def test_info_of_the_ops_alone(ops_alone, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["fastseg", "info"])
    program.main()
    told = capsys.readouterr().out
    assert "h5py not installed" in told
    assert "missing triton: on a GPU the slower reference runs for region_contrast" in told
    missing = told.split("missing for the training layer: ")[1]
    assert "google-crc32c, h5py, imagecodecs, " in missing
    assert "pip install 'fastseg[train]'" in missing


def test_other_commands_of_the_ops_alone(ops_alone, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["fastseg", "train", "run.yaml"])
    with pytest.raises(SystemExit) as ended:
        program.main()
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert told.startswith("fastseg: the command line needs packages that are not installed here: ")
    assert told.endswith("tifffile, typer; pip install 'fastseg[train]'\n")


def test_a_package_that_is_not_ours_is_not_explained_away(ops_alone, monkeypatch) -> None:
    monkeypatch.setattr(program, "missing_packages", list)
    with pytest.raises(ModuleNotFoundError, match="typer"):
        program.main()


def test_all_is_there_for_the_tests() -> None:
    assert info.missing_packages() == []


def test_without_nvcc_the_ops_that_lack_kernels_are_named() -> None:
    (told,) = [line for line in info._missing(BUILD, torch) if line.startswith("CUDA kernels")]
    assert "the slower reference runs for masked_bce, region_pool." in told
    assert "Put nvcc 12.4 or newer on the PATH" in told


@pytest.mark.parametrize(
    ("version", "available", "expected"),
    [(None, False, "CUDA in torch"), ("13.0", False, "a GPU that torch can use"), ("13.0", True, None)],
)
def test_why_no_gpu_is_used(monkeypatch, version, available, expected) -> None:
    monkeypatch.setattr(torch.version, "cuda", version)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    monkeypatch.setattr(info, "_version", lambda name: "1")
    told = info._missing({**BUILD, "cuda": "13.0"}, torch)
    assert [line.split(":")[0] for line in told] == ([expected] if expected else [])


@pytest.mark.parametrize(
    ("found", "told"), [({"libstdc++": "static"}, "a shared libstdc++"), ({"openmp": None}, "OpenMP")]
)
def test_what_the_build_lacks_is_a_line(found, told) -> None:
    lines = info._missing({**BUILD, **found}, torch)
    assert sum(line.startswith(told) for line in lines) == 1
    assert not any(line.startswith(told) for line in info._missing(BUILD, torch))


def test_kernels_are_what_torch_dispatches_to() -> None:
    build = fastseg.build_info()
    assert build["libstdc++"] in ("shared", "static")
    for op, devices in build["ops"].items():
        assert "cpu" in devices
        assert ("cuda" in devices) == (
            op == "region_contrast" or build["cuda"] is not None
        )  # triton is installed
