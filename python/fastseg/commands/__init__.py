# SPDX-License-Identifier: BSD-3-Clause
"""What the command line's commands do, one file each where it is more than a call."""
