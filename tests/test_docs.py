"""The pages in docs/ say what the classes say."""

import re
import runpy
from pathlib import Path

import pytest
import yaml

import lightning_byz
from lightning_byz import aggregators, preaggregators
from lightning_byz.aggregators import Aggregator
from lightning_byz.preaggregators import PreAggregator

DOCS = Path(__file__).resolve().parent.parent / "docs"


def test_the_table_of_rules_is_that_of_the_classes() -> None:
    made = runpy.run_path(str(DOCS / "rules.py"))["text"]()
    assert (DOCS / "rules.md").read_text() == made, "run: python docs/rules.py"


@pytest.mark.parametrize("name", [*aggregators.__all__, *preaggregators.__all__])
def test_every_bound_is_proved(name: str) -> None:
    rule = getattr(aggregators, name, None) or getattr(preaggregators, name)
    if "kappa" in vars(rule) and rule not in (Aggregator, PreAggregator):
        assert re.search(rf"^\*\*{name}\b", (DOCS / "bounds.md").read_text(), re.MULTILINE), (
            f"{name}.kappa has no proof in docs/bounds.md"
        )


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_bibliography_is_that_of_the_docstrings() -> None:
    made = runpy.run_path(str(DOCS / "references.py"))
    assert (DOCS / "references.bib").read_text() == made["bibliography"](), "run: python docs/references.py"
    for name, text in made["documented"]():
        named = set(re.findall(r"arXiv (\d{4}\.\d{5})", " ".join(text.partition("References:")[2].split())))
        assert named <= {source.arxiv for source in made["sources"](text)}, f"{name}: a source that cannot be read"
    keys = re.findall(r"^@\w+\{(.+),$", made["bibliography"](), re.MULTILINE)
    assert len(keys) == len(set(keys)) > 30


def test_citation_is_of_this_version() -> None:
    told = yaml.safe_load((DOCS.parent / "CITATION.cff").read_text())
    assert told["version"] == lightning_byz.__version__
    assert {"cff-version", "message", "title", "authors", "license"} <= told.keys()


@pytest.mark.parametrize("page", ["arrivals.md", "codes.md", "compression.md"])
def test_what_is_ones_own_runs(page: str, capsys: pytest.CaptureFixture[str]) -> None:
    code = re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)[0]
    exec(compile(code, page, "exec"), {"__name__": page})
    assert capsys.readouterr().out.strip() == re.search(r"^print\(.*\)  # (.*)$", code, re.MULTILINE)[1]  # type: ignore[index]


def test_the_compressor_of_the_page_is_one(capsys: pytest.CaptureFixture[str]) -> None:
    """It runs, and states what its own check finds to be so."""
    code = re.findall(r"```python\n(.*?)```", (DOCS / "compressors.md").read_text(), re.DOTALL)[0]
    exec(code, {"__name__": "page"})
    assert capsys.readouterr().out == ""
    with pytest.raises(AssertionError, match=r"Toward.*compressor_contraction"):
        exec(code.replace("2.0**-14", "2.0**-17"), {"__name__": "page"})
