# %% [markdown]
# # 4. A gradient step is linear attention
#
# **Question.** A layer that is trained while it reads has other weights at every token. Must one store a weight matrix per token?
#
# **Answer to look forward to.** No. The weight gradient of a dense layer is an outer product, input times output gradient, so applying
# the trained layer to a new input is an inner product with every earlier input: a score. A gradient step *is* linear attention: query
# and key are inputs, the value is a gradient.

# %%
import inspect

import matplotlib.pyplot as plt
import numpy as np

from fwl_ref.exercises import adjoint_by_differences, agree, check
from fwl_ref.ops.linear_attention import (
    linear_attention_bwd,
    linear_attention_chunked_bwd,
    linear_attention_chunked_fwd,
    linear_attention_fwd,
    linear_attention_recurrent_bwd,
    linear_attention_recurrent_fwd,
)

# %%
plt.style.use("fwl_ref.figures.lecture")
rng = np.random.default_rng(3)

# %% [markdown]
# ## One dense layer, trained as it reads
#
# A layer $y = xW$ reads tokens $t = 0, 1, \dots$ After token $s$ its label is revealed, and with it the gradient $d_s$ of the loss with
# respect to $y_s$. From [notebook 1](01_a_backward_pass_is_a_function.ipynb): the weight gradient of that one token is $x_s^T d_s$. All
# gradients here are taken at $W$, the weights that training left behind. Reading does not change them, so they are called the *slow*
# weights. The *fast* weights are what token $t$ uses:
#
# $$ W_t = W - \eta \sum_{s<t} x_s^T d_s . $$
#
# Written as it is said, with weights that really move. Predict first, then learn:

# %%
T, D, F, eta = 10, 4, 3, 0.1
x, W, d = rng.standard_normal((T, D)), rng.standard_normal((D, F)), rng.standard_normal((T, F))

moving, rows = W.copy(), []
for t in range(T):
    rows.append(x[t] @ moving)  # predict with what was learned before
    moving = moving - eta * np.outer(x[t], d[t])  # then learn from this token
literal = np.array(rows)  # (T,F)

# %% [markdown]
# Now on paper. Insert $W_t$ and move the bracket, because $x_t (x_s^T d_s) = (x_t x_s^T)\, d_s$ and $x_t x_s^T = x_t \cdot x_s$ is a
# number:
#
# $$ x_t W_t = x_t W - \eta \sum_{s<t} x_t\,(x_s^T d_s) = x_t W -
#    \eta \sum_{s<t} \underbrace{(x_t \cdot x_s)}_{\text{score}} \underbrace{d_s}_{\text{value}} $$
#
# No weight matrix is left in the sum. In matrices, $Y = XW - \eta\,(X X^T \odot M)\, d$ with the mask $M_{ts} = 1$ for $s < t$, else 0.

# %%
scores = x @ x.T  # (T,T) x_t . x_s
mask = np.tri(T, k=-1)  # (T,T) 1 for s < t: strict
masked = scores * mask  # (T,T)
read = masked @ d  # (T,F)
attention = x @ W - eta * read  # (T,F)
print("weights that move = linear attention:", agree(attention, literal))

one = np.asarray(1.0)  # keep: what one token leaves of the memory. 1 = everything, until further down
(out, state), _ = linear_attention_fwd(eta * x[None], x[None], d[None], one)  # q, k, v with a batch axis
print("the library's op:", agree(x @ W - out[0], literal))
print("and the state it leaves is the sum of all weight gradients:", agree(state[0], x.T @ d))

# %%
fig, ax = plt.subplots(figsize=(5.8, 4.8))
limit = np.abs(masked).max()
image = ax.imshow(masked, cmap="PuOr", vmin=-limit, vmax=limit)
ax.set(xlabel="token $s$ that was learned", ylabel="token $t$ that reads", title="Scores $x_t \\cdot x_s$, strictly causal")
fig.colorbar(image)
plt.show()

# %% [markdown]
# The diagonal is empty, and it must be: $d_t$ contains the label of token $t$, the very thing that is being predicted. Change $d_t$ and
# ask who notices. With a strict mask only later tokens do, to the last bit. With a mask that includes the diagonal, token $t$ sees its
# own label.

