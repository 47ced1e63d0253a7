# SPDX-License-Identifier: BSD-3-Clause
"""Training and prediction from end to end, as `fastseg bench --pipeline` times them, of a table of networks.

Each is timed as it is, on a GPU as CUDA graphs too, and with --compile compiled. Volumes are drawn. A row is appended
to results/pipeline/<device>.csv as soon as it is measured.

python benchmarks/bench_pipeline.py --only "3D width 8" "2D width 8"
"""

import argparse
import csv
import datetime
import tempfile
from pathlib import Path

import h5py
import torch
from measure import device_name
from table import RESULTS, commit, device_file

from fastseg.commands.bench import measure
from fastseg.data.phantoms import make_phantom
from fastseg.methods.config import config_type
from fastseg.train.config import Config

COLUMNS = (
    *("date", "commit", "device", "torch", "threads", "network", "how", "patch", "batch"),
    *("loader", "model", "end_to_end", "of_model", "launches", "allocations", "waits", "graph_launches"),
    *("predict_model", "predict_end_to_end", "predict_of_model", "peak_mib"),
)
PATCHES = {  # a CPU learns from smaller ones
    "cuda": {"3D": [16, 96, 96], "2D": [256, 256]},
    "cpu": {"3D": [8, 32, 32], "2D": [64, 64]},
}
SHAPE = (48, 288, 288)
HOW = {"eager": {"graph": "off"}, "graph": {"graph": "on"}, "compile": {"graph": "off", "compile": True}}

# What each network's configuration says beside the volumes, patch and device.
NETWORKS = {
    **{
        f"{dims} width {width}": (dims, {"network": {"width": width}})
        for dims in ("3D", "2D")
        for width in (8, 16, 32)
    },
    "resnet50": ("2D", {"network": {"kind": "resnet50", "pooling": [2] * 5}}),
    "patch_contrast": ("2D", {"method": "patch_contrast", "patch_contrast": {"patch_size": 16, "stride": 8}}),
    "region_contrast": ("2D", {"method": "region_contrast", "network": {"width": 8}}),
}


def config_of(folder: Path, name: str, how: str, device: str) -> Config:
    dims, settings = NETWORKS[name]
    volume = f"{folder}/phantom.h5"
    return config_type().model_validate(
        {
            "output": f"{folder}/run",
            **settings,
            "data": {
                "train": [{"raw": f"{volume}:/raw", "labels": f"{volume}:/somata"}],
                "patch": PATCHES[device][dims],
            },
            "train": {"device": device, **HOW[how]},
        }
    )


def row_of(config: Config, seconds: float) -> dict:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    config, rates, predicted, _ = measure(config, seconds)
    on_gpu = config.train.device == "cuda"
    row = {
        "patch": "x".join(map(str, config.data.patch)),
        "batch": config.train.batch,
        "loader": rates.loader,
        "model": rates.model,
        "end_to_end": rates.end_to_end,
        "of_model": rates.efficiency,
        "launches": rates.step.launches,
        "allocations": rates.step.allocations,
        "waits": rates.step.waits,
        "graph_launches": rates.graphed.launches if rates.graphed else "",
        "peak_mib": torch.cuda.max_memory_allocated() >> 20 if on_gpu else "",
    }
    if predicted is not None:
        row |= {
            "predict_model": predicted.model,
            "predict_end_to_end": predicted.end_to_end,
            "predict_of_model": predicted.efficiency,
        }
    return {name: f"{value:.4g}" if isinstance(value, float) else value for name, value in row.items()}


def append(file: Path, row: dict) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    new = not file.exists()
    with file.open("a", newline="") as out:
        writer = csv.DictWriter(out, COLUMNS, restval="", lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(row)


def main() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=NETWORKS, default=list(NETWORKS), metavar="NETWORK")
    parser.add_argument("--compile", action="store_true", help="compiled, too: minutes a network")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each stage (%(default)s)")
    parser.add_argument("--results", type=Path, default=RESULTS / "pipeline")
    options = parser.parse_args()
    hows = ["eager", *(["graph"] if device == "cuda" else []), *(["compile"] if options.compile else [])]
    run = {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": commit(),
        "device": device_name(device),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
    file = device_file(options.results, run["device"])
    shown = COLUMNS[5:]
    print(f"{run['device']}, {run['threads']} threads, torch {run['torch']}, commit {run['commit']}\n")
    print(f"| {' | '.join(shown)} |\n|{'---|' * len(shown)}")
    with tempfile.TemporaryDirectory() as folder:
        phantom = make_phantom(SHAPE)
        with h5py.File(f"{folder}/phantom.h5", "w") as volume:
            volume.create_dataset("raw", data=phantom.raw, chunks=(16, 64, 64), compression="gzip")
            volume.create_dataset("somata", data=phantom.instances, chunks=(16, 64, 64), compression="gzip")
        for network in options.only:
            for how in hows:
                config = config_of(Path(folder), network, how, device)
                row = run | {"network": network, "how": how} | row_of(config, options.seconds)
                append(file, row)
                print(f"| {' | '.join(str(row.get(column, '')) for column in shown)} |", flush=True)


if __name__ == "__main__":
    main()
