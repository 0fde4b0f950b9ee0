"""Questions to a server with OpenAI's chat API, such as vLLM or a cloud service."""

import asyncio
import base64
import contextlib
import json
import os
import re
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pydantic import Field, field_validator

from pyramid_model.captioning.question import Answer, Decoding, Keep, NoAnswer, Question
from pyramid_model.config import NOT_IDENTITY
from tasks.running.errors import StepError
from tasks.tables.url_secrets import without_secrets

if TYPE_CHECKING:
    import openai
    from openai import AsyncOpenAI
    from openai.types.chat import ChatCompletion

NO_KEY = "none"  # sent to servers that need no key, since the client requires a value
HEALTH_TIMEOUT_S = 20.0
ILL_FORMED_TRIES = 2  # requests until a reply is a chat completion
FIRST_GUESS_TOKENS = 2000.0  # tokens of a prompt with frames, until the server reports a count


class EndpointConfig(Decoding):
    """A server, one of its models, limits on the requests, and prices."""

    base_url: str = Field(
        description="address of the API with its version, e.g. http://localhost:8000/v1", json_schema_extra=NOT_IDENTITY
    )
    model: str = Field(description="name of the model on the server")
    revision: str = Field(
        default="", description="revision of the model, if you know it; after a change new answers are requested"
    )
    api_key_env: str = Field(
        default="",
        description="NAME of the environment variable that holds the key; empty: no key",
        json_schema_extra=NOT_IDENTITY,
    )
    timeout_s: float = Field(
        default=120, gt=0, description="most seconds for one answer", json_schema_extra=NOT_IDENTITY
    )
    max_retries: int = Field(
        default=8,
        ge=0,
        description="retries after 429, 5xx, a timeout or a lost connection, each after a longer wait",
        json_schema_extra=NOT_IDENTITY,
    )
    max_concurrency: int = Field(
        default=16,
        ge=1,
        description="most requests at the same time, of all actors together",
        json_schema_extra=NOT_IDENTITY,
    )
    requests_per_minute: float | None = Field(
        default=None,
        gt=0,
        description="most requests per minute, with retries; null: no limit",
        json_schema_extra=NOT_IDENTITY,
    )
    tokens_per_minute: float | None = Field(
        default=None,
        gt=0,
        description="most tokens per minute, of prompts and answers; null: no limit",
        json_schema_extra=NOT_IDENTITY,
    )
    usd_per_million_prompt_tokens: float = Field(
        default=0.0,
        ge=0,
        description="price of prompt tokens, for the costs in rows and results",
        json_schema_extra=NOT_IDENTITY,
    )
    usd_per_million_completion_tokens: float = Field(
        default=0.0, ge=0, description="price of tokens in answers", json_schema_extra=NOT_IDENTITY
    )
    json_schema: bool = Field(
        default=True, description="send the schema of structured captions; false if the server does not support schemas"
    )
    extra: dict[str, Any] = Field(
        default={}, description="additional fields of a request, e.g. {chat_template_kwargs: {…}}"
    )
    num_actors: int = Field(
        default=2,
        ge=1,
        description="processes that read frames and send requests; they share the limits",
        json_schema_extra=NOT_IDENTITY,
    )

    @field_validator("base_url")
    @classmethod
    def _url(cls, url: str) -> str:
        if not re.match(r"https?://[^/\s]+", url):
            raise ValueError("give a URL such as http://localhost:8000/v1")
        if without_secrets(url) != url:
            raise ValueError(
                "the URL contains a user name, password or key, which would be kept with the settings of the run: "
                "store the key in an environment variable and give its name as api_key_env"
            )
        return url.rstrip("/")

    @field_validator("api_key_env")
    @classmethod
    def _name(cls, name: str) -> str:
        if name and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise ValueError(
                "this is not the name of an environment variable: store the key in a variable and give its name"
            )
        return name

    def api_key(self) -> str:
        """The key, from the environment of this process.

        Raises:
            ValueError: the variable is not set.
        """
        if not self.api_key_env:
            return NO_KEY
        if not (key := os.environ.get(self.api_key_env, "")):
            raise ValueError(
                f"the environment variable {self.api_key_env} is not set (api_key_env): set it where the command runs, "
                "and on every node of the Ray cluster"
            )
        return key

    def cost_usd(self, num_prompt_tokens: int, num_completion_tokens: int) -> float:
        """Cost of these numbers of tokens."""
        prompt = num_prompt_tokens * self.usd_per_million_prompt_tokens
        return (prompt + num_completion_tokens * self.usd_per_million_completion_tokens) / 1e6


class Pace:
    """Rate limiter without bursts. per_minute: allowed amount; None: no limit."""

    def __init__(self, per_minute: float | None):
        self.per_minute = per_minute
        self.free_at = 0.0  # time at which the taken amounts fit into the rate

    def take(self, amount: float, now: float) -> float:
        """Take an amount; returns the seconds to wait before it is used. now: seconds of a monotonic clock."""
        if not self.per_minute:
            return 0.0
        start = max(now, self.free_at)
        self.free_at = start + 60 * amount / self.per_minute
        return start - now

    def correct(self, amount: float) -> None:
        """Correct an estimate. amount: used minus taken."""
        if self.per_minute:
            self.free_at += 60 * amount / self.per_minute


