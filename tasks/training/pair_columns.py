"""Pairs of a latent and its captions in columns: a million of them take a few hundred MB, not objects of their own."""

# pyright: reportAttributeAccessIssue=false
# pyarrow.compute makes its functions at import, so pyright does not know them.

import random
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, Self, overload

import pyarrow as pa
import pyarrow.compute as pc

from pyramid_model.config import Config

SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("clip_id", "uri", "bucket", "text", "latent_id", "text_feature_id")),
        ("choices", pa.list_(pa.struct([("text_feature_id", pa.string()), ("weight", pa.float64())]))),
    ]
)
ROWS = 1_000  # that are Python objects at the same time


class Choice(Config):
    """One of several captions of a clip, and how often it is drawn beside the others."""

    text_feature_id: str
    weight: float


class Pair(Config):
    """One clip for the DiT: ids of its latent and of the features of its (preferred) caption."""

    clip_id: str
    uri: str
    bucket: str
    text: str
    latent_id: str
    text_feature_id: str
    choices: tuple[Choice, ...] = ()  # training draws one of these; empty: always the preferred

    def drawn_text_id(self, chance: random.Random) -> str:
        """Id of the features of one of its captions, drawn by weight."""
        if not self.choices:
            return self.text_feature_id
        ids, weights = zip(*((choice.text_feature_id, choice.weight) for choice in self.choices), strict=True)
        return chance.choices(ids, weights)[0]


class Pairs(Sequence[Pair]):
    """Pairs as a table; an element is made when it is asked for.

    Args:
        table: with the columns of SCHEMA.
    """

    def __init__(self, table: pa.Table):
        self.table = table.combine_chunks()

    @classmethod
    def of(cls, pairs: Iterable[Pair | Mapping[str, Any]]) -> Self:
        """Pairs from single ones, or from rows with their fields."""
        rows = (pair.model_dump() if isinstance(pair, Pair) else pair for pair in pairs)
        tables = [SCHEMA.empty_table()]
        while block := list(islice(rows, ROWS)):
            tables.append(pa.Table.from_pylist(block, SCHEMA))
        return cls(pa.concat_tables(tables))

    def __len__(self) -> int:
        return self.table.num_rows

    @overload
    def __getitem__(self, index: int) -> Pair: ...

    @overload
    def __getitem__(self, index: slice) -> "Pairs": ...

    def __getitem__(self, index: int | slice) -> "Pair | Pairs":
        if isinstance(index, slice):
            return Pairs(self.table.take(pa.array(range(*index.indices(len(self))), pa.int64())))
        place = range(len(self))[index]
        return Pair.model_validate(self.table.slice(place, 1).to_pylist()[0])

    def column(self, name: str) -> pa.ChunkedArray:
        """One field of all pairs."""
        return self.table[name]

    @property
    def text_ids(self) -> pa.ChunkedArray:
        """Ids of the features of all captions."""
        return pa.chunked_array([*self.column("text_feature_id").chunks, *self._chosen.chunks], pa.string())

    def with_data(self, latent_ids: pa.ChunkedArray, text_ids: pa.ChunkedArray) -> "Pairs":
        """The pairs whose latent and whose texts are all among these ids."""
        lacking = pc.list_parent_indices(self.column("choices")).filter(pc.invert(pc.is_in(self._chosen, text_ids)))
        has_choices = pc.invert(pc.is_in(pa.array(range(len(self)), pa.int64()), lacking))
        has_text = pc.is_in(self.column("text_feature_id"), text_ids)
        has_latent = pc.is_in(self.column("latent_id"), latent_ids)
        complete = pc.and_(pc.and_(has_latent, has_text), has_choices)
        return self if pc.all(complete).as_py() else Pairs(self.table.filter(complete))

    @property
    def _chosen(self) -> pa.ChunkedArray:
        """Ids of the features of all captions that training draws from."""
        return pc.struct_field(pc.list_flatten(self.column("choices")), "text_feature_id")
