"""Trains the tests' tiny tokenizer: `python trainer.py PREPARED OUT SETTINGS.json [kill=STEP]`.

A script, so that whole processes can be killed and torchrun can start it.
"""

import json
import os
import signal
import sys
from pathlib import Path

import torch

from medar.settings import from_dict
from medar.tokenizer.settings import TokenizerSettings
from medar.tokenizer.training import TokenizerTask, train_tokenizer


def main(prepared: str, out: str, settings: str, *words: str) -> None:
    torch.set_num_threads(1)
    given = {name: int(value) for name, _, value in (word.partition("=") for word in words)}

    def send(self: TokenizerTask, step: int) -> None:
        if step == given.get("kill"):
            os.kill(os.getpid(), signal.SIGKILL)

    TokenizerTask.after_step = send  # type: ignore[method-assign]
    values = json.loads(Path(settings).read_text())
    train_tokenizer(from_dict(TokenizerSettings, values, settings), prepared, out)


if __name__ == "__main__":
    main(*sys.argv[1:])
