"""The Vision Transformer again, in plain PyTorch and the names of timm: what regard's is held against."""

import math

import torch
import torch.nn.functional as F

DEFAULTS = {
    "img_size": 224, "patch_size": 16, "in_chans": 3, "num_classes": 1000, "global_pool": "token", "embed_dim": 768,
    "depth": 12, "num_heads": 12, "mlp_ratio": 4.0, "qk_norm": False, "scale_attn_norm": False, "init_values": None,
    "class_token": True, "pos_embed": "learn", "no_embed_class": False, "reg_tokens": 0, "pre_norm": False,
    "final_norm": True, "fc_norm": None, "pool_include_prefix": False, "dynamic_img_size": False,
    "dynamic_img_pad": False, "distilled": False,
}


def pair(value):
    if isinstance(value, (list, tuple)):
        return (value[0], value[-1])
    return (value, value)


def cubic(x, a=-0.5):
    x = abs(x)
    if x < 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    if x < 2:
        return a * (x**3 - 5 * x**2 + 8 * x - 4)
    return 0.0


def resize_matrix(old, new):
    """(new, old): antialiased bicubic along one dimension, every entry from the formula."""
    stretch = old / new
    width = max(1.0, stretch)
    matrix = torch.zeros(new, old, dtype=torch.float64)
    for i in range(new):
        center = (i + 0.5) * stretch
        taps = {j: cubic((j + 0.5 - center) / width) for j in range(old) if abs(j + 0.5 - center) < 2 * width}
        total = sum(taps.values())
        for j, tap in taps.items():
            matrix[i, j] = tap / total
    return matrix


def resize_positions(pos_embed, old, new, prefix):
    count = pos_embed.shape[1] - prefix
    if new[0] * new[1] == count and new[0] == new[1]:
        return pos_embed
    grid = pos_embed[0, prefix:].reshape(old[0], old[1], -1)
    rows, columns = (resize_matrix(o, n).to(pos_embed.dtype) for o, n in zip(old, new))
    grid = torch.einsum("ai,bj,ijd->abd", rows, columns, grid).reshape(1, new[0] * new[1], -1)
    return torch.cat([pos_embed[:, :prefix], grid], dim=1)


def norm(params, name, x):
    return F.layer_norm(x, x.shape[-1:], params[f"{name}.weight"], params[f"{name}.bias"], 1e-6)


def linear(params, name, x):
    return F.linear(x, params[f"{name}.weight"], params.get(f"{name}.bias"))


def mlp(params, name, x):
    hidden = F.gelu(linear(params, f"{name}.fc1", x))
    if f"{name}.norm.weight" in params:
        hidden = norm(params, f"{name}.norm", hidden)
    return linear(params, f"{name}.fc2", hidden)


def attend(q, k, v, heads):
    """q (B, M, D), k and v (B, N, D), heads as contiguous channel blocks."""
    split = [t.reshape(t.shape[0], t.shape[1], heads, -1) for t in (q, k, v)]
    scores = torch.einsum("bmhe,bnhe->bhmn", split[0], split[1]) / math.sqrt(split[0].shape[-1])
    return torch.einsum("bhmn,bnhe->bmhe", scores.softmax(-1), split[2]).flatten(2)


def attention(config, params, name, x):
    q, k, v = linear(params, f"{name}.qkv", x).chunk(3, dim=-1)
    if config["qk_norm"]:
        heads = config["num_heads"]
        q = norm(params, f"{name}.q_norm", q.unflatten(-1, (heads, -1))).flatten(-2)
        k = norm(params, f"{name}.k_norm", k.unflatten(-1, (heads, -1))).flatten(-2)
    mixed = attend(q, k, v, config["num_heads"])
    if config["scale_attn_norm"]:
        mixed = norm(params, f"{name}.norm", mixed)
    return linear(params, f"{name}.proj", mixed)


def embed(config, params, x):
    patch, image = pair(config["patch_size"]), pair(config["img_size"])
    if config["dynamic_img_pad"]:
        x = F.pad(x, (0, -x.shape[3] % patch[1], 0, -x.shape[2] % patch[0]))
    tokens = F.conv2d(x, params["patch_embed.proj.weight"], params.get("patch_embed.proj.bias"), stride=patch)
    grid = tokens.shape[2:]
    tokens = tokens.flatten(2).transpose(1, 2)
    front = [params[name].expand(len(x), -1, -1) for name in ("cls_token", "dist_token", "reg_token") if name in params]
    prefix = sum(t.shape[1] for t in front)
    if config["pos_embed"] == "learn":
        positions = params["pos_embed"]
        if config["dynamic_img_size"]:
            old = (image[0] // patch[0], image[1] // patch[1])
            positions = resize_positions(positions, old, grid, 0 if config["no_embed_class"] else prefix)
        if config["no_embed_class"]:
            tokens = torch.cat(front + [tokens + positions], dim=1)
        else:
            tokens = torch.cat(front + [tokens], dim=1) + positions
    else:
        tokens = torch.cat(front + [tokens], dim=1)
    if config["pre_norm"]:
        tokens = norm(params, "norm_pre", tokens)
    return tokens, prefix


def pool(config, params, x, prefix):
    kind = config["global_pool"]
    if kind in ("", "none"):
        return x
    if kind == "token":
        return x[:, 0]
    if kind == "prr":
        refined = attend(x, x, x, config["num_heads"])
        return refined[:, 0] if config["class_token"] else refined.mean(1)
    patches = x if config["pool_include_prefix"] else x[:, prefix:]
    if kind == "map":
        q = linear(params, "attn_pool.q", params["attn_pool.latent"].expand(len(x), -1, -1))
        k, v = linear(params, "attn_pool.kv", patches).chunk(2, dim=-1)
        z = linear(params, "attn_pool.proj", attend(q, k, v, config["num_heads"]))
        return (z + mlp(params, "attn_pool.mlp", norm(params, "attn_pool.norm", z)))[:, 0]
    return {"avg": patches.mean(1), "max": patches.amax(1), "avgmax": (patches.amax(1) + patches.mean(1)) / 2}[kind]


def forward(given, params, x):
    """{"out", "features", "embedded"} of a configuration in timm's words."""
    config = DEFAULTS | given
    after = config["fc_norm"]
    if after is None:
        after = config["global_pool"] in ("avg", "max", "avgmax")
    x, prefix = embed(config, params, x)
    embedded = x
    for i in range(config["depth"]):
        name = f"blocks.{i}"
        ls1, ls2 = params.get(f"{name}.ls1.gamma", 1.0), params.get(f"{name}.ls2.gamma", 1.0)
        x = x + ls1 * attention(config, params, f"{name}.attn", norm(params, f"{name}.norm1", x))
        x = x + ls2 * mlp(params, f"{name}.mlp", norm(params, f"{name}.norm2", x))
    if config["final_norm"] and not after:
        x = norm(params, "norm", x)
    features = x
    if config["distilled"]:
        out = (linear(params, "head", x[:, 0]) + linear(params, "head_dist", x[:, 1])) / 2
        return {"out": out, "features": features, "embedded": embedded}
    x = pool(config, params, x, prefix)
    if config["final_norm"] and after:
        x = norm(params, "fc_norm", x)
    out = linear(params, "head", x) if config["num_classes"] else x
    return {"out": out, "features": features, "embedded": embedded}