@dataclass
class Limits:
    """Rate limits of one actor. prompt_tokens: estimate for the next prompt with frames."""

    requests: Pace
    tokens: Pace
    prompt_tokens: float = field(default=FIRST_GUESS_TOKENS)


class Endpoint:
    """A model behind an endpoint, which answers questions concurrently.

    num_sharing: number of actors that share the limits of the config.
    """

    def __init__(self, config: EndpointConfig, num_sharing: int = 1):
        self.config, self.key, self.num_sharing = config, config.api_key(), num_sharing
        self.limits = Limits(self._share(config.requests_per_minute), self._share(config.tokens_per_minute))
        self.any_answer, self.num_failures = False, 0

    def _share(self, per_minute: float | None) -> Pace:
        return Pace(per_minute / self.num_sharing if per_minute else None)

    def answer(self, questions: Sequence[Question], keep: Keep) -> list[Answer | NoAnswer]:
        """One answer per question, in order; calls `keep(position, answer)` for each as soon as it arrives.

        A question that the server refuses, or that fails while others are answered, gets a `NoAnswer`.

        Raises:
            StepError: the server cannot be reached, refuses the key or the model, or answers none of several
                questions (a single failure may be caused by the question). Answers passed to `keep` remain valid.
                Transient if a later attempt may succeed.
        """
        with ThreadPoolExecutor(1) as thread:  # the calling thread may already run an event loop, as in a notebook
            answers = thread.submit(asyncio.run, self._answer_all(questions, keep)).result()
        failures = [answer for answer in answers if isinstance(answer, NoAnswer)]
        self.any_answer |= len(failures) < len(answers)
        self.num_failures += len(failures)
        if failures and not self.any_answer and self.num_failures > 1:
            raise StepError(
                f"{self.config.base_url} has answered none of {self.num_failures} questions, first: {failures[0]}",
                transient=failures[0].kind == "server_error",
            )
        return answers

    async def _answer_all(self, questions: Sequence[Question], keep: Keep) -> list[Answer | NoAnswer]:
        slots = asyncio.Semaphore(max(1, self.config.max_concurrency // self.num_sharing))
        errors: list[StepError] = []
        async with _client(self.config, self.key, self.limits) as client:

            async def answer_one(position: int, question: Question) -> Answer | NoAnswer:
                async with slots:
                    if errors:
                        return NoAnswer("stopped", "not asked")
                    try:
                        answer = await self._answer(client, question)
                    except StepError as err:
                        errors.append(
                            err
                        )  # requests in progress are paid for: they may finish, and their answers are kept
                        raise
                if isinstance(answer, Answer):
                    keep(position, answer)
                return answer

            answers = await asyncio.gather(
                *(answer_one(*numbered) for numbered in enumerate(questions)), return_exceptions=True
            )
        for answer in (*errors, *answers):
            if isinstance(answer, BaseException) and not isinstance(answer, NoAnswer):
                raise answer
        return [answer for answer in answers if isinstance(answer, (Answer, NoAnswer))]

    async def _answer(self, client: "AsyncOpenAI", question: Question) -> Answer | NoAnswer:
        import openai

        guess = self.limits.prompt_tokens if question.frames is not None else len(question.instruction) / 4
        guess += self.config.max_new_tokens
        await asyncio.sleep(self.limits.tokens.take(guess, time.monotonic()))
        try:
            answer = await self._well_formed(client, question)
        except openai.APIStatusError as err:
            return _refused_question(err, self.config)
        except openai.APIConnectionError as err:  # timeouts too
            await asyncio.to_thread(
                check_endpoint, self.config
            )  # raises if the server is down; else this question failed
            return NoAnswer(
                "server_error", f"no answer within {self.config.timeout_s:g} s: {_sentence(err, self.config)}"
            )
        if isinstance(answer, Answer):
            self.limits.tokens.correct(answer.num_prompt_tokens + answer.num_completion_tokens - guess)
            if question.frames is not None:
                self.limits.prompt_tokens = answer.num_prompt_tokens
        return answer

    async def _well_formed(self, client: "AsyncOpenAI", question: Question) -> Answer | NoAnswer:
        """The answer; after a reply that is not a chat completion, it is requested again."""
        for _ in range(ILL_FORMED_TRIES):
            with contextlib.suppress(json.JSONDecodeError, UnicodeDecodeError):
                reply = await client.chat.completions.create(**self._request(question))
                if answer := _read(reply):
                    return answer
        return NoAnswer("server_error", "the server's reply is not a chat completion")

    def _request(self, question: Question) -> dict[str, Any]:
        """Arguments of the client's `chat.completions.create`."""
        from pyramid_model.video.video import jpeg

        config = self.config
        images = [] if question.frames is None else [base64.b64encode(jpeg(frame)) for frame in question.frames]
        parts: list[dict[str, object]] = [
            {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{image.decode()}"}} for image in images
        ]
        request: dict[str, object] = {
            "model": config.model,
            "messages": [{"role": "user", "content": [*parts, {"type": "text", "text": question.instruction}]}],
            "max_tokens": config.max_new_tokens,
            "temperature": config.temperature,
            "seed": config.seed + question.seed,
        }
        if question.schema and config.json_schema:
            schema = {"name": "caption", "schema": dict(question.schema)}
            request["response_format"] = {"type": "json_schema", "json_schema": schema}
        return request | ({"extra_body": config.extra} if config.extra else {})


def _client(config: EndpointConfig, key: str, limits: Limits | None = None) -> "AsyncOpenAI":
    """The API client. It retries with growing pauses, or after the pause of a `Retry-After` header."""
    from openai import AsyncOpenAI, DefaultAsyncHttpxClient

    async def wait_for_turn(_request: object) -> None:
        if limits:
            await asyncio.sleep(limits.requests.take(1, time.monotonic()))

    return AsyncOpenAI(
        api_key=key,
        base_url=config.base_url,
        timeout=config.timeout_s,
        max_retries=config.max_retries,
        http_client=DefaultAsyncHttpxClient(event_hooks={"request": [wait_for_turn]}),
    )


def _read(reply: "ChatCompletion") -> Answer | None:
    """The answer in a reply; None if the reply is not a chat completion."""
    choice = next(iter(getattr(reply, "choices", None) or ()), None)
    message = getattr(choice, "message", None)
    if choice is None or message is None:
        return None
    usage = reply.usage
    refused = getattr(message, "refusal", None)
    reason = choice.finish_reason
    finish = "length" if reason == "length" else "refused" if refused or reason == "content_filter" else "stop"
    return Answer(
        text=(refused or message.content or "").strip(),
        num_prompt_tokens=usage.prompt_tokens if usage else 0,
        num_completion_tokens=usage.completion_tokens if usage else 0,
        finish=finish,
    )


def _refused_question(err: "openai.APIStatusError", config: EndpointConfig) -> NoAnswer:
    """NoAnswer for an HTTP error that concerns one question.

    Raises:
        StepError: the error concerns all questions.
    """
    if err.status_code in (401, 403, 404):
        raise StepError(_permanent_error(err, config))
    if err.status_code == 429:
        raise StepError(
            f"{config.base_url} still answers 429 after {config.max_retries} retries ({_sentence(err, config)}): lower "
            "requests_per_minute, tokens_per_minute or max_concurrency, or check the quota of the account",
            transient=True,
        )
    kind = "server_error" if err.status_code >= 500 else "bad_request"
    return NoAnswer(kind, f"the server answers {err.status_code}: {_sentence(err, config)}")


def _permanent_error(err: "openai.APIStatusError", config: EndpointConfig) -> str:
    """Message for an HTTP error that occurs again at every retry."""
    if err.status_code in (401, 403):
        key = f"the key in {config.api_key_env}" if config.api_key_env else "a request without a key (api_key_env)"
        return f"{config.base_url} refuses {key} ({err.status_code}: {_sentence(err, config)})"
    return (
        f"{config.base_url} has no model {config.model!r}, or is not a URL of the chat API "
        f"({err.status_code}: {_sentence(err, config)}): correct `model`, or `base_url`, which usually ends in /v1"
    )


def _sentence(err: BaseException, config: EndpointConfig) -> str:
    """Start of the message of a server's error. The key is replaced, since some servers repeat it."""
    key = config.api_key()
    text = str(err) if key == NO_KEY else str(err).replace(key, "…")
    return " ".join(text.split())[:300]


def check_endpoint(config: EndpointConfig) -> None:
    """Check server and key before any work, by a request for the list of models. A missing list is accepted.

    Raises:
        ValueError: the key's variable is not set.
        StepError: no server answers (transient), or the server refuses the key.
    """
    import openai

    key = config.api_key()
    try:
        with openai.OpenAI(api_key=key, base_url=config.base_url, timeout=HEALTH_TIMEOUT_S, max_retries=1) as client:
            client.models.list()
    except openai.APIConnectionError as err:
        reason = _sentence(err.__cause__ or err, config)
        raise StepError(
            f"no server answers at {config.base_url} ({reason}): start the server, or correct base_url", transient=True
        ) from err
    except openai.APIStatusError as err:
        if err.status_code in (401, 403):
            raise StepError(_permanent_error(err, config)) from err
        if err.status_code == 429 or err.status_code >= 500:
            raise StepError(
                f"{config.base_url} is running but cannot answer ({err.status_code}: {_sentence(err, config)})",
                transient=True,
            ) from err
    except json.JSONDecodeError as err:
        raise StepError(f"{config.base_url} does not have OpenAI's chat API: correct base_url") from err
