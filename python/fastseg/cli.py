# SPDX-License-Identifier: BSD-3-Clause
"""The command line: fastseg init | check | train | report | predict | segment | view | measure | evaluate |
annotate-plan | annotate-import | bench | info | demo.

What a user can mend is printed in one line and ends with exit code 2; anything else is our bug: it is one line, too,
with exit code 1, and its trace is in a file. Commands import what they need themselves, so that --help stays fast.
"""

from __future__ import annotations

import os
import shlex
import sys
import threading
from typing import Annotated, Optional

import typer

from fastseg.errors import EXIT_INTERRUPTED, InputError, Interrupted, log_unexpected

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Segment microscopy images and volumes from few labels.",
)

ConfigPath = Annotated[str, typer.Argument(metavar="CONFIG", help="The YAML file of the run.")]
Overrides = Annotated[
    Optional[list[str]],  # noqa: UP045 - typer reads the annotation at run time on Python 3.10
    typer.Argument(metavar="[KEY=VALUE]...", help="Dotted overrides, as in train.steps=100."),
]
RunPath = Annotated[str, typer.Argument(metavar="RUN", help="The folder of a run, its config's output.")]

PlanFolder = Annotated[
    str, typer.Argument(metavar="FOLDER", help="The folder of the plan, its pictures and labels.")
]


@app.command()
def init(
    path: Annotated[
        str,
        typer.Argument(
            help="The file to write; or a folder of images, with labels or without, to begin with."
        ),
    ] = "fastseg.yaml",
    first: Annotated[
        int,
        typer.Option(
            min=0, max=1, help="The number of the first slice in the names of masks of a few slices."
        ),
    ] = 0,
) -> None:
    """Write a commented configuration to start from; or, of a folder, one for the images and labels in it."""
    from fastseg.commands.found import write_found
    from fastseg.methods.template import write_template

    if os.path.isdir(path):
        for line in write_found(path, "fastseg.yaml", first):
            print(line)
        print("wrote fastseg.yaml: try fastseg check fastseg.yaml, then fastseg train fastseg.yaml")
        return
    write_template(path)
    print(f"wrote {path}: set data, then try fastseg check {path}")


@app.command()
def check(
    config: ConfigPath,
    overrides: Overrides = None,
    seconds: Annotated[
        float, typer.Option(min=0, help="How long to time loading and learning, each; 0: not at all.")
    ] = 3.0,
    reading: Annotated[
        float, typer.Option(min=0, help="How long to read volumes in all, in seconds; what is left is named.")
    ] = 600.0,
) -> None:
    """Read the configuration and all data it names; say what a run would use, how fast it is, what slows it."""
    from fastseg.commands.check import check_run

    for line in check_run(_load(config, overrides), seconds, reading):
        print(line)


@app.command()
def train(
    config: ConfigPath,
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint.")] = False,
) -> None:
    """Train; checkpoints, log, curves and report.html go to the config's output folder."""
    from fastseg.commands.report import train_and_report
    from fastseg.methods.registry import method_of

    settings = _load(config, overrides)
    run = train_and_report(settings, resume=resume)
    if method_of(settings).segments(settings) and os.environ.get("RANK", "0") == "0":
        path = shlex.quote(str(run.path))
        if not settings.data.test:
            entry = settings.data.train[0]
            whole = os.path.abspath(os.path.join(settings.data.root or ".", entry.raw))
            raw = shlex.quote(min(whole, os.path.relpath(whole), key=len))
            axes = f" --axes {entry.axes}" if entry.axes else ""
            if entry.channels:
                axes += f" --channels {shlex.quote(','.join(map(str, entry.channels)))}"
            print(
                f"trained: fastseg segment {raw}{axes} --run {path}, or another image; predict --raw has more options"
            )
        elif all(entry.labels for entry in settings.data.test):
            print(f"trained: fastseg predict {path}, then fastseg evaluate {path}")
        else:
            print(f"trained: fastseg predict {path}")


@app.command()
def predict(
    run: RunPath,
    raw: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="A volume to segment instead of the run's test volumes."),
    ] = None,
    output: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            help="With --raw, the file: .h5, .zarr, .tif, .ome.tif, .ome.zarr, .nii.gz, .npy or .png; or a folder."
        ),
    ] = None,
    what: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            help="Of --output .tif and the like: labels (ids, the default), masks, probability or instances."
        ),
    ] = None,
    smallest: Annotated[
        int, typer.Option(min=0, metavar="VOXELS", help="Of --what instances: smaller objects are left out.")
    ] = 0,
    axes: Annotated[Optional[str], typer.Option(help="The axes of --raw, as in czyx.")] = None,  # noqa: UP045
    channels: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(metavar="N,N,...", help="Of --raw, by number or name; by default data.channels."),
    ] = None,
    region: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            metavar="z=A:B,...", help="The part of --raw to segment, in voxels, as in z=0:64,x=100:356."
        ),
    ] = None,
    voxel_size: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(metavar="Z,Y,X", help="Of --raw, in micrometres, where the file does not state it."),
    ] = None,
    overrides: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Another predict.* value, as in predict.overlap=0.25."
        ),
    ] = None,
    restart: Annotated[
        bool, typer.Option("--restart", help="Begin anew where an interrupted prediction was left.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the file that --output names, where there is one.")
    ] = False,
) -> None:
    """Segment volumes with the newest checkpoint of a run, from file to file.

    The same command goes on where an interrupted one stopped.
    """
    from fastseg.commands.infer import predict_run

    files = predict_run(
        run,
        raw=raw,
        output=output,
        axes=axes,
        channels=channels,
        region=region,
        voxel_size=voxel_size,
        what=what,
        smallest=smallest,
        overrides=overrides or [],
        restart=restart,
        overwrite=overwrite,
    )
    for path in files:
        print(f"wrote {path}")


