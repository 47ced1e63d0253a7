# SPDX-License-Identifier: BSD-3-Clause
"""Which checkpoint is the best, what says so, and whether it still pays to go on."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


class Chooser:
    """What says which checkpoint is the best, in place of ``train.measure`` in validation; see ``fit``.

    ``measure`` names the one among the measures that decides, ``lower_is_better`` its direction, ``every`` how many
    steps lie between two looks, and ``first`` the step before which there is none. The last step is always looked at.
    """

    measure: str
    lower_is_better: bool = True
    every: int
    first: int = 0

    def is_look(self, done: int) -> bool:
        return done >= self.first and done % self.every == 0

    def measures(self) -> dict[str, float]:
        """Measures of the network as it stands, in evaluation mode and with averaged weights if there are any; the
        same on every process."""
        raise NotImplementedError


@dataclass
class Best:
    """The best ``value`` of a measure and its ``step``. ``without_gain`` counts the validations since one last beat
    ``mark`` by more than ``gain`` and became the next mark; the first is always one."""

    lower: bool
    gain: float = 0.0
    value: float | None = None
    step: int = 0
    mark: float | None = None
    without_gain: int = 0

    def take(self, value: float, step: int) -> bool:
        """Note a validation; true if none before was as good. NaN is never good."""
        if self._beats(value, self.mark, self.gain):
            self.mark, self.without_gain = value, 0
        else:
            self.without_gain += 1
        if not self._beats(value, self.value, 0.0):
            return False
        self.value, self.step = value, step
        return True

    def _beats(self, value: float, other: float | None, by: float) -> bool:
        if other is None:
            return value == value
        return value < other - by if self.lower else value > other + by

    def state_dict(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if name not in ("lower", "gain")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, value)
