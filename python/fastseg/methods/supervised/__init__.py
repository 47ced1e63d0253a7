# SPDX-License-Identifier: BSD-3-Clause
"""Training from labels alone."""
