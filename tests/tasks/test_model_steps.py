"""Captions to generated clips, every step for real on tiny models (about a minute and a half on two free cores)."""

import json
import random
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from pyramid_model.config import MiniFluxConfig, PyramidConfig, VAEConfig, VAEStackConfig
from pyramid_model.generate.request import GenerationRequest
from pyramid_model.train.config import OptimConfig, VAEBatchConfig
from pyramid_model.train.views import ViewsConfig
from tasks.captioning.captions import captions
from tasks.captioning.config import CaptionsConfig
from tasks.encoding.latents import LatentsConfig, latents
from tasks.encoding.text_features import TextFeaturesConfig, text_features
from tasks.evaluating.config import EvaluateConfig
from tasks.evaluating.evaluate import evaluate
from tasks.evaluating.register import RegisterConfig, register
from tasks.exchange.official_files import ImportConfig, export_official, import_official, select_imported
from tasks.generating.config import GenerateConfig
from tasks.generating.generate import generate
from tasks.inspecting.verify import check_weights
from tasks.models.folders import find_model, folder_hash, load_dit, load_encoder, load_vae, read_record
from tasks.models.gate import GateConfig
from tasks.models.registry import champion
from tasks.models.tracking import RegistryError
from tasks.running.errors import StepError
from tasks.running.run import Run, StepResult
from tasks.tables.appending import append_block
from tasks.tables.delta import read_table, table_version
from tasks.tables.root_paths import MARK
from tasks.tables.rows import Lineage
from tasks.tables.storage import file_crc32
from tasks.training.pairs import find_pairs, load_null_text, load_pairs, pair_source, sources_of
from tasks.training.train_dit import DiTOptimConfig, DiTTraining, TrainDiTConfig, train_dit
from tasks.training.train_vae import TrainVAEConfig, train_vae

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]

STACK = VAEStackConfig(channels=(8, 8, 8, 16), layers=(1, 1, 1, 1), norm_groups=4)
STEPS = {"num_steps": 6, "lr": 3e-3, "warmup_steps": 1, "log_every": 2, "ema_decay": 0}
TEXTS = TextFeaturesConfig(dim=16, num_layers=1, vocab_size=64, prompts=("A green square.",))
VAE = TrainVAEConfig(
    model=VAEConfig(latent_channels=4, encoder=STACK, decoder=STACK),
    batch=VAEBatchConfig(num_frames=9),
    optim=OptimConfig(batch_size=2, **STEPS | {"lr": 1e-4}),
)
DIT = TrainDiTConfig(
    model=MiniFluxConfig(
        latent_channels=4,
        num_double_blocks=1,
        num_single_blocks=1,
        num_heads=2,
        head_dim=16,
        text_dim=16,
        pooled_dim=16,
        rope_axes=(4, 6, 6),
    ),
    pyramid=PyramidConfig(num_stages=2),
    optim=DiTOptimConfig(batch_size=4, **STEPS),
)
REQUEST = GenerationRequest(
    height=32, width=32, num_latent_frames=2, num_inference_steps=2, video_num_inference_steps=2, fps=8
)
JUDGE = {
    "gate": GateConfig(
        max_loss_to_untrained=0.9999, max_loss_to_linear=10, max_loss_to_no_text=1.1, min_psnr_over_linear_db=-30
    ),
    "num_samples": 1,
    "request": REQUEST,
}
CLIPS = GenerateConfig(prompts=("A red square slides to the right.", "A green square."), request=REQUEST)


@dataclass
class Chain:
    """A root after the whole chain, and what each step said."""

    run: Run
    results: dict[str, StepResult]


def run_chain(run: Run) -> dict[str, StepResult]:
    results = {
        "captions": captions(run, CaptionsConfig()),
        "text_features": text_features(run, TEXTS),
        "train_vae": train_vae(run, VAE),
        "latents": latents(run, LatentsConfig()),
        "train_dit": train_dit(run, DIT),
        "untrained": evaluate(run, EvaluateConfig(candidate="untrained", **JUDGE)),
        "trained": evaluate(run, EvaluateConfig(**JUDGE)),
    }
    evaluation_id = results["trained"].evaluation_id
    results["register"] = register(run, RegisterConfig(evaluation_id=evaluation_id))
    results["generate"] = generate(run, CLIPS)
    return results


