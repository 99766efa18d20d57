"""Every YAML in configs/ loads, and its header states data, hardware and time."""

from pathlib import Path

import pytest
import torch

from medar.data.plan import Plan
from medar.data.planning import check_values
from medar.errors import MedarError
from medar.generator.settings import GeneratorSettings
from medar.recipes.settings import SegmentationRecipeSettings, SynthesisSettings, load_recipe
from medar.segmentation.pretext.settings import PretrainSettings
from medar.segmentation.segmenter import Segmenter
from medar.segmentation.settings import SegmentationSettings
from medar.settings import from_dict, load_yaml, to_dict
from medar.tokenizer.detail import DetailConfig
from medar.tokenizer.network import NetworkConfig
from medar.tokenizer.settings import DetailSettings, TokenizerSettings

CONFIGS = Path(__file__).resolve().parents[1] / "configs"


def load_plan(path: Path) -> None:
    assert all(n >= 2 for n in Plan.load(path).latent)


def load_tokenizer(path: Path) -> None:
    """Load the settings; if they contain a size, describe its tokenizer."""
    settings = load_yaml(TokenizerSettings, path)
    least = check_values(settings.plan, None)
    if "size" in settings.plan:
        labels = {"labels": {1: "organ"}, "channels": ()}
        plan = from_dict(Plan, {**to_dict(least), **labels}, "plan")
        assert settings.model.config(plan).size == plan.size
        if settings.loss.adversarial:
            smallest = settings.loss.adversarial.discriminator(1).smallest
            assert min(plan.size) >= smallest


def load_detail(path: Path) -> None:
    """Load the settings, and check that its network fits the tokenizer of the same name."""
    settings = load_yaml(DetailSettings, path)
    tokenizer = load_yaml(TokenizerSettings, CONFIGS / "tokenizer" / path.name)
    network = NetworkConfig(patch_size=tokenizer.model.patch_size)
    config = DetailConfig.for_network(network, settings.model.widths, settings.model.steps)
    assert config.widths == settings.model.widths


def load_generator(path: Path) -> None:
    """Load the settings, and check that a tokenizer config produces the tokens."""
    settings = load_yaml(GeneratorSettings, path)
    assert settings.tokens.variants > 0
    assert (CONFIGS / "tokenizer" / path.name).exists()


def load_segmentation(path: Path) -> None:
    """Load the settings; if they contain a size, build its network."""
    if path.name.startswith("pretrain_"):
        load_pretraining(path)
        return
    settings = load_yaml(SegmentationSettings, path)
    least = check_values(settings.plan, None)
    if "size" in settings.plan:
        plan = from_dict(Plan, {**to_dict(least), "labels": {1: "organ"}, "channels": ()}, "plan")
        with torch.device("meta"):
            backbone = Segmenter(settings.backbone, plan).backbone
        assert all(n % m == 0 for n, m in zip(plan.size, backbone.multiple, strict=True))


def load_pretraining(path: Path) -> None:
    """Check that the backbone fits the fine-tuning config and the volumes fit the tokenizer.

    One key selects the pretext task.
    """
    settings = load_yaml(PretrainSettings, path)
    name = path.name.removeprefix("pretrain_")
    tuned = load_yaml(SegmentationSettings, path.with_name(name))
    assert (settings.backbone, settings.plan) == (tuned.backbone, tuned.plan)
    tokenizer = load_yaml(TokenizerSettings, CONFIGS / "tokenizer" / name)
    assert settings.plan == tokenizer.plan
    for kind in ("next_scale", "mixture", "semantic_order", "masked"):
        assert load_yaml(PretrainSettings, path, [f"pretext.kind={kind}"]).pretext.kind == kind


def load_whole_recipe(path: Path) -> None:
    """Load the parts of a recipe; their plans must agree and the data set must be named."""
    assert "# Data: " in path.read_text()
    if path.name.startswith("segment_"):
        recipe = load_recipe(SegmentationRecipeSettings, path)
        assert recipe.needs_tokenizer
        assert load_recipe(SegmentationRecipeSettings, path, ["pretrain=null"]).pretrain is None
        return
    settings = load_recipe(SynthesisSettings, path)
    given = settings.tokenizer.plan
    assert all(given[name] == settings.plan[name] for name in given.keys() & settings.plan.keys())
    check_values(settings.plan_values(), None)
    assert load_recipe(SynthesisSettings, path, ["samples.n=3"]).samples.n == 3


LOADERS = {
    "plans": load_plan,
    "tokenizer": load_tokenizer,
    "detail": load_detail,
    "generator": load_generator,
    "segmentation": load_segmentation,
    "configs": load_whole_recipe,
}


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda p: p.name)
def test_config_loads(path: Path) -> None:
    LOADERS[path.parent.name](path)
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    for promise in ("Hardware:", "Time:", "Expect:"):
        assert any(promise in line for line in header), f"{path.name}: no {promise}"


@pytest.mark.parametrize(
    ("kind", "path", "key"),
    [
        (TokenizerSettings, "tokenizer/hippocampus_mr.yaml", "model.blocks_per_level"),
        (TokenizerSettings, "tokenizer/hippocampus_mr.yaml", "model.width"),
        (GeneratorSettings, "generator/hippocampus_mr.yaml", "model.depth"),
        (GeneratorSettings, "generator/hippocampus_mr.yaml", "model.head_width"),
        (SegmentationSettings, "segmentation/hippocampus_mr.yaml", "backbone.width"),
        (SegmentationSettings, "segmentation/hippocampus_mr.yaml", "backbone.trunk.depth"),
    ],
)
def test_networks_that_no_machine_can_build_are_refused_at_once(
    kind: type, path: str, key: str
) -> None:
    with pytest.raises(MedarError, match=rf"{key} must be at most \d+, got 10000000"):
        load_yaml(kind, CONFIGS / path, [f"{key}=10000000"])
