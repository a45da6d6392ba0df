"""Solutions of notebook 11."""


def nats_spared(t, k, dz, eta_W, eta_b):
    """(T,K),(T,D)->(t,)   how alike are the places, times how alike are the errors"""
    return (eta_W * (k[:t] @ k[t]) + eta_b) * (dz[:t] @ dz[t])
