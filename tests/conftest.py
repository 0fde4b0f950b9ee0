"""Fixtures for every test folder."""

import os
import socket

import pytest

# `tasks.running.cluster.connect` sets this, too; Ray reads it once, at its import, and some tests import Ray first.
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")


def pytest_collection_modifyitems(items):
    """Files with slow tests come first, so that none of them is left alone in the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def free_port():
    """`free_port()`: a port of this machine that no server uses."""

    def free_port() -> int:
        with socket.create_server(("127.0.0.1", 0)) as server:
            return server.getsockname()[1]

    return free_port


@pytest.fixture(scope="session")
def ray_local():
    """An embedded Ray with two CPUs, started once for each process of pytest the way the steps start it."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from tasks.running.cluster import connect
    from tasks.running.run import RayConfig

    connect(RayConfig(num_cpus=2))
    yield
    import ray

    ray.shutdown()


@pytest.fixture(scope="session")
def shoot():
    """Makes small real videos: `shoot(path, [30, 25])` films two shots, each a texture of its own that moves.

    Options: size (height, width), fps, codec, pix_fmt, times (pts of every frame, 1/1000 s), rotation (degrees
    counterclockwise, as metadata), aspect (of samples), transfer (H.273 code), audio_s (of a silent sound track) and
    movflags. Returns the frames, (t h w c) uint8.
    """
    from fractions import Fraction

    import av
    import cv2
    import numpy as np

    def texture(seed: int, height: int, width: int) -> np.ndarray:
        small = np.random.default_rng(seed).integers(20, 236, (6, 8, 3), dtype=np.uint8)
        return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)

    def film(shots, height, width) -> np.ndarray:
        frames = [
            np.roll(texture(seed, height, width), 2 * frame, axis=1)
            for seed, length in enumerate(shots)
            for frame in range(length)
        ]
        return np.stack(frames)

    def shoot(
        path,
        shots=(30,),
        *,
        size=(96, 160),
        fps=24,
        codec="libx264",
        pix_fmt="yuv420p",
        times=None,
        rotation=0,
        aspect=None,
        transfer=0,
        audio_s=0.0,
        movflags="+faststart",
    ):
        frames = film(shots, *size)
        container = av.open(str(path), "w", options={"movflags": movflags} if str(path).endswith("mp4") else {})
        stream = container.add_stream(codec, rate=fps, options={"crf": "12"} if codec == "libx264" else {})
        stream.height, stream.width, stream.pix_fmt = *size, pix_fmt
        stream.codec_context.time_base = Fraction(1, 1000) if times else Fraction(1, fps)
        if rotation:
            stream.set_display_rotation(rotation)
        if aspect:
            stream.codec_context.sample_aspect_ratio = Fraction(*aspect)
        if transfer:
            stream.codec_context.color_trc = transfer
        sound = container.add_stream("aac", rate=16000, layout="mono") if audio_s else None
        for index, rgb in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(rgb, format="rgb24")
            frame.pts = times[index] if times else index
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if sound:
            silence = av.AudioFrame.from_ndarray(np.zeros((1, int(16000 * audio_s)), np.float32), "fltp", "mono")
            silence.sample_rate = 16000
            container.mux([*sound.encode(silence), *sound.encode()])
        container.close()
        return frames

    return shoot


