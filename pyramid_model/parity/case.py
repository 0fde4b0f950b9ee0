"""A reference case: recorded inputs and results of the original implementation, compared with our results.

The folder of a case contains `config.json` (constructor arguments and options, with the original names) and
`.safetensors` files: inputs `in.*`, random draws `rng.*`, results, weights. A runner takes the inputs from a `Case` and
passes our results to `Case.check`. A recorded result that no runner checks makes the case fail.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from pyramid_model.weights.released_names import Names, released_name
from pyramid_model.weights.weights import load_released

CONFIG, TENSORS, WEIGHTS = "config.json", "tensors.safetensors", "weights.safetensors"
NO_RESULTS = ("in.", "rng.", "mid.", "unit.")  # inputs, draws and intermediate values, which need not be checked
REQUIRED: Any = object()


class CaseError(ValueError):
    """A case cannot be read, or needs something that is not supported."""


@dataclass(frozen=True)
class Comparison:
    """Comparison of our result with the reference, at the element with the largest error relative to its tolerance."""

    name: str
    error: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether the error is within the tolerance; False for NaN."""
        return self.error <= self.tolerance

    @property
    def used(self) -> float:
        """Error divided by tolerance; infinite for NaN, and for any error if the tolerance is 0."""
        if math.isnan(self.error):
            return math.inf
        return self.error / self.tolerance if self.tolerance else (math.inf if self.error else 0.0)


class Case:
    """One case: its inputs, and the comparisons of its results.

    Attributes:
        folder: of the case.
        config: content of config.json.
        name: value of the key `case`: the kind, and possibly a variant.
        comparisons: results of the checks so far.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.config = read_config(folder)
        self.name = str(self.setting("case"))
        self.comparisons: list[Comparison] = []
        self._file = folder / TENSORS
        self._tensors: dict[str, Tensor] = {}
        self._unused: set[str] = set()

    def open(self) -> None:
        """Read the tensors.

        Raises:
            CaseError: the file of tensors is missing or damaged.
        """
        if not self._file.exists():
            raise CaseError(f"{self.folder} has no {self._file.name}")
        self._tensors = read_tensors(self._file)
        self._unused = set(self._tensors)

    def setting(self, name: str, default: Any = REQUIRED) -> Any:
        """Value of a key of config.json; the default if the key is missing.

        Raises:
            CaseError: the key is missing and there is no default.
        """
        if default is REQUIRED and name not in self.config:
            raise CaseError(f"{self.folder / CONFIG} has no key {name!r}")
        return self.config.get(name, default)

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._tensors:
            raise CaseError(f"{self._file} has no tensor {name!r}")
        self._unused.discard(name)
        return self._tensors[name]

    def names(self, prefix: str) -> list[str]:
        """Names of the tensors that start with `prefix`; numbers in names are sorted by value."""
        return sorted((name for name in self._tensors if name.startswith(prefix)), key=_counting_order)

    def series(self, prefix: str) -> list[Tensor]:
        """The tensors of `names`."""
        return [self[name] for name in self.names(prefix)]

    def skip(self, name: str) -> None:
        """Exclude a tensor that we do not reproduce from `unused`."""
        self._unused.discard(name)

    def check(self, name: str, actual: Tensor, atol: float, rtol: float = 0.0) -> None:
        """Compare with the tensor `name`; each element may differ by atol + rtol * |reference|."""
        self.check_value(name, actual, self[name], atol, rtol)

    def check_if_present(self, name: str, actual: Tensor, atol: float, rtol: float = 0.0) -> None:
        """As `check`, for a tensor that is missing in some cases."""
        if name in self:
            self.check(name, actual, atol, rtol)

    def check_value(self, name: str, actual: Tensor | float, expected: Any, atol: float, rtol: float = 0.0) -> None:
        """As `check`, for a reference value from config.json.

        Other shapes are a failed comparison, after which the case goes on.

        Raises:
            CaseError: there is no value.
        """
        ours, theirs = (torch.as_tensor(x).detach().cpu().double() for x in (actual, expected))
        if ours.shape != theirs.shape:
            shapes = f"{name} (ours has shape {tuple(ours.shape)}, the reference {tuple(theirs.shape)})"
            self.comparisons.append(Comparison(shapes, math.inf, atol))
            return
        if ours.numel() == 0:
            raise CaseError(f"{name} is empty")
        errors, tolerances = (ours - theirs).abs().flatten(), (atol + rtol * theirs.abs()).flatten()
        errors = errors.nan_to_num(nan=math.inf)
        worst = int((errors / tolerances.clamp(min=1e-300)).argmax())
        self.comparisons.append(Comparison(name, float(errors[worst]), float(tolerances[worst])))

    def unused(self) -> list[str]:
        """Names of recorded results that were not checked."""
        return sorted((name for name in self._unused if not name.startswith(NO_RESULTS)), key=_counting_order)

    def load_weights(self, model: nn.Module, names: Names, file: str = WEIGHTS, seed: str = "init_seed") -> None:
        """Load the case's weights into a model: those in `file`, or else `recipe_weights` with the seed of key `seed`.

        Raises:
            CaseError: there is neither, or the file is damaged.
            ValueError: the weights do not fit the model.
        """
        path = self.folder / file
        if path.exists():
            load_released(model, names, read_tensors(path), str(path))
        elif seed in self.config:
            ours = {released_name(name, names): value for name, value in model.named_parameters()}
            shapes = {name: tuple(value.shape) for name, value in ours.items()}
            with torch.no_grad():
                for name, value in recipe_weights(shapes, self.config[seed]).items():
                    ours[name].copy_(value)
        else:
            raise CaseError(f"{self.folder} has no {file}, and its {CONFIG} no key {seed!r} to draw weights from")
        model.eval()


def read_config(folder: Path) -> dict[str, Any]:
    """Read config.json of a case.

    Raises:
        CaseError: the file is missing, or is not a JSON object.
    """
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CaseError(f"{folder} has tensors but no {CONFIG}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as err:
        raise CaseError(f"{path} is not valid JSON: {err}") from err
    if not isinstance(config, dict):
        raise CaseError(f"{path} holds a {type(config).__name__}, not an object with keys")
    return config


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read all tensors of a file.

    Raises:
        CaseError: the file is damaged.
    """
    try:
        return load_file(path)
    except SafetensorError as err:
        raise CaseError(f"{path} is not a complete safetensors file: {err}") from err


