"""A client of OpenAI's chat protocol against a real server that is slow, full, broken or unwilling. About 10 s."""

import asyncio
import time

import numpy as np
import pytest
from pydantic import ValidationError

from pyramid_model.captioning.question import Answer, NoAnswer, Question
from tasks.captioning.endpoint import Endpoint, EndpointConfig, Pace, check_endpoint
from tasks.running.errors import StepError

FRAMES = np.zeros((2, 8, 8, 3), np.uint8)


def endpoint(server, **settings) -> EndpointConfig:
    return EndpointConfig.model_validate({"base_url": server.url, "model": "tiny", "max_retries": 1} | settings)


def asked(config: EndpointConfig, *texts: str, frames=None) -> list[Answer | NoAnswer]:
    return Endpoint(config).answer([Question(text, frames) for text in texts], lambda *_: None)


def test_frames_go_as_jpeg_before_the_words_and_tokens_come_back(chat_server):
    (answer,) = asked(endpoint(chat_server, max_new_tokens=7), "What is it?", frames=FRAMES)
    body = chat_server.requests[0]
    *images, words = body["messages"][0]["content"]
    assert [image["image_url"]["url"][:28] for image in images] == ["data:image/jpeg;base64,/9j/4"] * 2
    assert (words["text"], body["max_tokens"], body["temperature"]) == ("What is it?", 7, 0.0)
    assert answer == Answer(
        text="A red square slides over a grey plain.", num_prompt_tokens=100, num_completion_tokens=10
    )


def test_questions_may_be_asked_where_an_event_loop_runs(chat_server):
    async def in_a_notebook():
        return asked(endpoint(chat_server), "a")[0].text

    assert asyncio.run(in_a_notebook()) == "A red square slides over a grey plain."


def test_no_more_questions_are_under_way_than_allowed(chat_server):
    def slow(text, times):
        time.sleep(0.05)
        return chat_server.completion(text)

    chat_server.script = slow
    answers = asked(endpoint(chat_server, max_concurrency=2), *map(str, range(6)))
    assert [answer.text for answer in answers] == [str(i) for i in range(6)]
    assert chat_server.most_at_once == 2


def test_a_full_server_is_asked_again_after_the_time_that_it_names(chat_server):
    def full_once(text, times):
        return chat_server.error(429, "slow down", Retry_After="0.4") if times == 1 else chat_server.completion("yes")

    chat_server.script = full_once
    assert asked(endpoint(chat_server), "a")[0].text == "yes"
    first, second = (body["arrived_s"] for body in chat_server.requests)
    assert second - first >= 0.4


def test_a_server_that_stays_full_stops_the_step_for_now(chat_server):
    chat_server.script = lambda text, times: chat_server.error(429, "slow down", Retry_After="0.01")
    with pytest.raises(StepError, match=r"429 after 1 retries.*requests_per_minute") as stopped:
        asked(endpoint(chat_server), "a")
    assert stopped.value.transient


def test_a_question_that_the_server_fails_at_is_a_fault_of_its_own(chat_server):
    def odd(text, times):
        if text == "bad":
            return chat_server.error(500, "crashed")
        if text == "large":
            return chat_server.error(400, "too many images")
        return chat_server.completion("fine")

    chat_server.script = odd
    fine, bad, large = asked(endpoint(chat_server), "good", "bad", "large")
    assert fine.text == "fine"
    assert (bad.kind, large.kind) == ("server_error", "bad_request")
    assert "crashed" in str(bad)
    assert "too many images" in str(large)


@pytest.mark.parametrize(("status", "transient"), [(500, True), (400, False)])
def test_a_server_that_answers_nothing_stops_the_step(chat_server, status, transient):
    chat_server.script = lambda text, times: chat_server.error(status, "broken")
    with pytest.raises(StepError, match=r"none of 2 questions.*broken") as stopped:
        asked(endpoint(chat_server, max_retries=0), "a", "b")
    assert stopped.value.transient is transient


def test_one_question_alone_that_gets_no_answer_stops_nothing_until_another_gets_none(chat_server):
    chat_server.script = lambda text, times: chat_server.error(400, "too large")
    model = Endpoint(endpoint(chat_server))
    (alone,) = model.answer([Question("a")], keep=lambda *_: None)
    assert alone.kind == "bad_request"
    with pytest.raises(StepError, match="none of 2 questions"):
        model.answer([Question("b")], keep=lambda *_: None)


