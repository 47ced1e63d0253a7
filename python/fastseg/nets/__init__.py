# SPDX-License-Identifier: BSD-3-Clause
"""Networks."""

from fastseg.nets.unet import UNet

__all__ = ["UNet"]
