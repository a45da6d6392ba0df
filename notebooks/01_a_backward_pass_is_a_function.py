# %% [markdown]
# # 1. A backward pass is a function, so it has one too
#
# **Question.** A fast weight layer computes gradients *inside* its forward pass. To train it we must differentiate those
# gradients. What is the backward pass of a backward pass, and how does one know that it is right?
#
# **Answer to look forward to.** Nothing new is needed. The backward pass of an op is an ordinary function of ordinary arrays. It has
# a backward pass for the same reason as any other function, and the same three moves find it.
#
# You need matrix calculus (what a differential is) and NumPy. Vectors are rows, so a dense layer is $y = xw + b$. Three kinds of small
# letters occur, here and in all notebooks:
#
# - $\delta x$ is a *differential*, an arbitrary small change of $x$. It occurs in derivations only.
# - $dx$ is a *gradient*, the derivative of a loss with respect to $x$. In code: `dx`.
# - $g_x$ is the gradient of *another*, outer loss. In code: `g_x`. It appears when we differentiate twice.

# %%
import inspect

import matplotlib.pyplot as plt
import numpy as np

from fwl_ref.exercises import adjoint_by_differences, agree, check, second_adjoint_by_differences
from fwl_ref.gradcheck import AdjointError, check_adjoint, directional_difference
from fwl_ref.ops.dense import dense_bwd, dense_bwd_bwd, dense_fwd
from fwl_ref.ops.squared_relu import squared_relu_bwd, squared_relu_bwd_bwd, squared_relu_fwd

plt.style.use("fwl_ref.figures.lecture")
rng = np.random.default_rng(0)

# %% [markdown]
# ## An op and its adjoint
#
# Take a dense layer, with one row of $x$ per token:
#
# $$ y = x w + b $$
#
# Let some loss have the gradient $dy$ with respect to $y$. That says: if $y$ changes by $\delta y$, the loss changes by
# $\langle dy, \delta y \rangle$, the sum of the products of the entries. The three moves:
#
# 1. **Differential.** $\delta y = \delta x\, w + x\, \delta w + \mathbf 1\, \delta b$.
# 2. **Inner product.** $\langle dy, \delta x\, w \rangle + \langle dy, x\, \delta w \rangle + \langle dy, \mathbf 1\delta b\rangle$
# 3. **Collect what multiplies each differential.** With $\langle A, BC \rangle = \langle A C^T, B \rangle = \langle B^T A, C \rangle$:
#
# $$ dx = dy\, w^T \qquad dw = x^T dy \qquad db = \textstyle\sum_t dy_t $$
#
# In code, one op a line. Under each forward line stand the lines that reverse it.

# %%
T, D, F = (4, 3, 2)  # tokens, width of the input, width of the output: all different, so that a transpose cannot hide
x, w, b = rng.standard_normal((T, D)), rng.standard_normal((D, F)), rng.standard_normal(F)

xw = x @ w  # (T,F)
y = xw + b  # (T,F)

dy = rng.standard_normal((T, F))  # whatever the loss says: a random one stands for all
db = dy.sum(axis=0)  # (F,)   from  y = xw + b
dx = dy @ w.T  # (T,D)   from  xw = x w
dw = x.T @ dy  # (D,F)   from  xw = x w

# %% [markdown]
# Two witnesses. The library derived the same thing by hand. Finite differences know nothing of derivations: they move one entry at a
# time and look what happens.

# %%
y_library, res = dense_fwd(x, w, b)  # the residual res is a memo of the inputs, for the backward pass
print("y equals the library's:", agree(y, y_library))
print("dx, dw, db equal the library's:", agree((dx, dw, db), dense_bwd(dy, res)))
differences = adjoint_by_differences(lambda x, w, b: dense_fwd(x, w, b)[0], (x, w, b), dy)
print("and agree with differences:", agree((dx, dw, db), differences, rtol=1e-8))

# %% [markdown]
# There is a faster test. Write $J$ for the linear map that takes the differentials of the inputs to $\delta y$. The backward pass
# must be its *adjoint* $J^T$, and that word has a definition without coordinates:
#
# $$ \langle dy,\; J v \rangle = \langle J^T dy,\; v \rangle \qquad \text{for every direction } v . $$
#
# So draw random directions $v$ and compare two numbers. Each dot below is one direction. A correct backward pass puts all of them on
# the diagonal; a wrong one (here: the sign of $db$) does not.

