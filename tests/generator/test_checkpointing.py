"""Activation checkpointing: the same losses and gradients from fewer saved activations."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from medar.files import read_json, write_json
from medar.generator.conditions import Condition
from medar.generator.generator import Generator
from medar.generator.settings import GeneratorConfig, ModelSettings
from medar.model_folder import record_digest

from ..synthesis.tiny import tiny_tokenizer
from .conftest import MakeModel
from .test_generator import MIXERS


def loss_of(model: Generator, tokens: Tensor, condition: Condition) -> Tensor:
    torch.manual_seed(3)
    return model(tokens, condition).square().mean()


@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_losses_and_gradients_stay(
    make_model: MakeModel, tokens: Tensor, condition: Condition, mixer: str, dropout: float
) -> None:
    results = []
    for checkpointing in (False, True):
        changes = {"dropout": dropout, "activation_checkpointing": checkpointing}
        model = make_model(mixer=mixer, **changes).train()
        loss = loss_of(model, tokens, condition)
        loss.backward()
        grads = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
        results.append((loss, grads, torch.rand(())))
    (loss, grads, drawn), (other_loss, other_grads, other_drawn) = results
    assert torch.equal(loss, other_loss)
    assert torch.equal(drawn, other_drawn), "random numbers after the step"
    torch.testing.assert_close(other_grads, grads)


@pytest.mark.parametrize("mixer", MIXERS)
def test_fewer_activations_are_kept_in_training_only(
    make_model: MakeModel, tokens: Tensor, condition: Condition, mixer: str
) -> None:
    def kept(*, checkpointing: bool, training: bool) -> int:
        model = make_model(mixer=mixer, activation_checkpointing=checkpointing).train(training)
        sizes: list[int] = []

        def count(tensor: Tensor) -> Tensor:
            if not isinstance(tensor, nn.Parameter):
                sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            loss_of(model, tokens, condition)
        return sum(sizes)

    assert kept(checkpointing=True, training=True) < 0.5 * kept(checkpointing=False, training=True)
    assert kept(checkpointing=True, training=False) == kept(checkpointing=False, training=False)


def test_the_model_stays_the_same(make_model: MakeModel) -> None:
    """A digest names a model; how it was trained must not change it."""
    plain, frugal = make_model(), make_model(activation_checkpointing=True)
    assert plain.digest == frugal.digest
    assert list(plain.state_dict()) == list(frugal.state_dict())
    deeper = replace(plain.config, model=replace(plain.config.model, dropout=0.3))
    assert deeper.function != plain.config.function == frugal.config.function


def test_folders_without_the_setting_load(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    config = GeneratorConfig(model=ModelSettings(depth=2, head_width=8))
    model = Generator.for_tokenizer(config, tokenizer).eval()
    model.save_pretrained(tmp_path, tokenizer)
    values = read_json(tmp_path / "config.json")
    del values["model"]["activation_checkpointing"]
    write_json(tmp_path / "config.json", values)
    record_digest(tmp_path)
    loaded = Generator.from_pretrained(tmp_path, "cpu")
    assert not loaded.config.model.activation_checkpointing
    assert loaded.digest == model.digest