@pytest.fixture(scope="module")
def chain(ray_local, shared_squares) -> Chain:
    return Chain(shared_squares, run_chain(shared_squares))


def rows_of(chain: Chain, table: str) -> list[dict]:
    return read_table(chain.run.root, table).to_pylist()


def test_clips_get_the_caption_of_their_time_and_one_without_is_a_row_with_the_reason(chain):
    result = chain.results["captions"]
    assert (result.num_in, result.num_ok, result.num_skipped, result.errors) == (6, 5, 1, {"no_caption": 1})
    rows = rows_of(chain, "captions")
    assert {row["text"] for row in rows if row["status"] == "ok"} == {
        f"A {colour} square slides to the right." for colour in ("red", "green", "blue")
    }
    assert "video3.mp4 from 0.00 to 1.12 s" in next(row["error"] for row in rows if row["status"] == "skipped")


def test_each_distinct_text_is_encoded_once_with_the_empty_one_and_the_prompts(chain):
    rows = rows_of(chain, "text_features")
    assert len(rows) == 5
    assert {"", "A green square."} < {row["text"] for row in rows}
    assert {row["encoder_hash"] for row in rows} == {chain.results["text_features"].encoder_hash}
    assert chain.results["text_features"].random_init
    encoder = load_encoder(chain.results["text_features"].encoder)
    for row in rows:
        embeds, pooled = encoder.encode([row["text"]])[0]
        stored = np.frombuffer(row["embeds"], np.float32).reshape(row["shape"])
        np.testing.assert_allclose(stored, embeds.numpy(), atol=1e-5)
        np.testing.assert_allclose(np.frombuffer(row["pooled"], np.float32), pooled.numpy(), atol=1e-5)


def test_the_vae_keeps_shift_and_scale_that_normalise_its_training_latents(chain):
    row = next(row for row in rows_of(chain, "models") if row["kind"] == "vae")
    metrics = json.loads(row["metrics"])
    assert (metrics["num_train"], metrics["num_val"]) == (4, 2)
    assert metrics["val_psnr"] > metrics["val_psnr_untrained"]
    assert 5 < metrics["val_psnr_linear"] < 60
    norm = load_vae(row["uri"]).config.latent_norm
    source = pair_source(chain.run, "", "", find_model(chain.run, "vae"), chain.results["text_features"].encoder_hash)
    loaded = load_pairs(source, find_pairs(source, "train"))
    assert norm == source.norm
    first = np.stack([latent[:, 0].numpy() for latent in loaded.latents])
    assert abs(first.mean()) < 0.2  # three of the four clips it was measured on have captions
    assert 0.7 < first.std() < 1.3


def test_latents_are_the_raw_posterior_means(chain):
    from pyramid_model.vae.pixels import to_unit_range
    from pyramid_model.video.video import read_clip

    rows = rows_of(chain, "latents")
    assert len(rows) == 6
    vae = load_vae(chain.results["latents"].vae)
    uris = {row["clip_id"]: row["uri"] for row in rows_of(chain, "clips")}
    frames = read_clip(uris[rows[0]["clip_id"]], height=32, width=32, fps=8, num_frames=9)
    expected = vae.encode(to_unit_range(frames)[None]).mode()[0].detach().numpy()
    stored = np.frombuffer(rows[0]["latent"], np.float32).reshape(rows[0]["shape"])
    np.testing.assert_allclose(stored, expected, atol=1e-4)


def test_the_dit_records_what_it_was_trained_on(chain):
    row = next(row for row in rows_of(chain, "models") if row["kind"] == "dit")
    trained_on = json.loads(row["config"])["trained_on"]
    assert trained_on["vae"]["uri"] == chain.results["train_vae"].uri
    assert trained_on["versions"]["latents"] >= 0
    assert trained_on["encoder"]["random_init"]
    metrics = json.loads(row["metrics"])
    assert (metrics["num_train"], metrics["num_val"]) == (3, 2)  # one clip has no caption
    assert metrics["val_loss"] < metrics["val_loss_untrained"]
    assert 0 < metrics["val_loss_linear"] < 2 * metrics["val_loss_untrained"]
    assert metrics["val_loss_no_text"] != metrics["val_loss"]
    assert metrics["val_loss_shuffled_text"] != metrics["val_loss"]


