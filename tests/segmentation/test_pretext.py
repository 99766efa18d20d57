"""Pretext tasks: visible input, prediction targets, and training of a backbone."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from small_pretexts import (
    generators,
    make_small,
    make_tokenizer,
    pretrain_settings,
    volumes,
    weighted_sites,
)
from small_segmenters import make_plan, make_segmenter
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool3d

from medar.errors import MedarError
from medar.segmentation.backbones import BackboneSettings, TrunkSettings, make_backbone
from medar.segmentation.pretext import (
    PRETEXTS,
    FrozenTokenizer,
    Pretext,
    PretextLoss,
    PretextSettings,
    View,
    make_pretext,
    register_pretext,
)
from medar.segmentation.pretext.masked import (
    MaskedPretext,
    block_grid,
    draw_sites,
    normalise_blocks,
    resample_sites,
    site_voxels,
)
from medar.segmentation.pretext.next_scale import MixturePretext, NextScalePretext
from medar.segmentation.pretext.semantic_order import SemanticOrderPretext
from medar.segmentation.pretext.settings import MixtureSettings
from medar.segmentation.pretext.tokens import (
    Digits,
    draw_scale,
    pool_parts,
    site_features,
)
from medar.segmentation.pretext.training import pretrain_backbone
from medar.settings import from_dict
from medar.tokenizer.schedule import ScaleSchedule

KINDS = ("next_scale", "mixture", "semantic_order", "masked")
HIDING = KINDS[1:]
BACKBONES = {
    "dynunet": BackboneSettings(width=4),
    "segresnet": BackboneSettings(kind="segresnet", width=8),
    "trunk": BackboneSettings(
        kind="trunk", width=4, trunk=TrunkSettings(depth=1, head_width=8, scales=2)
    ),
    "swinunetr": BackboneSettings(kind="swinunetr", width=12),
}
ONE = {"random": 0, "next": 0, "all": 0}


class Says(torch.nn.Module):
    """A head that returns fixed logits."""

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.values = values

    def forward(self, sites: Tensor, k: int) -> Tensor:
        return self.values


def check_gradients(pretext: Pretext, images: Tensor) -> None:
    result = pretext(images, generators(number=len(images)))
    assert result.losses.shape == (len(images),)
    assert result.losses.isfinite().all()
    result.losses.mean().backward()
    parameters = dict(pretext.named_parameters())
    without = [n for n, p in parameters.items() if p.grad is None or not p.grad.isfinite().all()]
    assert not without
    encoder = pretext.backbone.encoder_parameters()
    decoder = [p for stage in pretext.backbone.stage_parameters() for p in stage][len(encoder) :]
    assert any(p.grad.abs().max() > 0 for p in encoder if p.grad is not None)
    assert any(p.grad.abs().max() > 0 for p in decoder if p.grad is not None)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backbone", ["dynunet", "segresnet", "trunk"])
def test_encoder_and_decoder_learn(kind: str, backbone: str) -> None:
    mixture = {"random": 1, "next": 0, "all": 0}  # the one part that hides anything
    check_gradients(make_small(kind, backbone=BACKBONES[backbone], mixture=mixture), volumes())


@pytest.mark.parametrize("kind", ["next_scale", "masked"])
def test_swinunetr_learns_too(kind: str) -> None:
    plan = make_plan(size=(40, 32, 32))
    check_gradients(make_small(kind, plan, BACKBONES["swinunetr"]), volumes(plan, 1))


@pytest.mark.parametrize("kind", KINDS)
def test_masking_depends_only_on_the_random_generator(kind: str) -> None:
    pretext, images = make_small(kind), volumes()
    first, same = (pretext.view(images, generators(4)) for _ in range(2))
    assert torch.equal(pretext.backbone_input(first), pretext.backbone_input(same))
    last = pretext.view(images[2:], generators(4)[2:])
    torch.testing.assert_close(pretext.backbone_input(first)[2:], pretext.backbone_input(last))
    others = [pretext.backbone_input(pretext.view(images, generators(seed))) for seed in range(6)]
    assert any(not torch.equal(a, b) for a, b in pairwise(others))


@pytest.mark.parametrize("kind", HIDING)
def test_masked_voxels_are_not_visible(kind: str) -> None:
    pretext, images = make_small(kind, mixture={**ONE, "random": 1}), volumes()
    view = pretext.view(images, generators())
    assert view.masked.any()
    assert not view.masked.all()
    shown = pretext.backbone_input(view)
    assert torch.equal(shown[~view.masked], images[~view.masked])
    assert pretext.mask_token is not None
    assert (shown[view.masked] == pretext.mask_token.value).all()


def test_next_scale_sees_only_the_previous_scales() -> None:
    pretext, images = make_small("next_scale"), volumes()
    assert isinstance(pretext, NextScalePretext)
    tokenizer = pretext.tokenizer.tokenizer
    pyramid = tokenizer.encode(images)
    view = pretext.view(images, generators())
    assert all(torch.equal(a, b) for a, b in zip(view.tokens, pyramid.indices, strict=True))
    for item, generator in enumerate(generators()):
        k = draw_scale(pretext.schedule, pretext.settings.scale_exponent, generator)
        expected = [0] * len(pretext.schedule)
        expected[k] = pretext.schedule.tokens[k]
        assert [row[item] if row else 0 for row in weighted_sites(view.weights)] == expected
        torch.testing.assert_close(view.seen[item], tokenizer.decode(pyramid, k).volume[item])
        changed = [t if s < k else (t + 1) % 11 for s, t in enumerate(view.tokens)]
        again = pretext.tokenizer.prefix(changed, [k] * 3)
        torch.testing.assert_close(again[item], view.seen[item])
        assert not torch.equal(pretext.tokenizer.prefix(changed, [k + 1] * 3)[item], again[item])
    torch.testing.assert_close(sum(w.sum(1) for w in view.weights if w is not None), torch.ones(3))


def test_scales_are_drawn_in_proportion_to_their_tokens() -> None:
    schedule = ScaleSchedule(grids=((1, 1, 1), (1, 1, 2), (2, 2, 2), (4, 4, 4)))
    drawn = [draw_scale(schedule, 1.0, generator) for generator in generators(number=600)]
    shares = [drawn.count(k) / 600 for k in (1, 2, 3)]
    assert shares == pytest.approx([2 / 74, 8 / 74, 64 / 74], abs=0.05)
    even = [draw_scale(schedule, 0.0, generator) for generator in generators(number=600)]
    assert [even.count(k) / 600 for k in (1, 2, 3)] == pytest.approx([1 / 3] * 3, abs=0.06)


def test_the_mixture_combines_its_parts() -> None:
    images = volumes()
    tokens = (1, 8, 24)
    random = make_small("mixture", mixture={**ONE, "random": 1}, mask_ratio=0.5, scale_exponent=1)
    view = random.view(images, generators())
    assert torch.equal(view.seen, images)
    assert weighted_sites(view.weights)[2] == [12, 12, 12]
    assert view.masked.sum((1, 2, 3, 4)).tolist() == [12 * 64] * 3
    coarse = torch.nn.functional.adaptive_avg_pool3d(view.masked.float(), (2, 2, 2)).flatten(1)
    assert view.weights[1] is not None
    assert torch.equal(view.weights[1] > 0, coarse >= 0.5)
    following = make_small("mixture", mixture={**ONE, "next": 1})
    view = following.view(images, generators())
    assert not view.masked.any()
    counts = [row for row in weighted_sites(view.weights) if row]
    assert [sum(n > 0 for n in item) for item in zip(*counts, strict=True)] == [1, 1, 1]
    every = make_small("mixture", mixture={**ONE, "all": 1}, scale_exponent=1)
    for seed in range(4):
        view = every.view(images, generators(seed))
        counts = [row or [0] * 3 for row in weighted_sites(view.weights)]
        for first, *rest in zip(*counts, strict=True):
            assert first == 0
            assert rest in ([8, 24], [0, 24])
        assert view.weights[2] is not None
        for item in range(3):
            seen = 1 if counts[1][item] else 2
            share = tokens[2] / sum(tokens[seen:])
            assert float(view.weights[2][item].sum()) == pytest.approx(share)
    mixed = make_small("mixture")
    assert isinstance(mixed, MixturePretext)
    hidden = [mixed._draw(generator)[0].any() for generator in generators(number=300)]
    assert sum(hidden) / 300 == pytest.approx(1 / 3, abs=0.08)


def test_easier_sites_are_revealed_first() -> None:
    for difficulty in ("residual", "similarity"):
        pretext, images = make_small("semantic_order", difficulty=difficulty), volumes()
        assert isinstance(pretext, SemanticOrderPretext)
        hard = pretext.difficulty(pretext.tokenizer.latent(images))
        assert torch.equal(hard, pretext.difficulty(pretext.tokenizer.latent(images)))
        for seed in range(4):
            view = pretext.view(images, generators(seed))
            assert not (view.visible & view.predicted).any()
            for item in range(3):
                known, next_ones = hard[item][view.visible[item]], hard[item][view.predicted[item]]
                unseen = hard[item][~view.visible[item] & ~view.predicted[item]]
                assert len(next_ones) == 6
                assert len(known) in (6, 12, 18)
                assert known.max() <= next_ones.min()
                assert len(unseen) == 0 or next_ones.max() <= unseen.min()
            voxels = view.masked[:, 0, ::4, ::4, ::4].flatten(1)
            assert torch.equal(voxels, ~view.visible)


def test_correct_features_have_zero_loss() -> None:
    pretext = make_small("semantic_order")
    view = pretext.view(volumes(), generators())
    torch.testing.assert_close(view.target.mean(-1), torch.zeros(3, 24), atol=1e-5, rtol=0)
    pretext.head = Says(view.target)
    result = pretext.compute_loss(torch.zeros(3, 4, 16, 12, 8), view)
    assert result.losses.tolist() == [0, 0, 0]
    assert float(result.metrics["constant_error"][0]) > 0


@pytest.mark.parametrize("distance", ["l1", "l2"])
def test_the_masked_loss_uses_hidden_voxels_only(distance: str) -> None:
    pretext, images = make_small("masked", loss=distance), volumes()
    assert isinstance(pretext, MaskedPretext)
    view = pretext.view(images, generators())
    assert view.masked.sum((1, 2, 3, 4)).tolist() == [14 * 64] * 3  # 0.6 of 24 blocks
    features = torch.randn(3, 4, 16, 12, 8)
    before = pretext.compute_loss(features, view)
    elsewhere = torch.where(view.masked, features, 9.0)
    assert torch.equal(pretext.compute_loss(elsewhere, view).losses, before.losses)
    difference = pretext.head(features) - images
    each = difference.abs() if distance == "l1" else difference.square()
    expected = torch.stack([e[h].mean() for e, h in zip(each, view.masked, strict=True)])
    torch.testing.assert_close(before.losses, expected)
    mean = torch.stack([i[~h].mean() for i, h in zip(images, view.masked, strict=True)])
    torch.testing.assert_close(view.constant.flatten(), mean)


def test_normalised_blocks() -> None:
    images = torch.cat([volumes(), torch.full((1, 1, 16, 12, 8), 0.3)])
    block = (5, 4, 8)
    made = normalise_blocks(images, block)
    assert block_grid(images.shape[2:], block) == (4, 3, 1)
    for x in (0, 5, 10, 15):
        for y in (0, 4, 8):
            cut = made[:3, :, x : x + 5, y : y + 4]
            torch.testing.assert_close(cut.mean((1, 2, 3, 4)), torch.zeros(3), atol=1e-4, rtol=0)
            deviation = cut.std((1, 2, 3, 4), correction=0)
            torch.testing.assert_close(deviation, torch.ones(3), atol=1e-3, rtol=0)
    torch.testing.assert_close(made[3], torch.zeros_like(made[3]), atol=1e-3, rtol=0)
    torch.testing.assert_close(
        normalise_blocks(images, (5, 99, 8)), normalise_blocks(images, (5, 12, 8))
    )
    view = make_small("masked", normalise_targets=True).view(volumes(), generators())
    torch.testing.assert_close(view.target, normalise_blocks(volumes(), (4, 4, 4)))
    assert not view.constant.any()


def test_a_block_that_hides_everything_is_refused() -> None:
    with pytest.raises(MedarError, match=r"mask_block_size \[16, 12, 99\] covers the whole volume"):
        make_small("masked", mask_block_size=[16, 12, 99])
    truncated = make_small("masked", mask_block_size=[15, 12, 10**12])
    assert truncated.view(volumes(), generators()).masked.any()


def test_sites_and_voxels() -> None:
    sites = draw_sites((4, 3, 2), 0.25, generators()[0])
    assert sites.sum() == 6
    voxels = site_voxels(sites, (4, 4, 4), (15, 12, 8))
    assert voxels.shape == (15, 12, 8)
    assert torch.equal(voxels[::4, ::4, ::4], torch.from_numpy(sites))
    assert (resample_sites(sites, [(4, 3, 2)])[0] == sites).all()
    assert not resample_sites(sites, [(1, 1, 1)])[0].any()
    assert draw_sites((1, 1, 2), 0.01, generators()[0]).sum() == 1
    features = torch.arange(16.0 * 12 * 8).view(1, 1, 16, 12, 8)
    found = site_features(pool_parts(features, (4, 3, 2)), (4, 3, 2))
    assert found.shape == (1, 24, 8)
    cell = features[0, 0, 4:8, 0:4, 4:8]  # site (1, 0, 1), the eighth
    torch.testing.assert_close(found[0, 7].mean(), cell.mean())
    torch.testing.assert_close(found[0, 7, -1], cell[2:, 2:, 2:].mean())


@pytest.mark.parametrize("grid", [(1, 1, 1), (2, 2, 2), (3, 4, 3), (4, 5, 4), (5, 7, 5)])
def test_features_are_sampled_at_the_quantiser_grid(grid: tuple[int, int, int]) -> None:
    latent = torch.randn(2, 3, 5, 7, 5)
    features = latent
    for axis in (2, 3, 4):
        features = features.repeat_interleave(4, dim=axis)
    found = site_features(pool_parts(features, (5, 7, 5)), grid)
    averaged = adaptive_avg_pool3d(latent, grid).flatten(2).transpose(1, 2)
    torch.testing.assert_close(found.unflatten(2, (8, 3)).mean(2), averaged)


@pytest.mark.parametrize(
    ("kind", "size", "radices"),
    [
        ("ema", 11, (11,)),
        ("gradient", 11, (11,)),
        ("fsq", 25, (5, 5)),
        ("bsq", 256, (2,) * 8),
        ("product", 16, (4, 4)),
    ],
)
def test_codes_of_every_codebook(kind: str, size: int, radices: tuple[int, ...]) -> None:
    tokenizer = make_tokenizer(codebook=kind, size=size)
    codebook = tokenizer.quantiser.codebook
    assert codebook.radices == radices
    digits, codes = Digits(radices), torch.arange(codebook.size)[None]
    assert torch.equal((digits.split(codes) * digits.basis).sum(-1), codes)
    logits = torch.randn(1, 1, digits.values).expand(1, codebook.size, -1)
    probabilities = (-digits.cross_entropy(logits, codes)).exp()
    assert float(probabilities.sum()) == pytest.approx(1, abs=1e-5)
    right = digits.correct(logits, codes)
    assert right.sum() == 1
    assert right.argmax() == probabilities.argmax()
    check_gradients(make_small("next_scale", tokenizer=tokenizer), volumes())


@pytest.mark.parametrize(("codebook", "size"), [("ema", 11), ("bsq", 256)])
def test_the_marginal_entropy_is_reported_with_the_loss(codebook: str, size: int) -> None:
    tokenizer, images = make_tokenizer(codebook=codebook, size=size), volumes()
    pretext = make_small("next_scale", tokenizer=tokenizer)
    assert isinstance(pretext, NextScalePretext)
    pretext.fit_statistics(list(images) * 100)
    total, number = pretext(images, generators()).metrics["marginal"]
    view, expected = pretext.view(images, generators()), 0.0
    for tokens, weights in zip(view.tokens, view.weights, strict=True):
        if weights is not None:
            digits = pretext.digits.split(tokens)
            for digit in digits.unbind(-1):
                shares = torch.bincount(digit.flatten(), minlength=11) / digit.numel()
                expected -= float(shares[digit[weights > 0]].log().sum())
    assert float(total) == pytest.approx(expected, rel=0.01)
    assert number == sum(int((w > 0).sum()) for w in view.weights if w is not None)
    with torch.no_grad():  # a head that says nothing knows the frequencies
        pretext.head.out.weight.zero_()
        pretext.head.out.bias.zero_()
    metrics = pretext(images, generators()).metrics
    torch.testing.assert_close(metrics["cross_entropy"][0], metrics["marginal"][0])


def test_a_backbone_learns_a_pretext_task() -> None:
    for kind in KINDS:
        pretext, images = make_small(kind), volumes()
        pretext.fit_statistics(images)
        optimiser = torch.optim.AdamW(pretext.parameters(), lr=0.01)
        losses = []
        for _ in range(20):
            loss = pretext(images, generators()).losses.mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(float(loss.detach()))
        assert losses[-1] < 0.8 * losses[0], kind


def test_only_the_backbone_is_compiled() -> None:
    pretext, images, seen = make_small("next_scale"), volumes(), []

    def backend(graph: torch.fx.GraphModule, _: object) -> Any:
        seen.append(graph)
        return graph.forward

    before = pretext(images, generators()).losses
    pretext.compile(backend=backend)
    torch.testing.assert_close(pretext(images, generators()).losses, before)
    assert len(seen) == 1
    pretext(images, generators(7))  # other scales, other tokens
    assert len(seen) == 1


@pytest.mark.parametrize("kind", KINDS[:3])
def test_a_tokenizer_is_needed(kind: Any) -> None:
    plan = make_plan()
    backbone = make_backbone(BackboneSettings(width=4), plan)
    with pytest.raises(MedarError, match=f"pretext.kind {kind} needs a tokenizer"):
        make_pretext(PretextSettings(kind=kind), backbone, plan, None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"spacing": (1.0, 1.0, 2.0)}, r"spacing \[1.0, 1.0, 1.0\], the data .* \[1.0, 1.0, 2.0\]"),
        ({"size": (8, 8, 8)}, r"size \[16, 12, 8\]"),
        ({"channels": ("T1", "T2")}, r"channels \[\], .* \['T1', 'T2'\]"),
        ({"intensity": {}}, "intensity"),
    ],
)
def test_tokenizers_with_another_plan_are_refused(changes: Any, message: str) -> None:
    with pytest.raises(MedarError, match=message):
        FrozenTokenizer(make_tokenizer(), make_plan(**changes), "somewhere")
    FrozenTokenizer(make_tokenizer(), make_plan(labels={}, downsampling=(2, 2, 2)), "somewhere")


def test_invalid_settings_are_refused() -> None:
    for make, message in (
        (lambda: PretextSettings(scale_exponent=2.0), "scale_exponent must be at most 1"),
        (lambda: PretextSettings(mask_ratio=1.0), "mask_ratio must be less than 1"),
        (
            lambda: PretextSettings(mask_block_size=(8, 0, 8)),
            "mask_block_size.* must be at least 1, got 0",
        ),
        (lambda: PretextSettings(stages=1), "stages must be at least 2"),
        (lambda: MixtureSettings(next=-1.0), "next must be at least 0"),
        (lambda: MixtureSettings(all=float("nan")), "all must be"),
        (lambda: MixtureSettings(random=float("inf")), "random must be finite"),
        (lambda: MixtureSettings(random=0, next=0, all=0), "at least one of random, next and all"),
        (lambda: PretextSettings(kind="typo"), "unknown pretext 'typo'; known pretexts: masked"),
        (lambda: PretextSettings(kind="mixtur"), "did you mean 'mixture'"),
        (lambda: PretextSettings(hidden=0.5), "'hidden' has a new name: mask_ratio"),
        (lambda: PretextSettings(options={"a": 1}), "options are for registered pretexts"),
    ):
        with pytest.raises(MedarError, match=message):
            make()


def test_a_custom_pretext_is_trained(prepared: Path, tmp_path: Path) -> None:
    @register_pretext("mean_intensity")
    class MeanIntensity(Pretext):
        masks = False

        def view(self, volumes: Tensor, random: Any) -> View:
            return View(seen=volumes * self.settings.options["scale"])

        def compute_loss(self, features: Tensor, view: View) -> PretextLoss:
            target = view.seen.mean((1, 2, 3, 4))
            return PretextLoss(losses=(features.mean((1, 2, 3, 4)) - target).square())

    try:
        pretext = {"kind": "mean_intensity", "options": {"scale": 0.5}}
        settings = pretrain_settings(None, pretext__kind="masked")
        settings = replace(settings, pretext=from_dict(PretextSettings, pretext, "pretext"))
        outcome = pretrain_backbone(settings, prepared, tmp_path)
        assert outcome.metrics["loss"] >= 0
        make_segmenter().load_backbone(tmp_path)
    finally:
        del PRETEXTS._registered["mean_intensity"]
