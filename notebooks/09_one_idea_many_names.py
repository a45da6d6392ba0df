# %% [markdown]
# # 9. One idea, many names
#
# **Question.** Linear attention, RetNet, DeltaNet, Gated DeltaNet, Longhorn, Titans, TTT, MesaNet, fast weight layers: nine papers, nine
# names. How many ideas are they?
#
# **Answer to look forward to.** One. Each of them has a memory that learns while it reads: one small optimization step per token, on a loss
# of the memory. They differ in three choices: *which loss*, *which optimizer*, and *at which weights* the gradient is taken. There are two
# dictionaries. One says which loss and step have which name. The other says that an optimizer on stale gradients is nothing but a mask.
#
# You need notebooks 4 and 6. In this notebook $S$ is a matrix, the memory; token $t$ brings a key $k_t$ and a value $v_t$, and reads
# $q_t S$. All reads are *strict*: before the token is written.

# %%
import inspect

import matplotlib.pyplot as plt
import numpy as np

from fwl_ref.dynamic_evaluation import evaluate_block
from fwl_ref.exercises import adjoint_by_differences, agree, check
from fwl_ref.fwl import FastSettings, fast_block_fwd
from fwl_ref.optimizers import averaging, closed_form, mask, momentum, momentum_with_decay, schedule, segments, sgd, sliding_window
from fwl_ref.optimizers import decay as decay_to_start
from fwl_ref.rules.decay import decay_recurrent_fwd
from fwl_ref.rules.delta import delta_gradient, delta_loss, delta_recurrent_fwd
from fwl_ref.rules.gated_delta import gated_delta_recurrent_fwd
from fwl_ref.rules.linear import linear_recurrent_fwd

# %%
from fwl_ref.rules.longhorn import longhorn_rate, longhorn_recurrent_fwd
from fwl_ref.rules.mesa import mesa_recurrent_fwd
from fwl_ref.rules.titans import titans_recurrent_fwd
from fwl_ref.rules.ttt_linear import TTTLinearState, ttt_linear_recurrent_fwd
from fwl_ref.slow_block import FastParameters, SlowParameters

plt.style.use("fwl_ref.figures.lecture")
rng = np.random.default_rng(0)

# %% [markdown]
# ## A memory that learns, one op a line
#
# The memory should answer the key $k$ with the value $v$. Say so with a loss, $\ell(S) = \tfrac12 \lVert k S - v \rVert^2$, and take one
# gradient step per token. This is the delta rule, or DeltaNet.

# %%
T, K, E = 6, 4, 3
k, v = rng.standard_normal((T, K)), rng.standard_normal((T, E))
beta = rng.uniform(0.1, 0.5, T)  # a step size for each token

S, outs = np.zeros((K, E)), []
for t in range(T):
    outs.append(k[t] @ S)  # (E,) read first, here with the key itself as query
    answer = k[t] @ S  # (E,)
    error = answer - v[t]  # (E,)
    gradient = np.outer(k[t], error)  # (K,E)
    S = S - beta[t] * gradient  # (K,E) then write
outs = np.stack(outs)  # (T,E)

# %%
(by_library, state), _ = delta_recurrent_fwd(k[None], k[None], v[None], beta[None], read="strict")
assert agree(by_library[0], outs) and agree(state[0], S)
by_hand = delta_gradient(S[None], k[:1], v[:1])
by_differences, *_ = adjoint_by_differences(delta_loss, (S[None], k[:1], v[:1]), np.ones(1))
assert agree(by_hand, by_differences, rtol=1e-8) and agree(by_hand[0], np.outer(k[0], k[0] @ S - v[0]))
print("the loop is the library's delta rule, and its gradient is that of the loss:", True)

# %% [markdown]
# ## The first dictionary: loss and step
#
# | name | loss of one token | step |
# |---|---|---|
# | linear attention | $-\langle v, k S \rangle$ | gradient descent |
# | RetNet | the same | with decay $\gamma$ |
# | DeltaNet | $\tfrac12 \lVert k S - v \rVert^2$ | gradient descent |
# | Gated DeltaNet | the same | decay first, then the step |
# | Titans | the same | momentum and decay |
# | Longhorn | the same | implicit: $\arg\min_{S'} \lVert S' - S \rVert^2 + \beta \lVert k S' - v \rVert^2$ |
# | TTT-Linear | $\lVert k S - v \rVert^2$, often with LayerNorm | mini-batches: stale gradients |
# | MesaNet | the sum of $\tfrac12 \lVert k_s S - v_s \rVert^2$ over the past, and a ridge | go to the minimum |
# | fast weight layer | next-token cross-entropy of a network | stale gradient descent |
#
# A dictionary must be consistent. Switch one choice off, and a name has to turn into another, to the last digit.


