"""`pyramid features`: export and import training files of the published Pyramid Flow code."""

from typing import Annotated

import typer

from flows.cli.console import echo
from flows.cli.manifest import explained

app = typer.Typer(
    no_args_is_help=True,
    help="Exchange latents and text features with the published Pyramid Flow code: an annotation .jsonl with the keys "
    "video, text, latent and text_fea, and a .pt file for each latent and text.",
)

Vae = Annotated[str, typer.Option(help="folder of the VAE that made the latents; empty: the newest trained in ROOT")]
Encoder = Annotated[str, typer.Option(help="folder of the text encoders; empty: those last used in ROOT")]


@app.command("export")
def export_files(
    root: Annotated[str, typer.Argument(help="root folder or URI")],
    folder: Annotated[str, typer.Argument(help="folder for train.jsonl, val.jsonl, latents/ and text/")],
    selection: Annotated[str, typer.Option(help="which selection; empty: the newest")] = "",
    vae: Vae = "",
    encoder: Encoder = "",
) -> None:
    """Write the selected clips as training files, one annotation for each split. Existing files are kept.

    Texts are padded to 128 tokens, as that code expects. Example: `pyramid features export ./run ./official`
    """
    from tasks.exchange.official_files import export_official
    from tasks.running.run import Run
    from tasks.tables import manifest

    with explained(root):
        result = export_official(Run(root=manifest.locate(root)[0]), folder, selection, vae, encoder)
    echo(result.note)


@app.command("import")
def import_files(
    root: Annotated[str, typer.Argument(help="root folder or URI; created if it does not exist")],
    annotation: Annotated[str, typer.Argument(help=".jsonl with the keys video, text, latent and text_fea")],
    vae: Annotated[str, typer.Option(help="folder of the VAE that made the latents")],
    encoder: Annotated[str, typer.Option(help="folder of the text encoders that made the text features")],
    folder: Annotated[str, typer.Option(help="folder that paths are relative to; empty: the annotation's folder")] = "",
    fps: Annotated[float, typer.Option(min=0.1, help="frame rate of the clips")] = 24.0,
    val_fraction: Annotated[float, typer.Option(min=0, max=0.99, help="share of the videos to validate on")] = 0.05,
) -> None:
    """Read training files into the tables of ROOT and select their clips, for `pyramid train-dit`.

    A line with missing or invalid files becomes a failed row with the reason. After an interruption the same command
    continues. `pyramid extract` then adds the features of the empty text, which training needs too.

    Example: `pyramid features import ./run data/annotation.jsonl --vae causal_video_vae --encoder .`
    """
    from tasks.exchange.official_files import ImportConfig, import_official, select_imported
    from tasks.running.run import Run

    options = {"annotation": annotation, "folder": folder, "vae": vae, "encoder": encoder, "fps": fps}
    with explained(root):
        run = Run(root=root)
        result = import_official(run, ImportConfig.model_validate(options))
        echo(f"{result.num_in} lines: {result.num_done} done before, {result.num_ok} new, {result.num_failed} failed")
        for kind, count in result.errors.items():
            echo(f"  {kind}: {count} (pyramid manifest show {root} latents --where error_type={kind})")
        echo(select_imported(run, val_fraction).note)
