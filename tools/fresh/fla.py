"""flash-linear-attention (fla-core): its naive references, one head, scale 1."""

from __future__ import annotations

from typing import Any

from .common import Case, answers, bare_module, changed, strict_read

PACKAGE, MODULE, PROGRAM = "fla-core", "fla", "flash-linear-attention, naive references"
TITANS = (  # LayerNorm away: the loss is |k M - v|^2, the read q M
    ("        # v_new = grad\n\n        # Update S_t", "        v_new = km - v_t\n\n        # Update S_t", 1),
    ("        output_t = output_t + (output_t - mean) / rstd * w + b\n        outputs.append", "        outputs.append", 1),
    ("    S_prev = torch.zeros_like(M_prev)\n    outputs", "    S_prev = MOMENTUM\n    outputs", 1),
)
TTT = (("        o[i] = o_i + (o_i - mean)", "        o[i] = q_i + (o_i - mean)", 1),)


def naive(path: str, file: str = "naive") -> Any:
    """fla.ops.PATH.naive"""
    return bare_module(f"fla.ops.{path}.{file}")


def one_head(*arrays: Any) -> list[Any]:
    """(B,T,...) -> (B,T,1,...)"""
    return [a.unsqueeze(2) for a in arrays]


def linear(x: dict, case: Case) -> tuple:
    q, k, v = one_head(x["q"], x["k"], x["v"])
    out, S = naive("linear_attn").naive_recurrent_linear_attn(q, k, v, 1.0, x["state"][:, None], True)
    return out[:, :, 0], {"state": S[:, 0]}


def simple_gla(x: dict, case: Case) -> tuple:
    q, k, v, g = one_head(x["q"], x["k"], x["v"], x["gamma"].log())
    out, S = naive("simple_gla").naive_chunk_simple_gla(q, k, v, g, x["state"][:, None], True, 8, 1.0)
    return out[:, :, 0], {"state": S[:, 0]}


def gla(x: dict, case: Case) -> tuple:
    K = x["q"].shape[-1]
    q, k, v, g = one_head(x["q"] * K**0.5, x["k"], x["v"], x["alpha"].log())
    out, S = naive("gla").naive_recurrent_gla(q, k, v, g, x["state"][:, None], True)
    return out[:, :, 0], {"state": S[:, 0]}


def rwkv6(x: dict, case: Case) -> tuple:
    q, k, v, w = (a.unsqueeze(1) for a in (x["q"], x["k"], x["v"], x["alpha"].log()))
    u = q.new_zeros(1, q.shape[-1])
    out, S = naive("rwkv6", "recurrent_naive").naive_recurrent_rwkv6(q, k, v, w, u, 1.0, x["state"][:, None], True)
    return out[:, 0], {"state": S[:, 0]}


def iplr(x: dict, case: Case) -> tuple:
    K, kb = x["q"].shape[-1], x["k"] * x["beta"][..., None]
    arrays = [a.unsqueeze(1) for a in (x["q"] * K**0.5, kb, x["v"], -x["k"], kb)]
    out, S = naive("generalized_delta_rule.iplr").iplr_recurrence(*arrays, x["state"][:, None], True)
    return out[:, 0], {"state": S[:, 0]}


def gated_delta(x: dict, case: Case) -> tuple:
    q, k, v, beta, g = one_head(x["q"], x["k"], x["v"], x["beta"], x["alpha"].log())
    out, S = naive("gated_delta_rule").naive_recurrent_gated_delta_rule(q, k, v, beta, g, 1.0, x["state"][:, None], True)
    return out[:, :, 0], {"state": S[:, 0]}


def kda(x: dict, case: Case) -> tuple:
    g = x["alpha"].log()
    g = g[..., None].expand(x["k"].shape) if g.ndim == 2 else g
    q, k, v, g, beta = one_head(x["q"], x["k"], x["v"], g, x["beta"])
    out, S = naive("kda").naive_recurrent_kda(q, k, v, g, beta, 1.0, x["state"][:, None], True)
    return out[:, :, 0], {"state": S[:, 0]}


def dplr(x: dict, case: Case, function: str = "dplr_recurrence", **more: int) -> tuple:
    K = x["q"].shape[-1]
    arrays = [a.unsqueeze(1) for a in (x["q"] * K**0.5, x["k"], x["v"], x["a"], x["b"], x["alpha"].log())]
    module = naive("generalized_delta_rule.dplr")
    out, S = getattr(module, function)(*arrays, initial_state=x["state"][:, None], output_final_state=True, **more)
    return out[:, 0], {"state": S[:, 0]}


def dplr_chunkwise(x: dict, case: Case) -> tuple:
    return dplr(x, case, "dplr_chunkwise", chunk_size=x["q"].shape[1])


