"""The pictures of the lectures, written to docs/lectures/figures: curves from real runs of the package,
and sketches for the board, whose numbers in circles are the order in which to draw.

    python -m tools.drawings          write all
    python -m tools.drawings NAME     write one

A sketch is drawn in the style of the notebooks, in the colours of the six sweeps: blue goes forward,
orange goes backward.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from fwl_ref import FastParameters, FastSettings, SlowParameters, evaluate_block, write_fwd
from fwl_ref.ops.cross_entropy import cross_entropy_fwd
from fwl_ref.ops.linear_attention import linear_attention_recurrent_fwd

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "docs" / "lectures" / "figures"
STYLE = {"svg.hashsalt": "fwl_ref", "svg.fonttype": "path", "mathtext.fontset": "dejavuserif"}
BLUE, ORANGE, GREEN, GREY = "#0072b2", "#d55e00", "#009e73", "#777777"


def block(seed: int, vocabulary: int, width: int = 8, hidden: int = 32) -> SlowParameters:
    """A slow block of the size of its layers' inputs, so that activations are of order one."""
    rng = np.random.default_rng(seed)
    shapes = ((width, hidden), (hidden,), (hidden, width), (width,), (width,), (width,), (width, vocabulary), (vocabulary,))
    p = SlowParameters(*(rng.standard_normal(shape) * (0.1 if len(shape) == 1 else shape[0] ** -0.5) for shape in shapes))
    return p._replace(gain=np.ones(width))


def step_sizes(eta: float) -> FastParameters:
    return FastParameters(*(np.asarray(eta),) * 6)


# --- curves


def second_time() -> plt.Figure:
    """A word that comes three times: what it costs at the slow weights and with a step after each token."""
    rng, B, V, starts = np.random.default_rng(4), 100, 16, (4, 16, 28)
    tokens = rng.integers(0, V, (B, 41))
    for at in starts[1:]:
        tokens[:, at : at + 5] = tokens[:, 4:9]  # a word of its own for each sequence
    x, labels = rng.standard_normal((V, 8))[tokens[:, :-1]], tokens[:, 1:]
    slow, weights = block(0, V), np.ones(labels.shape)
    slow = slow._replace(U=0.3 * slow.U)  # it knows nothing yet: every token costs about log2 V = 4 bits
    fig, ax = plt.subplots(figsize=(8.4, 4.6))
    for at in starts:
        ax.axvspan(at - 0.5, at + 3.5, color="#dddddd")
    for eta, name, looks in (
        (0.0, "weights stay", {"color": GREY, "marker": "o", "linestyle": "--"}),
        (0.1, "a step after each token", {"color": BLUE, "marker": "s", "linestyle": "-"}),
    ):
        logits = evaluate_block(x, labels, weights, slow, step_sizes(eta), segment=1)[0]
        ax.plot(cross_entropy_fwd(logits, labels)[0].mean(axis=0) / np.log(2), label=name, **looks)
    ax.set(xlabel="token", ylabel="bits for the next token", title="A new word, three times (grey)")
    ax.legend(loc="lower left")
    ax.set_ylim(0, None)
    return fig


def mask() -> plt.Figure:
    """Scores, mask, and their product: who reads whom."""
    rng, T = np.random.default_rng(1), 9
    k = rng.standard_normal((T, 4))
    scores, t = k @ k.T, np.arange(T)
    fades = np.where(t[:, None] > t, 0.9 ** np.maximum(t[:, None] - t - 1, 0), 0.0)
    fig, axes = plt.subplots(1, 3, figsize=(11, 4.6), sharey=True)
    titles = ("scores $x_t \\cdot x_s$", "mask $M_{ts} = \\kappa^{t-s-1}$", "what is read")
    for ax, values, title in zip(axes, (scores, fades, scores * fades), titles, strict=True):
        limit = np.quantile(np.abs(scores), 0.85) if values is not fades else 1.0
        ax.pcolormesh(values, cmap="PuOr", vmin=-limit, vmax=limit, edgecolors="#cccccc", linewidth=0.4)
        ax.set(title=title, xlabel="written by $s$", xticks=[0.5, T - 0.5], yticks=[0.5, T - 0.5], aspect="equal")
        ax.set_xticklabels(["0", "T-1"])
        ax.set_yticklabels(["0", "T-1"])
    axes[0].set_ylabel("read by $t$")
    axes[0].invert_yaxis()
    return fig