# %%
def equal(a, b):
    return agree(a[0][0], b[0][0])


tokens, on, off = (k[None], k[None], v[None]), np.ones((1, T)), np.zeros((1, T))
delta = delta_recurrent_fwd(*tokens, beta[None], read="strict")
linear = linear_recurrent_fwd(*tokens, read="strict")
one = {"minibatch": 1, "read": "strict", "state": TTTLinearState(np.zeros((1, K, E)), None)}  # no bias
assert equal(gated_delta_recurrent_fwd(*tokens, on, beta[None], read="strict"), delta)  # nothing fades
assert equal(titans_recurrent_fwd(*tokens, off, off, beta[None], read="strict"), delta)  # no momentum, no decay
assert equal(ttt_linear_recurrent_fwd(*tokens, beta[None] / 2, None, None, **one), delta)  # the loss has no 1/2
assert equal(decay_recurrent_fwd(*tokens, on, read="strict"), linear)  # nothing fades

# %%
rate = longhorn_rate(tokens[1], beta[None])  # beta / (1 + beta |k|^2)
assert equal(longhorn_recurrent_fwd(*tokens, beta[None], read="strict"), delta_recurrent_fwd(*tokens, rate, read="strict"))
whole_text = one | {"minibatch": T}  # every gradient at S = 0
assert equal(ttt_linear_recurrent_fwd(*tokens, on / 2, None, None, **whole_text), linear)
Q, _ = np.linalg.qr(rng.standard_normal((T, T)))  # keys that do not overlap
apart = (rng.standard_normal((1, T, T)), Q[None], v[None])
assert equal(delta_recurrent_fwd(*apart, on, read="strict"), linear_recurrent_fwd(*apart, read="strict"))
print("seven pairs of names agree:", True)

# %% [markdown]
# The last line of the table of choices is *at which weights*: TTT with one mini-batch for the whole text takes every gradient at $S = 0$,
# and so forgets that the loss was quadratic. What is left is linear attention.

# %% [markdown]
# ## One stream, five learners
#
# Now let them compete. The stream shows eight pairs $(k, v)$ in random order, again and again. After six passes every key gets a **new**
# value. Each time a key comes, the memory is asked before it is told. We measure the squared error, relative to the size of the values.


# %%
def stream(alike=0.0, texts=200, pairs=8, passes=12, K=16, E=8):
    """Keys and values (texts, passes x pairs, ...): unit keys, ``alike`` of which is shared; new
    values after half of the passes.
    """
    draw = np.random.default_rng(1)
    keys = (1 - alike) ** 0.5 * draw.standard_normal((texts, pairs, K)) + alike**0.5 * draw.standard_normal((texts, 1, K))
    keys /= np.linalg.norm(keys, axis=-1, keepdims=True)
    order = np.stack([np.concatenate([draw.permutation(pairs) for _ in range(passes)]) for _ in range(texts)])[..., None]
    old, new = draw.standard_normal((2, texts, pairs, E))
    first_half = np.arange(passes * pairs)[None, :, None] < passes * pairs // 2
    values = np.where(first_half, np.take_along_axis(old, order, axis=1), np.take_along_axis(new, order, axis=1))
    return np.take_along_axis(keys, order, axis=1), values


# %%
def learners(k, v):
    """Answers (texts, T, E) of each learner, asked before it is told."""
    rate, ridge = (lambda x: np.full(k.shape[:2], x)), np.full(k.shape[2], 0.01)
    runs = {
        "linear attention": linear_recurrent_fwd(k, k, v, read="strict"),
        "DeltaNet": delta_recurrent_fwd(k, k, v, rate(1.0), read="strict"),
        "Titans": titans_recurrent_fwd(k, k, v, rate(0.6), rate(0.0), rate(0.6), read="strict"),
        "Mesa": mesa_recurrent_fwd(k, k, v, rate(1.0), rate(1.0), ridge, read="strict"),
        "Mesa that forgets": mesa_recurrent_fwd(k, k, v, rate(0.93), rate(1.0), ridge, read="strict"),
    }
    return {name: out for name, ((out, _), _) in runs.items()}


# %%
def errors(k, v):
    """Mean squared error per pass, relative to the values: name -> (12,)"""
    return {name: np.mean((out - v) ** 2, axis=(0, 2)).reshape(12, 8).mean(axis=1) / np.mean(v**2) for name, out in learners(k, v).items()}


