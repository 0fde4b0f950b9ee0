"""Vision-language models of transformers, run in this process."""

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
from pyramid_model.foreign_code import loading_problem
from pyramid_model.weights.files_hash import HASHED, files_hash

LOGGER = logging.getLogger(__name__)


class VisionModel:
    """A vision-language model with its processor, which answers questions in batches.

    Frames are passed as a video if the processor supports videos, else as images. With a temperature above 0, an answer
    also depends on the other questions of its batch.
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
        """One answer per question, in order; calls `keep(position, answer)` after each batch."""
        answers: list[Answer | NoAnswer] = []
        for _, group in itertools.groupby(questions, key=lambda question: question.frames is None):
            members = list(group)
            for first in range(0, len(members), self.batch_size):
                for answer in self._within_memory(members[first : first + self.batch_size]):
                    keep(len(answers), answer)
                    answers.append(answer)
        return answers

    def _within_memory(self, questions: Sequence[Question]) -> list[Answer]:
        """Answers to one batch. If the device runs out of memory, the batch is halved, repeatedly if needed."""
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
        temperature = self.decoding.temperature
        sampling = {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}
        torch.manual_seed(self.decoding.seed + questions[0].seed)
        sequences = self.model.generate(
            **inputs,
            max_new_tokens=self.decoding.max_new_tokens,
            **sampling,
            pad_token_id=self._pad_id(),
        )
        lengths = inputs["attention_mask"].sum(1).tolist()
        new_tokens = sequences[:, inputs["input_ids"].shape[1] :].cpu()
        return [self._answer(tokens, length) for tokens, length in zip(new_tokens, lengths, strict=True)]

    def _inputs(self, questions: Sequence[Question]) -> Any:
        """Inputs of the model, padded on the left, so that generation continues at the end of every row."""
        medium = "videos" if getattr(self.processor, "video_processor", None) is not None else "images"
        clips = [question.frames for question in questions if question.frames is not None]
        texts = [
            self.processor.apply_chat_template(
                [self._message(question, medium)], tokenize=False, add_generation_prompt=True
            )
            for question in questions
        ]
        media: dict[str, Any] = {}
        if clips and medium == "videos":
            metadata = [
                {"fps": q.fps, "total_num_frames": len(frames), "frames_indices": list(range(len(frames)))}
                for q, frames in zip(questions, clips, strict=True)
            ]
            media = {"videos": clips, "video_metadata": metadata, "do_sample_frames": False}
        elif clips:
            media = {"images": [list(frames) for frames in clips]}
        return self.processor(text=texts, **media, padding=True, padding_side="left", return_tensors="pt")

    @staticmethod
    def _message(question: Question, medium: str) -> dict[str, Any]:
        media: list[dict[str, str]] = []
        if question.frames is not None:
            media = [{"type": "video"}] if medium == "videos" else [{"type": "image"}] * len(question.frames)
        return {"role": "user", "content": [*media, {"type": "text", "text": question.instruction}]}

    def _pad_id(self) -> int:
        tokenizer = self.processor.tokenizer
        return tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id

    def _answer(self, tokens: Tensor, num_prompt_tokens: int) -> Answer:
        """Decode the answer to one question. tokens: generated tokens (n,), padded after an end token."""
        end_ids = self.model.generation_config.eos_token_id
        is_end = torch.isin(tokens, torch.tensor(end_ids if isinstance(end_ids, list) else [end_ids]))
        count = int(is_end.int().argmax()) + 1 if bool(is_end.any()) else len(tokens)
        return Answer(
            text=self.processor.tokenizer.decode(tokens[:count], skip_special_tokens=True).strip(),
            num_prompt_tokens=num_prompt_tokens,
            num_completion_tokens=count,
            finish="stop" if bool(is_end.any()) else "length",
        )


def load_vision_model(folder: str | Path, device: str, dtype: torch.dtype) -> tuple[Any, Any]:
    """Load a model and its processor from a folder as transformers saves them.

    Only safetensors are read, and no code in the folder is run.

    Raises:
        ValueError: the folder contains no vision-language model, or tensors are missing.
    """
    from transformers import AutoModelForImageTextToText, AutoProcessor

    try:
        processor = AutoProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        result: Any = AutoModelForImageTextToText.from_pretrained(
            folder,
            dtype=dtype,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
        model, info = result
        if missing := sorted(map(str, info["missing_keys"])):  # transformers would initialise them at random
            raise ValueError(f"its weights lack {len(missing)} tensors, such as {missing[0]}")
        if not getattr(processor, "chat_template", None):
            raise ValueError("its processor has no chat template: use a model that is tuned to follow instructions")
    except (OSError, ValueError, SafetensorError) as err:
        reason = loading_problem(err)
        raise ValueError(f"{folder} holds no vision-language model as transformers saves them: {reason}") from err
    return model.eval().to(device), processor


def vision_model_hash(folder: str | Path) -> str:
    """Hash of the weights, configs, tokenizer and chat template in a folder, 32 hex digits. Loads no model.

    Raises:
        ValueError: the folder has no weights.
    """
    folder = Path(folder)
    files = sorted(path for path in folder.iterdir() if path.suffix in (*HASHED, ".jinja"))
    if not any(path.suffix == ".safetensors" for path in files):
        raise ValueError(f"{folder} has no .safetensors file: it is not a vision-language model")
    return files_hash(folder, files)
