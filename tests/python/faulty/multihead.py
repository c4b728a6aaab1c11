"""torch's own module: its rows without keys are NaN."""

import torch

torch.manual_seed(0)
module = torch.nn.MultiheadAttention(8, 2, batch_first=True)
