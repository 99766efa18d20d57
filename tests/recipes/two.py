"""Runs pipelines/synthesis.py with the words given, as one of several processes."""

import os
import runpy
import sys
from pathlib import Path

if __name__ == "__main__":
    try:
        script = Path(__file__).parents[2] / "pipelines" / "synthesis.py"
        runpy.run_path(str(script), run_name="__main__")
    except SystemExit as end:
        # All is written. Threads of gloo now and then abort a process that tears them down.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(int(end.code or 0))
