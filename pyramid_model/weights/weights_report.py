"""Report on a model folder or a released directory, from configs and headers; no tensor is read."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pyramid_model.config import LatentNorm
from pyramid_model.dit.miniflux import MiniFlux
from pyramid_model.dit.mmdit import MMDiT
from pyramid_model.dit.transformer import DiT
from pyramid_model.vae.autoencoder import CausalVideoVAE
from pyramid_model.weights.record import TRAINING_FILE
from pyramid_model.weights.released import DIT_CLASSES, ReleasedDirectory, survey
from pyramid_model.weights.released_names import (
    CONFIG_FILE,
    MINIFLUX_CLASS,
    MMDIT_CLASS,
    TEXT_STEM,
    VAE_CLASS,
    WEIGHTS_STEM,
    clip_is_projected,
    clip_shapes,
    t5_shapes,
    text_tensor_name,
)
from pyramid_model.weights.tensor_files import (
    SAFETENSORS,
    SUFFIXES,
    Header,
    check_whole,
    read_headers,
    read_json,
    weight_files,
)
from pyramid_model.weights.weights import MODEL_CLASSES, class_of, empty_model, expected_shapes, misfits, weights_hash

KINDS = {VAE_CLASS: "causal VAE", MINIFLUX_CLASS: "miniFLUX", MMDIT_CLASS: "MMDiT"}
T5, CLIP, TOKENIZER = "T5", "CLIP", "tokenizer"
TOKENIZER_FILES = ("tokenizer.json", "spiece.model", "vocab.json")
Facts = dict[str, Any]


@dataclass(frozen=True)
class Part:
    """Report on one model, or on one tokenizer.

    Attributes:
        name: of its folder.
        kind: `causal VAE`, `miniFLUX`, `MMDiT`, `T5`, `CLIP`, `tokenizer`; the class in its config for anything else.
        facts: settings of its config, for display.
        num_parameters: number of parameters, without buffers.
        num_tensors: number of tensors in its files.
        num_expected: number of tensors according to its config.
        dtypes: number of tensors by torch's name of their dtype.
        size_bytes: of the weights, or of a tokenizer's files.
        problems: reasons why it cannot be loaded.
        weights_hash: "" if not requested.
    """

    name: str
    kind: str
    facts: Facts
    num_parameters: int = 0
    num_tensors: int = 0
    num_expected: int = 0
    dtypes: dict[str, int] | None = None
    size_bytes: int = 0
    problems: tuple[str, ...] = ()
    weights_hash: str = ""


@dataclass(frozen=True)
class Report:
    """Report on a folder.

    Attributes:
        folder: its path.
        variant: of a released directory; "" for the folder of one model.
        latent_norm: of a released directory.
        parts: reports on its models and tokenizers.
        problems: missing parts, and parts that do not fit together.
    """

    folder: str
    variant: str
    latent_norm: LatentNorm | None
    parts: tuple[Part, ...]
    problems: tuple[str, ...]

    @property
    def is_complete(self) -> bool:
        """Whether there are no problems."""
        return not self.problems and not any(part.problems for part in self.parts)


def inspect_weights(folder: str | Path, with_hash: bool = False) -> Report:
    """Report on one model folder, or on a released directory. Problems are in the report, not raised.

    Args:
        folder: contains a config.json, or the parts of a released directory.
        with_hash: also hash VAE and DiTs, which reads all of their bytes.
    """
    folder = Path(folder)
    if (folder / CONFIG_FILE).exists():
        return Report(str(folder), "", None, (_part(folder, with_hash),), ())
    try:
        directory = survey(folder)
    except (ValueError, OSError) as err:
        return Report(str(folder), "", None, (), (str(err),))
    return inspect_directory(directory, with_hash)


def inspect_directory(directory: ReleasedDirectory, with_hash: bool = False) -> Report:
    """As `inspect_weights`, for the result of `survey`."""
    models = [directory.vae, *directory.dits.values()]
    parts = [_part(path, with_hash) for path in models if path.is_dir()]
    for encoder, tokenizer in directory.text:
        parts += [_part(encoder, with_hash)] if encoder.is_dir() else []
        parts += [_tokenizer(tokenizer)] if tokenizer.is_dir() else []
    problems = [f"{name} is missing" for name in directory.missing] + _disagreements(directory, parts)
    return Report(str(directory.folder), directory.variant, directory.latent_norm, tuple(parts), tuple(problems))


def _part(folder: Path, with_hash: bool) -> Part:
    """Report on one model folder."""
    try:
        config = read_json(folder / CONFIG_FILE)
    except (ValueError, OSError) as err:
        return Part(folder.name, "?", {}, problems=(str(err),))
    name = class_of(config)
    if name in MODEL_CLASSES:
        return _model(folder, config, with_hash)
    if name in ("T5EncoderModel", "CLIPTextModel", "CLIPTextModelWithProjection"):
        return _text_encoder(folder, config)
    expected = ", ".join(KINDS.values())
    problem = f"{folder / CONFIG_FILE} is of a {name or 'model of unknown kind'}; expected: {expected}, {T5} or {CLIP}"
    return Part(folder.name, name or "?", {}, problems=(problem,))


def _model(folder: Path, config: Facts, with_hash: bool) -> Part:
    part = Part(folder.name, KINDS[class_of(config)], {})
    try:
        model, names = empty_model(config)
        training = _training(folder)
    except (ValueError, TypeError) as err:
        return replace(part, problems=(f"{folder}: {err}",))
    facts = _vae_facts(model) if isinstance(model, CausalVideoVAE) else _dit_facts(model)
    part = replace(part, facts=facts | training)
    buffers = {name for name, _ in model.named_buffers()}
    by_our_name = zip(model.state_dict(), expected_shapes(model, names).items(), strict=True)
    expected = {stored: (shape, ours not in buffers) for ours, (stored, shape) in by_our_name}
    part = _check(part, folder, WEIGHTS_STEM, expected, str)
    return replace(part, weights_hash=weights_hash(folder)) if with_hash and not part.problems else part


def _text_encoder(folder: Path, config: Facts) -> Part:
    is_t5 = class_of(config) == "T5EncoderModel"
    part = Part(folder.name, T5 if is_t5 else CLIP, {})
    try:
        shapes = t5_shapes(config) if is_t5 else clip_shapes(config)
        facts = _t5_facts(config) if is_t5 else _clip_facts(config)
    except (KeyError, TypeError) as err:
        return replace(part, problems=(f"{folder / CONFIG_FILE} lacks {err}: is it the config of a {part.kind}?",))
    expected = {name: (shape, True) for name, shape in shapes.items()}
    return _check(replace(part, facts=facts), folder, TEXT_STEM, expected, text_tensor_name)


def _check(
    part: Part,
    folder: Path,
    stem: str,
    expected: dict[str, tuple[tuple[int, ...], bool]],
    listed_name: Callable[[str], str],
) -> Part:
    """Complete the report on a part from the headers of its weights.

    Args:
        part: with kind and facts.
        folder: of the model.
        stem: file name of its weights without suffix.
        expected: listed name -> (shape, whether it is a parameter).
        listed_name: maps a stored name to a listed name; "" ignores the tensor.
    """
    part = replace(part, num_expected=len(expected))
    suffixes = (SAFETENSORS,) if stem == TEXT_STEM else SUFFIXES  # `load_text_encoder` reads safetensors only
    try:
        headers = read_headers(weight_files(folder, stem, suffixes))
    except (ValueError, OSError) as err:
        return replace(part, problems=(str(err),))
    listed: dict[str, Header] = {listed_name(name): header for name, header in headers.items() if listed_name(name)}
    problems = misfits({name: shape for name, (shape, _) in expected.items()}, {n: h.shape for n, h in listed.items()})
    trained = [h.shape for name, h in listed.items() if name in expected and expected[name][1]]
    return replace(
        part,
        num_parameters=sum(map(math.prod, trained)),
        num_tensors=len(listed),
        dtypes=dict(Counter(header.dtype for header in headers.values()).most_common()),
        size_bytes=sum(header.size_bytes for header in headers.values()),
        problems=tuple(problems),
    )


def _tokenizer(folder: Path) -> Part:
    files = [path for path in folder.iterdir() if path.is_file()]
    problems = []
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        problems.append(f"{folder} holds no tokenizer: expected one of {', '.join(TOKENIZER_FILES)}")
    for path in files:
        try:
            check_whole(path)
        except ValueError as err:
            problems.append(str(err))
    size_bytes = sum(path.stat().st_size for path in files)
    return Part(folder.name, TOKENIZER, {}, size_bytes=size_bytes, problems=tuple(problems))


def _vae_facts(vae: CausalVideoVAE) -> Facts:
    config = vae.config
    return {
        "latent channels": config.latent_channels,
        "compression": f"{config.time_factor}x{config.space_factor}x{config.space_factor}",
        "channels": " ".join(map(str, config.encoder.channels)),
        "layers": f"{sum(config.encoder.layers)} down, {sum(config.decoder.layers)} up",
        "latent norm": "in config.json" if config.latent_norm else "none in config.json",
    }


def _dit_facts(dit: DiT) -> Facts:
    config = dit.config
    return {
        "blocks": _blocks(dit),
        "width": config.dim,
        "heads": f"{config.num_heads} of {config.head_dim}",
        "causal": config.causal,
        "history time": config.history_time,
        "latent channels": config.latent_channels,
        "text width": config.text_dim,
        "pooled width": config.pooled_dim,
    }


def _blocks(dit: DiT) -> str:
    if isinstance(dit, MiniFlux):
        return f"{dit.config.num_double_blocks} double, {dit.config.num_single_blocks} single"
    assert isinstance(dit, MMDiT)
    return f"{dit.config.num_blocks} double"


def _t5_facts(config: Facts) -> Facts:
    heads = f"{config['num_heads']} of {config['d_kv']}"
    return {"layers": config["num_layers"], "width": config["d_model"], "heads": heads, "words": config["vocab_size"]}


def _clip_facts(config: Facts) -> Facts:
    heads, projected = config["num_attention_heads"], clip_is_projected(config)
    return {
        "layers": config["num_hidden_layers"],
        "width": config["hidden_size"],
        "heads": f"{heads} of {config['hidden_size'] // heads}",
        "words": config["vocab_size"],
        "pooled width": config["projection_dim"] if projected else config["hidden_size"],
        "projection": projected,
    }


def _training(folder: Path) -> Facts:
    """Id of the model if it was trained by this project; empty otherwise."""
    if not (folder / TRAINING_FILE).is_file():
        return {}
    return {"trained here, model": str(read_json(folder / TRAINING_FILE).get("model_id", ""))[:8] or "unnamed"}


def _disagreements(directory: ReleasedDirectory, parts: list[Part]) -> list[str]:
    """Parts of another kind than their folder's name states, and widths in which two parts differ."""
    by_name = {part.name: part for part in parts if part.facts}
    encoders = [encoder.name for encoder, _ in directory.text]
    kinds = {directory.vae.name: KINDS[VAE_CLASS]} | {
        dit.name: KINDS[DIT_CLASSES[directory.variant]] for dit in directory.dits.values()
    }
    kinds |= dict.fromkeys(encoders[:-1], CLIP) | {encoders[-1]: T5}
    misplaced = [name for name, part in by_name.items() if part.kind != kinds[name]]
    if misplaced:
        return [f"{name} holds a {by_name[name].kind}; expected: {kinds[name]}" for name in misplaced]
    shared = []
    if directory.vae.name in by_name:
        shared.append(("latent channels", directory.vae.name, by_name[directory.vae.name].facts["latent channels"]))
    if all(name in by_name for name in encoders):
        pooled = sum(by_name[name].facts["pooled width"] for name in encoders[:-1])
        shared.append(("text width", encoders[-1], by_name[encoders[-1]].facts["width"]))
        shared.append(("pooled width", " and ".join(encoders[:-1]), pooled))
    return [
        f"{dit.name} has {fact} {by_name[dit.name].facts[fact]}, {others} {width}: they do not belong together"
        for fact, others, width in shared
        for dit in directory.dits.values()
        if dit.name in by_name and by_name[dit.name].facts[fact] != width
    ]
