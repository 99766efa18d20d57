"""`medar report`: the report about a recipe's run."""

from pathlib import Path

from medar.cli.output import print_json


def report(run: Path, /, *, real: bool = False, json: bool = False) -> None:
    """Write the report about a run: RUN/report.html, RUN/report.md and its pictures.

    The HTML page is self-contained and opens without a network. Sections whose files are missing
    are listed at its end.

    Parameters
    ----------
    run
        Folder that was passed to the recipe as --out.
    real
        Show the nearest training case beside each sample among the slices to scroll through. The
        page then holds whole real volumes: protect it like the data.
    json
        Print one JSON object with the keys report and markdown.
    """
    from medar.report.render import MARKDOWN_FILE
    from medar.report.run import write_report

    page = write_report(run, real_volumes=real)
    if json:
        print_json({"report": page, "markdown": page.with_name(MARKDOWN_FILE)})
    else:
        print(page)
