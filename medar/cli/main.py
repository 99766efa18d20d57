"""`medar`: the commands, and the exit codes of errors.

Exit codes: 0 fine; 1 the data or the result has problems, which were reported; 2 the call or its
input was wrong, explained in one line on standard error; 130 interrupted, by Ctrl-C or SIGTERM.
"""

import difflib
import io
import os
import re
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from cyclopts import App, CycloptsError, Parameter, UnusedCliTokensError

from medar.cli.output import UnknownOptionError, printable
from medar.devices import use_huge_pages
from medar.errors import MedarError
from medar.interruption import terminable
from medar.version import __version__

HELP = """Generate and understand 3D medical volumes with scale-wise autoregressive models.

Not a medical device: for research only."""

SYNTHESIZE = """Synthesize volumes, inpaint regions, increase resolution.

Writes OUT/sample_0000.nii.gz and so on, each with a JSON record of how it was made, and
OUT/contact_sheet.png; with a label head or MASK also label maps. The same command resumes an
interrupted run, or adds samples with a larger N."""
TRANSLATE = """Translate volumes: to another modality or contrast, from thick slices, from noise.

Writes OUT/sample_0000.nii.gz and so on, on the grid of IN, each with a JSON record of how it was
made, and OUT/contact_sheet.png. The model must have been trained with condition.map=source
(docs/how-to/translate.md). The same command resumes an interrupted run, or adds samples with a
larger N."""
SEGMENT = """Segment a file, a DICOM series, or a folder of them: MODEL... IN OUT.

Each label map has the grid and orientation of its volume, with a JSON beside it that lists its
labels and their volumes. Volumes unlike those that the network was trained on are reported on
standard error and in that JSON. For a folder, the same command resumes: label maps of the same
files, network and settings are kept. Exit code 1 if volumes of a folder could not be segmented;
they are listed."""

app = App(
    name="medar",
    help=HELP,
    version=__version__,
    suppress_keyboard_interrupt=False,
    help_format="markdown",
    # No --no-json, no --empty-spacing: leaving out an option has the same effect.
    default_parameter=Parameter(negative=()),
)
# Commands are named by path, so that each one pays only for its own imports.
for name, path, text in (
    ("run", "recipe:app", "Run a whole recipe: from a data set to models, results and a report."),
    ("configs", "configs:app", "List, show and copy the configurations that come with medar."),
    ("models", "models:app", "List, show and copy the models that come with medar; pack, share."),
    ("data", "data:app", "Check, plan, prepare and show data sets; make phantoms."),
    ("tokenizer", "tokenizer:app", "Train tokenizers; encode volumes as tokens, decode tokens."),
    ("generator", "generator:app", "Train generators."),
    ("synthesize", "synthesize:synthesize", SYNTHESIZE),
    ("translate", "translate:translate", TRANSLATE),
    ("score", "score:score", "Rank the cases of a data set by how surprising they are to a model."),
    ("segmentation", "segmentation:app", "Pretrain backbones; train segmentation networks."),
    ("segment", "segmentation:segment", SEGMENT),
    ("evaluate", "evaluate:app", "Evaluate trained models, synthetic volumes and label maps."),
    ("export", "exchange:export", "Export a segmentation network to MONAI or nnU-Net."),
    ("import", "exchange:import_", "Import a checkpoint of MONAI or nnU-Net to start from."),
    ("status", "status:status", "Show what a run has done and has left, with times."),
    ("report", "report:report", "Write the report of a run."),
    ("view", "view:view", "Show volumes and labels side by side in a browser."),
    ("info", "info:info", "Show versions, device, threads, kernels and paths."),
):
    usage = {"usage": "Usage: medar segment [OPTIONS] MODEL... IN OUT"} if name == "segment" else {}
    app.command(f"medar.cli.{path}", name=name, help=text, **usage)


OUT_OF_MEMORY = re.compile(
    r"out of memory|n[o']t (enough|allocate) memory|Storage size calculation overflowed", re.I
)
"""Among the errors of torch, on a CPU and on CUDA."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `medar` and exit with its code; errors are printed in one line.

    Args:
        arguments: of the command line; default: those of the process.
    """
    warnings.showwarning = _show_warning
    use_huge_pages()
    with terminable():
        _run(arguments)


def _run(arguments: Sequence[str] | None) -> None:
    """`main`, once signals are handled."""
    for stream in (sys.stdout, sys.stderr):
        # A name that the terminal cannot show is no reason to stop.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        code = app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
        sys.stdout.flush()
    except UnusedCliTokensError as error:
        _leave(f"unexpected argument {(error.unused_tokens or ['?'])[0]!r}; see --help", 2)
    except CycloptsError as error:
        _leave(" ".join(str(error).split()), 2)
    except UnknownOptionError as error:
        _leave(_with_near_option(error, arguments), 2)
    except MedarError as error:
        _leave(str(error), 2)
    except KeyboardInterrupt as interruption:
        _leave(": ".join(["interrupted", *map(str, interruption.args)]), 130)
    except BrokenPipeError:
        # The reader of the output is gone (`| head`).
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        _leave(f"{error.filename or 'file system'}: {error.strerror or error}", 2)
    except (MemoryError, RuntimeError) as error:
        if not (isinstance(error, MemoryError) or OUT_OF_MEMORY.search(str(error))):
            raise
        tried = re.search(r"ried to allocate ([\d.]+ \w+)", str(error))
        amount = f" for another {tried[1]}" if tried else ""
        _leave(f"not enough memory{amount}; choose a smaller network, batch or volume", 2)
    sys.exit(code if isinstance(code, int) else 0)


def _with_near_option(error: UnknownOptionError, arguments: Sequence[str] | None) -> str:
    """The message with the option of the command that was probably meant, if there is one."""
    *_, command = app.parse_commands(arguments)[1]
    names = [name for one in command.assemble_argument_collection() for name in one.names]
    name = error.option.partition("=")[0]
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.7)
    return f"unknown option {name}; did you mean {near[0]!r}?" if near else str(error)


def _leave(message: str, code: int) -> None:
    # One line, whatever a file name or a library brings along.
    print(f"medar: {printable(' '.join(message.splitlines()))}", file=sys.stderr)
    sys.exit(code)


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"medar: warning: {printable(str(message))}", file=sys.stderr)
