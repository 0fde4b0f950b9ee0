"""A vision-language model in this process, through transformers: any that chats about images or videos."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from pyramid_model.captioning.question import Answer, Decoding, Keep, NoAnswer, Question
from pyramid_model.text import HASHED
from pyramid_model.weights.files_hash import files_hash

LOGGER = logging.getLogger(__name__)


class VisionModel:
    """A model with its processor; answers questions, a batch at a time.

    Frames go in as a video where the processor takes videos, else as images. With a temperature above 0 the words also
    depend on which questions share a batch.
    """

    def __init__(
        self,
        folder: str | Path,
        decoding: Decoding,
        device: str = "cpu",
        dtype: torch.dtype = torch.bfloat16,
        batch_size: int = 8,
    ):
        self.model, self.processor = load_vision_model(folder, device, dtype)
        self.decoding, self.device, self.batch_size = decoding, device, batch_size

    def answer(self, questions: Sequence[Question], keep: Keep) -> list[Answer | NoAnswer]:
        """One answer a question, in order; `keep(position, answer)` is called after each batch."""
        answers: list[Answer | NoAnswer] = []
        for _, alike in itertools.groupby(questions, key=lambda question: question.frames is None):
            members = list(alike)
            for first in range(0, len(members), self.batch_size):
                for found in self._within_memory(members[first : first + self.batch_size]):
                    keep(len(answers), found)
                    answers.append(found)
        return answers

    def _within_memory(self, questions: Sequence[Question]) -> list[Answer]:
        """Answers of one batch, halved as often as the device's memory asks for it."""
        try:
            return self._batch(questions)
        except torch.OutOfMemoryError:
            if len(questions) == 1:
                raise
            torch.cuda.empty_cache()
        half = len(questions) // 2
        LOGGER.warning("out of memory with %d questions at a time: going on with %d", len(questions), half)
        self.batch_size = min(self.batch_size, half)
        return [*self._within_memory(questions[:half]), *self._within_memory(questions[half:])]

    @torch.no_grad()
    def _batch(self, questions: Sequence[Question]) -> list[Answer]:
        inputs = self._inputs(questions).to(self.device)
        for name, value in inputs.items():
            if torch.is_tensor(value) and value.is_floating_point():
                inputs[name] = value.to(self.model.dtype)
        heat = self.decoding.temperature
        drawing = {"do_sample": True, "temperature": heat} if heat else {"do_sample": False}
        torch.manual_seed(self.decoding.seed + questions[0].seed)
        made = self.model.generate(
            **inputs,
            max_new_tokens=self.decoding.max_new_tokens,
            **drawing,
            pad_token_id=self._pad_id(),
        )
        lengths = inputs["attention_mask"].sum(1).tolist()
        new = made[:, inputs["input_ids"].shape[1] :].cpu()
        return [self._read(tokens, length) for tokens, length in zip(new, lengths, strict=True)]

    def _inputs(self, questions: Sequence[Question]) -> Any:
        """What the model takes, padded on the left, where it goes on writing."""
        taken = "videos" if getattr(self.processor, "video_processor", None) is not None else "images"
        shown = [question.frames for question in questions if question.frames is not None]
        texts = [
            self.processor.apply_chat_template(
                [self._turn(question, taken)], tokenize=False, add_generation_prompt=True
            )
            for question in questions
        ]
        media: dict[str, Any] = {}
        if shown and taken == "videos":
            facts = [
                {"fps": q.fps, "total_num_frames": len(frames), "frames_indices": list(range(len(frames)))}
                for q, frames in zip(questions, shown, strict=True)
            ]
            media = {"videos": shown, "video_metadata": facts, "do_sample_frames": False}
        elif shown:
            media = {"images": [list(frames) for frames in shown]}
        return self.processor(text=texts, **media, padding=True, padding_side="left", return_tensors="pt")

    @staticmethod
    def _turn(question: Question, taken: str) -> dict[str, Any]:
        shown: list[dict[str, str]] = []
        if question.frames is not None:
            shown = [{"type": "video"}] if taken == "videos" else [{"type": "image"}] * len(question.frames)
        return {"role": "user", "content": [*shown, {"type": "text", "text": question.instruction}]}

    def _pad_id(self) -> int:
        tokenizer = self.processor.tokenizer
        return tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id

    def _read(self, tokens: Tensor, num_prompt_tokens: int) -> Answer:
        """The answer in what was generated for one question. tokens: (n), padded after an end token."""
        ends = self.model.generation_config.eos_token_id
        ended = torch.isin(tokens, torch.tensor(ends if isinstance(ends, list) else [ends]))
        count = int(ended.int().argmax()) + 1 if bool(ended.any()) else len(tokens)
        return Answer(
            text=self.processor.tokenizer.decode(tokens[:count], skip_special_tokens=True).strip(),
            num_prompt_tokens=num_prompt_tokens,
            num_completion_tokens=count,
            finish="stop" if bool(ended.any()) else "length",
        )


def load_vision_model(folder: str | Path, device: str, dtype: torch.dtype) -> tuple[Any, Any]:
    """A model and its processor from a folder as transformers saves them; safetensors only, no code from the folder.

    Raises:
        ValueError: the folder holds no such model, or its weights lack tensors.
    """
    from transformers import AutoModelForImageTextToText, AutoProcessor

    try:
        processor = AutoProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        read: Any = AutoModelForImageTextToText.from_pretrained(
            folder,
            dtype=dtype,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
        model, loaded = read
        if missing := sorted(map(str, loaded["missing_keys"])):  # transformers would make them up at random
            raise ValueError(f"its weights lack {len(missing)} tensors, such as {missing[0]}")
        if not getattr(processor, "chat_template", None):
            raise ValueError("its processor has no chat template: take a model that was tuned to follow instructions")
    except (OSError, ValueError, SafetensorError) as err:
        raise ValueError(f"{folder} holds no vision-language model as transformers saves them: {err}") from err
    return model.eval().to(device), processor


def vision_model_hash(folder: str | Path) -> str:
    """32 hex digits over weights, configs, tokenizer and chat template of a folder; loads no model.

    Raises:
        ValueError: the folder has no weights.
    """
    folder = Path(folder)
    files = sorted(path for path in folder.iterdir() if path.suffix in (*HASHED, ".jinja"))
    if not any(path.suffix == ".safetensors" for path in files):
        raise ValueError(f"{folder} has no .safetensors file: it is no vision-language model")
    return files_hash(folder, files)
