# SPDX-License-Identifier: BSD-3-Clause
"""A step of patch contrast beside one in plain PyTorch: what is drawn and contrasted, and all but the network.

    OMP_NUM_THREADS=1 python benchmarks/bench_patch_contrast.py --save benchmarks/results/cpu_patch_contrast.md

Both contestants take turns in one run, on the same confidence maps: 10 images of 300 x 300 in RGB, 4 channels, windows
of 50. "loss": windows drawn, their loss, its gradient with respect to the maps. "step": that from logits, and Adam over
the 7,372 parameters of the FCNN. "network": the FCNN forward and backward, the same for both.
"""

import argparse
import statistics
import time
from pathlib import Path

import patch_contrast_plain as plain
import torch
from measure import device_name
from table import commit

from fastseg.nets import FCNN
from fastseg.nn import PatchContrast

SHAPE, CHANNELS, SIZE, STRIDE, WINDOWS, ANCHORS = (10, 3, 300, 300), 4, 50, 20, 10, 10


def ours(confidence, image, seed, criterion=None):
    return (criterion or PatchContrast(SIZE, STRIDE, WINDOWS, anchors=ANCHORS))(confidence, image, seed).loss


def in_plain_pytorch(confidence, image, seed):
    torch.manual_seed(seed)
    corners, parity = plain.draw(confidence.detach(), SIZE, STRIDE, WINDOWS)
    terms = plain.loss(confidence, image, corners, parity, plain.choose(parity, ANCHORS), SIZE)
    return confidence.sum() * 0 if terms is None else terms[0].sum() + terms[1].sum()


def loss_alone(loss, image, logits):
    confidence = logits.detach().sigmoid().requires_grad_()

    def run(seed):
        confidence.grad = None
        loss(confidence, image, seed).backward()

    return run


def whole_step(loss, image, logits):
    logits = logits.detach().clone().requires_grad_()
    network = FCNN(2, SHAPE[1], CHANNELS)
    optimizer = torch.optim.Adam(network.parameters(), 2e-4, weight_decay=1e-4, fused=loss is ours)
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)

    def run(seed):
        logits.grad = None
        loss(logits.sigmoid(), image, seed).backward()
        optimizer.step()

    return run


def network_alone(image):
    network = FCNN(2, SHAPE[1], CHANNELS)

    def run(_):
        network(image).sum().backward()

    return run


def time_in_turns(functions, rounds):
    seconds = {name: [] for name in functions}
    for turn in range(rounds + 1):
        for name, function in functions.items():
            began = time.perf_counter()
            function(turn)
            if turn:  # the first warms up
                seconds[name].append(time.perf_counter() - began)
    return {name: statistics.quantiles(values, n=4) for name, values in seconds.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--save", type=Path, help="a Markdown file")
    options = parser.parse_args()
    torch.manual_seed(0)
    image = torch.rand(SHAPE)
    # Windows that are sure, positive and negative ones: a smooth map of large areas.
    coarse = torch.randn(SHAPE[0], CHANNELS, 8, 8) * 3
    logits = torch.nn.functional.interpolate(coarse, SHAPE[2:], mode="bilinear")
    times = {
        **time_in_turns(
            {
                f"{part}, {name}": make(loss, image, logits)
                for part, make in (("loss", loss_alone), ("step", whole_step))
                for name, loss in (("fastseg", ours), ("plain PyTorch", in_plain_pytorch))
            },
            options.rounds,
        ),
        **time_in_turns({"network": network_alone(image)}, min(options.rounds, 5)),
    }
    lines = [
        f"{device_name('cpu')}, {torch.get_num_threads()} threads, torch {torch.__version__}, commit {commit()}",
        "",
        "| part | median, ms | quartiles | plain / fastseg |",
        "|---|---|---|---|",
    ]
    for name, (low, middle, high) in times.items():
        part, _, who = name.partition(", ")
        ratio = f"{times[f'{part}, plain PyTorch'][1] / middle:.2f}" if who == "fastseg" else ""
        lines.append(f"| {name} | {1e3 * middle:.1f} | {1e3 * low:.1f} to {1e3 * high:.1f} | {ratio} |")
    print("\n".join(lines))
    if options.save:
        options.save.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