def learned_decay() -> float:
    """The rate that the demo's model learned, as README says it."""
    return float(re.search(r"decay (\d\.\d+)\.\n", (ROOT / "README.md").read_text(encoding="utf-8"))[1])


def fading() -> plt.Figure:
    """How much of an update is left after some tokens."""
    fig, ax = plt.subplots(figsize=(8, 4.2))
    t, learned = np.arange(0, 1025), learned_decay()
    for rate, name in ((0.0, "no decay"), (learned, f"$\\lambda$ = {learned}, learned by the demo's model"), (0.02, "$\\lambda$ = 0.02")):
        ax.plot(t, (1 - rate) ** t, label=name, markevery=128)
    ax.axvline(256, color=GREY, linewidth=1)
    ax.text(262, 0.02, "length of a training window", color="#444444", fontsize=13)
    ax.set(xlabel="tokens since it was written", ylabel="share that is left", ylim=(0, 1.05), xlim=(0, 1024))
    ax.legend(loc="center right")
    return fig


def slope() -> plt.Figure:
    """How far stale gradients are from those of dynamic evaluation, against the step size."""
    rng, T, V = np.random.default_rng(2), 12, 16
    x, labels, weights = rng.standard_normal((1, T, 8)), rng.integers(0, V, (1, T)), np.ones((1, T))
    slow, etas = block(1, V), 0.001 * 2.0 ** np.arange(0, 8)
    run = lambda eta, stale: evaluate_block(x, labels, weights, slow, step_sizes(eta), segment=1, stale=stale)[0]  # noqa: E731
    gaps = np.array([np.abs(run(eta, True) - run(eta, False)).max() for eta in etas])
    fig, ax = plt.subplots(figsize=(7, 4.6))
    ax.loglog(etas, gaps, label="measured", color=BLUE, linestyle="none")
    ax.loglog(etas, gaps[0] * (etas / etas[0]) ** 2, label="slope 2", color=ORANGE, marker="", linestyle="--")
    ax.set(xlabel="step size", ylabel="difference of logits", title="Half the step, a quarter")
    ax.legend()
    return fig


def state_grows() -> plt.Figure:
    """The accumulated gradient of the first layer over a long text, with decay and without."""
    rng, T, V = np.random.default_rng(3), 2048, 16
    x = rng.standard_normal((1, T, 8)) + 0.7  # features have a common direction
    labels = rng.choice(V, (1, T), p=np.arange(1, V + 1) / (V * (V + 1) / 2))
    memory = write_fwd(x, labels, np.ones((1, T)), block(2, V), FastSettings())[0][0]
    fig, ax = plt.subplots(figsize=(8, 4.2))
    lengths = np.arange(64, T + 1, 64)
    for rate, name in ((0.0, "no decay"), (learned_decay(), f"$\\lambda$ = {learned_decay()}")):
        state, sizes = np.zeros((1, 8, memory.dh.shape[-1])), []
        for end in lengths:
            part = (memory.x[:, end - 64 : end], memory.x[:, end - 64 : end], memory.dh[:, end - 64 : end])
            (_, state), _ = linear_attention_recurrent_fwd(*part, np.asarray(1 - rate), state)
            sizes.append(np.linalg.norm(state))
        ax.plot(lengths, sizes, label=name, markevery=4)
    ax.set(xlabel="tokens read", ylabel="size of the state of $W_1$", xlim=(0, T), ylim=(0, None))
    ax.legend(loc="upper left")
    return fig


# --- sketches for the board


def canvas(columns: int, rows: int = 1, size: tuple[float, float] = (10, 4)) -> tuple[plt.Figure, list[plt.Axes]]:
    """Panels without frames, 10 by 10 each, numbered in circles."""
    fig, axes = plt.subplots(rows, columns, figsize=size)
    found = list(np.atleast_1d(axes).ravel())
    for i, ax in enumerate(found):
        ax.set(xlim=(0, 10), ylim=(0, 10))
        ax.axis("off")
        if len(found) > 1:
            circle(ax, 0.6, 9.4, str(i + 1))
    return fig, found