measured = errors(*stream())
fig, ax = plt.subplots(figsize=(10, 5.5))
for name, error in measured.items():
    ax.semilogy(np.arange(1, 13), error, label=name)
ax.axvline(6.5, color="black", linewidth=1)
ax.text(6.7, 3e-4, "new values", fontsize=14)
ax.set(xlabel="pass over the eight pairs", ylabel="error when asked", title="One stream, five learners")
ax.legend(loc="upper left", bbox_to_anchor=(1, 1))
plt.show()

# %% [markdown]
# - *Linear attention* adds the same pair again on each pass, so its answers grow. Its loss has no minimum to stop at.
# - *DeltaNet* corrects its error, and after the change corrects it again. Each step disturbs the other answers a little, so that takes some
#   passes.
# - *Titans* is the same with momentum. On this stream that is neither better nor worse.
# - *Mesa* solves for all pairs at once: after one pass it is right. But it weighs all of the past alike, so after the change it averages
#   old and new values.
# - *Mesa that forgets*, with a weight of $0.93$ per token, is right again soon. Exact is not enough; what is past must fade.

# %%
assert np.all(np.diff(measured["linear attention"][1:6]) > 0)
assert measured["Mesa"][1] < 0.01 < measured["DeltaNet"][1] < 0.6
assert measured["Mesa"][-1] > 5 * measured["DeltaNet"][-1]
assert measured["Mesa that forgets"][-1] < 0.05
print("before the change Mesa is best, after it the one that forgets:", measured["Mesa that forgets"][-1] < measured["DeltaNet"][-1])

# %% [markdown]
# ## Keys that are alike
#
# Gradient descent is slow where the keys overlap: the answer to one key is changed by the step for another. We mix a shared direction into
# all keys and look at the error on the sixth pass, just before the change.

# %%
shares = np.array([0.0, 0.2, 0.4, 0.6, 0.8, 0.9])
sixth = [errors(*stream(alike)) for alike in shares]
fig, ax = plt.subplots(figsize=(10, 5))
for name in ("DeltaNet", "Titans", "Mesa"):
    ax.semilogy(shares, [e[name][5] for e in sixth], label=name)
ax.set(xlabel="how much of the keys is shared", ylabel="error on the sixth pass", title="Keys that are alike")
ax.legend()
plt.show()
by_alike = {name: [e[name][5] for e in sixth] for name in ("DeltaNet", "Titans", "Mesa")}
assert by_alike["DeltaNet"][-1] > 5 * by_alike["DeltaNet"][0]
assert by_alike["Titans"][-1] < by_alike["DeltaNet"][-1]
assert max(by_alike["Mesa"]) < 0.05
print("alike keys slow gradient descent, momentum helps a little, an exact solution stays right:", True)

# %% [markdown]
# ## A step that is too long
#
# A gradient step on $\tfrac12 \lVert k S - v \rVert^2$ multiplies the error of its own pair by $1 - \beta \lVert k \rVert^2$. Beyond
# $\beta \lVert k \rVert^2 = 2$ the error grows, and the memory explodes. Longhorn takes the *implicit* step, and that multiplies by
# $1 / (1 + \beta \lVert k \rVert^2)$, which is below 1 whatever $\beta$ is.

# %%
k8, v8 = stream(texts=50)
betas = 2.0 ** np.arange(-3, 7)
final = {"DeltaNet": [], "Longhorn": []}
for b in betas:
    for name, rule in (("DeltaNet", delta_recurrent_fwd), ("Longhorn", longhorn_recurrent_fwd)):
        (out, _), _ = rule(k8, k8, v8, np.full(k8.shape[:2], b), read="strict")
        final[name].append(np.mean((out - v8)[:, 40:48] ** 2) / np.mean(v8**2))  # the sixth pass

# %%
fig, ax = plt.subplots()
for name, error in final.items():
    ax.loglog(betas, error, label=name)
ax.set(
    xlabel=r"step size $\beta$ (keys have length 1)",
    ylabel="error on the sixth pass",
    title="Explicit and implicit steps",
    ylim=(1e-2, 1e6),
)
ax.legend(loc="upper left")
plt.show()

# %%
assert final["DeltaNet"][5] > 1e3 and max(final["Longhorn"]) < 1
assert agree(longhorn_rate(k8, np.full(k8.shape[:2], 1e12)), 1 / np.sum(k8**2, axis=-1))  # the longest step is the perfect one
print("the implicit step is safe at any length:", max(final["Longhorn"]) < 1)

