# SPDX-License-Identifier: BSD-3-Clause
"""The cases that tell most about a GPU, the most wanted first, and a table of them to paste. Needs no torch."""

from collections.abc import Iterable

from table import OURS, grouped

PEER = "compile"
ROWS = {  # title: op, cases
    "masked_bce 2x1x128^3 f32 codes": ("masked_bce", ["3D float32 codes"]),
    "masked_bce 2x32x64^3 bf16 codes": ("masked_bce", ["3D, 32 channels bfloat16 codes"]),
    "region_pool 2x32x64^3 f32, R 64 random / blocks": (
        "region_pool",
        ["3D, 32 channels float32 random 64", "3D, 32 channels float32 blocks 64"],
    ),
    "the same, R 4096 random / blocks": (
        "region_pool",
        ["3D, 32 channels float32 random 4096", "3D, 32 channels float32 blocks 4096"],
    ),
    "soft_region_pool K 16: C 32 / 3 / 1, f32": (
        "soft_region_pool",
        ["3D, 32 channels float32", "2D, 3 channels float32", "3D float32"],
    ),
    "patch_entropy 128^3, 16/8 scores": ("patch_entropy", ["3D, 16 / 8 float32 scores"]),
    "patch_entropy 512^3, 32/16 scores f16": ("patch_entropy", ["3D, 512^3, 32 / 16 float16 scores"]),
    "region_contrast bf16 D 128: N 512 / 2048 / 8192 / 32768": (
        "region_contrast",
        [f"{rows} x 128 bfloat16" for rows in (512, 2048, 8192, 32768)],
    ),
    "region_contrast f32 D 128: N 8192": ("region_contrast", ["8192 x 128 float32"]),
    "region_contrast bf16 D 128: N 65536": ("region_contrast", ["65536 x 128 bfloat16"]),
    "region_contrast with a bank: 4096 x 65536 bf16; 64 images of 256 bf16; raw patches f32": (
        "region_contrast_bank",
        [
            "4096 x 65536 x 128 bfloat16 bank",
            "16384 x 16384 x 256 bfloat16 groups",
            "64 x 1024 x 7500 float32 neg_mse",
        ],
    ),
    "masked_bce 2.2e9 voxels bf16": ("masked_bce", ["3D, 2.2e9 voxels bfloat16 codes"]),
}
CASES = [(op, case) for op, cases in ROWS.values() for case in cases]


def paste(rows: Iterable[dict], overhead: Iterable[dict]) -> str:
    """GPU time beside torch.compile and host time beside yardsticks, in Markdown; what was not measured says so."""
    groups = {(op, case): contestants for (op, case, _), contestants in grouped(rows).items()}
    lines = [
        "GPU time, ms. The share is of `copy`, or of a large bf16 product where the op is one of matrices, measured in "
        "this run: forward, backward. Host time is that of one forward and backward.",
        "",
        "| | ours fwd / bwd | compile fwd / bwd | ours is | share | host us |",
        "|---|---|---|---|---|---|",
    ]
    for title, (op, cases) in ROWS.items():
        cells = [_cells(groups.get((op, case), {})) for case in cases]
        lines.append(f"| {title} | {' | '.join('; '.join(column) for column in zip(*cells, strict=True))} |")
    lines += ["", "Host time of tiny inputs, forward + backward:", "", "| | through | us |", "|---|---|---|"]
    lines += [f"| {row['name']} | {row['door']} | {float(row['us']):.0f} |" for row in overhead]
    return "\n".join([*lines, ""])


def _cells(contestants: dict[str, dict[str, dict]]) -> list[str]:
    ours, peer = contestants.get(OURS), contestants.get(PEER)
    if ours is None:
        return ["not measured", _times(peer), "-", "-", "-"]
    whole = ours.get("both", ours["forward"])
    faster = "-"
    if peer:
        faster = f"{float(peer.get('both', peer['forward'])['median_ms']) / float(whole['median_ms']):.2g}x"
    shares = [
        f"{float(ours[d]['of_matrix'] or ours[d]['of_copy']):.0%}"
        for d in ("forward", "backward")
        if d in ours
    ]
    host = f"{float(whole['host_us']):.0f}" if whole["host_us"] else "-"
    return [_times(ours), _times(peer), faster, ", ".join(shares), host]


def _times(directions: dict[str, dict] | None) -> str:
    if directions is None:
        return "-"
    found = (directions[d]["median_ms"] for d in ("forward", "backward") if d in directions)
    return " / ".join(f"{float(value):.3f}" if float(value) < 1 else f"{float(value):.2f}" for value in found)
