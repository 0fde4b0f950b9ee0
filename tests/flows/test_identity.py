"""Ids of the shipped recipes: the hash of every step's settings, which stands in its rows and moves when they change.

Where a hash below moved and you did not mean it, a setting got another default or another name: work that was done
before would be done again. Where you meant it, raise VERSION of the step and put the new hash here;
`python tests/flows/test_identity.py` prints the whole table.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import Field

from flows.recipe import FOLDER, Recipe
from pyramid_model.config import NOT_IDENTITY, Config, identity, is_identity
from tasks.exchange.official_files import ImportConfig
from tasks.running.run import RayConfig, params_hash

# Names of settings that never change a result: size of blocks, resources, limits on requests, prices, keys.
HOW_NAMES = re.compile(
    r"block_size|decode_threads|device|offload|num_(cpus|gpus|actors)|cpus_per_worker|use_gpu|usd_.*|.*_per_minute"
    r"|.*_per_s|timeout_s|connections|tries|backoff_s|api_key_env|base_url|max_(memory.*|retries|concurrency|wait_s)"
)

IDENTITY: dict[str, dict[str, str]] = {
    "384p": {
        "ingest": "95a5efdb1264b73d88501e3c5148281b",
        "clips": "6a0fb6fe038cf224cc7f6f618ddacb74",
        "scores": "caf095eb1e4eff5d06b15fdc59410e5e",
        "duplicates": "d64db7e52232d8ae7c15231b407e0793",
        "select": "2e3850b663f8eb7af6a27c2606854b48",
        "captions": "6edb7365bf9abb68f353e4870e0cee0a",
        "text_features": "405210784b12ad0f238b1c9da354362a",
        "latents": "3de61e28fb382b7058f4a0361d069839",
        "train_dit": "c2c5c01be93827c02e7f2589523189ab",
        "evaluate": "e83f92fa1c036f95aadf889947c0f8b8",
        "generate": "0d2ecf56dc1884c81f3051a9948611f4",
        "report": "01f602550a1b043bde57458f73de0676",
    },
    "768p": {
        "ingest": "95a5efdb1264b73d88501e3c5148281b",
        "clips": "06c0387f52a8a5f15c291cf74a6ca61c",
        "scores": "caf095eb1e4eff5d06b15fdc59410e5e",
        "duplicates": "d64db7e52232d8ae7c15231b407e0793",
        "select": "f8a2c062b3a2de2cf1c629d0e2416a54",
        "captions": "6edb7365bf9abb68f353e4870e0cee0a",
        "text_features": "405210784b12ad0f238b1c9da354362a",
        "latents": "3de61e28fb382b7058f4a0361d069839",
        "train_dit": "c2c5c01be93827c02e7f2589523189ab",
        "evaluate": "7acf93e51ebcf7c831121f8b33e2d092",
        "generate": "13aeea76812d222ebae9c3f786c5e43d",
        "report": "01f602550a1b043bde57458f73de0676",
    },
    "demo": {
        "ingest": "5429ed878e89d3d43908c15d38a91016",
        "clips": "ca8e28498b36c4dc334a0fd9203e5aa6",
        "scores": "ac2622f2bd95547dd230aff2151be624",
        "duplicates": "d64db7e52232d8ae7c15231b407e0793",
        "select": "19a44fa595f80ab3215260748a9b1c9c",
        "captions": "6edb7365bf9abb68f353e4870e0cee0a",
        "text_features": "a7a59f285e0e568a361282cc109f0e48",
        "train_vae": "4952ff492ae5793cfed3fa6ba3e4e16a",
        "latents": "78edd1be2c0a7e5cec9dfb203ede0965",
        "train_dit": "92a43d67e6e5d56b52b83b89ac8a1ad1",
        "evaluate": "5dc2af99a36959a08b6a92277cc02bf4",
        "generate": "a3977397ac73335ad42bbf9e98785b83",
        "report": "7e92be256adffd2488a7b3c5741c5965",
    },
    "smoke": {
        "ingest": "95a5efdb1264b73d88501e3c5148281b",
        "clips": "298c6c9cffc1a8da8615193c6fdbc728",
        "scores": "ac2622f2bd95547dd230aff2151be624",
        "duplicates": "d64db7e52232d8ae7c15231b407e0793",
        "select": "70eabb19bd1dd245abff6e6dcc630f6f",
        "captions": "6edb7365bf9abb68f353e4870e0cee0a",
        "text_features": "793e41d854f6e3fda55d6a3649e63f09",
        "train_vae": "814a96b55aaaafefd0db232f8fbbc336",
        "latents": "78edd1be2c0a7e5cec9dfb203ede0965",
        "train_dit": "6ee54243f929f385b82619399ee9a12d",
        "evaluate": "9f5e9a97504444c170054db97990c1f2",
        "generate": "cc767e7e8a39e7ed02baa180c5ea0dcd",
        "report": "01f602550a1b043bde57458f73de0676",
    },
    "finetune-lora": {
        "ingest": "95a5efdb1264b73d88501e3c5148281b",
        "clips": "6a0fb6fe038cf224cc7f6f618ddacb74",
        "scores": "caf095eb1e4eff5d06b15fdc59410e5e",
        "duplicates": "d64db7e52232d8ae7c15231b407e0793",
        "select": "0f8ea1d7ee5c3cdd0c1f8f899889bf50",
        "captions": "6edb7365bf9abb68f353e4870e0cee0a",
        "text_features": "405210784b12ad0f238b1c9da354362a",
        "latents": "3de61e28fb382b7058f4a0361d069839",
        "train_dit": "9dd25ca7158cab4b325fe28fc779a6e6",
        "evaluate": "e83f92fa1c036f95aadf889947c0f8b8",
        "generate": "0d2ecf56dc1884c81f3051a9948611f4",
        "report": "01f602550a1b043bde57458f73de0676",
    },
    "image": {
        "ingest": "8e6e5e042af97ddb3a09b89756b887d2",
        "clips": "8b00337c70c76d8d9f33600af0d62bc2",
        "scores": "caf095eb1e4eff5d06b15fdc59410e5e",
        "duplicates": "d64db7e52232d8ae7c15231b407e0793",
        "select": "d7c53f4413bee45a5b31f076fd52e719",
        "captions": "6edb7365bf9abb68f353e4870e0cee0a",
        "text_features": "405210784b12ad0f238b1c9da354362a",
        "latents": "3de61e28fb382b7058f4a0361d069839",
        "train_dit": "cf95ef7a71f6d17540c6f10a5a7eb553",
        "evaluate": "83fd8bbf7ff7463fed2f77cda0b9f495",
        "generate": "e2a2bdd7412673beebb6b1035ba43427",
        "report": "01f602550a1b043bde57458f73de0676",
    },
}


def hashes(path: Path) -> dict[str, str]:
    """Hash of each step's section of a recipe file, paths as they are written."""
    recipe = Recipe.model_validate(yaml.safe_load(path.read_text()))
    sections = {name: getattr(recipe, name) for name in Recipe.model_fields}
    return {
        name: params_hash(section)
        for name, section in sections.items()
        if isinstance(section, Config) and not isinstance(section, RayConfig)
    }


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_settings_of_shipped_recipes_keep_their_ids(path):
    actual, expected = hashes(path), IDENTITY[path.stem]
    moved = {f"{path.stem}: {step}": (expected.get(step), hash_) for step, hash_ in actual.items()}
    assert {step: pair for step, pair in moved.items() if pair[0] != pair[1]} == {}, "see the first lines of this file"
    assert actual.keys() == expected.keys()