def recipe_weights(shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, Tensor]:
    """Random weights with which every branch of a model contributes, drawn in sorted order of the names.

    Matrices and kernels are normal with variance 1/fan-in, other weights 1 + 0.1 * normal, biases 0.1 * normal.
    """
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name in sorted(shapes):
        draw = torch.randn(shapes[name], generator=generator)
        if draw.ndim >= 2:
            weights[name] = draw / math.sqrt(draw[0].numel())
        else:
            weights[name] = 1 + 0.1 * draw if draw.ndim == 1 and name.endswith("weight") else 0.1 * draw
    return weights


class Replay:
    """Replacement of `flow.noise.Noise` that returns recorded draws in order."""

    def __init__(self, draws: Iterable[Tensor], blocks: Iterable[Tensor] = ()):
        self.draws, self.blocks = list(draws), list(blocks)

    def normal(self, *shape: int) -> Tensor:
        """The next recorded draw. Raises CaseError if none is left, or if its shape differs."""
        return _next(self.draws, shape)

    uniform = normal

    def block(self, *shape: int, gamma: float) -> Tensor:
        """The next recorded noise of a jump. Raises CaseError if none is left, or if its shape differs."""
        return _next(self.blocks, shape)

    def check_spent(self) -> None:
        """Raise CaseError if recorded draws are left."""
        if num_unused := len(self.draws) + len(self.blocks):
            raise CaseError(f"{num_unused} of the recorded random draws were not used")


def _next(recorded: list[Tensor], shape: tuple[int, ...]) -> Tensor:
    if not recorded:
        raise CaseError(f"no random draw is left where we need one of shape {shape}")
    draw = recorded.pop(0)
    if tuple(draw.shape) != shape:
        raise CaseError(f"the next recorded random draw has shape {tuple(draw.shape)}; we need {shape}")
    return draw


def _counting_order(name: str) -> list[tuple[int, str]]:
    """Sort key by which `w8` comes before `w16`."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