@pytest.fixture(scope="session")
def write_text_parts():
    """`write_text_parts(folder, variant)`: tiny random text encoders and tokenizers of a released directory.

    `miniflux` has CLIP and T5, `sd3` two projecting CLIPs and T5; their widths are 16 or 12 and 20, and 32.
    """
    import json

    import torch
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    from pyramid_model.text import build_tiny_text_encoder

    texts = ["A fat grey bunny wakes up in a dark burrow.", "Snow drifts over a steep grey mountain ridge."]
    alphabet = "abcdefghijklmnopqrstuvwxyz."

    def write_clip(folder, number: str, projection: int | None) -> None:
        tokens = folder / f"tokenizer{number}"
        tokens.mkdir(parents=True)
        letters = [*alphabet, *(f"{letter}</w>" for letter in alphabet)]
        vocab = {token: i for i, token in enumerate([*letters, "an", "<|startoftext|>", "<|endoftext|>"])}
        (tokens / "vocab.json").write_text(json.dumps(vocab))
        (tokens / "merges.txt").write_text("#version: 0.2\na n\n")
        settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "pad_token": "<|endoftext|>"}
        (tokens / "tokenizer_config.json").write_text(json.dumps(settings))
        sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
        ends = {"bos_token_id": vocab["<|startoftext|>"], "eos_token_id": vocab["<|endoftext|>"]}
        config = CLIPTextConfig(vocab_size=len(vocab), projection_dim=projection or 16, **sizes, **ends)
        torch.manual_seed(len(number))
        model = (CLIPTextModelWithProjection if projection else CLIPTextModel)(config)
        model.save_pretrained(folder / f"text_encoder{number}")

    def write(folder, variant: str) -> None:
        clips = {"miniflux": {"": None}, "sd3": {"": 12, "_2": 20}}[variant]
        for number, projection in clips.items():
            write_clip(folder, number, projection)
        number = f"_{len(clips) + 1}"
        build_tiny_text_encoder(texts, folder / f"text_encoder{number}", dim=32, num_layers=1, vocab_size=128)
        (folder / f"tokenizer{number}").mkdir()
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (folder / f"text_encoder{number}" / name).rename(folder / f"tokenizer{number}" / name)

    return write


@pytest.fixture(scope="session")
def released(tmp_path_factory, write_text_parts):
    """`released(variant)`: a whole released directory of tiny random models; not to be changed.

    Both have DiTs of 384p and 768p, `miniflux` one of images too, whose weights are bfloat16.
    """
    import functools

    import torch

    from pyramid_model.config import MiniFluxConfig, MMDiTConfig, VAEConfig, VAEStackConfig
    from pyramid_model.dit.miniflux import MiniFlux
    from pyramid_model.dit.mmdit import MMDiT
    from pyramid_model.vae.autoencoder import CausalVideoVAE
    from pyramid_model.weights.weights import save_dit, save_vae

    shared = {"latent_channels": 4, "num_heads": 2, "head_dim": 8, "text_dim": 32}
    stack = VAEStackConfig(channels=(4, 4, 8, 8), layers=(1, 1, 1, 1), norm_groups=2)

    def make_dit(variant: str):
        if variant == "sd3":
            return MMDiT(MMDiTConfig(**shared, pooled_dim=32, num_blocks=2, position_grid=8, position_base=4))
        blocks = {"num_double_blocks": 1, "num_single_blocks": 1}
        return MiniFlux(MiniFluxConfig(**shared, **blocks, pooled_dim=16, rope_axes=(2, 2, 4)))

    @functools.cache
    def make(variant: str):
        folder = tmp_path_factory.mktemp("released") / f"pyramid-flow-{variant}"
        folder.mkdir()
        torch.manual_seed(0)
        write_text_parts(folder, variant)
        save_vae(
            CausalVideoVAE(VAEConfig(latent_channels=4, encoder=stack, decoder=stack)), folder / "causal_video_vae"
        )
        for name in ("384p", "768p", "image") if variant == "miniflux" else ("384p", "768p"):
            save_dit(make_dit(variant).bfloat16(), folder / f"diffusion_transformer_{name}")
        return folder

    return make


@pytest.fixture(scope="session")
def shared_assets():
    """Folder of real test videos beside the repository, where there is one."""
    from pathlib import Path

    folder = Path(__file__).resolve().parents[2] / "shared" / "assets"
    if not folder.is_dir():
        pytest.skip(f"the shared test videos are not at {folder}")
    return folder


