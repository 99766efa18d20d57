"""The two parts of the distribution that pyproject.toml cannot express.

configs/ goes into the package, so that `medar run synthesis demo` works anywhere, and the README
loses what a package index cannot show: pictures and links to files of the repository.
"""

import re
import shutil
import tomllib
from pathlib import Path
from urllib.parse import urljoin

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
PICTURE = re.compile(r"!\[[^]]*\]\([^)]*\)\n*(?:\*[^*]+\*\n+)?")  # with its caption in italics
RELATIVE_LINK = re.compile(r"\[([^]]+)\]\((?!https?:|mailto:)([^)]+)\)")


class BuildWithConfigs(build_py):
    """Copies configs/ to medar/configs; an editable installation reads configs/ itself."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib) / "medar" / "configs"
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(ROOT / "configs", target)


def index_page(readme: str, repository: str | None) -> str:
    """The README without pictures; relative links point into the repository or become text."""

    def link(match: re.Match[str]) -> str:
        text, target = match.groups()
        return f"[{text}]({urljoin(f'{repository}/blob/main/', target)})" if repository else text

    return RELATIVE_LINK.sub(link, PICTURE.sub("", readme))


project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
setup(
    cmdclass={"build_py": BuildWithConfigs},
    long_description=index_page(
        (ROOT / "README.md").read_text(encoding="utf-8"), project.get("urls", {}).get("Repository")
    ),
    long_description_content_type="text/markdown",
)
