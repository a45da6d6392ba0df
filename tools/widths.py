"""Is a formula or a block of code cut on the built site? Chromium loads each page at the widths of desktops and of a phone.

    pip install playwright; python tools/widths.py build/docs/html [PAGE.html ...]

It prints what is wider than its column after docs/_static/fit.js, and the formula that it set smallest. On a phone a formula may
scroll where it says so. Exit code 1 if something is cut.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

WIDTHS = (1366, 1440, 1920, 390)
PHONE = 600  # below it a formula may scroll
WAIT = 600_000  # milliseconds: machines may be busy
READY = "() => (window.MathJax?.startup?.promise ?? Promise.resolve()).then(fit)"
FOUND = """() => [...document.querySelectorAll('article pre, article mjx-container[display="true"]')].filter(e => e.clientWidth).map(e => ({
    kind: e.tagName === "PRE" ? "code" : "formula",
    over: e.scrollWidth - e.clientWidth,
    outside: Math.round(e.getBoundingClientRect().right - e.closest("article").getBoundingClientRect().right),
    scale: e.tagName === "PRE" || !e.style.fontSize.endsWith("px") ? 1
      : parseFloat(e.style.fontSize) / (parseFloat(getComputedStyle(e.parentElement).fontSize) * (parseFloat(e.dataset.size) || 100) / 100),
    told: Boolean(e.closest("div.math.scrolls")),
    text: (e.closest("div.math")?.querySelector(".eqno")?.textContent ?? "") + " " + e.textContent.trim().slice(0, 70),
}))"""


def cut(block: dict[str, Any], width: int) -> bool:
    """Whether a reader misses a part of it."""
    scrolls = width < PHONE and block["kind"] == "formula" and block["told"]
    return block["outside"] > 1 or (block["over"] > 1 and not scrolls)


def main(root: Path, names: list[str]) -> int:
    """The number of blocks that are cut."""
    from playwright.sync_api import sync_playwright

    pages = [p for p in root.rglob("*.html") if not {"_static", "lite"} & set(p.relative_to(root).parts)]
    names = names or sorted(p.relative_to(root).as_posix() for p in pages if "fit.js" in p.read_text(encoding="utf-8"))
    bad, smallest, counted = 0, dict.fromkeys(WIDTHS, (1.0, "")), 0
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"], timeout=WAIT)
        page = browser.new_page()
        page.set_default_timeout(WAIT)
        for name in names:
            page.goto((root / name).resolve().as_uri())
            for width in WIDTHS:
                page.set_viewport_size({"width": width, "height": 900})
                page.evaluate(READY)
                blocks = page.evaluate(FOUND)
                counted += len(blocks)
                for block in blocks:
                    smallest[width] = min(smallest[width], (block["scale"], f"{name} {block['text']}"))
                    if cut(block, width):
                        bad += 1
                        print(f"{name} at {width}: {block}", flush=True)
            print(f"{name} seen", flush=True)
        browser.close()
    print(f"{len(names)} pages, {counted} blocks at {len(WIDTHS)} widths, {bad} cut")
    for width, (scale, where) in smallest.items():
        print(f"{width}: smallest formula {scale:.2f} of its size, {where}")
    return bad


if __name__ == "__main__":
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    raise SystemExit(main(Path(sys.argv[1]), sys.argv[2:]) > 0)