def test_the_gate_refuses_the_untrained_model_and_lets_the_trained_one_pass(chain):
    untrained, trained = chain.results["untrained"], chain.results["trained"]
    assert (untrained.passed, trained.passed) == (False, True)
    assert "val_loss_to_untrained is 1, limit" in untrained.note
    with pytest.raises(RegistryError, match="did not pass the gate"):
        register(chain.run, RegisterConfig(evaluation_id=untrained.evaluation_id))
    best = champion(chain.run.root)
    assert best is not None
    assert best.dit.hash == chain.results["train_dit"].weights_hash


def test_evaluations_show_reconstructions_beside_originals_and_samples(chain):
    for row in rows_of(chain, "evaluations"):
        figures = json.loads(row["metrics"])
        assert len(row["media"]) == 3
        assert row["crc32"] == [file_crc32(uri) for uri in row["media"]]
        assert len(figures["reconstructions"]) == 2
        assert figures["motion"] >= 0
        assert figures["val_loss_stage0"] > 0


def test_generation_writes_named_clips_of_the_asked_size(chain):
    from pyramid_model.video.video import read_clip

    rows = rows_of(chain, "generations")
    assert sorted(Path(row["uri"]).name[:-13] for row in rows) == [
        "a-green-square-0",
        "a-red-square-slides-to-the-right-0",
    ]
    for row in rows:
        assert read_clip(row["uri"], height=32, width=32).shape == (9, 32, 32, 3)
        assert row["peak_memory_bytes"] > 1e8
        assert set(json.loads(row["timings"])) >= {"text_s", "sample_s", "decode_s"}
        assert row["notes"] == []


def test_the_whole_chain_again_does_nothing_and_imports_nothing_heavy(chain):
    counts = {table: len(rows_of(chain, table)) for table in ("captions", "text_features", "latents", "models")}
    code = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_model_steps import run_chain