@app.command()
def segment(
    image: Annotated[str, typer.Argument(metavar="IMAGE", help="A volume or image, or a folder of them.")],
    run: Annotated[str, typer.Option(metavar="RUN", help="The folder of a run.")],
    output: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            help="As of predict; by default RUN/segmented/IMAGE.tif, for a folder RUN/segmented/FOLDER."
        ),
    ] = None,
    what: Annotated[Optional[str], typer.Option(help="As of predict, as in instances.")] = None,  # noqa: UP045
    axes: Annotated[Optional[str], typer.Option(help="The axes of IMAGE, as in czyx.")] = None,  # noqa: UP045
    channels: Annotated[Optional[str], typer.Option(help="As of predict, as in 1,DAPI.")] = None,  # noqa: UP045
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an output that is there.")] = False,
) -> None:
    """Segment one image, or a folder of them, without a configuration: what predict does with --raw and --output."""
    from fastseg.commands.infer import predict_run, within_run

    output = output or within_run(image, run)
    options = {"what": what, "axes": axes, "channels": channels}
    for path in predict_run(run, raw=image, output=output, overwrite=overwrite, **options):
        print(f"wrote {path}")
    if axes is None:
        shown = shlex.join([run, "--raw", image, "--segmented", output])
        print(f"to look at it: fastseg view {shown}")


@app.command()
def measure(
    objects: Annotated[
        str,
        typer.Argument(
            metavar="OBJECTS", help="A volume or image with a number for each object, or a folder of them."
        ),
    ],
    output: Annotated[str, typer.Option(metavar="CSV", help="The table to write.")],
    raw: Annotated[Optional[str], typer.Option(help="The image, for intensities.")] = None,  # noqa: UP045
    axes: Annotated[Optional[str], typer.Option(help="The axes of OBJECTS, as in zyx.")] = None,  # noqa: UP045
    raw_axes: Annotated[Optional[str], typer.Option(help="The axes of --raw, as in czyx.")] = None,  # noqa: UP045
    voxel_size: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(metavar="Z,Y,X", help="In micrometres, where OBJECTS does not state it."),
    ] = None,
    stack: Annotated[
        bool, typer.Option("--stack", help="OBJECTS is a folder of the slices of one volume.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a table that is there.")] = False,
) -> None:
    """Write a table of all objects for a spreadsheet: size, place, shape and intensity, a row each."""
    from fastseg.commands.measure import measure_file

    options = {"raw": raw, "axes": axes, "raw_axes": raw_axes, "voxel_size": voxel_size}
    for line in measure_file(objects, output, stack=stack, overwrite=overwrite, **options):
        print(line)


@app.command()
def report(run: RunPath) -> None:
    """Write the report of a run again, also of one that goes on, failed or was killed: RUN/report.html."""
    from fastseg.commands.report import write_report

    print(f"wrote {write_report(run)}")


@app.command()
def view(
    run: RunPath,
    raw: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="An image, or a folder of them, instead of the run's test or training volumes."),
    ] = None,
    segmented: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="With --raw: what fastseg segment or predict wrote of it."),
    ] = None,
    page: Annotated[
        bool, typer.Option("--page", help="Write the page where napari is installed, too.")
    ] = False,
) -> None:
    """Look at images, labels and predictions: in napari where it is installed, else on a page, RUN/view.html."""
    from fastseg.commands.view import view_run

    for line in view_run(run, raw, segmented, page=page):
        print(line)


@app.command()
def evaluate(run: RunPath) -> None:
    """Compare the predictions of a run with the labels of its test volumes."""
    from fastseg.commands.infer import evaluate_run
    from fastseg.report import metrics_table

    results, files = evaluate_run(run)
    print(metrics_table(results))
    for path in files:
        print(f"wrote {path}")


