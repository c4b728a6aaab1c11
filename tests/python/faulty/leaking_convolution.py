"""Fault: padding on both sides makes a causal convolution read the next token."""

import torch

regard = dict(causal=True)


class Convolution(torch.nn.Module):
    def __init__(self, dim=8):
        super().__init__()
        self.mix = torch.nn.Conv1d(dim, dim, kernel_size=3, padding=1, groups=dim)

    def forward(self, x):
        return self.mix(x.transpose(1, 2)).transpose(1, 2)
