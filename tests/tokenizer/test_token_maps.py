"""Label maps stored with tokens: augmented like their images, resumable, or refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from medar.data.augmentation import Augmentation
from medar.data.cache import ArrayCache
from medar.errors import MedarError
from medar.files import read_json, write_json
from medar.tokenizer.encoding import Encoded, encode_data_set
from medar.tokenizer.pyramid import TokenPyramid
from medar.tokenizer.tokenizer import Tokenizer
from medar.tokenizer.tokens import MAPS, TokenDataset
from medar.volume import Volume, write_nifti

Model = Callable[..., Path]
LABELS = {1: "left part", 2: "right part", 5: "middle"}
STRONG = Augmentation(flips=("x",), affine_probability=1, intensity_probability=0)


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prepare in this process."""
    monkeypatch.setattr("medar.data.prepare.default_workers", lambda: 1)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Four CTs whose intensity encodes the label, in blocks; the last has no label map."""
    for k in range(4):
        rng = np.random.default_rng(k)
        blocks = rng.choice([0, 1, 2, 5], (5, 4, 4)).astype(np.int16)
        label = blocks.repeat(2, 0).repeat(2, 1).repeat(2, 2)
        image = label * 100.0
        name = f"c{k}.nii.gz"
        write_nifti(tmp_path / "data/images" / name, Volume.from_array(image, np.eye(4)))
        if k < 3:
            write_nifti(tmp_path / "data/labels" / name, Volume.from_array(label, np.eye(4)))
    return tmp_path / "data"


def encode(data: Path, out: Path, model: Path, **settings: Any) -> Encoded:
    values: dict[str, Any] = {"variants": 3, "augmentation": STRONG, "maps": True, **settings}
    return encode_data_set(data, out, model, **values)


def maps_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / MAPS).iterdir()}


@pytest.mark.parametrize("mode", ["volume", "patch"])
def test_maps_are_augmented_like_their_images(
    mode: str, data: Path, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without intensity changes, the augmented image still encodes the label."""
    seen: list[torch.Tensor] = []
    plain = Tokenizer.encode

    def noted(self: Tokenizer, volumes: torch.Tensor) -> TokenPyramid:
        seen.append(volumes)
        return plain(self, volumes)

    monkeypatch.setattr(Tokenizer, "encode", noted)
    encode(data, tmp_path / "tokens", model(mode=mode, labels=LABELS))
    tokens = TokenDataset(tmp_path / "tokens", maps=True)
    assert tokens.about.maps == LABELS
    for k, volumes in enumerate(seen[:3]):
        labels = torch.stack([tokens.map(k, variant) for variant in range(4)])
        assert (labels.dtype, labels.shape) == (torch.int8, (4, 8, 8, 8))
        # [-1, 1] stands for -1000 to 1000 HU, a step of 100 for each label value.
        intensity = (volumes[:, 0] * 10).round()
        neighbours = {0: {0}, 1: {1, 2}, 2: {1, 2}, 5: {5}}
        if mode == "volume":
            assert torch.equal(intensity[0], labels[0].float())
        for value in (0, 1, 2, 5):
            near = volumes[:, 0][labels == value] * 10
            right = torch.stack([(near - neighbour).abs() for neighbour in neighbours[value]]).amin(
                dim=0
            )
            assert right.median() < 0.5
        assert not torch.equal(labels[0], labels[1])
    item = tokens[1]
    assert torch.equal(tokens.pyramid(1).flatten()[item["variant"]], item["indices"])
    assert torch.equal(item["map"], tokens.map(1, item["variant"]))
    assert bool((tokens.map(3, 0) == -1).all())
    assert set(TokenDataset(tmp_path / "tokens")[0]) == {"indices", "index", "variant"}


def test_maps_are_cached_and_rebuilt(data: Path, model: Model, tmp_path: Path) -> None:
    out, folder = tmp_path / "tokens", model(labels=LABELS)
    encode(data, out, folder)
    before = maps_of(out)
    assert set(before) == {f"c{k}.b2nd" for k in range(4)}
    assert encode(data, out, folder) == Encoded(folder=out, made=0, kept=4)
    path = out / MAPS / "c1.b2nd"
    path.write_bytes(before["c1.b2nd"][:-5])
    (out / MAPS / "c2.b2nd").unlink()
    (out / MAPS / ".tmp-left-c1.b2nd").write_text("half")
    assert encode(data, out, folder) == Encoded(folder=out, made=2, kept=2)
    assert maps_of(out) == before
    assert encode(data, tmp_path / "again", folder, workers=1).made == 4
    assert maps_of(tmp_path / "again") == before


def test_maps_follow_the_setting(data: Path, model: Model, tmp_path: Path) -> None:
    out, folder = tmp_path / "tokens", model(labels=LABELS)
    encode(data, out, folder, maps=False)
    assert not (out / MAPS).exists()
    pyramid = (out / "cases" / "c0.safetensors").read_bytes()
    with pytest.raises(MedarError, match=r"no label maps beside the tokens; .* with --maps"):
        TokenDataset(out, maps=True)
    assert encode(data, out, folder).made == 4
    assert (out / "cases" / "c0.safetensors").read_bytes() == pyramid
    assert encode(data, out, folder, maps=False).made == 4
    assert maps_of(out) == {}


def test_an_older_index_without_the_key_is_read(data: Path, model: Model, tmp_path: Path) -> None:
    out, folder = tmp_path / "tokens", model(labels=LABELS)
    encode(data, out, folder, maps=False)
    index = read_json(out / "tokens.json")
    del index["maps"]
    write_json(out / "tokens.json", index)
    assert TokenDataset(out).about.maps is None
    assert encode(data, out, folder, maps=False).kept == 4


def test_ignored_voxels_are_unknown(data: Path, model: Model, tmp_path: Path) -> None:
    known = {value: name for value, name in LABELS.items() if value < 5}
    folder = model(labels=LABELS, ignore_label=5)
    plain = model("plain", labels=LABELS)
    encode(data, tmp_path / "a", folder, variants=0)
    encode(data, tmp_path / "b", plain, variants=0)
    some, every = (TokenDataset(tmp_path / name, maps=True).map(0) for name in "ab")
    assert torch.equal(some == -1, every == 5)
    for value in (0, *known):
        assert torch.equal(some == value, every == value)


def test_maps_of_unlabelled_data_are_refused(data: Path, model: Model, tmp_path: Path) -> None:
    with pytest.raises(MedarError, match=r"maps: no case of .* has a label map .* \(none\)"):
        encode(data, tmp_path / "tokens", model())
    few = model("few", labels={1: "a"})
    with pytest.raises(MedarError, match=r"tokenizer's plan names \(1\); encode without them"):
        encode(data, tmp_path / "tokens", few)
    encode(data, tmp_path / "tokens", few, maps=False)
    assert not ArrayCache(tmp_path / "tokens" / MAPS).keys()