# %%
directions = [[rng.standard_normal(a.shape) for a in (x, w, b)] for _ in range(30)]
forward = [np.sum(dy * (vx @ w + x @ vw + vb)) for vx, vw, vb in directions]  # <dy, J v>
right = [np.sum(dx * vx) + np.sum(dw * vw) + np.sum(db * vb) for vx, vw, vb in directions]  # <J^T dy, v>
wrong = [np.sum(dx * vx) + np.sum(dw * vw) - np.sum(db * vb) for vx, vw, vb in directions]

fig, ax = plt.subplots(figsize=(6, 5.4))
ax.plot(forward, right, linestyle="none", label="right backward pass")
ax.plot(forward, wrong, linestyle="none", label="sign of $db$ flipped")
ax.axline((0, 0), slope=1, color="black", linewidth=1, marker="")
ax.set(xlabel=r"forward:  $\langle dy,\, J v\rangle$", ylabel=r"backward:  $\langle J^T dy,\, v\rangle$")
ax.set_title("One number per random direction $v$")
ax.legend()
plt.show()

# %%
assert agree(np.array(right), np.array(forward))
assert not agree(np.array(wrong), np.array(forward))

# %% [markdown]
# ## The backward pass of the backward pass
#
# Look at the line `dx = dy @ w.T` again and forget where it came from. It is a function with two inputs, `dy` and `w`, and one output.
# All of `dense_bwd` is a function
#
# $$ (dy, x, w) \;\longmapsto\; (dx, dw, db) . $$
#
# If a later computation uses `dx`, `dw` and `db`, an outer loss will hand us gradients with respect to them: $g_{dx}$, $g_{dw}$,
# $g_{db}$. We owe it the gradients with respect to the inputs: $g_{dy}$, $g_x$, $g_w$. Row by row, the outputs of one function are
# what the next one gets gradients for:

# %%
rows = [
    ("$x,\\;\\; w,\\;\\; b$", "f_fwd", "$y$"),
    ("$dy;\\quad x,\\;\\; w,\\;\\; b$", "f_bwd", "$dx,\\;\\; dw,\\;\\; db$"),
    ("$g_{dx},\\; g_{dw},\\; g_{db};\\quad dy,\\; x,\\; w,\\; b$", "f_bwd_bwd", "$g_{dy};\\quad g_x,\\; g_w,\\; g_b$"),
]
fig, ax = plt.subplots(figsize=(10, 4.2))
box = {"boxstyle": "round,pad=0.5", "facecolor": "#BFE3F7"}
for i, (inputs, function, outputs) in enumerate(rows):
    ax.annotate(function, (0.74, -i), (0.57, -i), va="center", ha="center", family="monospace", bbox=box, arrowprops={"arrowstyle": "->"})
    ax.annotate(inputs, (0.47, -i), (0.2, -i), va="center", ha="center", size=18, arrowprops={"arrowstyle": "->"})
    ax.text(0.88, -i, outputs, va="center", ha="center", size=18)
ax.set(xlim=(0, 1), ylim=(-2.4, 0.5), title="Each row adds one gradient for every output of the row above")
ax.axis("off")
plt.show()

# %% [markdown]
# The three moves again. The scalar to differentiate is the inner product of what is given with the outputs:
#
# $$ \Phi(dy, x, w) = \langle g_{dx},\; dy\, w^T \rangle + \langle g_{dw},\; x^T dy \rangle + \langle g_{db},\; \mathbf 1^T dy \rangle . $$
#
# Each term is a product of two variables, so each is moved to the other side in turn:
#
# | term | as $\langle \cdot, dy \rangle$ | and as |
# |---|---|---|
# | $\langle g_{dx}, dy\, w^T \rangle$ | $\langle g_{dx} w, dy \rangle$ | $\langle g_{dx}^T dy, w \rangle$ |
# | $\langle g_{dw}, x^T dy \rangle$ | $\langle x\, g_{dw}, dy \rangle$ | $\langle dy\, g_{dw}^T, x \rangle$ |
# | $\langle g_{db}, \mathbf 1^T dy \rangle$ | $\langle \mathbf 1 g_{db}, dy \rangle$ | |
#
# Collect by column:
#
# $$ g_{dy} = g_{dx} w + x\, g_{dw} + \mathbf 1 g_{db} \qquad g_x = dy\, g_{dw}^T \qquad g_w = g_{dx}^T dy \qquad g_b = 0 $$

