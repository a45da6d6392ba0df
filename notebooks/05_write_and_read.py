# %% [markdown]
# # 5. Write and read: six sweeps
#
# **Question.** A fast weight layer computes a gradient at every token and predicts with it. How does one compute that without a weight
# matrix per token, and how does one train *through* it?
#
# **Answer to look forward to.** Six sweeps through a small network. Two write: forward, and backward, whose by-products are keys and
# values. One reads: the attention of [notebook 4](04_a_gradient_step_is_linear_attention.ipynb). Three go back: through the read, through
# the slow *backward* pass (that is where `_bwd_bwd` comes in), and through the slow forward pass. At the end you write the fifth
# yourself: the second-order backward pass of a fast weight layer.

# %%
import inspect
from importlib.resources import files
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import SVG

from fwl_ref.exercises import adjoint_by_differences, agree, check
from fwl_ref.fwl import FastSettings, Memory, fast_block_bwd, fast_block_fwd, read_bwd, read_fwd, sweep5, write_bwd, write_fwd
from fwl_ref.gradcheck import check_adjoint
from fwl_ref.ops.cross_entropy import cross_entropy_bwd, cross_entropy_bwd_bwd, cross_entropy_fwd
from fwl_ref.ops.dense import dense_bwd, dense_bwd_bwd, dense_dx, dense_fwd

# %%
from fwl_ref.ops.layernorm import layernorm_bwd, layernorm_bwd_bwd, layernorm_fwd
from fwl_ref.ops.linear_attention import linear_attention_bwd, linear_attention_fwd
from fwl_ref.ops.squared_relu import squared_relu_bwd, squared_relu_bwd_bwd, squared_relu_fwd
from fwl_ref.slow_block import FastParameters, SlowParameters, slow_block_bwd, slow_block_fwd

plt.style.use("fwl_ref.figures.lecture")
rng = np.random.default_rng(107)

# %% [markdown]
# ## What is wanted
#
# The block is small, and one knows every op by now:
#
#     h = x W1 + b1      a = relu(h)^2      z = a W2 + b2      n = LN(z; gain, bias)      logits = n U + c      loss = CE(logits, label)
#
# Six of its parameters, $W_1, b_1, W_2, b_2$, gain and bias, are *fast*. Token $t$ is predicted with
#
# $$ p_t = p - \eta_p \sum_{s<t} (1-\lambda)^{t-s-1}\, \frac{\partial \ell_s}{\partial p} \qquad
#    \text{for each of the six, with its own step size.} $$
#
# The gradients are those of the earlier tokens' losses, taken at the *slow* parameters $p$, those that training left behind. The loss
# $\ell_s$ is the token's cross-entropy times its weight, divided by a number $N$, the *normalizer*. Here $N = 1$;
# [notebook 6](06_when_is_it_dynamic_evaluation.ipynb) shows what happens if $N$ counts tokens. The label of token $t$ is the token after
# it, so reading is strict. $U$ and $c$ stay slow. Here it is said literally, with parameters that move:

# %%
T, D, F, V = 6, 3, 5, 4
slow = SlowParameters(*(rng.standard_normal(size) for size in ((D, F), F, (F, D), D, D, D, (D, V), V)))
eta = FastParameters(*(np.asarray(e) for e in (0.02, 0.1, 0.03, 0.1, 0.3, 0.2)))
decay = np.asarray(0.1)
x, labels = rng.standard_normal((1, T, D)), rng.integers(0, V, (1, T))
weights = np.array([[1.0, 1.0, 0.5, 1.0, 2.0, 1.0]])  # of each token in the slow loss
settings = FastSettings(chunk=4)  # and N = 1, for every token the same
active = x @ slow.W1 + slow.b1 > 0  # where relu(h) is not 0: everywhere in part, or a wrong line could go unseen
assert active[:, :-1].sum() == 15 and active.any(axis=1).all() and active.any(axis=2).all() and not active.all(axis=2).any()
assert np.abs(x @ slow.W1 + slow.b1).min() > 0.1  # off the kink of relu(h)^2, for the finite differences to come

# %%
sums, rows = [0.0] * 6, []
for t in range(T):
    now = slice(t, t + 1)
    moved = [p - e * s for p, e, s in zip(slow[:6], eta, sums, strict=True)]
    (_, logits_t), _ = slow_block_fwd(x[:, now], labels[:, now], SlowParameters(*moved, slow.U, slow.c), settings.eps)
    rows.append(logits_t)  # predict with what was learned before, then learn:
    _, res = slow_block_fwd(x[:, now], labels[:, now], slow, settings.eps)  # at the slow parameters
    _, gradient = slow_block_bwd(weights[:, now], res)
    sums = [(1 - decay) * s + g for s, g in zip(sums, gradient[:6], strict=True)]
