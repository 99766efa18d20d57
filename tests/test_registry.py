"""Registries: built-in, registered and installed implementations; unknown names are refused."""

import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from medar.errors import MedarError
from medar.registry import Registry


class Own:
    pass


class Other:
    pass


def registry() -> Registry[type]:
    builtin = {"ordered": "collections:OrderedDict", "absent": "no_such_module:Thing"}
    return Registry("codebook", "medar.tests", builtin)


def test_builtin_implementations_are_imported_when_needed() -> None:
    from collections import OrderedDict

    made = registry()
    assert made["ordered"] is OrderedDict
    with pytest.raises(MedarError, match=r"codebook 'absent': no_such_module:Thing cannot be"):
        made["absent"]


def test_a_decorator_adds_a_name_once() -> None:
    made = registry()
    assert made.register("own")(Own) is Own
    made.register("own")(Own)  # a module that is imported again
    assert made["own"] is Own
    assert list(made) == ["absent", "ordered", "own"]
    with pytest.raises(MedarError, match=r"'own' is already registered, by .*:Own; choose another"):
        made.register("own")(Other)


@pytest.mark.parametrize(
    ("name", "message"),
    [("Ordered", "did you mean 'ordered'"), ("zzz", "known codebooks: absent, ordered")],
)
def test_an_unknown_name_is_refused(name: str, message: str) -> None:
    with pytest.raises(MedarError, match=rf"unknown codebook '{name}'; {message}"):
        registry()[name]
    with pytest.raises(MedarError, match=r"^kind: unknown codebook"):
        registry().check(name, "kind")


def test_entry_points_of_installed_packages_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    point = EntryPoint("installed", "collections:Counter", "medar.tests")
    monkeypatch.setattr("medar.registry.entry_points", lambda group: [point])
    from collections import Counter

    assert registry()["installed"] is Counter


def test_an_external_class_is_found_by_its_import_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "their_codebooks.py").write_text("class Theirs:\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    made = registry()
    made.load_external("theirs", "their_codebooks:Theirs")
    assert made.import_path("theirs") == "their_codebooks:Theirs"
    assert made["theirs"] is sys.modules["their_codebooks"].Theirs
    with pytest.raises(MedarError, match=r"'gone': their_codebooks:Gone cannot be imported"):
        made.load_external("gone", "their_codebooks:Gone")
