# SPDX-License-Identifier: BSD-3-Clause
"""The kernels with choices, whichever language they are in: which are asked for, their candidates, taking one of them.

Triton's are asked for at launch (fastseg.tuning). CUDA's are all compiled into a build with FASTSEG_TUNING=ON, which
has a variable for each kernel: how often it was launched, and the candidate to launch (kernels/tuning/cuda.py).
"""

import ctypes
from collections.abc import Callable

from fastseg.tuning import cuda

from fastseg import _C, tuning

Key = tuple[str, str]  # kernel, case


class Variable(ctypes.Structure):
    _fields_ = (("candidate", ctypes.c_int), ("asked", ctypes.c_longlong))


class Choices:
    def __init__(self, library: str = _C.__file__) -> None:
        loaded, self.variables = ctypes.CDLL(library), {}
        for kernel in cuda.CHOICES:
            try:
                self.variables[kernel] = Variable.in_dll(loaded, f"fastseg_tuning_{kernel}")
            except ValueError:  # an ordinary build, which has no choice left
                continue

    def asked_for_by(self, run: Callable[[], object]) -> dict[Key, list[tuning.Values]]:
        """The candidates of all kernels that `run` launches, the default first."""
        before = {kernel: variable.asked for kernel, variable in self.variables.items()}
        with tuning.record() as asked:
            run()
        launched = [kernel for kernel, variable in self.variables.items() if variable.asked > before[kernel]]
        return asked | {(kernel, ""): cuda.candidates(kernel) for kernel in launched}

    def take(self, key: Key, values: tuning.Values) -> None:
        """Launch this kernel so from now on."""
        if key[0] in self.variables:
            self.variables[key[0]].candidate = cuda.candidates(key[0]).index(values)
        else:
            tuning.force({key: values})