# %%
g_dx, g_dw, g_db = rng.standard_normal((T, D)), rng.standard_normal((D, F)), rng.standard_normal(F)

g_dy = g_dx @ w  # (T,F)   from  dx = dy w^T
g_w = g_dx.T @ dy  # (D,F)   from  dx = dy w^T
g_dy = g_dy + x @ g_dw  # (T,F)   from  dw = x^T dy
g_x = dy @ g_dw.T  # (T,D)   from  dw = x^T dy
g_dy = g_dy + g_db  # (T,F)   from  db = sum dy: every token gets the same

print("equal to the library's:", agree((g_dy, g_x, g_w), dense_bwd_bwd(g_dx, g_dw, g_db, dy, res)[:3]))

# %% [markdown]
# The witness that knows no derivation now moves the inputs of the *backward* pass. The test itself did not change by a letter.


# %%
def backward(dy, x, w):
    return dense_bwd(dy, dense_fwd(x, w, b)[1])  # dx, dw, db


differences = adjoint_by_differences(backward, (dy, x, w), (g_dx, g_dw, g_db))
print("agree with differences of the backward pass:", agree((g_dy, g_x, g_w), differences, rtol=1e-8))
assert agree((g_dy, g_x, g_w), differences, rtol=1e-8)

# %% [markdown]
# ## Half of it is free, the other half is curvature
#
# Every backward pass $J^T dy$ is linear in $dy$, whatever the op. So $\langle g_{dx}, J^T dy \rangle = \langle J g_{dx}, dy \rangle$,
# and
#
# $$ g_{dy} = J\, g_{dx} , $$
#
# the *forward* derivative in the direction $g_{dx}$. This half never needs thought. The other half, $g_x$, asks how $J$ itself
# changes with $x$. For the dense layer $J$ is made of products, and $g_x, g_w$ were products again. Now an op that bends, the
# activation of the fast weight block:
#
# $$ y = \mathrm{relu}(x)^2 \qquad dx = 2\,\mathrm{relu}(x) \odot dy . $$
#
# $J$ is diagonal, so it is its own transpose, and $g_{dy} = 2\,\mathrm{relu}(x) \odot g_{dx}$. For $g_x$, differentiate
# $\Phi = \langle g_{dx}, 2\,\mathrm{relu}(x) \odot dy \rangle$ with respect to $x$, where $\mathrm{relu}$ has slope 1 or 0:
#
# $$ g_x = 2\, \mathbb 1[x > 0] \odot dy \odot g_{dx} . $$

# %%
x1, dy1, g_dx1 = rng.standard_normal(50), rng.standard_normal(50), rng.standard_normal(50)
r = np.maximum(x1, 0)  # forward, first op
y1 = r * r  # forward, second op
dx1 = 2 * r * dy1  # backward
g_dy1 = 2 * r * g_dx1  # backward of backward, with respect to dy
g_x1 = 2 * (x1 > 0) * dy1 * g_dx1  # backward of backward, with respect to x

y_library, res1 = squared_relu_fwd(x1)
print("y:", agree(y1, y_library), "  dx:", agree(dx1, squared_relu_bwd(dy1, res1)))
print("g_dy, g_x:", agree((g_dy1, g_x1), squared_relu_bwd_bwd(g_dx1, dy1, res1)))

# %% [markdown]
# The forward pass uses the curve, the backward pass its slope, the second backward pass its slope and the slope of its slope.

# %%
u = np.linspace(-1, 1, 401)
fig, ax = plt.subplots()
every = {"markevery": 40}
ax.plot(u, squared_relu_fwd(u)[0], label=r"$\mathrm{relu}(x)^2$: forward", **every)
ax.plot(u, squared_relu_bwd(np.ones_like(u), squared_relu_fwd(u)[1]), label=r"$2\,\mathrm{relu}(x)$: backward", **every)
ax.plot(u, 2.0 * (u > 0), label=r"$2\cdot 1[x>0]$: second backward", **every)
ax.set(xlabel="$x$", title="Each order needs one more derivative")
ax.set_ylabel("value")
ax.legend()
plt.show()

# %% [markdown]
# The last curve jumps at 0. The formula is fine there (it picks one side), but a finite difference *across* the jump is not a
# derivative of anything. A numeric check must stay off that point, and so we ask before we compare.


