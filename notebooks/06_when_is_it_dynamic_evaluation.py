# %% [markdown]
# # 6. When is it dynamic evaluation, exactly?
#
# **Question.** A model that goes on learning while it reads takes a gradient step after every token. That is *dynamic evaluation*. A
# fast weight layer claims to do the same without ever forming a weight gradient. Is that true to the last digit, true for small steps,
# or only a picture?
#
# **Answer to look forward to.** All three, each under a condition of its own.
#
# 1. If every gradient is taken at the *slow* weights, it is exact, for every step size.
# 2. If gradients are taken at the *current* weights, it is exact for two tokens and then off by $\eta^2$ times a number that can be
#    predicted.
# 3. If the loss is linear in the weights, the two learners are one.
#
# You need notebook 5. The proofs are (Q.1) to (Q.6) in the docs; here we measure.

# %%
import inspect

import matplotlib.pyplot as plt
import numpy as np

from fwl_ref.dynamic_evaluation import evaluate_block
from fwl_ref.exercises import agree, check
from fwl_ref.fwl import FastSettings, fast_block_fwd, write_fwd
from fwl_ref.ops.cross_entropy import cross_entropy_bwd, cross_entropy_fwd
from fwl_ref.ops.dense import dense_bwd, dense_fwd
from fwl_ref.ops.layernorm import layernorm_bwd, layernorm_fwd
from fwl_ref.ops.linear_attention import linear_attention_fwd
from fwl_ref.ops.squared_relu import squared_relu_bwd, squared_relu_fwd

# %%
from fwl_ref.slow_block import FastParameters, SlowParameters, slow_block_bwd, slow_block_fwd
from fwl_ref.tree import add, tree_map, zeros_like

plt.style.use("fwl_ref.figures.lecture")
T, D, F, V, EPS = 10, 6, 24, 9, 1e-6
rng = np.random.default_rng(0)
x = rng.standard_normal((T, D))  # features of T tokens
labels = rng.integers(0, V, T)  # the token that comes after each
shapes = {"W1": (D, F), "b1": F, "W2": (F, D), "b2": D, "gain": D, "bias": D, "U": (D, V), "c": V}
slow = SlowParameters(*(0.4 * rng.standard_normal(shape) for shape in shapes.values()))
slow = slow._replace(gain=1 + slow.gain)
theta0 = FastParameters(*slow[:6])  # the six that learn; U and c stay as they are

# %% [markdown]
# ## One token, one op a line
#
# The loss of token $t$ is the cross-entropy of its next token. `logits_at` computes forward and keeps what backward needs,
# `gradient_at` goes back through the same lines in reverse. Both take the six parameters `theta` as an argument, because soon they
# will differ from token to token.


# %%
def logits_at(theta, t):
    h, dense1 = dense_fwd(x[t : t + 1], theta.W1, theta.b1)  # (1,F)
    a, act = squared_relu_fwd(h)  # (1,F)
    z, dense2 = dense_fwd(a, theta.W2, theta.b2)  # (1,D)
    n, norm = layernorm_fwd(z, theta.gain, theta.bias, EPS)  # (1,D)
    logits, unembed = dense_fwd(n, slow.U, slow.c)  # (1,V)
    _, loss = cross_entropy_fwd(logits, labels[t : t + 1])  # (1,)
    return logits[0], (dense1, act, dense2, norm, unembed, loss)


# %%
def gradient_at(theta, t):
    _, (dense1, act, dense2, norm, unembed, loss) = logits_at(theta, t)
    dlogits = cross_entropy_bwd(np.ones(1), loss)  # (1,V)
    dn, _, _ = dense_bwd(dlogits, unembed)  # (1,D)
    dz, dgain, dbias = layernorm_bwd(dn, norm)  # (1,D)
    da, dW2, db2 = dense_bwd(dz, dense2)  # (1,F)
    dh = squared_relu_bwd(da, act)  # (1,F)
    _, dW1, db1 = dense_bwd(dh, dense1)  # (1,D)
    return FastParameters(dW1, db1, dW2, db2, dgain, dbias)


