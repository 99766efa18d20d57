"""The Hugging Face hub, as a folder on this machine: the library is replaced, nothing is sent."""

import shutil
import sys
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace

import pytest

from medar import push_to_hub
from medar.errors import MedarError
from medar.model_folder import find_model
from medar.synthesis.synthesizer import Synthesizer

from .conftest import Models


class Hub:
    """The two parts of huggingface_hub that medar calls, over folders `root/owner/name`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.private: dict[str, bool] = {}
        self.revisions: list[str | None] = []

    def snapshot_download(
        self, repo_id: str, *, revision: str | None = None, allow_patterns: Sequence[str]
    ) -> str:
        self.revisions.append(revision)
        source = self.root / repo_id
        if not source.is_dir():
            raise OSError(f"404 Client Error.\n\nRepository Not Found for url: {repo_id}.")
        return str(self._copy(source, self.root / "cache" / repo_id, allow_patterns))

    def HfApi(self) -> "Hub":  # noqa: N802
        return self

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> None:
        assert exist_ok
        self.private.setdefault(repo_id, private)
        (self.root / repo_id).mkdir(parents=True, exist_ok=True)

    def upload_folder(
        self, *, repo_id: str, folder_path: Path, allow_patterns: Sequence[str]
    ) -> SimpleNamespace:
        self._copy(Path(folder_path), self.root / repo_id, allow_patterns)
        return SimpleNamespace(commit_url=f"https://huggingface.co/{repo_id}/commit/1")

    def _copy(self, source: Path, target: Path, patterns: Sequence[str]) -> Path:
        for path in source.rglob("*"):
            name = path.relative_to(source).as_posix()
            if path.is_file() and any(fnmatch(name, pattern) for pattern in patterns):
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, target / name)
        return target


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    made = Hub(tmp_path / "hub")
    monkeypatch.setitem(sys.modules, "huggingface_hub", made)
    return made


def test_a_model_comes_back_from_the_hub(hub: Hub, models: Models) -> None:
    """A model folder of a run; what is no model file stays behind."""
    (models.generator / "notes.txt").write_text("mine")
    link = push_to_hub(models.generator, "hf:me/generator")
    assert link == "https://huggingface.co/me/generator/commit/1"
    assert hub.private == {"me/generator": True}
    loaded = Synthesizer.from_pretrained("hf:me/generator", "cpu")
    assert loaded.model.digest == models.synthesizer.model.digest
    assert not list(hub.root.rglob("notes.txt"))
    (models.generator / "notes.txt").unlink()


def test_a_bundle_is_pushed_whole(hub: Hub, box: Path) -> None:
    push_to_hub("small-noise", "hf:me/small", private=False)
    assert hub.private == {"me/small": False}
    assert (hub.root / "me" / "small" / "README.md").is_file()
    for kind in ("generator", "tokenizer", "segmentation network"):
        found, own = (find_model(one, kind) for one in ("hf:me/small@v1.0", box / "small-noise"))
        assert (found / "config.json").read_bytes() == (own / "config.json").read_bytes()
    assert set(hub.revisions) == {"v1.0"}


def test_the_reason_of_the_hub_is_quoted_in_one_line(hub: Hub, models: Models) -> None:
    with pytest.raises(MedarError, match="hf:me/none: cannot be downloaded") as caught:
        find_model("hf:me/none", "generator")
    assert "\n" not in str(caught.value)
    hub.root.write_text("a file where the folder should be")
    with pytest.raises(MedarError, match=r"hf:me/none: cannot be uploaded .*hf auth login"):
        push_to_hub(models.generator, "hf:me/none")


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize("address", ["hf:me", "hf:a/b/c", "hf:a b/c", "hf:", "hf:a/b@"])
def test_other_addresses_are_refused(address: str) -> None:
    with pytest.raises(MedarError, match="must be hf:owner/name"):
        find_model(address, "generator")


@pytest.mark.usefixtures("hub")
def test_uploads_name_no_revision(models: Models) -> None:
    with pytest.raises(MedarError, match="leave out @v1"):
        push_to_hub(models.generator, "hf:me/small@v1")


def test_without_the_library_the_extra_is_named(
    models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    message = r"hf:me/small: needs the package huggingface_hub; .*pip install 'medar\[hub\]'"
    with pytest.raises(MedarError, match=message):
        find_model("hf:me/small", "generator")
    with pytest.raises(MedarError, match=message):
        push_to_hub(models.generator, "hf:me/small")
