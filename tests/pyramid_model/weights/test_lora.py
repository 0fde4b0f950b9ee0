"""LoRA adapters: trained by peft, saved in its format, added to a DiT and taken away again."""

import copy
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from pyramid_model.config import LoRAConfig
from pyramid_model.train.config import OptimConfig
from pyramid_model.train.ema import EMA
from pyramid_model.train.guards import state_bytes
from pyramid_model.train.loop import make_optimizers
from pyramid_model.weights.lora import LORA_CONFIG, LORA_WEIGHTS, Adapters, add_lora, load_lora, lora_hash, save_lora

CONFIG = LoRAConfig(rank=2, alpha=6)


def call(dit, text_rows):
    generator = torch.Generator().manual_seed(4)
    column = [torch.randn(1, 4, 1, 8, 8, generator=generator), torch.randn(1, 4, 1, 8, 8, generator=generator)]
    return dit([column], torch.full((1,), 300.0), text_rows(1))[0]


@pytest.fixture
def adapters(dit, tmp_path):
    """Folders of two adapters with random weights, a and b, of ranks 2 and 3."""
    for name, rank in (("a", 2), ("b", 3)):
        config, trained = LoRAConfig(rank=rank, alpha=6), copy.deepcopy(dit)
        add_lora(trained, config)
        torch.manual_seed(rank)
        for parameter in trained.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.3)
        save_lora(trained, config, tmp_path / name)
        torch.save(trained.state_dict(), tmp_path / f"{name}.pt")
    return tmp_path


def test_a_new_adapter_changes_nothing_and_alone_has_gradients(dit, text_rows):
    expected = call(dit, text_rows)
    add_lora(dit, CONFIG)
    torch.testing.assert_close(call(dit, text_rows), expected)
    call(dit, text_rows).sum().backward()
    assert {name.split(".")[-3] for name, p in dit.named_parameters() if p.grad is not None} == {"lora_A", "lora_B"}


def test_an_adapter_added_to_the_weights_computes_what_was_trained(dit, text_rows, adapters):
    trained = copy.deepcopy(dit)
    add_lora(trained, CONFIG)
    trained.load_state_dict(torch.load(adapters / "a.pt"))
    Adapters(dit).set([(load_lora(adapters / "a"), 1.0)])
    torch.testing.assert_close(call(dit, text_rows), call(trained, text_rows), rtol=1e-4, atol=1e-5)


def test_switching_to_another_adapter_and_back_gives_the_same_bits(dit, adapters):
    a, b = (load_lora(adapters / name) for name in "ab")
    present, original = Adapters(dit), {n: w.clone() for n, w in dit.state_dict().items()}
    states = []
    for wanted in ([(a, 1.0)], [(b, 0.7)], [(a, 1.0)], [(a, 0.5), (b, -1.0)], []):
        present.set(wanted)
        states.append({name: weight.clone() for name, weight in dit.state_dict().items()})
    assert all(torch.equal(states[0][name], states[2][name]) for name in original)
    assert all(torch.equal(states[4][name], original[name]) for name in original)
    assert any(not torch.equal(states[0][name], original[name]) for name in original)


def test_several_adapters_add_up(dit, adapters):
    a, b = (load_lora(adapters / name) for name in "ab")
    name = next(iter(Adapters(dit).layers))
    weights = [w.clone() for w in _weights(dit, name, [], [(a, 0.5)], [(b, 2.0)], [(a, 0.5), (b, 2.0)])]
    original, with_a, with_b, both = weights
    torch.testing.assert_close(both - original, (with_a - original) + (with_b - original))


def _weights(dit, name, *choices):
    present = Adapters(dit)
    for wanted in choices:
        present.set(wanted)
        yield present.layers[name].weight


@pytest.mark.parametrize(
    ("alpha", "rank_stabilised", "scale"), [(6, False, 3.0), (1, False, 0.5), (4, True, 4 / 2**0.5)]
)
def test_alpha_is_read_from_the_file(adapters, alpha, rank_stabilised, scale):
    file = adapters / "a" / LORA_CONFIG
    before = lora_hash(adapters / "a")
    file.write_text(json.dumps(json.loads(file.read_text()) | {"lora_alpha": alpha, "use_rslora": rank_stabilised}))
    assert load_lora(adapters / "a").scale == pytest.approx(scale)
    assert lora_hash(adapters / "a") != before


def test_peft_reads_the_files_for_a_model_with_the_released_names(dit, adapters):
    from peft import LoraConfig

    config = LoraConfig.from_pretrained(str(adapters / "a"))
    assert (config.r, config.lora_alpha) == (2, 6)
    stored = load_file(adapters / "a" / LORA_WEIGHTS)
    layers = {name.removeprefix("base_model.model.").rpartition(".lora_")[0] for name in stored}
    assert layers == set(config.target_modules)
    assert layers <= set(Adapters(dit).released)


def test_the_adapter_of_another_model_is_refused_before_a_weight_changes(dit, adapters):
    weights = load_file(adapters / "a" / LORA_WEIGHTS)
    original = {name: weight.clone() for name, weight in dit.state_dict().items()}
    for wrong, message in (
        ({name.replace(".0.", ".7."): value for name, value in weights.items()}, "this DiT has no layer"),
        ({name: torch.cat([value, value], dim=1) for name, value in weights.items()}, "is of another model: its layer"),
        ({name: value for name, value in weights.items() if "lora_B" not in name}, "only one of lora_A and lora_B"),
        (weights | {"base_model.model.x.bias": torch.zeros(3)}, "has a tensor base_model.model.x.bias"),
    ):
        save_file(wrong, adapters / "a" / LORA_WEIGHTS)
        with pytest.raises(ValueError, match=message):
            Adapters(dit).set([(load_lora(adapters / "b"), 1.0), (load_lora(adapters / "a"), 1.0)])
        assert all(torch.equal(weight, original[name]) for name, weight in dit.state_dict().items())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"peft_type": "LOHA"}, "type 'LOHA': only LORA"),
        ({"use_dora": True}, "needs use_dora, which is not supported"),
        ({"r": 0}, "has r 0 and lora_alpha 6"),
    ],
)
def test_other_kinds_of_adapters_are_refused(adapters, settings, message):
    file = adapters / "a" / LORA_CONFIG
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    with pytest.raises(ValueError, match=message):
        load_lora(adapters / "a")


def test_a_folder_without_an_adapter_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no adapter_config.json in .*: give the folder of a LoRA"):
        load_lora(tmp_path)


def test_targets_that_no_layer_has_are_refused_with_those_it_has(dit):
    with pytest.raises(ValueError, match="name no layer: use fc1, fc2"):
        add_lora(dit, LoRAConfig(targets=("qkv",)))


def test_an_adapter_trains_few_parameters_and_holds_less_memory_than_the_whole_model():
    from pyramid_model.config import MiniFluxConfig
    from pyramid_model.dit.miniflux import MiniFlux

    sizes = {"num_heads": 4, "head_dim": 64, "text_dim": 64, "pooled_dim": 64}
    dit = MiniFlux(MiniFluxConfig(**sizes, num_double_blocks=1, num_single_blocks=1))
    whole = _held(dit)
    add_lora(dit, LoRAConfig(rank=4))
    counts = [sum(p.numel() for p in dit.parameters() if p.requires_grad), sum(p.numel() for p in dit.parameters())]
    assert counts[0] <= 0.05 * counts[1]
    assert _held(dit) < 0.4 * whole


def _held(dit):
    return sum(state_bytes(dit, make_optimizers(dit, OptimConfig()), EMA(dit, 0.9).shadow).values())
