"""Check the built site: every link leads somewhere, every picture is there, nothing is fetched.

    python docs/check.py build/docs

Exits with 1 and a line for each fault.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


@dataclass
class Page(HTMLParser):
    """What a page links to, shows and loads, and the fragments that it can be linked by."""

    links: list[str] = field(default_factory=list)
    loads: list[str] = field(default_factory=list)
    anchors: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note what matters of a tag."""
        values = {key: value or "" for key, value in attrs}
        self.anchors |= {values[key] for key in ("id", "name") if key in values}
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        elif tag in ("img", "script", "source", "iframe") and "src" in values:
            self.loads.append(values["src"])
        elif tag == "link" and values.get("rel") in ("stylesheet", "icon", "preload"):
            self.loads.append(values["href"])


def read(site: Path) -> dict[Path, Page]:
    """All pages of a site."""
    pages = {}
    for path in sorted(site.rglob("*.html")):
        pages[path] = Page()
        pages[path].feed(path.read_text(encoding="utf-8"))
    return pages


def broken(site: Path) -> list[str]:
    """A line for each link that leads nowhere and for each thing loaded from elsewhere."""
    pages, problems = read(site.resolve()), []
    if not pages:
        problems.append(f"{site} has no page")
    for path, page in pages.items():
        name = path.relative_to(site.resolve())
        for target in [*page.links, *page.loads]:
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                if target in page.loads and parts.scheme != "data":
                    problems.append(f"{name} loads {target} from elsewhere")
                continue
            file = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not file.exists():
                problems.append(f"{name} points to {target}, which is not there")
            elif file in pages and unquote(parts.fragment) not in {"", *pages[file].anchors}:
                problems.append(f"{name} points to {target}, where no such place is")
    return problems


def main() -> None:
    """Check what the arguments say."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("site", type=Path)
    sys.exit("\n".join(broken(parser.parse_args().site)) or 0)


if __name__ == "__main__":
    main()
