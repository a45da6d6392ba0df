"""titans-pytorch: ``NeuralMemory`` with a memory of one matrix, its projections and rates replaced by the case's arrays."""

from __future__ import annotations

from typing import Any

from .common import Case, answers

PACKAGE, MODULE, PROGRAM = "titans-pytorch", "titans_pytorch", "titans-pytorch"
NOTES = {
    "NeuralMemory": "rates per token and per chunk, gradients at the batch's first memory; identity projections, rates by their logits"
}


def neural_memory(x: dict[str, Any], case: Case) -> tuple:
    """Its loss is a mean over channels and its step a sigmoid of logits times a maximum."""
    import torch
    from tensordict import TensorDict
    from titans_pytorch import NeuralMemory
    from titans_pytorch.neural_memory import NeuralMemState

    D, deep = x["q"].shape[-1], str(case["kind"]) == "titans_mlp"
    size = 1 if deep else int(case.get("minibatch", 1))  # tokens of one update
    batch = int(case["minibatch"]) if deep else int(case["chunk"]) or None if int(case["stale"]) else size  # that share a memory; None: all
    memory = NeuralMemory(
        dim=D, chunk_size=size, batch_size=batch, qkv_receives_diff_views=True, pre_rmsnorm=False, mem_model_norm_add_residual=False,
        adaptive_step_transform=lambda rate: rate, default_model_kwargs={"depth": 1}, model=network(x, case) if deep else None,
    )  # fmt: skip

    class Given(torch.nn.Module):
        """An array of the case in place of a projection, the tokens or chunks that are asked for; called once per batch, in order."""

        def __init__(self, rate: Any) -> None:
            super().__init__()
            self.rate, self.at = rate, 0

        def forward(self, tokens: Any) -> Any:
            start, self.at = self.at, self.at + tokens.shape[-2]
            return self.rate[..., start : self.at]

    same = torch.nn.Identity()
    memory.to_queries = memory.to_keys = memory.to_values = same
    memory.to_adaptive_step = Given(x["step"] * (D if deep else D / 2))  # of |k M - v|^2 / 2 a half, of |f(k) - v|^2 the whole

    class Logits(Given):
        def forward(self, tokens: Any) -> Any:
            return super().forward(tokens).logit()[..., None]

    class Momentum(Logits):
        def forward(self, tokens: Any) -> Any:
            return super().forward(tokens)[None]

    memory.to_decay_factor, memory.to_momentum = Logits(x["decay"][:, ::size]), Momentum(x["momentum"][:, ::size])
    # the program's name of a parameter -> the case's, of M and of U
    names = {n: (f"state_{n}", f"state_U_{n}") if deep else ("state_M", "state_U") for n in memory.memory_model_parameter_names}
    weights, momentum = {n: x[M] for n, (M, _) in names.items()}, {n: x[U][None] for n, (_, U) in names.items()}
    state = NeuralMemState(0, TensorDict(weights), None, (TensorDict(weights), TensorDict(momentum)), None)
    out, after = memory(torch.stack([x["q"], x["k"], x["v"]]), state=state)
    last, momentum = after.states
    return out, {M: last[n] for n, (M, _) in names.items()} | {U: momentum[n][0] for n, (_, U) in names.items()}


def network(x: dict[str, Any], case: Case) -> Any:
    """The memory of ``titans_mlp``, x + LN(gelu(x W1 + b1) W2 + b2), given to the program, whose own networks have no biases."""
    import torch

    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for n in ("W1", "b1", "W2", "b2"):
                setattr(self, n, torch.nn.Parameter(x[f"state_{n}"][0].detach().clone()))

        def forward(self, rows: Any) -> Any:
            # with a row of numbers for each sequence, or without
            h = rows @ self.W1 + self.b1.unsqueeze(-2)
            z = torch.nn.functional.gelu(h, approximate="tanh") @ self.W2 + self.b2.unsqueeze(-2)
            return rows + torch.nn.functional.layer_norm(z, z.shape[-1:], x["gain"], x["bias"], float(case["eps"]))

    return Network()


ADAPTERS = {"NeuralMemory": neural_memory}


def answer(function: str, case: Case) -> Case:
    """The answers of the function of that name."""
    return answers(case, ADAPTERS[function])
