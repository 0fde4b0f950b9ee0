"""A contract for import-linter: each room knows the ground floor and at most so many other rooms."""

from grimp import ImportGraph
from importlinter import Contract, ContractCheck, fields, output


class FewNeighbours(Contract):
    """Each child package of `house` imports from `ground` and from at most `at_most` other children."""

    type_name = "few_neighbours"

    house = fields.StringField()
    ground = fields.SetField(subfield=fields.StringField())
    at_most = fields.IntegerField()

    def check(self, graph: ImportGraph, verbose: bool) -> ContractCheck:
        """Count the neighbours of every room."""
        crowded = {}
        for room in sorted(child for child in graph.find_children(self.house) if graph.find_children(child)):
            neighbours = self.neighbours(graph, room)
            if len(neighbours) > self.at_most:
                crowded[room] = sorted(neighbours)
        return ContractCheck(kept=not crowded, metadata={"crowded": crowded})

    def neighbours(self, graph: ImportGraph, room: str) -> set[str]:
        """Rooms that are not ground, from which a module of this room imports."""
        imported = {
            target
            for module in graph.find_descendants(room)
            for target in graph.find_modules_directly_imported_by(module)
        }
        rooms = {".".join(target.split(".")[:2]) for target in imported if target.startswith(f"{self.house}.")}
        return rooms - self.ground - {room}

    def render_broken_contract(self, check: ContractCheck) -> None:
        """Name each room that knows too many others."""
        for room, neighbours in check.metadata["crowded"].items():
            output.print_error(
                f"{room} imports from {len(neighbours)} rooms beside the ground: {', '.join(neighbours)}"
            )
