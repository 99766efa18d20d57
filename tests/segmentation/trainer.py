"""Trains a tiny network: `python trainer.py PREPARED OUT SETTINGS.json PRETRAINED`.

A script, so that torchrun can start it.
"""

import json
import os
import sys
from pathlib import Path

import torch

from medar.segmentation.settings import SegmentationSettings
from medar.segmentation.training import train_segmenter
from medar.settings import from_dict


def main(prepared: str, out: str, settings: str, pretrained: str) -> None:
    torch.set_num_threads(1)
    values = json.loads(Path(settings).read_text())
    chosen = from_dict(SegmentationSettings, values, settings)
    train_segmenter(chosen, prepared, out, pretrained=pretrained)


if __name__ == "__main__":
    main(*sys.argv[1:])
    if "WORLD_SIZE" in os.environ:
        # All is written. Threads of gloo now and then abort a process that tears them down.
        sys.stderr.flush()
        os._exit(0)
