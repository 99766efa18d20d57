"""Codebooks: round trips, learning, collapse and recovery; codebooks from outside medar."""

import json
import sys
from collections.abc import Callable, Iterator
from math import pi, prod
from pathlib import Path

import pytest
import torch
from forking import Ended, run_scripts
from torch import Tensor, nn

from medar.errors import MedarError
from medar.tokenizer.codebooks import (
    CODEBOOKS,
    BinarySphericalCodebook,
    Codebook,
    CodebookSettings,
    EMACodebook,
    FiniteScalarCodebook,
    ProductCodebook,
    make_codebook,
)
from medar.tokenizer.codebooks.base import nearest
from medar.tokenizer.codebooks.learned import kmeans
from medar.tokenizer.codebooks.lookup_free import choose_levels
from medar.tokenizer.settings import TokenizerSettings
from medar.tokenizer.tokenizer import Tokenizer
from medar.tokenizer.training import train_tokenizer

NATIVE = [
    CodebookSettings(kind="ema", size=60, width=5),
    CodebookSettings(kind="gradient", size=60, width=5),
    CodebookSettings(kind="fsq", fsq_levels=(8, 5, 6, 7), width=4),
    CodebookSettings(kind="fsq", fsq_levels=(2, 3, 4), width=3),
    CodebookSettings(kind="bsq", size=64, width=6),
    CodebookSettings(kind="product", size=64, width=6),
]
ANY = [*NATIVE, CodebookSettings(kind="fsq", size=64, width=10)]
LEARNING = [
    CodebookSettings(size=36, width=4, dead_code_threshold=0.5),
    CodebookSettings(kind="product", size=36, width=4, dead_code_threshold=0.5),
]


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    """Seed torch and use one thread, because several would only wait for each other here."""
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def name(settings: CodebookSettings) -> str:
    return f"{settings.kind}-{settings.width}"


