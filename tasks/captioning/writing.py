"""Captions written by a model: what is wanted, who writes it, and the row of each."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pyramid_model.captioning.instructions import asked_again, filled, instruction_for
from pyramid_model.captioning.quality import Judged, judge, without_thoughts
from pyramid_model.captioning.question import Answer, Answerer, NoAnswer, Question
from pyramid_model.captioning.structured import SCHEMA, StructureError, as_prose, read_structured
from pyramid_model.config import Config
from tasks.captioning.answers import CAPTIONS, AnswerFiles, Found, Keyed
from tasks.captioning.config import REWRITTEN, STRUCTURED
from tasks.captioning.endpoint import DECIDING, Endpoint, EndpointConfig, check_endpoint
from tasks.models.vision_models import VisionModelConfig, prepare_vision_model
from tasks.running.pipeline import run_blocks
from tasks.running.run import Run, StepResult
from tasks.running.work import Item, PerItemWork, Produced
from tasks.tables.delta import bad_row, content_id, ok_row
from tasks.tables.pending import pending

if TYPE_CHECKING:
    from tasks.captioning.config import CaptionsConfig

VERSION = "1"  # of what is made of an answer
CLIP_COLUMNS = ("uri", "height", "width", "num_frames", "fps_num", "fps_den")


class Writer(Config):
    """The model that writes: its name, what tells one state of it from another, and where it is."""

    model: str
    revision: str
    uri: str = ""  # folder of a local model
    config: VisionModelConfig | EndpointConfig

    @property
    def endpoint(self) -> EndpointConfig | None:
        """Its settings, where it is behind an endpoint."""
        return self.config if isinstance(self.config, EndpointConfig) else None


def find_writer(run: Run, config: "CaptionsConfig") -> Writer:
    """The model that a config names; a local one is fetched if need be.

    Raises:
        StepError: there is no such model.
    """
    if config.endpoint:
        return Writer(model=config.endpoint.model, revision=config.endpoint.revision, config=config.endpoint)
    assert config.local, "the config was checked"
    folder = prepare_vision_model(run, config.local)
    return Writer(model=config.local.name, revision=folder.hash, uri=folder.uri, config=config.local)


def answer_settings(config: "CaptionsConfig", kind: str, writer: Writer) -> dict[str, Any]:
    """Everything, beside the clip, that decides what the model answers."""
    # A local model is the hash of its files, wherever they lie.
    name = writer.model if writer.endpoint else ""
    return {
        "model": [name, writer.revision],
        "instruction": instruction_for(kind, config.instructions.get(kind, "")),  # type: ignore[call-overload]
        "frames": None if kind == REWRITTEN else config.frames.model_dump(mode="json"),
        "decoding": writer.config.model_dump(mode="json", include=DECIDING),
    }


def decided_by(config: "CaptionsConfig", kind: str, writer: Writer) -> str:
    """Hash of what decides a caption of that kind: the model's settings, and what is made of its answer."""
    made_of = {"language": config.language, "max_repetition": config.max_repetition}
    return content_id(answer_settings(config, kind, writer), made_of, VERSION)


@dataclass(frozen=True)
class Parent:
    """The caption that another one is made from."""

    caption_id: str
    text: str


def wanted_items(
    config: "CaptionsConfig",
    kinds: Sequence[str],
    writer: Writer,
    clips: Sequence[Mapping[str, Any]],
    parents: Mapping[str, Parent],
) -> list[dict[str, Any]]:
    """One item a clip and kind; those of a clip follow each other, so that its frames are read once.

    parents: by clip id, of rewritten captions only.
    """
    items = []
    hashes = {kind: decided_by(config, kind, writer) for kind in kinds}
    settings = {kind: answer_settings(config, kind, writer) for kind in kinds}
    for clip in clips:
        for kind in kinds:
            item = {name: clip[name] for name in ("clip_id", *CLIP_COLUMNS)} | {"kind": kind}
            parent = parents.get(clip["clip_id"]) if kind == REWRITTEN else None
            made_from = [parent.caption_id if parent else ""] if kind == REWRITTEN else []
            item |= {
                "caption_id": content_id(clip["clip_id"], kind, hashes[kind], *made_from),
                "decided_by": hashes[kind],
                "answer_key": content_id("answer", settings[kind], clip["clip_id"], *made_from),
                "parent_caption_id": parent.caption_id if parent else "",
                "parent_text": parent.text if parent else "",
            }
            items.append(item)
    return items


def write_captions(run: Run, config: "CaptionsConfig", items: Sequence[dict[str, Any]], writer: Writer) -> StepResult:
    """Write the captions among `items` that are not there yet.

    Raises:
        StepError: the endpoint is down or refuses us (asked before any work), or the step stopped.
    """
    todo = pending(run.root, "captions", [item["caption_id"] for item in items], run.retry_failed)
    left = todo.items(items, "caption_id")
    if left and writer.endpoint:
        check_endpoint(writer.endpoint)
    local = None if writer.endpoint else config.local
    work = PerItemWork(
        step="captions",
        version=VERSION,
        config=config,
        worker=CaptionWriter,
        done_table="captions",
        worker_args={"config": config, "writer": writer, "root": run.root},
        block_size=config.block_size,
        num_cpus=local.num_cpus if local else 0.5,
        num_gpus=local.num_gpus if local else 0,
        max_actors=writer.endpoint.num_actors if writer.endpoint else None,
    )
    return run_blocks(run, work, left, todo.num_done)


