"""Actor of the evaluate step: measures losses, samples and reconstructions, and makes the row with the verdict."""

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, TypedDict

from pyramid_model.config import DiTConfig, MMDiTConfig, PyramidConfig
from pyramid_model.generate.request import GenerationRequest
from pyramid_model.train.buckets import parse_bucket
from pyramid_model.train.config import DiTLossConfig
from pyramid_model.weights.record import ModelFolder, TrainedModel
from tasks.models.folders import load_dit, load_vae, pipeline_of, read_record
from tasks.models.gate import decide, passed
from tasks.running.work import Produced
from tasks.tables.rows import ok_row
from tasks.tables.storage import file_crc32
from tasks.tables.stored_folders import local_folder, writing_folder
from tasks.training.pair_columns import Pair
from tasks.training.pairs import find_pairs, load_null_text, load_pairs
from tasks.training.validation import val_baselines, val_losses

if TYPE_CHECKING:
    import numpy as np

    from pyramid_model.dit.transformer import DiT
    from tasks.evaluating.config import EvaluateConfig, Subject
    from tasks.training.train_dit import TrainDiTConfig

Figures = dict[str, object]  # measured values by name, as JSON in `evaluations.metrics`
MAX_CODEC_CLIPS = 64  # training clips on which the linear codec of a VAE that was not trained here is fitted
MAX_RETRIEVED = 64  # training clips among which samples should find their own
NUM_MOTION_CLIPS = 8  # training clips whose median motion is compared with that of samples


class EvaluationItem(TypedDict):
    """An evaluation to make. question: hash of its settings, models and data."""

    evaluation_id: str
    question: str


class Sample(TypedDict):
    """A clip that the candidate made from a training caption, and the training clip with that caption."""

    prompt: str
    seed: int
    uri: str
    clip_id: str


class Reconstruction(TypedDict):
    """A held-out clip and its reconstruction by the VAE, side by side in one file. psnr: dB."""

    clip_id: str
    uri: str
    psnr: float