def circle(ax: plt.Axes, x: float, y: float, text: str, colour: str = "#333333") -> None:
    ax.text(
        x, y, text, ha="center", va="center", color="white", fontsize=13, bbox={"boxstyle": "circle,pad=0.25", "fc": colour, "ec": "none"}
    )


def say(ax: plt.Axes, x: float, y: float, text: str, size: float = 16, **options: Any) -> None:
    ax.text(x, y, text, **{"ha": "center", "va": "center", "fontsize": size, **options})


def box(ax: plt.Axes, x: float, y: float, text: str, colour: str = "#333333", size: float = 15) -> None:
    style = {"boxstyle": "round,pad=0.35", "fc": "white", "ec": colour, "lw": 2}
    ax.text(x, y, text, ha="center", va="center", fontsize=size, color=colour, bbox=style)


def arrow(
    ax: plt.Axes, start: tuple[float, float], end: tuple[float, float], colour: str = "#333333", bend: float = 0.0, **options: Any
) -> None:
    shape = {"arrowstyle": "-|>", "color": colour, "lw": 2.2, "mutation_scale": 20, "connectionstyle": f"arc3,rad={bend}", **options}
    ax.annotate("", end, start, arrowprops=shape)


def cells(ax: plt.Axes, x: float, y: float, wide: float, high: float, n: int, m: int, colour: str, fill: str = "white") -> None:
    """A matrix of n by m cells with its upper left corner at (x, y)."""
    for i in range(n):
        for j in range(m):
            corner = (x + j * wide / m, y - (i + 1) * high / n)
            ax.add_patch(plt.Rectangle(corner, wide / m, high / n, fc=fill, ec=colour, lw=1.6))


def board_outer_product() -> plt.Figure:
    """Dense layer: the three moves, and the weight gradient as a sum of outer products."""
    fig, (a, b, c, d) = canvas(2, 2, (10.2, 5.9))
    say(a, 5.3, 8.6, "differential")
    say(a, 5, 6.4, r"$y = x\,w + b$", 22)
    say(a, 5, 3.8, r"$\delta y = \delta x\,w \;+\; x\,\delta w \;+\; \mathbf{1}\,\delta b$", 20)
    say(b, 5.3, 8.6, "inner product with $dy$")
    lines = (
        r"$\langle dy,\ \delta x\,w\rangle = \langle dy\,w^T,\ \delta x\rangle$",
        r"$\langle dy,\ x\,\delta w\rangle = \langle x^T dy,\ \delta w\rangle$",
        r"$\langle dy,\ \mathbf{1}\,\delta b\rangle = \langle \mathbf{1}^T dy,\ \delta b\rangle$",
    )
    for i, line in enumerate(lines):
        say(b, 5, 6.9 - 2.1 * i, line, 19)
    say(c, 5.3, 8.6, "collect")
    for i, line in enumerate((r"$dx = dy\,w^T$", r"$dw = x^T dy$", r"$db = \sum_t dy_t$")):
        say(c, 5, 6.6 - 2.1 * i, line, 21, color=ORANGE if i == 1 else "#111111")
    say(d, 5.4, 9.2, r"$dw = \sum_t\ x_t^T dy_t$: column times row", 17)
    cells(d, 0.6, 7.6, 0.55, 3.6, 4, 1, BLUE)
    cells(d, 1.6, 6.2, 3.0, 0.9, 1, 5, ORANGE)
    say(d, 5.1, 5.8, "=", 22)
    cells(d, 5.8, 7.6, 3.0, 3.6, 4, 5, "#333333")
    say(d, 0.9, 3.2, r"$x_t^T$", 18, color=BLUE)
    say(d, 3.1, 4.5, r"$dy_t$", 18, color=ORANGE)
    say(d, 5.2, 1.6, "keep the two factors and you have kept the matrix", 15)
    return fig


