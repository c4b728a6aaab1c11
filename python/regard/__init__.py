"""Regard: attention mechanisms declared once, then trained, decoded, sharded and looked into.

attention, PairOutput, AttentionOutput     o = normalizer(score) v with score, mask and weight as ordinary functions
attention_paged                            attention over keys and values in pages
scaled_dot_product_attention               torch's function of that name, on Regard
BlockIndex, attention_blocks               attention to chosen key blocks only, in memory of what is kept
linear_attention                           kernelized, gated and delta-rule attention with a state
merge                                      two softmax states over disjoint keys as one
AttentionState                             what attention has seen so far: absorb, merge, finish
AttentionMap, RowStatistics                the attention matrix, looked into without being formed
Edit                                       a change of the attentions inside a module, for one call
Spec                                       attention as data: traced once, printed, stored, compared
nn, models                                 every registered mechanism and model as a torch.nn.Module
scale                                      sequences dealt out over devices: rings, shards, bytes sent
create, list_mechanisms, load_plugin       mechanisms by id
group_heads                                multi-head attention as grouped-query attention
load                                       a mechanism and its weights from the file that its save(path) wrote
check, check_file                          the theorems, run on a mechanism or on the module of a Python file
path_counts, reset_path_counts, strict     which path ran; fallbacks as errors
route_counts, reset_route_counts           which kernel of the fused path ran
Explanation                                what a call does and costs: attention(..., explain=True)
expr                                       leaves beyond a function's arguments: dot, scale, keys, queries
TraceError                                 a function that cannot be traced, with its file and line
"""

import torch as _torch

from . import _library

from . import expr, models, nn, scale, tracing
from .attention import (AttentionOutput, attention, merge, path_counts, reset_path_counts, reset_route_counts,
                        route_counts, scaled_dot_product_attention, strict)
from .attention_map import AttentionMap, RowStatistics
from .blocks import BlockIndex, attention_blocks
from .checking import check, check_file
from .conversion import group_heads
from .edit import Edit
from .errors import TraceError
from .explanation import Explanation
from .linear_attention import LinearAttentionOutput, linear_attention
from .nn import create, list_mechanisms, load, load_plugin
from .paged import attention_paged
from .spec import Spec
from .state import AttentionState
from .trace import PairOutput

__all__ = ["AttentionMap", "AttentionOutput", "AttentionState", "BlockIndex", "Edit", "Explanation", "LinearAttentionOutput",
           "PairOutput", "RowStatistics", "Spec", "TraceError", "attention", "attention_blocks", "attention_paged",
           "check", "check_file", "create", "expr", "group_heads", "linear_attention", "list_mechanisms", "load",
           "load_plugin", "merge", "models", "nn", "path_counts", "reset_path_counts", "reset_route_counts", "route_counts", "scale",
           "scaled_dot_product_attention", "strict"]

__version__ = _torch.ops.regard.version()