@pytest.fixture(scope="session")
def write_model_directory(write_text_parts):
    """`write_model_directory(folder, kind)`: a directory as the released ones, `miniflux` or `sd3`, tiny and random.

    It holds the variants 384p and image.
    """
    from pathlib import Path

    import torch

    from pyramid_model.config import MiniFluxConfig, MMDiTConfig, VAEConfig, VAEStackConfig
    from pyramid_model.dit.miniflux import MiniFlux
    from pyramid_model.dit.mmdit import MMDiT
    from pyramid_model.vae.autoencoder import CausalVideoVAE
    from pyramid_model.weights.weights import save_dit, save_vae

    def write(folder: Path, kind: str = "miniflux") -> Path:
        write_text_parts(folder, kind)
        stack = VAEStackConfig(channels=(4, 4, 8, 8), layers=(1, 1, 1, 1), norm_groups=2)
        torch.manual_seed(0)
        save_vae(
            CausalVideoVAE(VAEConfig(latent_channels=4, encoder=stack, decoder=stack)), folder / "causal_video_vae"
        )
        sizes = {"latent_channels": 4, "num_heads": 2, "head_dim": 8, "text_dim": 32}
        for variant in ("384p", "image"):
            if kind == "sd3":
                dit = MMDiT(MMDiTConfig(**sizes, pooled_dim=32, num_blocks=2, position_grid=8, position_base=4))
            else:
                blocks = {"num_double_blocks": 1, "num_single_blocks": 1, "rope_axes": (2, 2, 4)}
                dit = MiniFlux(MiniFluxConfig(**sizes, pooled_dim=16, **blocks))
            with torch.no_grad():
                for weight in dit.parameters():
                    weight.copy_(torch.randn_like(weight) / max(1, weight[0].numel()) ** 0.5)
            save_dit(dit, folder / f"diffusion_transformer_{variant}")
        return folder

    return write


