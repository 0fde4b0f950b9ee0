"""Any server that speaks OpenAI's chat protocol (vLLM, a cloud) as a model that answers."""

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
from typing import Any

from pydantic import Field, field_validator

from pyramid_model.captioning.question import Answer, Decoding, Keep, NoAnswer, Question
from tasks.running.errors import StepError

# Of an endpoint's settings (and a local model's), those that change what is written, and not where or at what price.
DECIDING = {"max_new_tokens", "temperature", "seed", "dtype", "json_schema", "extra"}
NO_KEY = "none"  # servers of one's own ask for no key; the protocol's client wants one
HEALTH_TIMEOUT_S = 20.0
ILL_FORMED_TRIES = 2  # a second try where the body is no answer of the protocol
FIRST_GUESS_TOKENS = 2000.0  # of a prompt with frames, until the server has counted one


class EndpointConfig(Decoding):
    """Which server, which of its models, how fast, and at what price."""

    base_url: str = Field(description="address of the API with its version, e.g. http://localhost:8000/v1")
    model: str = Field(description="name of the model on the server")
    revision: str = Field(
        "", description="revision of the model, if you know it; after a change new answers are requested"
    )
    api_key_env: str = Field("", description="NAME of the environment variable that holds the key; empty: no key")
    timeout_s: float = Field(120, gt=0, description="most seconds for one answer")
    max_retries: int = Field(
        8, ge=0, description="retries after 429, 5xx, a timeout or a lost connection, each after a longer wait"
    )
    max_concurrency: int = Field(16, ge=1, description="most requests at the same time, of all actors together")
    requests_per_minute: float | None = Field(
        None, gt=0, description="most requests a minute, with retries; null: no limit"
    )
    tokens_per_minute: float | None = Field(
        None, gt=0, description="most tokens a minute, of prompts and answers; null: no limit"
    )
    usd_per_million_prompt_tokens: float = Field(
        0.0, ge=0, description="price of prompt tokens, for the costs in rows and results"
    )
    usd_per_million_completion_tokens: float = Field(0.0, ge=0, description="price of tokens in answers")
    json_schema: bool = Field(
        True, description="send the schema of structured captions; false if the server does not support schemas"
    )
    extra: dict[str, Any] = Field({}, description="additional fields of a request, e.g. {chat_template_kwargs: {…}}")
    num_actors: int = Field(2, ge=1, description="processes that read frames and send requests; they share the limits")

    @field_validator("base_url")
    @classmethod
    def _url(cls, url: str) -> str:
        if not re.match(r"https?://[^/\s]+", url):
            raise ValueError("give an address such as http://localhost:8000/v1")
        return url.rstrip("/")

    @field_validator("api_key_env")
    @classmethod
    def _name(cls, name: str) -> str:
        if name and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise ValueError("this is no name of an environment variable: put the key into one, and its name here")
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
        """What so many tokens cost."""
        prompt = num_prompt_tokens * self.usd_per_million_prompt_tokens
        return (prompt + num_completion_tokens * self.usd_per_million_completion_tokens) / 1e6


class Pace:
    """An amount a minute, without bursts: each taker is told when its turn comes."""

    def __init__(self, per_minute: float | None):
        self.per_minute = per_minute
        self.free_at = 0.0  # when all that was taken has been paid off

    def take(self, amount: float, now: float) -> float:
        """Seconds to wait before an amount may be used; `now` in seconds of a clock that never goes back."""
        if not self.per_minute:
            return 0.0
        start = max(now, self.free_at)
        self.free_at = start + 60 * amount / self.per_minute
        return start - now

    def correct(self, amount: float) -> None:
        """So much more (or less, if negative) was used than had been taken."""
        if self.per_minute:
            self.free_at += 60 * amount / self.per_minute


@dataclass
class Limits:
    """The limits of one actor, for as long as it lives."""

    requests: Pace
    tokens: Pace
    prompt_tokens: float = field(default=FIRST_GUESS_TOKENS)