class Inner(Config):
    threads: int = Field(default=1, json_schema_extra=NOT_IDENTITY)
    limit: float = 2.0


class Outer(Config):
    where: str = Field(default="", json_schema_extra=NOT_IDENTITY)
    inner: Inner = Inner()
    nested: dict[str, Inner] = Field(default={})


def test_marked_settings_are_no_part_of_the_identity_and_all_others_are():
    elsewhere = Outer(where="elsewhere", nested={"a": Inner(threads=4)})
    assert identity(elsewhere) == {"inner": {"limit": 2.0}, "nested": {"a": {"limit": 2.0}}}
    assert params_hash(elsewhere) == params_hash(Outer(nested={"a": Inner()}))
    assert params_hash(elsewhere) != params_hash(Outer(nested={"a": Inner(limit=3.0)}))


def configs_in(annotation: Any) -> Iterator[type[Config]]:
    """Config classes in a type such as `X | None` or `dict[str, X]`."""
    if isinstance(annotation, type) and issubclass(annotation, Config):
        yield annotation
    for argument in get_args(annotation):
        yield from configs_in(argument)


def hashed_settings(config: type[Config], prefix: str) -> Iterator[str]:
    """Dotted names of the settings that are part of the identity; a marked section is left out whole."""
    for name, field in config.model_fields.items():
        if is_identity(field):
            yield f"{prefix}.{name}"
            for inner in configs_in(field.annotation):
                yield from hashed_settings(inner, f"{prefix}.{name}")


def test_settings_that_never_change_a_result_are_marked():
    sections = {name: list(configs_in(field.annotation)) for name, field in Recipe.model_fields.items()}
    steps = {name: configs for name, configs in sections.items() if name != "ray"} | {"import": [ImportConfig]}
    hashed = [name for step, configs in steps.items() for config in configs for name in hashed_settings(config, step)]
    assert {"captions.endpoint.model", "evaluate.request.height", "scores.embeddings.dtype"} <= set(hashed)
    assert [name for name in hashed if HOW_NAMES.fullmatch(name.rsplit(".", 1)[-1])] == []


if __name__ == "__main__":
    for recipe_path in sorted(FOLDER.glob("*.yaml")):
        print(recipe_path.stem, hashes(recipe_path))