class Evaluator:
    """Actor: measures one model and computes the verdict of the gate."""

    def __init__(self, subject: "Subject", config: "EvaluateConfig", folder: str):
        import torch

        torch.set_num_threads(max(1, round(config.num_cpus)))
        self.device = "cuda" if config.num_gpus else "cpu"
        self.subject, self.config, self.folder = subject, config, folder
        is_trained = subject.candidate == "trained"
        self.judged = subject.models.dit if is_trained else save_untrained(subject)
        vae = subject.models.vae
        self.dit = load_dit(self.judged.uri, self.device, self.judged.hash)
        self.vae = load_vae(vae.uri, self.device, vae.hash)
        self.pyramid = subject.record.pyramid if subject.record else PyramidConfig()

    def __call__(self, items: Sequence[EvaluationItem]) -> Produced:
        """The row of the evaluation."""
        return Produced({"evaluations": [self.row(item) for item in items]})

    def row(self, item: EvaluationItem) -> Figures:
        """Row of an evaluation: measured values of the model, and the checks of the gate."""
        subject = self.subject
        models = subject.models.model_copy(update={"dit": self.judged})
        samples, motion, num_bad_samples = self.samples()
        reconstructions = self.reconstructions()
        figures = self.losses() | motion | self.vae_figures(reconstructions)
        figures["num_not_finite"] = self.num_not_finite() + num_bad_samples
        checks = decide(figures, self.config.gate)
        described = {
            "question": item["question"],
            "candidate": subject.candidate,
            "models": models.model_dump(),
            "champion": subject.rival.dit.hash if subject.rival else "",
            "samples": samples,
            "reconstructions": reconstructions,
        }
        media = [file["uri"] for file in (*samples, *reconstructions)]
        return ok_row(
            item,
            evaluation_id=item["evaluation_id"],
            model_id=subject.record.model_id if subject.record else "",
            weights_hash=models.dit.hash,
            vae_hash=models.vae.hash,
            metrics=json.dumps(described | finite_or_null(figures)),
            checks=json.dumps([check.model_dump() for check in checks]),
            passed=passed(checks),
            media=media,
            crc32=[file_crc32(uri) for uri in media],
        )

    def losses(self) -> Figures:
        """Validation losses of the candidate, its baselines, its initial weights and the champion.

        All are of the same latents and noise.
        """
        subject = self.subject
        held_out = load_pairs(subject.source, subject.val)
        loss = settings_of(subject.record).loss if subject.record else DiTLossConfig()
        figures: Figures = dict(val_losses(self.dit, held_out, self.pyramid, loss))
        train = find_pairs(subject.source, "train", views=True)
        figures |= val_baselines(self.dit, subject.source, train, held_out, self.pyramid, loss)
        untrained = untrained_of(subject.record, self.dit.config).to(self.device)
        figures["val_loss_untrained"] = val_losses(untrained, held_out, self.pyramid, loss)["val_loss"]
        figures |= {"num_val": len(held_out.pairs), "num_bad": len(held_out.bad), "bad": held_out.bad[:20]}
        rival = subject.rival
        if rival and rival.hashes[1:] == subject.models.hashes[1:]:
            record = read_record(rival.dit.uri)
            pyramid = record.pyramid if record else PyramidConfig()
            other = val_losses(load_dit(rival.dit.uri, self.device, rival.dit.hash), held_out, pyramid, loss)
            figures["val_loss_champion"] = other["val_loss"]
        return figures

    def samples(self) -> "tuple[list[Sample], Figures, int]":
        """Sample clips from training captions.

        Returns:
            (samples, median motion of the samples and of training clips, number of samples with NaN or Inf).
        """
        from pyramid_model.generate.batch import ClipBatch, PromptFeatures
        from pyramid_model.generate.pipeline import NotFiniteError
        from pyramid_model.metrics.quality import motion_magnitude
        from pyramid_model.text import stack_features
        from pyramid_model.video.video import write_video

        subject, config = self.subject, self.config
        pipeline = pipeline_of(subject.record, self.dit, self.vae, device=self.device)
        loaded = load_pairs(subject.source, _distinct_texts(subject.train)[: config.num_samples])
        samples: list[Sample] = []
        sampled: list[tuple[Pair, np.ndarray]] = []
        num_not_finite = 0
        null = stack_features([load_null_text(subject.source)])
        for pair, latent, text in zip(loaded.pairs, loaded.latents, loaded.texts, strict=True):
            request = sized(config.request, latent.shape, self.vae.config.space_factor)
            features = PromptFeatures(stack_features([text]), null)
            try:
                clips = pipeline.generate(
                    ClipBatch([pair.text], request, [config.seed], offload="none", features=features)
                )
            except NotFiniteError:
                num_not_finite += 1
                continue
            uri = f"{self.folder}/sample-{len(samples)}.mp4"
            write_video(uri, clips.videos[0], fps=parse_bucket(pair.bucket).fps)
            sampled.append((pair, clips.videos[0]))
            samples.append({"prompt": pair.text, "seed": config.seed, "uri": uri, "clip_id": pair.clip_id})
        data = [motion_magnitude(frames) for frames in _frames(subject.train[:NUM_MOTION_CLIPS])]
        motions = [motion_magnitude(frames) for _, frames in sampled]
        figures: Figures = {
            "motion": statistics.median(motions) if motions else None,
            "motion_data": statistics.median(data) if data else None,
        }
        return samples, figures | self.drifts(sampled) | self.retrieval(sampled), num_not_finite

    def drifts(self, sampled: "Sequence[tuple[Pair, np.ndarray]]") -> Figures:
        """Mean drift of the samples, and of the training clips of their captions under `…_data`; see `drift`."""
        from pyramid_model.metrics.drift import drift

        of_samples = [drift(frames) for _, frames in sampled if len(frames) > 1]
        of_data = [drift(frames) for frames in _frames([pair for pair, _ in sampled]) if len(frames) > 1]
        figures: Figures = {}
        for ending, drifts in (("", of_samples), ("_data", of_data)):
            for name in drifts[0] if drifts else ():
                figures[name + ending] = statistics.mean(one[name] for one in drifts)
        return figures

    def retrieval(self, sampled: "Sequence[tuple[Pair, np.ndarray]]") -> Figures:
        """Whether samples of the first one's size are nearer to the training clip of their caption than to others.

        Returns:
            `retrieval`: share of the samples for which this is so. `retrieval_chance`: share by chance. `sample_psnr`:
            mean PSNR to the own clip, dB.
        """
        from pyramid_model.metrics.quality import psnr
        from pyramid_model.metrics.retrieval import retrieval_rate

        if not sampled:
            return {}
        bucket = sampled[0][0].bucket
        sampled = [(pair, frames) for pair, frames in sampled if pair.bucket == bucket]
        others = [pair for pair in self.subject.train[:MAX_RETRIEVED] if pair.bucket == bucket]
        pairs = list({pair.clip_id: pair for pair in (*(pair for pair, _ in sampled), *others)}.values())
        clips, videos = list(_frames(pairs)), [frames for _, frames in sampled]
        own = list(range(len(sampled)))
        similar = [psnr(clip[: len(video)], video) for video, clip in zip(videos, clips, strict=False)]
        return {
            "retrieval": retrieval_rate(videos, own, clips),
            "retrieval_chance": 1 / len(clips),
            "sample_psnr": statistics.mean(similar),
        }

    def reconstructions(self) -> list[Reconstruction]:
        """Held-out clips (left) beside their reconstructions by the VAE (right)."""
        import numpy as np

        from pyramid_model.metrics.quality import psnr
        from pyramid_model.train.vae_loss import reconstruct
        from pyramid_model.video.video import write_video

        reconstructions: list[Reconstruction] = []
        pairs = self.subject.val[: self.config.num_reconstructions]
        for pair, frames in zip(pairs, _frames(pairs), strict=True):
            whole = frames[: self.vae.config.whole_frames(len(frames))]
            restored = reconstruct(self.vae, whole)
            uri = f"{self.folder}/reconstruction-{len(reconstructions)}.mp4"
            write_video(uri, np.concatenate([whole, restored], axis=2), fps=parse_bucket(pair.bucket).fps)
            reconstructions.append({"clip_id": pair.clip_id, "uri": uri, "psnr": psnr(whole, restored)})
        return reconstructions

    def vae_figures(self, reconstructions: Sequence[Reconstruction]) -> Figures:
        """Held-out PSNR of the VAE and of the linear codec of its rate; if it was trained here, also untrained."""
        record = read_record(self.subject.models.vae.uri)
        if record and "val_psnr" in record.metrics:
            names = ("val_psnr", "val_psnr_untrained", "val_psnr_linear")
            return {name.replace("val_", "vae_"): record.metrics.get(name) for name in names}
        if not reconstructions:
            return {"vae_psnr": None}
        from pyramid_model.metrics.linear_codec import LinearCodec

        val = self.subject.val[: self.config.num_reconstructions]
        codec = LinearCodec.fit(_frames(self.subject.train[:MAX_CODEC_CLIPS]), self.vae.config)
        measured = statistics.mean(reconstruction["psnr"] for reconstruction in reconstructions)
        return {"vae_psnr": measured, "vae_psnr_linear": codec.validate(list(_frames(val)))["val_psnr"]}

    def num_not_finite(self) -> int:
        """Number of weights of the candidate that are NaN or Inf."""
        return sum(int((~weight.isfinite()).sum()) for weight in self.dit.parameters())


