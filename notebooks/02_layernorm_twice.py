# %% [markdown]
# # 2. LayerNorm, twice
#
# **Question.** In LayerNorm the Jacobian depends on the input in three places. How does one differentiate its backward pass and lose
# no term?
#
# **Answer to look forward to.** Name the Jacobian: $L$. See that it is symmetric. Then $L$ serves the backward pass, and the same $L$
# serves the second backward pass, and the three places are two short formulas, $\delta\rho$ and $\delta n$.

# %%
import inspect
from itertools import permutations

import matplotlib.pyplot as plt
import numpy as np

from fwl_ref.exercises import adjoint_by_differences, agree, check, second_adjoint_by_differences
from fwl_ref.gradcheck import check_adjoint
from fwl_ref.ops.layernorm import layernorm_bwd, layernorm_bwd_bwd, layernorm_fwd

plt.style.use("fwl_ref.figures.lecture")
rng = np.random.default_rng(1)

# %% [markdown]
# ## Forward, its differential, and a symmetric map
#
# Every token is normalised on its own, so look at one vector $z$ of width $D$; $\mathrm{mean}(v) = \frac1D \sum_i v_i$ is a number.
# One op a line:

# %%
D, eps = 8, 1e-5
z, gain, bias = rng.standard_normal(D), rng.standard_normal(D), rng.standard_normal(D)

c = z - z.mean()  # centred
variance = (c * c).mean()
rho = 1 / np.sqrt(variance + eps)  # one over the standard deviation: rstd in the library
n = rho * c  # normalised
y = n * gain + bias
print("equal to the library's:", agree(y, layernorm_fwd(z, gain, bias, eps)[0]))

# %% [markdown]
# Now each line's differential. First $\delta c = \delta z - \mathrm{mean}(\delta z)$. Second,
#
# $$ \delta\rho = -\tfrac12 \rho^3 \cdot 2\,\mathrm{mean}(c \odot \delta c) =
#    {-\rho^3}\,\mathrm{mean}(c \odot \delta z) = -\rho^2\,\mathrm{mean}(n \odot \delta z) . $$
#
# (The middle step drops $\mathrm{mean}(c)\,\mathrm{mean}(\delta z)$, which is 0 because $c$ is centred; the last one uses
# $c = n/\rho$.) Third,
#
# $$ \delta n = \rho\,\delta c + c\,\delta\rho = \rho \left( \delta z - \mathrm{mean}(\delta z) -
#    n\,\mathrm{mean}(n \odot \delta z) \right) =: L(\delta z) . $$
#
# Keep these two. They are all that this notebook differentiates:
#
# $$ \boxed{\;\delta\rho = -\rho^2\,\mathrm{mean}(n \odot \delta z) \qquad \delta n = L(\delta z)\;} $$
#
# Nothing used $\mathrm{mean}(n \odot n) = 1$, which is false if $\varepsilon > 0$.


# %%
def L(v):
    """The Jacobian of n with respect to z, applied to v."""
    return rho * (v - v.mean() - n * (n * v).mean())


matrix = np.array([L(e) for e in np.eye(D)]).T  # column j is L applied to unit vector j
fig, ax = plt.subplots(figsize=(5.6, 4.6))
limit = np.abs(matrix).max()
image = ax.imshow(matrix, cmap="PuOr", vmin=-limit, vmax=limit)
ax.set(xlabel="entry of $z$ that moves", ylabel="entry of $n$ that follows", title="$L$ is its own transpose")
fig.colorbar(image)
plt.show()

# %% [markdown]
# Why symmetric? Take the inner product with $u$ and use $\langle u, \mathbf 1 \rangle = D\,\mathrm{mean}(u)$ and
# $\langle u, n \rangle = D\,\mathrm{mean}(n \odot u)$:
#
# $$ \langle u, L(v) \rangle = \rho \left( \langle u, v \rangle - D\,\mathrm{mean}(u)\,\mathrm{mean}(v) -
#    D\,\mathrm{mean}(n \odot u)\,\mathrm{mean}(n \odot v) \right) . $$
#
# $u$ and $v$ may trade places. So $\langle u, L(v) \rangle = \langle L(u), v \rangle$: the map is its own adjoint.