literal = np.concatenate(rows, axis=1)  # (1,T,V)

# %% [markdown]
# And here is the library, which never moves a parameter. Its six sweeps, numbered in the order of time. Up is towards a loss, down is
# towards the features $x$.

# %%
SVG(files("fwl_ref").joinpath("figures/six_sweeps.svg").read_text(encoding="utf-8"))

# %%
(logits, logits_slow, state), _ = fast_block_fwd(x, labels, weights, slow, eta, decay, settings)
print("six sweeps = parameters that move:", agree(logits, literal))
print("the state that is left = the sums of the gradients:", agree(tuple(s[0] for s in state), tuple(sums)))
print("and it does something:", not agree(logits, logits_slow, rtol=0.01))
assert agree(logits, literal) and agree(tuple(s[0] for s in state), tuple(sums))

# %% [markdown]
# ## Write: sweeps 1 and 2
#
# Sweep 1 is the forward pass. Sweep 2 is its backward pass *per token*: no weight gradient is ever formed, only what passes from op to
# op. Gain and bias are copied once per token first, so that LayerNorm's ordinary backward pass returns their gradients per token.

# %%
# sweep 1, up
h, r_dense1 = dense_fwd(x, slow.W1, slow.b1)
a, r_act = squared_relu_fwd(h)
z, r_dense2 = dense_fwd(a, slow.W2, slow.b2)
gain, bias = np.broadcast_to(slow.gain, z.shape), np.broadcast_to(slow.bias, z.shape)
n, r_norm = layernorm_fwd(z, gain, bias, settings.eps)
logits_slow, r_unembed = dense_fwd(n, slow.U, slow.c)
losses, r_loss = cross_entropy_fwd(logits_slow, labels)
# sweep 2, down
dlogits = cross_entropy_bwd(weights, r_loss)
dn = dense_dx(dlogits, r_unembed)
dz, dgain, dbias = layernorm_bwd(dn, r_norm)
da = dense_dx(dz, r_dense2)
dh = squared_relu_bwd(da, r_act)

# %%
(memory, _), write_res = write_fwd(x, labels, weights, slow, settings)
print("sweeps 1 and 2 equal the library's memory:", agree(Memory(h, x, dh, a, dz, dgain, dbias), memory))
_, of_one_token = slow_block_bwd(weights * (np.arange(T) == 2), slow_block_fwd(x, labels, slow, settings.eps)[1])
from_memory = (np.outer(x[0, 2], dh[0, 2]), dh[0, 2], np.outer(a[0, 2], dz[0, 2]), dz[0, 2], dgain[0, 2], dbias[0, 2])
print("from it, all six gradients of token 2:", agree(from_memory, of_one_token[:6]))

# %% [markdown]
# What is remembered of a token: seven vectors, `h, x, dh, a, dz, dgain, dbias`. What is not: six gradients, two of them matrices. With
# $F = 4D$ that is $16D$ numbers against $8D^2 + 7D$.

# %%
width = 2 ** np.arange(4, 11)
fig, ax = plt.subplots()
ax.plot(width, 8 * width**2 + 7 * width, label="six gradients: $8D^2 + 7D$")
ax.plot(width, 16 * width, label="keys and values: $16D$")
ax.set(xscale="log", yscale="log", xlabel="width $D$", ylabel="numbers per token")
ax.set_title("Outer products are remembered by their factors")
ax.legend()
plt.show()

# %%
wide = [np.ones(size) for size in ((8, 32), 32, (32, 8), 8, 8, 8, (8, 4), 4)]
(example, _), _ = write_fwd(np.ones((1, 1, 8)), np.zeros((1, 1), dtype=int), np.ones((1, 1)), SlowParameters(*wide), settings)
assert sum(part.size for part in example) == 16 * 8 and sum(p.size for p in wide[:6]) == 8 * 8**2 + 7 * 8
assert agree(Memory(h, x, dh, a, dz, dgain, dbias), memory) and agree(from_memory, of_one_token[:6])

