"""Settings: YAML round trips, and errors that name the key."""

from dataclasses import field, replace
from pathlib import Path
from typing import Any, Literal

import pytest

from medar.errors import MedarError
from medar.settings import (
    PositiveInt,
    from_dict,
    load_yaml,
    resolve_settings,
    save_yaml,
    settings,
    to_dict,
)


@settings
class Inner:
    high: float = 1.0
    low: float = 0.0

    def __post_init__(self) -> None:
        if self.high <= self.low:
            raise MedarError(f"high {self.high:g} <= low {self.low:g}")


@settings(renamed={"sides": "size, in voxels"})
class Settings:
    size: tuple[PositiveInt, PositiveInt, PositiveInt]
    rate: float = 1e-3
    kind: Literal["a", "b"] = "a"
    names: dict[int, str] = field(default_factory=dict)
    inner: Inner = field(default_factory=Inner)
    rules: dict[str, Inner] = field(default_factory=dict)
    path: Path | None = None


FULL = Settings(
    size=(1, 2, 3),
    rate=1e-7,
    kind="b",
    names={2: "liver", 10: "Größe: #1"},
    inner=Inner(high=2.5),
    rules={"CT": Inner(low=-1000.0)},
    path=Path("a/b"),
)


def test_yaml_round_trip(tmp_path: Path) -> None:
    save_yaml(FULL, tmp_path / "s.yaml", header="two\n\nparagraphs")
    text = (tmp_path / "s.yaml").read_text(encoding="utf-8")
    assert text.startswith("# two\n#\n# paragraphs\nsize: [1, 2, 3]\n")
    assert load_yaml(Settings, tmp_path / "s.yaml") == FULL


def test_plain_values_round_trip() -> None:
    assert to_dict(FULL)["size"] == [1, 2, 3]
    assert to_dict(FULL)["path"] == "a/b"
    assert from_dict(Settings, to_dict(FULL), "s") == FULL


def test_strings_that_read_as_numbers_are_numbers(tmp_path: Path) -> None:
    # YAML 1.1 takes 1e-4 for a string.
    (tmp_path / "s.yaml").write_text("size: [1, 2, 3]\nrate: 1e-4\n")
    assert load_yaml(Settings, tmp_path / "s.yaml").rate == 1e-4


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"size": [1, 2, 3], "rat": 1}, "unknown key 'rat'; did you mean 'rate'?"),
        ({"size": [1, 2, 3], "zzz": 1}, "unknown key 'zzz'; known keys: size, rate, kind"),
        (
            {"size": [1, 2, 3], "inner": {"hihg": 1}},
            "unknown key 'inner.hihg'; did you mean 'high'?",
        ),
        (
            {"size": [1, 2, 3], "rules": {"CT": {"zzz": 1}}},
            "unknown key 'rules.CT.zzz'; known keys: high, low",
        ),
        ({}, "key 'size' is missing"),
        ({"size": [1, 2, 0]}, "size.2 must be at least 1, got 0"),
        ({"size": [1, 2, 3], "rate": "nan"}, "rate must be finite, got 'nan'"),
        ({"sides": [1, 2, 3]}, "key 'sides' has a new name: size, in voxels"),
        ({"size": [1, 2, "x"]}, "size.2 must be an integer, got 'x'"),
        ({"size": [1, 2, 3], "kind": "c"}, "kind must be 'a' or 'b', got 'c'"),
        ({"size": [1, 2, 3], "inner": {"high": -1}}, "inner: high -1 <= low 0"),
        ([1], "must hold a mapping of settings, got list"),
    ],
)
def test_errors_name_the_file_and_the_key(values: Any, message: str) -> None:
    with pytest.raises(MedarError) as caught:
        from_dict(Settings, values, "s.yaml")
    assert str(caught.value).startswith(f"s.yaml: {message}")
    assert "\n" not in str(caught.value)


LAUGHS = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
"""Aliases that stand for 9^9 words."""


