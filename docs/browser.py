"""Look at the built site with a browser: nothing wider than a phone, every picture shown.

    python docs/browser.py build/docs                 the browser that playwright installed
    python docs/browser.py build/docs --browser PATH --pictures FOLDER

Needs `pip install playwright` and a Chromium; not a part of CI, where `check.py` reads the files
alone. Exits with 1 and a line for each fault. With `--pictures`, saves each page as a phone and as
a desk shows it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from playwright.sync_api import Page, sync_playwright  # pyright: ignore[reportMissingImports]

SCREENS = {"phone": (390, 844), "desk": (1280, 800)}
WIDER = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
BROKEN = (
    """Array.from(document.images).filter(i => !i.complete || !i.naturalWidth).map(i => i.src)"""
)
LAZY = "document.querySelectorAll('img[loading=lazy]').forEach(i => i.loading = 'eager')"


def faults(page: Page) -> list[str]:
    """What is wrong with the page that the browser shows now."""
    page.evaluate(LAZY)
    page.wait_for_load_state("networkidle")
    found = [f"picture not shown: {source}" for source in page.evaluate(BROKEN)]
    wider = page.evaluate(WIDER)
    return [*found, f"{wider} pixels wider than the screen"] if wider > 0 else found


def look(site: Path, browser_path: str | None, pictures: Path | None) -> list[str]:
    """All faults of all pages on all screens."""
    found: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        for screen, (width, height) in SCREENS.items():
            page = browser.new_page(viewport={"width": width, "height": height})
            for path in sorted(site.rglob("*.html")):
                page.goto(path.resolve().as_uri())
                name = path.relative_to(site)
                found += [f"{name} on a {screen}: {fault}" for fault in faults(page)]
                if pictures is not None:
                    file = pictures / f"{str(name.with_suffix('')).replace('/', '_')}_{screen}.png"
                    page.screenshot(path=file)
        browser.close()
    return found


def main() -> None:
    """Print the faults."""
    parser = argparse.ArgumentParser(description="Look at the built site with a browser.")
    parser.add_argument("site", type=Path)
    parser.add_argument("--browser", default=None, metavar="PATH", help="of a Chromium")
    parser.add_argument("--pictures", type=Path, default=None, metavar="FOLDER")
    arguments = parser.parse_args()
    if arguments.pictures is not None:
        arguments.pictures.mkdir(parents=True, exist_ok=True)
    found = look(arguments.site, arguments.browser, arguments.pictures)
    sys.stdout.write(("\n".join(found) or "no fault") + "\n")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
