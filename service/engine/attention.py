"""Attention of rows laid end to end: each row over a beginning that all share and over its own keys.

It takes the place of a transformers model's attention function, so that the linear layers see all rows' tokens in one
matrix without padding, and the shared beginning is neither computed nor stored once a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True)
class Prefix:
    """A beginning that prompts share. keys, values: (layers, heads, len(ids), head size)."""

    ids: tuple[int, ...]
    keys: torch.Tensor
    values: torch.Tensor


@dataclass(frozen=True)
class Pass:
    """What attention must know of one forward pass over the laid-out tokens of rows 0 … n-1 of the store.

    keys, values: the store, (layers, rows, heads, positions, head size).
    row, position: for each token, its row and its place among the row's own keys.
    """

    prefix: Prefix | None
    keys: torch.Tensor
    values: torch.Tensor
    row: torch.Tensor
    position: torch.Tensor
    groups: tuple[Group, ...]


@dataclass(frozen=True)
class Group:
    """Rows `first` to `last` of a pass that have up to `width` new tokens each.

    token: (rows, width) index of each token in the pass, padded by repeating one.
    place: for each real token of the group, its index in the flattened (rows × width), and `source` in the pass.
    visible: (rows, 1, width, positions) which own keys each query sees.
    """

    first: int
    last: int
    token: torch.Tensor
    place: torch.Tensor
    source: torch.Tensor
    visible: torch.Tensor


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    concord: Pass,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of laid-out tokens: each row over the shared beginning and its own keys.

    query (1, query heads, tokens, head size), key and value (1, key heads, tokens, head size); the result is
    (1, tokens, query heads, head size).
    """
    layer: int = module.layer_idx  # type: ignore[assignment]
    keys, values = concord.keys[layer], concord.values[layer]
    keys[concord.row, :, concord.position] = key[0].transpose(0, 1)
    values[concord.row, :, concord.position] = value[0].transpose(0, 1)
    heads, tokens, size = query.shape[1:]
    shared = keys.shape[1]
    queries = query[0].transpose(0, 1).reshape(tokens, shared, heads // shared, size) * scaling
    output = torch.empty_like(queries)
    for group in concord.groups:
        rows, width = group.token.shape
        reach = group.visible.shape[-1]
        own_keys = keys[group.first : group.last, :, :reach]
        own_values = values[group.first : group.last, :, :reach]
        # (rows, key heads, queries of the group sharing a key head × width, head size)
        q = queries[group.token].permute(0, 2, 3, 1, 4).reshape(rows, shared, -1, size)
        scores = q @ own_keys.transpose(2, 3)
        scores = scores.view(rows, shared, -1, width, reach)
        scores.masked_fill_(~group.visible[:, :, None], float("-inf"))
        scores = scores.view(rows, shared, -1, reach)
        if concord.prefix is None:
            mixed = torch.softmax(scores, -1, dtype=torch.float32).to(q.dtype) @ own_values
        else:
            begin = concord.prefix.keys.shape[2]
            together = q.transpose(0, 1).reshape(shared, -1, size)
            ahead = (
                (together @ concord.prefix.keys[layer].transpose(1, 2)).view(shared, rows, -1, begin).transpose(0, 1)
            )
            weights = torch.softmax(torch.cat([ahead, scores], -1), -1, dtype=torch.float32).to(q.dtype)
            behind = weights[..., :begin].transpose(0, 1).reshape(shared, -1, begin) @ concord.prefix.values[layer]
            mixed = behind.view(shared, rows, -1, size).transpose(0, 1) + weights[..., begin:] @ own_values
        flat = mixed.view(rows, shared, -1, width, size).permute(0, 3, 1, 2, 4).reshape(rows * width, shared, -1, size)
        output[group.source] = flat[group.place]
    return output.view(1, tokens, heads, size), None


def groups_of(counts: Sequence[int], starts: Sequence[int]) -> tuple[Group, ...]:
    """The rows of a pass in two groups, each with little padding: those that are continued by one token, then the new.

    New rows enter behind the others, so that each group is a slice of the store.
    """
    single = next((i for i, count in enumerate(counts) if count > 1), len(counts))
    bounds = [(first, last) for first, last in ((0, single), (single, len(counts))) if first < last]
    offsets = np.concatenate([[0], np.cumsum(counts)])
    groups = []
    for first, last in bounds:
        width = max(counts[first:last])
        reach = max(start + count for start, count in zip(starts[first:last], counts[first:last], strict=True))
        steps = torch.arange(width)
        count = torch.tensor(counts[first:last])[:, None]
        start = torch.tensor(starts[first:last])[:, None]
        offset = torch.from_numpy(offsets[first:last])[:, None]
        real = steps < count
        token = offset + torch.minimum(steps.expand_as(real), count - 1)
        seen = torch.minimum(start + steps, start + count - 1)  # a padding query sees what the last real one sees
        visible = torch.arange(reach) <= seen[:, :, None]
        place = real.flatten().nonzero()[:, 0]
        groups.append(Group(first, last, token, place, token.flatten()[place], visible[:, None]))
    return tuple(groups)
