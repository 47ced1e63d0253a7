# SPDX-License-Identifier: BSD-3-Clause
"""Configuration, training loop and checkpoints."""
