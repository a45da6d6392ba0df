# %% [markdown]
# # 10. From NumPy to a GPU
#
# **Question.** Everything so far ran on NumPy. What has to change before it runs on a GPU, and what must one watch then?
#
# **Answer to look forward to.** Nothing changes. No function of this library knows which array library it works with: the arrays decide.
# What to watch are four things: arrays that do not belong together, hidden copies, float32, and memory.
#
# This page was made on a machine **without** a GPU. A stand-in takes its place: `array_api_strict`, with arrays on a second, pretended
# device. It computes with NumPy, but it refuses whatever the array API standard does not promise, and it never lets an array of the
# second device slip back to the host. That finds mistakes of programming. It says nothing about speed, and nothing about the rounding of
# a real GPU. The last section runs on one if you have it.

# %%
import inspect
import tracemalloc

import matplotlib.pyplot as plt
import numpy as np

from fwl_ref.backend import BackendError, as_dtype, backend_target, like, namespace, to_numpy
from fwl_ref.exercises import agree, check
from fwl_ref.gradcheck import check_adjoint
from fwl_ref.lm.device import to_backend
from fwl_ref.lm.model import Config, initialize, loss_and_gradient
from fwl_ref.ops.layernorm import layernorm_bwd, layernorm_bwd_bwd, layernorm_fwd
from fwl_ref.ops.linear_attention import linear_attention_chunked_fwd, linear_attention_fwd, linear_attention_recurrent_fwd
from fwl_ref.tree import leaves, tree_map

# %%
plt.style.use("fwl_ref.figures.lecture")
try:
    import array_api_strict as strict

    elsewhere = strict.zeros(0, dtype=strict.float64, device=strict.Device("device1"))
    print("The stand-in for a GPU is here.")
except ImportError:
    strict, elsewhere = None, np.zeros(0)
    print("array-api-strict is not installed (pip install array-api-strict): the cells below only repeat NumPy and show nothing new.")

# %% [markdown]
# ## The first line of every op
#
# `xp = namespace(z)` asks the array where it comes from and returns its library. From there on only names that all libraries share are
# used: functions, not methods; `axis` by keyword; no clever indexing. Here is LayerNorm, one op a line, as the library writes it.


# %%
def my_layernorm(z, gain, bias, eps):
    xp = namespace(z, gain, bias)
    mean = xp.mean(z, axis=-1, keepdims=True)  # (...,1)
    centred = z - mean  # (...,D)
    variance = xp.mean(centred * centred, axis=-1, keepdims=True)  # (...,1)
    rstd = 1 / xp.sqrt(variance + eps)  # (...,1)
    return centred * rstd * gain + bias  # (...,D)


rng = np.random.default_rng(0)
on_host = tuple(rng.standard_normal(shape) for shape in ((3, 5), 5, 5))
on_device = tuple(like(a, elsewhere) for a in on_host)  # the same numbers, on the device
y_host, y_device = my_layernorm(*on_host, 1e-5), my_layernorm(*on_device, 1e-5)

# %%
assert namespace(y_device, elsewhere) is namespace(elsewhere)  # the arrays decided
assert agree(to_numpy(y_device), y_host)
assert agree(layernorm_fwd(*on_host, 1e-5)[0], y_host)
print("one source, two libraries, the same numbers:", agree(to_numpy(y_device), y_host))

# %% [markdown]
# The backward pass and the backward pass of the backward pass are functions like any other. The check that proves them adjoint runs on the
# device too.

# %%
for arrays in (on_host, on_device):
    report = check_adjoint(layernorm_fwd, layernorm_bwd, arrays, layernorm_bwd_bwd)
    assert report.error < 1e-6 and report.checked > 5
dy = rng.standard_normal((3, 5))
backward = layernorm_bwd(like(dy, elsewhere), layernorm_fwd(*on_device, 1e-5)[1])
assert agree(tuple(map(to_numpy, backward)), layernorm_bwd(dy, layernorm_fwd(*on_host, 1e-5)[1]))
print("both backward passes hold on the device:", True)

# %% [markdown]
# ## The whole model
#
# Parameters are a tree of arrays. Move the leaves, and the whole model computes where they are: embedding, attention, the fast weight
# block, its six sweeps. If one line of the library fell back to NumPy, the stand-in would raise.

# %%
config = Config(width=16, layers=1, heads=2)
params = initialize(config, dtype="float64")
tokens, labels = rng.integers(0, 256, (2, 2, 40))
loss, gradient = loss_and_gradient(params, tokens, labels, None, config)


def move(a):
    return like(a, elsewhere)


moved = loss_and_gradient(tree_map(move, params), move(tokens), move(labels), None, config)
assert namespace(*leaves(moved[1]), elsewhere) is namespace(elsewhere)  # it raises if a leaf is somewhere else
assert abs(float(loss) - float(moved[0])) < 1e-12
assert agree(tree_map(to_numpy, moved[1]), gradient)
print("loss and every gradient of the model agree:", agree(tree_map(to_numpy, moved[1]), gradient))

