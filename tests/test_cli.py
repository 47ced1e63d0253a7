# SPDX-License-Identifier: BSD-3-Clause
"""The command line from end to end, and its refusals: one line, exit code 2, nothing half written."""

from __future__ import annotations

import json
import re
import shlex
import threading
from collections.abc import Callable
from pathlib import Path

import h5py
import imageio.v3 as imageio
import numpy as np
import pytest
import tifffile
import torch

from fastseg.cli import main
from fastseg.data.volumes import open_volume
from fastseg.train.checkpoint import RunFolder
from tests.project import command, fastseg, fastseg_on_small_disk, make_project
from tests.train.processes import finish, start


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a project whose run is trained."""
    config = make_project(tmp_path_factory.mktemp("project"))
    done = fastseg("train", config)
    assert done.returncode == 0, done.stderr
    assert "annotated 4 slices along z" in done.stdout
    return config.parent


def test_train_predict_evaluate(trained: Path) -> None:
    early = fastseg("evaluate", trained / "run")
    assert early.returncode == 2
    assert "test_0.h5 does not exist: run fastseg predict" in early.stderr

    assert fastseg("predict", trained / "run").returncode == 0
    evaluated = fastseg("evaluate", trained / "run")
    assert evaluated.returncode == 0, evaluated.stderr
    scores = json.loads((trained / "run/evaluation.json").read_text())["0: phantoms.h5:/raw"]
    with h5py.File(trained / "run/predictions/test_0.h5") as out, h5py.File(trained / "phantoms.h5") as given:
        segmented, truth = out["segmentation"][:] > 0, given["somata"][12:24] > 0
    assert scores["true_positive"] == np.count_nonzero(segmented & truth)
    assert scores["false_positive"] == np.count_nonzero(segmented & ~truth)
    assert scores["false_negative"] == np.count_nonzero(~segmented & truth)
    assert scores["true_negative"] == np.count_nonzero(~segmented & ~truth)
    dice = 2 * (segmented & truth).sum() / max(segmented.sum() + truth.sum(), 1)
    assert scores["dice"] == pytest.approx(dice)
    assert f"{dice:.4f}" in evaluated.stdout
    assert imageio.imread(trained / "run/figures/test_0.png").std() > 10


@pytest.mark.parametrize(
    ("test", "hint"),
    [
        (
            "[]",
            "trained: fastseg segment {raw} --run {run}, or another image; predict --raw has more options",
        ),
        ("[{raw: phantoms.h5:/raw}]", "trained: fastseg predict {run}"),
        (
            "[{raw: phantoms.h5:/raw, labels: phantoms.h5:/somata}]",
            "trained: fastseg predict {run}, then fastseg evaluate {run}",
        ),
    ],
)
def test_what_to_do_next_can_be_pasted(tmp_path: Path, test: str, hint: str) -> None:
    (tmp_path / "my project").mkdir()
    config = make_project(tmp_path / "my project")
    done = fastseg("train", config, f"data.test={test}", "train.steps=1")
    assert done.returncode == 0, done.stderr
    run = shlex.quote(str(config.parent / "run"))
    hint = hint.format(run=run, raw=shlex.quote(f"{config.parent}/phantoms.h5:/raw"))
    assert done.stdout.splitlines()[-1] == hint
    assert fastseg(*shlex.split(hint.split(", ")[0])[2:]).returncode == 0


def test_suspicious_labels_are_said_by_check_and_train(tmp_path: Path) -> None:
    config = make_project(tmp_path)
    with h5py.File(tmp_path / "phantoms.h5", "a") as file:
        file["somata"][:, :20] = 255
        file["somata"][:, 20:40] = 2
    for command_line in (("check", config, "--seconds", 0), ("train", config, "train.steps=1")):
        done = fastseg(*command_line)
        assert done.returncode == 0, done.stderr
        assert "set data.ignore_label: 255" in done.stdout
        assert (
            "ignore_label"
            not in fastseg(*command_line, "data.ignore_label=255", f"output={tmp_path}/b").stdout
        )


def test_predict_another_volume(trained: Path) -> None:
    raw = open_volume(f"{trained}/phantoms.h5:/raw")[:][0]
    tifffile.imwrite(trained / "other.tif", raw[:9, :50, :41])  # nine slices: no multiple of the window
    done = fastseg(
        "predict", trained / "run", "--raw", trained / "other.tif", "--output", trained / "other.h5"
    )
    assert done.returncode == 0, done.stderr
    assert open_volume(f"{trained}/other.h5:/segmentation").shape == (9, 50, 41)


def test_prediction_does_not_depend_on_the_blocks(trained: Path) -> None:
    outputs = []
    for name, options in (("whole", []), ("blocks", ["--set", "predict.block_voxels=32768"])):
        path = trained / f"{name}.h5"
        raw = f"{trained}/phantoms.h5:/raw"
        done = fastseg("predict", trained / "run", "--raw", raw, "--output", path, *options)
        assert done.returncode == 0, done.stderr
        outputs.append(open_volume(f"{path}:/probability")[:])
    assert np.allclose(*outputs, atol=2e-3)  # bfloat16 convolutions depend on the windows beside them


def test_2d_network_on_a_folder_of_images(tmp_path: Path) -> None:
    config = make_project(tmp_path)
    with h5py.File(tmp_path / "phantoms.h5") as file:
        for z in range(6):
            imageio.imwrite(tmp_path / f"raw_{z}.png", file["raw"][z])
            imageio.imwrite(tmp_path / f"truth_{z}.png", (255 * (file["somata"][z] > 0)).astype("u1"))
    overrides = [
        "data.train=[{raw: 'raw_?.png', labels: 'truth_?.png'}]",
        "data.test=[{raw: 'raw_?.png', labels: 'truth_?.png'}]",
        "data.patch=[32, 32]",
        "network.pooling=[2, 2]",
        "train.steps=10",
    ]
    for arguments in (["check", "--seconds", 0, config, *overrides], ["train", config, *overrides]):
        done = fastseg(*arguments)
        assert done.returncode == 0, done.stderr
    for name in ("predict", "evaluate"):
        done = fastseg(name, tmp_path / "run")
        assert done.returncode == 0, done.stderr
    assert open_volume(f"{tmp_path}/run/predictions/test_0.h5:/segmentation").shape == (6, 64, 64)


@pytest.mark.parametrize("exclusive", ["true", "false"])
def test_two_classes_with_an_ignored_label(tmp_path: Path, exclusive: str) -> None:
    config = make_project(tmp_path)
    with h5py.File(tmp_path / "phantoms.h5", "r+") as file:
        labels = file["somata"][:]
        file["classes"] = np.where(labels % 5 == 4, 255, labels % 3).astype("u1")
    classes = ["data.train.0.labels=phantoms.h5:/classes", "data.test.0.labels=phantoms.h5:/classes"]
    held_out = "{raw: phantoms.h5:/raw, labels: phantoms.h5:/classes, region: {z: [16, 24]}}"
    overrides = [
        *classes,
        "data.classes={round: 1, long: 2}",
        f"data.exclusive={exclusive}",
        f"data.validation=[{held_out}]",
        "data.ignore_label=255",
        "train.steps=10",
        "loss.pos_weight=[2, 3]",
    ]
    done = fastseg("train", config, *overrides)
    assert done.returncode == 0, done.stderr
    assert fastseg("predict", tmp_path / "run").returncode == 0
    assert fastseg("evaluate", tmp_path / "run").returncode == 0
    scores = json.loads((tmp_path / "run/evaluation.json").read_text())
    assert set(scores) == {"0: phantoms.h5:/raw class round", "0: phantoms.h5:/raw class long"}
    measured = json.loads((tmp_path / "run/validation.jsonl").read_text().splitlines()[-1])
    assert measured["dice"] == pytest.approx((measured["dice_round"] + measured["dice_long"]) / 2)


def test_init_check_info(tmp_path: Path) -> None:
    assert fastseg("init", tmp_path / "new.yaml").returncode == 0
    again = fastseg("init", tmp_path / "new.yaml")
    assert (again.returncode, "exists already" in again.stderr) == (2, True)
    checked = fastseg("check", "--seconds", 0.2, make_project(tmp_path))
    assert checked.returncode == 0, checked.stderr
    assert re.search(r"measured: the loader alone gives [\d.e+]+ patches/s", checked.stdout)
    assert re.search(r"memory: [\d,]+ MiB of this process", checked.stdout)
    assert "trouble" not in checked.stdout.replace("trouble: loading is slower", "")
    assert "parameters, patch (8, 32, 32)" in checked.stdout
    assert "may run in 1 or 2 processes" in checked.stdout
    held_out = "[{raw: phantoms.h5:/raw, labels: phantoms.h5:/somata, region: {z: [16, 24]}}]"
    extras = [
        f"data.validation={held_out}",
        "train.stop={patience: 4}",
        "train.ema=0.99",
        "train.precision=fp16",
    ]
    told = fastseg("check", "--seconds", 0, tmp_path / "run.yaml", *extras).stdout
    assert "measured" not in told
    assert "validation, every 500 steps\n  " in told
    assert "best checkpoint: by dice in validation; ends after 4 without gain" in told
    assert "moving average with decay 0.99" in told
    assert ", float16, " in told
    told = fastseg("info")
    assert told.returncode == 0
    assert "masked_bce" in told.stdout


def _edit(change: Callable[[h5py.File], None]) -> Callable[[Path], list[str]]:
    def edit(folder: Path) -> list[str]:
        with h5py.File(folder / "phantoms.h5", "r+") as file:
            change(file)
        return []

    return edit


def _truncate(folder: Path) -> list[str]:
    path = folder / "phantoms.h5"
    path.write_bytes(path.read_bytes()[:60_000])
    return []


def _nan(file: h5py.File) -> None:
    raw = file["raw"][:].astype("f4")
    raw[3, 4, 5] = np.nan
    del file["raw"]
    file["raw"] = raw


def _shorter_labels(file: h5py.File) -> None:
    labels = file["somata"][:20]
    del file["somata"]
    file["somata"] = labels


def _code_3(file: h5py.File) -> None:
    file["mask"] = np.full(file["raw"].shape, 3, "u1")


def _float_labels(file: h5py.File) -> None:
    file["float"] = file["somata"][:].astype("f4")


def _nothing_annotated(file: h5py.File) -> None:
    file["mask"] = np.zeros(file["raw"].shape, "u1")


MASK = ["data.train.0.mask=phantoms.h5:/mask"]
REFUSALS: dict[str, tuple[Callable[[Path], list[str]], list[str], str]] = {
    "missing file": (lambda f: [], ["data.train.0.raw=none.h5:/raw"], "none.h5 does not exist"),
    "missing dataset": (
        lambda f: [],
        ["data.train.0.raw=phantoms.h5:/row"],
        "phantoms.h5 has no dataset /row; it has /raw, /somata",
    ),
    "truncated HDF5": (_truncate, [], "phantoms.h5 cannot be opened as HDF5: "),
    "shapes differ": (_edit(_shorter_labels), [], "somata must have the shape of raw "),
    "nothing annotated": (_edit(_nothing_annotated), MASK, "no annotated voxel in "),
    "unknown key": (lambda f: [], ["train.step=3"], "unknown key train.step; did you mean train.steps?"),
    "NaN": (_edit(_nan), [], "phantoms.h5:/raw holds nan at (z, y, x) = (3, 4, 5)"),
    "mask code": (_edit(_code_3), MASK, "got 3 at (z, y, x) = (0, 0, 0)"),
    "region": (lambda f: [], ["data.train.0.region.z=[0, 99]"], "the range z 0:99 must lie within 0:24"),
    "slices": (
        lambda f: [],
        ["data.train.0.annotated={slices: [3, 20]}"],
        "annotated slices [20] of ",
    ),
    "float labels": (
        _edit(_float_labels),
        ["data.train.0.labels=phantoms.h5:/float"],
        "phantoms.h5:/float must hold integers, got float32",
    ),
    "device": (lambda f: [], ["train.device=abacus"], "train.device 'abacus' cannot be used"),
    "Apple's GPU": (lambda f: [], ["train.device=mps"], "it must be auto, cpu, cuda or cuda:N"),
    "no labels": (lambda f: [], ["data.train.0.labels=null"], "needs labels"),
    "patch and pooling": (
        lambda f: [],
        ["data.patch=[7, 32, 32]"],
        "data.patch [7, 32, 32] must be a multiple of",
    ),
    "no configuration": (lambda f: (f / "run.yaml").unlink() or [], [], "run.yaml does not exist"),
}


@pytest.mark.parametrize("command", ["train", "check"])
@pytest.mark.parametrize("case", REFUSALS)
def test_refusals(tmp_path: Path, case: str, command: str) -> None:
    prepare, overrides, message = REFUSALS[case]
    config = make_project(tmp_path)
    prepare(tmp_path)
    done = fastseg(command, config, *overrides)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("fastseg: ")
    assert done.stderr.count("\n") == 1, done.stderr
    assert message in done.stderr
    assert {p.name for p in tmp_path.iterdir()} <= {"phantoms.h5", "run.yaml"}, (
        "something half written is left"
    )


def test_check_names_what_it_had_no_time_to_read(tmp_path: Path) -> None:
    config = make_project(tmp_path)
    done = fastseg("check", config, "--seconds", 0, "--reading", 0)
    assert done.returncode == 0, done.stderr
    assert "phantoms.h5:/raw was not read from (z, y, x) = (0, 0, 0) on: --reading 0 was over" in done.stdout
    assert "was not read" not in fastseg("check", config, "--seconds", 0).stdout


def test_what_nobody_foresaw_is_a_line_and_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    config = make_project(tmp_path)
    monkeypatch.chdir(tmp_path)

    def broken(*_: object) -> None:
        raise KeyError("lost\nkey")

    monkeypatch.setattr("fastseg.commands.check.check_run", broken)
    monkeypatch.setattr("sys.argv", ["fastseg", "check", str(config)])
    monkeypatch.setattr("threading.excepthook", threading.excepthook)
    with pytest.raises(SystemExit, match="1"):
        main()
    assert re.fullmatch(
        r"fastseg: this should not happen: KeyError: 'lost\\nkey'. The details are in fastseg-error-\S+\.log: please "
        r"report them with the files that it takes\n",
        capsys.readouterr().err,
    )
    (log,) = tmp_path.glob("fastseg-error-*.log")
    assert "Traceback" in log.read_text()
    assert f"fastseg check {config}" in log.read_text()
    assert "torch" in log.read_text()


def test_an_error_in_a_thread_is_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """TensorBoard writes in one. What ends it for want of a file is said by the main thread."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("threading.excepthook", threading.excepthook)

    def work() -> None:
        for error in (FileNotFoundError(2, "No such file or directory", "events"), KeyError("lost")):
            thread = threading.Thread(target=raising, args=(error,))
            thread.start()
            thread.join()

    def raising(error: Exception) -> None:
        raise error

    monkeypatch.setattr("fastseg.cli.app", work)
    with pytest.raises(SystemExit, match="0"):
        main()
    said = capsys.readouterr().err
    assert said.startswith(
        "fastseg: this should not happen: KeyError: 'lost'. The details are in fastseg-error-"
    )
    assert said.count("\n") == 1
    assert len(list(tmp_path.glob("fastseg-error-*.log"))) == 1


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (OSError(28, "No space left on device", "x.h5"), 2, "fastseg: x.h5: No space left on device\n"),
        (
            FileNotFoundError(2, "No such file or directory", "gone/x.tif"),
            2,
            "fastseg: gone/x.tif: No such file",
        ),
        (MemoryError("Unable to allocate 3 TiB"), 2, "fastseg: out of memory: Unable to allocate 3 TiB\n"),
        (BrokenPipeError(32, "Broken pipe"), 1, ""),
    ],
)
def test_what_the_machine_refuses_is_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, code: int, message: str
) -> None:
    def broken(*_: object) -> None:
        raise error

    monkeypatch.setattr("fastseg.commands.check.check_run", broken)
    done = fastseg("check", make_project(tmp_path))
    assert done.returncode == code
    assert done.stderr.startswith(message)
    assert done.stderr.count("\n") == bool(message)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ([1, 2], "is no checkpoint: it holds a list"),
        ({"state_dict": {}}, "is no checkpoint of fastseg: step must be there as int"),
        ({"step": 30, "network": {}}, "is no checkpoint of fastseg: config must be there as dict"),
        ({"step": 30, "network": {}, "channels": 1}, "config must be there as dict"),
    ],
)
def test_a_readable_file_that_is_no_checkpoint_of_ours(tmp_path: Path, state: object, message: str) -> None:
    path = tmp_path / "run" / "checkpoints" / "step_00000030.pt"
    path.parent.mkdir(parents=True)
    torch.save(state, path)
    for name in ("predict", "report"):
        done = fastseg(name, tmp_path / "run")
        assert (done.returncode, done.stderr.count("\n")) in ((2, 1), (0, 0)), done.stderr
        assert name == "report" or message in done.stderr


