"""Models on the Hugging Face hub: `hf:owner/name`, down and up.

The package huggingface_hub does the transfer; `pip install medar[hub]` installs it. A download
takes weights, JSON, YAML and Markdown only, and goes into the hub's own cache: a second call works
without a network.
"""

import re
from pathlib import Path
from typing import Any

from medar.errors import MedarError, one_line

PREFIX = "hf:"
"""Marks the address of a repository where a model folder is accepted."""

ADDRESS = re.compile(r"hf:(?P<repository>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?", re.ASCII)
FILES = ["*.json", "*.safetensors", "*.md", "*.yaml"]


def download(address: str) -> Path:
    """The local copy of a repository's model files.

    Args:
        address: "hf:owner/name", or "hf:owner/name@revision" for a branch, tag or commit.

    Raises:
        MedarError: another form of address, huggingface_hub is not installed, or the repository
            cannot be read.
    """
    repository, revision = _parts(address)
    hub = _library(address)
    try:
        return Path(hub.snapshot_download(repository, revision=revision, allow_patterns=FILES))
    except Exception as error:
        raise MedarError(f"{address}: cannot be downloaded ({one_line(error)})") from error


def upload(folder: Path, address: str, *, private: bool) -> str:
    """Upload a folder's model files to a repository, which is made where absent.

    Args:
        folder: whose files are uploaded, with those of its folders.
        address: "hf:owner/name".
        private: whether a new repository is visible to its owner only.

    Returns:
        The web address of the commit.

    Raises:
        MedarError: another form of address, huggingface_hub is not installed, or the hub refuses.
    """
    repository, revision = _parts(address)
    if revision is not None:
        raise MedarError(f"{address}: uploads go to the main branch; leave out @{revision}")
    hub = _library(address)
    try:
        api = hub.HfApi()
        api.create_repo(repository, private=private, exist_ok=True)
        commit = api.upload_folder(repo_id=repository, folder_path=folder, allow_patterns=FILES)
    except Exception as error:
        raise MedarError(
            f"{address}: cannot be uploaded ({one_line(error)}); log in with `hf auth login`"
        ) from error
    return str(commit.commit_url)


def _parts(address: str) -> tuple[str, str | None]:
    """Repository and revision of an address."""
    match = ADDRESS.fullmatch(address)
    if match is None:
        raise MedarError(f"{address}: must be hf:owner/name or hf:owner/name@revision")
    return match["repository"], match["revision"]


def _library(address: str) -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise MedarError(
            f"{address}: needs the package huggingface_hub; install it with "
            "`pip install 'medar[hub]'`"
        ) from error
    return huggingface_hub
