"""What a source would give, without a row being written: `pyramid curate --dry-run`."""

from dataclasses import dataclass, field

from tasks.sources.folder_cards import CardUnreachableError, FolderCards
from tasks.sources.ingest import IngestConfig
from tasks.sources.list_formats import Entry
from tasks.sources.listing import Source, SourceFile, source_files
from tasks.sources.lists import list_kind, read_list
from tasks.tables import storage
from tasks.tables.url_secrets import from_environment
from tasks.tables.web_hosts import Allowed

MAX_ROWS = 5


@dataclass
class Preview:
    """A source as `ingest` would read it.

    layout: kind of the source and where its captions are. videos: files that would be read. captions: those with at
    least one caption. problems: {"where", "error"} of entries that cannot be used, and of captions that are not used.
    rows: the first videos, {"video", "caption"}.
    """

    layout: str
    videos: int
    captions: int
    problems: list[dict[str, str]] = field(default_factory=list)
    rows: list[dict[str, str]] = field(default_factory=list)


def preview(config: IngestConfig, root: str) -> Preview:
    """Look at a source; nothing is written and no video is read.

    Raises:
        ValueError: nothing of the source can be read.
    """
    typed, media_root = from_environment(config.source), from_environment(config.media_root)
    web = config.fetch.trusting(typed, media_root)
    source = source_files(typed, root, config.left_out, media_root, web, config.columns)
    of_cards, problems = _captions_of_cards(source, web.allow_hosts)
    videos = [file for file in source.files if not file.error_type]
    texts = {file.place: _first_caption(file) or of_cards.get(file.place, "") for file in videos}
    problems += [{"where": file.path, "error": file.error} for file in source.files if file.error_type]
    problems += [{"where": source.folder, "error": note} for note in source.notes]
    if not videos:
        raise ValueError(problems[0]["error"] if problems else f"source {source.folder} holds no video")
    rows = [{"video": file.path, "caption": texts[file.place]} for file in videos[:MAX_ROWS]]
    return Preview(source.form, len(videos), sum(map(bool, texts.values())), problems, rows)


def _first_caption(file: SourceFile) -> str:
    return next((str(said["text"]) for said in file.annotations if said.get("text")), "")


def _captions_of_cards(source: Source, hosts: Allowed) -> tuple[dict[str, str], list[dict[str, str]]]:
    """First caption by place of the files that a caption file of a source.yaml describes, and problems of the cards."""
    cards, names, problems = FolderCards(source.folder, hosts), {}, []
    captions: dict[str, str] = {}
    for file in source.files:
        try:
            folder, card = cards.of(file.place)
        except (ValueError, CardUnreachableError) as err:
            problems.append({"where": file.path, "error": str(err)})
            continue
        if not card or not card.captions:
            continue
        uri = storage.join(folder, card.captions)
        if uri not in names:
            names[uri] = _texts(uri, hosts)
        captions[file.place] = names[uri].get(file.path, "")
    return captions, problems


def _texts(uri: str, hosts: Allowed) -> dict[str, str]:
    """First caption by file of the caption file that a card names."""
    if not storage.exists(uri, hosts):
        return {}
    entries = [entry for entry in read_list(uri, list_kind(uri) or "csv", hosts)[1] if isinstance(entry, Entry)]
    return {entry.name: str(entry.annotations[0]["text"]) for entry in reversed(entries) if entry.annotations}