def clusters(number: int, width: int = 4) -> Tensor:
    return torch.randn(2, number // 2, width)


@pytest.mark.parametrize("settings", ANY, ids=name)
def test_every_code_is_its_own_nearest_code(settings: CodebookSettings) -> None:
    codebook = make_codebook(settings)
    indices = torch.arange(codebook.size)
    assert torch.equal(codebook.quantise(codebook.lookup(indices).detach()), indices)


@pytest.mark.parametrize("settings", ANY, ids=name)
def test_quantised_vectors_equal_the_codes_of_their_indices(settings: CodebookSettings) -> None:
    codebook = make_codebook(settings)
    vectors = torch.randn(50, settings.width, requires_grad=True)
    taken = codebook(vectors)
    assert taken.vectors.shape == vectors.shape
    assert torch.equal(taken.indices, codebook.quantise(vectors.detach()))
    assert 0 <= int(taken.indices.min()) <= int(taken.indices.max()) < codebook.size
    torch.testing.assert_close(taken.vectors, codebook.lookup(taken.indices))
    assert codebook.lookup(taken.indices.view(5, 10)).shape == (5, 10, settings.width)


@pytest.mark.parametrize("settings", ANY, ids=name)
def test_gradients_reach_the_parameters_not_the_input(settings: CodebookSettings) -> None:
    codebook = make_codebook(settings)
    vectors = torch.randn(50, settings.width, requires_grad=True)
    taken = codebook(vectors)
    parameters = list(codebook.parameters())
    if parameters:
        taken.vectors.square().sum().backward()
        assert all(parameter.grad is not None for parameter in parameters)
        assert all(bool(parameter.grad.any()) for parameter in parameters)  # type: ignore[union-attr]
    assert vectors.grad is None
    if settings.kind == "bsq":
        taken.loss.backward()
        assert vectors.grad is not None
        assert bool(vectors.grad.any())


def test_chunked_distances_equal_the_full_ones() -> None:
    vectors, codes = torch.randn(300, 7), torch.randn(90, 7)
    full = torch.cdist(vectors.double(), codes.double()).argmin(dim=1)
    for chunk_bytes in (1, 4 * 90 * 7, 1 << 20):
        assert torch.equal(nearest(vectors, codes, chunk_bytes=chunk_bytes), full)


def test_fsq_rounds_as_in_the_paper() -> None:
    """An independent implementation of the paper's listing, with codes in [-1, 1]."""
    levels = torch.tensor([8, 5, 6])
    codebook = FiniteScalarCodebook(CodebookSettings(kind="fsq", fsq_levels=(8, 5, 6), width=3))
    vectors = 2 * torch.randn(5000, 3)
    half = (levels - 1) * (1 + 1e-3) / 2
    offset = torch.tensor([0.5, 0.0, 0.5])
    codes = torch.round(torch.tanh(vectors + torch.atanh(offset / half)) * half - offset)
    index = (codes + levels // 2) @ torch.tensor([1.0, 8.0, 40.0])
    assert torch.equal(codebook.quantise(vectors), index.long())
    assert len(index.unique()) > 200


@pytest.mark.parametrize("size", [16, 256, 512, 1000, 4096, 16384])
def test_levels_approximate_a_size_and_report_the_actual_size(size: int) -> None:
    codebook = make_codebook(CodebookSettings(kind="fsq", size=size, width=3))
    levels = choose_levels(size)
    assert codebook.size == torch.tensor(levels).prod()
    assert size < 25 or abs(codebook.size / size - 1) < 0.12
    assert choose_levels(512) == (8, 8, 8)


def test_bsq_takes_the_nearest_corner_of_a_cube() -> None:
    codebook = make_codebook(CodebookSettings(kind="bsq", size=32, width=5))
    corners = codebook.lookup(torch.arange(32))
    vectors = torch.randn(100, 5)
    assert torch.equal(codebook.quantise(vectors), nearest(vectors, corners))


def test_bsq_codes_have_the_magnitude_with_the_least_error() -> None:
    codebook = make_codebook(CodebookSettings(kind="bsq", size=16, width=4))
    vectors = torch.randn(20_000, 4)
    codes = codebook.lookup(codebook.quantise(vectors))
    smaller, error, larger = (
        float((factor * codes - vectors).square().mean()) for factor in (0.95, 1.0, 1.05)
    )
    assert error == pytest.approx(1 - 2 / pi, abs=0.01)
    assert error < min(smaller, larger)


def test_halves_of_a_product_are_quantised_on_their_own() -> None:
    codebook = make_codebook(CodebookSettings(kind="product", size=64, width=6))
    assert isinstance(codebook, ProductCodebook)
    assert codebook.radices == (8, 8)
    vectors = torch.randn(2, 300, 6)
    codebook.start(vectors)
    left, right = vectors[0, :, :3].contiguous(), vectors[0, :, 3:].contiguous()
    indices = codebook.quantise(vectors[0])
    assert torch.equal(indices % 8, codebook.first.quantise(left))
    assert torch.equal(indices // 8, codebook.second.quantise(right))
    assert torch.equal(indices, nearest(vectors[0], codebook.lookup(torch.arange(64))))
    assert len(codebook.quantise(vectors.flatten(0, 1)).unique()) > 56


@pytest.mark.parametrize("settings", ANY, ids=name)
def test_radices_are_the_digits_of_an_index(settings: CodebookSettings) -> None:
    codebook = make_codebook(settings)
    assert prod(codebook.radices) == codebook.size


def test_bsq_entropy_is_least_for_decided_vectors_that_use_all_codes() -> None:
    codebook = make_codebook(CodebookSettings(kind="bsq", size=16, width=4, entropy_weight=1))
    assert isinstance(codebook, BinarySphericalCodebook)
    corners = codebook.lookup(torch.arange(16))
    spread, collapsed = codebook(corners).loss, codebook(corners[:1].repeat(16, 1)).loss
    torch.testing.assert_close(spread, -torch.tensor(16.0).log(), atol=1e-3, rtol=0)
    torch.testing.assert_close(collapsed, torch.tensor(0.0), atol=1e-3, rtol=0)
    undecided = codebook(1e-3 * torch.eye(4)).loss
    assert float(undecided) > float(spread)


def test_bsq_entropy_has_finite_gradients_when_all_is_decided() -> None:
    codebook = make_codebook(CodebookSettings(kind="bsq", size=4, width=2))
    vectors = torch.ones(8, 2, requires_grad=True)
    codebook(vectors).loss.backward()
    assert vectors.grad is not None
    assert bool(vectors.grad.isfinite().all())


def test_kmeans_finds_separate_clusters() -> None:
    centres = 10 * torch.eye(4)
    vectors = (centres.repeat(50, 1) + 0.1 * torch.randn(200, 4))[:]
    found, counts = kmeans(vectors, 4)
    torch.testing.assert_close(found, centres, atol=0.1, rtol=0)
    assert counts.tolist() == [50] * 4


def test_kmeans_with_fewer_vectors_than_centres_covers_them_all() -> None:
    vectors = torch.randn(5, 3)
    found, counts = kmeans(vectors, 16)
    assert found.shape == (16, 3)
    assert int(counts.sum()) == 5
    torch.testing.assert_close(found[nearest(vectors, found)], vectors, atol=1e-4, rtol=0)


def learn(codebook: Codebook, steps: int, vectors: Tensor | None = None) -> float:
    """Train on random vectors and return the fraction of codes that the last step uses."""
    for _ in range(steps):
        batch = clusters(300, codebook.width) if vectors is None else vectors
        indices = codebook.quantise(batch.flatten(0, 1)).view(batch.shape[:2])
        codebook.learn(batch, indices)
    seen = codebook.quantise(clusters(4000, codebook.width).flatten(0, 1))
    return len(seen.unique()) / codebook.size


def test_codes_are_averages_of_their_assigned_vectors() -> None:
    codebook = EMACodebook(
        CodebookSettings(size=3, width=2, ema_decay=0.5, restart_dead_codes=False)
    )
    codebook.set_codes(torch.tensor([[0.0, 0.0], [5.0, 5.0], [-5.0, 0.0]]), torch.full((3,), 2.0))
    vectors = torch.tensor([[[1.0, 0.0], [6.0, 5.0]], [[6.0, 7.0], [4.0, 6.0]]])
    codebook.learn(vectors, codebook.quantise(vectors.flatten(0, 1)).view(2, 2))
    expected = torch.tensor([[0.5 / 1.5, 0.0], [(5 + 8) / 2.5, (5 + 9) / 2.5], [-5.0, 0.0]])
    torch.testing.assert_close(codebook.counts, torch.tensor([1.5, 2.5, 1.0]))
    torch.testing.assert_close(codebook.codes, expected, atol=1e-3, rtol=0)


def bad_start(codebook: EMACodebook, kind: str) -> None:
    codebook.start(clusters(1000))
    codes = codebook.codes.clone()
    codebook.set_codes(100 * codes if kind == "scaled" else 10 * codes[:1].expand_as(codes))


@pytest.mark.parametrize("kind", ["scaled", "equal"])
def test_only_restarts_recover_a_collapsed_codebook(kind: str) -> None:
    for restarts in (True, False):
        codebook = EMACodebook(CodebookSettings(size=32, width=4, restart_dead_codes=restarts))
        bad_start(codebook, kind)
        assert learn(codebook, 0) < 0.2
        usage = learn(codebook, 100)
        assert usage > 0.8 if restarts else usage < 0.2


def test_kmeans_initialisation_uses_every_code_at_once() -> None:
    codebook = EMACodebook(CodebookSettings(size=64, width=4))
    assert codebook.needs_start()
    codebook.start(clusters(1000))
    assert not codebook.needs_start()
    assert learn(codebook, 0) > 0.95
    assert float(codebook.counts.sum()) == pytest.approx(1000)


def test_no_more_codes_are_restarted_than_the_limit_allows() -> None:
    codebook = EMACodebook(
        CodebookSettings(size=64, width=4, max_restart_fraction=0.1, dead_code_threshold=0.9)
    )
    codebook.set_codes(torch.randn(64, 4) * 100)
    before = codebook.codes.clone()
    learn(codebook, 1)
    moved = (codebook.codes - before).abs().sum(dim=1) > 1
    assert 6 <= int(moved.sum()) <= 8


@pytest.mark.parametrize("settings", LEARNING, ids=name)
def test_learning_resumes_exactly_from_a_saved_state(settings: CodebookSettings) -> None:
    codebook = make_codebook(settings)
    assert codebook.needs_start()
    codebook.start(clusters(200))
    learn(codebook, 3)
    state = {key: value.clone() for key, value in codebook.state_dict().items()}
    random = torch.get_rng_state()
    learn(codebook, 5)
    resumed = make_codebook(settings)
    assert resumed.needs_start()
    resumed.load_state_dict(state)
    torch.set_rng_state(random)
    assert not resumed.needs_start()
    learn(resumed, 5)
    every = torch.arange(codebook.size)
    assert torch.equal(codebook.lookup(every), resumed.lookup(every))
    assert not torch.equal(codebook.lookup(every), make_codebook(settings).lookup(every))
    nn.Module.load_state_dict(resumed, make_codebook(settings).state_dict())
    assert resumed.needs_start()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"size": 1}, "size must be at least 2, got 1"),
        ({"kind": "bsq", "size": 500}, "width 32: .* for a size of 512 set width 9"),
        ({"kind": "product", "size": 500}, "must be a square, 484 or 529"),
        ({"kind": "product", "size": 64, "width": 5}, "width 5: .* set an even number"),
        ({"width": 0}, "width must be at least 1, got 0"),
        ({"ema_decay": 1.0}, r"ema_decay must be less than 1, got 1\.0"),
        ({"dead_code_threshold": -0.1}, "dead_code_threshold"),
        ({"max_restart_fraction": 0.0}, "max_restart_fraction must be greater than 0"),
        ({"fsq_levels": (8, 1)}, "fsq_levels"),
        ({"entropy_weight": -1.0}, "entropy_weight"),
    ],
)
def test_bad_settings_are_refused(changes: dict[str, object], reason: str) -> None:
    with pytest.raises(MedarError, match=reason):
        CodebookSettings(**changes)  # type: ignore[arg-type]


