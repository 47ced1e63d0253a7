# SPDX-License-Identifier: BSD-3-Clause
"""All pairs, not all products: few cases in which any two options of any two factors meet."""

import itertools
import random


def all_pairs(factors: dict[str, list], seed: int = 0) -> list[dict]:
    """Cases, each a choice of every factor, so that every pair of choices of two factors is in one of them."""
    draw = random.Random(seed)
    names = list(factors)
    open_pairs = {
        ((a, i), (b, j))
        for a, b in itertools.combinations(names, 2)
        for i in range(len(factors[a]))
        for j in range(len(factors[b]))
    }

    def pairs_of(case):
        return set(itertools.combinations(case.items(), 2)) & open_pairs

    cases = []
    while open_pairs:
        wanted = dict(draw.choice(sorted(open_pairs)))
        candidates = [
            {name: wanted.get(name, draw.randrange(len(factors[name]))) for name in names} for _ in range(30)
        ]
        best = max(candidates, key=lambda case: len(pairs_of(case)))
        open_pairs -= pairs_of(best)
        cases.append({name: factors[name][index] for name, index in best.items()})
    return cases
