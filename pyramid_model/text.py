"""Text features: prompts encoded by text encoders, as input of the DiT."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional as F

from pyramid_model.config import ENCODER_FILE
from pyramid_model.foreign_code import loading_problem

MAX_TOKENS, MAX_CLIP_TOKENS = 128, 77
SPECIAL_TOKENS = ("<pad>", "</s>", "<unk>")
ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789,.'-"


@dataclass(frozen=True)
class TextFeatures:
    """Encoded prompts, one row each.

    embeds: token features, (r n d).
    mask: (r n) bool, True for real tokens, False for padding; on the CPU, where the token layout is computed.
    pooled: one vector for each prompt, (r p).
    """

    embeds: Tensor
    mask: Tensor
    pooled: Tensor

    def concat(self, other: TextFeatures) -> TextFeatures:
        """Concatenate the rows of both, own rows first. The shorter rows are padded with masked tokens."""
        length = max(self.mask.shape[1], other.mask.shape[1])
        a, b = self._padded(length), other._padded(length)
        return TextFeatures(
            torch.cat([a.embeds, b.embeds]), torch.cat([a.mask, b.mask]), torch.cat([a.pooled, b.pooled])
        )

    def repeat_to(self, num_rows: int) -> TextFeatures:
        """Repeat a single row to `num_rows` rows; returns self if there are `num_rows` rows already."""
        if self.mask.shape[0] == num_rows:
            return self
        embeds, pooled = self.embeds.expand(num_rows, -1, -1), self.pooled.expand(num_rows, -1)
        return TextFeatures(embeds, self.mask.expand(num_rows, -1), pooled)

    def rows(self, indices: Sequence[int]) -> TextFeatures:
        """The rows with these indices, in their order; a row may occur several times."""
        index = list(indices)
        return TextFeatures(self.embeds[index], self.mask[index], self.pooled[index])

    def to(self, *args: object, **kwargs: object) -> TextFeatures:
        """As `Tensor.to`, for the features; the mask stays on the CPU."""
        embeds, pooled = self.embeds.to(*args, **kwargs), self.pooled.to(*args, **kwargs)  # pyright: ignore
        return TextFeatures(embeds, self.mask, pooled)

    @cached_property
    def lengths(self) -> tuple[int, ...]:
        """Number of real tokens of each row."""
        return tuple(self.mask.sum(1).tolist())

    @cached_property
    def padded_first(self) -> TextFeatures:
        """The same rows with padding before the real tokens, cut to the length of the longest row."""
        if min(self.lengths) == self.mask.shape[1]:
            return self
        order = self.mask.int().argsort(dim=1, stable=True)[:, self.mask.shape[1] - max(self.lengths) :]
        rows = torch.arange(len(order))[:, None]
        return TextFeatures(self.embeds[rows, order], self.mask[rows, order], self.pooled)

    def _padded(self, length: int) -> TextFeatures:
        extra = length - self.mask.shape[1]
        if not extra:
            return self
        return TextFeatures(F.pad(self.embeds, (0, 0, 0, extra)), F.pad(self.mask, (0, extra)), self.pooled)


class CLIPPooled:
    """A CLIP text encoder with its tokenizer, which gives one vector for each prompt.

    For miniFLUX it is the hidden state of the end token; for the SD3 variant, its projection.
    """

    def __init__(self, model: Any, tokenizer: Any):
        self.model, self.tokenizer, self.device = model, tokenizer, model.device
        self.projected = type(model).__name__.endswith("WithProjection")
        self.dim = int(model.config.projection_dim if self.projected else model.config.hidden_size)

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> Tensor:
        """Vectors of the texts, (b d) float32 on the CPU; texts are truncated to 77 tokens."""
        length = min(MAX_CLIP_TOKENS, self.model.config.max_position_embeddings)
        batch = self.tokenizer(list(texts), padding="max_length", truncation=True, max_length=length)
        out = self.model(torch.tensor(batch.input_ids, device=self.device))
        return (out.text_embeds if self.projected else out.pooler_output).float().cpu()


class TextEncoder:
    """A T5 encoder for the token features and, in released models, CLIP encoders for the pooled vector.

    Attributes:
        info: content of `encoder.json`; empty for released encoders.
        dim: width of the token features.
        pooled_dim: width of the pooled vector.
    """

    def __init__(self, t5: Any, tokenizer: Any, clips: Sequence[CLIPPooled] = (), info: dict[str, Any] | None = None):
        self.t5, self.tokenizer, self.clips, self.info = t5, tokenizer, tuple(clips), info or {}
        self.device = t5.device
        self.dim = int(t5.config.d_model)
        self.pooled_dim = sum(clip.dim for clip in clips) or self.dim

    @property
    def models(self) -> list[nn.Module]:
        """The T5 model, then the CLIP models."""
        return [self.t5, *(clip.model for clip in self.clips)]

    def work_on(self, device: str | torch.device) -> None:
        """Use this device for the inputs from now on. The caller must move the weights there."""
        self.device = device
        for clip in self.clips:
            clip.device = device

    @torch.no_grad()
    def encode(self, texts: Sequence[str], batch_size: int = 16) -> list[tuple[Tensor, Tensor]]:
        """Features of each text, in order.

        Texts of similar length share a batch, so that little padding is computed. Padding is removed from the results.

        Returns:
            (embeds (n d), pooled (p,)) for each text, float32 on the CPU; n is its number of tokens, at most 128.
            pooled: the vectors of the CLIP encoders, concatenated; without CLIP encoders, the mean over the tokens.
        """
        tokens = [self.tokenizer(text, truncation=True, max_length=MAX_TOKENS).input_ids for text in texts]
        order = sorted(range(len(texts)), key=lambda i: len(tokens[i]))
        features: list[tuple[Tensor, Tensor]] = [(torch.empty(0), torch.empty(0))] * len(texts)
        for first in range(0, len(order), batch_size):
            members = order[first : first + batch_size]
            batch = self.tokenizer.pad({"input_ids": [tokens[i] for i in members]}, return_tensors="pt")
            batch = batch.to(self.device)
            hidden = self.t5(batch.input_ids, attention_mask=batch.attention_mask).last_hidden_state
            pooled = self._pooled([texts[i] for i in members])
            for row, i in enumerate(members):
                embeds = hidden[row, : len(tokens[i])].float().cpu()
                features[i] = embeds, embeds.mean(0) if pooled is None else pooled[row]
        return features

    def _pooled(self, texts: Sequence[str]) -> Tensor | None:
        return torch.cat([clip.encode(texts) for clip in self.clips], dim=1) if self.clips else None


def load_text_encoder(folder: str | Path, device: str = "cpu", dtype: torch.dtype = torch.float32) -> TextEncoder:
    """Load text encoders and their tokenizers. Only safetensors are read.

    Args:
        folder: a released directory of either variant (`text_encoder`, `tokenizer`, …), or a folder with one T5 encoder
            and its tokenizer as `save_pretrained` writes them.
        device: device of the encoders; "auto": T5 is distributed over all GPUs of this process (and over CPU memory if
            they are too small), the CLIP encoders run on the first GPU.
        dtype: of the weights.

    Raises:
        ValueError: the folder, or a part of it, contains no text encoder; the message names the part.
    """
    folder, options = Path(folder), {"device": device, "dtype": dtype}
    parts = released_text_parts(folder)
    if not parts:
        note = folder / ENCODER_FILE
        info = json.loads(note.read_text()) if note.exists() else {}
        return TextEncoder(*_load_part(folder, folder, "T5EncoderModel", **options), info=info)
    *clip_parts, t5_part = parts
    kind = "CLIPTextModelWithProjection" if len(clip_parts) == 2 else "CLIPTextModel"
    clips = [CLIPPooled(*_load_part(folder / model, folder / words, kind, **options)) for model, words in clip_parts]
    return TextEncoder(*_load_part(folder / t5_part[0], folder / t5_part[1], "T5EncoderModel", **options), clips=clips)


def text_encoder_dims(folder: str | Path) -> tuple[int, int]:
    """(width of the token features, width of the pooled vector) of the encoders in a folder. Reads configs only.

    Raises:
        OSError: a part has no config.
    """
    from transformers import CLIPTextConfig, T5Config

    folder = Path(folder)
    *clips, t5 = [name for name, _ in released_text_parts(folder)] or [""]
    t5_config: Any = T5Config.from_pretrained(folder / t5, local_files_only=True, trust_remote_code=False)
    clip_configs: list[Any] = [
        CLIPTextConfig.from_pretrained(folder / name, local_files_only=True, trust_remote_code=False) for name in clips
    ]
    pooled = sum(config.projection_dim if len(clips) == 2 else config.hidden_size for config in clip_configs)
    return t5_config.d_model, pooled or t5_config.d_model


def released_text_parts(folder: Path) -> list[tuple[str, str]]:
    """(encoder, tokenizer) folder names of a released directory, CLIP first and T5 last; none for any other folder."""
    parts = [("text_encoder", "tokenizer"), *((f"text_encoder_{n}", f"tokenizer_{n}") for n in (2, 3))]
    return [part for part in parts if (folder / part[0]).is_dir()]


def _load_part(folder: Path, tokenizer: Path, kind: str, device: str, dtype: torch.dtype) -> tuple[Any, Any]:
    import transformers

    spread = {"device_map": "auto"} if device == "auto" and kind == "T5EncoderModel" else {}
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        words = transformers.AutoTokenizer.from_pretrained(tokenizer, local_files_only=True, trust_remote_code=False)
        model: Any
        model, loaded = getattr(transformers, kind).from_pretrained(
            folder,
            dtype=dtype,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
            **spread,
        )
        if missing := sorted(map(str, loaded["missing_keys"])):  # transformers would initialise them at random
            raise ValueError(f"its weights lack {len(missing)} tensors, such as {missing[0]}")
    except (OSError, ValueError, SafetensorError) as err:
        name = kind.removesuffix("WithProjection").removesuffix("TextModel").removesuffix("EncoderModel")
        raise ValueError(
            f"{folder} holds no {name} text encoder, or {tokenizer} no tokenizer, as transformers saves them: "
            f"{loading_problem(err)}"
        ) from err
    return model.eval() if spread else model.eval().to(device), words


def build_tiny_text_encoder(
    texts: Sequence[str], folder: str | Path, dim: int = 64, num_layers: int = 2, vocab_size: int = 512, seed: int = 0
) -> None:
    """Write a small T5 encoder with random weights, and a tokenizer trained on the given texts.

    Different texts get clearly different features, which is sufficient to distinguish a few captions. `encoder.json`
    records that the weights are random. Equal arguments give equal files.

    Args:
        texts: to train the tokenizer on.
        folder: to write to; created if it does not exist.
        dim: width of the features.
        num_layers: of the encoder.
        vocab_size: largest size of the vocabulary.
        seed: of the weights.
    """
    from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

    fast = PreTrainedTokenizerFast(
        tokenizer_object=_word_tokenizer(texts, vocab_size),
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
    (Path(folder) / ENCODER_FILE).write_text(json.dumps(note, indent=2, sort_keys=True) + "\n")


def _word_tokenizer(texts: Sequence[str], vocab_size: int) -> Any:
    """Lower-casing tokenizer with the most frequent words of the texts as tokens; it adds an end token to every text.

    Another word is split into the longest known pieces, if need be into letters.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    splitter = pre_tokenizers.BertPreTokenizer()
    pieces = (piece for text in texts for piece, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)))
    words = Counter(pieces)
    letters = Counter("".join(words.elements()))
    ranked = [*ALPHABET, *_ranked(letters)[: vocab_size // 2], *_ranked(words)]
    tokens = list(dict.fromkeys([*SPECIAL_TOKENS, *ranked]))[:vocab_size]
    vocab = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token=SPECIAL_TOKENS[2], continuing_subword_prefix=""))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = splitter
    end = SPECIAL_TOKENS[1]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {end}", special_tokens=[(end, vocab[end])])
    return tokenizer


def _ranked(counts: Counter[str]) -> list[str]:
    """The most frequent first; those of one frequency by name."""
    return sorted(counts, key=lambda text: (-counts[text], text))


def stack_features(features: Sequence[tuple[Tensor, Tensor]]) -> TextFeatures:
    """Stack features (embeds (n d), pooled (p)) of texts to rows, padded with masked tokens to the longest text."""
    length = max(len(embeds) for embeds, _ in features)
    mask = torch.tensor([[i < len(embeds) for i in range(length)] for embeds, _ in features])
    padded = [F.pad(embeds, (0, 0, 0, length - len(embeds))) for embeds, _ in features]
    return TextFeatures(torch.stack(padded), mask, torch.stack([pooled for _, pooled in features]))
