"""Raw videos to scored and selected clips."""

from dataclasses import dataclass
from typing import Any

from prefect import flow

from flows.artifacts import publish_curation
from flows.durable import durable, flow_run_name, prepare
from flows.recipe import Recipe
from flows.step_inputs import with_clips, with_duplicates, with_scores
from tasks.cutting import clips
from tasks.cutting.clips import ClipsResult
from tasks.running.run import StepResult
from tasks.scoring import scores
from tasks.selecting import duplicates, select
from tasks.selecting.select_config import SelectResult
from tasks.sources import ingest
from tasks.sources.ingest import IngestResult

ingest_sources = durable(ingest.ingest)
cut_clips = durable(clips.clips)
score_clips = durable(scores.scores)
find_duplicates = durable(duplicates.duplicates)
select_clips = durable(select.select)


@dataclass(frozen=True)
class Curated:
    """Results of the steps of curation."""

    ingest: IngestResult
    clips: ClipsResult
    scores: StepResult
    duplicates: StepResult
    select: SelectResult


@flow(name="curate", flow_run_name=flow_run_name, persist_result=False)
def curate(
    root: str,
    recipe: Recipe | str = "demo",
    source: str = "",
    settings: dict[str, Any] | None = None,
    ray: str = "",
    run_id: str = "",
) -> Curated:
    """Find videos, cut them at shots, score the clips, find duplicates and select the good clips.

    Args:
        root: folder or URI that holds tables/ and media/.
        recipe: name (demo, 384p, …), path of a YAML file, or the settings themselves.
        source: folder of videos, list, shards or one video; path or URI; empty: the recipe's `ingest.source`.
        settings: overrides of the recipe by dotted name, e.g. {"select.thresholds.motion.min": 0.5}.
        ray: address of the Ray cluster; empty: the recipe's `ray.address`.
        run_id: id of the run, which new rows record; empty: made from the current time.

    Raises:
        ValueError: the selection limits a score that no clip has and that this run does not compute; raised before
            any video is read.
    """
    run, plan = prepare(root, recipe, settings, ray, run_id, source)
    select.check_limited(run, plan.select, plan.scores.computed)
    ingested = ingest_sources(run, plan.ingest)
    cut = cut_clips(run, plan.clips)
    plan = with_clips(plan, cut)
    scored = score_clips(run, plan.scores)
    plan = with_scores(plan, scored)
    searched = find_duplicates(run, plan.duplicates)
    selected = select_clips(run, with_duplicates(plan, searched).select)
    curated = Curated(ingest=ingested, clips=cut, scores=scored, duplicates=searched, select=selected)
    publish_curation(run, curated.select)
    return curated