# %% [markdown]
# ## What does not belong together is refused
#
# An array on the host and one on a device cannot be added without a copy. A float32 and a float64 array can, but the result is a float64
# array and everything after it twice as slow, and no error says so. `namespace` refuses both, and says what it found.


# %%
def refused(*arrays):
    try:
        namespace(*arrays)
    except TypeError as error:
        return str(error)
    return None


message = refused(np.ones(2), np.ones(2, dtype="float32"))
print(message)
assert "one dtype" in message
if strict is not None:
    assert "one library" in refused(np.ones(2), move(np.ones(2)))
    assert "one device" in refused(strict.ones(2), move(np.ones(2)))
assert refused(move(np.ones(2)), move(np.ones(2))) is None

# %% [markdown]
# ## A copy has two doors
#
# `like` takes a host array to where another array lives. `to_numpy` brings one back. There is no third way: text, random numbers and
# figures are host data, and are moved once. On a GPU a hidden copy is worse than slow, since the host then waits for the device.

# %%
there = like(np.arange(3.0), elsewhere)
back = to_numpy(there)
assert isinstance(back, np.ndarray) and agree(back, np.arange(3.0))
hidden = None
try:
    np.exp(there)  # NumPy's function on an array of the device: only a hidden copy could do that
except (RuntimeError, TypeError) as error:
    hidden = type(error).__name__
assert (hidden is None) == (strict is None)
print("the device refuses a hidden copy:", hidden is not None)

# %% [markdown]
# ## float32 is coarse, and one can say how coarse
#
# On a GPU one computes in float32, with $u = 2^{-24}$ for the relative error of one operation. A sum of $n$ terms may be off by
# $n u / (1 - n u)$. Linear attention has two sums, over the K channels of a key and over the T tokens read so far, so the bound grows with
# the text. We measure against float64, in two forms that differ only in the order of summation: token by token, and in chunks of 64.

# %%
K, lengths, forms = 16, 2 ** np.arange(4, 13), {"token by token": [], "chunks of 64": []}
qkv = rng.standard_normal((3, 1, 4096, K))


def read_past(dtype, T, form, target):
    q, k, v, keep = (like(as_dtype(a, dtype), target, dtype) for a in (*qkv.astype("float32")[:, :, :T], np.asarray(1.0)))
    if form == "token by token":
        return to_numpy(linear_attention_recurrent_fwd(q, k, v, keep)[0][0])
    return to_numpy(linear_attention_chunked_fwd(q, k, v, keep, None, 64)[0][0])


for form, errors in forms.items():
    for T in lengths:
        exact = read_past("float64", T, form, qkv)
        errors.append(np.abs(read_past("float32", T, form, qkv) - exact).max() / np.abs(exact).max())

# %%
terms = lengths + K
bound = 2 * terms * 2.0**-24 / (1 - terms * 2.0**-24)
fig, ax = plt.subplots()
ax.loglog(lengths, bound, marker="", color="black", label="bound")
for form, errors in forms.items():
    ax.loglog(lengths, errors, label=form)
ax.set(xlabel="tokens read, T", ylabel="relative error", title="float32 against float64, linear attention")
ax.legend(loc="upper left")
plt.show()

# %% [markdown]
# The bound holds, and is far from reached: rounding errors have both signs and mostly cancel. Token by token they still pile up; a sum of
# 64 short sums is better than one long one. So compare a GPU with a bound like this one, and never with a tolerance that was widened until
# the test passed.

# %%
for errors in forms.values():
    assert np.all(np.asarray(errors) < bound) and errors[-1] > 2.0**-24  # float32 it was
assert forms["chunks of 64"][-1] < forms["token by token"][-1]
print("float32 stays within its bound:", True)

# %% [markdown]
# ## Memory: why the attention comes in chunks
#
# A GPU is fast and small. The parallel form of linear attention holds a score for every pair of tokens: double the text and it takes four
# times the memory. The chunked form holds the scores of one chunk. Same numbers, another shape of the curve.


# %%
def peak(T, chunk):
    """Most memory in use while the read of T tokens is computed, in steps of 0.05 MB: less than
    that is Python's own.
    """
    tracemalloc.start()
    linear_attention_chunked_fwd(*qkv[:, :, :T], np.asarray(1.0), None, chunk)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return round(most / 5e4) / 20


memory = {chunk: np.array([peak(T, chunk) for T in lengths[3:-1]]) for chunk in (None, 64)}

# %%
fig, ax = plt.subplots()
ax.loglog(lengths[3:-1], memory[None], label="parallel: all pairs of tokens")
ax.loglog(lengths[3:-1], memory[64], label="chunks of 64 tokens")
ax.set(xlabel="tokens, T", ylabel="peak memory (MB)", title="One read of linear attention")
ax.legend()
plt.show()
whole, _ = linear_attention_fwd(*qkv, np.asarray(1.0))
parts, _ = linear_attention_chunked_fwd(*qkv, np.asarray(1.0), None, 64)
assert agree(parts, whole)
assert memory[None][-1] / memory[None][-2] > 3 and memory[64][-1] / memory[64][-2] < 2.5
print("twice the text: parallel takes four times the memory, chunks twice:", True)

