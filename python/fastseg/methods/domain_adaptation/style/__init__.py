# SPDX-License-Identifier: BSD-3-Clause
"""Images of the target in the source's style."""