@pytest.fixture(scope="session")
def write_vision_model():
    """`write_vision_model(folder, kind)`: a tiny random vision-language model as transformers saves one.

    `qwen2_5_vl` and `qwen3_vl` take videos, `llava` several images of 28 px. Their tokenizer knows bytes.
    """
    import torch
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    special = ["<pad>", "<|im_start|>", "<|im_end|>", "<|image_pad|>", "<|video_pad|>"]
    special += ["<|vision_start|>", "<|vision_end|>"]
    in_marks = "<|vision_start|>{pad}<|vision_end|>"
    shown = {"qwen2_5_vl": in_marks, "qwen3_vl": in_marks, "llava": "{pad}"}

    def tokenizer():
        vocab = special + sorted(pre_tokenizers.ByteLevel.alphabet())
        model = Tokenizer(models.BPE({token: i for i, token in enumerate(vocab)}, []))
        model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        model.decoder = decoders.ByteLevel()
        model.add_special_tokens(special)
        names = {"pad_token": special[0], "eos_token": special[2]}
        return transformers.PreTrainedTokenizerFast(tokenizer_object=model, **names)

    def template(kind: str) -> str:
        media = "".join(
            f"{{% elif part['type'] == '{name}' %}}{shown[kind].format(pad=f'<|{name}_pad|>')}"
            for name in ("image", "video")
        )
        return (
            "{% for turn in messages %}<|im_start|>{{ turn['role'] }}\n{% for part in turn['content'] %}"
            "{% if part['type'] == 'text' %}{{ part['text'] }}" + media + "{% endif %}{% endfor %}<|im_end|>\n"
            "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
        )

    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}

    def qwen(words):
        ids = {name: words.convert_tokens_to_ids(f"<|{name}|>") for name in ("image_pad", "video_pad")}
        config = transformers.Qwen2_5_VLConfig(
            text_config=sizes
            | {"vocab_size": len(words), "num_key_value_heads": 2}
            | {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}},
            vision_config={"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2}
            | {"out_hidden_size": 32, "patch_size": 14, "fullatt_block_indexes": [1], "window_size": 56},
            image_token_id=ids["image_pad"],
            video_token_id=ids["video_pad"],
            vision_start_token_id=words.convert_tokens_to_ids("<|vision_start|>"),
        )
        pixels = {"shortest_edge": 28 * 28, "longest_edge": 56 * 56 * 4}
        processor = transformers.Qwen2_5_VLProcessor(
            transformers.Qwen2VLImageProcessor(size=pixels),
            words,
            transformers.Qwen2VLVideoProcessor(size=pixels),
            chat_template=template("qwen2_5_vl"),
        )
        return transformers.Qwen2_5_VLForConditionalGeneration(config), processor

    def qwen3(words):
        tokens = {"image": "image_pad", "video": "video_pad"} | {end: end for end in ("vision_start", "vision_end")}
        ids = {f"{name}_token_id": words.convert_tokens_to_ids(f"<|{token}|>") for name, token in tokens.items()}
        rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}
        config = transformers.Qwen3VLConfig(
            text_config=sizes
            | {"vocab_size": len(words), "num_key_value_heads": 2, "head_dim": 8, "rope_parameters": rope},
            vision_config={"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2}
            | {"out_hidden_size": 32, "deepstack_visual_indexes": [0], "num_position_embeddings": 64},
            **ids,
        )
        pixels = {"shortest_edge": 32 * 32, "longest_edge": 64 * 64 * 4}
        processor = transformers.Qwen3VLProcessor(
            transformers.Qwen2VLImageProcessor(size=pixels, patch_size=16),
            words,
            transformers.Qwen3VLVideoProcessor(size=pixels),
            chat_template=template("qwen3_vl"),
        )
        return transformers.Qwen3VLForConditionalGeneration(config), processor

    def llava(words):
        config = transformers.LlavaConfig(
            text_config=transformers.LlamaConfig(**sizes, vocab_size=len(words)),
            vision_config=transformers.CLIPVisionConfig(**sizes, image_size=28, patch_size=14),
            image_token_index=words.convert_tokens_to_ids("<|image_pad|>"),
        )
        edge = {"height": 28, "width": 28}
        words.add_special_tokens({"additional_special_tokens": special[3:4]})
        words.image_token = "<|image_pad|>"
        processor = transformers.LlavaProcessor(
            transformers.CLIPImageProcessor(size=edge, crop_size=edge),
            words,
            patch_size=14,
            vision_feature_select_strategy="default",
            chat_template=template("llava"),
            image_token="<|image_pad|>",
            num_additional_image_tokens=1,
        )
        return transformers.LlavaForConditionalGeneration(config), processor

    def write(folder, kind: str = "qwen2_5_vl"):
        words = tokenizer()
        torch.manual_seed(0)
        model, processor = {"qwen2_5_vl": qwen, "qwen3_vl": qwen3, "llava": llava}[kind](words)
        model.generation_config.eos_token_id = words.eos_token_id
        model.generation_config.pad_token_id = words.pad_token_id
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        return folder

    return write


@pytest.fixture(scope="session")
def write_open_clip():
    """`write_open_clip(folder, seed, dim)`: a tiny random CLIP model as open_clip writes them; returns the folder."""
    import json
    from pathlib import Path

    import torch

    def write(folder: Path, seed: int = 0, dim: int = 8) -> Path:
        import open_clip

        vision = {"image_size": 32, "patch_size": 16, "layers": 1, "width": 16, "head_width": 8}
        text = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
        torch.manual_seed(seed)
        model = open_clip.CLIP(dim, vision, text)
        folder.mkdir(parents=True)
        config = {"model_cfg": {"embed_dim": dim, "vision_cfg": vision, "text_cfg": text}, "preprocess_cfg": {}}
        (folder / "open_clip_config.json").write_text(json.dumps(config))
        torch.save(model.state_dict(), folder / "open_clip_pytorch_model.bin")
        return folder

    return write


@pytest.fixture(scope="session")
def write_classifier():
    """`write_classifier(folder, labels)`: a tiny random ViT image classifier of transformers; returns the folder."""
    import torch

    def write(folder, labels: tuple[str, ...] = ("clean", "watermark")):
        from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

        torch.manual_seed(0)
        sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        config = ViTConfig(**sizes, image_size=32, patch_size=16, id2label=dict(enumerate(labels)))
        model = ViTForImageClassification(config)
        torch.nn.init.normal_(model.classifier.weight)  # so that frames are told apart
        model.save_pretrained(folder)
        ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
        return folder

    return write
