"""`medar report`: the page about a recipe's run."""

from pathlib import Path

from medar.cli.output import print_json


def report(run: Path, /, *, json: bool = False) -> None:
    """Write the report of a run anew: RUN/report.html, and RUN/report.md with RUN/report.

    The page holds everything that it shows and opens without a network. Parts whose files are not
    there are left out, and it says which.

    Parameters
    ----------
    run
        The folder that a recipe was given as --out.
    json
        Print one JSON object: report, markdown.
    """
    from medar.report.run import MARKDOWN, write_report

    page = write_report(run)
    if json:
        print_json({"report": page, "markdown": page.with_name(MARKDOWN)})
    else:
        print(page)
