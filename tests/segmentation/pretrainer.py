"""Pretrains a tiny backbone: `python pretrainer.py PREPARED OUT SETTINGS.json`.

A script, so that torchrun can start it.
"""

import json
import os
import sys
from pathlib import Path

import torch

from medar.segmentation.pretext.settings import PretrainSettings
from medar.segmentation.pretext.training import pretrain_backbone
from medar.settings import from_dict


def main(prepared: str, out: str, settings: str) -> None:
    torch.set_num_threads(1)
    values = json.loads(Path(settings).read_text())
    pretrain_backbone(from_dict(PretrainSettings, values, settings), prepared, out)


if __name__ == "__main__":
    main(*sys.argv[1:])
    if "WORLD_SIZE" in os.environ:
        # All is written. Threads of gloo now and then abort a process that tears them down.
        sys.stderr.flush()
        os._exit(0)
