"""Encoding a data set to a folder of tokens: reproducible, resumable, self-contained."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from medar.data.augmentation import Augmentation
from medar.data.prepare import prepare
from medar.data.prepared import Prepared
from medar.data.sources import read_manifest
from medar.errors import MedarError
from medar.files import read_json, write_json
from medar.tokenizer.decoding import decode_file
from medar.tokenizer.encoding import Encoded, encode_data_set
from medar.tokenizer.pyramid import TokenPyramid
from medar.tokenizer.tokenizer import Tokenizer
from medar.tokenizer.tokens import TokenDataset
from medar.volume import read_volume, write_nifti

Model = Callable[..., Path]
Write = Callable[..., Path]
STRONG = Augmentation(affine_probability=1, intensity_probability=1)


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prepare in this process."""
    monkeypatch.setattr("medar.data.prepare.default_workers", lambda: 1)


@pytest.fixture
def data(tmp_path: Path, write: Write) -> Path:
    """Three volumes of different shapes, one of them in another orientation."""
    for k in range(3):
        affine = np.diag([-1.0, 1.0, 1.0, 1.0]) if k else None
        write(f"data/c{k}.nii.gz", (9 + k, 8, 10 - k), affine, seed=k)
    table = "id,split,age\nc0,train,30\nc1,train,40\nc2,val,50\n"
    (tmp_path / "data" / "attributes.csv").write_text(table)
    return tmp_path / "data"


def encode(data: Path, out: Path, model: Path, **settings: Any) -> Encoded:
    values: dict[str, Any] = {"variants": 2, "augmentation": STRONG, **settings}
    return encode_data_set(data, out, model, **values)


def bytes_of(folder: Path) -> dict[str, bytes]:
    files = [*(folder / "cases").iterdir(), folder / "tokens.json"]
    return {path.name: path.read_bytes() for path in files}


def test_tokens_equal_those_of_the_prepared_volumes(
    data: Path, model: Model, tmp_path: Path
) -> None:
    folder = model()
    out = tmp_path / "tokens"
    done = encode(data, out, folder)
    assert (done.made, done.kept, done.failed) == (3, 0, {})
    tokenizer, prepared = Tokenizer.from_pretrained(folder, "cpu"), Prepared(out / "prepared")
    plain, drawn = TokenDataset(out, variant=0), TokenDataset(out)
    assert (plain.schedule, plain.codebook_size) == (tokenizer.config.schedule, 16)
    assert Tokenizer.from_pretrained(plain.tokenizer_folder, "cpu").digest == tokenizer.digest
    for k in range(3):
        image = torch.from_numpy(prepared.image(prepared[k]))[None]
        expected = tokenizer.encode(image).flatten()[0]
        item = plain[k]
        assert (set(item), item["variant"]) == ({"indices", "index", "variant"}, 0)
        assert (item["indices"].dtype, item["index"]) == (torch.int64, k)
        assert torch.equal(item["indices"], expected)
        rows = drawn.pyramid(k).flatten()
        assert rows.shape == (3, 1 + 8 + 64)
        assert len(torch.unique(rows, dim=0)) == 3
        case = plain.cases[k]
        assert (case.id, case.attributes["age"]) == (f"c{k}", 30 + 10 * k)
    assert [case.id for case in TokenDataset(out, split="val").cases] == ["c2"]


def test_variants_are_drawn_by_seed_and_epoch(data: Path, model: Model, tmp_path: Path) -> None:
    encode(data, tmp_path / "tokens", model())
    first, second = (TokenDataset(tmp_path / "tokens", seed=5) for _ in range(2))
    rows = first.pyramid(1).flatten()
    seen = set()
    for epoch in range(12):
        first.set_epoch(epoch)
        second.set_epoch(epoch)
        indices = first[1]["indices"]
        assert torch.equal(indices, second[1]["indices"])
        seen.add(int((rows == indices).all(1).int().argmax()))
    assert seen == {0, 1, 2}
    for fraction, expected in ((1.0, {0}), (0.0, {1, 2})):
        drawn = TokenDataset(tmp_path / "tokens", original_fraction=fraction)
        seen = set()
        for epoch in range(12):
            drawn.set_epoch(epoch)
            seen.add(drawn[1]["variant"])
        assert seen == expected


@pytest.mark.parametrize("mode", ["volume", "patch"])
def test_a_case_depends_only_on_seed_and_id(
    mode: str, data: Path, model: Model, tmp_path: Path
) -> None:
    folder = model(mode=mode, size=(8, 8, 8))
    encode(data, tmp_path / "a", folder)
    encode(data, tmp_path / "b", folder)
    assert bytes_of(tmp_path / "a") == bytes_of(tmp_path / "b")
    encode(tmp_path / "a" / "prepared", tmp_path / "c", folder, split="val")
    encode(data, tmp_path / "d", folder, seed=1)
    a, c, d = (bytes_of(tmp_path / name) for name in "acd")
    assert set(c) == {"c2.safetensors", "tokens.json"}
    assert a["c2.safetensors"] == c["c2.safetensors"]
    assert a["c2.safetensors"] != d["c2.safetensors"]


