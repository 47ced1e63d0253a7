# SPDX-License-Identifier: BSD-3-Clause
"""Segmentation methods: each names its networks, batches and losses; the trainer does the rest."""
