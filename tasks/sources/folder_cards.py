"""The `source.yaml` that describes a file of a source: the nearest one above it, within the source."""

from tasks.sources.card import SourceCard, card_uri, read_card, read_web_card
from tasks.sources.fetch import is_web
from tasks.sources.trees import SHARD
from tasks.tables import storage
from tasks.tables.web_hosts import Allowed


class CardUnreachableError(RuntimeError):
    """It cannot be determined whether a source.yaml describes a file."""


class FolderCards:
    """The cards of the folders of a source, each read once.

    Args:
        folder: of the source; folders above it are not looked at.
        hosts: web hosts that may be asked, as `storage.filesystem`.
    """

    def __init__(self, folder: str, hosts: Allowed = ()):
        self.folder, self.hosts = folder, hosts
        self._cards: dict[str, SourceCard | None] = {}  # by folder; None: it has none

    def of(self, place: str) -> tuple[str, SourceCard | None]:
        """The nearest folder with a card above a file, and the card; the topmost folder and None if none has one.

        place: path or URI of the file, or its URL with its secrets.

        Raises:
            CardUnreachableError: it cannot be determined, or the card of a web host is wrong. Then the file is not
                used, since the card might pin it to a held-out split.
            ValueError: any other card is wrong.
        """
        within = self.folder.rstrip("/") + "/"
        parent = place.rpartition("/")[0]
        if is_web(parent) and not place.startswith(within):
            parent = self.folder  # no requests for a card to the web hosts that a list names
        while True:
            if parent not in self._cards:
                self._cards[parent] = self._read(parent)
            if self._cards[parent] or parent == self.folder or not parent.startswith(within):
                return parent, self._cards[parent]
            parent = parent.rpartition("/")[0]

    def _read(self, folder: str) -> SourceCard | None:
        """The card of a folder; None if there is none, or if a web host answers with something else."""
        uri = card_uri(folder)
        try:
            if not storage.exists(uri, self.hosts):
                return None
        except Exception as err:  # each file system has its own exceptions
            reason = f"whether {uri} exists cannot be determined: {type(err).__name__}: {err}"
            raise CardUnreachableError(reason) from err
        if is_web(uri):
            try:
                card = read_web_card(uri, self.hosts)
            except Exception as err:  # a wrong card, or one that cannot be read
                raise CardUnreachableError(str(err)) from err
        else:
            card = read_card(uri)
        self._check_pins(uri, folder, card)
        return card

    def _check_pins(self, uri: str, folder: str, card: SourceCard | None) -> None:
        """Check that pinned files exist: a misspelt pin has no effect, so its file could be in the wrong split.

        Raises:
            ValueError: a pinned file does not exist.
        """
        pinned = {pin.file for pin in card.splits} if card else set()
        files = (name for name in pinned if f"{SHARD}/" not in name)  # members of archives are not checked
        if missing := sorted(name for name in files if not storage.exists(f"{folder}/{name}", self.hosts)):
            raise ValueError(
                f"{uri} pins the splits of files that do not exist: {', '.join(missing)}. Correct splits[].file, which "
                "is relative to the folder of source.yaml, or remove the pins"
            )
