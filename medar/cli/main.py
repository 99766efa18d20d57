"""`medar`: the commands, and how errors leave the program.

Exit codes: 0 fine; 1 the data or the result has problems, which were reported; 2 the call or its
input was wrong, in one line on standard error; 130 interrupted.
"""

import io
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from cyclopts import App, CycloptsError, Parameter

from medar import __version__
from medar.errors import MedarError

HELP = """Generate and understand 3D medical volumes with scale-wise autoregressive models.

Not a medical device: for research only."""

SYNTHESIZE = """Make synthetic volumes, fill regions, raise resolution.

Leaves OUT/sample_0000.nii.gz and so on, with a label head or MASK their label maps beside them, a
JSON a sample that says what it was made by, and OUT/contact_sheet.png. The same command goes on
where it was interrupted, or adds samples with a larger N."""
SEGMENT = """Label maps of a file, a DICOM series, or a folder of such: MODEL... IN OUT.

Each has its volume's own grid and orientation, and a JSON beside it with the labels' names and
amounts. A volume unlike those that the network was trained on is named on standard error and in
that JSON. Exit code 1 if volumes of a folder could not be segmented; they are named."""

app = App(
    name="medar",
    help=HELP,
    version=__version__,
    suppress_keyboard_interrupt=False,
    help_format="markdown",
    # No --no-json, no --empty-spacing: leaving an option out says the same.
    default_parameter=Parameter(negative=()),
)
# Named by path, so that a command's imports are paid for by that command alone.
app.command(
    "medar.cli.info:info", name="info", help="Versions, device, threads, kernels and paths."
)
app.command("medar.cli.recipe:app", name="run", help="Run whole recipes: data set to report.")
app.command("medar.cli.configs:app", name="configs", help="Configurations: list, show, copy.")
app.command(
    "medar.cli.data:app", name="data", help="Check, plan, prepare and look at data sets; phantoms."
)
app.command(
    "medar.cli.tokenizer:app",
    name="tokenizer",
    help="Train tokenizers; volumes to tokens and back.",
)
app.command("medar.cli.synthesize:synthesize", name="synthesize", help=SYNTHESIZE)
app.command("medar.cli.generator:app", name="generator", help="Train generators.")
app.command("medar.cli.segmentation:app", name="segmentation", help="Train segmentation networks.")
app.command(
    "medar.cli.segment:segment",
    name="segment",
    help=SEGMENT,
    usage="Usage: medar segment [OPTIONS] MODEL... IN OUT",
)
app.command(
    "medar.cli.exchange:export",
    name="export",
    help="Write a segmentation network for MONAI or nnU-Net.",
)
app.command(
    "medar.cli.exchange:import_",
    name="import",
    help="Turn a checkpoint of MONAI's or nnU-Net's into a folder to start from.",
)
app.command("medar.cli.evaluate:app", name="evaluate", help="Measure trained models.")
app.command("medar.cli.report:report", name="report", help="Write the report of a run.")
app.command(
    "medar.cli.view:view", name="view", help="Volumes and labels side by side in a browser."
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `medar` and leave with its exit code."""
    run_app(app, arguments)


def run_app(app: App, arguments: Sequence[str] | None = None) -> None:
    """Run a command line and leave with its exit code; errors are said in one line.

    Args:
        app: the commands.
        arguments: default those of the process.
    """
    warnings.showwarning = _show_warning
    for stream in (sys.stdout, sys.stderr):
        # A name that the terminal cannot show is no reason to stop.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        code = app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
        sys.stdout.flush()
    except CycloptsError as error:
        _leave(" ".join(str(error).split()), 2)
    except MedarError as error:
        _leave(str(error), 2)
    except KeyboardInterrupt as interruption:
        _leave(": ".join(["interrupted", *map(str, interruption.args)]), 130)
    except BrokenPipeError:
        # The reader of our output has gone (`| head`): no more can be said to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        _leave(f"{error.filename or 'file system'}: {error.strerror or error}", 2)
    sys.exit(code if isinstance(code, int) else 0)


def _leave(message: str, code: int) -> None:
    # One line, whatever a file name or a library brings along.
    print(f"medar: {' '.join(message.splitlines())}", file=sys.stderr)
    sys.exit(code)


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"medar: warning: {message}", file=sys.stderr)
