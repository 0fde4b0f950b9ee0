"""Answers of a model are kept until the rows made from them are committed."""

from pathlib import Path

import pytest

from pyramid_model.captioning.question import Answer, Question
from tasks.captioning.answers import CAPTIONS, AnswerFiles, KeyedQuestion, StoredAnswer, spent_answers
from tasks.captioning.endpoint import Endpoint, EndpointConfig
from tasks.running.errors import StepError
from tasks.tables import storage


def test_answers_that_came_before_the_end_of_a_step_are_not_asked_for_again(chat_server, tmp_path):
    def dies(text, times):
        return chat_server.error(401, "quota used up") if text == "c" else chat_server.completion(f"answer to {text}")

    chat_server.script = dies
    files = AnswerFiles(str(tmp_path), "captions")
    keyed = [KeyedQuestion(f"key-{text}", lambda text=text: Question(text)) for text in "abc"]
    with pytest.raises(StepError, match="quota used up"):
        files.ask(keyed, Endpoint(EndpointConfig(base_url=chat_server.url, model="tiny", max_concurrency=1)))
    chat_server.script = lambda text, times: chat_server.completion(f"answer to {text}")
    replies = files.ask(keyed, Endpoint(EndpointConfig(base_url=chat_server.url, model="tiny")))
    assert [reply.answer.text for reply in replies] == ["answer to a", "answer to b", "answer to c"]
    assert [reply.asked for reply in replies] == [False, False, True]
    assert [chat_server.text(body) for body in chat_server.requests] == ["a", "b", "c", "c"]
    Path(files.uri("key-a")).write_text('{"answer": ')
    assert files.read("key-a") is None  # damaged: asked for again


def test_an_answer_is_spent_when_its_attempt_of_the_row_is_committed(tmp_path):
    files = AnswerFiles(str(tmp_path), CAPTIONS)
    for key, attempt in (("aa", 1), ("bb", 2)):
        stored = StoredAnswer(answer=Answer(text="A square."), row_id="row", attempt=attempt)
        storage.write_bytes(files.uri(key), stored.model_dump_json().encode())
    assert spent_answers(str(tmp_path), {}) == []
    assert spent_answers(str(tmp_path), {"row": 1}) == [files.uri("aa")]
