# SPDX-License-Identifier: BSD-3-Clause
"""The results of benchmarks: a CSV file per device, a Markdown table and a picture of it. Needs no torch.

python benchmarks/table.py benchmarks/results/cpu_amd_epyc.csv --png table.png
"""

import argparse
import csv
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
COLUMNS = (
    *("date", "commit", "device", "torch", "threads", "op", "case", "shape", "contestant", "direction"),
    *("median_ms", "q25_ms", "q75_ms", "rounds", "host_us", "peak_mib", "bytes", "copy_gb_s", "of_copy"),
    *("flops", "matrix_tflop_s", "of_matrix", "command"),
)
OURS = "fused"  # what the others are compared with
DIRECTIONS = ("forward", "backward", "both")


def device_file(folder: Path, device: str) -> Path:
    """cpu_amd_epyc.csv for "CPU AMD EPYC, 2 cores, AVX512"."""
    name = re.sub(r"\((r|tm)\)", "", device.split(",")[0].lower())
    return folder / f"{re.sub(r'[^a-z0-9]+', '_', name).strip('_')}.csv"


def commit() -> str:
    """The commit of this checkout, -dirty if what is measured has changed since."""

    def git(*arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)

    try:
        found = git("rev-parse", "--short", "HEAD").stdout.strip()
        if not found:
            return "unknown"
        measured = ("kernels", "csrc", "python", "benchmarks/*.py", "CMakeLists.txt")
        return found + ("-dirty" if git("diff", "--quiet", "HEAD", "--", *measured).returncode else "")
    except OSError:
        return "unknown"