def test_a_slow_answer_is_given_up_and_asked_for_again(chat_server):
    def slow_once(text, times):
        if times == 1:
            time.sleep(1)
        return chat_server.completion("late" if times == 1 else "in time")

    chat_server.script = slow_once
    assert asked(endpoint(chat_server, timeout_s=0.3), "a")[0].text == "in time"


@pytest.mark.parametrize("body", [b'{"choices": [', b"<html>hello</html>", b'{"choices": []}'])
def test_a_reply_that_is_no_completion_is_asked_for_once_more(chat_server, body):
    chat_server.script = lambda text, times: (200, {}, body) if times == 1 else chat_server.completion("whole")
    assert asked(endpoint(chat_server), "a")[0].text == "whole"
    assert len(chat_server.requests) == 2


def test_cut_and_withheld_answers_say_so(chat_server):
    replies = {
        "cut": chat_server.completion("It goes", finish="length"),
        "filter": chat_server.completion("", finish="content_filter"),
        "refusal": chat_server.completion(None, refusal="No."),
    }
    chat_server.script = lambda text, times: replies[text]
    assert [answer.finish for answer in asked(endpoint(chat_server), *replies)] == ["length", "refused", "refused"]


def test_the_key_comes_from_the_environment_and_is_in_no_message(chat_server, monkeypatch):
    config = endpoint(chat_server, api_key_env="CAPTIONS_KEY")
    with pytest.raises(ValueError, match="CAPTIONS_KEY is not set"):
        check_endpoint(config)
    monkeypatch.setenv("CAPTIONS_KEY", "secret-1234")
    check_endpoint(config)
    assert chat_server.keys == ["Bearer secret-1234"]
    chat_server.script = lambda text, times: chat_server.error(401, "secret-1234 is no key of ours")
    with pytest.raises(StepError, match="refuses the key in CAPTIONS_KEY") as stopped:
        asked(config, "a")
    assert "secret-1234" not in str(stopped.value)
    assert not stopped.value.transient
    with pytest.raises(ValidationError, match="not the name of an environment variable"):
        endpoint(chat_server, api_key_env="sk-1234")


def test_an_unknown_model_is_no_passing_trouble(chat_server):
    chat_server.script = lambda text, times: chat_server.error(404, "no such model")
    with pytest.raises(StepError, match=r"no model 'tiny'.*/v1") as stopped:
        asked(endpoint(chat_server), "a")
    assert not stopped.value.transient


def test_an_endpoint_that_is_down_is_told_before_any_work(chat_server):
    config = endpoint(chat_server)
    chat_server.models_status = 404  # a server without a list of models is taken as it is
    check_endpoint(config)
    chat_server.models_status = 503
    with pytest.raises(StepError, match="is running but cannot answer") as stopped:
        check_endpoint(config)
    assert stopped.value.transient
    chat_server.close()
    with pytest.raises(StepError, match="no server answers at http") as stopped:
        check_endpoint(config)
    assert stopped.value.transient


def test_the_schema_goes_along_where_the_server_knows_schemas(chat_server):
    question = Question("JSON, please.", schema={"type": "object"})
    for json_schema in (True, False):
        config = endpoint(chat_server, json_schema=json_schema, extra={"top_k": 5})
        Endpoint(config).answer([question], lambda *_: None)
    with_schema, without = chat_server.requests
    assert with_schema["response_format"]["json_schema"]["schema"] == {"type": "object"}
    assert "response_format" not in without
    assert without["top_k"] == 5


def test_a_pace_spreads_what_is_taken_over_the_minute():
    pace = Pace(per_minute=60)
    assert [pace.take(1, now=10.0) for _ in range(3)] == [0.0, 1.0, 2.0]
    assert pace.take(5, now=100.0) == 0.0  # a pause is no credit for a burst
    assert pace.take(1, now=100.0) == 5.0
    pace.correct(-4)  # less was used than had been taken
    assert pace.take(1, now=100.0) == 2.0
    assert Pace(None).take(1e9, now=0.0) == 0.0


def test_the_price_is_per_million_tokens(chat_server):
    prices = {"usd_per_million_prompt_tokens": 2.0, "usd_per_million_completion_tokens": 8.0}
    assert endpoint(chat_server, **prices).cost_usd(1_000_000, 500_000) == 6.0
