"""The documents: sections have names, and whoever refers to one finds it."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
DESIGN = ROOT / "poold" / "DESIGN.md"
FINDINGS = ROOT / "tests" / "bench" / "FINDINGS.md"
DOCUMENTS = [*ROOT.glob("*.md"), *ROOT.glob("deploy/**/*.md"), DESIGN, FINDINGS]


def headings(document: Path) -> list[str]:
    """Return the names of a document's sections, without those that only group others."""
    return re.findall(r"^##+ (.*)$", document.read_text(), re.MULTILINE)


def test_sections_have_names() -> None:
    """No section is numbered, and none is cited by a number, in documents, docstrings and comments."""
    for document in (DESIGN, FINDINGS):
        assert len(headings(document)) == len(set(headings(document)))
        assert not [name for name in headings(document) if re.match(r"\d+[.)]", name)]
    for file in (*DOCUMENTS, *ROOT.glob("poold/**/*.py"), *ROOT.glob("tests/**/*.py"), *ROOT.glob("poold/*.toml")):
        assert not re.search(r"\b[Ss]ections?\s+\d", file.read_text()), file


def test_findings_that_are_named_exist() -> None:
    """A decision that rests on a measurement names the section of the findings that has it."""
    text = " ".join(DESIGN.read_text().split())
    named = [name for names in re.findall(r"\(findings: ([^)]*)\)", text) for name in names.split(", ")]
    assert named
    assert set(named) <= set(headings(FINDINGS))
    in_tables = re.findall(r"\*\s\(([A-Z][^)]*)\)", FINDINGS.read_text())
    assert in_tables
    assert set(in_tables) <= set(headings(FINDINGS))


def test_files_that_are_named_exist() -> None:
    """A path that a document names is there."""
    for document in DOCUMENTS:
        for path in re.findall(r"`((?:poold|tests|deploy)/[\w./-]+\.(?:py|md|toml|svg|c))`", document.read_text()):
            assert (ROOT / path).exists(), f"{document.name}: {path}"
        for path in re.findall(r"\]\(([\w./-]+)(?:#[\w-]+)?\)", document.read_text()):
            assert (document.parent / path).exists(), f"{document.name}: {path}"


def test_modules_that_are_named_exist() -> None:
    """A module that a document names is there."""
    for document in DOCUMENTS:
        for name in re.findall(r"`(poold(?:\.[a-z_]+)+)`", document.read_text().replace("poold.toml", "").replace("poold.service", "")):
            place = ROOT / Path(*name.split("."))
            assert place.is_dir() or place.with_suffix(".py").exists(), f"{document.name}: {name}"
