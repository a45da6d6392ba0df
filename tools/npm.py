"""What the site and the slides have of others, so that a page asks nothing of the network: MathJax and
reveal.js.

    python tools/npm.py NAME FOLDER

A package is fetched once, its SHA-512 is checked, and what is needed of it is kept: of MathJax one
script and its fonts, 1.6 MB of 20.
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
from typing import NamedTuple


class Package(NamedTuple):
    name: str
    version: str
    sha512: str
    inside: str  # what is kept is below this folder, and loses it
    keep: tuple[str, ...]  # files, or beginnings of their names


MATHJAX = Package(  # with the fonts beside it: many pages share one copy
    "mathjax",
    "3.2.2",
    "Bt+SSVU8eBG27zChVewOicYs7Xsdt40qm4+UpHyX7k0/O9NliPc+x77k1/FEsPsjKPZGJvtRZM1vO+geW0OhGw==",
    "es5/",
    ("tex-chtml.js", "output/chtml/fonts/woff-v2/"),
)
MATHJAX_ALONE = MATHJAX._replace(keep=("tex-svg.js",))  # the letters are in the script: for a page that is one file
REVEAL = Package(
    "reveal.js",
    "5.2.1",
    "r7//6mIM5p34hFiDMvYfXgyjXqGRta+/psd9YtytsgRlrpRzFv4RbH76TXd2qD+7ZPZEbpBDhdRhJaFgfQ7zNQ==",
    "",
    ("dist/reset.css", "dist/reveal.css", "dist/reveal.js", "plugin/notes/notes.js"),
)
PACKAGES = {"mathjax": MATHJAX, "mathjax-alone": MATHJAX_ALONE, "reveal": REVEAL}


def ensure(package: Package, folder: Path) -> None:
    """Have the package in ``folder``, from an earlier build or fresh. Raises RuntimeError, saying what
    to do, if it cannot be fetched.
    """
    mark = folder / "VERSION"
    if mark.exists() and mark.read_text(encoding="utf-8") == package.version:
        return
    archive = fetch(package, folder)
    found = base64.b64encode(hashlib.sha512(archive).digest()).decode()
    if found != package.sha512:
        name = f"{package.name} {package.version}"
        raise RuntimeError(f"{name}: the archive that came is not the one expected (SHA-512 {found}); nothing was unpacked")
    unpack(package, archive, folder)
    mark.write_text(package.version, encoding="utf-8")


def fetch(package: Package, folder: Path) -> bytes:
    """The bytes of the package, by npm."""
    if not shutil.which("npm"):
        raise RuntimeError(missing(package, folder, "npm is not installed (it comes with Node.js)"))
    with tempfile.TemporaryDirectory() as scratch:
        command = ["npm", "pack", f"{package.name}@{package.version}", "--silent", "--pack-destination", scratch]
        result = subprocess.run(command, capture_output=True, text=True, cwd=scratch, check=False)
        packed = list(Path(scratch).glob("*.tgz"))
        if result.returncode or not packed:
            raise RuntimeError(missing(package, folder, f"npm pack failed: {(result.stderr or result.stdout).strip()}"))
        return packed[0].read_bytes()


def missing(package: Package, folder: Path, why: str) -> str:
    """What to do without npm or without a network."""
    inside = f" without the {package.inside}" if package.inside else ""
    return (
        f"{package.name} {package.version} could not be fetched, and the documentation needs it: {why}\n"
        f"Build once where npm can reach its registry; or take {' and '.join(package.inside + name for name in package.keep)} out of the "
        f"package yourself, put them into build/docs/{'/'.join(folder.parts[-2:])}{inside}, and beside them a file VERSION that says "
        f"{package.version}."
    )


def unpack(package: Package, archive: bytes, folder: Path) -> None:
    """What is needed, laid out as in the package."""
    shutil.rmtree(folder, ignore_errors=True)
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as packed:
        for member in packed.getmembers():
            name = member.name.removeprefix(f"package/{package.inside}")
            if member.isfile() and name.startswith(package.keep):
                target = folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(packed.extractfile(member).read())


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in PACKAGES:
        raise SystemExit(f"{__doc__}\nNAME is one of {', '.join(PACKAGES)}")
    ensure(PACKAGES[sys.argv[1]], Path(sys.argv[2]))
