"""Text features: what a prompt becomes before the DiT sees it."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

MAX_TOKENS = 128
SPECIAL_TOKENS = ("<pad>", "</s>", "<unk>")
NOTE = "encoder.json"


@dataclass(frozen=True)
class TextFeatures:
    """Encoded prompts, one row each.

    embeds: token features (r n d); mask: True where a token is real (r n) bool; pooled: one vector a prompt (r p).
    """

    embeds: Tensor
    mask: Tensor
    pooled: Tensor

    def concat(self, other: TextFeatures) -> TextFeatures:
        """Rows of both, these first. The shorter one is padded with masked tokens."""
        length = max(self.mask.shape[1], other.mask.shape[1])
        a, b = self._padded(length), other._padded(length)
        return TextFeatures(
            torch.cat([a.embeds, b.embeds]), torch.cat([a.mask, b.mask]), torch.cat([a.pooled, b.pooled])
        )

    def repeat_to(self, num_rows: int) -> TextFeatures:
        """One row for each sample: these, or a lone one for all."""
        if self.mask.shape[0] == num_rows:
            return self
        embeds, pooled = self.embeds.expand(num_rows, -1, -1), self.pooled.expand(num_rows, -1)
        return TextFeatures(embeds, self.mask.expand(num_rows, -1), pooled)

    def to(self, *args: object, **kwargs: object) -> TextFeatures:
        """As `Tensor.to`; a dtype reaches the features, never the mask."""
        embeds, pooled = self.embeds.to(*args, **kwargs), self.pooled.to(*args, **kwargs)  # pyright: ignore
        return TextFeatures(embeds, self.mask.to(embeds.device), pooled)

    def _padded(self, length: int) -> TextFeatures:
        extra = length - self.mask.shape[1]
        if not extra:
            return self
        return TextFeatures(F.pad(self.embeds, (0, 0, 0, extra)), F.pad(self.mask, (0, extra)), self.pooled)


class T5Features:
    """A T5 encoder with its tokenizer: prompts in, features of their valid tokens out."""

    def __init__(self, model: Any, tokenizer: Any, info: dict[str, Any]):
        self.model, self.tokenizer, self.info = model, tokenizer, info
        self.dim = self.pooled_dim = int(model.config.d_model)

    @torch.no_grad()
    def encode(self, texts: Sequence[str], batch_size: int = 16) -> list[tuple[Tensor, Tensor]]:
        """Features of each text, in order.

        Texts of similar length share a batch, so that little padding is computed and none is kept.

        Returns:
            (embeds (n d), pooled (d,)) a text, float32 on the CPU; n is its valid tokens, at most 128. There is no CLIP
            beside this encoder: pooled is the mean over the valid tokens.
        """
        tokens = [self.tokenizer(text, truncation=True, max_length=MAX_TOKENS).input_ids for text in texts]
        order = sorted(range(len(texts)), key=lambda i: len(tokens[i]))
        features: list[tuple[Tensor, Tensor]] = [(torch.empty(0), torch.empty(0))] * len(texts)
        for first in range(0, len(order), batch_size):
            members = order[first : first + batch_size]
            batch = self.tokenizer.pad({"input_ids": [tokens[i] for i in members]}, return_tensors="pt")
            batch = batch.to(self.model.device)
            hidden = self.model(batch.input_ids, attention_mask=batch.attention_mask).last_hidden_state
            for row, i in enumerate(members):
                embeds = hidden[row, : len(tokens[i])].float().cpu()
                features[i] = embeds, embeds.mean(0)
        return features


def load_text_encoder(folder: str | Path, device: str = "cpu", dtype: torch.dtype = torch.float32) -> T5Features:
    """Read a T5 encoder and its tokenizer from a folder that `save_pretrained` wrote; safetensors only.

    Raises:
        ValueError: the folder holds no T5 encoder with a tokenizer.
    """
    from transformers import AutoTokenizer, T5EncoderModel

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model: Any = T5EncoderModel.from_pretrained(folder, dtype=dtype, local_files_only=True, use_safetensors=True)
    except (OSError, ValueError) as err:
        raise ValueError(f"{folder} holds no T5 encoder with its tokenizer as transformers saves them: {err}") from err
    note = Path(folder) / NOTE
    return T5Features(model.eval().to(device), tokenizer, json.loads(note.read_text()) if note.exists() else {})


def build_tiny_text_encoder(
    texts: Sequence[str], folder: str | Path, dim: int = 64, num_layers: int = 2, vocab_size: int = 512, seed: int = 0
) -> None:
    """Write a small T5 encoder that has learnt nothing but how to split the given texts into pieces.

    Its weights are random, drawn from `seed`; different texts still get clearly different features, which is all that
    a model needs to tell a few captions apart. `encoder.json` says so. Equal arguments give equal files.
    """
    from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

    fast = PreTrainedTokenizerFast(
        tokenizer_object=_unigram_tokenizer(texts, vocab_size),
        model_max_length=MAX_TOKENS,
        **dict(zip(("pad_token", "eos_token", "unk_token"), SPECIAL_TOKENS, strict=True)),
    )
    config = T5Config(
        vocab_size=len(fast),
        d_model=dim,
        d_kv=max(8, dim // 4),
        d_ff=2 * dim,
        num_layers=num_layers,
        num_heads=4,
        dropout_rate=0.0,
        feed_forward_proj="gated-gelu",
        pad_token_id=0,
        eos_token_id=1,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = T5EncoderModel(config)
    Path(folder).mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    note = {"random_init": True, "seed": seed, "num_texts": len(texts), "pooled": "mean over valid tokens"}
    (Path(folder) / NOTE).write_text(json.dumps(note, indent=2, sort_keys=True) + "\n")


def _unigram_tokenizer(texts: Sequence[str], vocab_size: int) -> Any:
    """A unigram tokenizer trained on the texts, lower-casing, with an end token after every text."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        unk_token=SPECIAL_TOKENS[2],
        initial_alphabet=list("abcdefghijklmnopqrstuvwxyz0123456789 ,.'-"),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sorted(set(texts)), trainer)
    tokenizer.model = _reproducible(tokenizer, texts)
    end = SPECIAL_TOKENS[1]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {end}", special_tokens=[(end, tokenizer.token_to_id(end))]
    )
    return tokenizer