def board_unroll() -> plt.Figure:
    """A step after each token, unrolled and read by token t."""
    fig, (a, b, c, d) = canvas(2, 2, (10.2, 5.9))
    for i, x in enumerate((1.4, 4.6, 7.8)):
        box(a, x, 6.0, f"$W_{i}$")
        if i < 2:
            arrow(a, (x + 0.8, 6), (x + 2.4, 6), ORANGE)
            say(a, x + 1.6, 7.5, rf"$-\eta\,x_{i}^T dh_{i}$", 16, color=ORANGE)
    say(a, 9.3, 6, r"$\cdots$", 20)
    say(a, 5, 2.8, r"$W_t = W - \eta \sum_{s<t} x_s^T dh_s$", 20)
    say(b, 5.2, 8.2, "multiply by the token that reads", 16)
    say(b, 5, 5.0, r"$x_t W_t = x_t W - \eta \sum_{s<t} x_t\,(x_s^T dh_s)$", 20)
    say(c, 5.2, 8.2, "move the bracket", 16)
    say(c, 5, 6.0, r"$x_t\,(x_s^T\,dh_s) \;=\; (x_t\,x_s^T)\,dh_s$", 21)
    for x, name, colour in ((2.0, "query", BLUE), (5.0, "key", GREEN), (8.0, "value", ORANGE)):
        box(c, x, 2.2, name, colour)
    say(c, 2.0, 3.9, "$x_t$", 19, color=BLUE)
    say(c, 5.0, 3.9, "$x_s$", 19, color=GREEN)
    say(c, 8.0, 3.9, "$dh_s$", 19, color=ORANGE)
    say(d, 5.4, 9.3, "a triangle without its diagonal", 16)
    for i in range(6):
        for j in range(6):
            fill = "#9ecae1" if j < i else "white"
            d.add_patch(plt.Rectangle((2.6 + 0.85 * j, 7.3 - 0.95 * i), 0.85, 0.95, fc=fill, ec="#555555", lw=1.2))
            if i == j:
                say(d, 3.02 + 0.85 * j, 7.78 - 0.95 * i, "x", 13, color=ORANGE)
    say(d, 5.1, 1.5, "written by $s$", 14)
    say(d, 1.7, 5.4, "read by $t$", 14, rotation=90)
    return fig


def board_state() -> plt.Figure:
    """One token reads and then writes; the read and the write of the next follow."""
    fig, (ax,) = canvas(1, 1, (10, 3.9))
    for i, (x, name) in enumerate(((1.0, "$S_t$"), (5.0, "$S_{t+1}$"), (9.0, "$S_{t+2}$"))):
        box(ax, x, 5.2, name, size=18)
        if i == 2:
            break
        arrow(ax, (x + 0.75, 5.2), (x + 3.2, 5.2))
        say(ax, x + 2.0, 4.5, r"$\times\,\kappa$", 16)
        t = "t" if i == 0 else "t+1"
        arrow(ax, (x, 6.1), (x, 8.3), BLUE)
        say(ax, x + 0.1, 9.0, rf"$o_{{{t}}} = q_{{{t}}}\,S_{{{t}}}$", 18, color=BLUE)
        arrow(ax, (x + 2.6, 2.2), (x + 3.5, 4.4), ORANGE)
        say(ax, x + 2.3, 1.4, rf"$k_{{{t}}}^T v_{{{t}}}$", 18, color=ORANGE)
        circle(ax, x - 0.6, 7.2, str(2 * i + 1), BLUE)
        circle(ax, x + 2.2, 3.2, str(2 * i + 2), ORANGE)
    say(ax, 8.3, 7.6, "read first, then write", 17)
    return fig