# %% [markdown]
# ## Read: sweep 3
#
# Insert $W_{1,t}$ and $b_{1,t}$ into the first layer, as in notebook 4 (a bias is a weight whose input is 1):
#
# $$ h_t' = h_t - \sum_{s<t} M_{ts}\,\big( [\eta_{W_1} x_t,\; \eta_{b_1}] \cdot [x_s,\; 1] \big)\, dh_s ,
#    \qquad a' = \mathrm{relu}(h')^2 . $$
#
# The second layer goes the same way, but its input is now the *fast* $a_t'$. So the query is fast while the key, which comes from the
# gradient, is slow:
#
# $$ z_t' = a_t' W_2 + b_2 - \sum_{s<t} M_{ts}\,\big( [\eta_{W_2} a_t',\; \eta_{b_2}] \cdot [a_s,\; 1] \big)\, dz_s . $$
#
# Gain and bias have no input, so $q = k = 1$: an exclusive sum. Three attentions in all.

# %%
keep, ones = 1 - decay, np.ones((1, T, 1))
q1, k1 = (np.concatenate([eta.W1 * x, eta.b1 * ones], axis=-1), np.concatenate([memory.x, ones], axis=-1))
(o1, _), r_attention1 = linear_attention_fwd(q1, k1, memory.dh, keep)
h_fast = memory.h - o1
a_fast, r_act_fast = squared_relu_fwd(h_fast)
z_plain, r_dense2_fast = dense_fwd(a_fast, slow.W2, slow.b2)
q2, k2 = (np.concatenate([eta.W2 * a_fast, eta.b2 * ones], axis=-1), np.concatenate([memory.a, ones], axis=-1))
(o2, _), r_attention2 = linear_attention_fwd(q2, k2, memory.dz, keep)
z_fast = z_plain - o2
(sums3, _), r_attention3 = linear_attention_fwd(ones, ones, np.concatenate([memory.dgain, memory.dbias], axis=-1), keep)
gain_fast = slow.gain - eta.gain * sums3[..., :D]
bias_fast = slow.bias - eta.bias * sums3[..., D:]
n_fast, r_norm_fast = layernorm_fwd(z_fast, gain_fast, bias_fast, settings.eps)
logits, r_unembed_fast = dense_fwd(n_fast, slow.U, slow.c)

# %%
(logits_library, _), read_res = read_fwd(memory, x, slow, eta, decay, None, settings)
print("sweep 3 equals the library's:", agree(logits, logits_library), "  and the literal one:", agree(logits, literal))
assert agree(logits, logits_library) and agree(logits, literal)

# %% [markdown]
# What is it good for? Let five tokens repeat, again and again. The slow network, with random weights, is equally bad every time. The
# fast one has read the sequence before.

# %%
draw = np.random.default_rng(0)
period, width, length = 5, 16, 25
sizes = [(width, 4 * width), 4 * width, (4 * width, width), width, width, width, (width, period), period]
untrained = SlowParameters(*(draw.standard_normal(size) / np.sqrt(width) for size in sizes))
table, tokens = draw.standard_normal((period, width)), np.arange(length + 1) % period
steps = FastParameters(*(np.asarray(e) for e in (0.02, 0.2, 0.02, 0.2, 0.2, 0.2)))
arguments = (table[tokens[:-1]][None], tokens[None, 1:], np.ones((1, length)), untrained, steps, np.asarray(0.0), settings)
both = fast_block_fwd(*arguments)[0][:2]  # fast logits, slow logits
fast_loss, slow_loss = (cross_entropy_fwd(part, tokens[None, 1:])[0][0] for part in both)

# %%
fig, ax = plt.subplots()
ax.plot(slow_loss, label="slow weights")
ax.plot(fast_loss, label="fast weights")
for start in range(period, length, period):
    ax.axvline(start - 0.5, color="#999999", linewidth=1, linestyle="-", marker="")
ax.set(xlabel="token $t$ (lines: the sequence starts again)", ylabel="loss of token $t$ (nats)", title="Reading a sequence that repeats")
ax.set_ylim(0, 1.3 * max(slow_loss.max(), fast_loss[:period].max()))
ax.legend(ncols=2, loc="upper right")
plt.show()

# %%
rounds = fast_loss.reshape(-1, period).mean(axis=1)
print("the fast loss, round by round:", np.round(rounds, 2))
print("the slow loss, every round:   ", np.round(slow_loss[:period].mean(), 2))
assert np.all(np.diff(rounds) < 0) and agree(slow_loss[:period], slow_loss[-period:])
assert abs(fast_loss[0] - slow_loss[0]) < 1e-12  # token 0 has read nothing

# %% [markdown]
# ## Backward of the read: sweep 4
#
# Now training. The outer loss gives $g_{\mathrm{logits}}$. From the end of the read to its start, each line by the adjoint of its op.
# Nothing here is second order: the read is an ordinary network of seven inputs from the memory, and gets seven gradients. Every minus
# sign is the minus of a descent step.

