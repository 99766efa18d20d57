"""Run `medar` with the given arguments, as one of several processes."""

import os
import sys

from medar.cli.main import main

if __name__ == "__main__":
    try:
        main()
    except SystemExit as end:
        # All is written. Threads of gloo now and then abort a process that tears them down.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(int(end.code or 0))
