"""What MkDocs needs for the site beside mkdocs.yml: pages made of source files and notebooks.

Pages link to files of the repository, such as `../../medar/tokenizer/network.py`. In the site each
of them is a page below source/, so that no link leads outside.
"""

import json
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files, InclusionLevel

ROOT = Path(__file__).resolve().parents[1]
PICTURE = re.compile(r'<img [^>]*src="([^"]+\.png)"[^>]*>')
LINK = re.compile(r"(?<=\]\()(?!https?:)[^)#\s]+")
SOURCES = {".py": "python", ".yaml": "yaml", ".md": "markdown"}
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
    known = Path(path).suffix in SOURCES and (ROOT / path).is_file()
    return path if outside and known else None


def notebook_page(notebook: dict[str, Any]) -> str:
    """A notebook as Markdown: its text, its code and the outputs that it holds."""
    parts = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        for output in cell["outputs"]:
            data = output.get("data", {})
            if "text/html" in data:
                parts.append(f'<div class="output">{"".join(data["text/html"])}</div>')
            else:
                text = "".join(output.get("text", data.get("text/plain", [])))
                parts.append(f"```text\n{text.rstrip()}\n```")
    return "\n\n".join(parts) + "\n"


def on_files(files: Files, config: Any) -> Files:
    """Add a page for each notebook, and for each source file that a page links to."""
    for path in sorted((ROOT / "docs").rglob("*.ipynb")):
        content = notebook_page(json.loads(path.read_text(encoding="utf-8")))
        name = path.relative_to(ROOT / "docs").with_suffix(".md").as_posix()
        files.append(File.generated(config, name, content=content))
    linked = set()
    for file in files.documentation_pages():
        for target in LINK.findall(file.content_string):
            linked.add(source_of(file.src_uri, target))
    for path in sorted(linked - {None}):
        text = (ROOT / path).read_text(encoding="utf-8")
        content = TEMPLATE.format(path=path, language=SOURCES[Path(path).suffix], text=text)
        page = File.generated(
            config, f"source/{path}.md", content=content, inclusion=InclusionLevel.NOT_IN_NAV
        )
        files.append(page)
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Lead links to source files and notebooks to their pages."""
    here = page.file.src_uri

    def lead(match: re.Match[str]) -> str:
        if match.group().endswith(".ipynb"):
            return match.group().removesuffix("ipynb") + "md"
        path = source_of(here, match.group())
        if path is None:
            return match.group()
        return posixpath.relpath(f"source/{path}.md", posixpath.dirname(here) or ".")

    return LINK.sub(lead, markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Open pictures in full: on a phone, sheets of many slices are small."""
    return PICTURE.sub(r'<a href="\1" title="Open the picture">\g<0></a>', html)
