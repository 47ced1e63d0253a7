# SPDX-License-Identifier: BSD-3-Clause
"""What a person judges a segmentation and a training by: scores, pictures, and the page of a run."""

from fastseg.report.comparison import draw_comparison, metrics_table, write_metrics

__all__ = ["draw_comparison", "metrics_table", "write_metrics"]
