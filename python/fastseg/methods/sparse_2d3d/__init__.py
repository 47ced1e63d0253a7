# SPDX-License-Identifier: BSD-3-Clause
"""From a few annotated slices to a dense 3D segmentation."""
