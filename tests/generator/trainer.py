"""Trains a tiny generator: `python trainer.py TOKENS OUT SETTINGS.json`.

A script, so that several processes can be started.
"""

import json
import sys
from pathlib import Path

import torch

from medar.generator.settings import GeneratorSettings
from medar.generator.training import train_generator
from medar.settings import from_dict


def main(tokens: str, out: str, settings: str) -> None:
    torch.set_num_threads(1)
    values = json.loads(Path(settings).read_text())
    train_generator(from_dict(GeneratorSettings, values, settings), tokens, out)


if __name__ == "__main__":
    main(*sys.argv[1:])
