# %% [markdown]
# # 7. Which earlier token helped?
#
# **Question.** A fast weight layer learns from every token it has read. When it then predicts a token better than before, which of the
# earlier ones was it that helped, and by how much?
#
# **Answer to look forward to.** To first order in the step size the help splits into pairs. Token $s$ changes the loss of a later
# token $t$ by
#
# $$ -\eta\, \langle g_t, g_s \rangle , $$
#
# with $g_t$ the gradient of token $t$'s own loss at the slow weights. These numbers form a triangular matrix, the *tangent kernel* of
# the text. They add up exactly: over $s$ to what token $t$ gains, over everything to the derivative that trains the step size.
#
# You need notebooks 5 and 6. The equation is (Q.7) in the docs.

# %%
import inspect

import matplotlib.pyplot as plt
import numpy as np

from fwl_ref.backend import as_dtype
from fwl_ref.exercises import agree, check
from fwl_ref.fwl import FastSettings, fast_block_bwd, fast_block_fwd, write_fwd
from fwl_ref.lm.data import load_corpus
from fwl_ref.lm.model import Config, features_fwd
from fwl_ref.lm.train import TrainSettings, train
from fwl_ref.ops.cross_entropy import cross_entropy_bwd, cross_entropy_fwd
from fwl_ref.ops.dense import dense_dx, dense_fwd
from fwl_ref.ops.layernorm import layernorm_bwd, layernorm_fwd
from fwl_ref.ops.squared_relu import squared_relu_bwd, squared_relu_fwd

# %%
from fwl_ref.slow_block import FastParameters, slow_block_bwd, slow_block_fwd
from fwl_ref.tree import tree_map

plt.style.use("fwl_ref.figures.lecture")

# %% [markdown]
# ## A model that knows a little, and a text that repeats
#
# Gradients of a random model say nothing, so we train one for a few seconds on the reference texts that come with Python. It has never
# seen a nursery rhyme. Everything after that is float64: we are going to compare digits.

# %%
config = Config(width=48, layers=1, heads=2, fast=False)
settings = TrainSettings(steps=250, batch=4, window=128, rate=4e-3, warmup=20)
progress = train(load_corpus("topics"), config, settings, quiet=True)
params = tree_map(lambda p: as_dtype(p, "float64"), progress.params)
slow = params.block

text = "Humpty Dumpty sat on a wall,\nHumpty Dumpty had"
data = np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int64)
tokens, labels = data[:-1], data[1:]  # at each place: the character read, and the one to predict
(features, _), _ = features_fwd(params, tokens[None], config)
x, T = features[0], len(tokens)  # (T,D)

# %%
losses = [record.bits_per_byte for record in progress.history]
assert np.mean(losses[-50:]) < 5 < 7 < losses[0]
print("the model has learned something:", np.mean(losses[-50:]) < 5, "and not much:", np.mean(losses[-50:]) > 3)

# %% [markdown]
# ## Two gradients and their product, one op a line
#
# Forward, then backward, for all tokens at once. Nothing is summed over tokens, so gain and bias get one row per token too.

# %%
h, dense1 = dense_fwd(x, slow.W1, slow.b1)  # (T,F)
a, act = squared_relu_fwd(h)  # (T,F)
z, dense2 = dense_fwd(a, slow.W2, slow.b2)  # (T,D)
gain, bias = np.tile(slow.gain, (T, 1)), np.tile(slow.bias, (T, 1))  # (T,D)
n, norm = layernorm_fwd(z, gain, bias, 0.0)  # (T,D)
logits, unembed = dense_fwd(n, slow.U, slow.c)  # (T,V)
nll, loss = cross_entropy_fwd(logits, labels)  # (T,)

dlogits = cross_entropy_bwd(np.ones(T), loss)  # (T,V)
dn = dense_dx(dlogits, unembed)  # (T,D)
dz, dgain, dbias = layernorm_bwd(dn, norm)  # (T,D)
da = dense_dx(dz, dense2)  # (T,F)
dh = squared_relu_bwd(da, act)  # (T,F)

