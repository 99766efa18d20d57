"""A tiny bundle, packed from untrained models and measured on volumes of noise."""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from medar.data.manifest import Case, Manifest, Split
from medar.data.plan import Plan
from medar.data.prepare import prepare
from medar.packing.card import CardSettings
from medar.packing.pack import pack
from medar.segmentation.backbones import BackboneSettings
from medar.segmentation.segmenter import Segmenter
from medar.synthesis.synthesizer import Synthesizer
from medar.volume import Volume, write_nifti

sys.path.insert(0, str(Path(__file__).parents[1] / "evaluation"))

from small_volumes import make_generator, make_plan, smooth

torch.set_num_threads(1)

SPLITS: tuple[Split, ...] = ("train", "train", "train", "train", "test", "test", "val")

CARD = CardSettings(
    title="Small noise",
    makes="CT of noise, 8 x 8 x 8 voxels of 1 mm",
    data="Seven volumes of blurred noise.",
    licence="CC0",
    split="4 to train, 1 to validate, 2 to test, by subject.",
    training="None.",
    limits=("They show nothing.",),
    citation="Nobody.",
)


@dataclass(frozen=True)
class Models:
    """Untrained models with their folders, and prepared volumes that fit them."""

    folder: Path
    plan: Plan
    synthesizer: Synthesizer
    segmenter: Segmenter

    @property
    def generator(self) -> Path:
        return self.folder / "generator"

    @property
    def data(self) -> Path:
        return self.folder / "prepared"


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    folder, plan = tmp_path_factory.mktemp("models"), make_plan()
    cases = []
    for number, (split, array) in enumerate(zip(SPLITS, smooth(7, 8, 8, 8), strict=True)):
        image, label = folder / f"c{number}.nii.gz", folder / f"c{number}_label.nii.gz"
        write_nifti(image, Volume.from_array(array[0].numpy() * 1000, np.eye(4)))
        classes = np.where(array[0].numpy() > 0.2, 1 + (number % 2), 0).astype(np.uint8)
        write_nifti(label, Volume.from_array(classes, np.eye(4)))
        cases.append(
            Case(id=f"c{number}", images=(image,), label=label, modality="CT", split=split)
        )
    manifest = Manifest(
        root=folder, source="MSD", cases=tuple(cases), labels={1: "left", 2: "right"}
    )
    prepare(manifest, plan, folder / "prepared", workers=1)
    synthesizer = make_generator(plan, maps=False)
    synthesizer.model.save_pretrained(folder / "generator", synthesizer.tokenizer)
    torch.manual_seed(0)
    segmenter = Segmenter(BackboneSettings(width=16, max_levels=2), plan).eval()
    segmenter.save_pretrained(folder / "segmenter" / "model")
    return Models(folder, plan, synthesizer, segmenter)


@pytest.fixture(scope="session")
def bundle(models: Models) -> Path:
    """All three models, measured."""
    out = models.folder / "box" / "small-noise"
    pack(
        out,
        CARD,
        generator=models.generator,
        segmenter=models.folder / "segmenter",
        data=models.data,
        samples=3,
    )
    return out


@pytest.fixture
def box(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The bundle is the only model that comes with medar."""
    for module in ("medar.model_box", "medar.packing.pack"):
        monkeypatch.setattr(f"{module}.box_folder", lambda: bundle.parent)
    return bundle.parent