# %%
unit_gain = (np.ones(D), np.zeros(D), eps)
by_differences = adjoint_by_differences(lambda z: layernorm_fwd(z, *unit_gain)[0], (z,), bias)[0]
print("L is symmetric:", agree(matrix, matrix.T))
print("L applied backwards agrees with differences:", agree(L(bias), by_differences, rtol=1e-8))
assert agree(matrix, matrix.T) and agree(L(bias), by_differences, rtol=1e-8)

# %% [markdown]
# ## Backward: L once
#
# $\delta y = \mathrm{gain} \odot L(\delta z) + n \odot \delta\mathrm{gain} + \delta\mathrm{bias}$. Inner product with $dy$; to move $L$
# to the other side costs nothing:
#
# $$ dz = L(dy \odot \mathrm{gain}) \qquad d\mathrm{gain} = dy \odot n \qquad d\mathrm{bias} = dy $$

# %%
dy = rng.standard_normal(D)
dbias = dy  # from  y = n gain + bias
dgain = dy * n  # from  y = n gain + bias
v = dy * gain  # from  y = n gain + bias: the gradient of n
dz = L(v)  # from  n = rho c, rho and c of z

_, res = layernorm_fwd(z, gain, bias, eps)
print("dz, dgain, dbias equal the library's:", agree((dz, dgain, dbias), layernorm_bwd(dy, res)))
differences = adjoint_by_differences(lambda *inputs: layernorm_fwd(*inputs, eps)[0], (z, gain, bias), dy)
print("and agree with differences:", agree((dz, dgain, dbias), differences, rtol=1e-8))

# %% [markdown]
# What does $L$ do? With $D = 3$ one can see it. Centring projects onto a plane; dividing by the standard deviation moves every point
# of that plane onto one circle. $n$ can only move *along* the circle, so $L$ keeps the tangential part of a gradient and drops the rest
# (and multiplies by $\rho$, which is left out of the picture).

# %%
plane = np.array([[1, -1, 0], [1, 1, -2]]) / np.sqrt([[2], [6]])  # two directions orthogonal to (1, 1, 1)
angles = np.linspace(0, 2 * np.pi, 9)[:-1] + 0.2
fig, ax = plt.subplots(figsize=(6.4, 6))
ax.add_patch(plt.Circle((0, 0), np.sqrt(3), fill=False, linewidth=2))
for angle in angles:
    point = 3 * np.array([np.cos(angle), np.sin(angle)]) @ plane  # z, off the circle
    normed, r = layernorm_fwd(point, np.ones(3), np.zeros(3), 0.0)
    given = np.array([0.8, 0.5]) @ plane  # the same gradient everywhere
    kept = layernorm_bwd(given, r)[0] / r.rstd[0]
    for arrow, colour in ((given, "#999999"), (kept, "#D55E00")):
        ax.quiver(*(plane @ normed), *(plane @ arrow), color=colour, angles="xy", scale_units="xy", scale=1, width=0.012)
ax.set(xlim=(-3, 3), ylim=(-2.8, 2.8), aspect="equal", xlabel="plane $z_1+z_2+z_3=0$, axis 1", ylabel="axis 2")
ax.set_title("Given gradient (grey), and what $L$ keeps (orange)")
plt.show()

# %%
print("nothing left along 1:", abs(dz.sum()) < 1e-12)
print("almost nothing along n:", abs((n * dz).mean() / (n * v).mean()) < 1e-3, "(eps keeps it from being 0)")
assert agree((dz, dgain, dbias), layernorm_bwd(dy, res)) and abs(dz.sum()) < 1e-12