# %% [markdown]
# ## The second dictionary: an optimizer is a mask
#
# Now take all gradients at the slow weights, as a fast weight layer does. They are given numbers then, and any optimizer that is *linear*
# in them moves the weights by
#
# $$ \theta_t - \theta_0 = -\eta \sum_{s<t} M_{ts}\, g_s . $$
#
# $M$ is all there is to know. Feed a gradient of 1 at token $s$ and nothing else; $M_{ts}$ is how far the weights have moved when token $t$
# reads. Here are eight optimizers, drawn. Each is a linear attention with that mask.

# %%
n = 24
dictionary = {
    "SGD": sgd(),
    "warm-up": schedule(np.minimum(1, np.arange(1, n + 1) / 12)),
    "decay": decay_to_start(0.15),
    "momentum": momentum(0.8),
    "momentum, decay": momentum_with_decay(0.8, 0.15),
    "averaging": averaging(),
    "window": sliding_window(6),
    "segments": segments(6),
}
masks = {name: mask(optimizer, n) for name, optimizer in dictionary.items()}

# %%
fig, axes = plt.subplots(2, 4, figsize=(14, 7.5))
for ax, (name, M) in zip(axes.flat, masks.items(), strict=True):
    image = ax.imshow(M / M.max(), vmin=0, vmax=1)
    ax.set(title=name, xticks=[0, 10, 20], yticks=[0, 10, 20])
for ax in axes[1]:
    ax.set_xlabel("written: s")
for ax in axes[:, 0]:
    ax.set_ylabel("read: t")
fig.colorbar(image, ax=axes, shrink=0.7, label="$M_{ts}$, largest = 1")
plt.show()

# %% [markdown]
# Read a row from right to left to see how the past counts for one token: fully (SGD), less and less (decay), more and more up to a limit
# (momentum), first more and then less (both). Every picture is dark on and above the diagonal: strict reads.


# %%
def heavy_ball(g, mu):
    """Displacement before each token, literally: v <- mu v + g,  theta <- theta - v."""
    theta = velocity = np.zeros_like(g[0])
    rows = []
    for gradient in g:
        rows.append(theta)
        velocity = mu * velocity + gradient
        theta = theta - velocity
    return np.stack(rows)


# %%
g = rng.standard_normal((n, 5))
assert agree(heavy_ball(g, 0.8), -masks["momentum"] @ g)
assert all(agree(M, closed_form(dictionary[name], n)) for name, M in masks.items())
assert all(not np.triu(M).any() for M in masks.values())
print("running the optimizer, its mask and its formula agree:", True)

# %% [markdown]
# ## What is no mask
#
# Linear means: the moves for gradients $g + g'$ are the moves for $g$ plus the moves for $g'$. Adam divides by the size of the gradients
# themselves, and sign descent keeps nothing of the size at all. Twice the gradient is the same move. No mask does that.


# %%
def adam(g):
    """Displacement before each token, without bias correction."""
    theta = mean = square = np.zeros_like(g[0])
    rows = []
    for gradient in g:
        rows.append(theta)
        mean, square = 0.9 * mean + 0.1 * gradient, 0.99 * square + 0.01 * gradient**2
        theta = theta - mean / (np.sqrt(square) + 1e-8)
    return np.stack(rows)


# %%
other = rng.standard_normal(g.shape)
gap = {name: np.abs(f(g + other) - f(g) - f(other)).max() for name, f in (("momentum", lambda g: heavy_ball(g, 0.8)), ("Adam", adam))}
assert gap["momentum"] < 1e-12 and gap["Adam"] > 0.1
assert agree(adam(2 * g), adam(g), rtol=1e-5)  # twice the gradients, the same moves
print("moves add up: momentum", gap["momentum"] < 1e-12, " Adam", gap["Adam"] < 1e-12)

# %% [markdown]
# ## Where fast weight layers stand
#
# A fast weight layer is a row of both dictionaries. Its loss is the next-token cross-entropy of a small network, its gradients are stale,
# and its optimizer is a setting. With `segments(3)` it must be dynamic evaluation in segments of three tokens, stale, as in notebook 6.

# %%
shapes = ((6, 24), 24, (24, 6), 6, 6, 6, (6, 9), 9)
slow = SlowParameters(*(0.4 * rng.standard_normal(shape) for shape in shapes))
steps = FastParameters(*(np.asarray(0.05),) * 6)
batch = (rng.standard_normal((1, 12, 6)), rng.integers(0, 9, (1, 12)), np.ones((1, 12)), slow, steps)


def fast_logits(optimizer):
    return fast_block_fwd(*batch, np.asarray(0.0), FastSettings(optimizer=optimizer))[0][0]


