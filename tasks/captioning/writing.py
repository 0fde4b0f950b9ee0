"""Captions by a model: the wanted captions, the model, and the rows made from its answers."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from pyramid_model.captioning.instructions import asked_again, filled, instruction_for
from pyramid_model.captioning.quality import Judged, judge, without_thoughts
from pyramid_model.captioning.question import Answer, Answerer, NoAnswer, Question
from pyramid_model.captioning.structured import SCHEMA, StructureError, as_prose, read_structured
from pyramid_model.config import Config, Kind, identity
from tasks.captioning.answers import CAPTIONS, AnswerFiles, KeyedQuestion, Reply
from tasks.captioning.config import REWRITTEN, STRUCTURED, CaptionItem
from tasks.captioning.endpoint import Endpoint, EndpointConfig, check_endpoint
from tasks.models.vision_models import VisionModelConfig, prepare_vision_model
from tasks.running.pipeline import run_blocks
from tasks.running.run import Run, StepResult
from tasks.running.work import PerItemWork, Produced
from tasks.tables.content_ids import content_id
from tasks.tables.pending import pending
from tasks.tables.rows import ClipFile, Row, bad_row, ok_row, skipped_row

if TYPE_CHECKING:
    import numpy as np

    from tasks.captioning.config import CaptionsConfig

VERSION = "1"  # increase it when the same answer gives another row
CLIP_COLUMNS = ("uri", "height", "width", "num_frames", "fps_num", "fps_den")


class Writer(Config):
    """A model that writes captions: its name, its revision or the hash of its files, and its settings."""

    model: str
    revision: str
    uri: str = ""  # folder of a local model
    config: VisionModelConfig | EndpointConfig

    @property
    def endpoint(self) -> EndpointConfig | None:
        """Settings of the endpoint; None for a local model."""
        return self.config if isinstance(self.config, EndpointConfig) else None


def find_writer(run: Run, config: "CaptionsConfig") -> Writer:
    """The model of a config. A local model is downloaded if it is missing.

    Raises:
        StepError: there is no such model.
    """
    if config.endpoint:
        return Writer(model=config.endpoint.model, revision=config.endpoint.revision, config=config.endpoint)
    assert config.local, "the config requires one of `local` and `endpoint`"
    folder = prepare_vision_model(run, config.local)
    return Writer(model=config.local.name, revision=folder.hash, uri=folder.uri, config=config.local)


def answer_settings(config: "CaptionsConfig", kind: Kind, writer: Writer) -> dict[str, object]:
    """The settings on which the answer of the model depends, without the clip."""
    return {
        "revision": writer.revision,  # for a local model: the hash of its files, so that the folder does not matter
        "writer": identity(writer.config),
        "instruction": instruction_for(kind, config.instructions.get(kind, "")),
        "frames": None if kind == REWRITTEN else identity(config.frames),
    }


def decided_by(config: "CaptionsConfig", kind: Kind, writer: Writer) -> str:
    """Hash of model, settings and limits on answers: with the clip they determine a caption of that kind."""
    limits = {"language": config.language, "max_repetition": config.max_repetition}
    return content_id(answer_settings(config, kind, writer), limits, VERSION)


@dataclass(frozen=True)
class Parent:
    """The caption that a rewritten caption is made from."""

    caption_id: str
    text: str


class ModelItem(CaptionItem, ClipFile):
    """Work item of `CaptionWriter`: columns of the clip, hash of the question, and caption to rewrite ("" if none)."""

    attempt: int
    answer_key: str
    parent_caption_id: str
    parent_text: str


def wanted_items(
    config: "CaptionsConfig",
    kinds: Sequence[Kind],
    writer: Writer,
    clips: Sequence[ClipFile],
    parents: Mapping[str, Parent],
) -> list[ModelItem]:
    """One item per clip and kind. The items of a clip are consecutive, so that its frames are read once.

    parents: captions to rewrite by clip id; used for rewritten captions only.
    """
    items: list[ModelItem] = []
    hashes = {kind: decided_by(config, kind, writer) for kind in kinds}
    settings = {kind: answer_settings(config, kind, writer) for kind in kinds}
    for clip in clips:
        for kind in kinds:
            parent = parents.get(clip["clip_id"]) if kind == REWRITTEN else None
            parent_ids = [parent.caption_id if parent else ""] if kind == REWRITTEN else []
            items.append(
                {
                    "caption_id": content_id(clip["clip_id"], kind, hashes[kind], *parent_ids),
                    "clip_id": clip["clip_id"],
                    "kind": kind,
                    "decided_by": hashes[kind],
                    "attempt": 1,
                    "uri": clip["uri"],
                    "height": clip["height"],
                    "width": clip["width"],
                    "num_frames": clip["num_frames"],
                    "fps_num": clip["fps_num"],
                    "fps_den": clip["fps_den"],
                    "answer_key": content_id("answer", settings[kind], clip["clip_id"], *parent_ids),
                    "parent_caption_id": parent.caption_id if parent else "",
                    "parent_text": parent.text if parent else "",
                }
            )
    return items


def write_captions(run: Run, config: "CaptionsConfig", items: Sequence[ModelItem], writer: Writer) -> StepResult:
    """Write those captions of `items` that are not in the table yet.

    Raises:
        StepError: the endpoint is down or refuses the key (checked before any work), or the step stopped.
    """
    todo = pending(run.root, "captions", [item["caption_id"] for item in items], run.retry_failed)
    pending_items = todo.items(items, "caption_id")
    if pending_items and writer.endpoint:
        check_endpoint(writer.endpoint)
    local = None if writer.endpoint else config.local
    work = PerItemWork(
        step="captions",
        version=VERSION,
        config=config,
        worker=partial(CaptionWriter, config=config, writer=writer, root=run.root),
        done_table="captions",
        since={"captions": todo.version},
        block_size=config.block_size,
        num_cpus=local.num_cpus if local else 0.5,
        num_gpus=local.num_gpus if local else 0,
        max_actors=writer.endpoint.num_actors if writer.endpoint else None,
    )
    return run_blocks(run, work, pending_items, todo.num_done)


class CaptionWriter:
    """Actor: asks the model about a block of clips and makes a row from each answer."""

    def __init__(self, config: "CaptionsConfig", writer: Writer, root: str):
        self.config, self.writer = config, writer
        self.files = AnswerFiles(root, CAPTIONS)
        self.answerer = load_answerer(writer)

    def __call__(self, items: Sequence[ModelItem]) -> Produced:
        """One row per item."""
        frames_of = FramesOfClip(self.config)
        answerable = [item for item in items if item["kind"] != REWRITTEN or item["parent_text"]]
        first_replies = self.files.ask([self._question(item, frames_of) for item in answerable], self.answerer)
        replies = {item["caption_id"]: [reply] for item, reply in zip(answerable, first_replies, strict=True)}
        self._ask_again(answerable, replies, frames_of)
        return Produced({"captions": [self.row(item, replies.get(item["caption_id"], [])) for item in items]})

    def _question(
        self, item: ModelItem, frames_of: "FramesOfClip", problem: tuple[str, str] = ("", "")
    ) -> KeyedQuestion:
        """The question about a clip. problem: (answer, reason) of a first answer that could not be used."""
        kind = item["kind"]
        instruction = instruction_for(kind, self.config.instructions.get(kind, ""))
        if kind == REWRITTEN:
            instruction = filled(instruction, item["parent_text"])
        answer, reason = problem
        if reason:
            instruction = asked_again(instruction, answer, reason)
        rejected = [answer] if reason else []
        retry = item["attempt"] - 1  # a retry asks the model again, with another seed
        key = content_id(item["answer_key"], rejected, retry) if rejected or retry else item["answer_key"]

        def make() -> Question:
            frames, fps = (None, 1.0) if kind == REWRITTEN else frames_of(item)
            return Question(instruction, frames, fps, SCHEMA if kind == STRUCTURED else None, seed=retry)

        return KeyedQuestion(key, make, item["caption_id"], item["attempt"])

    def _ask_again(
        self, items: Sequence[ModelItem], replies: dict[str, list[Reply]], frames_of: "FramesOfClip"
    ) -> None:
        """Ask once more for structured captions whose answer has the wrong form; adds to `replies`."""
        malformed: list[tuple[ModelItem, str, str]] = []
        for item in items:
            answer = replies[item["caption_id"]][0].answer
            if item["kind"] != STRUCTURED or not isinstance(answer, Answer) or judge(answer).fault[0] == "refused":
                continue
            try:
                read_structured(without_thoughts(answer.text))
            except StructureError as err:
                malformed.append((item, answer.text, str(err)))
        questions = [self._question(item, frames_of, (answer, reason)) for item, answer, reason in malformed]
        for (item, _, _), reply in zip(malformed, self.files.ask(questions, self.answerer), strict=True):
            replies[item["caption_id"]].append(reply)

    def row(self, item: ModelItem, replies: Sequence[Reply]) -> Row:
        """Row of one caption, from the replies to its questions."""
        columns = self._columns(item, replies)
        if not replies:
            kind = self.config.rewrite_from
            error = "no_parent", f"the clip has no caption of the kind {kind!r} to rewrite (captions.rewrite_from)"
            return skipped_row(item, error, **columns)
        last = replies[-1].answer
        if isinstance(last, NoAnswer):
            return bad_row(item, last, **columns)
        judged, structured = self._judged(item["kind"], last)
        quality = dict(judged.facts) | {"num_asked": sum(reply.asked for reply in replies), "num_answers": len(replies)}
        if judged.fault[0]:
            columns |= {"quality": json.dumps(quality | {"answer": last.text[:2000]}), "language": judged.language}
            return bad_row(item, judged.fault, **columns)
        language = judged.language or self.config.language
        columns |= {"quality": json.dumps(quality), "language": language, "json": structured}
        return ok_row(item, text=judged.text, **columns)

    def _judged(self, kind: Kind, answer: Answer) -> tuple[Judged, str | None]:
        """The judgement of an answer and, for a structured caption, its JSON object."""
        limits = {"language": self.config.language, "max_repetition": self.config.max_repetition}
        answer = answer.model_copy(update={"text": without_thoughts(answer.text)})
        if kind != STRUCTURED:
            return judge(answer, **limits), None
        plain = judge(answer)
        if plain.fault[0] in ("refused", "empty"):
            return plain, None
        try:
            fields, repaired = read_structured(answer.text)
        except StructureError as err:
            return Judged(answer.text, fault=("bad_json", f"no structured caption in two answers: {err}")), None
        judged = judge(Answer(text=as_prose(fields)), **limits)
        facts = dict(judged.facts) | {"repaired": repaired}
        return Judged(judged.text, judged.language, judged.fault, facts), json.dumps(fields, ensure_ascii=False)

    def _columns(self, item: ModelItem, replies: Sequence[Reply]) -> Row:
        """Columns that ok and failed rows share. Tokens and cost are sums over all answers."""
        answers = [reply.answer for reply in replies if isinstance(reply.answer, Answer)]
        prompt = sum(answer.num_prompt_tokens for answer in answers)
        completion = sum(answer.num_completion_tokens for answer in answers)
        endpoint = self.writer.endpoint
        names = ("caption_id", "clip_id", "kind", "parent_caption_id")
        columns: Row = {
            "model": self.writer.model,
            "model_revision": self.writer.revision,
            "prompt_hash": item["decided_by"],
            "settings": json.dumps(answer_settings(self.config, item["kind"], self.writer)),
            "num_prompt_tokens": prompt,
            "num_completion_tokens": completion,
            "cost_usd": endpoint.cost_usd(prompt, completion) if endpoint else 0.0,
        }
        return columns | {name: item[name] for name in names}


class FramesOfClip:
    """Reads the frames of a clip. It caches those of the last clip, since all kinds of caption use the same frames."""

    def __init__(self, config: "CaptionsConfig"):
        self.sampling = config.frames
        self.clip_id = ""
        self.frames: tuple[np.ndarray | None, float] = (None, 1.0)

    def __call__(self, item: ModelItem) -> "tuple[np.ndarray | None, float]":
        """Frames, uint8 RGB (t h w 3), and their frame rate.

        Raises:
            NoAnswer: the file is missing or damaged.
        """
        from pyramid_model.captioning.frames import sampled_frames
        from pyramid_model.video.video import VideoError

        if item["clip_id"] != self.clip_id:
            fps = item["fps_num"] / item["fps_den"]
            size = {name: item[name] for name in ("height", "width", "num_frames")}
            try:
                self.frames = sampled_frames(item["uri"], self.sampling, fps=fps, **size)
            except VideoError as err:
                raise NoAnswer(err.kind, str(err)) from err
            self.clip_id = item["clip_id"]
        return self.frames


def load_answerer(writer: Writer) -> Answerer:
    """The model, loaded in this process or behind its endpoint."""
    if isinstance(writer.config, EndpointConfig):
        return Endpoint(writer.config, writer.config.num_actors)
    import torch

    from pyramid_model.captioning.vision_model import VisionModel
    from tasks.tables.stored_folders import local_folder

    config = writer.config
    torch.set_num_threads(max(1, round(config.num_cpus)))
    device = "cuda" if config.num_gpus else "cpu"
    with local_folder(writer.uri) as folder:
        return VisionModel(folder, config, device, getattr(torch, config.dtype), config.batch_size)
