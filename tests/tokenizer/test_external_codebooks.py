"""Codebooks from outside medar: registered, trained, saved, and loaded again."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from medar.errors import MedarError
from medar.tokenizer.codebooks import CodebookSettings, codebooks, make_codebook
from medar.tokenizer.settings import TokenizerSettings
from medar.tokenizer.tokenizer import Tokenizer
from medar.tokenizer.training import train_tokenizer

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
tokenizer = Tokenizer.from_pretrained(sys.argv[1])
print(type(tokenizer.quantiser.codebook).__name__, tokenizer.digest)
"""


@pytest.fixture
def theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on sys.path with a codebook, forgotten after the test."""
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "signs_of_numbers.py").write_text(THEIRS)
    monkeypatch.syspath_prepend(folder)
    before = dict(codebooks._registered)
    import signs_of_numbers  # noqa: F401

    yield folder
    del sys.modules["signs_of_numbers"]
    codebooks._registered = before


def load(model: Path, *paths: Path) -> subprocess.CompletedProcess[str]:
    """Load a tokenizer in a fresh process."""
    known = [str(path) for path in paths] + [path for path in sys.path if path]
    return subprocess.run(
        [sys.executable, "-c", LOAD, model],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(known)},
        capture_output=True,
        text=True,
    )


def test_a_model_with_a_user_s_codebook_loads_in_another_process(
    theirs: Path, prepared: Path, tmp_path: Path, settings: Callable[..., TokenizerSettings]
) -> None:
    codebook = {"kind": "bit_signs", "width": 8, "options": {"bits": 4}}
    train_tokenizer(
        settings(model__codebook=codebook, training__steps=1), prepared, tmp_path / "run"
    )
    model = tmp_path / "run" / "model"
    config = json.loads((model / "config.json").read_text())
    assert config["imports"] == {"codebook": "signs_of_numbers:Signs"}
    expected = f"Signs {Tokenizer.from_pretrained(model).digest}\n"
    assert load(model, theirs).stdout == expected
    # Code beside the weights is not an import path.
    (model / "signs_of_numbers.py").write_text(THEIRS)
    sys.path.remove(str(theirs))
    refused = load(model)
    assert refused.returncode
    message = "codebook 'bit_signs': signs_of_numbers:Signs cannot be imported (No module named"
    assert message in refused.stderr.splitlines()[-1]


def test_medar_s_own_codebooks_need_no_import_path(
    make_tokenizer: Callable[[], Tokenizer], tmp_path: Path
) -> None:
    make_tokenizer().save_pretrained(tmp_path)
    assert "imports" not in json.loads((tmp_path / "config.json").read_text())


@pytest.mark.parametrize(
    ("kind", "message"),
    [("EMA", "did you mean 'ema'"), ("product", "known codebooks: bsq, ema, fsq, gradient")],
)
def test_an_unknown_kind_is_refused(kind: str, message: str) -> None:
    with pytest.raises(MedarError, match=f"^kind: unknown codebook '{kind}'; .*{message}"):
        CodebookSettings(kind=kind)


def test_options_are_for_external_codebooks() -> None:
    with pytest.raises(MedarError, match="codebook 'ema' has none"):
        CodebookSettings(kind="ema", options={"ema_decay": 0.9})


def test_what_is_no_codebook_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(codebooks._registered, "none", torch.nn.Linear)
    with pytest.raises(MedarError, match=r"torch\.nn.*Linear is not a subclass of Codebook"):
        make_codebook(CodebookSettings(kind="none"))