# %%
g_logits = rng.standard_normal((1, T, V))
g_n, g_U, g_c = dense_bwd(g_logits, r_unembed_fast)  # logits = n' U + c
g_z, g_gain_t, g_bias_t = layernorm_bwd(g_n, r_norm_fast)  # n' = LN(z'; gain', bias'), all three per token
g_sums = np.concatenate([-eta.gain * g_gain_t, -eta.bias * g_bias_t], axis=-1)  # gain' = gain - eta sums
_, _, g_v3, g_keep3, _ = linear_attention_bwd(g_sums, None, r_attention3)
g_q2, g_k2, g_dz, g_keep2, _ = linear_attention_bwd(-g_z, None, r_attention2)  # z' = a' W2 + b2 - attention
g_a_fast, g_W2, g_b2 = dense_bwd(g_z, r_dense2_fast)
g_a_fast = g_a_fast + eta.W2 * g_q2[..., :F]  # a' is used twice: by W2, and as a query
g_h = squared_relu_bwd(g_a_fast, r_act_fast)  # a' = relu(h')^2
g_q1, g_k1, g_dh, g_keep1, _ = linear_attention_bwd(-g_h, None, r_attention1)  # h' = h - attention
g_x_query = eta.W1 * g_q1[..., :D]
g_memory = Memory(g_h, g_k1[..., :D], g_dh, g_k2[..., :F], g_dz, g_v3[..., :D], g_v3[..., D:])

# %%
library = read_bwd(g_logits, None, read_res)  # g_memory, g_x, g_slow, g_eta, g_decay, g_state
print("gradients of the memory:", agree(g_memory, library[0]), "  of the queries:", agree(g_x_query, library[1]))
print("of the decay:", agree(-(g_keep1 + g_keep2 + g_keep3), library[4]))
g_eta_W1, g_eta_b1 = (g_q1[..., :D] * x).sum(), g_q1[..., D:].sum()
print("of two step sizes:", agree((g_eta_W1, g_eta_b1), library[3][:2]))
by_memory = adjoint_by_differences(lambda m: read_fwd(m, x, slow, eta, decay, None, settings)[0][0], (memory,), g_logits)
print("all of the memory by differences:", agree((g_memory,), by_memory, rtol=1e-7))

# %% [markdown]
# Who reads a token? Everybody after it. So the gradient of what token $s$ wrote is a sum over all later tokens, and the last token's is
# zero to the last bit: nobody reads it.

# %%
fig, ax = plt.subplots()
for part, name in ((g_memory.dh, "$g_{dh}$"), (g_memory.dz, "$g_{dz}$"), (g_memory.dbias, "$g_{dbias}$")):
    size = np.linalg.norm(part[0], axis=-1)
    ax.plot(size / size.max(), label=name)
ax.set(xlabel="token $s$ that wrote", ylabel="gradient (largest = 1)", title="What is written last is read by nobody")
ax.legend()
plt.show()

# %%
values = (g_memory.dh, g_memory.dz, g_memory.dgain, g_memory.dbias)
assert all(np.all(part[0, -1] == 0) for part in values) and all(np.any(part[0, 0] != 0) for part in values)
assert agree(g_memory, library[0]) and agree((g_memory,), by_memory, rtol=1e-7)

