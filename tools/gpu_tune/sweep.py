# SPDX-License-Identifier: BSD-3-Clause
"""Every candidate of every kernel that the cases launch: checked against the reference, timed, the best kept."""

import math
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from fastseg.tuning import Values
from harness import Case, Op, check
from measure import clear_gradients, step, time_in_turns
from table import OURS

from .choices import Choices, Key

ROUNDS = 15
LEAST_GAIN = 0.02  # of the time of the default; what is closer to it may be noise

Timer = Callable[
    [dict[int, Callable], tuple], dict[int, float]
]  # candidate's number: seconds of a whole step


@dataclass
class Trial:
    """The candidates of one kernel and case: in each benchmark's case, their time beside the default's."""

    candidates: list[Values]
    ratios: dict[int, list[float]] = field(default_factory=dict)
    default_ms: list[float] = field(default_factory=list)
    refused: dict[int, str] = field(default_factory=dict)

    def best(self) -> tuple[int, float]:
        """The candidate's number and its time as a share of the default's; the default if little is to be gained."""
        complete = {n: found for n, found in self.ratios.items() if len(found) == len(self.default_ms)}
        means = {n: math.exp(statistics.mean(map(math.log, found))) for n, found in complete.items()}
        number = min(means, key=means.__getitem__, default=0)
        return (number, means[number]) if means.get(number, 1) <= 1 - LEAST_GAIN else (0, 1.0)


def seconds_on_gpu(functions: dict[int, Callable], inputs: tuple) -> dict[int, float]:
    times = time_in_turns(functions, inputs, ROUNDS, "cuda")
    return {n: statistics.median(found.get("both", found["forward"]).device) for n, found in times.items()}


def sweep(
    cases: Iterable[tuple[Op, Case]],
    choices: Choices,
    device: str,
    timer: Timer,
    seconds: float,
    checked: bool = True,
    share: tuple[int, int] = (0, 1),
) -> dict[Key, Trial]:
    """`share` (K, N): only every Nth candidate from the Kth on, and the default. Nothing is begun after `seconds`."""
    begin, trials, cases = time.monotonic(), {}, list(cases)
    for number, (op, case) in enumerate(cases):
        left = seconds - (time.monotonic() - begin)
        if left <= 0:
            print(
                f"# {len(cases) - number} of {len(cases)} cases were not begun within {seconds:.0f} s",
                flush=True,
            )
            break
        try:
            _sweep_case(
                op, case, choices, device, timer, checked, share, trials, left / (len(cases) - number)
            )
        except Exception as error:  # the other cases may still tell something
            print(f"# {op.name}, {case}: {type(error).__name__}: {error}".splitlines()[0], flush=True)
        if device == "cuda":
            torch.cuda.empty_cache()
    return trials


def _sweep_case(op, case, choices, device, timer, checked, share, trials, seconds) -> None:
    begin = time.monotonic()
    inputs, function = op.make_inputs(case, device), op.make(OURS, case)
    expected = op.expected(case, inputs) if checked else None
    asked = choices.asked_for_by(lambda: step(function, inputs))
    for key, candidates in asked.items():
        trial = trials.setdefault(key, Trial(candidates))
        functions = {}
        for number, values in enumerate(candidates):
            mine = number == 0 or number % share[1] == share[0]
            if number in trial.refused or not mine:
                continue
            if time.monotonic() - begin > seconds * (1 + list(asked).index(key)) / len(asked):
                trial.refused[number] = "no time left"
                continue
            tried = _with(choices, key, values, function)
            try:
                if checked:
                    check(tried, inputs, expected, op.tolerance[case.dtype])
                else:
                    step(tried, inputs)
                functions[number] = tried
            except Exception as error:
                trial.refused[number] = f"{type(error).__name__}: {error}".splitlines()[0]
            clear_gradients(inputs)
        if 0 in functions:
            times = timer(functions, inputs)
            trial.default_ms.append(1e3 * times[0])
            for number, found in times.items():
                trial.ratios.setdefault(number, []).append(found / times[0])
        choices.take(key, candidates[0])
        best, gain = trial.best()
        found = f"{len(functions)} candidates, best {candidates[best]} {gain:.2f}"
        print(f"# {op.name}, {case}: {' '.join(key)}: {found}", flush=True)


def _with(choices: Choices, key: Key, values: Values, function: Callable) -> Callable:
    def tried(*inputs):
        choices.take(key, values)
        return function(*inputs)

    return tried


def table(trials: dict[Key, Trial], before: dict[str, dict[str, Values]]) -> dict[str, dict[str, Values]]:
    """What kernels/tuning/sm_<architecture>.json holds: what is better than the default. Of kernels and cases that were
    not timed now, what it held `before`."""
    timed = {key: trial for key, trial in trials.items() if trial.ratios}
    kept = {(k, c): values for k, of_kernel in before.items() for c, values in of_kernel.items()}
    kept = {key: values for key, values in kept.items() if key not in timed}
    kept |= {key: trial.candidates[trial.best()[0]] for key, trial in timed.items() if trial.best()[0]}
    chosen: dict[str, dict[str, Values]] = {}
    for (kernel, case), values in sorted(kept.items()):
        chosen.setdefault(kernel, {})[case] = values
    return chosen


def report(trials: dict[Key, Trial]) -> str:
    lines = [
        "| kernel | case | default, ms | candidates | best | of the default's time |",
        "|---|---|---|---|---|---|",
    ]
    for (kernel, case), trial in sorted(trials.items()):
        number, gain = trial.best()
        times = ", ".join(f"{ms:.3f}" for ms in trial.default_ms) or "-"
        timed = f"{len(trial.ratios)} of {len(trial.candidates)}"
        lines.append(
            f"| {kernel} | {case or '-'} | {times} | {timed} | {trial.candidates[number]} | {gain:.2f} |"
        )
    refused = [
        f"- {' '.join(key)} {trial.candidates[n]}: {why}"
        for key, trial in sorted(trials.items())
        for n, why in trial.refused.items()
    ]
    return "\n".join([*lines, "", *(["Not timed:", "", *refused] if refused else [])])


def cases_of(ops: Sequence[Op], wanted: Iterable[tuple[str, str]]) -> list[tuple[Op, Case]]:
    known = {(op.name, str(case)): (op, case) for op in ops for case in op.cases}
    return [known[name] for name in wanted]
