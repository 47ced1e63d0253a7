# SPDX-License-Identifier: BSD-3-Clause
"""What `fastseg` and `python -m fastseg` start: the command line, or what can be said without the training layer.

`pip install fastseg` brings the ops alone. There, `fastseg info` works all the same, and every other command says what
it lacks.
"""

from __future__ import annotations

import sys

from fastseg.commands.info import describe_installation, missing_packages


def main() -> None:
    try:
        from fastseg.cli import main as run

        run()
    except ModuleNotFoundError:
        missing = missing_packages()
        if not missing:
            raise  # another package lacks something, or this is our own bug
        if sys.argv[1:] != ["info"]:
            told = f"the command line needs packages that are not installed here: {', '.join(missing)}"
            print(f"fastseg: {told}; pip install 'fastseg[train]'", file=sys.stderr)
            sys.exit(2)
        print("\n".join(describe_installation()))


if __name__ == "__main__":
    main()
