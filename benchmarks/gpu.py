"""The first hour on a GPU machine: what works there, how fast it is, and two trainings.

    python benchmarks/gpu.py --stage check --minutes 9 --out OUT
    python benchmarks/gpu.py --stage speed --minutes 9 --out OUT
    python benchmarks/gpu.py --stage train-mr --minutes 9 --out OUT --data DATA
    python benchmarks/gpu.py --stage train-ct --minutes 9 --out OUT --data DATA
    python benchmarks/gpu.py --stage table --out OUT

Each stage appends one JSON record per step to OUT/STAGE.jsonl as soon as the step is done. A step
that fails leaves the text of its error, and the stage goes on. No step starts after --minutes.

`check`: the card, its ceilings, the tests marked `gpu`, and parity with the CPU. `speed`: training,
sampling and decoding at random weights. `train-mr`, `train-ct`: tokenizer, detail decoder, tokens
and generator of a data set, judged and packed as a bundle. `table`: the records as Markdown, also
written between the markers of --page.

--tiny shrinks everything, so that a CPU runs each stage in a minute; without --data the trainings
then use phantoms.
"""

import argparse
import os
import sys
from pathlib import Path

import torch
from gpu_stages import check, speed, table, training
from gpu_stages.journal import Journal

from medar.devices import resolve_device
from medar.errors import MedarError
from medar.training.precision import use_expandable_segments

STAGES = ("check", "speed", "train-mr", "train-ct", "table")


def main(words: list[str] | None = None) -> None:
    """Run one stage."""
    options = parse(words)
    if options.stage == "table":
        text = table.table(options.out)
        print(text)
        if options.page is not None:
            table.insert(text, options.page)
        return
    device = resolve_device(options.device)
    if device.type == "cuda":
        use_expandable_segments()
    with Journal(options.out / f"{options.stage}.jsonl", options.minutes) as journal:
        journal.write("start", device=device.type, minutes=options.minutes, tiny=options.tiny)
        if options.stage == "check":
            check.run(journal, device, tiny=options.tiny)
        elif options.stage == "speed":
            speed.run(journal, device, tiny=options.tiny)
        else:
            modality = options.stage.removeprefix("train-")
            training.run(
                journal,
                device,
                modality=modality,
                data=options.data,
                out=options.out / options.stage,
                tiny=options.tiny,
            )
        journal.write("end", failed=journal.failed)


def parse(words: list[str] | None) -> argparse.Namespace:
    """The options, checked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stage", choices=STAGES, required=True)
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--data", type=Path, help="data set of a training, prepared or not")
    parser.add_argument("--page", type=Path, help="Markdown page that receives the table")
    options = parser.parse_args(words)
    if not options.minutes > 0:
        parser.error(f"--minutes must be above 0, got {options.minutes:g}")
    if options.stage.startswith("train-") and options.data is None and not options.tiny:
        parser.error(f"--stage {options.stage} needs --data, or --tiny for phantoms")
    return options


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    try:
        main()
    except MedarError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
