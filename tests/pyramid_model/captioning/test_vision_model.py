"""A vision-language model with random weights. Seconds."""

import numpy as np
import pytest
import torch

from pyramid_model.captioning.question import Answer, Decoding, Question
from pyramid_model.captioning.vision_model import VisionModel, vision_model_hash


def frames(seed: int, count: int = 4) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (count, 36, 64, 3), dtype=np.uint8)


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "qwen3_vl", "llava"])
def test_a_local_model_answers_each_question_as_if_it_were_alone(kind, write_vision_model, tmp_path):
    torch.set_num_threads(1)
    folder = write_vision_model(tmp_path / "model", kind)
    questions = [
        Question("Describe it.", frames(0), fps=2.0),
        Question("Say it in one sentence.", frames(1), fps=2.0),
    ]
    answers: dict[int, Answer] = {}
    model = VisionModel(folder, Decoding(max_new_tokens=6), dtype=torch.float32, batch_size=2)
    together = model.answer(questions, answers.__setitem__)
    model.batch_size = 1
    assert model.answer(questions, lambda *_: None) == together == [answers[0], answers[1]]


def test_a_folder_without_weights_or_chat_template_is_no_vision_model(write_vision_model, tmp_path):
    folder = write_vision_model(tmp_path / "model")
    before = vision_model_hash(folder)
    (folder / "chat_template.jinja").write_text("changed")
    assert vision_model_hash(folder) != before
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match="no chat template"):
        VisionModel(folder, Decoding())
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="holds no vision-language model"):
        VisionModel(folder, Decoding())
    with pytest.raises(ValueError, match=r"no \.safetensors"):
        vision_model_hash(folder)
