"""Runs `medar` with preparation slowed down, so that it can be interrupted.

A script rather than a test, so that spawned workers import it and are slowed down too.
"""

import sys
import time

from medar.cli.main import main
from medar.data import prepare

made = prepare.prepare_image
calls = 0


def slowly(*arguments):
    # Fast enough to start with, then so slow that a busy machine interrupts it in time.
    global calls
    calls += 1
    time.sleep(0.1 if calls <= 3 else 2)
    return made(*arguments)


prepare.prepare_image = slowly

if __name__ == "__main__":
    main(sys.argv[1:])
