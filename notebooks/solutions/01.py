"""Solutions to notebook 1."""

shape_of_g_dy = (7, 9)
shape_of_g_x = (7, 5)
shape_of_g_w = (5, 9)


def gate_bwd(dy, a, b):
    """The differential is da b + a db."""
    return dy * b, dy * a


def gate_bwd_bwd(g_da, g_db, dy, a, b):
    """Phi = <g_da, dy b> + <g_db, dy a>."""
    g_dy = g_da * b + g_db * a
    g_a = g_db * dy
    g_b = g_da * dy
    return g_dy, g_a, g_b
