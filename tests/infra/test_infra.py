"""What is in infra/ parses, agrees with uv.lock and prefect.yaml, and is closed to strangers. Runs in about 5 s.

No container or cluster is started here; infra/README.md says what was run by hand.
"""

import json
import re
import shlex
import tomllib
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft202012Validator
from typer.main import get_command

from flows.cli.main import app
from flows.recipe import Recipe, load_recipe, parse_settings

REPO = Path(__file__).parents[2]
INFRA = REPO / "infra"
KUBERNETES = INFRA / "kubernetes"
MANIFESTS = sorted(KUBERNETES.glob("*.yaml"))
TOKEN = {"mode": "token", "secretName": "pyramid-ray-auth"}


@pytest.fixture(scope="module")
def locked() -> dict[str, str]:
    """Package -> version in uv.lock."""
    packages = tomllib.loads((REPO / "uv.lock").read_text())["package"]
    return {package["name"]: package.get("version", "") for package in packages}


@pytest.fixture(scope="module")
def compose() -> dict:
    return yaml.safe_load((INFRA / "compose.yaml").read_text())


@pytest.fixture(scope="module")
def pool() -> dict:
    return json.loads((KUBERNETES / "prefect-work-pool.json").read_text())


def objects(name: str) -> list[dict]:
    return list(yaml.safe_load_all((KUBERNETES / name).read_text()))


def one(name: str) -> dict:
    (resource,) = objects(name)
    return resource


# compose


def test_compose_has_every_server(compose):
    assert set(compose["services"]) == {"postgres", "prefect-server", "prefect-worker", "mlflow", "ray-head"}


def test_every_service_is_watched_limited_and_pinned(compose):
    for name, service in compose["services"].items():
        assert service["healthcheck"]["test"], name
        assert service["deploy"]["resources"]["limits"]["memory"], name
        assert service["restart"] == "unless-stopped", name
        tag = service["image"].partition(":")[2]
        assert tag, name
        assert tag != "latest", name


def test_published_ports_answer_on_loopback_only(compose):
    ports = [port for service in compose["services"].values() for port in service.get("ports", [])]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)
    assert "ports" not in compose["services"]["postgres"]


def test_every_server_asks_who_you_are(compose):
    services = compose["services"]
    assert "POSTGRES_PASSWORD" in services["postgres"]["environment"]
    assert "PREFECT_SERVER_API_AUTH_STRING" in services["prefect-server"]["environment"]
    assert "--app-name=basic-auth" in services["mlflow"]["command"]
    assert services["ray-head"]["environment"]["RAY_AUTH_MODE"] == "token"


def test_concurrency_leases_outlive_the_prefect_server(compose):
    server = compose["services"]["prefect-server"]
    settings = server["environment"]
    assert settings["PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE"] == (
        "prefect.server.concurrency.lease_storage.filesystem"
    )
    (volume, _, folder), *_ = (entry.partition(":") for entry in server["volumes"])
    assert volume in compose["volumes"]
    assert Path(settings["PREFECT_HOME"]).is_relative_to(folder)


def test_compose_refuses_to_start_without_a_secret():
    """Every secret has no default, and env.example names exactly those, empty."""
    text = (INFRA / "compose.yaml").read_text()
    required = set(re.findall(r"\$\{(\w+):\?", text))
    defaulted = set(re.findall(r"\$\{(\w+):-", text))
    example = (INFRA / "env.example").read_text()
    assert set(re.findall(r"^(\w+)=$", example, re.MULTILINE)) == required
    assert set(re.findall(r"^#(\w+)=", example, re.MULTILINE)) == defaulted
    secrets = [line for line in text.splitlines() if re.search(r"(PASSWORD|SECRET|TOKEN|AUTH_STRING)\w*: ", line)]
    assert secrets
    assert all(":?" in line for line in secrets)


def test_depended_upon_services_are_healthy_first(compose):
    for service in compose["services"].values():
        for name, need in service.get("depends_on", {}).items():
            assert name in compose["services"]
            assert need == {"condition": "service_healthy"}


def test_worker_gives_prefect_yaml_what_it_takes_from_the_environment(compose):
    asked = set(re.findall(r"\{\{ *\$(\w+) *\}\}", (REPO / "prefect.yaml").read_text()))
    assert asked
    assert asked <= set(compose["services"]["prefect-worker"]["environment"])


def test_worker_serves_the_pool_of_the_deployments(compose):
    deployments = yaml.safe_load((REPO / "prefect.yaml").read_text())["deployments"]
    (pool_name,) = {deployment["work_pool"]["name"] for deployment in deployments}
    script = compose["services"]["prefect-worker"]["command"][-1]
    assert f"work-pool create {pool_name} " in script
    assert f"--pool {pool_name} " in script


def test_gpu_file_adds_to_services_that_exist(compose):
    added = yaml.safe_load((INFRA / "compose.gpu.yaml").read_text())
    assert set(added["services"]) <= set(compose["services"])


# images


