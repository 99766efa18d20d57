"""Model folders: weights that are not those that were written are never used."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from medar.data.plan import IntensityRule, Plan
from medar.errors import MedarError
from medar.model_box import box_folder
from medar.model_folder import (
    load_weights,
    read_config,
    record_digest,
    weight_bytes,
    write_model,
)


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(16, 8), nn.BatchNorm1d(8))


def written(folder: Path, model: nn.Module) -> Path:
    weights = weight_bytes(model.state_dict(), "settings")
    write_model(folder, config={"class": "Toy", "width": 8}, version=3, weights=weights, card="")
    return folder / "model.safetensors"


def refused(folder: Path, match: str) -> None:
    with pytest.raises(MedarError, match=match) as error:
        load_weights(network(1), folder)
    assert "\n" not in str(error.value)


def test_weights_come_back(tmp_path: Path) -> None:
    model, again = network(), network(1)
    written(tmp_path, model)
    load_weights(again, tmp_path)
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    assert read_config(tmp_path, ("Toy",), 3) == {"class": "Toy", "width": 8}


def test_a_flipped_bit_is_refused_wherever_it_is(tmp_path: Path) -> None:
    path = written(tmp_path, network())
    good, generator = path.read_bytes(), random.Random(0)
    for place in generator.sample(range(8 * len(good)), 200):
        damaged = bytearray(good)
        damaged[place // 8] ^= 1 << place % 8
        path.write_bytes(damaged)
        refused(tmp_path, r"not the weights of this configuration \(digest .*restore both files")
    path.write_bytes(good)
    load_weights(network(1), tmp_path)


@pytest.mark.parametrize("change", ["shorter", "longer", "empty", "absent", "of another training"])
def test_other_files_are_refused(tmp_path: Path, change: str) -> None:
    path = written(tmp_path, network())
    good = path.read_bytes()
    if change == "absent":
        path.unlink()
    elif change == "of another training":
        path.write_bytes(weight_bytes(network(1).state_dict(), "settings"))
    else:
        path.write_bytes({"shorter": good[:-4], "longer": good + b"\0", "empty": b""}[change])
    refused(tmp_path, "cannot be read" if change == "absent" else "restore both files")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e38, -2e18])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_that_compute_nothing_are_refused(
    tmp_path: Path, value: float, dtype: torch.dtype
) -> None:
    """Even with the right digest: training may have diverged."""
    path = written(tmp_path, network())
    tensors = {name: value.clone() for name, value in load_file(path).items()}
    tensors["0.weight"] = tensors["0.weight"].to(dtype)
    tensors["0.weight"][3, 5] = value
    save_file(tensors, path)
    record_digest(tmp_path)
    refused(tmp_path, "'0.weight' holds NaN, Inf or values beyond 1e\\+18.*restore the file")


def test_a_changed_digit_of_the_settings_is_refused(tmp_path: Path) -> None:
    weights = weight_bytes(network().state_dict())
    plan = Plan(
        spacing=(1.0, 1.0, 2.0),
        mode="volume",
        size=(16, 16, 8),
        downsampling=(4, 4, 2),
        intensity={"CT": IntensityRule(kind="window", low=-100.0, high=300.0)},
        labels={1: "a", 10: "b", 2: "c"},
    )
    config = {"class": "Toy", "width": 8, "tokenizer": None}
    write_model(tmp_path, config=config, version=3, weights=weights, card="", preprocess=plan)
    load_weights(network(1), tmp_path)
    for name, change in (
        ("preprocess.json", ("-100.0", "-900.0")),
        ("preprocess.json", ('"b"', '"d"')),
        ("config.json", ('"width": 8', '"width": 9')),
    ):
        path = tmp_path / name
        good = path.read_text()
        assert change[0] in good
        path.write_text(good.replace(*change))
        refused(tmp_path, r"config.json or preprocess.json has changed since the model was saved")
        path.write_text(good)
    (tmp_path / "preprocess.json").unlink()
    refused(tmp_path, r"config.json has changed since.*remove the key 'settings' from config.json")
    values = json.loads((tmp_path / "config.json").read_text())
    del values["settings"]
    (tmp_path / "config.json").write_text(json.dumps(values))
    load_weights(network(1), tmp_path)  # as folders of earlier snapshots
    assert read_config(tmp_path, ("Toy",), 3) == config


def test_a_folder_without_digest_is_loaded_with_a_warning(tmp_path: Path) -> None:
    written(tmp_path, network())
    config = json.loads((tmp_path / "config.json").read_text())
    del config["weights"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.warns(UserWarning, match="without a digest of its weights.*save it again"):
        load_weights(network(1), tmp_path)
    record_digest(tmp_path)
    load_weights(network(1), tmp_path)


def test_every_model_in_the_box_has_a_digest() -> None:
    for path in box_folder().rglob("model.safetensors"):
        config = json.loads((path.parent / "config.json").read_text())
        assert len(config["weights"]) == len(config["settings"]) == 32, path


def with_sizes(tmp_path: Path, **sizes: object) -> None:
    written(tmp_path, network())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **sizes}))


@pytest.mark.parametrize("number", [10**7, 10**30, -(10**7)])
@pytest.mark.parametrize(
    "sizes",
    [
        lambda n: {"model": {"depth": n}},
        lambda n: {"model": {"head_width": n}},
        lambda n: {"model": {"mixer": {"state_dim": n}}},
        lambda n: {"network": {"width": n}},
        lambda n: {"network": {"width": 8, "width_multipliers": [1, n]}},
        lambda n: {"network": {"blocks_per_level": n}},
        lambda n: {"network": {"labels": n}},
        lambda n: {"codebook": {"size": n}},
        lambda n: {"schedule": {"grids": [[1, 1, 1], [n, 1, 1]]}},
        lambda n: {"backbone": {"width": n}},
        lambda n: {"backbone": {"trunk": {"depth": n}}},
        lambda n: {"condition": {"map_width": n}},
        lambda n: {"widths": [32, n]},
        lambda n: {"steps": n},
    ],
)
def test_sizes_that_the_weights_cannot_have_are_refused_at_once(
    tmp_path: Path, number: int, sizes: Callable[[int], dict[str, object]]
) -> None:
    with_sizes(tmp_path, **sizes(number))
    with pytest.raises(
        MedarError, match=r"cannot belong to model.safetensors, which has 7 tensors"
    ):
        read_config(tmp_path, ("Toy",), 3)


@pytest.mark.parametrize(
    "sizes",
    [
        {"model": {"depth": 8}},
        {"model": {"depth": 7, "head_width": 30}},
        {"network": {"width": 100}},
        {"schedule": {"grids": [[1, 1, 1], [30, 30, 30]]}},
    ],
)
def test_sizes_only_just_beyond_the_weights(tmp_path: Path, sizes: dict[str, object]) -> None:
    with_sizes(tmp_path, **sizes)
    with pytest.raises(MedarError, match="cannot belong to"):
        read_config(tmp_path, ("Toy",), 3)


def test_numbers_that_are_no_sizes_are_free(tmp_path: Path) -> None:
    about = {"seed": 10**12, "backbone": {"width": 8, "options": {"n": 10**12}}}
    with_sizes(tmp_path, **about)
    assert read_config(tmp_path, ("Toy",), 3)["seed"] == 10**12
