"""No fault: a decoder layer that keeps its keys and values, heads before tokens, and counts its steps."""

import torch

regard = dict(causal=True, cache="cache")


class Attention(torch.nn.Module):
    def __init__(self, dim=8, heads=2):
        super().__init__()
        self.heads = heads
        self.qkv = torch.nn.Linear(dim, 3 * dim)

    def forward(self, x, cache=None):
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        past = 0
        if cache is not None:
            past = cache["past"]
            k, v = torch.cat([cache["k"], k], 2), torch.cat([cache["v"], v], 2)
        i, j = torch.arange(x.shape[1])[:, None] + past, torch.arange(k.shape[2])
        scores = (q @ k.transpose(2, 3) / q.shape[-1] ** 0.5).masked_fill(j > i, float("-inf"))
        y = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
        return y, {"k": k, "v": v, "past": past + x.shape[1]}
