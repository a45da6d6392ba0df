# %% [markdown]
# # 3. A transformer by hand
#
# **Question.** Can one differentiate a whole transformer on paper?
#
# **Answer to look forward to.** Yes, on one sheet. A dense layer and LayerNorm we have ([1](01_a_backward_pass_is_a_function.ipynb),
# [2](02_layernorm_twice.ipynb)). New are a softmax, a rotation and a plus sign. The softmax has a symmetric Jacobian, the adjoint of a
# rotation is the rotation back, and a plus sign copies the gradient.

# %%
import inspect

import matplotlib.pyplot as plt
import numpy as np

from fwl_ref.exercises import adjoint_by_differences, agree, check
from fwl_ref.gradcheck import check_adjoint
from fwl_ref.lm.stack import stack_bwd, stack_fwd
from fwl_ref.lm.transformer import EPS, LayerParameters, layer_bwd, layer_fwd
from fwl_ref.ops.attention import attention_bwd, attention_fwd
from fwl_ref.ops.cross_entropy import cross_entropy_bwd, cross_entropy_bwd_bwd, cross_entropy_fwd
from fwl_ref.ops.dense import dense_bwd, dense_fwd

# %%
from fwl_ref.ops.gelu import gelu_bwd, gelu_fwd
from fwl_ref.ops.layernorm import layernorm_bwd, layernorm_fwd
from fwl_ref.ops.rotary import rotary_bwd, rotary_fwd

plt.style.use("fwl_ref.figures.lecture")
rng = np.random.default_rng(2)

# %% [markdown]
# ## Softmax: a symmetric Jacobian again
#
# For one row of scores $\sigma$, $p = \mathrm{softmax}(\sigma)$. A probability is the exponential of its score minus the log-sum-exp,
# and the derivative of the log-sum-exp is $p$ itself:
#
# $$ p_v = \exp(\sigma_v - \mathrm{lse}), \qquad \delta\,\mathrm{lse} = \langle p, \delta\sigma \rangle, \qquad
#    \delta p_v = p_v \left( \delta\sigma_v - \langle p, \delta\sigma \rangle \right) . $$
#
# As a matrix: $\mathrm{diag}(p) - p^T p$. It is symmetric, so forward derivative and adjoint are the same map. It occurs twice in a
# transformer: in attention, and in the loss. The loss of one token with label $y$ (and $e$ the one-hot row of $y$) is
#
# $$ \ell = \mathrm{lse} - \sigma_y, \qquad \delta\ell = \langle p - e, \delta\sigma \rangle, \qquad d\sigma = d\ell\,(p - e) . $$

# %%
sigma, label = rng.standard_normal(6), np.asarray(4)
top = sigma.max()  # subtracted first, so that exp cannot overflow; it cancels
lse = top + np.log(np.exp(sigma - top).sum())
p = np.exp(sigma - lse)
loss = lse - sigma[label]
dsigma = 0.7 * (p - np.eye(6)[label])  # for dl = 0.7

loss_library, res = cross_entropy_fwd(sigma, label)
print("loss:", agree(loss, loss_library), "  dsigma:", agree(dsigma, cross_entropy_bwd(np.asarray(0.7), res)))

# %%
jacobian = np.diag(p) - np.outer(p, p)
fig, ax = plt.subplots(figsize=(5.6, 4.6))
limit = np.abs(jacobian).max()
image = ax.imshow(jacobian, cmap="PuOr", vmin=-limit, vmax=limit)
ax.set(xlabel="score that moves", ylabel="probability that follows", title="What one gains, the others lose")
fig.colorbar(image)
plt.show()

# %%
given = rng.standard_normal(6)
by_differences = adjoint_by_differences(lambda s: np.exp(s) / np.exp(s).sum(), (sigma,), given)[0]
print("the adjoint agrees with differences:", agree(p * (given - p @ given), by_differences, rtol=1e-8))
print("symmetric:", agree(jacobian, jacobian.T), "  rows sum to 0:", np.abs(jacobian.sum(axis=1)).max() < 1e-12)
assert agree(p * (given - p @ given), by_differences, rtol=1e-8) and agree(jacobian, jacobian.T)

# %% [markdown]
# ## Attention, one head
#
# Query $t$ sees the keys $s \le t$. One op a line, and then each line reversed. The softmax line uses its Jacobian from above. Its row
# sums need not be formed from $p$ and $dp$, because $\sum_s p_{ts}\,dp_{ts} = \sum_s p_{ts}\,(do_t \cdot v_s) = do_t \cdot o_t$.

