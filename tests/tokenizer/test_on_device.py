"""The tokenizer on the CPU and, marked `gpu`, on CUDA: a step, tokens, detail, resuming."""

import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch

from medar.tokenizer.detail import DetailConfig, DetailDecoder
from medar.tokenizer.encoding import encode_data_set
from medar.tokenizer.tokenizer import Tokenizer
from medar.tokenizer.tokens import TokenDataset
from medar.tokenizer.training import train_tokenizer

Make = Callable[..., Any]


def volumes() -> torch.Tensor:
    """(4, 1, 8, 8, 8) in [-1, 1]."""
    return torch.rand(4, 1, 8, 8, 8, generator=torch.Generator().manual_seed(3)) * 2 - 1


def test_tokens_and_decoded_volumes_are_those_of_the_cpu(
    device: torch.device, make_tokenizer: Make
) -> None:
    reference: Tokenizer = make_tokenizer()
    mine = deepcopy(reference).to(device)
    expected, found = reference.encode(volumes()), mine.encode(volumes().to(device))
    pairs = zip(found.indices, expected.indices, strict=True)
    equal = torch.cat([(a.cpu() == b).flatten() for a, b in pairs])
    assert equal.float().mean() >= 0.99
    decoded = mine.decode(expected.to(device)).volume.cpu()
    torch.testing.assert_close(decoded, reference.decode(expected).volume, rtol=1e-2, atol=5e-3)


def test_a_training_step_has_the_gradients_of_the_cpu(
    device: torch.device, make_tokenizer: Make
) -> None:
    found, reference = [], make_tokenizer()
    for where in (torch.device("cpu"), device):
        model = deepcopy(reference).to(where)
        given = volumes().to(where)
        (model(given).volume - given).abs().mean().backward()
        gradients = [one.grad for one in model.decoder.parameters() if one.grad is not None]
        found.append(torch.cat([one.flatten().cpu() for one in gradients]))
    assert found[0].norm() > 0
    assert (found[1] - found[0]).norm() < 0.05 * found[0].norm()


def test_detail_depends_on_its_seed_alone(device: torch.device, make_tokenizer: Make) -> None:
    torch.manual_seed(0)
    network = make_tokenizer().config.network
    detail = DetailDecoder(DetailConfig.for_network(network, (4,), 2))
    torch.nn.init.normal_(detail.head.weight, std=0.2)  # zero, until it is trained
    detail.to(device).eval()
    given = volumes().to(device)
    first, again = detail.draw(given, [0, 1, 2, 3]), detail.draw(given, [0, 1, 2, 3])
    assert torch.equal(first, again)
    assert not torch.equal(first, detail.draw(given, [4, 5, 6, 7]))


def test_a_training_resumes_and_its_tokenizer_encodes_the_data(
    device: torch.device, prepared: Path, settings: Make, tmp_path: Path
) -> None:
    chosen = settings(training__device=device.type, training__steps=4)
    assert train_tokenizer(chosen, prepared, tmp_path / "run").step == 4
    checkpoint = next((tmp_path / "run" / "checkpoints").glob("step-00000002*"))
    resumed = train_tokenizer(chosen, prepared, tmp_path / "again", resume=str(checkpoint))
    assert resumed.step == 4
    lines = (tmp_path / "again" / "metrics.jsonl").read_text().splitlines()
    assert {json.loads(line)["step"] for line in lines} == {3, 4}
    kind: Any = device.type
    tokens = encode_data_set(prepared, tmp_path / "tokens", tmp_path / "run", device=kind)
    assert tokens.made == 10
    assert len(TokenDataset(tokens.folder)) == 10