# %%
for t in range(T):
    (_, logits), res = slow_block_fwd(x[t : t + 1], labels[t : t + 1], slow, EPS)
    _, reference = slow_block_bwd(np.ones(1), res)
    assert agree(logits_at(theta0, t)[0], logits[0])
    assert agree(gradient_at(theta0, t), reference[:6])
print("forward and gradient agree with the library:", True)

# %% [markdown]
# ## Two learners that differ in one word
#
# Both score token $t$ with what they learned from the tokens before, then take a step,
#
# $$\theta_{t+1} = \theta_t - \eta\, \nabla \ell_t(\,\cdot\,) .$$
#
# The *sequential* learner puts its current weights $\theta_t$ into the gradient. That is gradient descent. The *stale* learner always
# puts the slow weights $\theta_0$. The only difference is the word that comes after `gradient_at(`.


# %%
def learn(eta, stale):
    theta, rows = theta0, []
    for t in range(T):
        rows.append(logits_at(theta, t)[0])  # score first ...
        g = gradient_at(theta0 if stale else theta, t)
        theta = tree_map(lambda p, dp: p - eta * dp, theta, g)  # ... then learn
    return np.stack(rows)  # (T,V)


def fwl_logits(eta, settings=None, length=T, copies=1):
    batch = (np.tile(a[None, :length], (copies,) + (1,) * a.ndim) for a in (x, labels, np.ones(T)))
    steps = FastParameters(*(np.asarray(eta),) * 6)
    (logits, _, _), _ = fast_block_fwd(*batch, slow, steps, np.asarray(0.0), settings or FastSettings())
    return logits[0]  # (length,V)


# %%
eta = 0.02
to_stale = np.abs(fwl_logits(eta) - learn(eta, stale=True)).max(axis=1)  # (T,)
to_sequential = np.abs(fwl_logits(eta) - learn(eta, stale=False)).max(axis=1)  # (T,)
fig, ax = plt.subplots()
ax.semilogy(np.maximum(to_sequential, 1e-17), label="to sequential gradients")
ax.semilogy(np.maximum(to_stale, 1e-17), label="to stale gradients")
ax.set(xlabel="token t", ylabel="difference of logits", title="Fast weights against the two learners", xticks=range(T))
ax.set_ylim(3e-18, 1e1)
ax.legend(loc="center right")
plt.show()

# %% [markdown]
# The orange line is rounding, at every token: fast weights **are** the stale learner. The blue line is rounding at tokens 0 and 1 and
# then jumps. Token 0 is scored with $\theta_0$. Token 1 is scored after one step, and that step's gradient was taken at $\theta_0$ by
# both learners, since neither had learned anything yet. At token 2 they part.

# %%
assert to_stale.max() < 1e-12
assert to_sequential[:2].max() < 1e-12 < 1e-6 < to_sequential[2:].min()
print("stale gradients: exact at every token:", bool(to_stale.max() < 1e-12))
print("sequential gradients: tokens that agree exactly:", int(np.argmax(to_sequential > 1e-12)))

# %% [markdown]
# ## At stale weights the sum collapses
#
# Why is it exact? The gradient of a weight matrix at one token is an outer product: input times output gradient. So the first layer
# of the stale learner is
#
# $$x_t W_{1,t} = x_t \Big(W_1 - \eta \sum_{s<t} x_s^\top dh_s\Big) = x_t W_1 - \eta \sum_{s<t} (x_t \cdot x_s)\, dh_s ,$$
#
# and the right-hand side is linear attention with a strict mask: query $x_t$, key $x_s$, value $dh_s$. No matrix changes, and all tokens
# run at once. This works **because** every $dh_s$ is known before anything is learned. Sequential gradients are not, so they do not
# collapse.

# %%
(memory, _), _ = write_fwd(x[None], labels[None], np.ones((1, T)), slow, FastSettings())
(o, _), _ = linear_attention_fwd(x[None], x[None], memory.dh, np.asarray(1.0))
closed = x @ slow.W1 - eta * o[0]  # (T,F)