@app.command("annotate-plan")
def annotate_plan(
    volume: Annotated[str, typer.Argument(metavar="VOLUME", help="The volume, as in brain.h5:/raw.")],
    folder: PlanFolder,
    slices: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, help="How many slices to add to the plan."),
    ] = None,
    at: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(metavar="N,N,...", help="Instead: the slices to add, counted from 0."),
    ] = None,
    axis: Annotated[str, typer.Option(help="Across the slices: z, y or x.")] = "z",
    region: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(metavar="z=A:B,...", help="The part to annotate, in voxels, as in z=0:64,x=100:356."),
    ] = None,
    run: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="The folder of a run: take the slices that its network is least certain in."),
    ] = None,
    axes: Annotated[Optional[str], typer.Option(help="The axes of VOLUME, as in czyx.")] = None,  # noqa: UP045
    window: Annotated[
        int, typer.Option(min=1, help="Side of the windows that uncertainty is taken over, with --run.")
    ] = 32,
) -> None:
    """Choose slices to annotate, evenly, by hand or where a network is least certain, and write a TIFF of each.

    The same command adds slices to the plan that the folder holds.
    """
    from fastseg.commands.annotate import plan_slices

    for line in plan_slices(
        volume, folder, slices, at=at, axis=axis, region=region, run=run, axes=axes, window=window
    ):
        print(line)


@app.command("annotate-import")
def annotate_import(
    folder: PlanFolder,
    unlabelled: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(metavar="ID", help="The id of what was not looked at: it becomes mask 0."),
    ] = None,
    rois: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(metavar="FILE", help="ROIs of the stack from ImageJ's ROI manager, as in RoiSet.zip."),
    ] = None,
) -> None:
    """Gather the labels in the folder of a plan into annotations.h5: labels and mask, as training reads them."""
    from fastseg.commands.annotate import import_labels

    for line in import_labels(folder, unlabelled, rois):
        print(line)


@app.command()
def bench(
    config: ConfigPath,
    overrides: Overrides = None,
    pipeline: Annotated[
        bool, typer.Option("--pipeline", help="Time loading, learning, and both together.")
    ] = False,
    seconds: Annotated[float, typer.Option(min=0.1, help="For each of the three.")] = 20.0,
    output: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            "--json", metavar="FILE", help="Write the figures and the configuration to a file, too."
        ),
    ] = None,
) -> None:
    """Time the pipeline of a configuration on this machine. Nothing is trained or kept."""
    from fastseg.commands.bench import bench_pipeline

    if not pipeline:
        raise InputError("say what to time: fastseg bench --pipeline CONFIG")
    for line in bench_pipeline(_load(config, overrides), seconds, output):
        print(line)


@app.command()
def info() -> None:
    """Versions, devices, and which kernels this build has."""
    from fastseg.commands.info import describe_installation

    for line in describe_installation():
        print(line)


@app.command()
def demo(
    output: Annotated[str, typer.Argument(help="The folder to write.")] = "fastseg_demo",
    seed: Annotated[int, typer.Option(help="Seed of the phantoms and of the training.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier demo.")] = False,
) -> None:
    """Make a phantom with a few annotated slices, train three networks on it, and let them segment another one."""
    from fastseg.commands.demo import run_demo
    from fastseg.report import metrics_table

    results, files = run_demo(output, seed, overwrite)
    print(metrics_table(results))
    for path in files:
        print(f"wrote {path}")


def _load(config: str, overrides: list[str] | None):
    from fastseg.methods.config_file import load_config

    return load_config(config, overrides or [])


def main() -> None:
    code = _run()
    if os.environ.get("WORLD_SIZE", "1") != "1":
        # DistributedDataParallel keeps gloo's threads beyond the end of their group. One that gives back a tensor while
        # the interpreter is being taken down aborts the process, whose work was done.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _run() -> int:
    """The exit code."""
    threading.excepthook = _error_in_thread
    try:
        app()
    except SystemExit as ended:  # as typer's commands end, with help and wrong usage too
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
            return 1
        return ended.code or 0
    except InputError as error:
        print(f"fastseg: {error}", file=sys.stderr)
        return 2
    except Interrupted as reason:
        print(f"fastseg: {reason}", file=sys.stderr)
        return EXIT_INTERRUPTED
    except KeyboardInterrupt:
        print("fastseg: interrupted; checkpoints written so far are whole", file=sys.stderr)
        return 130
    except Exception as error:
        said, code = _explain(error)
        print(f"fastseg: {said}", file=sys.stderr)
        return code
    return 0


def _error_in_thread(ended: threading.ExceptHookArgs) -> None:
    """One line, where Python prints a trace; none of files, as of TensorBoard's, which the main thread meets, too."""
    if ended.exc_value is not None and not isinstance(ended.exc_value, OSError):
        print(f"fastseg: {log_unexpected(ended.exc_value)}", file=sys.stderr)


def _explain(error: Exception) -> tuple[str, int]:
    """What to say of an error that no command foresaw, and the exit code."""
    if isinstance(error, OSError) and error.filename is not None:  # a full disk, a volume that is gone
        return f"{os.fsdecode(error.filename)}: {error.strerror}", 2
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return f"out of memory: {' '.join(str(error).split())[:300] or 'no size stated'}", 2
    return log_unexpected(error), 1


if __name__ == "__main__":
    main()