class CaptionWriter:
    """Actor: asks the model about a block of clips, and makes a row of each answer."""

    def __init__(self, config: "CaptionsConfig", writer: Writer, root: str):
        self.config, self.writer = config, writer
        self.files = AnswerFiles(root, CAPTIONS)
        self.answerer = load_answerer(writer)

    def __call__(self, items: list[Item]) -> Produced:
        """One row an item."""
        shown = FramesOfClip(self.config)
        asked = [item for item in items if item["kind"] != REWRITTEN or item["parent_text"]]
        first = self.files.ask([self._keyed(item, shown) for item in asked], self.answerer)
        found: dict[str, list[Found]] = {item["caption_id"]: [one] for item, one in zip(asked, first, strict=True)}
        self._ask_again(asked, found, shown)
        return Produced({"captions": [self.row(item, found.get(item["caption_id"], [])) for item in items]})

    def _keyed(self, item: Mapping[str, Any], shown: "FramesOfClip", problem: tuple[str, str] = ("", "")) -> Keyed:
        """The question about a clip; with (answer, problem), the second one after an answer of no use."""
        kind = item["kind"]
        instruction = instruction_for(kind, self.config.instructions.get(kind, ""))
        if kind == REWRITTEN:
            instruction = filled(instruction, item["parent_text"])
        answer, why = problem
        if why:
            instruction = asked_again(instruction, answer, why)
        again = [answer] if why else []
        retry = item["attempt"] - 1  # a retry asks anew, and draws other words
        key = content_id(item["answer_key"], again, retry) if again or retry else item["answer_key"]

        def make() -> Question:
            frames, fps = (None, 1.0) if kind == REWRITTEN else shown(item)
            return Question(instruction, frames, fps, SCHEMA if kind == STRUCTURED else None, seed=retry)

        return Keyed(key, make, item["caption_id"], item["attempt"])

    def _ask_again(
        self, items: Sequence[Mapping[str, Any]], found: dict[str, list[Found]], shown: "FramesOfClip"
    ) -> None:
        """Once more, where a structured caption came back as something else; adds to `found`."""
        ill: list[tuple[Mapping[str, Any], str, str]] = []
        for item in items:
            answer = found[item["caption_id"]][0].answer
            if item["kind"] != STRUCTURED or not isinstance(answer, Answer) or judge(answer).fault[0] == "refused":
                continue
            try:
                read_structured(without_thoughts(answer.text))
            except StructureError as err:
                ill.append((item, answer.text, str(err)))
        keyed = [self._keyed(item, shown, (answer, why)) for item, answer, why in ill]
        for (item, _, _), second in zip(ill, self.files.ask(keyed, self.answerer), strict=True):
            found[item["caption_id"]].append(second)

    def row(self, item: Mapping[str, Any], found: Sequence[Found]) -> dict[str, Any]:
        """Row of one caption, from the answers that it took."""
        columns = self._columns(item, found)
        if not found:
            kind = self.config.rewrite_from
            why = "no_parent", f"the clip has no caption of the kind {kind!r} to rewrite (captions.rewrite_from)"
            return bad_row(item, why, status="skipped", **columns)
        last = found[-1].answer
        if isinstance(last, NoAnswer):
            return bad_row(item, last, **columns)
        judged, structured = self._judged(item["kind"], last)
        quality = dict(judged.facts) | {"num_asked": sum(one.asked for one in found), "num_answers": len(found)}
        if judged.fault[0]:
            columns |= {"quality": json.dumps(quality | {"answer": last.text[:2000]}), "language": judged.language}
            return bad_row(item, judged.fault, **columns)
        spoken = judged.language or self.config.language
        columns |= {"quality": json.dumps(quality), "language": spoken, "json": structured}
        return ok_row(item, text=judged.text, **columns)

    def _judged(self, kind: str, answer: Answer) -> tuple[Judged, str | None]:
        """What an answer is worth, and its object as JSON where it has to be one."""
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

    def _columns(self, item: Mapping[str, Any], found: Sequence[Found]) -> dict[str, Any]:
        """What the row says whether or not it came about. Tokens and cost are those of all answers that it took."""
        answers = [one.answer for one in found if isinstance(one.answer, Answer)]
        prompt = sum(answer.num_prompt_tokens for answer in answers)
        completion = sum(answer.num_completion_tokens for answer in answers)
        endpoint = self.writer.endpoint
        names = ("caption_id", "clip_id", "kind", "parent_caption_id")
        return {name: item[name] for name in names} | {
            "model": self.writer.model,
            "model_revision": self.writer.revision,
            "prompt_hash": item["decided_by"],
            "settings": json.dumps(answer_settings(self.config, item["kind"], self.writer)),
            "num_prompt_tokens": prompt,
            "num_completion_tokens": completion,
            "cost_usd": endpoint.cost_usd(prompt, completion) if endpoint else 0.0,
        }


class FramesOfClip:
    """Reads the frames of a clip; those of the last one are kept, since several kinds look at the same."""

    def __init__(self, config: "CaptionsConfig"):
        self.sampling = config.frames
        self.clip_id = ""
        self.frames: tuple[Any, float] = (None, 1.0)

    def __call__(self, item: Mapping[str, Any]) -> tuple[Any, float]:
        """Frames (t h w 3), and how many of them there are a second.

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
    """The model itself, in this process or behind its endpoint."""
    if isinstance(writer.config, EndpointConfig):
        return Endpoint(writer.config, writer.config.num_actors)
    import torch

    from pyramid_model.captioning.vision_model import VisionModel
    from tasks.models.folders import local_folder

    config = writer.config
    torch.set_num_threads(max(1, round(config.num_cpus)))
    device = "cuda" if config.num_gpus else "cpu"
    with local_folder(writer.uri) as folder:
        return VisionModel(folder, config, device, getattr(torch, config.dtype), config.batch_size)
