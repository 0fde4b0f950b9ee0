"""Ids of the shipped recipes: the hash of every step's settings, which stands in its rows and moves when they change.

Where a hash below moved and you did not mean it, a setting got another default or another name: work that was done
before would be done again. Where you meant it, raise VERSION of the step and put the new hash here;
`python tests/flows/test_identity.py` prints the whole table.
"""

from pathlib import Path

import pytest
import yaml
from pydantic import Field

from flows.recipe import FOLDER, Recipe
from pyramid_model.config import NOT_IDENTITY, Config, identity
from tasks.running.run import RayConfig, params_hash

IDENTITY: dict[str, dict[str, str]] = {
    "384p": {
        "ingest": "da916676efa15541bcf198c76905a84f",
        "clips": "6a0fb6fe038cf224cc7f6f618ddacb74",
        "scores": "858756764762ed605d139ca80bcc0f31",
        "duplicates": "d64db7e52232d8ae7c15231b407e0793",
        "select": "2e3850b663f8eb7af6a27c2606854b48",
        "captions": "2a537bfa077d5b204c236d144d00e7c0",
        "text_features": "6e5e5a9c110398232af4df524fa16c66",
        "latents": "a780beda073fb5d9f8e7be52527530a4",
        "train_dit": "788b33f9b519589a3e394eb40e108583",
        "evaluate": "b0dc01cb2ceb0c8d798e02da3a653006",
        "generate": "4d86316581c555d37ecb2d78f25e341e",
        "report": "01f602550a1b043bde57458f73de0676",
    },
    "768p": {
        "ingest": "da916676efa15541bcf198c76905a84f",
        "clips": "06c0387f52a8a5f15c291cf74a6ca61c",
        "scores": "858756764762ed605d139ca80bcc0f31",
        "duplicates": "d64db7e52232d8ae7c15231b407e0793",
        "select": "f8a2c062b3a2de2cf1c629d0e2416a54",
        "captions": "2a537bfa077d5b204c236d144d00e7c0",
        "text_features": "6e5e5a9c110398232af4df524fa16c66",
        "latents": "a780beda073fb5d9f8e7be52527530a4",
        "train_dit": "788b33f9b519589a3e394eb40e108583",
        "evaluate": "9421283f933342431b971a82ed1bf9ea",
        "generate": "b292af65a2b03e8f177b8f84167c8488",
        "report": "01f602550a1b043bde57458f73de0676",
    },
    "demo": {
        "ingest": "57ddba0ad09fff660cd32a6239e8c879",
        "clips": "ca8e28498b36c4dc334a0fd9203e5aa6",
        "scores": "adf8a6672254978d302ad476569707f6",
        "duplicates": "d64db7e52232d8ae7c15231b407e0793",
        "select": "19a44fa595f80ab3215260748a9b1c9c",
        "captions": "2a537bfa077d5b204c236d144d00e7c0",
        "text_features": "6bd417afeb3ae18c4121c91300b5ce18",
        "train_vae": "7b678e09b774b959c25775fc52758194",
        "latents": "bbed063aaeea32392a2a529b07fdba84",
        "train_dit": "e5184d5b81d558d7fd7a933822ff6420",
        "evaluate": "6006a8bcaf7f492999077d93385929a6",
        "generate": "da96bb8578145bdfbd3ccac3858660a1",
        "report": "7e92be256adffd2488a7b3c5741c5965",
    },
    "smoke": {
        "ingest": "da916676efa15541bcf198c76905a84f",
        "clips": "298c6c9cffc1a8da8615193c6fdbc728",
        "scores": "adf8a6672254978d302ad476569707f6",
        "duplicates": "d64db7e52232d8ae7c15231b407e0793",
        "select": "70eabb19bd1dd245abff6e6dcc630f6f",
        "captions": "2a537bfa077d5b204c236d144d00e7c0",
        "text_features": "6e2600c110c0f1176c6ece2175664aab",
        "train_vae": "b2386847395b728fd273289291662c81",
        "latents": "bbed063aaeea32392a2a529b07fdba84",
        "train_dit": "ed97a1293a158cf331c322f466c1a082",
        "evaluate": "19fbdfb5ed66e4265d38bcb713b527b9",
        "generate": "94766777901fd676c27beefc0c8a8fe4",
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
    found, expected = hashes(path), IDENTITY[path.stem]
    moved = {f"{path.stem}: {step}": (expected.get(step), hash_) for step, hash_ in found.items()}
    assert {step: pair for step, pair in moved.items() if pair[0] != pair[1]} == {}, "see the first lines of this file"
    assert found.keys() == expected.keys()


class Inner(Config):
    threads: int = Field(1, json_schema_extra=NOT_IDENTITY)
    limit: float = 2.0


class Outer(Config):
    where: str = Field("", json_schema_extra=NOT_IDENTITY)
    inner: Inner = Inner()
    nested: dict[str, Inner] = Field({})


def test_marked_settings_are_no_part_of_the_identity_and_all_others_are():
    elsewhere = Outer(where="elsewhere", nested={"a": Inner(threads=4)})
    assert identity(elsewhere) == {"inner": {"limit": 2.0}, "nested": {"a": {"limit": 2.0}}}
    assert params_hash(elsewhere) == params_hash(Outer(nested={"a": Inner()}))
    assert params_hash(elsewhere) != params_hash(Outer(nested={"a": Inner(limit=3.0)}))


if __name__ == "__main__":
    for recipe_path in sorted(FOLDER.glob("*.yaml")):
        print(recipe_path.stem, hashes(recipe_path))