# %% [markdown]
# ## The library's source
#
# All that knows of array libraries is one short file, `backend.py`. This is the function in the first line of every op, and the one that
# finds out where arrays come from.

# %%
print(inspect.getsource(namespace))
assert refused(np.ones(2), None) is None  # an absent array is skipped

# %% [markdown]
# ## On a GPU, if there is one
#
# With a GPU and CuPy (`pip install 'fwl_ref[cuda13]'` or `cuda12`) the same functions run there. What to watch on a real device, and no
# stand-in can show:
#
# | watch | why |
# |---|---|
# | `float(loss)`, `print(x)`, `if x > 0` | the host waits until the device is done: fetch rarely, many numbers at once |
# | clocks | a call returns before the work is done: wait for the device, then look at the clock |
# | labels out of range | CuPy wraps an index around without a word: the library checks them on the host, before they move |
# | small arrays | each op is a launch that costs microseconds: batch more, choose larger chunks |
# | reduced precision | some matrix units round inputs to fewer bits if asked to: leave that off when comparing digits |

# %%
try:
    gpu = backend_target("cupy")
except BackendError:
    gpu = None
if gpu is None:
    print("No GPU here: this cell ran on none, and neither did anything above.")
else:
    for dtype, allowed in (("float64", 1e-12), ("float32", bound[-1])):
        exact = read_past("float64", 4096, "chunks of 64", qkv)
        assert np.abs(read_past(dtype, 4096, "chunks of 64", gpu) - exact).max() < allowed * np.abs(exact).max()
    _, on_gpu = loss_and_gradient(to_backend(params, "cupy"), like(tokens, gpu), like(labels, gpu), None, config)
    assert agree(tree_map(to_numpy, on_gpu), gradient)
    print("Linear attention and the model's gradients agree on the GPU.")

# %% [markdown]
# ## Exercise: predict a dtype
#
# A float32 array meets a Python number, and a float32 array meets a NumPy scalar. One of the results is no longer float32, and a step
# size taken from `np.float64` would spoil a whole training run in this way. Which dtypes are they?

# %% tags=["exercise"]
with_python_number = None  # np.ones(2, dtype="float32") * 0.1
with_numpy_scalar = None  # np.ones(2, dtype="float32") * np.float64(0.1)

# %%
a = np.ones(2, dtype="float32")
check("with_python_number", with_python_number, str((a * 0.1).dtype), mistakes={"A Python number has no dtype of its own.": "float64"})
check("with_numpy_scalar", with_numpy_scalar, str((a * np.float64(0.1)).dtype), mistakes={"A NumPy scalar has a dtype.": "float32"})

# %% [markdown]
# ## Exercise: make it run on the device
#
# This softmax is right, and runs on the host only. Write it so that it runs wherever its argument is, and returns an array of the same
# library. Use `namespace`, and nothing that starts with `np`.
#
#     def host_softmax(x):
#         e = np.exp(x - x.max(-1)[..., None])
#         return e / e.sum(-1)[..., None]


# %% tags=["exercise"]
def portable_softmax(x):
    return None  # (...,V)


# %%
def expected_softmax(x):
    e = np.exp(to_numpy(x) - to_numpy(x).max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


hints_of_portable_softmax = {
    "Sum over the last axis, not over all.": lambda x: expected_softmax(to_numpy(x).reshape(-1)).reshape(x.shape),
    "Over which axis is it normalised?": lambda x: np.swapaxes(expected_softmax(np.swapaxes(to_numpy(x), 0, 1)), 0, 1),
}
case = (move(rng.standard_normal((3, 5))),)
check("portable_softmax", portable_softmax, expected_softmax, [case], mistakes=hints_of_portable_softmax)

# %% [markdown]
# ## Exercise: an exclusive cumulative sum
#
# Biases and gains read the sum of what was written *before* them: $\sum_{s<t} v_s$ for `v` (B,T,E), again (B,T,E). The short way,
# `cumsum(v) - v`, leaks: the token's own value goes in and comes out again with a rounding error, so it is not strictly causal. Write it
# without a subtraction, for any array library. (The standard's function is `cumulative_sum`, with an argument for you to find.)


# %% tags=["exercise"]
def sum_of_the_past(v):
    return None  # (B,T,E)


# %%
def by_attention(v):
    """The library's way: linear attention with query and key 1."""
    ones = like(np.ones((*v.shape[:2], 1)), v)
    (out, _), _ = linear_attention_fwd(ones, ones, v, like(np.asarray(1.0), v))
    return out


hints_of_sum_of_the_past = {
    "Token t must not read its own value.": lambda v: np.cumsum(to_numpy(v), axis=1),
    "Along which axis do tokens lie?": lambda v: np.cumsum(to_numpy(v), axis=2) - to_numpy(v),
    "That is the future, not the past.": lambda v: np.flip(to_numpy(by_attention(move(np.flip(to_numpy(v), axis=1)))), axis=1),
}
check("sum_of_the_past", sum_of_the_past, by_attention, [(move(rng.standard_normal((2, 6, 3))),)], mistakes=hints_of_sum_of_the_past)
