"""What the documents point to is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"\]\(([^)#]+)(?:#([^)]*))?\)")


def anchor(heading):
    """The anchor that a Markdown heading gets on a code host."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


@pytest.mark.parametrize("name", ["docs/method.md", "benchmarks/README.md", "README.md"])
def test_links_lead_somewhere(name):
    page = ROOT / name
    links = [link for link in LINK.findall(page.read_text(encoding="utf-8")) if "://" not in link[0]]
    assert links
    for path, part in links:
        target = (page.parent / path).resolve()
        assert target.exists(), path
        if part:
            headings = [line.lstrip("# ") for line in target.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
            assert part in [anchor(heading) for heading in headings], part


@pytest.mark.parametrize("name", ["docs/method.md", "benchmarks/README.md", "README.md"])
def test_links_lead_into_the_registrys_package(name):
    lines = (ROOT / ".comfyignore").read_text(encoding="utf-8").split("\n")
    left_out = [ROOT / line for line in lines if line and not line.startswith("#")]
    for path, _ in LINK.findall((ROOT / name).read_text(encoding="utf-8")):
        target = (ROOT / name).parent.joinpath(path).resolve()
        assert not any(target.is_relative_to(folder) for folder in left_out), path


def test_code_that_the_method_names_is_in_the_file_beside_it():
    text = (ROOT / "docs" / "method.md").read_text(encoding="utf-8")
    # ([`file.py`](path), `name`, `name`)
    named = re.findall(r"\]\(\.\./(livephoto_core/[\w/]+\.py)\)((?:,\s+`[\w.]+`)+)", text)
    assert len(named) >= 6
    for path, names in named:
        source = (ROOT / path).read_text(encoding="utf-8")
        for name in re.findall(r"`([\w.]+)`", names):
            assert f" {name.split('.')[-1]}" in source, (path, name)