literal, W = [], slow.W1
for t in range(T):
    literal.append(x[t] @ W)
    W = W - eta * gradient_at(theta0, t).W1
assert agree(closed, np.stack(literal))
print("one matrix per token and one attention agree:", agree(closed, np.stack(literal)))

# %% [markdown]
# ## The $\eta^2$ law
#
# How far apart are the two learners? Expand the gradient that the sequential one takes at token $r$, with $H_r$ the Hessian of
# token $r$'s loss at $\theta_0$ and $g_s$ the gradient of token $s$'s:
#
# $$\nabla \ell_r(\theta_r) = g_r + H_r (\theta_r - \theta_0) + \dots = g_r - \eta \sum_{s<r} H_r\, g_s + O(\eta^2) .$$
#
# Summing these steps, the $g_r$ cancel against those of the stale learner. With $J_t$ the Jacobian of the logits, what is left is
#
# $$\mathrm{logits}_t^{\mathrm{sequential}} - \mathrm{logits}_t^{\mathrm{fast}}
#   = \eta^2\, J_t \sum_{s<r<t} H_r\, g_s + O(\eta^3) .$$
#
# In words: what stale gradients miss is how the step at token $s$ would have changed the gradient at token $r$.
#
# We need no Hessian. A Hessian times a vector is a difference of two gradients, and we have the gradient by hand.


# %%
def along(f, direction, step=1e-4):
    """Derivative of f(theta) at theta0 in a direction, by central differences."""
    there = f(tree_map(lambda p, v: p + step * v, theta0, direction))
    back = f(tree_map(lambda p, v: p - step * v, theta0, direction))
    return tree_map(lambda a, b: (a - b) / (2 * step), there, back)


sum_g = sum_Hg = zeros_like(theta0)  # sum of g_s,  sum of H_r g_s over s < r
coefficient = np.zeros((T, V))
for t in range(T):
    coefficient[t] = along(lambda theta, t=t: logits_at(theta, t)[0], sum_Hg)  # J_t sum H_r g_s
    sum_Hg = add(sum_Hg, along(lambda theta, t=t: gradient_at(theta, t), sum_g))
    sum_g = add(sum_g, gradient_at(theta0, t))

# %% [markdown]
# That was computed at $\theta_0$, before any learner ran and before any $\eta$ was chosen. Now run both at many step sizes. The prediction
# is a straight line of slope 2 **whose height is known**, so it can be wrong in two ways.

# %%
etas = 10.0 ** np.arange(-6, 0.6, 0.5)
gaps = [learn(e, stale=False) - fwl_logits(e) for e in etas]
measured = np.array([np.abs(gap).max() for gap in gaps])
predicted = etas**2 * np.abs(coefficient).max()
fig, ax = plt.subplots(figsize=(9, 5))
ax.loglog(etas, measured, linestyle="none", markersize=11, label="measured")
ax.loglog(etas, predicted, marker="", label=r"predicted: $\eta^2 \max\,|J_t \sum H_r g_s|$")
ax.set(xlabel=r"step size $\eta$", ylabel="largest difference of logits", title="Sequential against stale gradients")
ax.legend(loc="upper left")
plt.show()

# %% [markdown]
# The points lie on the line over five decades. They leave it where the step is no longer small: from $\eta = 0.1$ on, terms of order
# $\eta^3$ count. The coefficient is right entry by entry, not just in size, and its error shrinks in proportion to $\eta$.

# %%
slopes = np.diff(np.log(measured[:9])) / np.diff(np.log(etas[:9]))
errors = [np.abs(gap / e**2 - coefficient).max() / np.abs(coefficient).max() for e, gap in zip(etas, gaps, strict=True)]
assert np.all(np.abs(slopes - 2) < 0.1)
assert errors[6] < 0.01 and np.all(coefficient[:2] == 0)
print(f"slope: {slopes.mean():.1f}")
print("coefficient right to 1 % in every entry at eta = 0.001:", errors[6] < 0.01)
print("coefficient of tokens 0 and 1 is zero:", not coefficient[:2].any())

