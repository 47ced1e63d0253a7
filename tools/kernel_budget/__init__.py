# SPDX-License-Identifier: BSD-3-Clause
"""What the machine code of each GPU kernel says of its speed, without a GPU: ``python -m tools.kernel_budget``."""
