"""titans-pytorch: ``NeuralMemory`` with a memory of one matrix, its projections and rates replaced by the case's arrays."""

from __future__ import annotations

from typing import Any

from .common import Case, answers

PACKAGE, MODULE, PROGRAM = "titans-pytorch", "titans_pytorch", "titans-pytorch"
NOTES = {"NeuralMemory": "gradients at the memory of the batch's start; identity projections, rates by their logits"}


def neural_memory(x: dict[str, Any], case: Case) -> tuple:
    """Its loss is a mean over channels and its step a sigmoid of logits times a maximum: lr = step dim / 2."""
    import torch
    from titans_pytorch import NeuralMemory
    from titans_pytorch.neural_memory import NeuralMemState

    B, T, D = x["q"].shape
    chunk = int(case["chunk"]) or None
    memory = NeuralMemory(
        dim=D, chunk_size=1, batch_size=chunk, qkv_receives_diff_views=True, pre_rmsnorm=False, mem_model_norm_add_residual=False,
        adaptive_step_transform=lambda rate: rate, default_model_kwargs={"depth": 1},
    )  # fmt: skip

    class Given(torch.nn.Module):
        """An array of the case in place of a projection, the tokens that are asked for; called once per batch, in order."""

        def __init__(self, rate: Any) -> None:
            super().__init__()
            self.rate, self.at = rate, 0

        def forward(self, tokens: Any) -> Any:
            start, self.at = self.at, self.at + tokens.shape[-2]
            return self.rate[..., start : self.at]

    same = torch.nn.Identity()
    memory.to_queries = memory.to_keys = memory.to_values = same
    memory.to_adaptive_step = Given(x["step"] * D / 2)

    class Logits(Given):
        def forward(self, tokens: Any) -> Any:
            return super().forward(tokens).logit()[..., None]

    class Momentum(Logits):
        def forward(self, tokens: Any) -> Any:
            return super().forward(tokens)[None]

    memory.to_decay_factor, memory.to_momentum = Logits(x["decay"]), Momentum(x["momentum"])
    name = memory.memory_model_parameter_names[0]
    weights = {name: x["state_M"]}
    past = ({name: x["state_M"]}, {name: x["state_U"][None]})
    from tensordict import TensorDict

    state = NeuralMemState(0, TensorDict(weights), None, tuple(map(TensorDict, past)), None)
    out, after = memory(torch.stack([x["q"], x["k"], x["v"]]), state=state)
    last, momentum = after.states
    return out, {"state_M": last[name], "state_U": momentum[name][0]}


ADAPTERS = {"NeuralMemory": neural_memory}


def answer(function: str, case: Case) -> Case:
    """The answers of the function of that name."""
    return answers(case, ADAPTERS[function])
