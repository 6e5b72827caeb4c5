"""Writes docs/references.bib from the docstrings' sources: ``python docs/references.py``."""

import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FAMILIES = (
    "aggregators",
    "preaggregators",
    "attacks",
    "estimators",
    "compressors",
    "links",
    "codes",
    "optimizers",
    "data",
    "metrics",
    "exchange",
)
SOURCE = re.compile(
    r"(?P<authors>(?:[A-Z][\w\- ]+, )*[A-Z][\w\- ]+)\. (?P<title>[^.]+(?:\.\d[^.]*)*)\. "
    r"(?:(?P<venue>[A-Z][A-Za-z ]+) )?(?P<year>\d{4})(?:, arXiv (?P<arxiv>\d{4}\.\d{5}))?"
)
LEADS = r"Compared with [\w ]+ in "
HEAD = "% Made from the docstrings by `python docs/references.py`: what each class names as its source.\n"
JOURNALS = frozenset({"IEEE TSP"})
SMALL = frozenset(["a", "an", "and", "at", "for", "from", "in", "of", "on", "the", "to", "via", "with"])


@dataclass(frozen=True)
class Source:
    """A paper, as a docstring names it."""

    authors: tuple[str, ...]
    title: str
    venue: str
    year: str
    arxiv: str

    @property
    def key(self) -> str:
        """First author, year and first word, as bibliographies name it."""
        word = next(word for word in re.findall(r"[A-Za-z]+", self.title) if word.lower() not in SMALL)
        return f"{re.sub(r'[^a-z]', '', _plain(self.authors[0]).lower())}{self.year}{word.lower()}"

    def entry(self, classes: list[str]) -> str:
        """Return the BibTeX entry, after a line with the classes that name it."""
        journal = self.venue in JOURNALS
        kind = "article" if journal else "inproceedings" if self.venue else "misc"
        title = self.title.replace("mu^2", r"$\mu^2$")
        fields = {"author": " and ".join(self.authors), "title": f"{{{title}}}"}
        fields |= {"journal" if journal else "booktitle": self.venue} if self.venue else {}
        fields |= {"year": self.year}
        fields |= {"eprint": self.arxiv, "archiveprefix": "arXiv"} if self.arxiv else {}
        lines = "".join(f"  {name} = {{{value}}},\n" for name, value in fields.items())
        return f"% {', '.join(classes)}\n@{kind}{{{self.key},\n{lines}}}\n"


def sources(text: str) -> list[Source]:
    """Return the papers that a docstring's References name.

    Example:
        >>> paper = "Ng, El Mhamdi. On a Name: Its Use. ICML 2021, arXiv 2012.10333."
        >>> [(one.key, one.authors, one.venue) for one in sources("References:" + chr(10) + "    " + paper)]
        [('ng2021name', ('Ng', 'El Mhamdi'), 'ICML')]

    """
    if "References:" not in text:
        return []
    after = re.split(r"\n\s*\n|\n\s*Example:", text.partition("References:")[2])[0]
    plain = re.sub(LEADS, "", " ".join(after.split()))
    return [
        Source(tuple(one["authors"].split(", ")), one["title"], one["venue"] or "", one["year"], one["arxiv"] or "")
        for one in SOURCE.finditer(plain)
    ]


def documented() -> Iterator[tuple[str, str]]:
    """Each public class of the families and its docstring."""
    for family in FAMILIES:
        package = importlib.import_module(f"lightning_byz.{family}")
        for name in package.__all__:
            if inspect.isclass(found := getattr(package, name)):
                yield name, inspect.cleandoc(found.__doc__ or "")


def bibliography() -> str:
    """Return the whole file."""
    named: dict[Source, list[str]] = {}
    for name, text in documented():
        for source in sources(text):
            known = next(
                (one for one in named if one.arxiv == source.arxiv and _plain(one.title) == _plain(source.title)),
                source,
            )
            named.setdefault(known, []).append(name)
    return HEAD + "".join(f"\n{one.entry(sorted(set(named[one])))}" for one in sorted(named, key=lambda one: one.key))


def _plain(text: str) -> str:
    return text.translate(str.maketrans("áéíóúàèïöüñç", "aeiouaeioun" + "c"))


if __name__ == "__main__":
    path = Path(__file__).with_suffix(".bib")
    if "--check" in sys.argv:
        sys.exit(path.read_text() != bibliography())
    path.write_text(bibliography())
