"""Weights of a DiT before and after its training: from a folder or random, whole or with a LoRA adapter."""

from pathlib import Path
from typing import TYPE_CHECKING

from pyramid_model.config import LoRAConfig, MiniFluxConfig, MMDiTConfig
from pyramid_model.weights.record import ModelFolder
from tasks.models.folders import empty_dit, find_model, read_dit
from tasks.running.errors import StepError
from tasks.running.run import Run

if TYPE_CHECKING:
    from pyramid_model.dit.transformer import DiT

LORA_FOLDER = "lora"  # in the folder of a model that was trained with an adapter
FREE = {"history_time", "causal"}  # settings that change how a DiT computes, and none of its weights


def initial_model(run: Run, init_from: str, sizes: MiniFluxConfig | MMDiTConfig, setting: str) -> ModelFolder | None:
    """The DiT that a training starts from; None for random weights. Its config is compared, its weights are hashed.

    Args:
        run: its root may have the model.
        init_from: folder, or empty.
        sizes: of the settings.
        setting: dotted name of their section.

    Raises:
        StepError: there is no DiT, or it has other sizes.
    """
    if not init_from:
        return None
    model = find_model(run, "dit", init_from)
    try:
        its = empty_dit(model.uri).config
    except (OSError, ValueError) as err:
        raise StepError(f"train_dit.init_from {init_from!r} cannot be used: {err}") from err
    if type(its) is not type(sizes):
        other = "train_dit.mmdit" if isinstance(its, MMDiTConfig) else "train_dit.model, and train_dit.mmdit to null"
        raise StepError(f"train_dit.init_from {init_from!r} is a {type(its).__name__[:-6]}: set {other}")
    mine, stored = sizes.model_dump(mode="json"), its.model_dump(mode="json")
    if differing := [name for name in mine if name not in FREE and mine[name] != stored[name]]:
        changes = " ".join(f"--set {setting}.{name}={stored[name]}" for name in differing)
        raise StepError(f"the DiT {init_from!r} has other sizes than {setting}: {changes} would fit it")
    return model


def untrained_dit(sizes: MiniFluxConfig | MMDiTConfig, seed: int, init_from: str, lora: LoRAConfig | None) -> "DiT":
    """A DiT before the first step.

    Args:
        sizes: of the model.
        seed: of random weights, and of a new adapter.
        init_from: folder of the weights; empty: random ones.
        lora: adapter to put on it; None: none, all weights are trained.
    """
    import torch

    from pyramid_model.dit.miniflux import MiniFlux
    from pyramid_model.dit.mmdit import MMDiT
    from pyramid_model.weights.lora import add_lora

    torch.manual_seed(seed)
    if not init_from:
        return MMDiT(sizes) if isinstance(sizes, MMDiTConfig) else MiniFlux(sizes)
    dit = read_dit(init_from).train()
    dit.config = sizes
    if lora:
        add_lora(dit, lora)
    return dit


def save_trained_dit(dit: "DiT", folder: str, init_from: str, lora: LoRAConfig | None) -> None:
    """Write a DiT. With an adapter, the folder holds it in `lora/`, and the DiT with the adapter added.

    init_from, lora: as in `untrained_dit`.
    """
    from pyramid_model.weights.lora import Adapters, load_lora, save_lora
    from pyramid_model.weights.weights import save_dit

    if lora:
        adapter, sizes = Path(folder, LORA_FOLDER), dit.config
        save_lora(dit, lora, adapter, base=Path(init_from).name)
        dit = read_dit(init_from)
        dit.config = sizes
        Adapters(dit).set([(load_lora(adapter), 1.0)])
    save_dit(dit, folder)
