"""LAION's aesthetic predictors: small heads on CLIP features that predict how much people like a picture."""

from pathlib import Path

import torch
from torch import Tensor, nn


def load_head(path: str | Path, dim: int) -> nn.Module:
    """Load a released head: features of unit length (n d) -> scores (n 1), about 1 (ugly) to 10 (beautiful).

    Two layouts exist: one linear layer (`weight`, `bias`), or several (`layers.<number>.weight`, …) with only dropout
    between them, which is not active here.

    Args:
        path: a file of torch.save; read without running code.
        dim: width of the features.

    Raises:
        ValueError: the file does not contain such a head, or the head needs features of another width.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        layers = _layers(state)
    except Exception as err:  # unpickling a damaged file can raise any exception
        reason = str(err) if isinstance(err, ValueError) else type(err).__name__  # torch advises to run the file's code
        raise ValueError(
            f"{path} is not an aesthetic head: expected `weight` and `bias`, or `layers.<number>.weight` and .bias, "
            f"ending in one output ({reason})"
        ) from err
    if layers[0].in_features != dim:
        raise ValueError(
            f"the aesthetic head {path} needs features of width {layers[0].in_features}, but the CLIP model gives "
            f"{dim}: use the head for this model (768 for ViT-L-14, 512 for ViT-B-32 and ViT-B-16)"
        )
    return nn.Sequential(*layers).eval().requires_grad_(False)


def _layers(state: dict[str, Tensor]) -> list[nn.Linear]:
    """Linear layers of a state dict in order. Raises ValueError if it has other keys or widths that do not match."""
    stems = sorted((name.removesuffix("weight") for name in state if name.endswith("weight")), key=_number)
    if {f"{stem}{part}" for stem in stems for part in ("weight", "bias")} != set(state) or not stems:
        raise ValueError(f"its keys are {sorted(state)}")
    if not all(value.isfinite().all() for value in state.values()):
        raise ValueError("it contains NaN or Inf")
    layers = []
    for stem in stems:
        weight, bias = state[f"{stem}weight"].float(), state[f"{stem}bias"].float()
        layer = nn.Linear(weight.shape[1], weight.shape[0])
        layer.load_state_dict({"weight": weight, "bias": bias})
        layers.append(layer)
    widths = [layer.in_features for layer in layers[1:]] + [1]
    if widths != [layer.out_features for layer in layers]:
        raise ValueError(f"the widths of its layers do not match: {[tuple(layer.weight.shape) for layer in layers]}")
    return layers


def _number(stem: str) -> int:
    digits = "".join(filter(str.isdigit, stem))
    return int(digits or 0)
