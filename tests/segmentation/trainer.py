"""Trains a tiny network or pretrains a tiny backbone, as a script that torchrun can start.

python trainer.py train PREPARED OUT SETTINGS.json PRETRAINED
python trainer.py pretrain PREPARED OUT SETTINGS.json
"""

import json
import sys
from pathlib import Path

import torch

from medar.segmentation.pretext.settings import PretrainSettings
from medar.segmentation.pretext.training import pretrain_backbone
from medar.segmentation.settings import SegmentationSettings
from medar.segmentation.training import train_segmenter
from medar.settings import from_dict


def main(mode: str, prepared: str, out: str, settings: str, pretrained: str = "") -> None:
    torch.set_num_threads(1)
    values = json.loads(Path(settings).read_text())
    if mode == "pretrain":
        pretrain_backbone(from_dict(PretrainSettings, values, settings), prepared, out)
    else:
        chosen = from_dict(SegmentationSettings, values, settings)
        train_segmenter(chosen, prepared, out, pretrained=pretrained)


if __name__ == "__main__":
    main(*sys.argv[1:])
