"""The causal short convolution: every channel mixes its last few inputs.

    y_t = sum_j w_j * x_{t - P + j},   j = 0 .. P

for a kernel of J = P + 1 taps (4 is usual), a number per tap and channel (*depthwise*); w_P belongs
to the present. Layers of the attention family put it in front of q, k and v. What comes before the
first token is the state, the last P inputs, oldest first; None stands for zeros, the padding of
training. State in, state out: a sequence may be cut anywhere.

With the padded sequence p = [state, x] the output is a sum of J shifted copies of it, each scaled
by a tap. That is bilinear in (p, w), so the second backward pass is made of the same three sums as
the first and as the forward pass. (A framework's ``Conv1d`` of D groups has w as (D,1,J), and its
bias would be added to y. An activation, SiLU as a rule, is applied afterwards.)
"""

from __future__ import annotations

from typing import NamedTuple

from ..backend import Array, device, namespace


class ShortConvResidual(NamedTuple):
    p: Array  # (B,P+T,D) the state and the inputs
    w: Array  # (J,D)
    carried: bool  # whether a state came in


def short_conv_fwd(
    x: Array, w: Array, state: Array | None = None
) -> tuple[tuple[Array, Array], ShortConvResidual]:
    """(B,T,D),(J,D),(B,P,D)->(B,T,D),(B,P,D)   y_t = sum_j w_j * p_{t+j}, p = [state, x]   (S.4)

    Returns y, and the last P inputs for the next call. Raises ValueError if shapes do not fit
    or the kernel has no tap.
    """
    xp = namespace(x, w, state)
    (batch, _, width), (taps, channels) = x.shape, w.shape
    if channels != width or taps < 1:
        raise ValueError(
            f"a kernel must have shape (J,D) = (taps >= 1, {width}), got {tuple(w.shape)}: one row "
            "per tap, the last one for the present token, one column per channel"
        )
    expected = (batch, taps - 1, width)
    if state is not None and tuple(state.shape) != expected:
        raise ValueError(
            f"the state must be the last {taps - 1} inputs, (B,P,D) = {expected}, got "
            f"{tuple(state.shape)}"
        )
    start = xp.zeros(expected, dtype=x.dtype, device=device(x)) if state is None else state
    p = xp.concat([start, x], axis=1)  # (B,P+T,D)
    return (_mix(p, w), p[:, p.shape[1] - taps + 1 :, :]), ShortConvResidual(
        p, w, state is not None
    )


def short_conv_bwd(
    dy: Array, dstate_out: Array | None, res: ShortConvResidual
) -> tuple[Array, Array, Array | None]:
    """Adjoint of short_conv_fwd: dx, dw, dstate (None without a state).   (S.5)"""
    p, w, carried = res
    before = w.shape[0] - 1
    # forward: y_t = sum_j w_j * p_{t+j}
    dw, dp = _taps(dy, p, w), _spread(dy, w)  # (J,D), (B,P+T,D)
    # forward: state_out = the last P rows of p
    dp = dp if dstate_out is None else dp + _at_end(dstate_out, dy)
    # forward: p = [state, x]
    return dp[:, before:, :], dw, dp[:, :before, :] if carried else None


def short_conv_bwd_bwd(
    g_dx: Array, g_dw: Array, g_dstate: Array | None, dy: Array, res: ShortConvResidual
) -> tuple[tuple[Array, Array], Array, Array, Array | None]:
    """Adjoint of short_conv_bwd as a function of ((dy, dstate_out), x, w, state).   (S.6)

    ``dstate_out`` does not enter the answers. Returns (g_dy, g_dstate_out), g_x, g_w, g_state.
    """
    p, w, carried = res
    xp, before = namespace(g_dx, g_dw, dy), w.shape[0] - 1
    # backward: dx, dstate = dp
    g_dstate = xp.zeros_like(p[:, :before, :]) if g_dstate is None else g_dstate  # (B,P,D)
    g_dp = xp.concat([g_dstate, g_dx], axis=1)  # (B,P+T,D)
    # backward: dp = spread(dy, w) + dstate_out in the last P rows
    g_dy, g_w = _mix(g_dp, w), _taps(dy, g_dp, w)  # (B,T,D), (J,D)
    g_dstate_out = g_dp[:, g_dp.shape[1] - before :, :]  # (B,P,D)
    # backward: dw_j = sum_t dy_t * p_{t+j}
    g_dy, g_p = g_dy + _mix(p, g_dw), _spread(dy, g_dw)  # (B,T,D), (B,P+T,D)
    # forward: p = [state, x]
    g_state = g_p[:, :before, :] if carried else None
    return (g_dy, g_dstate_out), g_p[:, before:, :], g_w, g_state


def _mix(p: Array, w: Array) -> Array:
    """(B,P+T,D),(J,D)->(B,T,D)   sum_j w_j * p_{t+j}"""
    taps, length = w.shape[0], p.shape[1] - w.shape[0] + 1
    y = w[0, :] * p[:, :length, :]  # (B,T,D)
    for j in range(1, taps):
        y = y + w[j, :] * p[:, j : j + length, :]
    return y


def _taps(dy: Array, p: Array, w: Array) -> Array:
    """(B,T,D),(B,P+T,D)->(J,D)   sum_t dy_t * p_{t+j} for every tap j; of w only how many"""
    xp, length = namespace(dy, p), dy.shape[1]
    rows = [xp.sum(dy * p[:, j : j + length, :], axis=(0, 1)) for j in range(w.shape[0])]  # (D,)
    return xp.stack(rows)


def _spread(dy: Array, w: Array) -> Array:
    """(B,T,D),(J,D)->(B,P+T,D)   row i is sum_j w_j * dy_{i-j}: dy back where it was read"""
    xp, before = namespace(dy, w), w.shape[0] - 1
    nothing = xp.zeros((dy.shape[0], before, dy.shape[2]), dtype=dy.dtype, device=device(dy))
    around = xp.concat([nothing, dy, nothing], axis=1)  # (B,P+T+P,D)
    return _mix(around, xp.flip(w, axis=0))


def _at_end(tail: Array, tokens: Array) -> Array:
    """(B,P,D),(B,T,D)->(B,P+T,D)   in the last P rows, 0 before them"""
    xp = namespace(tail, tokens)
    return xp.concat([xp.zeros_like(tokens), tail], axis=1)