# %% [markdown]
# ## A loss that is linear in the weights
#
# The law says what to look for: no Hessian, no difference. Take one layer $y = k W$ and two losses for a pair $(k, v)$.
#
# | loss | gradient | Hessian |
# |---|---|---|
# | $-\langle v, k W \rangle$ | $-k^\top v$ | 0 |
# | $\tfrac12 \lVert k W - v \rVert^2$ | $k^\top (k W - v)$ | not 0 |
#
# The first is linear attention as we know it. The second is the delta rule. Stale gradients make an attention of either; only for the
# first is that attention the true online learner.

# %%
keys, values, W0 = x / np.sqrt(D), rng.standard_normal((T, D)), 0.4 * rng.standard_normal((D, D))
output_gradient = {"linear": lambda y, v: -v, "quadratic": lambda y, v: y - v}


def layer_gap(eta, dy):
    stale = dy(keys @ W0, values)  # (T,D) at the slow weights
    (o, _), _ = linear_attention_fwd(keys[None], keys[None], stale[None], np.asarray(1.0))
    rows, W = [], W0
    for k, v in zip(keys, values, strict=True):
        rows.append(k @ W)
        W = W - eta * np.outer(k, dy(k @ W, v))  # sequential: at the current weights
    return np.abs(np.stack(rows) - (keys @ W0 - eta * o[0])).max()


# %%
fig, ax = plt.subplots()
layer_gaps = {name: np.array([layer_gap(e, dy) for e in etas]) for name, dy in output_gradient.items()}
ax.loglog(etas, layer_gaps["quadratic"], label="quadratic loss")
ax.loglog(etas, np.maximum(layer_gaps["linear"], 1e-17), label="linear loss")
ax.set(xlabel=r"step size $\eta$", ylabel="largest difference of outputs", title="Stale against sequential, one layer")
ax.legend()
plt.show()
assert np.all(layer_gaps["linear"] < 1e-12 * (1 + etas))
assert np.all(layer_gaps["quadratic"][6:] > 1e-9)
print("linear loss: exact for every step size:", bool(np.all(layer_gaps["linear"] < 1e-12 * (1 + etas))))

# %% [markdown]
# ## What the normalizer does
#
# The slow losses are divided by a number $N$ before anything is written. If $N$ counts the tokens of the sequence, then a longer text
# makes every *earlier* update smaller. A prefix is then not processed like the whole, and the text cannot be read as it comes. The
# law is exact:
#
# $$\mathrm{FWL}_T(\eta)[:t] = \mathrm{FWL}_t(\eta\, N_t / N_T) .$$
#
# We watch the loss of one token, number 3, while the text behind it grows. Nothing that this token may see ever changes.


# %%
def loss_of_token_3(logits):
    nll, _ = cross_entropy_fwd(logits[3:4], labels[3:4])
    return float(nll[0])


lengths, eta = range(4, T + 1), 0.5
constant, counting = FastSettings(constant=4.0), FastSettings(normalizer="sequence")
by_constant = [loss_of_token_3(fwl_logits(eta, constant, length)) for length in lengths]
by_counting = [loss_of_token_3(fwl_logits(eta, counting, length)) for length in lengths]
by_law = [loss_of_token_3(fwl_logits(eta * 4 / length, counting, 4)) for length in lengths]

# %%
fig, ax = plt.subplots()
ax.plot(lengths, by_constant, label="N constant")
ax.plot(lengths, by_counting, label="N = number of tokens")
ax.plot(lengths, by_law, linestyle="none", marker="x", markersize=14, color="black", label=r"4 tokens, step size $\eta \cdot 4 / T$")
ax.set(xlabel="tokens in the text, T", ylabel="loss of token 3 (nats)", title="The future changes what token 3 sees")
ax.legend()
plt.show()
assert np.ptp(by_constant) < 1e-12 and np.ptp(by_counting) > 1e-3
assert agree(by_counting, by_law)
assert agree(fwl_logits(eta, FastSettings("batch"), copies=3), fwl_logits(eta / 3, FastSettings("batch")))
print("constant N: a prefix is read like the whole:", np.ptp(by_constant) < 1e-12)

