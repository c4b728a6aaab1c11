"""Fault: a backward that averages over ranks divides a gradient that was never summed."""

import torch

RANKS = 2


class Summed(torch.autograd.Function):
    @staticmethod
    def forward(t):
        return t.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, grad):
        return grad / RANKS

    @staticmethod
    def jvp(ctx, tangent):
        return tangent.clone()


class Mixer(torch.nn.Module):
    def __init__(self, dim=8):
        super().__init__()
        self.mix = torch.nn.Linear(dim, dim)

    def forward(self, x):
        return x + Summed.apply(self.mix(x).mean(1, keepdim=True))
