"""Source volumes stored with tokens: augmented like their images, resumable, or refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from medar.data.augmentation import Augmentation
from medar.data.source import Degradation, Source, degraded
from medar.errors import MedarError
from medar.tokenizer.encoding import Encoded, encode_data_set
from medar.tokenizer.pyramid import TokenPyramid
from medar.tokenizer.tokenizer import Tokenizer
from medar.tokenizer.tokens import MAPS, TokenDataset
from medar.volume import Volume, write_nifti

Model = Callable[..., Path]
STRONG = Augmentation(flips=("x",), shift=1, affine_probability=1, intensity_probability=0)


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prepare in this process."""
    monkeypatch.setattr("medar.data.prepare.default_workers", lambda: 1)


def write_source(folder: Path, name: str, image: np.ndarray) -> None:
    write_nifti(folder / f"{name}.nii.gz", Volume.from_array(2 * image + 100, np.eye(4)))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three CTs, and in `source.jsonl` a CT for each, which is twice as bright plus 100 HU."""
    lines = []
    for k in range(3):
        blocks = np.random.default_rng(k).integers(0, 450, (5, 4, 4)).astype(np.float32)
        image = blocks.repeat(2, 0).repeat(2, 1).repeat(2, 2)
        name = f"c{k}"
        write_nifti(tmp_path / f"data/{name}.nii.gz", Volume.from_array(image, np.eye(4)))
        write_source(tmp_path / "other", name, image)
        lines.append({"id": name, "image": f"other/{name}.nii.gz", "modality": "CT"})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "source.jsonl").write_text(text)
    return tmp_path / "data"


def encode(data: Path, out: Path, model: Path, **settings: Any) -> Encoded:
    values: dict[str, Any] = {
        "variants": 3, "augmentation": STRONG, "source": data.parent / "source.jsonl"
    }  # fmt: skip
    return encode_data_set(data, out, model, **{**values, **settings})


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """The volumes that are encoded."""
    volumes: list[torch.Tensor] = []
    plain = Tokenizer.encode

    def noted(self: Tokenizer, batch: torch.Tensor) -> TokenPyramid:
        volumes.append(batch)
        return plain(self, batch)

    monkeypatch.setattr(Tokenizer, "encode", noted)
    return volumes


@pytest.mark.parametrize("mode", ["volume", "patch"])
def test_sources_are_augmented_like_their_images(
    mode: str, data: Path, model: Model, tmp_path: Path, seen: list[torch.Tensor]
) -> None:
    """Without intensity changes, the source stays a function of the image, also in patches."""
    encode(data, tmp_path / "tokens", model(mode=mode))
    tokens = TokenDataset(tmp_path / "tokens", maps=True)
    assert tokens.about.source is not None
    assert tokens.about.source.modality == "CT"
    for k, volumes in enumerate(seen):
        sources = torch.stack([tokens.map(k, variant) for variant in range(4)])
        assert (sources.dtype, sources.shape) == (torch.float16, (4, 8, 8, 8))
        known = ~sources.isnan()
        assert known[0].all()
        assert not known[1:].all()  # shifted
        expected = 2 * volumes[:, 0] + 0.1
        torch.testing.assert_close(sources[known].float(), expected[known], atol=2e-3, rtol=0)
    item = tokens[1]
    drawn = tokens.map(1, item["variant"])
    torch.testing.assert_close(item["map"], drawn, equal_nan=True)


def test_sources_are_cached_and_follow_their_files(
    data: Path, model: Model, tmp_path: Path
) -> None:
    out, folder = tmp_path / "tokens", model()
    encode(data, out, folder)
    before = {path.name: path.read_bytes() for path in (out / MAPS).iterdir()}
    assert set(before) == {f"c{k}.b2nd" for k in range(3)}
    assert encode(data, out, folder) == Encoded(folder=out, made=0, kept=3)
    assert encode(data, tmp_path / "again", folder, workers=1).made == 3
    assert before == {p.name: p.read_bytes() for p in (tmp_path / "again" / MAPS).iterdir()}
    write_source(tmp_path / "other", "c1", np.random.default_rng(9).uniform(0, 400, (10, 8, 8)))
    assert encode(data, out, folder) == Encoded(folder=out, made=1, kept=2)
    after = {path.name: path.read_bytes() for path in (out / MAPS).iterdir()}
    assert [name for name in sorted(before) if before[name] != after[name]] == ["c1.b2nd"]
    assert encode(data, out, folder, source=None).made == 3
    assert not list((out / MAPS).iterdir())


def test_degraded_volumes_are_sources(
    data: Path, model: Model, tmp_path: Path, seen: list[torch.Tensor]
) -> None:
    low = Degradation(slice_thickness=4.0)
    out, folder = tmp_path / "tokens", model()
    encode(data, out, folder, source=None, degradation=low)
    tokens = TokenDataset(out, maps=True)
    assert tokens.about.source == Source(degradation=low)
    for k, volumes in enumerate(seen):
        for variant, volume in enumerate(volumes):
            expected = degraded(volume, low, (1.0, 1.0, 1.0), [0])[0]
            assert torch.equal(tokens.map(k, variant), expected.half())
    assert encode(data, out, folder, source=None, degradation=low).made == 0
    noise = Degradation(noise=0.1)
    assert encode(data, out, folder, source=None, degradation=noise).made == 3
    tokens = TokenDataset(out, maps=True)
    added = [tokens.map(k, 0).float() - volumes[0, 0] for k, volumes in enumerate(seen[:3])]
    assert abs(float(torch.stack(added).std()) - 0.1) < 0.02
    assert not torch.equal(added[0], added[1])


def test_what_does_not_fit_is_refused(data: Path, model: Model, tmp_path: Path) -> None:
    out, folder = tmp_path / "tokens", model()
    with pytest.raises(MedarError, match="exclude each other"):
        encode(data, out, folder, degradation=Degradation(noise=0.1))
    (tmp_path / "other" / "c2.nii.gz").write_bytes(b"damaged")
    with pytest.raises(MedarError, match=r"case c2 of .*: .*other/c2.nii.gz: "):
        encode(data, out, folder)
    (tmp_path / "few.jsonl").write_text('{"id": "c0", "image": "other/c0.nii.gz"}\n')
    with pytest.raises(MedarError, match="no source for 2 of 3 cases, such as c1"):
        encode(data, out, folder, source=tmp_path / "few.jsonl")
