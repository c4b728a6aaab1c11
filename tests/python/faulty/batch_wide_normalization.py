"""Fault: mean and variance run over the batch, in evaluation too."""

import torch


class Mixer(torch.nn.Module):
    def __init__(self, dim=8):
        super().__init__()
        self.norm = torch.nn.BatchNorm1d(dim, track_running_stats=False)
        self.mix = torch.nn.Linear(dim, dim)

    def forward(self, x):
        return self.mix(self.norm(x.transpose(1, 2)).transpose(1, 2))
