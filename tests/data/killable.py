"""Runs `medar` with preparation slowed down, so that it can be interrupted.

A script rather than a test: spawned workers import the main module again, and so are slow too.
"""

import sys
import time

from medar.cli.main import main
from medar.data import prepare

made = prepare.prepare_image


def slowly(*arguments):
    time.sleep(0.15)
    return made(*arguments)


prepare.prepare_image = slowly

if __name__ == "__main__":
    main(sys.argv[1:])