# %%
T, K = 7, 4
q, k, v, do = (rng.standard_normal((T, K)) for _ in range(4))

raw = q @ k.T  # (T,T)
scores = raw / np.sqrt(K)  # (T,T)
seen = np.tri(T, dtype=bool)  # (T,T) s <= t
masked = np.where(seen, scores, -np.inf)  # (T,T)
lse = np.log(np.exp(masked).sum(axis=1, keepdims=True))  # (T,1)
p = np.exp(masked - lse)  # (T,T)
o = p @ v  # (T,K)

# %%
dv = p.T @ do  # from  o = p v
dp = do @ v.T  # from  o = p v
dscores = p * (dp - (do * o).sum(axis=1, keepdims=True))  # from  p = softmax(scores); 0 where masked, because p is
draw = dscores / np.sqrt(K)  # from  scores = raw / sqrt K
dq = draw @ k  # from  raw = q k^T
dk = draw.T @ q  # from  raw = q k^T

batch = [a[None, None] for a in (q, k, v)]  # the library has a batch axis and a head axis in front
o_library, res = attention_fwd(*batch)
print("o:", agree(o, o_library[0, 0]))
print("dq, dk, dv:", agree((dq, dk, dv), tuple(a[0, 0] for a in attention_bwd(do[None, None], res))))
differences = adjoint_by_differences(lambda *a: attention_fwd(*a)[0], tuple(batch), do[None, None])
print("by differences:", agree((dq, dk, dv), tuple(a[0, 0] for a in differences), rtol=1e-8))

# %% [markdown]
# The gradient of the scores, as a picture. Nothing above the diagonal: what was masked gets no gradient. And every row sums to 0, as the
# Jacobian's rows do: attention has a fixed budget.

# %%
fig, ax = plt.subplots(figsize=(5.8, 4.8))
limit = np.abs(dscores).max()
image = ax.imshow(dscores, cmap="PuOr", vmin=-limit, vmax=limit)
ax.set(xlabel="key $s$", ylabel="query $t$", title="Gradient of the scores")
fig.colorbar(image)
plt.show()

# %% [markdown]
# What must be remembered? Not the $T \times T$ matrix $p$: it is $\exp(\mathrm{scores} - \mathrm{lse})$, recomputed from one number per
# query. The library keeps $q, k, v, o$ and $\mathrm{lse}$.

# %%
kept = sum(a.size for a in res[:5])
print("numbers kept:", kept, "= 4 T K + T:", kept == 4 * T * K + T)
assert np.all(dscores[~seen] == 0) and np.abs(dscores.sum(axis=1)).max() < 1e-12
assert agree((dq, dk, dv), tuple(a[0, 0] for a in attention_bwd(do[None, None], res)))

# %% [markdown]
# ## Positions: a rotation and its adjoint
#
# Attention itself does not know where a token stands. So queries and keys are rotated, in pairs of channels, by an angle that grows
# with the position: $y_t = \mathrm{Rot}(t)\, x_t$. Channel $i$ of the first half is paired with channel $i + K/2$, and each pair has
# a speed of its own:
#
# $$ y_{t,i} = x_{t,i} \cos\varphi - x_{t,i+K/2} \sin\varphi , \qquad y_{t,i+K/2} = x_{t,i} \sin\varphi + x_{t,i+K/2} \cos\varphi , \qquad
#    \varphi = t \cdot 10000^{-2i/K} . $$
#
# A rotation preserves inner products, so
# $\langle \mathrm{Rot}(t)\,q, \mathrm{Rot}(s)\,k \rangle = \langle \mathrm{Rot}(t-s)\,q, k \rangle$: scores depend on the distance
# alone. And its adjoint, the transpose, is the rotation *back*: the same lines with $-\varphi$.


