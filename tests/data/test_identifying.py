"""Attributes that may identify people reach no manifest unless they are asked for."""

from pathlib import Path
from typing import Any

import pytest

from medar.data.identifying import without_identifying
from medar.data.manifest import Case, Manifest
from medar.data.sources import read_manifest
from medar.errors import MedarError


def manifest_of(n: int = 12, **columns: Any) -> Manifest:
    """Cases with attributes; a function of the case's number makes each value."""
    cases = tuple(
        Case(
            id=f"c{k}",
            images=(Path(f"c{k}.nii"),),
            attributes={name: value(k) for name, value in columns.items()},
        )
        for k in range(n)
    )
    return Manifest(root=Path("set"), source="test", cases=cases)


def kept(manifest: Manifest, **options: Any) -> set[str]:
    made = without_identifying(manifest, **options)
    names = [set(case.attributes) for case in made]
    assert all(name == names[0] for name in names)
    return names[0]


IDENTIFYING = [
    "name", "Patient Name", "PatientName", "first_name", "surname", "lastname", "patient_id",
    "PatientID", "mrn", "MRN", "accession_number", "StudyInstanceUID", "SeriesInstanceUID",
    "hospital-id", "birth_date", "DateOfBirth", "dob", "birthday", "study_date", "AcquisitionDate",
    "date", "email", "address", "zip", "phone", "referring_physician", "Operators' Name",
    "studydate", "scan_date", "Year of Birth", "deathdate", "medical_record_number", "no",
]  # fmt: skip
HARMLESS = [
    "age", "sex", "site", "scanner", "manufacturer", "protocol_name", "scanner_name", "kernel",
    "site_id", "update", "candidate", "diagnosis", "kvp", "number_of_lesions", "weight",
    "city_size", "name_of_scanner", "update_rate", "grade", "birds",
]  # fmt: skip


@pytest.mark.parametrize("name", IDENTIFYING)
def test_names_of_identifying_attributes(name: str) -> None:
    manifest = manifest_of(**{name: lambda k: "x", "age": lambda k: 50 + k})
    with pytest.warns(UserWarning, match="may identify people are left out") as caught:
        assert kept(manifest) == {"age"}
    assert f"{name} (" in str(caught[0].message)
    assert "--keep-attributes" in str(caught[0].message)


@pytest.mark.parametrize("name", HARMLESS)
def test_names_of_other_attributes(name: str) -> None:
    assert kept(manifest_of(**{name: lambda k: f"{k % 3}"})) == {name}
    assert kept(manifest_of(**{name: lambda k: k})) == {name}


@pytest.mark.parametrize(
    "value",
    [
        lambda k: f"Doe {k}",
        lambda k: f"2020-01-{k + 1:02}",
        lambda k: f"{k + 1}.12.1970",
        lambda k: f"2020-01-{k % 2 + 1:02}T10:00",
        lambda k: 20200101 + k,
    ],
)
def test_values_may_identify_too(value: Any) -> None:
    with pytest.warns(UserWarning, match="remark"):
        assert kept(manifest_of(remark=value, age=lambda k: k)) == {"age"}


def test_few_different_texts_are_kept() -> None:
    assert kept(manifest_of(n=9, scanner=lambda k: f"scanner {k}")) == {"scanner"}
    assert kept(manifest_of(n=50, scanner=lambda k: f"scanner {k // 2}")) == {"scanner"}
    assert kept(manifest_of(n=50, dose=lambda k: 0.5 + k)) == {"dose"}


def test_attributes_that_are_asked_for_are_kept() -> None:
    manifest = manifest_of(
        dob=lambda k: "x", remark=lambda k: f"r{k}", mrn=lambda k: k, age=lambda k: k
    )
    with pytest.warns(UserWarning, match=r"left out: remark \(a different text for each case\);"):
        assert kept(manifest, keep=["dob", "mrn"]) == {"dob", "mrn", "age"}
    assert kept(manifest, keep=["all"]) == {"dob", "remark", "mrn", "age"}
    with pytest.raises(MedarError, match="no attribute 'weight' to keep; available: dob, remark"):
        without_identifying(manifest, keep=["weight"])


def test_a_table_of_a_data_set(tmp_path: Path) -> None:
    rows = ["id,age,PatientName,subject,split"]
    for k in range(3):
        (tmp_path / f"c{k}.nii").write_bytes(b"")
        rows.append(f"c{k},{60 + k},Doe^{k},s{k},train")
    (tmp_path / "index.csv").write_text("\n".join(rows))
    with pytest.warns(UserWarning, match=r"left out: PatientName \(a name\)"):
        found = read_manifest(tmp_path)
    assert [case.attributes for case in found] == [{"age": 60 + k} for k in range(3)]
    assert [case.subject for case in found] == ["s0", "s1", "s2"]
    found = read_manifest(tmp_path, keep_attributes=["PatientName"])
    assert found.cases[0].attributes == {"age": 60, "PatientName": "Doe^0"}
    found.save(tmp_path / "m.jsonl")
    with pytest.warns(UserWarning, match="PatientName"):
        assert "PatientName" not in read_manifest(tmp_path / "m.jsonl").cases[0].attributes
