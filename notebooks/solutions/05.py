"""Solutions to notebook 5."""

from typing import NamedTuple

import numpy as np

shape_of_g_dh = (2, 10, 32)
shape_of_g_eta_W1 = ()
shape_of_state_W1 = (2, 8, 32)


def gain_step_bwd(g_gain_fast, eta, sums):
    """gain' = gain - eta sums: both eta and the sums carry the minus."""
    g_gain = g_gain_fast.sum(axis=0)
    g_eta = -(g_gain_fast * sums).sum()
    g_sums = -eta * g_gain_fast
    return g_gain, g_eta, g_sums


class Sweep5(NamedTuple):
    g_da: np.ndarray
    g_h5: np.ndarray
    g_dz: np.ndarray
    g_W2_5: np.ndarray
    g_dn: np.ndarray
    g_z5: np.ndarray
    g_gain5: np.ndarray
    g_dlogits: np.ndarray
    g_U5: np.ndarray
    g_logits: np.ndarray


def mean(v):
    return v.mean(axis=-1, keepdims=True)


def sweep_5(g, v, W2, gain, U):
    """Sweep 2 reversed, last line first."""

    def L(u):
        return v.rho * (u - mean(u) - v.zhat * mean(v.zhat * u))

    # dh = 2 relu(h) da
    g_da = 2 * np.maximum(v.h, 0) * g.dh
    g_h5 = 2 * (v.h > 0) * v.da * g.dh
    # da = dz W2^T, and dz is a value in the memory too
    g_dz = g_da @ W2 + g.dz
    g_W2_5 = g_da.T @ v.dz
    # dz = L(dn gain), dgain = dn zhat, dbias = dn
    Lu = L(g_dz)
    g_dn = Lu * gain + g.dgain * v.zhat + g.dbias
    curvature = v.zhat * mean(g_dz * v.dz) + v.dz * mean(v.zhat * g_dz) + Lu * mean(v.zhat * v.dn * gain)
    g_z5 = L(g.dgain * v.dn) - v.rho * curvature
    g_gain5 = Lu * v.dn
    # dn = dlogits U^T
    g_dlogits = g_dn @ U
    g_U5 = g_dn.T @ v.dlogits
    # dlogits = scale (p - e)
    pulled = v.p * g_dlogits
    g_logits = v.scale * (pulled - v.p * pulled.sum(axis=-1, keepdims=True))
    return Sweep5(g_da, g_h5, g_dz, g_W2_5, g_dn, g_z5, g_gain5, g_dlogits, g_U5, g_logits)
