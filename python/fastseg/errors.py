# SPDX-License-Identifier: BSD-3-Clause
"""The one error that means: what was given cannot be used, and the message says what to mend."""


class InputError(ValueError):
    """A file, a config key or an option is unusable. The command line prints one line and exits with 2."""
