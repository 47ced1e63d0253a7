# SPDX-License-Identifier: BSD-3-Clause
"""Pretraining without labels, and training with few from there."""
