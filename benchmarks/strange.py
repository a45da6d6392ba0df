"""Eight documents that no model expects, to see whether what adapts to the past can do harm.

    python benchmarks/strange.py FOLDER

Each is 64 KiB of ASCII, the same on every machine. In ``turns.txt`` and ``late.txt`` what was
learned is wrong later on.
"""

from __future__ import annotations

import argparse
import base64
import random
from collections.abc import Callable
from pathlib import Path

SIZE = 65536  # bytes, above what a document of 4,096 tokens can have
PROSE = (
    "It was late when the ferry left the harbour, and nobody on deck spoke. The lamps along the quay went out one "
    "after the other. Behind them the town climbed its hill in the dark, street above street, and the bells were silent. "
)


def again(line: str) -> str:
    """One line, over and over."""
    return line * (SIZE // len(line) + 1)


def numbers(_: random.Random) -> str:
    """0, 1, 2 and so on."""
    return " ".join(str(i) for i in range(SIZE // 4))


def table(rng: random.Random) -> str:
    """Rows of eight random numbers."""
    return "\n".join(",".join(f"{rng.gauss(0, 1):.4f}" for _ in range(8)) for _ in range(SIZE // 50))


def shuffled(rng: random.Random) -> str:
    """Words without their order."""
    words = PROSE.split()
    return " ".join(rng.choice(words) for _ in range(SIZE // 3))


def parts(rng: random.Random, sizes: list[int]) -> str:
    """Repeated prose and base64 in turn, of these many bytes."""
    found, kinds = [], (again(PROSE), random_base64(rng))
    for number, size in enumerate(sizes):
        found.append(kinds[number % 2][:size])
    return "\n".join(found)


def random_base64(rng: random.Random) -> str:
    """Letters that nothing predicts."""
    return base64.b64encode(rng.randbytes(SIZE)).decode()


MAKERS: dict[str, Callable[[random.Random], str]] = {
    "one_line.txt": lambda _: again("The same procedure as last year.\n"),
    "hex.txt": lambda rng: rng.randbytes(SIZE).hex(),
    "base64.txt": random_base64,
    "numbers.txt": numbers,
    "table.csv": table,
    "shuffled.txt": shuffled,
    "turns.txt": lambda rng: parts(rng, [2048] * 32),
    "late.txt": lambda rng: parts(rng, [8192, SIZE]),
}


def write(folder: Path) -> list[Path]:
    """The documents, written."""
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for number, (name, make) in enumerate(MAKERS.items()):
        path = folder / name
        path.write_text(make(random.Random(number))[:SIZE], encoding="ascii")
        found.append(path)
    return found


def main() -> None:
    """Parse and write."""
    parser = argparse.ArgumentParser(description="documents that no model expects")
    parser.add_argument("folder", type=Path)
    for path in write(parser.parse_args().folder):
        print(path)


if __name__ == "__main__":
    main()
