"""A training on several ranks has the losses of a training on one. Gloo on CPU, about two minutes."""

import functools

import pytest

from pyramid_model.train.config import ParallelConfig

pytestmark = pytest.mark.slow
MEASURED = {"elapsed_s", "loader_wait_s", "checkpoint_stall_s", "peak_gb", "step_s"}
EXACT = {"abs": 1e-5, "rel": 1e-5}


@pytest.fixture(scope="module")
def curve(on_ranks):
    """`curve(kind, num_ranks, **options)`: rows of the first rank; all ranks have equal rows."""

    @functools.cache
    def cached(kind, num_ranks, options):
        rows, *others = on_ranks("training", num_ranks, kind=kind, **dict(options))
        assert all(same(rows, other, abs=0, rel=0) for other in others)
        return rows

    return lambda kind, num_ranks, **options: cached(kind, num_ranks, tuple(options.items()))


def same(rows, others, **tolerance):
    """Whether two curves have the same numbers; figures of frames rounded to 8 bits differ more."""
    rounded = ("val_psnr", "val_ssim", "val_mse")
    for row, other in zip(rows, others, strict=True):
        assert row.keys() == other.keys()
        for name in row.keys() - MEASURED:
            if row[name] != pytest.approx(other[name], **(tolerance if name not in rounded else {"rel": 1e-3})):
                return False
    return True


@pytest.mark.parametrize(
    ("kind", "num_ranks"), [("dit", 2), ("dit", 4), ("vae", 2), ("vae", 4), ("mmdit", 4), ("gan", 2)]
)
def test_copies_on_several_ranks_train_as_one(curve, kind, num_ranks):
    assert same(curve(kind, num_ranks), curve(kind, 1), **EXACT)


@pytest.mark.parametrize(("kind", "num_ranks"), [("dit", 1), ("dit", 2), ("dit", 4), ("vae", 4), ("mmdit", 2)])
def test_shards_train_as_one_copy(curve, kind, num_ranks):
    assert same(curve(kind, num_ranks, share_weights=0), curve(kind, 1), **EXACT)


@pytest.mark.parametrize("share_weights", [0, 1])
def test_muon_trains_on_two_ranks_as_on_one(curve, share_weights):
    """Muon computes its updates in bfloat16, so that shards round differently from whole matrices."""
    one, two = curve("dit", 1, optimizer="muon"), curve("dit", 2, optimizer="muon", share_weights=share_weights)
    assert same(two, one, **(EXACT if share_weights else {"rel": 1e-2}))


@pytest.mark.parametrize(("kind", "share_weights"), [("dit", 0), ("dit", 1), ("vae", 1)])
def test_ranks_that_do_not_divide_the_batches_train_as_one(curve, kind, share_weights):
    assert same(curve(kind, 3, share_weights=share_weights), curve(kind, 1), **EXACT)


@pytest.mark.parametrize("kind", ["dit", "vae"])
@pytest.mark.parametrize(("num_ranks", "every"), [(1, 1), (1, 2), (2, 1), (4, 2)])
def test_recomputed_activations_change_no_loss(curve, kind, num_ranks, every):
    assert same(curve(kind, num_ranks, checkpoint_blocks=every), curve(kind, 1), **EXACT)


@pytest.mark.parametrize(("kind", "num_ranks"), [("dit", 2), ("dit", 4), ("vae", 2), ("vae", 4), ("mmdit", 4)])
def test_ranks_that_share_a_batch_train_as_one(curve, kind, num_ranks):
    assert same(curve(kind, num_ranks, share_batch=num_ranks), curve(kind, 1), **EXACT)


@pytest.mark.parametrize("kind", ["dit", "vae"])
@pytest.mark.parametrize(
    "options",
    [
        {"share_weights": 2},
        {"share_weights": 0, "checkpoint_blocks": 1},
        {"share_weights": 0, "share_batch": 2},
        {"share_weights": 2, "share_batch": 2, "checkpoint_blocks": 2},
    ],
    ids=["copies of shards", "shards and recomputation", "shards of shared batches", "all"],
)
def test_combinations_train_as_one(curve, kind, options):
    assert same(curve(kind, 4, **options), curve(kind, 1), **EXACT)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "before", "after"),
    [
        ("dit", (1, {}), (1, {})),
        ("dit", (2, {"share_weights": 0}), (2, {"share_weights": 0})),
        ("dit", (4, {"share_weights": 0}), (2, {})),
        ("vae", (2, {"share_weights": 0}), (4, {"share_weights": 0})),
        ("vae", (4, {"share_weights": 2}), (1, {})),
        ("mmdit", (2, {}), (4, {"share_weights": 0, "share_batch": 2})),
    ],
)
def test_a_killed_training_continues_on_any_ranks_with_the_losses_of_an_undisturbed_one(
    curve, tmp_path, kind, before, after
):
    folder = str(tmp_path)
    assert curve(kind, before[0], **before[1], folder=folder, killed_at=2) == []
    resumed = curve(kind, after[0], **after[1], folder=folder)
    if before == after:
        assert same(resumed, curve(kind, after[0], **after[1]), abs=0, rel=0)
    assert same(resumed, curve(kind, 1), **EXACT)


@pytest.mark.parametrize("options", [{}, {"share_weights": 0, "checkpoint_blocks": 1}], ids=["alone", "shards"])
def test_compiled_blocks_train_as_others(curve, options):
    assert same(curve("dit", 2, compile_blocks=True, **options), curve("dit", 1), **EXACT)


def test_a_rank_without_finite_numbers_makes_all_ranks_skip_the_step(on_ranks):
    curves = on_ranks("training", 2, kind="dit", share_weights=0, poisoned=[1, 1])
    for rows in curves:
        assert [row.get("skipped") for row in rows] == [None, None, 1, None]
        assert rows[3]["loss"] > 0
        assert rows[2]["val_loss"] == pytest.approx(rows[0]["val_loss"], rel=0.5)


@pytest.mark.parametrize("kind", ["dit", "vae"])
def test_bfloat16_trains_nearly_as_float32(curve, kind):
    rows, exact = curve(kind, 2, precision="bfloat16"), curve(kind, 1)
    assert [row["loss"] for row in rows[1:]] == pytest.approx([row["loss"] for row in exact[1:]], rel=0.03)
    assert not same(rows, exact, **EXACT)


def test_workers_that_do_not_divide_are_refused_with_what_would_divide():
    with pytest.raises(ValueError, match=r"6 workers do not divide into groups of parallel\.share_weights 4: set"):
        ParallelConfig(share_weights=4).check(6)
    ParallelConfig(share_weights=0, share_batch=3).check(6)
