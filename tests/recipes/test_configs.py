"""`medar configs`, and how configurations are found by name."""

import json
from pathlib import Path

import pytest

from medar.cli.main import main
from medar.errors import MedarError
from medar.recipes.configs import config_names, configs_folder, find_config
from medar.recipes.settings import SynthesisSettings, load_recipe


def call(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(["configs", *map(str, words)])
    printed = capsys.readouterr()
    return int(ended.value.code or 0), printed.out, printed.err


def test_files_take_precedence_over_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()  # a folder is no configuration
    assert find_config("demo") == configs_folder() / "demo.yaml"
    (tmp_path / "mine.yaml").write_text("")
    assert find_config("mine.yaml") == Path("mine.yaml")
    assert find_config("demo", "tokenizer") == configs_folder() / "tokenizer" / "demo.yaml"
    assert find_config("tokenizer/demo", "recipes") == configs_folder() / "tokenizer" / "demo.yaml"


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("hipocampus_mr", "recipes", "did you mean 'hippocampus_mr'"),
        ("ct_129", "generator", "did you mean 'ct_128'"),
        (
            "xyz",
            "generator",
            "known names: ct_128, ct_256, demo, headneck_ct, hippocampus_mr, mr_160, mr_96",
        ),
        ("no/such/file.yaml", None, "no/such/file.yaml: no such file"),
    ],
)
def test_an_unknown_name_gives_one_line_with_a_hint(name: str, kind: None, message: str) -> None:
    with pytest.raises(MedarError, match=message):
        find_config(name, kind)


def test_a_missing_file_is_compared_with_those_beside_it(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("")
    with pytest.raises(MedarError, match=r"no such file; did you mean '.*/config.yaml'"):
        find_config(tmp_path / "confg.yaml")
    with pytest.raises(MedarError, match=r"hipocampus_mr.yaml: no such file; did you mean 'hippo"):
        find_config("hipocampus_mr.yaml")
    (tmp_path / "mine.yaml").write_text("tokenizer: confgi.yaml\n")
    with pytest.raises(MedarError, match=r"mine.yaml: tokenizer: .*did you mean '.*config.yaml'"):
        load_recipe(SynthesisSettings, tmp_path / "mine.yaml")


def test_list_and_show(capsys: pytest.CaptureFixture[str]) -> None:
    code, printed, _ = call(capsys)
    assert code == 0
    assert all(name in printed for name in config_names())
    code, printed, _ = call(capsys, "list", "--json")
    listed = json.loads(printed)["configs"]
    assert [config["name"] for config in listed] == config_names()
    assert all(config["description"] for config in listed)
    code, printed, _ = call(capsys, "show", "demo")
    assert printed == (configs_folder() / "demo.yaml").read_text()


def test_copy_includes_referenced_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, printed, _ = call(capsys, "copy", "hippocampus_mr", tmp_path / "mine")
    assert (code, printed.strip()) == (0, str(tmp_path / "mine" / "hippocampus_mr.yaml"))
    copied = sorted(p.relative_to(tmp_path / "mine").as_posix()
                    for p in (tmp_path / "mine").rglob("*.yaml"))  # fmt: skip
    assert copied == [
        "detail/hippocampus_mr.yaml", "generator/hippocampus_mr.yaml", "hippocampus_mr.yaml",
        "plans/hippocampus_mr.yaml", "tokenizer/hippocampus_mr.yaml",
    ]  # fmt: skip
    code, _, error = call(capsys, "copy", "hippocampus_mr", tmp_path / "mine")
    assert code == 2
    assert "exists already" in error


def test_training_commands_accept_config_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in (("tokenizer", "train"), ("generator", "train"), ("segmentation", "pretrain")):
        name = "pretrain_dmo" if "pretrain" in command else "dmo"
        with pytest.raises(SystemExit) as ended:
            main([*command, name, "--data", str(tmp_path), "--out", str(tmp_path / "out")])
        assert ended.value.code == 2
        assert f"did you mean '{name.replace('dmo', 'demo')}'" in capsys.readouterr().err
