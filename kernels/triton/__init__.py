# SPDX-License-Identifier: BSD-3-Clause
"""GPU kernels in Triton, imported by the ops that use them when the first tensor on a GPU comes."""