@pytest.mark.parametrize(
    "text",
    [
        "a: [1", "a: b: c", "\t- x", "a: 2024-13-45", "a: " + "9" * 5000, "a: " + "[" * 3000,
        "a: &a [*a]", LAUGHS,
    ],
    ids=["list", "mapping", "tab", "date", "digits", "nesting", "itself", "aliases"],
)  # fmt: skip
def test_bad_yaml_gives_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "s.yaml").write_text(text)
    with pytest.raises(MedarError, match=r"s\.yaml: not valid YAML") as caught:
        load_yaml(Settings, tmp_path / "s.yaml")
    assert "\n" not in str(caught.value)
    with pytest.raises(MedarError, match="cannot be read"):
        load_yaml(Settings, tmp_path / "none.yaml")


@pytest.mark.parametrize("value", ["2024-13-45", "9" * 5000, "[" * 3000])
def test_bad_overrides_give_one_line(tmp_path: Path, value: str) -> None:
    (tmp_path / "s.yaml").write_text("size: [1, 2, 3]\n")
    with pytest.raises(MedarError, match=r"not valid YAML") as caught:
        load_yaml(Settings, tmp_path / "s.yaml", [f"rate={value}"])
    assert "\n" not in str(caught.value)


def test_a_byte_order_mark_is_no_key(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_bytes(b"\xef\xbb\xbfsize: [1, 2, 3]\n")
    assert load_yaml(Settings, tmp_path / "s.yaml").size == (1, 2, 3)


def test_devices_are_not_read(tmp_path: Path) -> None:
    """/dev/zero never ends."""
    with pytest.raises(MedarError, match=r"^/dev/zero: cannot be read \(it is not a file\)"):
        load_yaml(Settings, "/dev/zero")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"size": [1, 10**30, 3]}, "size.1 must be at most 9223372036854775807, got 10000"),
        ({"size": [1, 2, 3], "inner": {"low": -(10**30)}}, "inner.low must be at most"),
        ({"size": [1, 2, 3], "rate": float("nan")}, "rate must be finite, got nan"),
        ({10**30: 1}, f"{10**30} must be at most"),
        ({"a" * 5000: 1}, f"unknown key '{'a' * 77}...'; known keys: size, "),
    ],
)
def test_numbers_that_no_library_takes(values: Any, message: str) -> None:
    with pytest.raises(MedarError) as caught:
        from_dict(Settings, values, "s.yaml")
    assert str(caught.value).startswith(f"s.yaml: {message}")


def test_an_empty_file_is_missing_keys(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text("# nothing\n")
    with pytest.raises(MedarError, match="key 'size' is missing"):
        load_yaml(Settings, tmp_path / "s.yaml")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"size": (1, 2, 3), "kind": "A"}, "kind must be 'a' or 'b', got 'A'"),
        ({"size": (1, 0, 3)}, "size.1 must be at least 1, got 0"),
        ({"size": (1, 2, 3), "rat": 1}, "unknown key 'rat'; did you mean 'rate'?"),
        ({"size": (1, 2, 3), "inner": {"high": -1}}, "inner: high -1 <= low 0"),
        ({}, "key 'size' is missing"),
    ],
)
def test_settings_built_in_python_are_checked_too(values: Any, message: str) -> None:
    with pytest.raises(MedarError) as caught:
        Settings(**values)
    assert str(caught.value) == message


def test_a_changed_copy_is_checked() -> None:
    assert replace(FULL, kind="a").kind == "a"
    with pytest.raises(MedarError, match="kind must be 'a' or 'b', got 'typo'"):
        replace(FULL, kind="typo")


def test_settings_are_an_object_a_mapping_or_a_file(tmp_path: Path) -> None:
    save_yaml(FULL, tmp_path / "a.yaml")
    for source in (FULL, to_dict(FULL), tmp_path / "a.yaml", str(tmp_path / "a.yaml")):
        assert resolve_settings(Settings, source) == FULL
    with pytest.raises(MedarError, match=r"^settings: unknown key 'sise'"):
        resolve_settings(Settings, {"sise": [1, 1, 1]})