class Endpoint:
    """A model behind an endpoint; answers a list of questions at once, within its share of the limits."""

    def __init__(self, config: EndpointConfig, num_sharing: int = 1):
        self.config, self.key, self.num_sharing = config, config.api_key(), num_sharing
        self.limits = Limits(self._share(config.requests_per_minute), self._share(config.tokens_per_minute))
        self.any_answer, self.num_faults = False, 0

    def _share(self, per_minute: float | None) -> Pace:
        return Pace(per_minute / self.num_sharing if per_minute else None)

    def answer(self, questions: Sequence[Question], keep: Keep) -> list[Answer | NoAnswer]:
        """One answer a question, in order; `keep(position, answer)` is called for each as soon as it is there.

        A question that the server refuses, or fails at while it answers others, gets a `NoAnswer`.

        Raises:
            StepError: the server cannot be reached, refuses key or model, or answers none of several questions (one
                alone may be at fault itself). What was kept until then stays. Transient where the same may go well
                later.
        """
        with ThreadPoolExecutor(1) as own:  # whoever asks may have an event loop already, as a notebook does
            answers = own.submit(asyncio.run, self._answer_all(questions, keep)).result()
        faults = [answer for answer in answers if isinstance(answer, NoAnswer)]
        self.any_answer |= len(faults) < len(answers)
        self.num_faults += len(faults)
        if faults and not self.any_answer and self.num_faults > 1:
            raise StepError(
                f"{self.config.base_url} has answered none of {self.num_faults} questions, first: {faults[0]}",
                transient=faults[0].kind == "server_error",
            )
        return answers

    async def _answer_all(self, questions: Sequence[Question], keep: Keep) -> list[Answer | NoAnswer]:
        at_once = asyncio.Semaphore(max(1, self.config.max_concurrency // self.num_sharing))
        stopped: list[StepError] = []
        async with _client(self.config, self.key, self.limits) as client:

            async def one(position: int, question: Question) -> Answer | NoAnswer:
                async with at_once:
                    if stopped:
                        return NoAnswer("stopped", "not asked")
                    try:
                        answer = await self._answer(client, question)
                    except StepError as err:
                        stopped.append(err)  # what is under way is paid for: it may end, and is kept
                        raise
                if isinstance(answer, Answer):
                    keep(position, answer)
                return answer

            answers = await asyncio.gather(*(one(*each) for each in enumerate(questions)), return_exceptions=True)
        for answer in (*stopped, *answers):
            if isinstance(answer, BaseException) and not isinstance(answer, NoAnswer):
                raise answer
        return [answer for answer in answers if isinstance(answer, (Answer, NoAnswer))]

    async def _answer(self, client: Any, question: Question) -> Answer | NoAnswer:
        import openai

        guess = self.limits.prompt_tokens if question.frames is not None else len(question.instruction) / 4
        guess += self.config.max_new_tokens
        await asyncio.sleep(self.limits.tokens.take(guess, time.monotonic()))
        try:
            answer = await self._well_formed(client, question)
        except openai.APIStatusError as err:
            return _refused_question(err, self.config)
        except openai.APIConnectionError as err:  # timeouts too
            await asyncio.to_thread(check_endpoint, self.config)  # is it this question, or is nobody there?
            return NoAnswer(
                "server_error", f"no answer within {self.config.timeout_s:g} s: {_sentence(err, self.config)}"
            )
        if isinstance(answer, Answer):
            self.limits.tokens.correct(answer.num_prompt_tokens + answer.num_completion_tokens - guess)
            if question.frames is not None:
                self.limits.prompt_tokens = answer.num_prompt_tokens
        return answer

    async def _well_formed(self, client: Any, question: Question) -> Answer | NoAnswer:
        """The answer; asked once more where what comes back is no completion."""
        for _ in range(ILL_FORMED_TRIES):
            with contextlib.suppress(json.JSONDecodeError, UnicodeDecodeError):
                reply = await client.chat.completions.create(**self._request(question))
                if answer := _read(reply):
                    return answer
        return NoAnswer("server_error", "the server's reply is no chat completion")

    def _request(self, question: Question) -> dict[str, Any]:
        from pyramid_model.video.video import jpeg

        config = self.config
        images = [] if question.frames is None else [base64.b64encode(jpeg(frame)) for frame in question.frames]
        parts: list[dict[str, Any]] = [
            {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{image.decode()}"}} for image in images
        ]
        request: dict[str, Any] = {
            "model": config.model,
            "messages": [{"role": "user", "content": [*parts, {"type": "text", "text": question.instruction}]}],
            "max_tokens": config.max_new_tokens,
            "temperature": config.temperature,
            "seed": config.seed + question.seed,
        }
        if question.schema and config.json_schema:
            wanted = {"name": "caption", "schema": dict(question.schema)}
            request["response_format"] = {"type": "json_schema", "json_schema": wanted}
        return request | ({"extra_body": config.extra} if config.extra else {})


def _client(config: EndpointConfig, key: str, limits: Limits | None = None) -> Any:
    """The protocol's client, which retries by itself: with growing pauses, and as a `Retry-After` says."""
    from openai import AsyncOpenAI, DefaultAsyncHttpxClient

    async def wait_for_turn(_request: Any) -> None:
        if limits:
            await asyncio.sleep(limits.requests.take(1, time.monotonic()))

    return AsyncOpenAI(
        api_key=key,
        base_url=config.base_url,
        timeout=config.timeout_s,
        max_retries=config.max_retries,
        http_client=DefaultAsyncHttpxClient(event_hooks={"request": [wait_for_turn]}),
    )


def _read(reply: Any) -> Answer | None:
    """The answer in a reply; None where it is no completion."""
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


def _refused_question(err: Any, config: EndpointConfig) -> NoAnswer:
    """What an HTTP error says about one question.

    Raises:
        StepError: it says something about all of them.
    """
    if err.status_code in (401, 403, 404):
        raise StepError(_told(err, config))
    if err.status_code == 429:
        raise StepError(
            f"{config.base_url} still says 429 after {config.max_retries} retries ({_sentence(err, config)}): lower "
            "requests_per_minute, tokens_per_minute or max_concurrency, or look at the quota",
            transient=True,
        )
    kind = "server_error" if err.status_code >= 500 else "bad_request"
    return NoAnswer(kind, f"the server says {err.status_code}: {_sentence(err, config)}")


def _told(err: Any, config: EndpointConfig) -> str:
    """A sentence for an HTTP error that no retry mends."""
    if err.status_code in (401, 403):
        key = f"the key in {config.api_key_env}" if config.api_key_env else "a request without a key (api_key_env)"
        return f"{config.base_url} refuses {key} ({err.status_code}: {_sentence(err, config)})"
    return (
        f"{config.base_url} knows no model {config.model!r}, or is no address of this protocol "
        f"({err.status_code}: {_sentence(err, config)}): correct `model`, or `base_url`, which mostly ends in /v1"
    )


def _sentence(err: BaseException, config: EndpointConfig) -> str:
    """The first words of a server's error, without the key that it may repeat."""
    key = config.api_key()
    text = str(err) if key == NO_KEY else str(err).replace(key, "…")
    return " ".join(text.split())[:300]


def check_endpoint(config: EndpointConfig) -> None:
    """Ask the server for its list of models, before any work; a server without such a list is taken as it is.

    Raises:
        ValueError: the key's variable is not set.
        StepError: nobody answers (transient), or the key is refused.
    """
    import openai

    key = config.api_key()
    try:
        with openai.OpenAI(api_key=key, base_url=config.base_url, timeout=HEALTH_TIMEOUT_S, max_retries=1) as client:
            client.models.list()
    except openai.APIConnectionError as err:
        why = _sentence(err.__cause__ or err, config)
        raise StepError(
            f"nobody answers at {config.base_url} ({why}): start the server, or correct base_url", transient=True
        ) from err
    except openai.APIStatusError as err:
        if err.status_code in (401, 403):
            raise StepError(_told(err, config)) from err
        if err.status_code == 429 or err.status_code >= 500:
            raise StepError(
                f"{config.base_url} is up and cannot work ({err.status_code}: {_sentence(err, config)})", transient=True
            ) from err
    except json.JSONDecodeError as err:
        raise StepError(f"{config.base_url} does not speak OpenAI's protocol: correct base_url") from err
