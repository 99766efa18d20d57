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
    port: int = 0,
    no_browser: bool = False,
    reading: Reading = READING,
) -> None:
    """Show volumes and labels side by side in a browser, with linked crosshairs.

    Serves a page from this machine to this machine until Ctrl-C, or writes it as one file.
    Volumes that `medar synthesize` wrote are marked as synthetic and bring their label maps.

    Parameters
    ----------
    files
        Volumes in any format that medar reads; folders of NIfTI files; up to 8 volumes.
    label
        A label map; given once for each of FILES in their order, "none" for one without. For a
        folder: a folder of label maps with the same names.
    names
        Names of label values: 1=liver,2=spleen; or a data set that names them, such as
        DATA/dataset.json.
    window
        Black and white of all: soft, lung, bone, brain, or LEVEL/WIDTH in the volumes' units such
        as 40/400. Default: soft for CT, percentiles of each volume for the rest.
    modality
        For volumes that do not say what they are.
    html
        Write one file that opens without a server, the volumes inside, and end.
    port
        Default a free one.
    no_browser
        Print the address and open no browser.
    """
    from medar.view.files import choose
    from medar.view.page import self_contained
    from medar.view.panels import make_panels
    from medar.view.window import parse_window

    chosen = choose(files, label or [])
    note(*chosen.notes)
    panels = make_panels(
        chosen.shown,
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
    """Serve a page until Ctrl-C, which is how it is meant to end."""
    from medar.view.page import resources
    from medar.view.server import PageServer

    with PageServer(resources(panels), port) as server:
        print(f"{server.url}\nCtrl-C ends it", flush=True)
        if open_browser:
            # A browser in the terminal returns when it is closed, and wants its page before.
            Thread(target=webbrowser.open, args=(server.url,), daemon=True).start()
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()


def _named(text: str | None) -> dict[int, str]:
    """VALUE=NAME pairs, comma-separated, or the labels of a data set."""
    if text is not None and "=" not in text and Path(text).exists():
        from medar.data.sources import read_manifest

        return read_manifest(Path(text)).labels
    found: dict[int, str] = {}
    for pair in text.split(",") if text else ():
        value, _, name = (part.strip() for part in pair.partition("="))
        if not name or not value.removeprefix("-").isdecimal():
            raise MedarError(
                f"--names {pair}: VALUE=NAME is needed, such as 1=liver,2=spleen, or a data set"
            )
        found[int(value)] = name
    return found