def board_block() -> plt.Figure:
    """Write on the left, read on the right, the memory between them."""
    fig, (ax,) = canvas(1, 1, (10, 7))
    rows = (("$x$", 1.0), ("$h$", 2.6), ("$a$", 4.2), ("$z$", 5.8), ("$n$", 7.4), ("logits", 9.0))
    for name, y in rows:
        box(ax, 1.2, y, name, BLUE)
        fast = name if name == "$x$" else ("logits$'$" if name == "logits" else name[:-1] + "'$")
        box(ax, 8.6, y, fast, BLUE)
    for (_, low), (_, high) in zip(rows, rows[1:], strict=False):
        arrow(ax, (1.2, low + 0.45), (1.2, high - 0.45), BLUE)
        arrow(ax, (8.6, low + 0.45), (8.6, high - 0.45), BLUE)
    back = (("$dlogits$", 9.0), ("$dn$", 7.4), ("$dz$", 5.8), ("$da$", 4.2), ("$dh$", 2.6))
    for name, y in back:
        box(ax, 3.1, y, name.replace("$dlogits$", "d logits"), ORANGE)
    for (_, high), (_, low) in zip(back, back[1:], strict=False):
        arrow(ax, (3.1, high - 0.45), (3.1, low + 0.45), ORANGE)
    arrow(ax, (1.9, 9.0), (2.3, 9.0), ORANGE)
    for y, keys, values in ((1.9, "$x_s$", "$dh_s$"), (5.1, "$a_s$", "$dz_s$")):
        box(ax, 5.2, y, f"key {keys}", GREEN)
        box(ax, 5.2, y + 0.95, f"value {values}", ORANGE)
    box(ax, 5.2, 7.4, r"$d$gain$_s$, $d$bias$_s$", ORANGE)
    for y, x in ((2.6, "$x_t$"), (5.8, "$a_t'$")):
        arrow(ax, (6.3, y - 0.3), (8.05, y), GREEN)
        say(ax, 7.1, y + 0.35, f"query {x}", 14, color=BLUE)
    arrow(ax, (6.5, 7.4), (8.05, 7.4), GREEN)
    circle(ax, 0.3, 5.0, "1", BLUE)
    circle(ax, 3.9, 6.6, "2", ORANGE)
    say(ax, 5.2, 8.6, "MEMORY", 15, color=GREEN)
    circle(ax, 9.5, 5.0, "3", BLUE)
    say(ax, 2.2, 9.85, "WRITE, slow weights", 15)
    say(ax, 8.4, 9.85, "READ, fast weights", 15)
    return fig


def board_layernorm() -> plt.Figure:
    """The Jacobian of LayerNorm depends on z in three places."""
    fig, (a, b, c) = canvas(3, 1, (12, 4.2))
    say(a, 5.4, 9.3, "the map", 16)
    say(a, 5, 6.6, r"$L(v) = \rho\,(v - \bar v - n\,\overline{n v})$", 19)
    say(a, 5, 4.4, r"$\bar v$: the mean of $v$", 15)
    say(a, 5, 2.4, r"$\langle u, L(v)\rangle = \langle L(u), v\rangle$", 19, color=ORANGE)
    say(b, 5.4, 9.3, "ask: where is $z$ in it?", 16)
    say(b, 5, 6.2, r"$\rho\,(\, v - \bar v - n\;\overline{n\,v}\,)$", 22)
    for x, target, n in ((1.5, 1.85, "i"), (5.0, 6.0, "ii"), (8.4, 7.35, "iii")):
        arrow(b, (x, 2.9), (target, 5.5), ORANGE)
        say(b, x, 2.2, n, 17, color=ORANGE)
    say(c, 5.4, 9.3, "each one in turn", 16)
    lines = (
        r"i:  $\delta\rho = -\rho^2\;\overline{n\,\delta z}$",
        r"ii:  $\delta n = L(\delta z)$, outside the mean",
        r"iii:  $\delta n = L(\delta z)$, inside the mean",
        "three terms in (N.3)",
    )
    for i, line in enumerate(lines):
        say(c, 5.2, 7.3 - 1.8 * i, line, 16)
    return fig


