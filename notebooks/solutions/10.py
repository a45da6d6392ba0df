"""Solutions of notebook 10."""

from fwl_ref.backend import namespace

with_python_number = "float32"
with_numpy_scalar = "float64"


def portable_softmax(x):
    """Names of the array API standard only."""
    xp = namespace(x)
    e = xp.exp(x - xp.max(x, axis=-1, keepdims=True))  # (...,V)
    return e / xp.sum(e, axis=-1, keepdims=True)  # (...,V)


def sum_of_the_past(v):
    """Start the sum at 0 and leave out the last: shift, do not subtract."""
    xp = namespace(v)
    return xp.cumulative_sum(v, axis=1, include_initial=True)[:, :-1, :]  # (B,T,E)