# %% [markdown]
# ## Backward of backward: L again, and three ways to depend on z
#
# Given $g_{dz}, g_{d\mathrm{gain}}, g_{d\mathrm{bias}}$. Write $u = g_{dz}$ and $v = dy \odot \mathrm{gain}$, so that $dz = L(v)$:
#
# $$ \Phi = \langle u, L(v) \rangle + \langle g_{d\mathrm{gain}}, dy \odot n \rangle + \langle g_{d\mathrm{bias}}, dy \rangle . $$
#
# **With respect to $dy$.** It occurs in all three terms; in the first,
# $\langle u, L(dy \odot \mathrm{gain}) \rangle = \langle L(u) \odot \mathrm{gain}, dy \rangle$.
#
# **With respect to the gain.** In the first term alone: $\langle L(u) \odot dy, \mathrm{gain} \rangle$.
#
# **With respect to the bias.** It does not occur.

# %%
u, g_dgain, g_dbias = rng.standard_normal(D), rng.standard_normal(D), rng.standard_normal(D)

g_dy = L(u) * gain  # from  dz = L(dy gain): L moved to the other side
g_dy = g_dy + g_dgain * n  # from  dgain = dy n
g_dy = g_dy + g_dbias  # from  dbias = dy
g_gain = L(u) * dy  # from  dz = L(dy gain)

g_library = layernorm_bwd_bwd(u, g_dgain, g_dbias, dy, res)
print("g_dy:", agree(g_dy, g_library[0]), "  g_gain:", agree(g_gain, g_library[2]))

# %% [markdown]
# **With respect to $z$.** Here it is. In the second term $z$ sits in $n$:
# $\langle g_{d\mathrm{gain}} \odot dy, \delta n \rangle = \langle L(g_{d\mathrm{gain}} \odot dy), \delta z \rangle$. In the first term
#
# $$ \psi = \langle u, L(v) \rangle = \rho \left( \langle u, v \rangle - D\,\mathrm{mean}(u)\,\mathrm{mean}(v) -
#    D\,\mathrm{mean}(n \odot u)\,\mathrm{mean}(n \odot v) \right) $$
#
# $z$ sits in $\rho$, in the first $n$ and in the second $n$. Three places, three terms, with $u$ and $v$ held fixed:
#
# $$ \delta\psi = \frac{\delta\rho}{\rho}\,\psi \;-\; \rho\,\langle u, \delta n \rangle\,\mathrm{mean}(n \odot v) \;-\;
#    \rho\,\langle v, \delta n \rangle\,\mathrm{mean}(n \odot u) . $$
#
# Insert the two boxed formulas. The first part becomes
#
# $$ \frac{\delta\rho}{\rho}\psi = -\rho\,\mathrm{mean}(n \odot \delta z)\,\psi =
#    {-\rho}\,\mathrm{mean}(u \odot L(v))\,\langle n, \delta z \rangle , $$
#
# because $\psi = D\,\mathrm{mean}(u \odot L(v))$ and $D\,\mathrm{mean}(n \odot \delta z) = \langle n, \delta z \rangle$. And
# $\langle u, \delta n \rangle = \langle L(u), \delta z \rangle$, by symmetry. What multiplies $\delta z$:
#
# | where $z$ sits | its part of $g_z$ |
# |---|---|
# | in $\rho$ | $-\rho\, n\, \mathrm{mean}(u \odot dz)$ |
# | in the $n$ beside $u$ | $-\rho\, L(u)\, \mathrm{mean}(n \odot v)$ |
# | in the $n$ beside $v$ | $-\rho\, dz\, \mathrm{mean}(n \odot u)$ |
# | in $d\mathrm{gain} = dy \odot n$ | $L(g_{d\mathrm{gain}} \odot dy)$ |

# %%
parts = {
    r"$z$ in $\rho$": -rho * n * (u * dz).mean(),
    "$z$ in the $n$ beside $u$": -rho * L(u) * (n * v).mean(),
    "$z$ in the $n$ beside $v$": -rho * dz * (n * u).mean(),
    "$z$ in $dgain$": L(g_dgain * dy),
}
g_z = sum(parts.values())
print("g_z equals the library's:", agree(g_z, g_library[1]))

# %% [markdown]
# None of them is as small as rounding. Without one of them the gradient is always off by percents, and one trains something else.


