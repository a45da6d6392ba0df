"""MathJax 3 for the site, so that a page with formulas asks nothing of the network.

    python tools/mathjax.py FOLDER

Fetches the npm package once, checks its SHA-512 and keeps what the site needs, 1.6 MB of 20: one
script and its fonts.
"""

from __future__ import annotations

import base64
import hashlib
import io
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

VERSION = "3.2.2"
SHA512 = "Bt+SSVU8eBG27zChVewOicYs7Xsdt40qm4+UpHyX7k0/O9NliPc+x77k1/FEsPsjKPZGJvtRZM1vO+geW0OhGw=="
SCRIPT, FONTS = "tex-chtml.js", "output/chtml/fonts/woff-v2/"


def ensure(folder: Path) -> None:
    """Have MathJax in ``folder``, from an earlier build or fresh. Raises RuntimeError, saying what
    to do, if it cannot be fetched.
    """
    mark = folder / "VERSION"
    if mark.exists() and mark.read_text(encoding="utf-8") == VERSION:
        return
    archive = fetch()
    found = base64.b64encode(hashlib.sha512(archive).digest()).decode()
    if found != SHA512:
        raise RuntimeError(f"mathjax {VERSION}: the archive that came is not the one expected (SHA-512 {found}); nothing was unpacked")
    unpack(archive, folder)
    mark.write_text(VERSION, encoding="utf-8")


def fetch() -> bytes:
    """The bytes of the package, by npm."""
    if not shutil.which("npm"):
        raise RuntimeError(missing("npm is not installed (it comes with Node.js)"))
    with tempfile.TemporaryDirectory() as scratch:
        command = ["npm", "pack", f"mathjax@{VERSION}", "--silent", "--pack-destination", scratch]
        result = subprocess.run(command, capture_output=True, text=True, cwd=scratch, check=False)
        packed = list(Path(scratch).glob("*.tgz"))
        if result.returncode or not packed:
            raise RuntimeError(missing(f"npm pack failed: {(result.stderr or result.stdout).strip()}"))
        return packed[0].read_bytes()


def missing(why: str) -> str:
    """What to do without npm or without a network."""
    return (
        f"mathjax {VERSION} could not be fetched, and the site's formulas need it: {why}\n"
        f"Build once where npm can reach its registry; or take es5/{SCRIPT} and es5/{FONTS} out of the package yourself, put them into "
        f"build/docs/static/mathjax without the es5/, and beside them a file VERSION that says {VERSION}."
    )


def unpack(archive: bytes, folder: Path) -> None:
    """The script and its fonts, laid out as the script looks for them."""
    shutil.rmtree(folder, ignore_errors=True)
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as package:
        for member in package.getmembers():
            name = member.name.removeprefix("package/es5/")
            if member.isfile() and (name == SCRIPT or name.startswith(FONTS)):
                target = folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(package.extractfile(member).read())


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    ensure(Path(sys.argv[1]))