THEIRS = '''
"""A user's codebook: the signs of a few numbers."""

import torch

from medar.tokenizer.codebooks import Codebook, register_codebook


@register_codebook("bit_signs")
class Signs(Codebook):
    def __init__(self, settings):
        self.bits = settings.options["bits"]
        super().__init__(2**self.bits, settings.width)
        self.scale = torch.nn.Parameter(torch.ones(()))

    def quantise(self, vectors):
        return ((vectors[:, : self.bits] > 0) * 2 ** torch.arange(self.bits)).sum(1)

    def lookup(self, indices):
        bits = indices[..., None] // 2 ** torch.arange(self.bits) % 2
        return self.scale * torch.nn.functional.pad(2.0 * bits - 1, (0, self.width - self.bits))
'''

LOAD = """
import sys
from medar.tokenizer.tokenizer import Tokenizer
tokenizer = Tokenizer.from_pretrained(sys.argv[1], "cpu")
print(type(tokenizer.quantiser.codebook).__name__, tokenizer.digest)
"""


@pytest.fixture
def package_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on sys.path with a codebook, forgotten after the test."""
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "signs_of_numbers.py").write_text(THEIRS)
    monkeypatch.syspath_prepend(folder)
    before = dict(CODEBOOKS._registered)
    import signs_of_numbers  # noqa: F401

    yield folder
    del sys.modules["signs_of_numbers"]
    CODEBOOKS._registered = before


def load(model: Path) -> Ended:
    """Load a tokenizer in a process that has not imported the codebook."""
    script = model.parent / "load.py"
    script.write_text(LOAD)
    (ended,) = run_scripts((script, model), timeout=120)
    return ended


def test_a_model_with_a_custom_codebook_loads_in_another_process(
    package_folder: Path, prepared: Path, tmp_path: Path, settings: Callable[..., TokenizerSettings]
) -> None:
    codebook = {"kind": "bit_signs", "width": 8, "options": {"bits": 4}}
    train_tokenizer(
        settings(model__codebook=codebook, training__steps=1), prepared, tmp_path / "run"
    )
    model = tmp_path / "run" / "model"
    config = json.loads((model / "config.json").read_text())
    assert config["imports"] == {"codebook": "signs_of_numbers:Signs"}
    digest = Tokenizer.from_pretrained(model, "cpu").digest
    assert load(model).printed == f"Signs {digest}\n"
    # Code beside the weights is not an import path.
    (model / "signs_of_numbers.py").write_text(THEIRS)
    sys.path.remove(str(package_folder))
    refused = load(model)
    assert refused.returncode
    message = "codebook 'bit_signs': signs_of_numbers:Signs cannot be imported (No module named"
    assert message in refused.printed.splitlines()[-1]


def test_builtin_codebooks_need_no_import_path(
    make_tokenizer: Callable[[], Tokenizer], tmp_path: Path
) -> None:
    make_tokenizer().save_pretrained(tmp_path)
    assert "imports" not in json.loads((tmp_path / "config.json").read_text())


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("EMA", "did you mean 'ema'"),
        ("lattice", "known codebooks: bsq, ema, fsq, gradient, product"),
    ],
)
def test_an_unknown_kind_is_refused(kind: str, message: str) -> None:
    with pytest.raises(MedarError, match=f"^kind: unknown codebook '{kind}'; .*{message}"):
        CodebookSettings(kind=kind)


def test_options_are_for_external_codebooks() -> None:
    with pytest.raises(MedarError, match="codebook 'ema' has none"):
        CodebookSettings(kind="ema", options={"ema_decay": 0.9})


def test_classes_that_are_no_codebook_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CODEBOOKS._registered, "none", torch.nn.Linear)
    with pytest.raises(MedarError, match=r"torch\.nn.*Linear is not a subclass of Codebook"):
        make_codebook(CodebookSettings(kind="none"))