def test_loading_processes_do_not_change_tokens(data: Path, model: Model, tmp_path: Path) -> None:
    encode(data, tmp_path / "a", model())
    encode(data, tmp_path / "b", model(), workers=1)
    assert bytes_of(tmp_path / "a") == bytes_of(tmp_path / "b")


def test_an_interrupted_run_resumes(data: Path, model: Model, tmp_path: Path) -> None:
    out, folder = tmp_path / "tokens", model()
    encode(data, out, folder)
    before = bytes_of(out)
    assert encode(data, out, folder) == Encoded(folder=out, made=0, kept=3)
    (out / "cases" / "c1.safetensors").unlink()
    (out / "cases" / ".tmp-left-c1.safetensors").write_text("half")
    with pytest.raises(MedarError, match=r"1 of 3 cases have no tokens yet, the first is .*c1"):
        TokenDataset(out)
    assert encode(data, out, folder) == Encoded(folder=out, made=1, kept=2)
    assert bytes_of(out) == before


def test_changed_settings_encode_again(data: Path, model: Model, tmp_path: Path) -> None:
    out, folder = tmp_path / "tokens", model()
    encode(data, out, folder)
    assert encode(data, out, folder, variants=0).made == 3
    assert len(TokenDataset(out).pyramid(0)) == 1
    other = model("other", seed=1)
    assert encode(data, out, other, variants=0).made == 3
    TokenDataset(out)[0]
    assert encode(data, out, other, variants=0, split="train").kept == 2
    assert not (out / "cases" / "c2.safetensors").exists()
    write_nifti(data / "c0.nii.gz", read_volume(data / "c1.nii.gz"))
    assert encode(data, out, other, variants=0, split="train").made == 1


def test_cases_that_fail_are_left_out(data: Path, model: Model, tmp_path: Path) -> None:
    (data / "c1.nii.gz").write_bytes((data / "c1.nii.gz").read_bytes()[:-200])
    done = encode(data, tmp_path / "tokens", model())
    assert (done.made, set(done.failed)) == (2, {"c1"})
    assert len(TokenDataset(tmp_path / "tokens")) == 2


@pytest.mark.parametrize("mode", ["volume", "patch"])
def test_decoding_needs_only_the_tokens_folder(
    mode: str, data: Path, model: Model, tmp_path: Path
) -> None:
    out, folder = tmp_path / "tokens", model(mode=mode)
    encode(data, out, folder)
    source = read_volume(data / "c1.nii.gz")
    moved = tmp_path / "moved"
    shutil.copytree(out, moved, ignore=shutil.ignore_patterns("prepared"))
    for gone in (out, folder, data):
        shutil.rmtree(gone)
    path = moved / "cases" / "c1.safetensors"
    made = decode_file(path, precision="fp32")
    assert made.grid == "source"
    assert np.allclose(made.image.affine, source.affine)
    assert made.image.shape == source.shape
    plain = decode_file(path, grid="prepared", precision="fp32")
    tokenizer = Tokenizer.from_pretrained(moved / "tokenizer", "cpu")
    pyramid = TokenPyramid.load(path)
    decoded = tokenizer.decode(pyramid).volume.numpy().clip(-1, 1) * 1000
    assert np.allclose(plain.image.array, decoded[0], atol=0.1)
    other = decode_file(path, grid="prepared", variant=2, precision="fp32")
    assert np.allclose(other.image.array, decoded[2], atol=0.1)
    # The plan's grid lies in the volume where the volume's own voxels are.
    start = np.rint(np.linalg.solve(source.affine, plain.image.affine)[:3, 3]).astype(int)
    box = tuple(slice(max(s, 0), s + 8) for s in start)
    inner = tuple(slice(max(-s, 0), n - s) for s, n in zip(start, source.shape, strict=True))
    assert np.allclose(made.image.array[0][box], plain.image.array[0][inner])
    assert torch.equal(tokenizer.decode(pyramid, 3).volume, tokenizer.decode(pyramid).volume)
    again = decode_file(path, upto=3, precision="fp32")
    assert np.array_equal(again.image.array, made.image.array)
    half = decode_file(path, precision="bf16").image.array
    assert 0 < np.abs(half - made.image.array).mean() < 0.02 * 1000
    assert not np.array_equal(decode_file(path, upto=2).image.array, made.image.array)


