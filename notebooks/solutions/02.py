"""Solutions to notebook 2."""


def curvature_of_normalisation(u, v, n, rho):
    """The n beside v gives Lv mean(n u), with the same sign as the other two."""
    Lu = rho * (u - u.mean() - n * (n * u).mean())
    Lv = rho * (v - v.mean() - n * (n * v).mean())
    return -rho * (n * (u * Lv).mean() + Lv * (n * u).mean() + Lu * (n * v).mean())


def mean(v):
    return v.mean(axis=-1, keepdims=True)


def rms_bwd(dy, n, rho):
    """d rho = -rho^2 mean(n dz), as in LayerNorm; d n = rho (dz - n mean(n dz)) = L(dz), symmetric."""
    return rho * (dy - n * mean(n * dy))


def rms_bwd_bwd(g_dz, dy, n, rho):
    """Phi = <u, L(v)> = rho (<u, v> - D mean(n u) mean(n v)) with u = g_dz, v = dy: rho once, n
    twice.
    """
    lu, lv = rms_bwd(g_dz, n, rho), rms_bwd(dy, n, rho)
    g_z = -rho * (n * mean(g_dz * lv) + lv * mean(n * g_dz) + lu * mean(n * dy))
    return lu, g_z