oracle, _ = evaluate_block(*batch, segment=3, stale=True)  # parameters that really move
assert agree(fast_logits(segments(3)), oracle)
assert agree(fast_logits(sgd()), fast_logits(None))
assert not agree(fast_logits(momentum(0.8)), fast_logits(None), rtol=1e-3)
print("a fast weight layer with segments is dynamic evaluation in segments:", agree(fast_logits(segments(3)), oracle))

# %% [markdown]
# ## The library's source
#
# All rules have one shape, so that one who has read one can read them all. Here is the delta rule again.

# %%
source = inspect.getsource(delta_recurrent_fwd)
print(source)
assert "delta_gradient(" in source  # the update visibly is a step along the gradient

# %% [markdown]
# ## Exercise: one entry of a mask
#
# Momentum $\mu = 0.5$: $v \leftarrow \mu v + g$, then $\theta \leftarrow \theta - \eta v$. How much does the gradient of token 2 count when
# token 5 reads? Give $M_{52}$, a number.

# %% tags=["exercise"]
M_52 = None

# %%
hints_of_M_52 = {
    "That is its velocity. The weights have added velocities up.": 0.25,
    "How many updates lie between the write at 2 and the read at 5? Reads are strict.": 1.875,
    "Count again the updates from 2 up to the read at 5.": 1.5,
    "Without momentum it would be that.": 1.0,
}
check("M_52", M_52, float(mask(momentum(0.5), 6)[5, 2]), mistakes=hints_of_M_52)

# %% [markdown]
# ## Exercise: draw a mask that is not in the dictionary
#
# An optimizer that fades **and** forgets: gradients fade by $1 - \lambda$ per token as with decay, and after $w$ tokens they are gone
# altogether, as with a window. Return its mask, an array (n,n). No loop.


# %% tags=["exercise"]
def fading_window(n, lam, w):
    return None  # (n,n)


# %%
def by_running(n, lam, w):
    """A queue of the last w gradients, run on unit impulses."""
    queue, rows = [], []
    for impulse in np.eye(n):
        rows.append(sum((a for a in queue), np.zeros(n)))
        queue = [(1 - lam) * a for a in queue][-(w - 1) :] if w > 1 else []
        queue.append(impulse)
    return np.stack(rows)


# %%
hints_of_fading_window = {
    "Reads are strict: a token does not see its own gradient.": lambda n, lam, w: by_running(n + 1, lam, w)[1:, :-1],
    "The newest gradient has not faded when it is first read.": lambda n, lam, w: (1 - lam) * by_running(n, lam, w),
    "The diagonal is 0: np.tril and np.tri have an argument k.": lambda n, lam, w: by_running(n, lam, w) + np.eye(n) / (1 - lam),
    "After w tokens a gradient is gone.": lambda n, lam, w: by_running(n, lam, n),
    "Exactly w gradients count.": lambda n, lam, w: by_running(n, lam, w + 1),
    "Rows read, columns were written.": lambda n, lam, w: by_running(n, lam, w).T,
}
check("fading_window", fading_window, by_running, [(8, 0.25, 3), (5, 0.3, 1)], mistakes=hints_of_fading_window)

# %% [markdown]
# ## Exercise: one step of Gated DeltaNet
#
# First everything fades to $\alpha S$, then the memory takes one gradient step of size $\beta$ on $\tfrac12 \lVert k S - v \rVert^2$. Given
# `S` (K,E), `k` (K,), `v` (E,) and two numbers, return the new memory (K,E).


# %% tags=["exercise"]
def gated_delta_step(S, k, v, alpha, beta):
    return None  # (K,E)


# %%
def by_the_library(S, k, v, alpha, beta):
    one = tuple(a[None, None] for a in (k, k, v, np.asarray(alpha), np.asarray(beta)))
    (_, state), _ = gated_delta_recurrent_fwd(*one, S[None], read="strict")
    return state[0]


hints_of_gated_delta_step = {
    "The error is that of the faded memory.": lambda S, k, v, a, b: a * S - b * np.outer(k, k @ S - v),
    "The step must not fade too: first fade, then step.": lambda S, k, v, a, b: a * by_the_library(S, k, v, 1.0, b),
    "Uphill: which sign has a descent?": lambda S, k, v, a, b: by_the_library(S, k, v, a, -b),
    "Is the old answer taken out before the new one is put in?": lambda S, k, v, a, b: a * S + b * np.outer(k, v),
}
case = (rng.standard_normal((4, 3)), rng.standard_normal(4), rng.standard_normal(3), 0.9, 0.3)
check("gated_delta_step", gated_delta_step, by_the_library, [case], mistakes=hints_of_gated_delta_step)
