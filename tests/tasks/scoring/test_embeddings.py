"""Embeddings depend on the model and on the sampled frames, and on nothing else."""

from tasks.scoring.embeddings import EmbeddingsConfig, embedding_id, embedding_rows, newest_source
from tasks.tables.appending import append_block
from tasks.tables.rows import Lineage, ok_row


def test_the_id_follows_clip_model_and_sampling_and_not_the_resources():
    sampling = EmbeddingsConfig().sampling
    assert EmbeddingsConfig(num_gpus=1, batch_size=2, block_size=3).sampling == sampling
    assert EmbeddingsConfig(num_frames=3).sampling != sampling
    ids = {embedding_id("a", "m", sampling), embedding_id("b", "m", sampling), embedding_id("a", "n", sampling)}
    assert len(ids) == 3


def test_the_newest_embeddings_name_their_model_and_sampling(tmp_path):
    assert newest_source(str(tmp_path)) == ("", "")
    for number, model in enumerate(("first", "second")):
        row = ok_row({}, embedding_id=f"{number:032}", clip_id="c", model_hash=model, sampling="8 frames")
        append_block(str(tmp_path), "embeddings", [row], model, Lineage("run", "scores", "1", model, "code"))
    assert newest_source(str(tmp_path)) == ("second", "8 frames")
    assert embedding_rows(str(tmp_path), [f"{0:032}"])[f"{0:032}"]["model_hash"] == "first"