# %%
changed = d.copy()
changed[5] += 100.0
after = x @ W - eta * (masked @ changed)
inclusive = [x @ W - eta * ((scores * np.tri(T)) @ values) for values in (d, changed)]
print("tokens that notice, strict mask:   ", np.flatnonzero(np.any(after != attention, axis=1)))
print("tokens that notice, inclusive mask:", np.flatnonzero(np.any(inclusive[0] != inclusive[1], axis=1)))
assert agree(attention, literal) and np.array_equal(after[:6], attention[:6])
assert not np.array_equal(inclusive[0][5], inclusive[1][5])

# %% [markdown]
# ## A bias is a weight whose input is 1
#
# A dense layer has a bias too, with its own step size: $b_t = b - \eta_b \sum_{s<t} d_s$. Its sum has no score. Or does it? Append a
# channel that is always 1 to the keys, and the bias's step size to the queries:
#
# $$ \eta_W\, x_t \cdot x_s + \eta_b = [\,\eta_W x_t,\; \eta_b\,] \cdot [\,x_s,\; 1\,] . $$
#
# One attention serves weight and bias. Step sizes sit in the queries, so what is stored is a pure sum of gradients.

# %%
b, eta_W, eta_b = rng.standard_normal(F), 0.1, 0.3
rows, moving_W, moving_b = [], W.copy(), b.copy()
for t in range(T):
    rows.append(x[t] @ moving_W + moving_b)
    moving_W = moving_W - eta_W * np.outer(x[t], d[t])
    moving_b = moving_b - eta_b * d[t]

ones = np.ones((T, 1))
q = np.concatenate([eta_W * x, eta_b * ones], axis=1)  # (T,D+1)
k = np.concatenate([x, ones], axis=1)  # (T,D+1)
(out, state), _ = linear_attention_fwd(q[None], k[None], d[None], one)

# %% [markdown]
# The state has one row per key channel. Its last row belongs to the constant 1: the sum of the bias's gradients.

# %%
fig, ax = plt.subplots(figsize=(7, 4.4))
limit = np.abs(state).max()
image = ax.imshow(state[0], cmap="PuOr", vmin=-limit, vmax=limit, aspect="auto")
ax.axhline(D - 0.5, color="black", linewidth=3, marker="")
ax.set_yticks(range(D + 1), [f"weight, input {i}" for i in range(D)] + ["bias"])
ax.set_xticks(range(F))
ax.set(xlabel="output channel", title="The state after ten tokens")
ax.set_ylabel("key channel")
fig.colorbar(image)
plt.show()

# %%
print("weight and bias by one attention:", agree(x @ W + b - out[0], np.array(rows)))
print("last row = sum of the bias's gradients:", agree(state[0, -1], d.sum(axis=0)))
assert agree(x @ W + b - out[0], np.array(rows)) and agree(state[0, -1], d.sum(axis=0))

# %% [markdown]
# ## Decay: old updates fade
#
# Dynamic evaluation pulls the weights back to where they started, at a rate $\lambda$. Let $\Delta_t = W_t - W$:
#
# $$ \Delta_{t+1} = \Delta_t - \eta\, g_t - \lambda \Delta_t = (1-\lambda)\,\Delta_t - \eta\, g_t, \qquad \Delta_0 = 0 . $$
#
# Unroll: $\Delta_1 = -\eta g_0$, $\Delta_2 = -\eta\,((1-\lambda) g_0 + g_1)$, and so on. That is the same attention with another mask,
#
# $$ M_{ts} = (1-\lambda)^{t-s-1} \quad (s < t) . $$
#
# The exponent is $t-s-1$ and not $t-s$: the newest gradient has not yet faded when it is first read. In the library `keep` is $1-\lambda$.

# %%
lam = 0.2
rows, moving = [], W.copy()
for t in range(T):
    rows.append(x[t] @ moving)
    moving = moving - eta * np.outer(x[t], d[t]) + lam * (W - moving)

age = np.arange(T)[:, None] - np.arange(T)[None, :] - 1  # (T,T) t - s - 1
faded = np.where(age >= 0, (1 - lam) ** np.maximum(age, 0), 0.0)  # (T,T)
by_mask = x @ W - eta * ((x @ x.T) * faded) @ d
(out, _), _ = linear_attention_fwd(eta * x[None], x[None], d[None], np.asarray(1 - lam))
print("weights that are pulled back = decayed attention:", agree(by_mask, np.array(rows)))
print("the library's op:", agree(x @ W - out[0], np.array(rows)))

