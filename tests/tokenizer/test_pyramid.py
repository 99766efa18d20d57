"""Token pyramids: flattening, files, and validation."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from medar.errors import MedarError
from medar.tokenizer.pyramid import TokenPyramid
from medar.tokenizer.schedule import ScaleSchedule

SCHEDULE = ScaleSchedule.from_latent((3, 4, 2), 3)


def make(codes: int = 512, batch: int = 3) -> TokenPyramid:
    drawn = torch.Generator().manual_seed(0)
    flat = torch.randint(codes, (batch, SCHEDULE.length), generator=drawn)
    flat[0, 0] = codes - 1
    return TokenPyramid.from_flat(flat, SCHEDULE, codes, "abc")


def same(first: TokenPyramid, second: TokenPyramid) -> bool:
    about = (first.schedule, first.codebook_size, first.tokenizer) == (
        second.schedule, second.codebook_size, second.tokenizer,
    )  # fmt: skip
    return about and torch.equal(first.flatten(), second.flatten())


def test_flatten_round_trip() -> None:
    pyramid = make()
    assert len(pyramid) == 3
    assert pyramid.flatten().shape == (3, SCHEDULE.length)
    assert same(TokenPyramid.from_flat(pyramid.flatten(), SCHEDULE, 512, "abc"), pyramid)


def test_selecting_items_and_scales() -> None:
    pyramid = make()
    assert torch.equal(pyramid[1:].flatten(), pyramid.flatten()[1:])
    coarse = pyramid.upto(2)
    assert torch.equal(coarse.flatten(), pyramid.flatten()[:, : SCHEDULE.offsets[2]])
    with pytest.raises(MedarError, match="upto must be from 1 to 3, got 4"):
        pyramid.upto(4)


@pytest.mark.parametrize(
    ("codes", "stored"), [(512, "U16"), (65536, "U16"), (65537, "I32"), (1 << 30, "I32")]
)
def test_saved_and_loaded_is_equal(tmp_path: Path, codes: int, stored: str) -> None:
    path = tmp_path / "some" / "a.safetensors"
    for pyramid in (make(codes), make(codes).upto(2), make(codes)[:0]):
        pyramid.save(path)
        loaded = TokenPyramid.load(path)
        assert same(loaded, pyramid)
        assert all(index.dtype == torch.int64 for index in loaded.indices)
    with safe_open(path, framework="pt") as file:
        assert file.get_slice("indices").get_dtype() == stored


def test_a_failed_save_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.safetensors"
    make().save(path)

    def full(self: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(MedarError, match="cannot be written"):
        make(batch=1).save(path)
    assert same(TokenPyramid.load(path), make())
    assert list(tmp_path.iterdir()) == [path]


def test_invalid_files_are_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    reasons = [
        ("cannot be read", lambda: None),
        ("not a safetensors", lambda: path.write_text("?")),
    ]
    reasons += [
        ("not a token pyramid", lambda: save_file({"weight": torch.zeros(2)}, path)),
        ("not a token pyramid", lambda: save_file({"indices": torch.zeros(2)}, path)),
        ("tokens outside 0 to 9", lambda: replace(make(512), codebook_size=10).save(path)),
    ]
    for reason, write in reasons:
        write()
        with pytest.raises(MedarError, match=reason) as refused:
            TokenPyramid.load(path)
        assert str(path) in str(refused.value)
        assert "\n" not in str(refused.value)


def test_a_flipped_bit_is_noticed(tmp_path: Path) -> None:
    indices = tuple(torch.randint(0, 16, (2, t)) for t in SCHEDULE.tokens)
    pyramid = TokenPyramid(indices=indices, schedule=SCHEDULE, codebook_size=16, tokenizer="t")
    path = tmp_path / "p.safetensors"
    pyramid.save(path)
    good = path.read_bytes()
    for place in range(0, 8 * len(good), 7):
        damaged = bytearray(good)
        damaged[place // 8] ^= 1 << place % 8
        path.write_bytes(damaged)
        try:
            again = TokenPyramid.load(path)
        except MedarError:
            continue
        assert torch.equal(again.flatten(), pyramid.flatten())
        assert (again.schedule, again.codebook_size) == (SCHEDULE, 16)


def test_an_inconsistent_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    make().save(path)
    with safe_open(path, framework="pt") as file:
        about, indices = json.loads(file.metadata()["medar"]), file.get_tensor("indices")
    del about["checksum"]
    for key, value in [("codebook_size", "many"), ("schedule", "[]"), ("schedule", "{")]:
        save_file({"indices": indices}, path, metadata={"medar": json.dumps({**about, key: value})})
        with pytest.raises(MedarError, match="damaged token pyramid"):
            TokenPyramid.load(path)
    save_file({"indices": indices[:, 1:].contiguous()}, path, metadata={"medar": json.dumps(about)})
    with pytest.raises(MedarError, match=r"damaged token pyramid.*the schedule"):
        TokenPyramid.load(path)


@pytest.mark.parametrize(
    "indices",
    [
        (),
        (torch.zeros(1, 2, dtype=torch.int64),),
        (torch.zeros(1, 1),),
        tuple(torch.zeros(1, n, dtype=torch.int64) for n in (*SCHEDULE.tokens, 1)),
    ],
)
def test_indices_must_fit_the_schedule(indices: tuple[Tensor, ...]) -> None:
    with pytest.raises(MedarError):
        TokenPyramid(indices=indices, schedule=SCHEDULE, codebook_size=8)


def test_a_pyramid_is_the_same_bytes_each_time(tmp_path: Path) -> None:
    for number in range(8):
        make().save(tmp_path / str(number))
    assert len({(tmp_path / str(number)).read_bytes() for number in range(8)}) == 1
