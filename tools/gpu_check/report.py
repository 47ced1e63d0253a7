# SPDX-License-Identifier: BSD-3-Clause
"""What a gpu-check found, in words: results of its steps, JUnit and sanitizer reports, the summary."""

import json
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

from telling import paste

PASSED, FAILED, NOT_RUN = "passed", "FAILED", "did not run"
NUMBERS_DIFFER = 3  # exit code of tests.ops.small_cases


@dataclass
class Result:
    status: str
    note: str
    missing: list[str] = field(default_factory=list)  # parts of a step that ran which did not run, and why
    parts: dict[str, "Result"] = field(
        default_factory=dict
    )  # what else the step found, each a line of its own
    fatal: bool = False  # nothing can be run after this
    seconds: float = 0.0


def read_junit(file: Path, on_gpu: bool) -> Result:
    """How a pytest run went. On a machine with a GPU a run without a test on it has failed."""
    if not file.exists():
        return Result(FAILED, "pytest wrote no report")
    skipped, broken, cuda, passed = Counter(), [], 0, 0
    for case in ElementTree.parse(file).iter("testcase"):
        name = f"{case.get('classname', '')}::{case.get('name', '')}".lstrip(":")
        problem = case.find("failure") if case.find("failure") is not None else case.find("error")
        if problem is not None:
            broken.append(f"{name}: {(problem.get('message') or '').splitlines()[0][:120]}")
        elif case.find("skipped") is not None:
            skipped[_reason(case.find("skipped"))] += 1
        else:
            passed += 1
            cuda += "cuda" in case.get("name", "")
    note = f"{passed} tests passed" + (f", {cuda} of them on the GPU" if on_gpu else "")
    missing = [f"{count} tests: {reason}" for reason, count in skipped.most_common()]
    if broken:
        return Result(FAILED, _first(broken, f"tests failed, {note}"), missing)
    if not passed:
        return Result(NOT_RUN, "every test was skipped, or there was none", missing)
    if on_gpu and not cuda:
        return Result(FAILED, f"{note}: the GPU is there, but no test ran on it", missing)
    return Result(PASSED, note, missing)


def _reason(skipped: ElementTree.Element) -> str:
    reason = skipped.get("message") or "no reason given"
    if reason == "collection skipped" and (found := re.search(r"Skipped: (.*?)['\"]\)", skipped.text or "")):
        return f"{found[1]} (a whole file)"
    return reason.removeprefix("Skipped: ").splitlines()[0]


def read_sanitizer(text: str, code: int | None) -> Result:
    """What compute-sanitizer, or our script under it, said. A tool that refuses the machine has not run. Numbers that
    differ are a part of their own: they are no matter of memory or races."""
    lines = text.splitlines()
    tool = [line.removeprefix("=========").strip() for line in lines if line.startswith("=========")]
    summaries = [line for line in tool if re.search(r"(ERROR|RACECHECK) SUMMARY", line)]
    ran = next((found for line in lines if (found := re.match(r"(\d+) of (\d+) small cases", line))), None)
    found = any(int(number) for line in summaries for number in re.findall(r"\d+", line))
    wrong = [line.removeprefix("numbers: ") for line in lines if line.startswith("numbers: ")]
    parts = {"numbers": Result(FAILED, _first(wrong, "small cases differ"))} if wrong else {}
    if code in (0, NUMBERS_DIFFER) and ran and summaries and not found:
        done, wanted = int(ran[1]), int(ran[2])
        missing = [] if done == wanted else [f"{wanted - done} of {wanted} small cases: no time left"]
        return Result(PASSED, f"{ran.string}; {summaries[-1]}", missing, parts)
    refused = r"not supported|Unable to (find|load)|requires? (root|admin)|Failed to initialize"
    for line in tool:
        if re.search(refused, line) and not ran:
            return Result(NOT_RUN, f"compute-sanitizer: {line}", parts=parts)
    if code is None:
        return Result(FAILED, "stopped at its time limit", parts=parts)
    said = [f"exit code {code}", *summaries[-1:], *([] if ran else lines[-1:])]
    return Result(FAILED, "; ".join(said), parts=parts)


def _first(problems: list[str], what: str, most: int = 5) -> str:
    more = f"; and {len(problems) - most} more" if len(problems) > most else ""
    return f"{len(problems)} {what}: {'; '.join(problems[:most])}{more}"


def summarize(title: str, facts: dict, results: dict[str, Result], total: float, folder: Path) -> str:
    """The summary in Markdown: what passed, what failed, what did not run and why."""
    count = Counter(result.status for result in results.values())
    lines = [
        f"# {title}",
        "",
        ", ".join(f"{count[status]} {status}" for status in (PASSED, FAILED, NOT_RUN))
        + f"; {total:.0f} s in all.",
        "",
        *(f"- {name}: {value}" for name, value in facts.items()),
        "",
        "| check | result | seconds | |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {name} | {result.status} | {result.seconds:.0f} | {result.note.replace('|', '/')} |"
        for name, result in results.items()
    ]
    absent = [f"- {name}: {result.note}" for name, result in results.items() if result.status == NOT_RUN]
    absent += [f"- {name}, in part: {part}" for name, result in results.items() for part in result.missing]
    lines += ["", "## What did not run", "", *(absent or ["Nothing was left out."])]
    table = folder / "benchmarks" / "table.md"
    if table.exists():
        lines += ["", "## Benchmarks", "", table.read_text().replace("# ", "### ", 1).strip()]
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    lines += ["", "## Files", "", *(f"- {name}" for name in files if name != "summary.md"), ""]
    rows, overhead = (
        json.loads(file.read_text()) if file.exists() else []
        for file in (folder / "benchmarks/rows.json", folder / "host_time.json")
    )
    return "\n".join([*lines, "## To paste", "", paste(rows, overhead)])
