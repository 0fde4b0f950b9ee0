"""A root that holds a handful of tiny selected clips, as the curation steps would leave it."""

import contextlib
import http.server
import json
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from tasks.running.run import RayConfig, Run
from tasks.tables.appending import append_block
from tasks.tables.content_ids import content_id, crc32
from tasks.tables.rows import Lineage, ok_row

SIZE, NUM_FRAMES, FPS = 32, 9, 8
BUCKET = f"{SIZE}x{SIZE}x{NUM_FRAMES}@{FPS}"
COLOURS = ("red", "green", "blue")


def moving_square(channel: int, speed: int) -> np.ndarray:
    """A coloured square that slides to the right on grey; (t h w 3) uint8."""
    frames = np.full((NUM_FRAMES, SIZE, SIZE, 3), 90, np.uint8)
    for t in range(NUM_FRAMES):
        edge = (4 + speed * t) % (SIZE - 8)
        frames[t, 10:20, edge : edge + 8] = 30
        frames[t, 10:20, edge : edge + 8, channel] = 220
    return frames


def fill_root(root: Path, footage: Path) -> Run:
    """Tables and media of six clips (four to train on, two held out) and a caption file that knows five of them."""
    from pyramid_model.video.video import write_video

    run = Run(root=str(root), ray=RayConfig(num_cpus=2), run_id="test")
    footage.mkdir(parents=True)
    rows: dict[str, list[dict]] = {"sources": [], "videos": [], "clips": [], "selections": []}
    captions = ["file,start_s,end_s,text"]
    for number in range(6):
        name, colour = f"video{number}.mp4", COLOURS[number % 3]
        video_id = content_id("video", number)
        clip_id = content_id("clip", number)
        uri = run.media("clips", f"{clip_id}.mp4")
        write_video(uri, moving_square(number % 3, 1 + number // 3), FPS)
        if number != 3:
            captions.append(f"{name},0.0,1.2,A {colour} square slides to the right.")
        columns = {"video_id": video_id, "uri": str(footage / name), "path": name}
        card = str(footage / "source.yaml")
        rows["sources"].append(ok_row({}, source_id=content_id("source", number), card=card, **columns))
        rows["videos"].append(ok_row({}, **columns))
        seconds = {"start_s": 0.0, "end_s": NUM_FRAMES / FPS, "start_frame": 0, "num_frames": NUM_FRAMES}
        size = {"height": SIZE, "width": SIZE, "fps_num": FPS, "fps_den": 1}
        rows["clips"].append(ok_row({}, clip_id=clip_id, video_id=video_id, uri=uri, **seconds, **size))
        verdict = {"keep": True, "drop_reasons": [], "bucket": BUCKET, "split": "train" if number < 4 else "val"}
        rows["selections"].append(ok_row({}, selection_id=content_id(clip_id), clip_id=clip_id, **verdict))
    (footage / "captions.csv").write_text("\n".join(captions) + "\n")
    (footage / "source.yaml").write_text("name: squares\ncaptions: captions.csv\n")
    for table, table_rows in rows.items():
        append_block(run.root, table, table_rows, "fixture", Lineage("test", "fixture", "1", "squares", ""))
    return run


@pytest.fixture
def squares(tmp_path) -> Run:
    """A root of its own."""
    return fill_root(tmp_path / "root", tmp_path / "footage")


@pytest.fixture(scope="module")
def shared_squares(tmp_path_factory) -> Run:
    """A root that the tests of one file share."""
    folder = tmp_path_factory.mktemp("squares")
    return fill_root(folder / "root", folder / "footage")


class SmallRoot:
    """A whole root: one video, three clips, their scores, selections, a caption and a latent. Rows can be added."""

    LINEAGE = Lineage("run", "step", "1", "recipe", "code")
    VIDEO = content_id("video")

    def __init__(self, root: str) -> None:
        self.root = root
        self.append("sources", [ok_row({}, source_id=content_id("source"), video_id=self.VIDEO, uri="/films/a.mp4")])
        self.append("videos", [ok_row({}, video_id=self.VIDEO, clip_ids=[self.clip_id(n) for n in (1, 2, 3)])])
        self.append("clips", [self.clip(number) for number in (1, 2, 3)])
        values = {"motion": (0.5, 2.0, 9.0), "blur": (100.0, 20.0, 300.0)}
        scores = [self.score(place + 1, name, values[name][place]) for name in values for place in range(3)]
        self.append("scores", scores)
        verdicts = {1: ["motion"], 2: [], 3: ["motion", "blur"]}
        self.append("selections", [self.selection(number, reasons) for number, reasons in verdicts.items()])
        caption = {"clip_id": self.clip_id(2), "kind": "human", "text": "a hill, at dusk"}
        self.append("captions", [ok_row({}, caption_id=content_id("caption"), **caption)])
        self.append("latents", [self.latent(2)])

    def append(self, table: str, rows: list[dict], lineage: Lineage = LINEAGE) -> None:
        block = content_id(table, len(rows), repr(rows), lineage.params_hash)
        append_block(self.root, table, rows, block, lineage)

    def clip(self, number: int, **columns) -> dict:
        """A row of `clips`, with a file."""
        path = Path(self.root, "media", "clips", f"{self.clip_id(number)}.mp4")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"clip" * number)
        facts = {"video_id": self.VIDEO, "uri": str(path), "size_bytes": 4 * number, "num_frames": 10 * number}
        return ok_row({}, clip_id=self.clip_id(number), **facts) | columns

    @staticmethod
    def clip_id(number: int) -> str:
        return content_id("clip", number)

    def score(self, number: int, scorer: str, value: float) -> dict:
        ids = {"score_id": content_id(number, scorer), "clip_id": self.clip_id(number)}
        return ok_row({}, **ids, scorer=scorer, value=value)

    def selection(self, number: int, reasons: list[str]) -> dict:
        verdict = {"keep": not reasons, "drop_reasons": reasons, "split": "train"}
        return ok_row({}, selection_id=content_id("selection", number), clip_id=self.clip_id(number), **verdict)

    def latent(self, number: int, **columns) -> dict:
        blob = bytes([number]) * 16
        stored = {"shape": [1, 2, 2, 2], "dtype": "bfloat16", "latent": blob, "crc32": crc32(blob)}
        return ok_row({}, latent_id=content_id("latent", number), clip_id=self.clip_id(number), **stored) | columns

    def bad_findings(self, level: str = "fail") -> list[tuple[str, str]]:
        """(table, check) of what `manifest verify` finds."""
        from tasks.inspecting.verify import verify

        return [(finding.table, finding.check) for finding in verify(self.root) if finding.level == level]


@pytest.fixture
def small(tmp_path) -> SmallRoot:
    """A root of its own, without models."""
    return SmallRoot(str(tmp_path / "root"))


class ChatServer:
    """A server that speaks OpenAI's chat protocol over HTTP and says what `script` says.

    script: called with the text of a request and how often that text has come, from 1; gives (status, headers, body).
    requests: bodies in the order of their arrival; keys: their `Authorization` headers.
    """

    def __init__(self, script=None):
        self.script = script or (lambda text, times: self.completion("A red square slides over a grey plain."))
        self.requests, self.keys, self.most_at_once, self.at_once = [], [], 0, 0
        self.models_status = 200
        self.lock = threading.Lock()
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                server.keys.append(self.headers["Authorization"])
                self.reply(server.models_status, {}, {"object": "list", "data": [{"id": "tiny", "object": "model"}]})

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with server.lock:
                    server.requests.append(body | {"arrived_s": time.monotonic()})
                    times = sum(server.text(request) == server.text(body) for request in server.requests)
                    server.at_once += 1
                    server.most_at_once = max(server.most_at_once, server.at_once)
                try:
                    status, headers, answer = server.script(server.text(body), times)
                finally:
                    with server.lock:
                        server.at_once -= 1
                self.reply(status, headers, answer)

            def reply(self, status, headers, answer):
                data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                self.send_response(status)
                for name, value in {"Content-Type": "application/json", "Content-Length": len(data), **headers}.items():
                    self.send_header(name, str(value))
                self.end_headers()
                with contextlib.suppress(OSError):  # whoever asked has given up
                    self.wfile.write(data)

            def log_message(self, *_):
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, args=(0.05,), daemon=True).start()

    @staticmethod
    def text(body) -> str:
        return body["messages"][0]["content"][-1]["text"]

    @staticmethod
    def completion(text, finish="stop", **message):
        """(status, headers, body) of an answer: 100 prompt and 10 answer tokens."""
        message = {"role": "assistant", "content": text} | message
        choice = {"index": 0, "finish_reason": finish, "message": message}
        usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
        facts = {"id": "1", "object": "chat.completion", "created": 1, "model": "tiny"}
        return 200, {}, facts | {"choices": [choice], "usage": usage}

    @staticmethod
    def error(status, message, **headers):
        """(status, headers, body) of an error."""
        return (
            status,
            {name.replace("_", "-"): value for name, value in headers.items()},
            {"error": {"message": message}},
        )

    def close(self):
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture
def chat_server():
    """A `ChatServer` of its own."""
    server = ChatServer()
    yield server
    server.close()