# %%
def without(part):
    return np.abs(g_z - parts[part] - g_library[1]).max() / np.abs(g_library[1]).max()


errors = {"nothing dropped": max(np.abs(g_z - g_library[1]).max(), 1e-16)} | {f"without: {part}": without(part) for part in parts}
fig, ax = plt.subplots(figsize=(9.5, 4))
ax.plot(list(errors.values()), range(len(errors)), linestyle="none")
ax.set(xscale="log", xlim=(1e-17, 10), ylim=(-0.6, len(errors) - 0.4), xlabel="relative error of $g_z$")
ax.set_yticks(range(len(errors)), list(errors))
ax.invert_yaxis()
ax.set_title("Every one of the four terms is needed")
plt.show()

# %% [markdown]
# Two witnesses, as always: finite differences of the backward pass, and the law. And one that needs no computer. The bracket is a third
# derivative of a scalar function ($D/\rho$), so paired with any third vector $w$ it must not depend on the order of $u$, $v$, $w$:
#
# $$ \mathrm{mean}(n \odot w)\,\langle u, L(v) \rangle + \mathrm{mean}(n \odot u)\,\langle L(v), w \rangle +
#    \mathrm{mean}(n \odot v)\,\langle L(u), w \rangle . $$
#
# You see it: three vectors take turns. A dropped term breaks that symmetry.


# %%
def backward(dy, z, gain):
    return layernorm_bwd(dy, layernorm_fwd(z, gain, bias, eps)[1])


def third(u, v, w):
    return sum((n * a).mean() * (b * L(c)).sum() for a, b, c in ((w, u, v), (u, v, w), (v, u, w)))


differences = adjoint_by_differences(backward, (dy, z, gain), (u, g_dgain, g_dbias))
orders = [third(*order) for order in permutations((u, v, bias))]
print("g_dy, g_z, g_gain agree with differences:", agree((g_dy, g_z, g_gain), differences, rtol=1e-8))
print("the third derivative is symmetric:", max(orders) - min(orders) < 1e-12)
assert agree((g_dy, g_z, g_gain), differences, rtol=1e-8) and max(orders) - min(orders) < 1e-12
assert min(list(errors.values())[1:]) > 0.01

# %% [markdown]
# ## The closed form
#
# All together, four lines for both orders (equations (N.2) and (N.3) in `docs/theory/layernorm.md`):
#
# $$
# \begin{aligned}
# dz &= L(v), \qquad v = dy \odot \mathrm{gain}, \quad u = g_{dz} \\
# g_{dy} &= L(u) \odot \mathrm{gain} + g_{d\mathrm{gain}} \odot n + g_{d\mathrm{bias}} \\
# g_z &= -\rho \left( n\,\mathrm{mean}(u \odot dz) + dz\,\mathrm{mean}(n \odot u) + L(u)\,\mathrm{mean}(n \odot v) \right) +
# L(g_{d\mathrm{gain}} \odot dy) \\
# g_{\mathrm{gain}} &= L(u) \odot dy
# \end{aligned}
# $$
#
# $L$ is applied three times, and nothing but $n$, $\rho$ and the gain is remembered from the forward pass. The library's source, live:

# %%
print(inspect.getsource(layernorm_bwd_bwd))

# %% [markdown]
# The law holds for a batch of tokens, for a gain shared by all or one per token, and for any $\varepsilon$, large ones included: the
# place where a derivation that secretly used $\mathrm{mean}(n \odot n) = 1$ is caught.

# %%
for name, shape in (("shared gain", (D,)), ("a gain per token", (3, D))):
    tokens, g, b = (rng.standard_normal((3, D)), rng.standard_normal(shape), rng.standard_normal(shape))
    for epsilon in (0.0, 1e-5, 0.5):
        report = check_adjoint(lambda z, g, b, e=epsilon: layernorm_fwd(z, g, b, e), layernorm_bwd, (tokens, g, b), layernorm_bwd_bwd)
        print(f"{name}, eps {epsilon}: both orders hold:", report.error < 1e-8)
        assert report.error < 1e-8