# %%
def backward1(dy, x):
    return squared_relu_bwd(dy, squared_relu_fwd(x)[1])


assert np.abs(x1).min() > 0.01  # nobody crosses 0 while being moved by 0.003
assert agree((g_dy1, g_x1), adjoint_by_differences(backward1, (dy1, x1), g_dx1), rtol=1e-8)
forward_derivative = 2 * r * g_dx1  # J applied to g_dx: the free half
assert agree(squared_relu_bwd_bwd(g_dx1, dy1, res1)[0], forward_derivative)

# %% [markdown]
# ## The laws, and one check for all of them
#
# Every op of the library keeps three laws:
#
#     y, res          = f_fwd(*inputs)
#     d_inputs        = f_bwd(dy, res)                     # adjoint of f, in the order of the inputs
#     g_dy, *g_inputs = f_bwd_bwd(*g_d_inputs, dy, res)    # adjoint of f_bwd as a function of (dy, *inputs)
#
# `check_adjoint` tests the second and the third by $\langle u, J v \rangle = \langle J^T u, v \rangle$, with $u$ and $v$ at random. $v$ is
# a *tangent*: a direction in which the inputs move. $u$ is a *cotangent*: it has the shape of the output and stands for the gradient
# that comes from above. The left side is a finite difference along $v$. It uses no derivative of the op.
#
# A check is worth what it rejects. So let us break `dense_bwd_bwd` on purpose, in ways that people really do. `check_adjoint` stops at
# the first mistake. To see how large each mistake is, we measure the two sides of the law ourselves and judge nothing. The gradients
# $g_{dx}, g_{dw}, g_{db}$ from above serve as the cotangent $u$. The distance is in units of $|J v|$, as in the check.


# %%
def broken(wrong):
    """dense_bwd_bwd with one mistake."""
    return lambda g_dx, g_dw, g_db, dy, res: wrong(g_db, *dense_bwd_bwd(g_dx, g_dw, g_db, dy, res))


mutants = {
    "right": broken(lambda g_db, g_dy, g_x, g_w, g_b: (g_dy, g_x, g_w, g_b)),
    "g_x negated": broken(lambda g_db, g_dy, g_x, g_w, g_b: (g_dy, -g_x, g_w, g_b)),
    "g_x forgotten": broken(lambda g_db, g_dy, g_x, g_w, g_b: (g_dy, None, g_w, g_b)),
    "g_db missing in g_dy": broken(lambda g_db, g_dy, g_x, g_w, g_b: (g_dy - g_db, g_x, g_w, g_b)),
    "g_w doubled": broken(lambda g_db, g_dy, g_x, g_w, g_b: (g_dy, g_x, 2 * g_w, g_b)),
}

# %%
tangent = [rng.standard_normal(a.shape) for a in (dy, x, w)]  # v: one direction for each input of the backward pass
change = directional_difference(backward, (dy, x, w), tuple([v] for v in tangent), 1e-3)  # J v: how dx, dw, db change along v
left = sum(np.sum(u * j) for u, j in zip((g_dx, g_dw, g_db), change, strict=True))  # <u, J v>


# %%
def distance(mutant):
    """How far <J^T u, v> is from <u, J v>, over |J v|; None is a gradient of zeros."""
    gradients = mutant(g_dx, g_dw, g_db, dy, dense_fwd(x, w, b)[1])[:3]  # J^T u, with respect to dy, x, w
    right = sum(np.sum(g * v) for g, v in zip(gradients, tangent, strict=True) if g is not None)
    return abs(left - right) / np.sqrt(sum(np.sum(j * j) for j in change))


# %%
errors = {name: distance(mutant) for name, mutant in mutants.items()}
fig, ax = plt.subplots(figsize=(9, 4))
ax.plot(list(errors.values()), range(len(errors)), linestyle="none")
ax.axvline(1e-8, color="black", linestyle="--", marker="", linewidth=1.5)
ax.set(xscale="log", xlim=(1e-17, 10), ylim=(-0.6, len(errors) - 0.4), xlabel="relative error (dashed line: what is allowed)")
ax.set_yticks(range(len(errors)), list(errors))
ax.invert_yaxis()
ax.set_title("A wrong second derivative is far off, not slightly")
plt.show()