def delta_product(x: dict, case: Case) -> tuple:
    N = x["k"].shape[2]
    k, v, beta = (x[n].flatten(1, 2).unsqueeze(2) for n in ("k", "v", "beta"))
    g = x["alpha"].log().unsqueeze(2) if "alpha" in x else None
    reference = naive("gated_delta_product").naive_recurrent_gated_delta_product
    out, S = reference(x["q"].unsqueeze(2), k, v, g, beta, 1.0, None, x["state"][:, None], True, N)
    return out[:, :, 0], {"state": S[:, 0]}


def mesa(x: dict, case: Case) -> tuple:
    q, k, v, g, beta = one_head(x["q"], x["k"], x["v"], x["keep"].log(), x["weight"])
    lamb, H, G = x["ridge"][None], x["state_H"][:, None], x["state_G"][:, None]
    out, H, G = naive("mesa_net").naive_mesa_net_exact(q, k, v, g, lamb, beta, H, G)
    return out[:, :, 0], {"state_G": G[:, 0], "state_H": H[:, 0]}


def ttt_linear(x: dict, case: Case) -> tuple:
    program = changed(naive("ttt"), *TTT)
    q, k, v = one_head(x["q"] * 1, x["k"], x["v"])
    eta = 2 * x["step"][:, :, None, None]
    W, b = x["state_W"][:, None], x["state_b"][:, None, None]
    more = {"scale": 1.0, "eps": float(case["eps"]), "mini_batch_size": int(case["minibatch"])}
    out, W, b = program.chunk_ttt_linear_ref(q, k, v, x["gain"][None], x["bias"][None], eta, **more,
                                             initial_state=W, initial_state_bias=b, output_final_state=True)  # fmt: skip
    return out[:, :, 0], {"state_W": W[:, 0], "state_b": b[:, 0, 0]}


def titans(x: dict, case: Case) -> tuple:
    import torch

    program = changed(naive("titans"), *TITANS)
    program.MOMENTUM = x["state_U"][:, None]
    chunk = int(case["chunk"]) or x["q"].shape[1]

    def run(more: bool) -> tuple:
        """With one more token: momentum 1, decay 1, step 0 makes the memory the momentum."""
        tokens = {n: x[n][:, None] if x[n].ndim == 3 else x[n][:, None, :, None] for n in ("q", "k", "v", "step", "decay", "momentum")}
        if more:
            last = {"decay": 1.0, "momentum": 1.0}
            tokens = {n: torch.cat([a, torch.full_like(a[:, :, :1], last.get(n, 0.0))], 2) for n, a in tokens.items()}
        t, D = tokens, x["q"].shape[-1]
        norm = (torch.ones(D), torch.zeros(D))
        rates = (t["step"] / 2, t["decay"], t["momentum"])
        return program.titans_linear(t["q"], t["k"], t["v"], *norm, *rates, 1e-6, chunk, x["state_M"][:, None], True)

    out, M = run(False)
    return out.reshape(x["q"].shape), {"state_M": M[:, 0], "state_U": run(True)[1][:, 0]}


NOTHING = {"gamma": 1.0, "alpha": 1.0, "keep": 1.0}  # of a token that writes nothing; all else is 0
STRICT_BY_ITSELF = ("naive_recurrent_rwkv6",)
ADAPTERS = {
    "naive_recurrent_linear_attn": linear,
    "naive_chunk_simple_gla": simple_gla,
    "naive_recurrent_gla": gla,
    "naive_recurrent_rwkv6": rwkv6,
    "iplr_recurrence": iplr,
    "naive_recurrent_gated_delta_rule": gated_delta,
    "naive_recurrent_kda": kda,
    "dplr_recurrence": dplr,
    "dplr_chunkwise": dplr_chunkwise,
    "naive_recurrent_gated_delta_product": delta_product,
    "naive_mesa_net_exact": mesa,
    "chunk_ttt_linear_ref": ttt_linear,
    "titans_linear": titans,
}
LEAVE_OUT = {"chunk_ttt_linear_ref": ("g_step",)}  # its step belongs to the reader
NOTES = {
    "chunk_ttt_linear_ref": "its read z + LN(z) made q + LN(z); no g_step: its step belongs to the reader",
    "titans_linear": "its LayerNorm taken away, the momentum that comes in given",
}


def answer(function: str, case: Case) -> Case:
    """The answers of the function of that name."""
    program = ADAPTERS[function]
    if str(case["read"]) == "strict" and function not in STRICT_BY_ITSELF:
        program = strict_read(program, NOTHING)
    return answers(case, program, LEAVE_OUT.get(function, ()))
