"""The benchmark of what reconstructions lose: interpolated means, MONAI's models, and the table."""

from argparse import Namespace

import numpy as np
import pytest
import torch
from generators import folder_of
from panel import ROWS, made, passing, pooled, run, smallest, table
from peers.first import KlTask
from tokenizer import MonaiTask

from medar.data.manifest import Case, Manifest
from medar.data.plan import IntensityRule, Plan
from medar.data.prepare import prepare
from medar.settings import load_yaml
from medar.tokenizer.settings import TokenizerSettings
from medar.volume import Volume, write_nifti

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> Namespace:
    folder = tmp_path_factory.mktemp("panel")
    cases = []
    for number, split in enumerate(("train", "val", "test", "test")):
        noise = np.random.default_rng(number).normal(0, 0.2, (16, 16, 18))
        array, label = noise.astype(np.float32), np.zeros((16, 16, 18), np.uint8)
        label[4:12, 4:12, 4:12] = 1
        image, labels = folder / f"c{number}.nii.gz", folder / f"c{number}_label.nii.gz"
        write_nifti(image, Volume.from_array(array + 0.5 * label, np.eye(4)))
        write_nifti(labels, Volume.from_array(label, np.eye(4)))
        cases.append(
            Case(id=f"c{number}", images=(image,), label=labels, modality="MR", split=split)  # type: ignore[arg-type]
        )
    plan = Plan(
        spacing=(1.0, 1.0, 1.0), mode="volume", size=(16, 16, 16), downsampling=(8, 8, 8),
        intensity={"MR": IntensityRule(kind="window", low=-1.0, high=1.0)}, labels={1: "cube"},
    )  # fmt: skip
    manifest = Manifest(root=folder, source="MSD", cases=tuple(cases), labels={1: "cube"})
    prepare(manifest, plan, folder / "prepared", workers=1)
    config = folder / "config.yaml"
    config.write_text("training: {steps: 1}\n")
    return Namespace(
        prepared=folder / "prepared", out=folder / "out", config=config, split="test", limit=None,
        segmenter=None, seed=0,
    )  # fmt: skip


def test_interpolated_means_keep_the_shape_and_the_mean() -> None:
    volumes = torch.rand(2, 1, 10, 12, 8)
    for factor in (2, 4):
        made = pooled(factor)(volumes)
        assert made.shape == volumes.shape
        assert float(made.mean()) == pytest.approx(float(volumes.mean()), abs=0.05)
    smooth = torch.linspace(-1, 1, 12)[None, None, :, None, None].expand(1, 1, 12, 8, 8)
    torch.testing.assert_close(pooled(2)(smooth)[:, :, 1:-1], smooth[:, :, 1:-1])


def test_rows_are_compared_in_one_table(options: Namespace) -> None:
    rows = [{"row": row, **run(row, options)} for row in ("pool-2", "pool-4")]
    assert [row["floats"] for row in rows] == [512, 64]
    lines = table(rows).splitlines()
    assert len(lines) == 4
    assert lines[2].startswith("| pool-2 | - | 0 | 512 floats |")
    assert len({line.count("|") for line in lines}) == 1
    assert "cube: bias" in lines[0]
    assert smallest(rows[1]["methods"]["pool-4"]).count(":") == 4
    assert (folder_of(options, "pool-2") / "panel" / "report.html").is_file()


def test_monais_models_are_methods(options: Namespace) -> None:
    settings = load_yaml(TokenizerSettings, options.config)
    chosen = {"learning_rate": 1e-3, "decay": 0.5, "codebook_size": 16}
    volumes = torch.rand(2, 1, 16, 16, 16)
    for task in (
        MonaiTask(options.prepared, settings, chosen, 100_000, 0),
        KlTask(options.prepared, settings, 8),
    ):
        reconstruct = passing(task.model.eval())
        assert reconstruct(volumes).shape == volumes.shape
        assert torch.equal(reconstruct(volumes), reconstruct(volumes))


def test_unknown_rows_are_refused(options: Namespace) -> None:
    assert "monai" in ROWS
    with pytest.raises(SystemExit, match="unknown row; known rows: medar"):
        made("nothing", options)
