"""Prompts that a language model makes fuller, with a real server. About 15 s."""

import json
import logging

import pytest

from tasks.captioning.endpoint import EndpointConfig
from tasks.captioning.rewriting import rewrite_prompts
from tasks.generating.config import GenerateConfig
from tasks.generating.generate import generate
from tasks.running.run import RayConfig, Run
from tasks.tables.delta import read_table

FULLER = "A grey rabbit sits in a green meadow at dawn and turns its head."


def rewriter(server) -> EndpointConfig:
    return EndpointConfig(base_url=server.url, model="tiny", max_retries=0, max_concurrency=1)


def test_the_mode_decides_what_is_asked_and_an_answer_is_kept(chat_server, tmp_path):
    chat_server.script = lambda text, times: chat_server.completion(f'Sure! Here is the description: "{FULLER}"')
    for mode, words in (("normal", "full description"), ("director", "directions for the camera")):
        (rewrite,) = rewrite_prompts(str(tmp_path), ["a rabbit"], mode, rewriter(chat_server))
        assert (rewrite.prompt, rewrite.text, rewrite.reason) == ("a rabbit", FULLER, "")
        asked = chat_server.text(chat_server.requests[-1])
        assert words in asked
        assert asked.endswith("Request: a rabbit")
    chat_server.close()
    assert rewrite_prompts(str(tmp_path), ["a rabbit"], "normal", rewriter(chat_server))[0].text == FULLER


def test_a_prompt_stays_as_it_is_where_nothing_of_use_comes_back(chat_server, tmp_path, caplog):
    answers = {"dog": chat_server.completion("I'm sorry, but I can't."), "cat": chat_server.completion(FULLER)}
    chat_server.script = lambda text, times: answers.get(text[-3:], chat_server.error(500, "crashed"))
    with caplog.at_level(logging.WARNING):
        dog, cat, owl = rewrite_prompts(str(tmp_path), ["a dog", "a cat", "an owl"], "normal", rewriter(chat_server))
    assert (dog.text, cat.text, owl.text) == ("", FULLER, "")
    assert "would not answer" in dog.reason
    assert "crashed" in owl.reason
    assert "the prompt 'a dog' is used unchanged" in caplog.text
    chat_server.close()
    dog, cat = rewrite_prompts(str(tmp_path), ["a dog", "a cat"], "normal", rewriter(chat_server))
    assert "no server answers" in dog.reason  # a refusal is not kept
    assert cat.text == FULLER


def test_a_mode_of_rewriting_needs_a_rewriter():
    with pytest.raises(ValueError, match=r"set generate\.rewriter\.base_url"):
        GenerateConfig(rewrite="director")


@pytest.mark.ray
@pytest.mark.slow
def test_clips_are_made_of_rewritten_prompts_and_say_so(ray_local, chat_server, write_model_directory, tmp_path):
    run = Run(root=str(tmp_path / "root"), ray=RayConfig(num_cpus=2), run_id="test")
    chat_server.script = lambda text, times: (
        chat_server.completion(FULLER) if text.endswith("a rabbit") else chat_server.error(500, "crashed")
    )
    small = {"height": 64, "width": 64, "num_latent_frames": 1, "num_inference_steps": 1}
    given = {"weights": str(write_model_directory(tmp_path / "weights")), "variant": "image", "request": small}
    given |= {"prompts": ["a rabbit", "an owl"], "device": "cpu", "dtype": "float32"}
    on = GenerateConfig.model_validate(given | {"rewrite": "normal", "rewriter": rewriter(chat_server)})
    made = generate(run, on)
    assert (made.num_ok, "prompts stay as they are: the server answers 500" in made.note) == (2, True)
    rows = {row["prompt"]: row for row in read_table(run.root, "generations").to_pylist()}
    assert {prompt: row["prompt_rewritten"] for prompt, row in rows.items()} == {"a rabbit": FULLER, "an owl": ""}
    assert json.loads(rows["a rabbit"]["settings"])["rewrite"] == "normal"
    assert "rewrite" not in rows["an owl"]["settings"]
    assert generate(run, on).num_new == 0
    off = generate(run, GenerateConfig.model_validate(given | {"prompts": ["an owl"]}))
    assert off.num_new == 0  # as if nobody had been asked to rewrite it