from tasks.running.run import Run
results = run_chain(Run(root={chain.run.root!r}))
assert not [name for name, result in results.items() if result.num_new], results
assert not {{"ray", "torch", "mlflow", "transformers", "av"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
    assert {table: len(rows_of(chain, table)) for table in counts} == counts


def training_of(chain: Chain, **settings) -> DiTTraining:
    """The DiT's side of a training on this root, as a worker would build it."""
    import torch

    config = TrainDiTConfig.model_validate(DIT.model_dump() | settings)
    encoder_hash = chain.results["text_features"].encoder_hash
    sampled = bool(config.sample_posterior)
    source = pair_source(chain.run, "", "", find_model(chain.run, "vae"), encoder_hash, config.caption_weights, sampled)
    train, val = find_pairs(source, "train"), find_pairs(source, "val")
    return DiTTraining(config, source, train, val, sources_of(source, train), torch.device("cpu"))


def test_batches_of_a_sync_group_have_the_same_clips_and_train_other_units(chain):
    training = training_of(chain, sync_group=2, num_batches=2)
    for step in range(3):
        batches = training.batch(step, 0), training.batch(step, 1)
        assert batches[0].ids == batches[1].ids
        assert batches[0].args[0].equal(batches[1].args[0])
    objective = training.objective()
    assert {objective._units_to_train(step, rank, 2) for step in (0, 1) for rank in (0, 1)} == {(2, 1), (1, 2)}


def test_a_mixture_names_the_sources_and_a_budget_sets_the_batch(chain):
    assert set(sources_of(training_of(chain).source, training_of(chain).train.pairs)) == {None}
    tokens = 2 * 2 * 2  # of a latent of 2 frames of 4 x 4
    training = training_of(chain, mix={"token_budget": 7 * tokens})
    assert len(training.batch(0, 0).ids) == 6  # the largest multiple of two stages within the budget


def test_latents_are_drawn_from_the_posterior_where_that_is_asked_for(chain):
    with pytest.raises(StepError, match=r"run the latents step with latents\.parts mean,logvar for it"):
        train_dit(chain.run, TrainDiTConfig.model_validate(DIT.model_dump() | {"sample_posterior": True}))
    assert latents(chain.run, LatentsConfig(parts="mean,logvar")).num_ok == 6
    means, draws = training_of(chain), training_of(chain, sample_posterior=True)
    assert [pair.clip_id for pair in means.train.pairs] == [pair.clip_id for pair in draws.train.pairs]
    drawn, mean = draws.batch(0, 0).args[0], means.batch(0, 0).args[0]
    assert drawn.shape == mean.shape
    assert 0 < (drawn - mean).abs().mean() < 5
    assert draws.batch(0, 0).args[0].equal(drawn)  # the same draw every time


def test_training_files_go_out_and_come_back_with_the_same_values(chain, tmp_path):
    made = chain.results["text_features"].encoder, chain.results["latents"].vae
    assert export_official(chain.run, str(tmp_path / "out")).num_ok == 5
    lines = (tmp_path / "out" / "train.jsonl").read_text().splitlines()
    assert len(lines) == 3
    other = Run(root=str(tmp_path / "root"), ray=chain.run.ray)
    config = ImportConfig(annotation=str(tmp_path / "out" / "train.jsonl"), vae=made[1], encoder=made[0], fps=8)
    config = config.model_copy(update={"dtype": "float32"})
    assert import_official(other, config).num_ok == 3
    assert import_official(other, config).note == "nothing new"
    assert "3 of 3 clips kept" in select_imported(other, 0.0).note
    source = pair_source(other, "", "", find_model(other, "vae", made[1]), folder_hash(other, made[0], "text"))
    back = load_pairs(source, find_pairs(source, "train"))
    here = training_of(chain)
    there = load_pairs(here.source, here.train.pairs)
    by_text = {(pair.uri, pair.text): number for number, pair in enumerate(there.pairs)}
    assert len(back.pairs) == len(by_text) == 3
    for pair, latent, text in zip(back.pairs, back.latents, back.texts, strict=True):
        # The videos of imported rows lie outside the new root, so their URIs are marked there.
        number = by_text[pair.uri.removeprefix(MARK), pair.text]
        raw, expected = (source.norm.denormalise(part[None]) for part in (latent, there.latents[number]))
        np.testing.assert_allclose(raw, expected, rtol=2**-8, atol=1e-4)  # bfloat16 in between
        np.testing.assert_allclose(text[0], there.texts[number][0], rtol=0.01, atol=0.01)


def test_a_damaged_latent_is_left_out_and_named(chain):
    encoder_hash = chain.results["text_features"].encoder_hash
    source = pair_source(chain.run, "", "", find_model(chain.run, "vae"), encoder_hash)
    pairs = find_pairs(source, "train")
    broken = next(row for row in rows_of(chain, "latents") if row["latent_id"] == pairs[0].latent_id)
    again = {name: value for name, value in broken.items() if name not in ("created_at", "attempt")}
    damaged = again | {"latent": b"\1" + broken["latent"][1:], "attempt": 2}
    append_block(chain.run.root, "latents", [damaged], "damage", Lineage("test", "latents", "1", "", ""))
    assert not load_pairs(source, pairs).bad  # at the pinned version all is well
    training = training_of(chain)
    position = next(i for i, pair in enumerate(training.train.pairs) if pair.latent_id == pairs[0].latent_id)
    assert training._readable(position, random.Random(0))[0] != position  # another one of its size takes its place
    assert pairs[0].clip_id in training.bad[0]
    now = pair_source(chain.run, "", "", find_model(chain.run, "vae"), encoder_hash)
    loaded = load_pairs(now, pairs)
    assert len(loaded.pairs) == len(pairs) - 1
    assert pairs[0].clip_id in loaded.bad[0]
    assert "crc32" in loaded.bad[0]
    assert load_null_text(now)[0].shape[-1] == 16


def test_every_model_that_a_row_names_is_compared_with_its_hash(chain):
    root = chain.run.root
    sound = check_weights(root)
    files = sorted(Path(root, "models").glob("*/*.safetensors"))
    folders = {file.parent.name for file in files}
    assert sound.level == "ok"
    assert sound.num_checked == len(folders)
    assert {name.partition("-")[0] for name in folders} == {"dit", "vae", "text_encoder"}
    assert any(name.endswith("-untrained") for name in folders)
    for file in files:
        data = file.read_bytes()
        middle = len(data) // 2
        file.write_bytes(data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :])
        finding = check_weights(root)
        assert (finding.level, finding.num_bad) == ("fail", 1)
        assert f"{file.parent} were changed" in finding.example
        file.write_bytes(data)


def test_views_of_training_clips_are_further_samples_with_the_captions_of_their_clips(chain):
    config = LatentsConfig(views=ViewsConfig(count=2, flip=False))
    assert latents(chain.run, config).num_ok == 8  # 2 of each of the 4 training clips, none of the 2 held-out ones
    assert latents(chain.run, config).num_ok == 0
    source = training_of(chain).source
    newest = {"versions": source.versions | {"latents": table_version(chain.run.root, "latents")}}
    source = source.model_copy(update=newest)
    clips, samples = find_pairs(source, "train"), find_pairs(source, "train", views=True)
    assert (len(clips), len(samples)) == (3, 9)
    assert len({pair.latent_id for pair in samples}) == 9
    assert {(pair.clip_id, pair.text) for pair in samples} == {(pair.clip_id, pair.text) for pair in clips}
    assert len(find_pairs(source, "val", views=True)) == len(find_pairs(source, "val")) == 2


def test_an_adapter_is_trained_on_a_given_model_and_added_when_clips_are_generated(chain):
    import torch
    from safetensors.torch import load_file

    base = chain.results["train_dit"].uri
    settings = DIT.model_dump() | {"init_from": base, "lora": {"rank": 2, "alpha": 4}}
    settings["optim"] |= {"num_steps": 12, "lr": 1e-3}
    result = train_dit(chain.run, TrainDiTConfig.model_validate(settings))
    assert train_dit(chain.run, TrainDiTConfig.model_validate(settings)).num_new == 0
    folder = Path(result.uri)
    record = read_record(result.uri)
    assert record.trained_on.init.hash == chain.results["train_dit"].weights_hash
    before, after = (load_dit(uri).state_dict() for uri in (base, result.uri))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all("blocks" in name and "modulation" not in name for name in changed)
    stored = load_file(folder / "lora" / "adapter_model.safetensors")
    assert 2 * len(changed) == len(stored)
    of_base, of_adapter = (
        sum(file.stat().st_size for file in Path(chain.run.root, "checkpoints", model).rglob("*.distcp"))
        for model in (chain.results["train_dit"].model_id, result.model_id)
    )
    assert of_adapter < 0.6 * of_base  # without the weights that do not change

    champions = generate(chain.run, CLIPS)
    used = {"loras": [{"folder": str(folder / "lora"), "weight": 2.0}]}
    clips = generate(chain.run, GenerateConfig.model_validate(CLIPS.model_dump() | used))
    assert (champions.num_new, clips.num_new, len(clips.files)) == (0, 2, 2)
    assert not set(clips.files) & set(champions.files)
    again = generate(chain.run, GenerateConfig.model_validate(CLIPS.model_dump() | used))
    assert (again.num_new, again.files) == (0, clips.files)
    with pytest.raises(FileNotFoundError, match=r"there is no adapter_config\.json in .*: give the folder of a LoRA"):
        generate(chain.run, GenerateConfig.model_validate(CLIPS.model_dump() | {"loras": [{"folder": base}]}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"init_from": "/nowhere"}, "there is no model folder '/nowhere'"),
        ({"model": {"num_single_blocks": 7}}, r"has other sizes than train_dit\.model: --set .*num_single_blocks=\d+"),
        ({"mmdit": {"latent_channels": 4}}, r"is a MiniFlux: set train_dit\.model, and train_dit\.mmdit to null"),
    ],
)
def test_a_model_that_does_not_fit_is_refused_before_anything_starts(chain, changes, message):
    settings = DIT.model_dump() | {"init_from": chain.results["train_dit"].uri}
    settings["model"] = settings["model"] | changes.pop("model", {})
    if "mmdit" in changes:
        changes["mmdit"]["latent_channels"] = settings["model"]["latent_channels"]
    with pytest.raises(StepError, match=message):
        train_dit(chain.run, TrainDiTConfig.model_validate(settings | changes))
