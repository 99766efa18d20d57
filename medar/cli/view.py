"""`medar view`: volumes and labels side by side in a browser."""

import webbrowser
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from medar.cli.options import Reading
from medar.cli.output import note
from medar.errors import MedarError

if TYPE_CHECKING:
    from medar.view.panels import Panel

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
    """Show volumes and labels side by side in a browser, with linked crosshairs.

    Serves a local page until Ctrl-C, or writes it to a file. Volumes that `medar synthesize` wrote
    are marked as synthetic and shown with their label maps.

    Parameters
    ----------
    files
        Volumes in any supported format, or folders of NIfTI files; up to 8 volumes.
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
        Write a self-contained file instead of serving the page.
    port
        Port of the server; default: a free one.
    no_browser
        Print the address without opening a browser.
    """
    from medar.view.files import select_files
    from medar.view.page import self_contained
    from medar.view.panels import make_panels, parse_window

    selection = select_files(files, label or [])
    note(*selection.notes)
    panels = make_panels(
        selection.volumes,
        reading.options(),
        modality=modality,
        window=None if window is None else parse_window(window),
        names=_named(names),
    )
    if html is not None:
        from medar.files import write_text

        write_text(html, self_contained(panels))
        print(html)
    else:
        _serve(panels, port, open_browser=not no_browser)


def _serve(panels: "list[Panel]", port: int, *, open_browser: bool) -> None:
    """Serve a page until Ctrl-C."""
    from medar.view.page import resources
    from medar.view.server import PageServer

    with PageServer(resources(panels), port) as server:
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
