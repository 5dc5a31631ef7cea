"""Check the built site: every link leads somewhere, every picture is there, nothing is fetched.

    python docs/check.py build/docs                the files alone
    python docs/check.py build/docs --browser      and, in headless Chromium, that on a phone's
                                                   width no page overflows and all pictures load

Exits with 1 and a line for each fault.
"""

from __future__ import annotations

import argparse
import functools
import json
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass, field
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

PHONE = 360  # CSS pixels

PROBE = """<!doctype html><body><pre id="out"></pre><script>
const pages = PAGES, found = [];
async function look(page) {
  const frame = document.createElement("iframe");
  frame.style.cssText = "width:WIDTHpx;height:700px;border:0";
  frame.src = page;
  document.body.append(frame);
  await new Promise(done => { frame.onload = done; });
  const inner = frame.contentDocument;
  const images = [...inner.images];
  images.forEach(image => { image.loading = "eager"; });
  await Promise.all(images.map(image => image.decode().catch(() => 0)));
  const wide = inner.documentElement.scrollWidth;
  if (wide > WIDTH) found.push(page + " is " + wide + " pixels wide on a phone of WIDTH");
  for (const image of images)
    if (!image.naturalWidth) found.push(page + " cannot show " + image.getAttribute("src"));
  frame.remove();
}
(async () => {
  for (const page of pages) await look(page);
  document.getElementById("out").textContent = "FOUND" + JSON.stringify(found) + "END";
})();
</script>"""


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


def in_browser(site: Path, browser: str) -> list[str]:
    """Load every page in a frame as wide as a phone, and look."""
    pages = [str(path.relative_to(site)) for path in sorted(site.rglob("*.html"))]
    probe = site / "probe.html"
    text = PROBE.replace("PAGES", json.dumps(pages)).replace("WIDTH", str(PHONE))
    probe.write_text(text, encoding="utf-8")
    handler = functools.partial(Quiet, directory=str(site))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run"]
    flags += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    try:
        with tempfile.TemporaryDirectory() as profile:
            command = [browser, *flags, f"--user-data-dir={profile}", "--dump-dom"]
            command += ["--virtual-time-budget=120000"]
            url = f"http://127.0.0.1:{server.server_port}/probe.html"
            run = subprocess.run([*command, url], capture_output=True, text=True, check=True)
    finally:
        server.shutdown()
        server.server_close()
        probe.unlink()
    answer = re.search(r'id="out">FOUND(.*)END<', run.stdout)
    return json.loads(answer[1]) if answer else [f"{browser} did not finish: {run.stderr[-500:]}"]


class Quiet(SimpleHTTPRequestHandler):
    """Serves the site without a line for each request."""

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


def main() -> None:
    """Check what the arguments say."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("site", type=Path)
    parser.add_argument("--browser", action="store_true", help="look in headless Chromium too")
    arguments = parser.parse_args()
    problems = broken(arguments.site)
    if arguments.browser:
        browser = shutil.which("chromium") or shutil.which("google-chrome")
        if browser is None:
            sys.exit("no chromium here")
        problems += in_browser(arguments.site, browser)
    sys.exit("\n".join(problems) or 0)


if __name__ == "__main__":
    main()
