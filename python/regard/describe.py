"""What help() shows of a mechanism: its entry in the registry as text."""

from __future__ import annotations

import json
import textwrap

import torch

SHAPES = {"mixer": "x (B, N, D) -> (B, N, D)", "pool": "x (B, N, D) -> (B, D)", "host": "a model of its own",
          "reducer": "x (B, N, D) -> (B, K, D)"}


def required(field: dict) -> bool:
    return field["name"] == "width" and not field["default"]


def documentation(info: dict) -> str:
    """What help() shows, from the registry."""
    lines = [info["title"].rstrip(".") + ".", "", "    " + info["equation"], "",
             f"Family {info['family']}, {info['role']}: {SHAPES[info['role']]}."]
    if info["needs_grid"]:
        lines.append("Needs grid=(rows, columns) of the patch tokens.")
    if info["needs_prefix"]:
        lines.append("Needs prefix >= 1: token 0 is the class token.")
    elif not info["takes_prefix"]:
        lines.append("Has no place for prefix tokens.")
    lines += [f"Paper: {info['paper']}", "", "Configuration:"]
    for field in info["config"]:
        value = "required" if required(field) else f"default {json.dumps(field['default'])}"
        lines += _wrapped(f"{field['name']} ({field['type']}, {value}): {field['doc']}")
    for title, kind, before in (
            ("Inputs", "inputs", ""), ("Outputs beside the main one", "outputs", ""),
            ("Consumes what an earlier layer publishes (an input)", "consumes", ""),
            ("Publishes for later layers (an output)", "publishes", ""),
            ("Auxiliary losses (outputs)", "losses", "loss.")):
        if info[kind]:
            lines += ["", f"{title}:"]
            for port in info[kind]:
                form = f" [{port['form']}]" if port.get("form") else ""
                lines += _wrapped(f"{before}{port['name']}: {port['doc']}{form}")
    lines += ["", *_how_it_is_called(info)]
    return "\n".join(lines)


def _how_it_is_called(info: dict) -> list[str]:
    """Packed sequences, caches, taps and edits; what a configuration cannot do its call refuses by name."""
    if info["role"] == "host":
        return ["Call:", *_wrapped('taps and edits of its layers: outputs=["LAYER.tap.entropy"], '
                                   'edits=[regard.Edit(..., layer="LAYER")]; outputs=["loss"] sums auxiliary losses')]
    lines = ["Call:", *_wrapped("packed: x (1, T, D) with cu_seqlens (S + 1), where it mixes tokens only by attention "
                                "or says that it can"),
             *_wrapped("taps and edits of the attentions inside: see forward and regard.Edit")]
    kept = _cache_of_examples(info)
    if kept:
        lines += _wrapped(f"decode(x, cache): step by step, where the configuration is causal; keeps {kept}")
    else:
        lines += _wrapped("decode: no configuration keeps a cache")
    return lines


def _cache_of_examples(info: dict) -> str:
    """The streams that some example's configuration keeps."""
    streams: dict[str, str] = {}
    for example in info["examples"]:  # a plug-in's may be wrong, which `regard check` tells
        try:
            declared = torch.ops.regard.declare(info["id"], json.dumps(example))
        except ValueError:
            continue
        for stream in json.loads(declared)["caches"]:
            streams.setdefault(stream["name"], stream["kind"])
    return ", ".join(f"{name} ({kind})" for name, kind in streams.items())


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, 112, initial_indent="    ", subsequent_indent="        ")