# %% [markdown]
# The last assertion is the same law across a batch: with `batch` as the normalizer, three copies of one sequence act like a third of the
# step size. So a result can depend on how sequences were packed into batches. Streaming needs the constant normalizer.

# %% [markdown]
# ## The library's source
#
# The oracle that fast weights are checked against is as literal as our loop, and it imports nothing of the fast weight code.

# %%
print(inspect.getsource(evaluate_block).split('"""')[2])

# %%
steps = FastParameters(*(np.asarray(0.02),) * 6)
for stale in (True, False):
    oracle, _ = evaluate_block(x[None], labels[None], np.ones((1, T)), slow, steps, segment=1, stale=stale)
    assert agree(oracle[0], learn(0.02, stale))
print("evaluate_block agrees with both of our learners:", True)

# %% [markdown]
# ## Exercise: the first token that differs
#
# Dynamic evaluation is often run in segments: score $L$ tokens, then take one step on all of them. Let $L = 3$, and let the stale
# learner use the same segments. Which token is the first on which stale and sequential gradients give different logits?

# %% tags=["exercise"]
first_token = None  # a number


# %%
both = [evaluate_block(x[None], labels[None], np.ones((1, T)), slow, steps, segment=3, stale=s)[0][0] for s in (True, False)]
differs = np.abs(both[0] - both[1]).max(axis=1) > 1e-12
hints_of_first_token = {
    "That is where the first step shows. At which weights was its gradient taken?": 3,
    "That is the answer for segments of one token.": 2,
    "Token 9 opens the fourth segment. How many steps has it seen?": 9,
}
check("first_token", first_token, int(np.argmax(differs)), mistakes=hints_of_first_token)

# %% [markdown]
# ## Exercise: what stale gradients miss, with decay
#
# Let updates fade: $\theta_{t+1} = \theta_0 + \kappa (\theta_t - \theta_0) - \eta\, \nabla \ell_t$, with $\kappa = 1 - \lambda$. Given the
# gradients $g_s$ as rows of `g` (T,P) and the Hessians $H_r$ as `H` (T,P,P), return the coefficient of $\eta^2$ in
# $\theta_t^{\mathrm{sequential}} - \theta_t^{\mathrm{stale}}$ for every $t$, an array (T,P). Without decay it is $\sum_{s<r<t} H_r g_s$.
#
# *Where does $\kappa$ go?* A loop with two running sums is enough; a triple loop is fine.


# %% tags=["exercise"]
def missed(g, H, kappa):
    return None  # (T,P)


# %%
def by_running_both(g, H, kappa):
    """Coefficient of eta^2 without the formula: run both learners at 32 complex step sizes on a
    circle and average gap / eta^2.
    """
    circle = 0.5 * np.exp(2j * np.pi * np.arange(32) / 32)
    sequential = stale = np.zeros((32, g.shape[1]), dtype=complex)
    rows = []
    for g_t, H_t in zip(g, H, strict=True):  # losses g.theta + theta.H.theta / 2
        rows.append(np.mean((sequential - stale) / circle[:, None] ** 2, axis=0).real)
        sequential = kappa * sequential - circle[:, None] * (g_t + sequential @ H_t)
        stale = kappa * stale - circle[:, None] * g_t
    return np.stack(rows)


# %%
generator = np.random.default_rng(1)
H = generator.standard_normal((6, 3, 3))
case = (generator.standard_normal((6, 3)), H + np.swapaxes(H, 1, 2), 0.8)
hints_of_missed = {
    "That is right without decay. Both learners fade what they carry.": lambda g, H, kappa: by_running_both(g, H, 1.0),
    "A minus from the gradient step, a minus from the expansion: how many are left?": lambda *a: -by_running_both(*a),
    "The newest term has not faded yet when it is first read.": lambda g, H, kappa: kappa * by_running_both(g, H, kappa),
    "Neither the past that H_r meets nor the sum itself may fade once too often.": lambda g, H, kappa: (
        kappa**2 * by_running_both(g, H, kappa)
    ),
}
check("missed", missed, by_running_both, [case], mistakes=hints_of_missed)
