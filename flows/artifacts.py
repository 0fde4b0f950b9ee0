"""Artifacts of a Prefect run: counts, curves, verdicts and previews of clips."""

from collections.abc import Mapping

from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact

from tasks.evaluating.config import EvaluateResult
from tasks.generating.config import GenerateResult
from tasks.report import previews
from tasks.running.run import Run, StepResult
from tasks.tables.plain_text import markdown
from tasks.training.job import TrainingResult


def publish_counts(result: StepResult) -> None:
    """Counts in and out of a step, rows by table, and errors by type, as a table."""
    new = {"ok": result.num_ok, "failed": result.num_failed, "skipped": result.num_skipped}
    counts = {"in": result.num_in, "done before": result.num_done} | new
    rows = [{"what": name, "count": count} for name, count in counts.items()]
    rows += [{"what": f"rows appended to {table}", "count": count} for table, count in result.rows.items()]
    rows += [{"what": f"because {markdown(kind)}", "count": count} for kind, count in result.errors.items()]
    summary = markdown(result.note or f"{result.num_new} new of {result.num_in}")
    description = f"**{result.step}**: {summary}, {result.wall_s:.1f} s ({result.busy_s:.1f} s of it working)"
    description += "".join(f"  \n{line}" for line in _link_lines(result.links))
    create_table_artifact(table=rows, key=f"counts-{artifact_key(result.step)}", description=description)


def _link_lines(links: Mapping[str, str]) -> list[str]:
    """Markdown for the Ray job and the MLflow run of a step, as far as they exist."""
    lines = []
    for title, name, url in (("Ray job", "ray_job", "ray_url"), ("MLflow run", "mlflow_run", "mlflow_url")):
        if identifier := links.get(name):
            lines.append(f"{title} [{identifier}]({links[url]})" if url in links else f"{title} `{identifier}`")
    return lines


def publish_link(step: str, link: str) -> None:
    """Address of the page where a running step can be watched, such as its run in MLflow."""
    create_link_artifact(link=link, key=f"watch-{artifact_key(step)}", description=f"**{step}** while it runs")


def publish_curation(run: Run, result: StepResult) -> None:
    """Histograms, drop reasons and a contact sheet, if the selection has new rows."""
    if result.num_new:
        create_markdown_artifact(previews.curation_page(run.root), key="curation", description="Kept and dropped clips")


def publish_training(run: Run, result: TrainingResult) -> None:
    """Loss curves and final metrics, if this call trained a model."""
    if result.num_new:
        create_markdown_artifact(
            previews.training_page(run.root, result.model_id),
            key=f"training-{artifact_key(result.step.removeprefix('train_'))}",
            description="Loss curves and final metrics",
        )


def publish_verdict(run: Run, result: EvaluateResult) -> None:
    """The gate's checks and the evaluated clips, if this call evaluated a model."""
    if result.num_new:
        page = previews.verdict_page(run.root, result.evaluation_id)
        create_markdown_artifact(page, key="gate", description="The gate's verdict")


def publish_generations(run: Run, result: GenerateResult) -> None:
    """Prompts with frames of their clips, if this call generated clips."""
    if result.num_new:
        page = previews.generations_page(run.root, result.weights_hash)
        create_markdown_artifact(page, key="generated-clips", description="Generated clips")


def artifact_key(step: str) -> str:
    """Key of a Prefect artifact: only lower-case letters, digits and dashes are allowed."""
    return step.replace("_", "-")