def test_a_checkpoint_of_another_network_is_named(trained: Path, tmp_path: Path) -> None:
    found = RunFolder(trained / "run").checkpoints()[-1][1]
    state = torch.load(found, weights_only=True)
    state["network"] = {f"other.{name}": value for name, value in state["network"].items()}
    path = tmp_path / "run" / "checkpoints" / "step_00000030.pt"
    path.parent.mkdir(parents=True)
    torch.save(state, path)
    raw = f"{trained}/phantoms.h5:/raw"
    done = fastseg("predict", tmp_path / "run", "--raw", raw, "--output", tmp_path / "x.h5")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "the checkpoint is of another network than its configuration" in done.stderr


def test_full_disk_at_prediction_leaves_no_file_and_can_go_on(trained: Path) -> None:
    raw, output = f"{trained}/phantoms.h5:/raw", trained / "full.h5"
    done = fastseg_on_small_disk(4096, "predict", trained / "run", "--raw", raw, "--output", output)
    assert done.returncode == 2, done.stderr
    assert "full.h5 cannot be written" in done.stderr.splitlines()[-1]
    assert not output.exists()
    assert fastseg("predict", trained / "run", "--raw", raw, "--output", output).returncode == 0
    assert [path.name for path in trained.glob("full.h5*")] == ["full.h5"]