# %% [markdown]
# ## Backward of the write: sweeps 5 and 6
#
# Four of the seven gradients belong to numbers that are themselves gradients: $dh, dz, d\mathrm{gain}, d\mathrm{bias}$. Reverse the write,
# last line first. Sweep 2 went down, so its reversal goes *up*: sweep 5. Then the lines of sweep 1: down again, sweep 6.
#
# A line of sweep 2 has two kinds of inputs: the `d` variable before it, and values of sweep 1. Its `_bwd_bwd` returns both. The first
# moves on in sweep 5. The second is a parcel, left at its height for sweep 6 to pick up. It has the number 5, for sweep 6 finds a gradient
# of the same quantity, and they add. (In the picture the parcels of the weights, $g_{W_2}^5$ and $g_U^5$, are left out; boxes are the
# gradients of the memory.)
#
# | line of sweep 2 | reversed by | moves on | parcel for sweep 6 |
# |---|---|---|---|
# | $dh = 2\,\mathrm{relu}(h) \odot da$ | squared ReLU, notebook 1 | $g_{da}$ | $g_h^5$ |
# | $da = dz\, W_2^T$ | dense, notebook 1 | $g_{dz}$ (+ the memory's own) | $g_{W_2}^5$ |
# | $dz, d\mathrm{gain}, d\mathrm{bias} = \mathrm{LN}^T(dn)$ | LayerNorm, notebook 2 | $g_{dn}$ | $g_z^5, g_{\mathrm{gain}}^5$ |
# | $dn = d\mathrm{logits}\, U^T$ | dense | $g_{d\mathrm{logits}}$ | $g_U^5$ |
# | $d\mathrm{logits} = \frac{w}{N}(p - e)$ | cross-entropy, below | | $g_{\mathrm{logits}}$ |
#
# The last line was an exercise of notebook 3. Here it is, with $d\ell$ for $w / N$ and $\sigma$ for the logits of one token. The label's
# $e$ is fixed, and notebook 3 has the differential of the softmax,
# $\delta p = p \odot \delta\sigma - p\, \langle p, \delta\sigma \rangle$. So
#
# $$ \delta d\sigma = \delta d\ell\,(p - e) + d\ell \left( p \odot \delta\sigma - p\, \langle p, \delta\sigma \rangle \right) . $$
#
# The inner product with $g$, the gradient that comes in, has what stands beside $\delta d\ell$ and beside $\delta\sigma$. The softmax's
# Jacobian is symmetric, so it moves over to $g$ as it is:
#
# $$ g_{d\ell} = \langle p - e, g \rangle , \qquad g_{\sigma} = d\ell \left( p \odot g - p\, \langle p, g \rangle \right) . \tag{C.3} $$

# %%
SVG(files("fwl_ref").joinpath("figures/parcels.svg").read_text(encoding="utf-8"))

# %%
# sweep 5, up
g_da, g_h5 = squared_relu_bwd_bwd(g_memory.dh, da, r_act)  # dh = 2 relu(h) da
g_dz, _, g_W2_5, _ = dense_bwd_bwd(g_da, None, None, dz, r_dense2)  # da = dz W2^T
g_dz = g_dz + g_memory.dz  # dz is also a value in the memory
g_dn, g_z5, g_gain5, _ = layernorm_bwd_bwd(g_dz, g_memory.dgain, g_memory.dbias, dn, r_norm)  # dz, dgain, dbias = LN^T(dn)
g_dlogits, _, g_U5, _ = dense_bwd_bwd(g_dn, None, None, dlogits, r_unembed)  # dn = dlogits U^T
_, g_logits1 = cross_entropy_bwd_bwd(g_dlogits, weights, r_loss)  # dlogits = w (p - e)

# %%
# sweep 6, down
g_n, g_U6, g_c6 = dense_bwd(g_logits1, r_unembed)  # logits = n U + c
g_z6, g_gain6, g_bias6 = layernorm_bwd(g_n, r_norm)  # n = LN(z; gain, bias)
g_a6, g_W2_6, g_b2_6 = dense_bwd(g_z6 + g_z5, r_dense2)  # z = a W2 + b2
g_h6 = squared_relu_bwd(g_a6 + g_memory.a, r_act)  # a = relu(h)^2
g_x6, g_W1_6, g_b1_6 = dense_bwd(g_h6 + g_h5 + g_memory.h, r_dense1)  # h = x W1 + b1
g_x = g_x6 + g_memory.x
norm_gradients = ((g_gain6 + g_gain5).sum(axis=(0, 1)), g_bias6.sum(axis=(0, 1)))  # one gain for all tokens: sum
g_slow = SlowParameters(g_W1_6, g_b1_6, g_W2_6 + g_W2_5, g_b2_6, *norm_gradients, g_U6 + g_U5, g_c6)
print("sweeps 5 and 6 equal the library's:", agree((g_x, g_slow), write_bwd(g_memory, write_res)))

# %% [markdown]
# And the witness that knows neither sweep 5 nor sweep 6: move every entry of $x$ and of the eight slow parameters, run the write, look at
# the memory.


# %%
def write_only(x, slow):
    return write_fwd(x, labels, weights, slow, settings)[0][0]


differences = adjoint_by_differences(write_only, (x, slow), g_memory)
print("agree with differences of the write:", agree((g_x, g_slow), differences, rtol=1e-7))
assert agree((g_x, g_slow), write_bwd(g_memory, write_res)) and agree((g_x, g_slow), differences, rtol=1e-7)

# %% [markdown]
# ## All six, and what the second order is worth
#
# `fast_block_bwd` is sweeps 4, 5 and 6. Features and slow parameters enter twice, through the write and through the read, so their two
# gradients add. One law for the whole block, with respect to features, slow parameters, step sizes and decay:


# %%
def six_sweeps(x, slow, eta, decay):
    (logits, _, _), res = fast_block_fwd(x, labels, weights, slow, eta, decay, settings)
    return logits, res


def sweeps_4_5_6(g_logits, res):
    return fast_block_bwd(g_logits, None, res)[:4]  # g_x, g_slow, g_eta, g_decay


report = check_adjoint(six_sweeps, sweeps_4_5_6, (x, slow, eta, decay))
print(f"the law holds for all {report.checked} arrays:", report.error < 1e-8)

# %% [markdown]
# One may be tempted to skip sweep 5: treat the values in the memory as constants (`first_order`). The gradient is then wrong by an amount
# that grows like the step size, because everything that the outer loss knows about the memory's values went through the read, and there
# every value is multiplied by a step size. At $\eta = 0$ nothing is lost; there is nothing to learn about learning either.


# %%
def gradient_of_x(factor, first_order):
    scaled = FastParameters(*(factor * e for e in eta))
    _, res = fast_block_fwd(x, labels, weights, slow, scaled, decay, settings._replace(first_order=first_order))
    return fast_block_bwd(g_logits, None, res)[0]


factors = 10.0 ** np.arange(-4, 0.5, 0.5)
lost = []
for factor in factors:
    full, first = (gradient_of_x(factor, order) for order in (False, True))
    lost.append(np.linalg.norm(full - first) / np.linalg.norm(full))

# %%
fig, ax = plt.subplots()
ax.plot(factors, lost, label="measured")
ax.plot(factors, lost[0] * factors / factors[0], color="black", marker="", linestyle="--", label="slope 1")
ax.set(xscale="log", yscale="log", xlabel="step sizes (1 = those above)", ylabel=r"error of $g_x$ (relative)")
ax.set_title("Without sweep 5 the gradient is wrong in proportion to $\\eta$")
ax.legend()
plt.show()

# %%
slope = np.log(lost[2] / lost[0]) / np.log(factors[2] / factors[0])
print(
    "slope for small step sizes:",
    round(slope, 2),
    "  at step size 0 nothing is lost:",
    agree(gradient_of_x(0, False), gradient_of_x(0, True)),
)
assert report.error < 1e-8 and 0.9 < slope < 1.1 and agree(gradient_of_x(0, False), gradient_of_x(0, True))

# %% [markdown]
# The library's sweeps 5 and 6, live: the two cells above, with the comments that say which line each one reverses.

# %%
print(inspect.getsource(sweep5), inspect.getsource(write_bwd), sep="\n\n")

# %% [markdown]
# ## Exercise 1: predict the shapes
#
# 2 sequences of 10 tokens, $D = 8$, $F = 32$. What are the shapes of $g_{dh}$ (sweep 4), of the gradient of the step size
# $\eta_{W_1}$, and of the entry $W_1$ of the state that is left?

# %% tags=["exercise"]
shape_of_g_dh = None
shape_of_g_eta_W1 = None
shape_of_state_W1 = None

# %%
ten = np.ones((2, 10, 8)), np.zeros((2, 10), dtype=int), np.ones((2, 10))
(_, _, left), ten_res = fast_block_fwd(*ten, SlowParameters(*wide), eta, decay, settings)
ten_back = read_bwd(np.ones((2, 10, 4)), None, ten_res.read)
check("shape_of_g_dh", shape_of_g_dh, ten_back[0].dh.shape)
check("shape_of_g_eta_W1", shape_of_g_eta_W1, ten_back[3].W1.shape)
check("shape_of_state_W1", shape_of_state_W1, left.W1.shape)

# %% [markdown]
# ## Exercise 2: find the wrong sign
#
# A piece of sweep 4, for the gain alone: $\mathrm{gain}' = \mathrm{gain} - \eta\,\mathrm{sums}$, where the gain is shared by all tokens and
# $\eta$ is a number. The function returns the gradients of the gain, of $\eta$ and of the sums. One sign is wrong. Find it, mend it.


# %% tags=["exercise"]
def gain_step_bwd(g_gain_fast, eta, sums):
    """g_gain_fast, sums (T,D), eta a number -> g_gain (D), g_eta (), g_sums (T,D)"""
    g_gain = g_gain_fast.sum(axis=0)
    g_eta = (g_gain_fast * sums).sum()
    g_sums = -eta * g_gain_fast
    return g_gain, g_eta, g_sums


# %%
def gain_step(gain, eta, sums):
    return gain - eta * sums


