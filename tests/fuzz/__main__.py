# SPDX-License-Identifier: BSD-3-Clause
"""Random calls by hand, for as long as one likes.

    python -m tests.fuzz [OP ...] [--seed N] [--seconds S] [--case N]

Ends at the first call that is not what its oracle says, with the op, seed and case that repeat it.
"""

from __future__ import annotations

import argparse
import itertools
import time
import warnings
from collections.abc import Callable, Iterable

from tests.fuzz.draws import Draws
from tests.fuzz.ops import OPS


def fuzz(op: Callable[[Draws], None], seed: int, cases: Iterable[int], seconds: float = float("inf")) -> int:
    """Run cases of one op until one fails or the time is over; how many there were."""
    begun, done = time.monotonic(), 0
    for case in cases:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                op(Draws(seed, case))
        except Exception as error:
            raise AssertionError(
                f"python -m tests.fuzz {op.__name__} --seed {seed} --case {case}: {error}"
            ) from error
        done += 1
        if time.monotonic() - begun > seconds:
            break
    return done


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("ops", nargs="*", metavar="OP")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=60, help="for each op")
    parser.add_argument("--case", type=int, help="this one alone")
    options = parser.parse_args()
    for op in OPS:
        if not options.ops or op.__name__ in options.ops:
            cases = itertools.count() if options.case is None else [options.case]
            print(f"{op.__name__}: {fuzz(op, options.seed, cases, options.seconds):,} cases", flush=True)


if __name__ == "__main__":
    main()