# %%
def turn(x, sign):
    """Each row x_t of (T,K) by the angle sign * phi."""
    T, K = x.shape
    phi = sign * np.arange(T)[:, None] * 10000.0 ** (-2 * np.arange(K // 2) / K)  # (T,K/2)
    first, second = x[:, : K // 2], x[:, K // 2 :]  # (T,K/2) each
    return np.concatenate([first * np.cos(phi) - second * np.sin(phi), first * np.sin(phi) + second * np.cos(phi)], axis=1)


given = rng.standard_normal((T, K))
turned, res = rotary_fwd(q)
print("forward and backward equal the library's:", agree((turn(q, 1), turn(given, -1)), (turned, rotary_bwd(given, res))))
assert agree(turn(given, -1), adjoint_by_differences(lambda q: rotary_fwd(q)[0], (q,), given)[0], rtol=1e-8)

# %% [markdown]
# Now one query and one key are put at every pair of positions.

# %%
turned_q, res = rotary_fwd(np.tile(q[0], (12, 1)))  # (12,K) the same vector at 12 positions
turned_k, _ = rotary_fwd(np.tile(k[0], (12, 1)))
by_position = turned_q @ turned_k.T
fig, ax = plt.subplots(figsize=(5.8, 4.8))
limit = np.abs(by_position).max()
image = ax.imshow(by_position, cmap="PuOr", vmin=-limit, vmax=limit)
ax.set(xlabel="position $s$ of the key", ylabel="position $t$ of the query", title="Constant along diagonals")
fig.colorbar(image)
plt.show()

# %%
back = rotary_bwd(turned_q, res)
print("rotated and rotated back:", agree(back, np.tile(q[0], (12, 1))))
print("the adjoint, both sides of the law:", check_adjoint(rotary_fwd, rotary_bwd, (q,)).error < 1e-8)
assert agree(by_position[1:, 1:], by_position[:-1, :-1]) and agree(back, np.tile(q[0], (12, 1)))

# %% [markdown]
# ## GELU, the bend between two dense layers
#
# The MLP of a layer is a dense layer, GELU, a dense layer. GELU is entrywise. It lets large numbers pass, holds back negative ones, and
# is smooth in between:
#
# $$ y = \tfrac12\, u\, (1 + \tau) , \qquad \tau = \tanh r , \qquad r = \sqrt{2/\pi}\,(u + 0.044715\, u^3) . $$
#
# The product rule, with $\delta\tau = (1 - \tau^2)\, \delta r$, gives the slope. It is a diagonal Jacobian, its own transpose:
#
# $$ du = \tfrac12 \left( 1 + \tau + u\, (1 - \tau^2)\, r' \right) \odot dy , \qquad r' = \sqrt{2/\pi}\,(1 + 3 \cdot 0.044715\, u^2) . $$

# %%
u, dy = rng.standard_normal((2, 50))
root = np.sqrt(2 / np.pi)
tau = np.tanh(root * (u + 0.044715 * u**3))  # (50,)
y = 0.5 * u * (1 + tau)  # (50,)
du = 0.5 * (1 + tau + u * (1 - tau**2) * root * (1 + 3 * 0.044715 * u**2)) * dy  # (50,)

y_library, res = gelu_fwd(u)
print("forward and backward equal the library's:", agree((y, du), (y_library, gelu_bwd(dy, res))))
assert agree(du, adjoint_by_differences(lambda u: gelu_fwd(u)[0], (u,), dy)[0], rtol=1e-8)

# %% [markdown]
# ## A layer: two branches and two plus signs
#
# A layer of the transformer adds two branches to what passes straight through. Each branch normalises its input first (*pre-LN*):
#
# $$ x \leftarrow x + F_1(x) \;\text{(attention)} \qquad x \leftarrow x + F_2(x) \;\text{(MLP)} . $$
#
# The differential of $x + F(x)$ is $\delta x + \delta F$, so the adjoint is $dx \leftarrow dx + F^T(dx)$: the gradient is copied, one
# copy goes through the branch, and they add. Everything else is the ops in reverse. Forward:


# %%
def parameters(D):
    sizes = [D, D, (D, 3 * D), 3 * D, (D, D), D, D, D, (D, 4 * D), 4 * D, (4 * D, D), D]
    return LayerParameters(*(rng.standard_normal(size) / np.sqrt(D) for size in sizes))


B, T, D, H = 2, 6, 8, 2
par = parameters(D)
x = rng.standard_normal((B, T, D))


# %%
def to_heads(y):
    """(B,T,D)->(B,H,T,K): only rearranges, so its adjoint is to rearrange back."""
    return y.reshape(B, T, H, D // H).transpose(0, 2, 1, 3)


def join_heads(y):
    """(B,H,T,K)->(B,T,D)"""
    return y.transpose(0, 2, 1, 3).reshape(B, T, D)


# %%
n1, norm1 = layernorm_fwd(x, par.gain1, par.bias1, EPS)
qkv, r_qkv = dense_fwd(n1, par.W_qkv, par.b_qkv)
q, k, v = (to_heads(part) for part in np.split(qkv, 3, axis=-1))
q_turned, rot_q = rotary_fwd(q)
k_turned, rot_k = rotary_fwd(k)
o, r_attention = attention_fwd(q_turned, k_turned, v)
f1, r_o = dense_fwd(join_heads(o), par.W_o, par.b_o)
middle = x + f1
n2, norm2 = layernorm_fwd(middle, par.gain2, par.bias2, EPS)
u, r_in = dense_fwd(n2, par.W_in, par.b_in)
g, r_gelu = gelu_fwd(u)
f2, r_out = dense_fwd(g, par.W_out, par.b_out)
out = middle + f2
(out_library, _), res = layer_fwd(x, par, H)
print("forward equals the library's:", agree(out, out_library))

# %% [markdown]
# Backward: read the cell above from its last line to its first.

# %%
dout = rng.standard_normal((B, T, D))
dg, dW_out, db_out = dense_bwd(dout, r_out)  # f2 = g W_out + b_out
du = gelu_bwd(dg, r_gelu)  # g = gelu(u)
dn2, dW_in, db_in = dense_bwd(du, r_in)  # u = n2 W_in + b_in
dbranch2, dgain2, dbias2 = layernorm_bwd(dn2, norm2)  # n2 = LN(middle)
dmiddle = dout + dbranch2  # out = middle + f2
do, dW_o, db_o = dense_bwd(dmiddle, r_o)  # f1 = join(o) W_o + b_o
dq_turned, dk_turned, dv = attention_bwd(to_heads(do), r_attention)
dq, dk = rotary_bwd(dq_turned, rot_q), rotary_bwd(dk_turned, rot_k)  # rotated back
dqkv = np.concatenate([join_heads(a) for a in (dq, dk, dv)], axis=-1)
dn1, dW_qkv, db_qkv = dense_bwd(dqkv, r_qkv)  # qkv = n1 W_qkv + b_qkv
dbranch1, dgain1, dbias1 = layernorm_bwd(dn1, norm1)  # n1 = LN(x)
dx = dmiddle + dbranch1  # middle = x + f1

# %%
gradients = LayerParameters(dgain1, dbias1, dW_qkv, db_qkv, dW_o, db_o, dgain2, dbias2, dW_in, db_in, dW_out, db_out)
print("dx and all twelve parameter gradients equal the library's:", agree((dx, gradients), layer_bwd(dout, res)))
assert agree((dx, gradients), layer_bwd(dout, res))
report = check_adjoint(lambda x, par: (lambda y, r: (y[0], r))(*layer_fwd(x, par, H)), layer_bwd, (x, par))
print("the library's keep the law, checked for", report.checked, "arrays:", report.error < 1e-8)

# %% [markdown]
# Where does a gradient go? Start it at one output token $t$ and look at which input tokens $s$ it reaches. With a sliding window of 3,
# one layer reaches 2 tokens back, and a stack of three layers reaches 6 back. Never forward: the causal mask holds in both directions.

# %%
T, window = 12, 3
x = rng.standard_normal((1, T, D))
reach = []
for depth in (1, 3):
    (_, _), res = stack_fwd(layer_fwd, x, (par,) * depth, (H, window))
    starts = np.eye(T)[:, None, :, None] * rng.standard_normal((T, 1, 1, D))  # row t: a gradient at token t only
    reach.append(np.array([np.abs(stack_bwd(layer_bwd, start, res)[0]).sum(axis=-1)[0] for start in starts]) > 0)
fig, axes = plt.subplots(1, 2, figsize=(10, 4.6), sharey=True)
for ax, pattern, depth in zip(axes, reach, (1, 3), strict=True):
    ax.imshow(pattern, cmap="cividis")
    ax.set(xlabel="input token $s$", title=f"{depth} layer{'s' * (depth > 1)}: reached (yellow)")
axes[0].set_ylabel("gradient starts at output $t$")
plt.show()

# %%
t, s = np.arange(T)[:, None], np.arange(T)[None, :]
for pattern, depth in zip(reach, (1, 3), strict=True):
    exact = np.array_equal(pattern, (s <= t) & (t - s <= depth * (window - 1)))
    print(f"{depth} deep: reaches exactly {depth * (window - 1)} back and nothing ahead:", exact)
    assert exact

# %% [markdown]
# The library's layer, live. It is the cell above, and a cache of earlier keys and values that counts as constant.

# %%
print(inspect.getsource(layer_bwd))

# %% [markdown]
# ## Exercise 1: predict the shapes
#
# Batch 2, 5 tokens, width 12, 3 heads of width 4. What are the shapes of the probabilities $p$, of $\mathrm{lse}$ (with its last axis
# kept), and of the gradient of $W_{qkv}$?

# %% tags=["exercise"]
shape_of_p = None
shape_of_lse = None
shape_of_dW_qkv = None

# %%
heads = [np.ones((2, 3, 5, 4))] * 3
check("shape_of_p", shape_of_p, np.matmul(heads[0], np.matrix_transpose(heads[1])).shape)
check("shape_of_lse", shape_of_lse, attention_fwd(*heads)[1].lse.shape)
check("shape_of_dW_qkv", shape_of_dW_qkv, parameters(12).W_qkv.shape)

# %% [markdown]
# ## Exercise 2: which keys does a window show?
#
# Return the boolean mask (T,T) that is True where query $t$ sees key $s$. It sees the last `window` keys, its own included.


# %% tags=["exercise"]
def window_mask(T, window):
    """(T,T) bool"""
    return None


# %%
def seen_by_attention(T, window):  # attention over values = identity returns its probabilities: positive where a key is seen
    one = np.ones((1, 1, T, 1))
    return attention_fwd(one, one, np.eye(T)[None, None], window)[0][0, 0] > 0


hints_of_window_mask = {
    "one key too many: count them, the own one included": lambda T, w: seen_by_attention(T, w + 1),
    "a query sees its own key": lambda T, w: seen_by_attention(T, w) & ~np.eye(T, dtype=bool),
    "one key too few: the own one is among the `window`": lambda T, w: seen_by_attention(T, max(w - 1, 1)),
    "rows are queries, columns are keys": lambda T, w: seen_by_attention(T, w).T,
    "what does the window hide?": lambda T, w: seen_by_attention(T, T),
    "and the future?": lambda T, w: seen_by_attention(T, w) | ~np.tri(T, dtype=bool),
}
check("window_mask", window_mask, seen_by_attention, cases=[(6, 3), (5, 1)], mistakes=hints_of_window_mask)

# %% [markdown]
# ## Exercise 3: the loss, twice
#
# The fast weight block writes gradients of a cross-entropy, so it needs this one. The backward pass is
# $d\sigma = d\ell\,(p - e)$, a function of $d\ell$ (one number per token) and, through $p$, of the scores $\sigma$. Given $g_{d\sigma}$,
# derive $g_{d\ell}$ and $g_\sigma$. You have the differential of $p$ above; what is the differential of $e$?


# %% tags=["exercise"]
def loss_bwd_bwd(g_dsigma, dloss, p, e):
    """Adjoint of dsigma = dloss (p - e): g_dsigma, p, e are (T,V), dloss is (T,). Returns g_dloss
    (T,), g_sigma (T,V).
    """
    return None


# %%
loss_res = cross_entropy_fwd(rng.standard_normal((3, 5)), np.array([1, 4, 0]))[1]
dloss, g_dsigma = rng.standard_normal(3), rng.standard_normal((3, 5))
hints_of_loss_bwd_bwd = {
    "dloss multiplies p - e, not p alone": lambda g, d, p, e: ((p * g).sum(axis=-1), None),
    "one number per token: what multiplies dloss?": "g_dloss",
    "p has a second part: all scores share one sum": lambda g, d, p, e: (None, d[:, None] * p * g),
    "e is constant, so it does not occur": lambda g, d, p, e: (None, cross_entropy_bwd_bwd(g, d, loss_res)[1] - d[:, None] * e * g),
    "dloss scales the whole of dsigma": lambda g, d, p, e: cross_entropy_bwd_bwd(g, np.ones_like(d), loss_res),
    "the differential of p, token by token, and its symmetry": "g_sigma",
}

# %%
check(
    "loss_bwd_bwd",
    loss_bwd_bwd,
    lambda g, d, p, e: cross_entropy_bwd_bwd(g, d, loss_res),
    cases=[(g_dsigma, dloss, loss_res.p, loss_res.hit * 1.0)],
    mistakes=hints_of_loss_bwd_bwd,
    returns=("g_dloss", "g_sigma"),
)

# %% [markdown]
# **Next:** [4. A gradient step is linear attention](04_a_gradient_step_is_linear_attention.ipynb). Take the softmax away, and attention
# becomes something that one can also reach from the other side: by training.