def _reproducible(tokenizer: Any, texts: Sequence[str]) -> Any:
    """The trained pieces, in an order and with scores that are the same in every process.

    The trainer goes by a randomly seeded hash map: its scores differ in the last digits, and those of letters that it
    keeps for completeness are arbitrary. So letters get theirs by how often they occur.
    """
    from tokenizers import models

    words = "\n".join("▁" + tokenizer.normalizer.normalize_str(text).replace(" ", "▁") for text in texts)
    pieces = json.loads(tokenizer.to_str())["model"]["vocab"][len(SPECIAL_TOKENS) :]
    scored = [
        (piece, round(score if len(piece) > 1 else math.log((words.count(piece) + 0.5) / (len(words) + 1)), 6))
        for piece, score in pieces
    ]
    ordered = sorted(scored, key=lambda piece: (-piece[1], piece[0]))
    return models.Unigram([*((token, 0.0) for token in SPECIAL_TOKENS), *ordered], 2, False)


def text_encoder_hash(folder: str | Path) -> str:
    """32 hex digits of blake2b over the encoder's weights, its tokenizer and their configs; loads no model.

    Raises:
        ValueError: the folder has no weights.
    """
    files = sorted(path for path in Path(folder).iterdir() if path.suffix in (".safetensors", ".json", ".model"))
    if not any(path.suffix == ".safetensors" for path in files):
        raise ValueError(f"{folder} has no .safetensors file: it is no text encoder")
    digest = hashlib.blake2b(digest_size=16)
    for path in files:
        digest.update(path.name.encode() + b"\0" + path.stat().st_size.to_bytes(8, "little"))
        with path.open("rb") as file:
            while chunk := file.read(4 * 2**20):
                digest.update(chunk)
    return digest.hexdigest()


def stack_features(features: Sequence[tuple[Tensor, Tensor]]) -> TextFeatures:
    """Rows for the DiT from (embeds (n d), pooled (p)) each, padded with masked tokens to the longest."""
    length = max(len(embeds) for embeds, _ in features)
    mask = torch.tensor([[i < len(embeds) for i in range(length)] for embeds, _ in features])
    padded = [F.pad(embeds, (0, 0, 0, length - len(embeds))) for embeds, _ in features]
    return TextFeatures(torch.stack(padded), mask, torch.stack([pooled for _, pooled in features]))
