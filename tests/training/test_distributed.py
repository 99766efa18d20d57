"""Two processes, each with half of every batch, reach the weights of a single process."""

import contextlib
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from toy import Toy, settings

from medar.training import fit, loop
from medar.training.distributed import Forward, Ranks, data_parallel, release


@pytest.mark.slow
@pytest.mark.parametrize("shard", [0, 1])
def test_two_processes_equal_one_even_if_one_is_interrupted(
    shard: int,
    tmp_path: Path,
    metrics: Callable[[Path], list[dict[str, Any]]],
    in_two_processes: Callable[..., list[str]],
) -> None:
    script = Path(__file__).with_name("toy.py")
    words = ("batch_size=8", "accumulation_steps=2", "steps=12", f"shard={shard}")
    printed = in_two_processes(script, tmp_path / "two", *words, "end=6", returncode=130)
    assert "training on CPU (cpu), fp32 (as requested), not compiled, 2 process" in printed[0]
    assert ("each with a part of the model" in printed[0]) == bool(shard)
    assert "training on" not in printed[1]
    checkpoint = shutil.copy(tmp_path / "two" / "checkpoints" / "step-00000006.pt", tmp_path)
    saved = torch.load(checkpoint, weights_only=True)
    first, second = (own["random"]["torch"] for own in saved["processes"])
    assert not torch.equal(first, second)
    in_two_processes(script, tmp_path / "two", *words)
    changed = settings(accumulation_steps=2, steps=12, shard=True)
    fit(Toy(batch_size=8), changed, tmp_path / "one")
    fit(Toy(batch_size=8), changed, tmp_path / "resumed", resume=checkpoint)
    single, *others = (
        load_file(tmp_path / n / "model" / "model.safetensors") for n in ("one", "two", "resumed")
    )
    for name in single:
        for other in others:
            torch.testing.assert_close(single[name], other[name], rtol=0, atol=1e-6)
    for a, b in zip(metrics(tmp_path / "one"), metrics(tmp_path / "two"), strict=True):
        assert a["step"] == b["step"]
        if "train/loss" in a:
            assert abs(a["train/loss"] - b["train/loss"]) < 1e-5


@pytest.mark.filterwarnings("ignore:`broadcast_buffers` is deprecated:FutureWarning")
def test_no_reducer_outlives_its_process_group(tmp_path: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        forward = data_parallel(Toy(), Ranks(0, 2, 0), torch.device("cpu"))
        reducer = weakref.ref(forward.reducer)
        assert reducer() is not None
        release(forward)
        assert reducer() is None
    finally:
        dist.destroy_process_group()


def test_only_rank_0_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "current_ranks", lambda: Ranks(rank=1, world_size=2, local_rank=1))
    monkeypatch.setattr(loop, "process_group", lambda *_: contextlib.nullcontext())
    monkeypatch.setattr(loop, "data_parallel", lambda task, *_: Forward(task))
    assert fit(Toy(), settings(steps=6, evaluate_every=2), tmp_path / "out").step == 6
    assert not (tmp_path / "out").exists()
