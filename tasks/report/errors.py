"""Failed and skipped rows of every table, counted by reason, with an example and what to do."""

from collections import defaultdict
from dataclasses import dataclass

import pyarrow.compute as pc

from tasks.tables.delta import read_table
from tasks.tables.schemas import SCHEMAS

# By error_type; by "table.error_type" where the cause depends on the table.
ADVICE = {
    "bad_name": "rename the file",
    "bad_entry": "correct the line of the list",
    "bad_uri": "correct the URI, or install the package of its scheme (s3fs, gcsfs, …)",
    "not_a_file": "give a file or a folder of files",
    "unreadable": "make the file readable, then run again with --retry-failed",
    "missing": "put the file back, then run again with --retry-failed",
    "changed": "the file changed while it was read: run again with --retry-failed",
    "checksum": "fetch the file again: its bytes differ from those that source.yaml names",
    "not_media": "it is not a video: remove it from the source, or convert it",
    "image": "it is a picture: remove it from the source",
    "no_video_stream": "it holds audio only, or ends before its video: fetch it again or remove it",
    "no_frames": "no frame can be decoded: fetch it again",
    "truncated": "fetch it again; or keep its undamaged part with --set clips.salvage=true",
    "corrupt_frames": "fetch it again; or keep its undamaged parts with --set clips.salvage=true",
    "hdr": "convert it to SDR; or use it as it is with --set clips.keep_hdr=true",
    "no_clips": "every shot is shorter than clips.min_frames: lower it, or raise clips.shots.threshold to cut less; "
    "clips.shots.find_gradual=false keeps frames of fades and dissolves",
    "too_large": "its frames are larger than clips.max_megapixels: raise that, or scale it down",
    "sources.too_large": "it is longer than ingest.fetch.max_bytes: raise that, or leave it out",
    "decoder_crashed": "the decoder crashes on this file: convert it, or remove it",
    "timeout": "raise clips.timeout_s, or split the file",
    "codec_error": "the clip cannot be decoded: pyramid manifest verify shows whether its file changed",
    "not_finite": "the score is NaN or infinite: look at the clip",
    "no_decoder": "convert it to a codec that PyAV decodes, such as H.264",
    "too_much_memory": "the file takes more memory than clips.max_memory_gb: raise that, or convert it",
    "refused": "the host wants credentials or forbids access: set credentials, or leave the file out",
    "inner_address": "a list may name public hosts only: allow it with ingest.fetch.allow_hosts, or leave it out",
    "busy": "the host limits requests: run again later with --retry-failed",
    "unreachable": "check the address and the network, then run again with --retry-failed",
    "no_sidecar": "name a caption file in source.yaml (captions: FILE) or in captions.sidecar",
    "no_caption": "write a line for it in the caption file",
    "no_parent": "write the captions that captions.rewrite_from names first",
    "captions.refused": "the model or a content filter refused to describe the clip: look at it, or use another model",
    "captions.empty": "run again with --retry-failed",
    "captions.repetitive": "use a larger model, or a smaller temperature",
    "captions.language": "use an instruction that names the language",
    "captions.cut": "raise max_new_tokens",
    "captions.bad_json": "use a larger model",
}


@dataclass(frozen=True)
class ErrorLine:
    """Rows of a table that failed or were skipped for one reason."""

    table: str
    status: str
    error_type: str
    count: int
    example: str

    @property
    def advice(self) -> str:
        """Remedy for a user; "" if the example contains it."""
        return ADVICE.get(f"{self.table}.{self.error_type}") or ADVICE.get(self.error_type, "")


def error_lines(root: str) -> list[ErrorLine]:
    """Every kind of failure in every table, the most frequent first."""
    messages: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for table in SCHEMAS:
        bad = read_table(root, table, ["status", "error_type", "error"], where=pc.field("status") != "ok")
        for row in bad.to_pylist():
            messages[table, row["status"], row["error_type"]].append(row["error"])
    lines = [ErrorLine(*key, len(texts), texts[0]) for key, texts in messages.items()]
    return sorted(lines, key=lambda line: -line.count)
