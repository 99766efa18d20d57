"""`medar view`: volumes and labels side by side in a browser."""

import webbrowser
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from medar.cli.options import Reading
from medar.cli.output import note
from medar.errors import MedarError

if TYPE_CHECKING:
    from medar.view.page import Resource

READING = Reading()


def view(
    files: Annotated[list[Path], Parameter(required=True)],
    /,
    *,
    label: list[str] | None = None,
    names: str | None = None,
    window: Annotated[str | None, Parameter(allow_leading_hyphen=True)] = None,
    modality: Literal["CT", "MR"] | None = None,
    html: Path | None = None,
    port: Annotated[int, Parameter(show_default=False)] = 0,
    no_browser: bool = False,
    reading: Reading = READING,
) -> None:
    """Show volumes and labels in a browser: files side by side, a folder case by case.

    Serves a local page until Ctrl-C, or writes it to a file. Volumes that `medar synthesize` wrote
    are marked as synthetic and shown with their label maps. The page measures distances in mm and
    saves pictures.

    Parameters
    ----------
    files
        Volumes in any supported format, or folders of NIfTI files; up to 8 volumes, side by side
        with linked crosshairs. A single folder of NIfTI files, a data set or the folder of a
        synthesis run is shown case by case instead: N and P step through it.
    label
        Label map. Give it once per file, in the same order, "none" for a file without labels. For
        a folder: a folder of label maps with the same names.
    names
        Names of label values, as 1=liver,2=spleen; or a data set that names them, such as
        DATA/dataset.json.
    window
        Display range of all volumes: soft, lung, bone, brain, or LEVEL/WIDTH in the units of the
        volumes, such as 40/400. Default: soft for CT, percentiles of each volume otherwise.
    modality
        Modality of volumes that do not state it.
    html
        Write a self-contained file instead of serving the page; a folder's volumes are side by
        side in it.
    port
        Port of the server; default: a free one.
    no_browser
        Print the address without opening a browser.
    """
    from medar.view.files import select_cases, select_files
    from medar.view.page import resources, self_contained
    from medar.view.panels import make_panels, parse_window

    named = _named(names)
    make = partial(
        make_panels,
        options=reading.options(),
        modality=modality,
        window=None if window is None else parse_window(window),
    )
    folder = files[0] if len(files) == 1 and files[0].is_dir() and html is None else None
    found = select_cases(folder, label or []) if folder is not None else None
    if found is not None:
        from medar.view.cases import CasePages

        note(*found.notes)
        cases, values = found.cases, named or found.names
        pages = CasePages(
            [one.title for one in cases],
            lambda index: make(cases[index].volumes, names=values),
        )
        _serve(pages, port, open_browser=not no_browser)
        return
    selection = select_files(files, label or [])
    note(*selection.notes)
    panels = make(selection.volumes, names=named)
    if html is not None:
        from medar.files import write_text

        write_text(html, self_contained(panels))
        print(html)
    else:
        _serve(resources(panels), port, open_browser=not no_browser)


def _serve(pages: "Mapping[str, Resource]", port: int, *, open_browser: bool) -> None:
    """Serve pages until Ctrl-C."""
    from medar.view.server import PageServer

    with PageServer(pages, port) as server:
        print(f"{server.url}\nPress Ctrl-C to stop", flush=True)
        if open_browser:
            # A terminal browser blocks until it is closed, and needs the page before that.
            Thread(target=webbrowser.open, args=(server.url,), daemon=True).start()
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()


def _named(text: str | None) -> dict[int, str]:
    """Label names from comma-separated VALUE=NAME pairs, or from a data set."""
    if text is not None and "=" not in text and Path(text).exists():
        from medar.data.sources import read_manifest

        return read_manifest(Path(text)).labels
    names: dict[int, str] = {}
    for pair in text.split(",") if text else ():
        value, _, name = (part.strip() for part in pair.partition("="))
        if not name or not value.removeprefix("-").isdecimal():
            raise MedarError(
                "--names must be VALUE=NAME pairs such as 1=liver,2=spleen, or a data set, "
                f"got {pair!r}"
            )
        names[int(value)] = name
    return names
