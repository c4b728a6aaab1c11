"""Fault: a step merges the softmax state of the past without rescaling it to the new maximum."""

import torch

regard = dict(causal=True, cache="cache")


class Attention(torch.nn.Module):
    """y_i = sum_{j <= i} exp(s_j) x_j / sum_{j <= i} exp(s_j), s_j a learned score of token j."""

    def __init__(self, dim=8):
        super().__init__()
        self.score = torch.nn.Linear(dim, 1)

    def forward(self, x, cache=None):
        scores = self.score(x)
        greatest = scores.amax(1, keepdim=True)
        weights = (scores - greatest).exp()
        top, bottom = (weights * x).cumsum(1), weights.cumsum(1)
        if cache is not None:
            top, bottom = top + cache[0][:, None], bottom + cache[1][:, None]
        return top / bottom, (top[:, -1], bottom[:, -1])
