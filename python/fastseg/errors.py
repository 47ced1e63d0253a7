# SPDX-License-Identifier: BSD-3-Clause
"""The one error that means: what was given cannot be used, and the message says what to mend."""


class InputError(ValueError):
    """A file, a config key or an option is unusable. The command line prints one line and exits with 2."""


class Interrupted(Exception):
    """Training was asked to stop, and has written its checkpoint. The command line exits with EXIT_INTERRUPTED."""


# EX_TEMPFAIL of sysexits.h: nothing is wrong, the same command goes on later.
EXIT_INTERRUPTED = 75
