"""What MkDocs needs for the site beside mkdocs.yml: pages made of source files and notebooks.

Pages link to files of the repository, such as `../../medar/tokenizer/network.py`. In the site each
of them is a page below source/, so that no link leads outside.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files, InclusionLevel

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"(?<=\]\()(?!https?:)[^)#\s]+")
LANGUAGES = {".py": "python", ".yaml": "yaml", ".md": "markdown"}
TEMPLATE = """---
search: {{exclude: true}}
hide: [toc]
---

# {path}

````{language}
{text}
````
"""


def source_of(page: str, target: str) -> str | None:
    """The path in the repository of a source file that a page links to; None for other links."""
    path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), target))
    outside = not (path.startswith("docs/") and path.endswith(".md"))
    known = Path(path).suffix in LANGUAGES and (ROOT / path).is_file()
    return path if outside and known else None


def on_files(files: Files, config: Any) -> Files:
    """Add a page for each source file that a page links to."""
    linked = set()
    for file in files.documentation_pages():
        for target in LINK.findall(file.content_string):
            linked.add(source_of(file.src_uri, target))
    for path in sorted(linked - {None}):
        text = (ROOT / path).read_text(encoding="utf-8")
        content = TEMPLATE.format(path=path, language=LANGUAGES[Path(path).suffix], text=text)
        page = File.generated(
            config, f"source/{path}.md", content=content, inclusion=InclusionLevel.NOT_IN_NAV
        )
        files.append(page)
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Lead links to source files to their pages."""
    here = page.file.src_uri

    def lead(match: re.Match[str]) -> str:
        path = source_of(here, match.group())
        if path is None:
            return match.group()
        return posixpath.relpath(f"source/{path}.md", posixpath.dirname(here) or ".")

    return LINK.sub(lead, markdown)
