"""Captions by models: what is asked, how answers are read, and a local model that is random and tiny. Seconds."""

import json

import numpy as np
import pytest
import torch

from pyramid_model.captioning.frames import sampled_frames
from pyramid_model.captioning.quality import judge, repetition, without_opening, without_thoughts
from pyramid_model.captioning.question import Answer, Decoding, FrameSampling, Question
from pyramid_model.captioning.structured import FIELDS, StructureError, as_prose, read_structured
from pyramid_model.captioning.vision_model import VisionModel, vision_model_hash
from pyramid_model.video.video import jpeg, write_video


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
    kept: dict[int, Answer] = {}
    model = VisionModel(folder, Decoding(max_new_tokens=6), dtype=torch.float32, batch_size=2)
    together = model.answer(questions, kept.__setitem__)
    model.batch_size = 1
    assert model.answer(questions, lambda *_: None) == together == [kept[0], kept[1]]


@pytest.mark.parametrize(
    ("said", "caption"),
    [
        ("The video shows a grey rabbit that wakes up.", "A grey rabbit that wakes up."),
        ("Here is a short description of the clip: In this video, a man rides a bike.", "A man rides a bike."),
        ('Sure! "This short clip depicts that dogs run."', "Dogs run."),
        ("```text\nA boat turns.\n```", "A boat turns."),
        ("<think>It may be\na boat.</think> A boat turns.", "A boat turns."),
        ("A dog shows its teeth.", "A dog shows its teeth."),
        ("Here is a red car on the road: it turns left.", "Here is a red car on the road: it turns left."),
    ],
)
def test_words_around_a_caption_are_taken_off_and_its_own_are_not(said, caption):
    assert without_opening(without_thoughts(said))[0] == caption


@pytest.mark.parametrize(
    ("said", "finish", "fault"),
    [
        ("A fat grey bunny wakes up in a dark burrow.", "stop", ""),
        ("I'm sorry, but I can't help with that.", "stop", "refused"),
        ("I cannot see any video.", "stop", "refused"),
        ("No frames were provided.", "stop", "refused"),
        ("blocked", "refused", "refused"),
        ("  ", "stop", "empty"),
        ("A dog runs. It jumps over the", "length", ""),
        ("A dog runs over the field and then", "length", "cut"),
        ("the dog runs and the dog runs and the dog runs and the dog runs.", "stop", "repetitive"),
        ("一只灰色的兔子在洞里醒来，伸了个懒腰，然后走了出去。", "stop", "language"),
        ("Ein grauer Hase erwacht in seinem dunklen Bau und streckt sich.", "stop", "language"),
        ("A red square slides.", "stop", ""),
    ],
)
def test_an_answer_that_is_no_caption_is_told_by_a_word(said, finish, fault):
    judged = judge(Answer(text=said, finish=finish), "en", 0.3)
    assert judged.fault[0] == fault
    assert bool(judged.fault[1]) == bool(fault)


def test_what_is_cut_off_keeps_its_whole_sentences():
    judged = judge(Answer(text="A dog runs. It jumps over the", finish="length"))
    assert (judged.text, judged.facts["cut"], judged.facts["num_words"]) == ("A dog runs.", True, 3)


def test_repetition_counts_words_or_characters():
    assert repetition("one two three four five six") == 0
    assert repetition("a b c d a b c d") == pytest.approx(0.2)
    assert repetition("滑动滑动滑动滑动滑动滑动滑动滑动滑动滑动滑动滑动") > 0.8
    assert repetition("too short") == 0


def test_a_structured_answer_is_read_through_slips_of_syntax():
    fields = {name: f"a {name}." for name in FIELDS}
    whole = json.dumps(fields)
    assert read_structured(whole) == (fields, False)
    assert read_structured(f"Here it is:\n```json\n{whole[:-1]},}}\n```") == (fields, True)
    assert as_prose(fields | {"subject": "élan"}).startswith("Élan. A action. A background.")
    blank = json.dumps(fields | {"action": ""})
    faults = {"no object": "no JSON", "[1]": "no JSON", "{}": "'subject' is a required", blank: "action: ''"}
    faults[whole[:-1] + ', "mood": 1}'] = "'mood' was unexpected"
    for wrong, why in faults.items():
        with pytest.raises(StructureError, match=why):
            read_structured(wrong)


def test_frames_come_from_the_middle_of_equal_parts_of_a_clip(tmp_path):
    shades = np.repeat(np.arange(24, dtype=np.uint8) * 10, 64 * 96 * 3).reshape(24, 64, 96, 3)
    uri = str(tmp_path / "clip.mp4")
    write_video(uri, shades, 12, crf=0)
    clip = {"height": 64, "width": 96, "num_frames": 24, "fps": 12.0}
    seen, fps = sampled_frames(uri, FrameSampling(num_frames=4, longer_side=48), **clip)
    assert (seen.shape, fps) == ((4, 32, 48, 3), 2.0)
    assert (seen.mean((1, 2, 3)) / 10).round().tolist() == [2, 8, 14, 20]
    assert sampled_frames(uri, FrameSampling(num_frames=30), **clip)[0].shape == (24, 64, 96, 3)
    assert sampled_frames(uri, FrameSampling(num_frames=30, fps=1.5), **clip)[0].shape[0] == 3
    assert jpeg(seen[0]).startswith(b"\xff\xd8")


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