def append_rows(file: Path, rows: Iterable[dict]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    new = not file.exists()
    if not new and (header := file.open().readline().strip().split(",")) != list(COLUMNS):
        raise ValueError(
            f"{file} has other columns than this version writes: {', '.join(header)}; move it away"
        )
    with file.open("a", newline="") as out:
        writer = csv.DictWriter(out, COLUMNS, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerows(rows)


def read_rows(file: Path) -> list[dict]:
    with file.open(newline="") as text:
        return list(csv.DictReader(text))


def latest(rows: list[dict]) -> list[dict]:
    """Of each op those of its last run."""
    dates = {row["op"]: row["date"] for row in sorted(rows, key=lambda row: row["date"])}
    return [row for row in rows if row["date"] == dates[row["op"]]]


def grouped(rows: list[dict]) -> dict[tuple, dict[str, dict[str, dict]]]:
    """{(op, case, threads): {contestant: {direction: row}}}."""
    groups = {}
    for row in rows:
        group = groups.setdefault((row["op"], row["case"], str(row["threads"])), {})
        group.setdefault(row["contestant"], {})[row["direction"]] = row
    return groups


def render(rows: list[dict]) -> str:
    """The Markdown table of these rows, which one machine measured."""
    lines, groups = [], grouped(rows)
    for op in dict.fromkeys(row["op"] for row in rows):
        of_op = [row for row in rows if row["op"] == op]
        first, shapes = (
            of_op[0],
            dict.fromkeys(f"{row['case'].rsplit(' ', 2)[0]} {row['shape']}" for row in of_op),
        )
        lines += [
            f"# {op}",
            "",
            f"{first['device']}; torch {first['torch']}; commit {first['commit']}; {first['date']}. Medians of "
            f"{_range(of_op, 'rounds')} rounds in ms, in brackets the quartiles; `times` is the whole step against "
            "ours; peak is MiB above the inputs, the gradients included; `of copy` is the time in which the bytes that "
            "must move would be copied, as a share of the time taken, forward and backward.",
            "",
            *(f"    {command}" for command in dict.fromkeys(row["command"] for row in of_op)),
            "",
            f"Shapes: {'; '.join(shapes)}.",
            "",
            "| case | threads | | forward | backward | both | times | peak | of copy |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        for (_, case, threads), contestants in ((k, v) for k, v in groups.items() if k[0] == op):
            whole = {name: rows.get("both", rows["forward"]) for name, rows in contestants.items()}
            ours = float(whole[OURS]["median_ms"]) if OURS in whole else None
            for name, directions in contestants.items():
                cells = [_milliseconds(directions.get(d, {}).get("median_ms")) for d in DIRECTIONS[:2]]
                both = whole[name]
                low, middle, high = (_milliseconds(both[key]) for key in ("q25_ms", "median_ms", "q75_ms"))
                shares = [f"{float(directions[d]['of_copy']):.0%}" for d in DIRECTIONS[:2] if d in directions]
                times = f"{float(both['median_ms']) / ours:.2f}" if ours else "-"
                peak = f"{float(both['peak_mib']):.0f}" if both["peak_mib"] else "-"
                lines.append(
                    f"| {case} | {threads} | {name} | {' | '.join(cells)} | {middle} ({low}-{high}) "
                    f"| {times} | {peak} | {', '.join(shares)} |"
                )
        bandwidths = {threads: [] for _, _, threads in groups}
        for row in of_op:
            bandwidths[str(row["threads"])].append(float(row["copy_gb_s"]))
        lines += [
            "",
            *(
                f"Copy bandwidth, {threads} threads: {min(values):.1f} to {max(values):.1f} GB/s."
                for threads, values in bandwidths.items()
                if values
            ),
            "",
        ]
    return "\n".join(lines)


def _range(rows: list[dict], column: str) -> str:
    values = sorted({int(row[column]) for row in rows})
    return str(values[0]) if len(values) == 1 else f"{values[0]} to {values[-1]}"


def _milliseconds(text) -> str:
    if text is None:
        return "-"
    value = float(text)
    return f"{value:.2f}" if value >= 1 else f"{value:.4f}" if value < 0.1 else f"{value:.3f}"


def save_plot(rows: list[dict], file: Path) -> None:
    """A panel per case: forward and backward stacked, and a line where copying the same bytes would end."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    groups = grouped(rows)
    across = min(2, len(groups))
    down = -(-len(groups) // across)
    figure = Figure(figsize=(6 * across, 0.6 + 1.9 * down), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(down, across, squeeze=False).ravel()
    for panel, ((op, case, threads), contestants) in zip(panels, groups.items(), strict=False):
        start = dict.fromkeys(contestants, 0.0)
        for direction, color in (("forward", "#3b6fb6"), ("backward", "#9dbbe0")):
            for name, directions in contestants.items():
                if direction in directions:
                    value = float(directions[direction]["median_ms"])
                    label = direction if name == next(iter(contestants)) else None
                    panel.barh(name, value, left=start[name], color=color, label=label)
                    start[name] += value
        row = next(iter(contestants.values()))
        row = row.get("both", row["forward"])
        floor = float(row["bytes"]) / float(row["copy_gb_s"]) / 1e6
        panel.axvline(floor, color="#444", linestyle="--", linewidth=1, label="copy of the same bytes")
        panel.set_title(f"{op}: {case}, {row['shape']}, {threads} threads", fontsize=9)
        panel.set_xlabel("ms (median)", fontsize=8)
        panel.tick_params(labelsize=8)
        panel.invert_yaxis()
    for panel in panels[len(groups) :]:
        panel.set_axis_off()
    panels[0].legend(fontsize=7)
    figure.suptitle(f"{rows[0]['device']}, torch {rows[0]['torch']}, commit {rows[0]['commit']}", fontsize=9)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Print, and draw, the latest run of each op in a CSV of results."
    )
    parser.add_argument("file", type=Path, nargs="?", help="default: the only one in benchmarks/results")
    parser.add_argument("--op", help="only this op")
    parser.add_argument("--commit", help="only runs of this commit")
    parser.add_argument("--png", type=Path, help="draw the table to this file")
    parser.add_argument("--save", type=Path, help="write the table to this Markdown file")
    options = parser.parse_args()
    files = [options.file] if options.file else sorted(RESULTS.glob("*.csv"))
    if len(files) != 1:
        parser.error(f"which file? {', '.join(map(str, files)) or f'{RESULTS} has none'}")
    rows = [r for r in read_rows(files[0]) if options.op in (None, r["op"])]
    rows = latest([r for r in rows if options.commit in (None, r["commit"])])
    if not rows:
        parser.error(f"{files[0]} has no such rows")
    print(render(rows))
    if options.save:
        options.save.write_text(render(rows))
    if options.png:
        save_plot(rows, options.png)


if __name__ == "__main__":
    main()
