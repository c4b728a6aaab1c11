"""Hosts: whole models whose mixers and pools are registered mechanisms.

    model = regard.models.ViT(img_size=32, patch_size=4, embed_dim=64, depth=2, num_heads=4, mixer="poolformer", ...)
    model = regard.models.preset("deit_tiny", num_classes=10)

`dir(regard.models)` lists the classes; they are those of `regard.nn` with the role "host".
"""

from __future__ import annotations

import json

import torch

from . import nn
from .errors import suggestion

__all__ = ["from_timm", "preset"]


def from_timm(state_dict: dict[str, torch.Tensor], **config) -> nn.Mechanism:
    """A ViT of the given configuration with the weights of timm's: ``from_timm(model.state_dict(), num_classes=10)``.

    Position embeddings, the patch kernel and the input channels are resized to the configuration.
    """
    text = nn.config_json("vit", config)
    names = list(state_dict)
    return nn.own("vit", text, torch.ops.regard.fit_vit(text, [state_dict[name] for name in names], names))


def preset(name: str, **config) -> nn.Mechanism:
    """The ViT of a published size (vit_tiny, deit_base_distilled, ...); config replaces fields of its configuration.

    An unknown name lists the sizes there are.
    """
    return nn.create("vit", **{**json.loads(torch.ops.regard.vit_preset(name)), **config})


def _hosts(refresh: bool = False) -> dict[str, dict]:
    return {nn.class_name(info): info for info in nn._registry(refresh).values() if info["role"] == "host"}


def __getattr__(name: str):
    if name.startswith("_"):
        raise AttributeError(name)
    hosts = _hosts(refresh=True)
    for host, info in hosts.items():
        if host.lower() == name.lower():
            return nn.class_of(info["id"])
    raise AttributeError(f"[regard.models] expected a model among {', '.join(hosts)}; found '{name}'"
                         f"{suggestion(name, hosts)}")


def __dir__():
    return sorted([*__all__, *_hosts(refresh=True)])