# %% [markdown]
# ## Exercise 1: find the wrong sign
#
# A colleague wrote the part of $g_z$ that comes from $\psi = \langle u, L(v) \rangle$. One sign is wrong. Run the check, find the sign,
# mend it. (Which of the three places of $z$ is it?)


# %% tags=["exercise"]
def curvature_of_normalisation(u, v, n, rho):
    """d<u, L(v)>/dz for one token; n (D), rho a number."""
    Lu = rho * (u - u.mean() - n * (n * u).mean())
    Lv = rho * (v - v.mean() - n * (n * v).mean())
    return -rho * (n * (u * Lv).mean() - Lv * (n * u).mean() + Lu * (n * v).mean())


# %%
def truth(u, v, n, rho):  # with gain 1 and g_dgain = 0, g_z is that part alone
    return layernorm_bwd_bwd(u, 0 * u, 0 * u, v, res._replace(n=n, rstd=np.array([rho]), gain=np.ones(D)))[1]


def original(u, v, n, rho):
    Lu, Lv = (rho * (a - a.mean() - n * (n * a).mean()) for a in (u, v))
    return -rho * (n * (u * Lv).mean() - Lv * (n * u).mean() + Lu * (n * v).mean())


hints_of_curvature_of_normalisation = {"swap u and v: the sum must not change, but yours does": original}
check("curvature_of_normalisation", curvature_of_normalisation, truth, [(u, v, n, rho)], hints_of_curvature_of_normalisation)

# %% [markdown]
# ## Exercise 2: RMSNorm, twice
#
# RMSNorm does not centre: $\rho = (\mathrm{mean}(z \odot z) + \varepsilon)^{-1/2}$ and $y = n = \rho z$ (no gain, no bias). Derive
# $\delta\rho$, $\delta n = L(\delta z)$, see that this $L$ is symmetric too, and write both backward passes. `n` has one row per token,
# `rho` is (T,1). The check compares with finite differences.


# %% tags=["exercise"]
def rms_bwd(dy, n, rho):
    """Adjoint of y = n = rho z: returns dz."""
    return None


def rms_bwd_bwd(g_dz, dy, n, rho):
    """Adjoint of rms_bwd as a function of (dy, z): returns g_dy, g_z."""
    return None


# %%
def rms(z):
    rho = 1 / np.sqrt((z * z).mean(axis=-1, keepdims=True) + eps)
    return rho * z, rho


zs, dys, us = (rng.standard_normal((3, 5)) for _ in range(3))


def rms_truth(dy, n, rho):
    return adjoint_by_differences(lambda z: rms(z)[0], (zs,), dy)[0]


# %%
hints_of_rms_bwd = {
    "rho depends on z too": lambda dy, n, rho: rho * dy,
    "what is the sign of d rho?": lambda dy, n, rho: 2 * rho * dy - rms_truth(dy, n, rho),
    "nothing is centred here": lambda dy, n, rho: rms_truth(dy, n, rho) - rho * dy.mean(axis=-1, keepdims=True),
    "each token has its own mean (axis=-1, keepdims=True)": None,
}
check("rms_bwd", rms_bwd, rms_truth, [(dys, *rms(zs))], hints_of_rms_bwd)

# %%
check(
    "rms_bwd_bwd",
    rms_bwd_bwd,
    lambda g_dz, dy, n, rho: second_adjoint_by_differences(lambda z: rms(z)[0], (zs,), (g_dz,), dy),
    cases=[(us, dys, *rms(zs))],
    mistakes={
        "L does depend on z": lambda g_dz, dy, n, rho: (None, 0 * n),
        "the free half: L is symmetric": "g_dy",
        "L holds rho once and n twice: three terms, as above": "g_z",
    },
    returns=("g_dy", "g_z"),
)

# %% [markdown]
# **Next:** [3. A transformer by hand](03_a_transformer_by_hand.ipynb). One more symmetric Jacobian, the softmax, and then only
# bookkeeping.
