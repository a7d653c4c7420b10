"""`python -m harness`."""

import sys

if not sys.flags.safe_path:
    sys.path.pop(0)  # the working directory, whose files are the user's and no modules

from harness.cli.commands import main

if __name__ == "__main__":
    raise SystemExit(main())