def test_images_are_built_from_the_lock_without_secrets_or_root(locked):
    text = (INFRA / "Dockerfile").read_text()
    stages = re.split(r"^FROM ", text, flags=re.MULTILINE)[1:]
    served = {re.search(r" AS (\w+)", stage).group(1): stage for stage in stages}
    assert "uv sync --frozen --no-dev" in served["build"]
    assert all("\nUSER 10001:10001\n" in served[name] for name in ("runtime", "mlflow"))
    assert f"mlflow=={locked['mlflow']} " in served["mlflow"]
    assert not re.search(r"(PASSWORD|TOKEN|SECRET|AUTH_STRING)", text)


def test_what_the_dockerfile_copies_is_in_the_build_context():
    allowed = re.findall(r"^!(\S+)$", (INFRA / "Dockerfile.dockerignore").read_text(), re.MULTILINE)
    copies = re.findall(r"^COPY (?!--from)(.+) \S+$", (INFRA / "Dockerfile").read_text(), re.MULTILINE)
    for source in " ".join(copies).split():
        assert (REPO / source).exists(), source
        assert any(source == path or source.startswith(f"{path}/") for path in allowed), source


# Kubernetes


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_manifests_name_what_they_are(path):
    for resource in yaml.safe_load_all(path.read_text()):
        assert resource["apiVersion"]
        assert resource["kind"]
        assert {"name", "generateName"} & set(resource["metadata"])