# %% [markdown]
# The gradient of token $t$ for the first weight matrix is the outer product $x_t^\top dh_t$, and so on. There are six parameters, so
# $g_t$ is six arrays; the inner product is the sum over all their entries. Below, literally: form $g_t$, form $g_s$, multiply.


# %%
def token_gradient(t):
    return FastParameters(np.outer(x[t], dh[t]), dh[t], np.outer(a[t], dz[t]), dz[t], dgain[t], dbias[t])


def dot(g, k):
    return FastParameters(*(float(np.sum(p * q)) for p, q in zip(g, k, strict=True)))


def library_gradient(t):
    _, res = slow_block_fwd(x[t : t + 1], labels[t : t + 1], slow, 0.0)
    return FastParameters(*slow_block_bwd(np.ones(1), res)[1][:6])


# %%
assert all(agree(token_gradient(t), library_gradient(t)) for t in range(T))
literal = [[dot(token_gradient(t), token_gradient(s)) for s in range(T)] for t in range(T)]
literal = FastParameters(*(np.array([[pair[i] for pair in row] for row in literal]) for i in range(6)))  # six arrays (T,T)
assert agree(literal.W1, literal.W1.T)  # a product of two gradients does not care which comes first
print("each token's gradient is the library's:", True)

# %% [markdown]
# ## The product of gradients collapses
#
# $g_t$ for the weights of one layer has $D \times F$ entries, and we formed one for each token. But the inner product of two outer
# products is a product of two numbers:
#
# $$ \langle x_t^\top dh_t,\; x_s^\top dh_s \rangle = (x_t \cdot x_s)\, (dh_t \cdot dh_s) . $$
#
# So the kernel of a layer is the entry-wise product of two small matrices: *how alike were the inputs* times *how alike were the errors*.
# It is large only if both are. A bias is a weight with input 1.


# %%
def alike(p, q):
    return p @ q.T  # (T,T) all inner products of rows


kernel = FastParameters(
    W1=alike(x, x) * alike(dh, dh),
    b1=alike(dh, dh),
    W2=alike(a, a) * alike(dz, dz),
    b2=alike(dz, dz),
    gain=alike(dgain, dgain),
    bias=alike(dbias, dbias),
)
assert agree(kernel, literal)
print("no gradient was formed, and all pairs agree:", agree(kernel, literal))

# %% [markdown]
# ## The picture
#
# Row $t$ is the token that is predicted, column $s$ an earlier one that was written. Both are named by the character to be predicted.
# Only $s < t$ counts: the strict lower triangle. The colour is the loss that token $t$ is spared per unit of step size.

# %%
K = sum(kernel)  # (T,T)
triangle = np.tril(K, -1)  # (T,T) s < t
names = [chr(c).replace("\n", "¶").replace(" ", "␣") for c in labels]
fig, ax = plt.subplots(figsize=(11, 9.5))
limit = np.percentile(np.abs(triangle), 99.5)
image = ax.imshow(np.where(np.tri(T, T, -1) > 0, triangle, np.nan), cmap="PuOr", vmin=-limit, vmax=limit)
ax.set_xticks(range(T), names)
ax.set_yticks(range(T), names)
ax.set(xlabel="written earlier: character s", ylabel="predicted: character t", title="Who helps whom")
ax.spines[:].set_visible(False)
fig.colorbar(image, shrink=0.7, label="purple: helps,  orange: hurts   (nats per unit step)")
plt.show()

# %% [markdown]
# The purple diagonals are repetitions. *Humpty Dumpty* comes twice, and *umpty* four times: each letter is helped by the same letter
# in the same place of the word. The orange specks are letters after a space: *D* was learned there, then came *s*, *o* and *a*. The rest
# is nearly blank. Two tokens that are followed by different characters have little to say to each other.

# %%
same = np.tril(labels[:, None] == labels[None, :], -1)
different = np.tril(~same, -1)
lag = text.index("Humpty", 1)  # from one Humpty to the next
stripe = np.diagonal(triangle, -lag)[:12]
assert triangle[same].mean() > 20 * abs(triangle[different].mean())
assert stripe.mean() > 1.3 * triangle[same].mean()
print("pairs with the same next character help:", triangle[same].mean() > 1)
print("the repeated phrase helps most:", stripe.mean() > 1.3 * triangle[same].mean())