# %%
report = check_adjoint(dense_fwd, dense_bwd, (x, w, b), dense_bwd_bwd)
print("dense passes, both orders:", report.error < 1e-8, "  entries of the laws checked:", report.checked)
report = check_adjoint(squared_relu_fwd, squared_relu_bwd, (x1,), squared_relu_bwd_bwd)
print("squared ReLU passes, both orders:", report.error < 1e-8)
for name in list(mutants)[1:]:
    try:
        check_adjoint(dense_fwd, dense_bwd, (x, w, b), mutants[name])
    except AdjointError as error:
        print(f"caught: {name:22s} in {str(error).split(':')[0].split(', ')[1]}")
assert errors["right"] < 1e-8 and all(error > 1e-2 for name, error in errors.items() if name != "right")

# %% [markdown]
# The library's code is what we derived, with the same comments. It is printed live, not copied. One thing is new: a caller may
# pass `None` for a gradient that is zero by structure. The fast weight block never asks for weight gradients of its inner pass, so
# products with zeros are not formed.

# %%
print(inspect.getsource(dense_bwd_bwd))

# %% [markdown]
# ## Exercise 1: predict the shapes
#
# A dense layer maps 7 tokens of width 5 to width 9. What are the shapes of $g_{dy}$, $g_x$ and $g_w$? (A shape is a tuple.)

# %% tags=["exercise"]
shape_of_g_dy = None
shape_of_g_x = None
shape_of_g_w = None

# %%
ones = [np.ones(s) for s in ((7, 5), (5, 9), (9,), (7, 9), (7, 5))]  # x, w, b, dy, g_dx
truth = dense_bwd_bwd(ones[4], ones[1], ones[2], ones[3], dense_fwd(*ones[:3])[1])
check("shape_of_g_dy", shape_of_g_dy, truth[0].shape)
check("shape_of_g_x", shape_of_g_x, truth[1].shape)
check("shape_of_g_w", shape_of_g_w, truth[2].shape)

# %% [markdown]
# ## Exercise 2: a gate, twice
#
# A gate multiplies entry by entry: $y = a \odot b$. Derive its backward pass $(dy, a, b) \mapsto (da, db)$ with the three moves, then
# the backward pass of that. The library has no such op. The check knows the forward pass only and compares with finite differences of
# it: because of $\langle g, J^T dy \rangle = \langle dy, J g \rangle$, even the second backward pass can be had from there, as a
# difference of differences.


# %% tags=["exercise"]
def gate_bwd(dy, a, b):
    """Adjoint of y = a * b: returns da, db."""
    return None


def gate_bwd_bwd(g_da, g_db, dy, a, b):
    """Adjoint of gate_bwd as a function of (dy, a, b): returns g_dy, g_a, g_b."""
    return None


# %%
five = [rng.standard_normal((3, 4)) for _ in range(5)]  # g_da, g_db, dy, a, b
check(
    "gate_bwd",
    gate_bwd,
    lambda dy, a, b: adjoint_by_differences(np.multiply, (a, b), dy),
    cases=[tuple(five[2:])],
    mistakes={"which factor is left when a is the one that moves?": lambda dy, a, b: (dy * a, dy * b)},
    returns=("da", "db"),
)

# %%
check(
    "gate_bwd_bwd",
    gate_bwd_bwd,
    lambda g_da, g_db, dy, a, b: second_adjoint_by_differences(np.multiply, (a, b), (g_da, g_db), dy),
    cases=[tuple(five)],
    mistakes={
        "dy occurs in both outputs, so two terms add up": lambda g_da, g_db, dy, a, b: (g_da * b, None, None),
        "dy occurs in both outputs: two terms": lambda g_da, g_db, dy, a, b: (g_db * a, None, None),
        "da is made from b, and db from a": lambda g_da, g_db, dy, a, b: (g_da * a + g_db * b, None, None),
        "in which of the two outputs does a occur?": lambda g_da, g_db, dy, a, b: (None, g_da * dy, None),
        "in which of the two outputs does b occur?": lambda g_da, g_db, dy, a, b: (None, None, g_db * dy),
    },
    returns=("g_dy", "g_a", "g_b"),
)

# %% [markdown]
# **Next:** [2. LayerNorm, twice](02_layernorm_twice.ipynb). There $J$ depends on $x$ in three places, and losing one of them is the
# classic mistake.