@pytest.mark.parametrize("name", ["raycluster.yaml", "rayjob.yaml"])
def test_ray_clusters_ask_for_a_token_and_match_the_lock(name, locked):
    spec = one(name)["spec"]
    cluster = spec.get("rayClusterSpec", spec)
    assert one(name)["apiVersion"] == "ray.io/v1"
    assert cluster["authOptions"] == TOKEN
    assert cluster["rayVersion"] == locked["ray"]
    assert {"rayStartParams", "template"} <= set(cluster["headGroupSpec"])
    for group in cluster["workerGroupSpecs"]:
        assert {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"} <= set(group)
        assert group["minReplicas"] == group["replicas"] == group["maxReplicas"] > 0
    assert not cluster.get("enableInTreeAutoscaling"), "steps take what is up when they start"
    assert any("nvidia.com/gpu" in limits(group["template"]) for group in cluster["workerGroupSpecs"])


def limits(template: dict) -> dict:
    return template["spec"]["containers"][0]["resources"]["limits"]


def nodes(cluster: dict) -> list[tuple[int, int]]:
    """(CPUs, GPUs) of every node that work may be put on."""
    places = []
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        has = limits(group["template"])
        cpus = int(group["rayStartParams"].get("num-cpus", has["cpu"]))
        places += [(cpus, int(has.get("nvidia.com/gpu", 0)))] * group.get("replicas", 1)
    return places


def misfits(recipe: Recipe, cluster: dict) -> list[str]:
    """Sections of a GPU recipe that would wait for ever, or be refused, on a cluster."""
    train = recipe.train_dit
    places = sum(min(cpus // train.cpus_per_worker, gpus) for cpus, gpus in nodes(cluster))
    steps = [] if places >= train.num_workers else ["train_dit"]
    for name in ("text_features", "latents", "evaluate", "generate"):
        actor = getattr(recipe, name)
        if not any(cpus >= actor.num_cpus and gpus >= actor.num_gpus for cpus, gpus in nodes(cluster)):
            steps.append(name)
    return steps


@pytest.mark.parametrize("name", ["384p", "768p"])
def test_standing_cluster_holds_what_the_gpu_recipes_ask_for(name):
    recipe = load_recipe(name)
    cluster = one("raycluster.yaml")["spec"]
    assert not misfits(recipe, cluster)
    cluster["workerGroupSpecs"][-1]["replicas"] = recipe.train_dit.num_workers - 1
    assert misfits(recipe, cluster) == ["train_dit"]


def test_command_of_the_ray_job_is_complete_and_fits_its_nodes():
    spec = one("rayjob.yaml")["spec"]
    program, command, *words = shlex.split(spec["entrypoint"])
    given = get_command(app).commands[command].make_context(command, words).params
    assert program == "pyramid"
    assert given["ray"] == "auto"
    recipe = load_recipe(given["recipe"], parse_settings(given["settings"]))
    (volume,) = {
        mount["mountPath"]
        for mount in spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["volumeMounts"]
        if mount["name"] == "data"
    }
    paths = (given["source"], given["root"], recipe.latents.vae, recipe.text_features.encoder)
    assert all(path.startswith(f"{volume}/") for path in paths)
    assert not misfits(recipe, spec["rayClusterSpec"])
    assert "entrypointNumCpus" not in spec


def pods() -> list[dict]:
    """Every pod spec of the manifests and of the work pool."""
    cluster, job = one("raycluster.yaml")["spec"], one("rayjob.yaml")["spec"]
    templates = [job["submitterPodTemplate"]]
    for spec in (cluster, job["rayClusterSpec"]):
        templates += [spec["headGroupSpec"]["template"], *(group["template"] for group in spec["workerGroupSpecs"])]
    templates += [
        resource["spec"]["template"] for resource in objects("prefect-worker.yaml") if resource["kind"] == "Deployment"
    ]
    template = json.loads((KUBERNETES / "prefect-work-pool.json").read_text())
    templates.append(template["job_configuration"]["job_manifest"]["spec"]["template"])
    return [template["spec"] for template in templates]


def test_pods_are_confined_and_limited():
    assert len(pods()) == 8
    for pod in pods():
        assert pod["securityContext"]["runAsNonRoot"] is True
        for container in pod["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert {"requests", "limits"} <= set(container["resources"])
            assert not container["image"].endswith(":latest")


def test_volumes_and_secrets_that_pods_use_are_there():
    claims = {one("storage.yaml")["metadata"]["name"]}
    secrets = {resource["metadata"]["name"] for resource in objects("secrets.example.yaml")}
    for pod in pods():
        volumes = {volume["name"]: volume for volume in pod.get("volumes", [])}
        used = {v["persistentVolumeClaim"]["claimName"] for v in volumes.values() if "persistentVolumeClaim" in v}
        assert used <= claims | {"{{ data_claim }}"}
        for container in pod["containers"]:
            assert {mount["name"] for mount in container.get("volumeMounts", [])} <= set(volumes)
            assert {source["secretRef"]["name"] for source in container.get("envFrom", [])} <= secrets | {
                "{{ secret_name }}"
            }
    assert TOKEN["secretName"] in secrets


def test_secret_template_holds_no_secret():
    for resource in objects("secrets.example.yaml"):
        assert "data" not in resource
        assert all("REPLACE_ME" in value for value in resource["stringData"].values())


def test_nothing_comes_in_unless_allowed():
    policies = {policy["metadata"]["name"]: policy["spec"] for policy in objects("network-policy.yaml")}
    closed = policies.pop("pyramid-deny-ingress")
    assert closed == {"podSelector": {}, "policyTypes": ["Ingress"]}
    assert all(rule["from"] for spec in policies.values() for rule in spec["ingress"])


def test_whoever_submits_ray_jobs_may_reach_the_head(pool):
    (rule,) = next(f for f in objects("network-policy.yaml") if f["metadata"]["name"] == "pyramid-ray-jobs")["spec"][
        "ingress"
    ]
    ((key, value),) = rule["from"][0]["podSelector"]["matchLabels"].items()
    flow_run = pool["job_configuration"]["job_manifest"]["spec"]["template"]["metadata"]["labels"]
    submitter = one("rayjob.yaml")["spec"]["submitterPodTemplate"]["metadata"]["labels"]
    assert flow_run[key] == submitter[key] == value


# the Prefect work pool


def test_placeholders_and_variables_are_the_same_set(pool):
    """A placeholder without a variable would stay empty; a variable without a placeholder would do nothing."""
    from prefect.utilities.templating import find_placeholders

    used: set[str] = set()

    def collect(value):
        if isinstance(value, dict):
            for inner in value.values():
                collect(inner)
        elif isinstance(value, list):
            for inner in value:
                collect(inner)
        elif isinstance(value, str):
            used.update(placeholder.name for placeholder in find_placeholders(value))

    collect(pool["job_configuration"])
    assert used == set(pool["variables"]["properties"])


def test_variables_are_a_schema_that_their_own_defaults_satisfy(pool):
    Draft202012Validator.check_schema(pool["variables"])
    defaults = {name: v["default"] for name, v in pool["variables"]["properties"].items() if "default" in v}
    Draft202012Validator(pool["variables"]).validate(defaults)


def test_prefect_reads_the_template(pool):
    """The server's own check of a work pool's template, and the base class of every worker's job configuration."""
    from prefect.server.schemas.actions import WorkPoolCreate
    from prefect.utilities.templating import apply_values
    from prefect.workers.base import BaseJobConfiguration

    WorkPoolCreate(name="kubernetes", type="kubernetes", base_job_template=pool)
    defaults = {name: v["default"] for name, v in pool["variables"]["properties"].items() if "default" in v}
    given = defaults | {"name": "curate", "command": "prefect flow-run execute", "labels": {"flow": "curate"}}
    job = BaseJobConfiguration.model_validate(apply_values(pool["job_configuration"], given))
    assert job.command == "prefect flow-run execute"


def test_worker_image_is_the_locked_prefect(locked):
    deployment = next(resource for resource in objects("prefect-worker.yaml") if resource["kind"] == "Deployment")
    image = deployment["spec"]["template"]["spec"]["containers"][0]["image"]
    assert image.startswith(f"prefecthq/prefect:{locked['prefect']}-")


def test_readme_says_of_every_file_what_it_is():
    readme = (INFRA / "README.md").read_text()
    files = [path.name for path in INFRA.rglob("*") if path.is_file() and path.name not in ("README.md", ".env")]
    assert not [name for name in files if f"`{name}`" not in readme and f"/{name}`" not in readme]
