"""Train the two models that the quick demo reads, and write them into the package.

    python tools/pair.py [--steps 6000]

The full demo's training on the standard library, with more steps. It goes on from its checkpoints in
build/pair if it is interrupted. Half an hour on two cores.
"""

from __future__ import annotations

import argparse
import datetime
import platform
from pathlib import Path

import numpy as np

from fwl_ref.demo.pair import MODELS, PAIR, SHIPPED_OF, Pair, save_pair
from fwl_ref.demo.parallel import worker_pool
from fwl_ref.demo.run import FULL, train_both
from fwl_ref.lm.corpus import load_corpus

CHECKPOINTS = Path(__file__).resolve().parent.parent / "build" / "pair"


def main() -> None:
    """Train both side by side, and write them."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=6000)
    steps = parser.parse_args().steps
    settings = FULL._replace(training=FULL.training._replace(steps=steps))
    corpus = load_corpus(SHIPPED_OF)
    CHECKPOINTS.mkdir(parents=True, exist_ok=True)
    with worker_pool(2) as pool:
        found = train_both(pool, settings, corpus, CHECKPOINTS)
    curves = {name: np.array([r.bits_per_byte for r in p.history]) for name, p in zip(MODELS, found, strict=True)}
    plain, fast = (progress.params for progress in found)
    made = f"{datetime.date.today().isoformat()}, Python {platform.python_version()}, NumPy {np.__version__}"
    names = tuple(document.name for document in corpus.train)
    save_pair(PAIR, Pair(plain, fast, curves, settings.config, settings.training, names, made))
    print(f"written: {PAIR}, {PAIR.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