# %%
fig, ax = plt.subplots()
for rate in (0.0, 0.05, 0.2, 0.5):
    ax.plot(np.arange(1, 16), (1 - rate) ** np.arange(15), label=rf"$\lambda = {rate}$")
ax.set(xlabel="how many tokens ago it was written, $t - s$", ylabel="what is left of it", ylim=(0, 1.08))
ax.set_title("The newest update is read in full")
ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
plt.show()

# %%
assert agree(by_mask, np.array(rows)) and agree(x @ W - out[0], np.array(rows))
assert np.all(np.diag(faded, -1) == 1) and np.all(np.triu(faded) == 0)

# %% [markdown]
# ## Three forms of one sum
#
# | form | how | work per token |
# |---|---|---|
# | recurrent | carry $S_{t+1} = \kappa S_t + k_t^T v_t$, read $q_t S_t$ | $2KE$, one token at a time |
# | parallel | the masked product of all pairs | $T(K+E)$, one matrix product |
# | chunked | pairs inside a chunk of $c$ tokens, the state between chunks | $c\,(K+E) + 2KE$ |
#
# The recurrent form is the definition (and the layer that really learns). The parallel one is what we derived. The chunked one is what
# one runs: linear in $T$, and made of matrix products. In the picture, a read of $t$ from $s$ goes the direct way inside its chunk, and
# through the carried state from earlier chunks.