# %% [markdown]
# ## They add up
#
# Row sums say what each token gains. The claim is that they are *exactly* the derivative of its loss with respect to the step size,
#
# $$ \frac{d \ell_t}{d \eta}\Big|_{\eta = 0} = - \sum_{s<t} \langle g_t, g_s \rangle . $$
#
# The library computes that derivative in another way: it runs fast weights with step size 0 and goes back through read and write.
# We ask it token by token.

# %%
still = FastParameters(*(np.asarray(0.0),) * 6)
batch = (x[None], labels[None], np.ones((1, T)), slow)
(fast_logits, _, _), res = fast_block_fwd(*batch, still, np.asarray(0.0), FastSettings(eps=0.0))
_, outer_loss = cross_entropy_fwd(fast_logits, labels[None])


def library_slope(dnll, res):
    """Derivative of sum_t dnll_t loss_t with respect to each of the six step sizes."""
    g_logits = cross_entropy_bwd(dnll[None], outer_loss)
    return np.array(fast_block_bwd(g_logits, None, res)[2])  # (6,)


slopes = np.stack([library_slope(row, res) for row in np.eye(T)])  # (T,6)
rows = np.stack([-np.tril(k, -1).sum(axis=1) for k in kernel], axis=1)  # (T,6)

# %%
eta = 1e-4
steps = FastParameters(*(np.asarray(eta),) * 6)
(moved, _, _), _ = fast_block_fwd(*batch, steps, np.asarray(0.0), FastSettings(eps=0.0))
change = cross_entropy_fwd(moved, labels[None])[0][0] - nll  # (T,) what really happens
fig, ax = plt.subplots(figsize=(11, 4.5))
ax.plot(eta * rows.sum(axis=1), marker="", label=r"sum over pairs, $-\eta \sum_s \langle g_t, g_s \rangle$")
ax.plot(change, linestyle="none", marker="s", markersize=7, label="change of the loss, measured")
ax.axhline(0, color="black", linewidth=1)
ax.set_xticks(range(T), names)
ax.set(xlabel="predicted character", ylabel="change of loss (nats)", title=r"Fast weights with step size $10^{-4}$")
ax.legend(loc="lower left")
plt.show()

# %%
assert agree(rows, slopes)
assert agree(rows.sum(axis=0), library_slope(np.ones(T), res))
assert np.abs(change - eta * rows.sum(axis=1)).max() < 0.1 * np.abs(change).max()
print("row sums are the library's derivative, token by token:", agree(rows, slopes))
print("their total is the gradient that trains the step size:", agree(rows.sum(axis=0), library_slope(np.ones(T), res)))

# %% [markdown]
# ## Which parameter did the work?
#
# Each of the six has a kernel and a step size of its own, so the help also splits by parameter.

# %%
shares = 100 * rows.sum(axis=0) / rows.sum()  # percent
fig, ax = plt.subplots()
ax.barh(FastParameters._fields, shares, color="C0")
ax.invert_yaxis()
ax.set(xlabel="share of the help (%)", ylabel="parameter", title="At equal step sizes the matrices do the work")
plt.show()
assert abs(shares.sum() - 100) < 1e-9
assert shares[0] + shares[2] > 80
print("both weight matrices together do over 80 %:", shares[0] + shares[2] > 80)

# %% [markdown]
# The kernel of a matrix has one factor more than that of its bias, how alike the inputs were. For features that come out of a LayerNorm
# that factor is as large as the width. The six kernels differ by orders of magnitude, so one learns six step sizes and not one.

# %% [markdown]
# ## What decay does
#
# With decay $\lambda$ the step of token $s$ has faded by $(1-\lambda)^{t-s-1}$ when token $t$ reads. So the kernel gets a mask that
# depends on the distance alone. Sum the help over all pairs at the same distance:

# %%
distance = np.arange(1, T)  # t - s
help_at = np.array([np.trace(triangle, -d) for d in distance])
fig, ax = plt.subplots(figsize=(11, 4.5))
for lam in (0.0, 0.02, 0.1):
    ax.plot(distance, (1 - lam) ** (distance - 1) * help_at, marker="", label=rf"decay $\lambda$ = {lam}")
ax.set(xlabel="distance t - s (characters)", ylabel="help (nats per unit step)", title="Decay fades what is far")
ax.annotate("umpty, umpty", (7, help_at[6]), (8, help_at[6]), fontsize=14)
ax.annotate("Humpty Dumpty again", (lag, help_at[lag - 1]), (lag + 1, 0.93 * help_at[lag - 1]), fontsize=14)
ax.legend(loc="upper left", bbox_to_anchor=(0.28, 1.0))
plt.show()

# %% [markdown]
# A decay of 0.1 has all but forgotten the first *Humpty Dumpty* when the second begins. In this text that is a loss. Where a text changes
# its subject, the far past may hurt, and then it is a gain. So the decay is learned too, and it gets its gradient from this same sum.

# %%
lam = 0.02
_, faded = fast_block_fwd(*batch, still, np.asarray(lam), FastSettings(eps=0.0))
assert agree(-np.sum((1 - lam) ** (distance - 1) * help_at), np.sum(library_slope(np.ones(T), faded)))
print("the faded sum is the library's derivative with decay:", True)

# %% [markdown]
# ## The library's source
#
# All twelve arrays of the kernel come from one place. `write_fwd` computes them as keys and values, in the same two sweeps as ours.

# %%
print(inspect.getsource(write_fwd))

# %%
(memory, _), _ = write_fwd(*batch, FastSettings(eps=0.0))
assert agree(tuple(m[0] for m in memory), (h, x, dh, a, dz, dgain, dbias))
print("the memory holds exactly our arrays:", True)

# %% [markdown]
# ## Exercise: predict a shape
#
# Suppose you formed the gradients literally and stacked those of `W2` over all tokens of a text. Here are $T = 1000$ tokens, width
# $D = 64$ and hidden width $F = 256$. What shape is the stack, and what shape is the kernel that needs no gradients?

# %% tags=["exercise"]
stack_shape = None
kernel_shape = None

# %%
transposed = {"W2 goes from the hidden layer to the output.": (1000, 64, 256)}
check("stack_shape", stack_shape, (1000, 256, 64), mistakes=transposed)
check("kernel_shape", kernel_shape, (1000, 1000), mistakes={"The kernel has one number per pair of tokens.": (256, 64)})

# %% [markdown]
# ## Exercise: the loss a text is spared
#
# Write the whole chapter in one function for the second layer. Given hidden activations `a` (T,F), output gradients `dz` (T,D) and a
# decay `lam`, return the derivative of each token's loss with respect to the step size of `W2` at 0, an array (T,). No loop, no
# gradient, and mind the sign, the diagonal and the exponent.


# %% tags=["exercise"]
def slope_W2(a, dz, lam):
    return None  # (T,)


# %%
rate, gap = 0.1, np.arange(T)[:, None] - np.arange(T)  # t - s
read_res = fast_block_fwd(*batch, still, np.asarray(rate), FastSettings(eps=0.0))[1]
expected = np.array([library_slope(row, read_res)[2] for row in np.eye(T)])  # the library's backward pass, one token at a time


# %%
def inclusive(a, dz, lam):
    return -np.sum(np.where(gap >= 0, (1.0 - lam) ** np.maximum(gap, 0), 0) * kernel.W2, axis=1)


hints_of_slope_W2 = {
    "If the past helps, what is the sign of the derivative?": lambda a, dz, lam: -expected,
    "The newest write has not faded yet when it is read.": lambda a, dz, lam: (1 - lam) * expected,
    "Does token t read its own write?": inclusive,
    "You left out the decay.": lambda a, dz, lam: rows[:, 2],
}
check("slope_W2", slope_W2, expected, [(a, dz, rate)], mistakes=hints_of_slope_W2)
