"""Whole stacks, the same weights, with the attention function exchanged: ViT-B/16 and BERT-base."""

from __future__ import annotations

import torch
import torch.nn.functional as F

import regard

from . import measure
from .runner import Settings

WIDTH, HEADS, HIDDEN = 768, 12, 3072
# (label, B, N, blocks): ViT-B/16 at 224 x 224 has 196 patches and a class token; BERT-base reads 512 tokens.
STACKS = (("vit-b16", 8, 197, 12), ("bert-base", 2, 512, 12))


class Block(torch.nn.Module):
    """x += attention(norm(x)); x += mlp(norm(x)); `post`: norms after the sums, as BERT has them."""

    def __init__(self, post: bool):
        super().__init__()
        self.post, self.attend = post, None
        self.norm1, self.norm2 = torch.nn.LayerNorm(WIDTH), torch.nn.LayerNorm(WIDTH)
        self.qkv, self.out = torch.nn.Linear(WIDTH, 3 * WIDTH), torch.nn.Linear(WIDTH, WIDTH)
        self.up, self.down = torch.nn.Linear(WIDTH, HIDDEN), torch.nn.Linear(HIDDEN, WIDTH)

    def _attention(self, x):
        b, n, _ = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
        return self.out(self.attend(q, k, v).transpose(1, 2).reshape(b, n, WIDTH))

    def _mlp(self, x):
        return self.down(F.gelu(self.up(x)))

    def forward(self, x):
        if self.post:
            x = self.norm1(x + self._attention(x))
            return self.norm2(x + self._mlp(x))
        x = x + self._attention(self.norm1(x))
        return x + self._mlp(self.norm2(x))


ATTENTION = {"ours": lambda q, k, v: regard.attention(q, k, v, path="fused"),
             "sdpa": lambda q, k, v: F.scaled_dot_product_attention(q, k, v)}


def _forward(stack, x, name):
    for block in stack:
        block.attend = ATTENTION[name]
    with torch.no_grad():
        return stack(x)


def _step(stack, optimizer, x, name):
    """Forward, mean square, backward, step."""
    for block in stack:
        block.attend = ATTENTION[name]
    optimizer.zero_grad(set_to_none=True)
    stack(x).square().mean().backward()
    optimizer.step()


def run(settings: Settings, stacks=STACKS) -> list[dict]:
    records = []
    for label, b, n, blocks in stacks:
        torch.manual_seed(0)
        stack = torch.nn.Sequential(*[Block(label.startswith("bert")) for _ in range(2 if settings.quick else blocks)])
        optimizer = torch.optim.SGD(stack.parameters(), lr=1e-6)
        x = torch.randn(b, n, WIDTH)
        for mode in ("forward", "training step"):
            call = (lambda name: _forward(stack, x, name)) if mode == "forward" else (
                lambda name: _step(stack, optimizer, x, name))
            pair = [measure.Candidate(name, lambda name=name: call(name)) for name in ATTENTION]
            result = measure.alternate(pair, settings.threads, (3, 9), settings.budget, settings.inner)
            records.append(_record(f"{label}-b{b}-n{n}-{len(stack)}blocks/{mode}", mode, result))
    return records


def _record(name: str, mode: str, result) -> dict:
    ratio = measure.snapped(result.ratio("sdpa", "ours"), result.ratio_spread("sdpa", "ours"))
    return {"name": name, "group": "end to end", "mode": mode, "dtype": "float32", "bars": [], "absent": {},
            "routes": {}, "noisy": result.noisy, "rounds": len(result.rounds["ours"]),
            "clean_rounds": len(result.clean), "ratios": {"sdpa": ratio},
            "candidates": {c: {"seconds": result.median(c), "spread": result.spread(c)} for c in ATTENTION}}