def test_a_sampled_pyramid_is_decoded_with_the_plan(model: Model, tmp_path: Path) -> None:
    folder = model(spacing=(1, 2, 3))
    tokenizer = Tokenizer.from_pretrained(folder, "cpu")
    pyramid = tokenizer.encode(torch.rand(1, 1, 8, 8, 8) * 2 - 1)
    path = tmp_path / "sample.safetensors"
    pyramid.save(path)
    made = decode_file(path, model=folder, precision="fp32")
    assert (made.grid, made.notes, made.image.spacing) == ("prepared", (), (1, 2, 3))
    decoded = tokenizer.decode(pyramid).volume[0].numpy().clip(-1, 1)
    assert np.allclose(made.image.array, decoded * 1000, atol=0.1)
    with pytest.raises(MedarError, match="name its folder with --model"):
        decode_file(path)
    with pytest.raises(MedarError, match="the grid of its case is unknown"):
        decode_file(path, model=folder, grid="source")
    with pytest.raises(MedarError, match="no variant 1; available: 0 to 0"):
        decode_file(path, model=folder, variant=1)
    with pytest.raises(MedarError, match="decode it with its own tokenizer"):
        decode_file(path, model=model("other", seed=1))
    replace(pyramid, tokenizer="", codebook_size=32).save(path)
    with pytest.raises(MedarError, match=r"and 32 codes, but this tokenizer has .* and 16 codes"):
        decode_file(path, model=folder)


def test_unknown_intensities_have_a_range(model: Model, tmp_path: Path) -> None:
    rules = {"MR": {"kind": "percentiles", "low": 0.5, "high": 99.5}}
    folder = model(intensity=rules)
    tokenizer = Tokenizer.from_pretrained(folder, "cpu")
    pyramid = tokenizer.encode(torch.rand(1, 1, 8, 8, 8) * 2 - 1)
    pyramid.save(tmp_path / "sample.safetensors")
    made = decode_file(tmp_path / "sample.safetensors", model=folder, precision="fp32")
    decoded = tokenizer.decode(pyramid).volume[0].numpy().clip(-1, 1)
    assert np.allclose(made.image.array, (decoded + 1) * 500, atol=0.1)
    assert "values run from 0 to 1000" in made.notes[0]
    both = model("both", intensity={**rules, "CT": {"kind": "window", "low": 0, "high": 10}})
    with pytest.raises(MedarError, match="--modality"):
        decode_file(tmp_path / "sample.safetensors", model=both)
    assert decode_file(tmp_path / "sample.safetensors", model=both, modality="CT").notes == ()


def test_invalid_inputs_are_refused(data: Path, model: Model, tmp_path: Path) -> None:
    out, folder = tmp_path / "tokens", model()
    other = Tokenizer.from_pretrained(model("other", spacing=(2, 2, 2))).plan
    assert other is not None
    prepare(read_manifest(data, modality="CT"), other, tmp_path / "prepared", workers=1)
    with pytest.raises(MedarError, match=r"prepared with spacing \[2.0, 2.0, 2.0\], but the model"):
        encode(tmp_path / "prepared", out, folder)
    with pytest.raises(MedarError, match="variants must be at least 0"):
        encode(data, out, folder, variants=-1)
    with pytest.raises(MedarError, match="batch_size must be at least 1"):
        encode(data, out, folder, batch_size=0)
    with pytest.raises(MedarError, match=r"holds other files \(attributes"):
        encode(data, data, folder)
    encode(data, out, folder)
    with pytest.raises(MedarError, match=r"no case in (the )?split 'test'"):
        encode(data, out, folder, split="test")
    damaged = Prepared(out / "prepared")
    path = damaged.cache.path(damaged[1].image)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(MedarError, match=r"^case c1.* damaged .*prepare` again$"):
        encode(out / "prepared", tmp_path / "again", folder)


def test_a_folder_with_other_files_is_refused(data: Path, model: Model, tmp_path: Path) -> None:
    out = tmp_path / "tokens"
    encode(data, out, model())
    with pytest.raises(MedarError, match=r"no variant 3; available: 0"):
        TokenDataset(out, variant=3)
    with pytest.raises(MedarError, match="no case in split 'test'; available: train, val"):
        TokenDataset(out, split="test")
    with pytest.raises(MedarError, match="seed must be at least 0"):
        TokenDataset(out, seed=-1)
    path = out / "cases" / "c0.safetensors"
    TokenPyramid.load(path)[:1].save(path)
    with pytest.raises(MedarError, match="1 variants by tokenizer"):
        TokenDataset(out)[0]
    index = read_json(out / "tokens.json")
    write_json(out / "tokens.json", {**index, "format": "medar tokens 9"})
    with pytest.raises(MedarError, match="format 'medar tokens 9'"):
        TokenDataset(out)
    with pytest.raises(MedarError, match=r"no tokens \(no tokens.json\)"):
        TokenDataset(data)