# %%
T, K, E, chunk = 16, 4, 3, 4
t, s = np.arange(T)[:, None], np.arange(T)[None, :]
way = np.where(s >= t, 0, np.where(t // chunk == s // chunk, 2, 1))  # 0 nothing, 1 through the state, 2 inside the chunk
fig, ax = plt.subplots(figsize=(6.4, 5))
image = ax.imshow(way, cmap=plt.get_cmap("cividis", 3), vmin=-0.5, vmax=2.5)
colorbar = fig.colorbar(image, ticks=[0, 1, 2])
colorbar.ax.set_yticklabels(["never", "by the state", "directly"])
ax.set(xlabel="written by $s$", ylabel="read by $t$", title=f"Chunks of {chunk} tokens", xticks=range(0, T, chunk))
plt.show()

# %%
q, k, v = (rng.standard_normal((2, T, width)) for width in (K, K, E))
keep, start = np.asarray(0.9), rng.standard_normal((2, K, E))
(parallel, end), _ = linear_attention_fwd(q, k, v, keep, start)
(recurrent, end_recurrent), _ = linear_attention_recurrent_fwd(q, k, v, keep, start)
print("parallel = recurrent:", agree((parallel, end), (recurrent, end_recurrent)))
for chunk in (1, 4, 5, 16, 100):
    (chunked, end_chunked), _ = linear_attention_chunked_fwd(q, k, v, keep, start, chunk)
    print(f"parallel = chunks of {chunk}:", agree((parallel, end), (chunked, end_chunked)))
    assert agree((parallel, end), (chunked, end_chunked))
assert agree((parallel, end), (recurrent, end_recurrent))

# %% [markdown]
# The library's forward passes, live. The chunked form is a loop around the parallel one, which takes a state and leaves a state.

# %%
print(inspect.getsource(linear_attention_fwd))
print(inspect.getsource(linear_attention_chunked_fwd))

# %% [markdown]
# ## Its backward pass is three more of them
#
# With $A = QK^T \odot M$ and $O = AV$, reverse the two products. The mask is multiplied entry by entry, so it moves to the other side as
# it is:
#
# $$ dV = A^T dO, \qquad dA = (dO\,V^T) \odot M, \qquad dQ = dA\, K, \qquad dK = dA^T Q . $$
#
# Read them as sums. All three are linear attentions with the roles exchanged; the first reads the past, the other two the *future*:
#
# $$ dq_t = \sum_{s<t} M_{ts}\,(do_t \cdot v_s)\,k_s \qquad dk_s = \sum_{t>s} M_{ts}\,(v_s \cdot do_t)\,q_t \qquad
#    dv_s = \sum_{t>s} M_{ts}\,(k_s \cdot q_t)\,do_t $$

# %%
do = rng.standard_normal((2, T, E))
age = t - s - 1  # (T,T)
M = np.where(age >= 0, keep ** np.maximum(age, 0), 0.0)  # (T,T)
A = np.matmul(q, np.matrix_transpose(k)) * M  # (2,T,T)  forward: A = q k^T * M

dv = np.matmul(np.matrix_transpose(A), do)  # (2,T,E)  from  o = A v
dA = np.matmul(do, np.matrix_transpose(v))  # (2,T,T)  from  o = A v
dA = dA * M  # from  A = q k^T * M
dq = np.matmul(dA, k)  # (2,T,K)  from  q k^T
dk = np.matmul(np.matrix_transpose(dA), q)  # (2,T,K)  from  q k^T

_, res = linear_attention_fwd(q, k, v, keep)
print("dq, dk, dv equal the library's:", agree((dq, dk, dv), linear_attention_bwd(do, None, res)[:3]))

# %% [markdown]
# Put a gradient on one output, token 9, and look where it arrives. The query is a matter of token 9 alone; keys and values were written
# before it. Token 9's own key and value get nothing: it did not read them.

# %%
alone = np.where(np.arange(T)[None, :, None] == 9, do, 0.0)
arrives = np.array([np.abs(g).sum(axis=(0, 2)) > 0 for g in linear_attention_bwd(alone, None, res)[:3]])
fig, ax = plt.subplots(figsize=(9, 3))
ax.imshow(arrives, cmap="cividis", aspect="auto")
ax.set_yticks(range(3), ["$dq$", "$dk$", "$dv$"], size=18)
ax.set(xlabel="token", title="A gradient at output 9 arrives here (yellow)")
ax.set_ylabel("gradient of")
plt.show()

# %% [markdown]
# Three witnesses: finite differences; the chunked backward pass, which carries the state's gradient from chunk to chunk; and
# backpropagation through time of the recurrent form, which has no mask at all.

# %%
inputs, dend = (q, k, v, keep, start), rng.standard_normal((2, K, E))
gradients = linear_attention_bwd(do, dend, linear_attention_fwd(*inputs)[1])  # dq, dk, dv, dkeep, dstate
chunked = linear_attention_chunked_bwd(do, dend, linear_attention_chunked_fwd(*inputs, 5)[1])
through_time = linear_attention_recurrent_bwd(do, dend, linear_attention_recurrent_fwd(*inputs)[1])
differences = adjoint_by_differences(lambda *a: linear_attention_fwd(*a)[0], inputs, (do, dend))
for name, witness, rtol in (("chunks", chunked, 1e-10), ("through time", through_time, 1e-10), ("differences", differences, 1e-8)):
    print(f"{name}:", agree(gradients, witness, rtol))
    assert agree(gradients, witness, rtol)
assert arrives.tolist() == [[i == 9 for i in range(T)], [i < 9 for i in range(T)], [i < 9 for i in range(T)]]

# %% [markdown]
# The library's backward pass, live. Beside the three sums it differentiates the incoming state, the outgoing one, and `keep`.

# %%
print(inspect.getsource(linear_attention_bwd))

# %% [markdown]
# ## Exercise 1: the mask
#
# Return the decayed strict mask (T,T), $M_{ts} = \kappa^{t-s-1}$ for $s < t$ and 0 otherwise.


# %% tags=["exercise"]
def decayed_mask(T, keep):
    return None


# %%
def mask_of_the_library(T, keep):  # queries and keys 1, values the identity: what is read is the mask
    ones = np.ones((1, T, 1))
    return linear_attention_fwd(ones, ones, np.eye(T)[None], np.asarray(keep))[0][0][0]


# %%
hints_of_decayed_mask = {
    "the newest gradient has not faded yet: what is the exponent for s = t - 1?": lambda T, keep: keep * mask_of_the_library(T, keep),
    "reading is strict: look at the diagonal": lambda T, keep: mask_of_the_library(T, keep) + np.eye(T),
    "may token t read its own value?": lambda T, keep: keep * mask_of_the_library(T, keep) + np.eye(T),
    "rows read, columns were written": lambda T, keep: mask_of_the_library(T, keep).T,
    "the diagonal is 0: np.tril and np.tri have an argument k": lambda T, keep: mask_of_the_library(T, keep) + np.eye(T) / keep,
    "which of the two is kept, and which is lost?": lambda T, keep: mask_of_the_library(T, 1 - keep),
    "and the decay?": lambda T, keep: mask_of_the_library(T, 1.0),
    "token t - 1 was written before t: it counts": lambda T, keep: np.pad(mask_of_the_library(T, keep), ((1, 0), (0, 0)))[:-1],
}
check("decayed_mask", decayed_mask, mask_of_the_library, cases=[(5, 0.7), (7, 0.9)], mistakes=hints_of_decayed_mask)

# %% [markdown]
# ## Exercise 2: the fast layer without a loop
#
# $y_t = x_t W_t$ with $W_t = W - \eta \sum_{s<t} x_s^T d_s$, in three lines and no loop. The check runs the loop.


# %% tags=["exercise"]
def fast_layer(x, W, d, eta):
    """(T,D),(D,F),(T,F),()->(T,F)"""
    return None


# %%
def learn_as_you_read(x, W, d, eta):
    rows = []
    for xt, dt in zip(x, d, strict=True):
        rows.append(xt @ W)
        W = W - eta * np.outer(xt, dt)
    return np.array(rows)


# %%
hints_of_fast_layer = {
    "a descent step has which sign?": lambda x, W, d, eta: learn_as_you_read(x, W, d, -eta),
    "token t would see its own label": lambda x, W, d, eta: learn_as_you_read(x, W, d, eta) - eta * (x * x).sum(axis=1)[:, None] * d,
    "tokens would see the future": lambda x, W, d, eta: x @ W - eta * (x @ x.T) @ d,
    "how large is the step?": lambda x, W, d, eta: learn_as_you_read(x, W, d, 1.0),
    "what did the slow weights give?": lambda x, W, d, eta: learn_as_you_read(x, 0 * W, d, eta),
    "rows read, columns were written": lambda x, W, d, eta: learn_as_you_read(x[::-1], W, d[::-1], eta)[::-1],
}
cases = [(x[:6], W, d[:6], 0.3), (x[:1], W, d[:1], 0.3)]
check("fast_layer", fast_layer, learn_as_you_read, cases, hints_of_fast_layer)

# %% [markdown]
# ## Exercise 3: predict the shape of the state
#
# A batch of 4 sequences of 100 tokens; a dense layer with bias from width 8 to width 32. Its weight *and* bias are fast, by one
# attention. What is the shape of the state after all tokens? After 200?

# %% tags=["exercise"]
state_after_100 = None
state_after_200 = None

# %%
for when, answer, length in (("state_after_100", state_after_100, 100), ("state_after_200", state_after_200, 200)):
    keys, values = (np.ones((4, length, len([*range(8), "and the constant"]))), np.ones((4, length, 32)))
    check(when, answer, linear_attention_fwd(keys, keys, values, one)[0][1].shape)

# %% [markdown]
# ## Exercise 4: the backward pass
#
# Undecayed ($M_{ts} = 1$ for $s < t$), one sequence. Write the adjoint of $o = (qk^T \odot M)\,v$ without looking up.


# %% tags=["exercise"]
def strict_attention_bwd(do, q, k, v):
    """(T,E),(T,K),(T,K),(T,E) -> dq, dk, dv"""
    return None


# %%
def adjoint(do, q, k, v):
    return tuple(g[0] for g in linear_attention_bwd(do[None], None, linear_attention_fwd(q[None], k[None], v[None], one)[1])[:3])


hints_of_strict_attention_bwd = {
    "the mask belongs to dA too": lambda do, q, k, v: (do @ v.T @ k, (do @ v.T).T @ q, None),
    "the mask is strict: nobody read its own value": lambda do, q, k, v: (adjoint(do, q, k, v)[0] + (do * v).sum(axis=1)[:, None] * k,) * 3,
    "dk_s sums over those who read s, the later tokens: a transpose": "dk",
    "dv_s sums over those who read s, the later tokens, with the masked scores": "dv",
}
one_sequence = tuple(rng.standard_normal((6, size)) for size in (E, K, K, E))  # do, q, k, v
check("strict_attention_bwd", strict_attention_bwd, adjoint, [one_sequence], hints_of_strict_attention_bwd, returns=("dq", "dk", "dv"))

# %% [markdown]
# **Next:** [5. Write and read](05_write_and_read.ipynb). So far $d$ fell from the sky. Now it is itself the result of a backward pass, and
# training has to go through that.
