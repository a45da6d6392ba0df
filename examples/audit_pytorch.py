"""Audit a PyTorch model that adapts while it reads: ten lines around it.

    pip install -e . torch==2.13.0
    python examples/audit_pytorch.py
    python -m fwl_ref audit examples.audit_pytorch:evaluator --data README.md
    python -m fwl_ref audit examples.audit_pytorch:cheat --data README.md       # exit status 1

The model is a small recurrent network with random weights: whether a score is legal does not depend
on how good it is.
"""

import copy

import torch

from fwl_ref.audit import audit_scores

torch.manual_seed(0)
model = torch.nn.ModuleDict(
    {
        "embed": torch.nn.Embedding(256, 24),
        "mix": torch.nn.GRU(24, 24, batch_first=True),
        "head": torch.nn.Linear(24, 256),
    }
)


def read(tokens, score_first):
    """Dynamic evaluation: a step of SGD after every segment of 32 tokens. Logits (n-1,256)."""
    net, rows, hidden = copy.deepcopy(model), [], None  # a fresh model for every call: no state is kept
    descent = torch.optim.SGD(net.parameters(), lr=0.5)
    text = torch.from_numpy(tokens)
    for inputs, labels in zip(text[:-1].split(32), text[1:].split(32), strict=True):
        states, last = net["mix"](net["embed"](inputs)[None], hidden)
        logits = net["head"](states[0])
        descent.zero_grad()
        torch.nn.functional.cross_entropy(logits, labels).backward()
        descent.step()
        if not score_first:
            logits = net["head"](net["mix"](net["embed"](inputs)[None], hidden)[0][0])
        rows.append(logits.detach())
        hidden = last.detach()
    return torch.cat(rows)


def evaluator(tokens):
    return read(tokens, score_first=True)


def cheat(tokens):
    return read(tokens, score_first=False)


if __name__ == "__main__":
    with open("README.md", "rb") as file:  # noqa: PTH123 an example
        document = file.read(256)
    for function in (evaluator, cheat):
        print(f"{function.__name__}: {audit_scores(function, document)}")