def by_moving(g_gain_fast, eta, sums):
    return adjoint_by_differences(gain_step, (np.ones(3), np.asarray(eta), sums), g_gain_fast)


case = (rng.standard_normal((4, 3)), 0.3, rng.standard_normal((4, 3)))
hints_of_gain_step_bwd = {"what happens to gain' if eta grows and the sums are positive?": "g_eta"}
check("gain_step_bwd", gain_step_bwd, by_moving, [case], hints_of_gain_step_bwd, returns=("g_gain", "g_eta", "g_sums"))

# %% [markdown]
# ## Exercise 3: the second-order backward pass of a fast weight layer
#
# This is what the five notebooks were for. Write sweep 5 in plain NumPy, without the library and without scrolling up. Derive each line
# with the three moves. One sequence, no batch axis; all of it is products of small matrices.
#
# You are given `g`, the gradients of the memory (`g.dh`, `g.dz`, `g.dgain`, `g.dbias`; leave the others to sweep 6), and the values of
# sweeps 1 and 2 below. Sweep 2, which you reverse:
#
#     dlogits = scale (p - e)       dn = dlogits U^T       dgain = dn zhat       dbias = dn
#     dz = L(dn gain)               da = dz W2^T           dh = 2 relu(h) da
#
# with $L(v) = \rho\,(v - \mathrm{mean}\,v - \hat z\,\mathrm{mean}(\hat z \odot v))$ per token. Fill in line by line: the check names the
# first result that is missing or wrong.


# %%
class Values(NamedTuple):
    """What sweeps 1 and 2 computed."""

    h: np.ndarray  # (T,F)
    zhat: np.ndarray  # (T,D) z normalised: before gain and bias
    rho: np.ndarray  # (T,1) one over the standard deviation of z
    p: np.ndarray  # (T,V) softmax of the logits
    scale: np.ndarray  # (T,1) w / N
    dlogits: np.ndarray  # (T,V)
    dn: np.ndarray  # (T,D)
    dz: np.ndarray  # (T,D)
    da: np.ndarray  # (T,F)


# %%
class Sweep5(NamedTuple):
    """What sweep 5 finds, in its own order."""

    g_da: np.ndarray = None  # (T,F)  moves on
    g_h5: np.ndarray = None  # (T,F)   parcel: h in 2 relu(h) da
    g_dz: np.ndarray = None  # (T,D)  moves on
    g_W2_5: np.ndarray = None  # (F,D)  parcel
    g_dn: np.ndarray = None  # (T,D)  moves on
    g_z5: np.ndarray = None  # (T,D)   parcel: z in rho, in zhat
    g_gain5: np.ndarray = None  # (T,D) parcel, per token
    g_dlogits: np.ndarray = None  # (T,V) moves on
    g_U5: np.ndarray = None  # (D,V)   parcel
    g_logits: np.ndarray = None  # (T,V)  here sweep 5 turns around


# %% tags=["exercise"]
def sweep_5(g, v, W2, gain, U):
    """g: Memory of gradients, v: Values; W2 (F,D), gain (D), U (D,V). Returns Sweep5."""
    g_da = g_h5 = None  # from  dh = 2 relu(h) da
    g_dz = g_W2_5 = None  # from  da = dz W2^T
    g_dn = g_z5 = g_gain5 = None  # from  dz, dgain, dbias
    g_dlogits = g_U5 = None  # from  dn = dlogits U^T
    g_logits = None  # from  dlogits = scale (p - e)
    return Sweep5(g_da, g_h5, g_dz, g_W2_5, g_dn, g_z5, g_gain5, g_dlogits, g_U5, g_logits)


# %%
def by_the_library(g, v, W2, gain, U):
    g, r = Memory(*(part[None] for part in g)), write_res
    g_da, g_h5 = squared_relu_bwd_bwd(g.dh, r.da, r.act)
    g_dz, _, g_W2_5, _ = dense_bwd_bwd(g_da, None, None, r.dz, r.dense2)
    g_dn, g_z5, g_gain5, _ = layernorm_bwd_bwd(g_dz + g.dz, g.dgain, g.dbias, r.dn, r.norm)
    g_dlogits, _, g_U5, _ = dense_bwd_bwd(g_dn, None, None, r.dlogits, r.unembed)
    _, g_logits = cross_entropy_bwd_bwd(g_dlogits, r.dnll, r.loss)
    return Sweep5(g_da[0], g_h5[0], (g_dz + g.dz)[0], g_W2_5, g_dn[0], g_z5[0], g_gain5[0], g_dlogits[0], g_U5, g_logits[0])


