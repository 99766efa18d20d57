"""The benchmark of translation: a U-Net that starts as the identity, and all rows of a tiny run."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from peers.regression import RegressionTask, ResidualUNet, unet_of
from translation import main

from medar.data.loading import PreparedDataset
from medar.data.manifest import Case, Manifest
from medar.data.plan import IntensityRule, Plan
from medar.data.prepare import prepare
from medar.data.source import Degradation, degraded
from medar.tokenizer.codebooks import CodebookSettings
from medar.tokenizer.network import NetworkConfig
from medar.tokenizer.schedule import ScaleSchedule
from medar.tokenizer.tokenizer import Tokenizer, TokenizerConfig
from medar.volume import Volume, write_nifti

torch.set_num_threads(1)

PLAN = Plan(
    spacing=(1.0, 1.0, 1.0), mode="volume", size=(16, 16, 16), downsampling=(4, 4, 4),
    intensity={"MR": IntensityRule(kind="window", low=-1.0, high=1.0)},
)  # fmt: skip
LOW = Degradation(slice_thickness=4.0)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("translation")
    cases = []
    for number, split in enumerate(("train", "train", "train", "val", "test", "test")):
        image = folder / f"c{number}.nii.gz"
        noise = np.random.default_rng(number).uniform(-0.9, 0.9, (16, 16, 16)).astype(np.float32)
        write_nifti(image, Volume.from_array(noise, np.eye(4)))
        cases.append(Case(id=f"c{number}", images=(image,), modality="MR", split=split))  # type: ignore[arg-type]
    manifest = Manifest(root=folder, source="MSD", cases=tuple(cases))
    prepare(manifest, PLAN, folder / "prepared", workers=1)
    return folder / "prepared"


def test_the_unet_starts_as_the_identity_with_the_size_of_the_generator() -> None:
    network = unet_of(500_000)
    size = sum(p.numel() for p in network.parameters())
    assert abs(size / 500_000 - 1) < 0.1
    volume = torch.rand(1, 1, 16, 16, 16)
    assert torch.equal(network(volume), volume)


def test_the_regression_learns_from_degraded_volumes(prepared: Path) -> None:
    train, validation = (PreparedDataset(prepared, split=s, labels=False) for s in ("train", "val"))
    torch.manual_seed(0)
    task = RegressionTask(ResidualUNet(4), train, validation, LOW, batch_size=2)
    image = validation[0]["image"]
    low = degraded(image, LOW, PLAN.spacing, [0])
    assert task.evaluate()["l1"] == pytest.approx(float((low - image).abs().mean()))
    optimiser = torch.optim.Adam(task.model.parameters(), lr=0.01)
    losses = []
    for step in range(6):
        (batch,) = task.batches(step, 0)
        assert task.amount(batch) == 2
        loss, _ = task.loss(batch, step)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert min(losses[3:]) < losses[0]


def test_every_row_is_printed_and_stored(
    prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    config = TokenizerConfig(
        schedule=ScaleSchedule(grids=((1, 1, 1), (4, 4, 4))),
        network=NetworkConfig(
            width=4, width_multipliers=(1,), code_width=4, downsampling=(4, 4, 4)
        ),
        codebook=CodebookSettings(kind="fsq", size=16, width=4),
    )
    Tokenizer(config, PLAN).save_pretrained(tmp_path / "tokenizer")
    words = (
        "model.depth=1 model.head_width=8 model.convolutions=0 tokens.variants=1 data.batch_size=2"
    )
    main(
        [
            str(tmp_path / "tokenizer"), str(prepared), "--out", str(tmp_path / "out"),
            "--seconds", "0.01", "--tuning", "0.01", "--rates", "0.001", "--seeds", "0",
            "--draws", "2", "--overrides", *words.split(), "data.batch_size=2",
        ]
    )  # fmt: skip
    rows = json.loads((tmp_path / "out" / "rows.json").read_text())["rows"]
    assert [row["row"] for row in rows] == [
        "source", "real", "reconstruction", "sample", "mean of 2", "unet",
    ]  # fmt: skip
    by_row = {row["row"]: row for row in rows}
    assert by_row["real"]["psnr"] > 100
    assert by_row["real"]["ssim"] == pytest.approx(1)
    assert by_row["unet"]["psnr"] > by_row["sample"]["psnr"]
    assert all(np.isfinite([row[k] for k in ("psnr", "ssim", "frechet")]).all() for row in rows)
    assert '"method": "unet"' in capsys.readouterr().out
