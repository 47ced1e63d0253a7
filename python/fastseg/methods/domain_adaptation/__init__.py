# SPDX-License-Identifier: BSD-3-Clause
"""Labels in one domain, none in the other."""