# %%
def forgetting(part):
    return lambda g, *rest: by_the_library(g._replace(**{part: 0 * getattr(g, part)}), *rest)


def with_a_wrong_L(L):
    def version(g, v, W2, gain, U):
        g_dz = by_the_library(g, v, W2, gain, U).g_dz
        return Sweep5(g_dn=v.rho * L(g_dz, v.zhat) * gain + g.dgain * v.zhat + g.dbias)

    return version


r = write_res
given = Memory(*(part[0] for part in g_memory))
known = Values(h[0], r.norm.n[0], r.norm.rstd[0], r.loss.p[0], r.dnll[0][:, None], r.dlogits[0], r.dn[0], r.dz[0], r.da[0])

# %%
hints_of_sweep_5 = {
    "dh is a product of relu(h) and da: when h moves, da stays": lambda g, v, *_: Sweep5(g_h5=2.0 * (v.h > 0) * g.dh),
    "2 relu(h) is the slope; what is its own slope?": lambda g, v, *_: Sweep5(g_h5=2 * np.maximum(v.h, 0) * v.da * g.dh),
    "dz is a value in the memory and the input of da: two gradients meet": forgetting("dz"),
    "L has a third term: the part along zhat": with_a_wrong_L(lambda u, n: u - u.mean(axis=-1, keepdims=True)),
    "L has a second term: the mean": with_a_wrong_L(lambda u, n: u - n * (n * u).mean(axis=-1, keepdims=True)),
    "dn occurs in dz, in dgain and in dbias: three terms (dgain is missing)": lambda *a: Sweep5(g_dn=forgetting("dgain")(*a).g_dn),
    "dn occurs in dz, in dgain and in dbias: three terms (dbias is missing)": lambda *a: Sweep5(g_dn=forgetting("dbias")(*a).g_dn),
}

# %%
second_half = {
    "dgain = dn zhat, and zhat moves with z": lambda *a: Sweep5(g_z5=forgetting("dgain")(*a).g_z5),
    "z sits in four places: in rho, beside u, beside v, in dgain (notebook 2)": "g_z5",
    "L(g_dz) meets the factor that the gain has in dz = L(dn gain)": "g_gain5",
    "p has a second part: all logits share one sum": lambda g, v, *rest: Sweep5(
        g_logits=v.scale * v.p * by_the_library(g, v, *rest).g_dlogits
    ),
    "scale multiplies all of dlogits": lambda g, v, *rest: Sweep5(g_logits=by_the_library(g, v, *rest).g_logits / v.scale),
}
check("sweep_5", sweep_5, by_the_library, [(given, known, slow.W2, slow.gain, slow.U)], hints_of_sweep_5 | second_half)

# %% [markdown]
# Done? Then put it to work. Below, sweep 6 collects *your* parcels, and the result is compared with finite differences of the write, which
# know nothing of the library's derivation either. `correct` here means: you have derived and coded the second-order backward pass of a
# fast weight layer, and it is right.


# %%
def your_write_bwd(g, x, slow):
    found = sweep_5(Memory(*(part[0] for part in g)), known, slow.W2, slow.gain, slow.U)
    if found is None or any(part is None for part in found):
        return None
    s = Sweep5(*(np.asarray(part)[None] for part in found))
    g_n, g_U, g_c = dense_bwd(s.g_logits, write_res.unembed)
    g_z, g_gain, g_bias = layernorm_bwd(g_n, write_res.norm)
    g_a, g_W2, g_b2 = dense_bwd(g_z + s.g_z5, write_res.dense2)
    g_h = squared_relu_bwd(g_a + g.a, write_res.act) + s.g_h5 + g.h
    g_x, g_W1, g_b1 = dense_bwd(g_h, write_res.dense1)
    norm = ((g_gain + s.g_gain5).sum(axis=(0, 1)), g_bias.sum(axis=(0, 1)))
    return g_x + g.x, SlowParameters(g_W1, g_b1, g_W2 + s.g_W2_5[0], g_b2, *norm, g_U + s.g_U5[0], g_c)


# %%
check(
    "the whole backward pass of the write, with your sweep 5",
    your_write_bwd,
    lambda g, x, slow: adjoint_by_differences(write_only, (x, slow), g),
    cases=[(g_memory, x, slow)],
    returns=("g_x", "g_slow"),
)

# %% [markdown]
# **Next:** [6. When is it dynamic evaluation, exactly?](06_when_is_it_dynamic_evaluation.ipynb) And what does it miss when it is not?
