"""LAION's aesthetic predictors: small heads on CLIP features that say how much people would like a picture."""

from pathlib import Path

import torch
from torch import Tensor, nn


def load_head(path: str | Path, dim: int) -> nn.Module:
    """A released head: features of unit length (n d) -> scores (n 1), about 1 (ugly) to 10 (beautiful).

    Both layouts are linear throughout: one layer (`weight`, `bias`), or several (`layers.<number>.weight`, …) with
    nothing but dropout, which does nothing here, between them.

    Args:
        path: a file of torch.save; read without running code.
        dim: width of the features that it will see.

    Raises:
        ValueError: the file is no such head, or is made for features of another width.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        layers = _layers(state)
    except Exception as err:  # a damaged or foreign file raises what its unpickling meets
        raise ValueError(
            f"{path} is no aesthetic head: expected `weight` and `bias`, or `layers.<number>.weight` and .bias, "
            f"ending in one output ({err})"
        ) from err
    if layers[0].in_features != dim:
        raise ValueError(
            f"the aesthetic head {path} is made for features of width {layers[0].in_features}, this CLIP model gives "
            f"{dim}: take the head for it (ViT-L-14 gives 768, ViT-B-32 and ViT-B-16 give 512)"
        )
    return nn.Sequential(*layers).eval().requires_grad_(False)


def _layers(state: dict[str, Tensor]) -> list[nn.Linear]:
    """Linear layers in their order, their widths checked against each other."""
    stems = sorted((name.removesuffix("weight") for name in state if name.endswith("weight")), key=_number)
    if {f"{stem}{part}" for stem in stems for part in ("weight", "bias")} != set(state) or not stems:
        raise ValueError(f"it holds {sorted(state)}")
    if not all(value.isfinite().all() for value in state.values()):
        raise ValueError("it holds NaN or Inf")
    layers = []
    for stem in stems:
        weight, bias = state[f"{stem}weight"].float(), state[f"{stem}bias"].float()
        layer = nn.Linear(weight.shape[1], weight.shape[0])
        layer.load_state_dict({"weight": weight, "bias": bias})
        layers.append(layer)
    widths = [layer.in_features for layer in layers[1:]] + [1]
    if widths != [layer.out_features for layer in layers]:
        raise ValueError(f"its layers do not follow each other: {[tuple(layer.weight.shape) for layer in layers]}")
    return layers


def _number(stem: str) -> int:
    digits = "".join(filter(str.isdigit, stem))
    return int(digits or 0)