def board_turns() -> plt.Figure:
    """Sweeps 4, 5 and 6 and the two places where the way turns."""
    fig, (ax,) = canvas(1, 1, (10.4, 7))
    heights = (("$x$", 1.0), ("$h$", 2.7), ("$a$", 4.3), ("$z$", 5.9), ("$n$", 7.5), ("logits", 9.1))
    for name, y in heights:
        say(ax, 0.4, y, name, 16, color=GREY)
        ax.plot([0.9, 9.7], [y, y], color="#dddddd", lw=1, marker="", linestyle="-", zorder=0)
    for x, number, colour, (start, end), words in (
        (2.0, "4", ORANGE, (9.3, 1.4), "backward of\nthe read"),
        (5.2, "5", BLUE, (2.3, 9.3), "backward of the\nslow backward"),
        (8.4, "6", ORANGE, (9.3, 1.2), "backward of the\nslow forward"),
    ):
        arrow(ax, (x, start), (x, end), colour, lw=4, mutation_scale=28)
        circle(ax, x, 9.8, number, colour)
        say(ax, x, 0.35, words, 13, color=colour)
    for y, text in ((5.9, "$g_{dz}$"), (2.7, "$g_{dh}$")):
        arrow(ax, (2.2, y), (5.0, y), GREEN)
        say(ax, 3.5, y + 0.45, text, 17, color=GREEN)
    say(ax, 3.5, 4.3, "first turn:\nvalues of the memory", 14, color=GREEN)
    arrow(ax, (5.4, 9.1), (8.2, 9.1), GREEN)
    say(ax, 6.8, 9.6, "$g_{logits}$: second turn", 15, color=GREEN)
    for y, text in ((7.5, "$g_U^5$"), (5.9, r"$g_z^5,\ g_{gain}^5$"), (4.3, "$g_{W_2}^5$"), (2.7, "$g_h^5$")):
        arrow(ax, (5.4, y), (8.2, y), "#333333", linestyle="--", lw=1.6)
        say(ax, 6.8, y + 0.4, text, 15)
    say(ax, 6.8, 1.6, "parcels, left at a height\nand picked up there", 13)
    return fig


def board_stale() -> plt.Figure:
    """Two walks: gradients taken where one stands, and gradients taken at home."""
    fig, (a, b) = canvas(2, 1, (10.4, 4.4))
    home = np.array([1.2, 2.0])
    true = np.array([home, [3.4, 3.2], [5.6, 3.6], [7.6, 2.9]])
    stale = np.array([home, [3.4, 3.2], [5.5, 4.8], [7.6, 6.6]])
    for walk, colour in ((stale, BLUE), (true, ORANGE)):
        for start, end in zip(walk, walk[1:], strict=False):
            arrow(a, tuple(start), tuple(end), colour)
    a.plot(*home, "o", color="#333333", markersize=10)
    say(a, 1.2, 1.1, r"$\theta_0$", 18)
    say(a, 3.3, 2.3, r"$\theta_1$", 18)
    say(a, 6.6, 7.6, "all gradients from home:\nfast weights", 14, color=BLUE)
    say(a, 7.0, 1.5, "each gradient where one stands:\ndynamic evaluation", 14, color=ORANGE)
    arrow(a, (7.7, 6.3), (7.7, 3.2), "#333333", arrowstyle="<->")
    say(a, 8.9, 4.8, r"$O(\eta^2)$", 17)
    lines = (
        r"$\nabla\ell_r(\theta_0 + \Delta) \approx g_r + H_r\,\Delta$",
        r"$\Delta = -\eta \sum_{s<r} g_s$",
        r"gap $= \eta^2 \sum_{s<r<t} H_r\,g_s$",
        "two tokens $s<r$ before $t$: none if $t<2$",
    )
    for i, line in enumerate(lines):
        say(b, 5.2, 8.0 - 2.0 * i, line, 18 if i < 3 else 15, color=ORANGE if i == 2 else "#111111")
    return fig


DRAWINGS: dict[str, Callable[[], plt.Figure]] = {
    f.__name__: f
    for f in (
        second_time, mask, fading, slope, state_grows, board_outer_product, board_unroll, board_state, board_block,
        board_layernorm, board_turns, board_stale,
    )
}  # fmt: skip


def save(name: str, folder: Path = FOLDER) -> Path:
    """Draw one and write it as SVG, with its description as title and without a date."""
    with plt.style.context("fwl_ref.figures.lecture"), matplotlib.rc_context(STYLE):
        figure, path = DRAWINGS[name](), folder / f"{name}.svg"
        folder.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Date": None, "Title": " ".join(DRAWINGS[name].__doc__.split())})
        plt.close(figure)
    text = path.read_text(encoding="utf-8")
    path.write_text("\n".join(line.rstrip() for line in text.splitlines()) + "\n", encoding="utf-8")
    return path


if __name__ == "__main__":
    for drawing in sys.argv[1:] or DRAWINGS:
        print(save(drawing).relative_to(ROOT))
