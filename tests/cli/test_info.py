"""`medar info`, `--help` and `--version`."""

import json
from collections.abc import Callable
from typing import Any

import pytest

import medar as package

Medar = Callable[..., Any]


def test_info_names_versions_and_device(medar: Medar) -> None:
    facts = json.loads(medar("info", "--json").out)
    assert sorted(facts) == ["device", "kernels", "paths", "threads", "versions"]
    assert facts["versions"]["torch"]
    assert facts["device"]["type"] in ("cpu", "cuda")
    output = medar("info").out
    assert all(heading in output for heading in facts)


def test_version(medar: Medar) -> None:
    assert medar("--version").out.strip() == package.__version__


def test_an_unexpected_argument_is_one_line(medar: Medar) -> None:
    result = medar("configs", "tokenizer/demo")
    assert result.code == 2
    assert result.err == "medar: unexpected argument 'tokenizer/demo'; see --help\n"


@pytest.mark.parametrize("command", ["check", "plan", "prepare", "show", "phantoms"])
def test_every_option_is_described(medar: Medar, command: str) -> None:
    result = medar("data", command, "--help")
    assert result.code == 0
    rows = [line.strip("\u2502 *").split("  ") for line in result.out.splitlines()]
    options = [row for row in rows if row[0].startswith("--")]
    assert options
    assert not [row[0] for row in options if not any(cell.strip() for cell in row[1:])]
    assert "--no-" not in result.out
    assert "--empty-" not in result.out
