"""What a page would ask of the network: scripts, styles, fonts, pictures with an address. A link
that a reader may follow is none.

    python tools/offline.py FOLDER    list them for all pages and styles of a folder, fail if there are any

Standard library only.
"""

from __future__ import annotations

import re
import sys
from html.parser import HTMLParser
from pathlib import Path

ADDRESS = re.compile(r"^\s*(https?:)?//", re.I)
IN_STYLE = re.compile(r"(?:url\(|@import)\s*[\"']?\s*((?:https?:)?//[^\"')\s;]+)", re.I)
FETCHED = {"script": "src", "link": "href", "img": "src", "iframe": "src", "source": "src", "video": "src", "audio": "src", "embed": "src"}
NEVER_FETCHED = {"canonical", "author", "license", "prev", "next", "index", "search"}  # <link rel=...> that only says where something is


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.in_style = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.in_style = tag == "style"
        address = given.get(FETCHED.get(tag, ""), "")
        if tag == "link" and set(given.get("rel", "").lower().split()) & NEVER_FETCHED:
            address = ""
        self.found += [address] if ADDRESS.match(address) else []
        self.found += [part.strip() for part in given.get("srcset", "").split(",") if ADDRESS.match(part)]
        self.found += IN_STYLE.findall(given.get("style", ""))

    def handle_endtag(self, tag: str) -> None:
        self.in_style = False

    def handle_data(self, data: str) -> None:
        if self.in_style:
            self.found += IN_STYLE.findall(data)


def requests_of_page(html: str) -> list[str]:
    """The addresses that a browser would ask for when it opens this page."""
    reader = _Reader()
    reader.feed(html)
    return reader.found


def requests_of_style(css: str) -> list[str]:
    """The same of a style sheet."""
    return IN_STYLE.findall(css)


def requests_of_site(folder: Path) -> list[str]:
    """``file: address`` for every page and style sheet below a folder."""
    found = []
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".html", ".css", ".svg"):
            reader = requests_of_style if path.suffix == ".css" else requests_of_page
            found += [f"{path.relative_to(folder)}: {address}" for address in reader(path.read_text(encoding="utf-8"))]
    return found


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    asked = requests_of_site(Path(sys.argv[1]))
    print("\n".join(asked) or "nothing is asked of the network")
    raise SystemExit(bool(asked))