def test_a_region_mirror_images_and_zarr(trained: Path) -> None:
    raw = f"{trained}/phantoms.h5:/raw"
    whole, part = trained / "flips.zarr", trained / "part.h5"
    options = ("predict", trained / "run", "--raw", raw, "--set", "predict.flips=plane", "--output")
    assert fastseg(*options, whole).returncode == 0
    assert fastseg(*options, part, "--region", "z=2:14, x=8:40").returncode == 0
    segmentation = open_volume(f"{part}:/segmentation")
    assert (segmentation.shape[0], segmentation.shape[2]) == (12, 32)
    assert (whole / "segmentation").is_dir()
    done = fastseg(*options, part, "--region", "z=2:14,z=3:5")
    assert "--region must look like z=0:64,x=100:356, each axis once" in done.stderr
    done = fastseg("predict", trained / "run", "--region", "z=0:2")
    assert "--region goes with --raw" in done.stderr
    done = fastseg(*options, part, "--region", "z=0:2000")
    assert "the range z 0:2000 must lie within" in done.stderr


@pytest.mark.long
def test_two_processes_predict_one_volume(trained: Path) -> None:
    raw, shared, alone = f"{trained}/phantoms.h5:/raw", trained / "shared.h5", trained / "alone.h5"
    arguments = (trained / "run", "--raw", raw, "--set", "predict.block_voxels=32768", "--output")
    assert fastseg("predict", *arguments, alone).returncode == 0
    done = finish(start(2, command("predict", *arguments, shared)))
    assert [process.returncode for process in done] == [0, 0], done
    assert shared.read_bytes() == alone.read_bytes()


def test_raw_and_output_go_together_and_differ(trained: Path) -> None:
    done = fastseg("predict", trained / "run", "--raw", "x.tif")
    assert (done.returncode, "--raw and --output go together" in done.stderr) == (2, True)
    raw, output = f"{trained}/phantoms.h5:/raw", trained / "phantoms.h5"
    done = fastseg("predict", trained / "run", "--raw", raw, "--output", output)
    assert (done.returncode, "is the file that --raw is in" in done.stderr) == (2, True)
    notes = trained / "notes.h5"
    notes.write_text("a file of somebody's")
    done = fastseg("predict", trained / "run", "--raw", raw, "--output", notes)
    assert (done.returncode, "notes.h5 exists: add --overwrite" in done.stderr) == (2, True)
    assert notes.read_text() == "a file of somebody's"
    assert fastseg("predict", trained / "run", "--raw", raw, "--output", notes, "--overwrite").returncode == 0
    assert open_volume(f"{notes}:/segmentation").shape == (24, 64, 64)
    done = fastseg("predict", trained / "nothing")
    assert (done.returncode, "holds no checkpoint" in done.stderr) == (2, True)