def _distinct_texts(pairs: Sequence[Pair]) -> list[Pair]:
    return list({pair.text: pair for pair in reversed(pairs)}.values())[::-1]


def _frames(pairs: Sequence[Pair]) -> "Iterator[np.ndarray]":
    """Clips at the size of their bucket, (t h w 3) uint8 each, one after another."""
    from pyramid_model.video.video import read_clip

    for pair in pairs:
        b = parse_bucket(pair.bucket)
        yield read_clip(pair.uri, height=b.height, width=b.width, fps=b.fps, num_frames=b.num_frames)


def sized(request: GenerationRequest, shape: Sequence[int], space_factor: int) -> GenerationRequest:
    """The request at the size and length of a latent (c t h w)."""
    _, t, h, w = shape
    size = {"height": h * space_factor, "width": w * space_factor, "num_latent_frames": t}
    return GenerationRequest.model_validate(request.model_dump() | size)


def finite_or_null(figures: Mapping[str, object]) -> Figures:
    """Figures as JSON can hold them: NaN and Inf become null."""
    return {
        name: None if isinstance(value, float) and not abs(value) < float("inf") else value
        for name, value in figures.items()
    }


def settings_of(record: TrainedModel) -> "TrainDiTConfig":
    """The settings that a DiT was trained with."""
    from tasks.training.train_dit import TrainDiTConfig

    return TrainDiTConfig.model_validate(record.settings)


def untrained_of(record: TrainedModel | None, model: DiTConfig) -> "DiT":
    """The DiT of a record with its initial weights; without a record, a new DiT with the config `model`.

    Of a DiT that was trained with an adapter it is the one without the adapter.
    """
    from tasks.training.train_dit import TrainDiTConfig

    setting = "mmdit" if isinstance(model, MMDiTConfig) else "model"
    config = settings_of(record) if record else TrainDiTConfig.model_validate({setting: model})
    return config.untrained(with_lora=False).eval()


def save_untrained(subject: "Subject") -> ModelFolder:
    """Write the initial weights of the candidate into a folder beside the trained model."""
    from pyramid_model.weights.weights import save_dit, weights_hash

    assert subject.record is not None, "`find_subject` refuses it"

    uri = subject.models.dit.uri.rstrip("/") + "-untrained"
    with writing_folder(uri) as folder:
        save_dit(settings_of(subject.record).untrained(with_lora=False), folder)
    with local_folder(uri) as folder:
        return ModelFolder(uri=uri, hash=weights_hash(folder), random_init=True)
