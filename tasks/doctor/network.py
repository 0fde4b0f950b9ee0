"""Ports that our servers need, and servers that the environment names."""

import base64
import json
import os
import re
import socket
import urllib.error
import urllib.request
from pathlib import Path

from tasks.doctor.machine import Check
from tasks.tables import storage

TIMEOUT_S = 5.0
MEMORY_LEASES = "prefect.server.concurrency.lease_storage.memory"
LEASE_ADVICE = (
    "give the server PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE=prefect.server.concurrency.lease_storage.filesystem and "
    "a PREFECT_HOME on a disk that outlives it"
)
PORTS = {4200: "Prefect server", 5000: "MLflow server", 8265: "Ray dashboard and jobs", 8000: "generation API"}


def check_port(port: int) -> Check:
    """Whether a port is free for the server that uses it; a taken port is fine if that server runs already."""
    name = f"port {port}"
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as err:
            server = PORTS.get(port, "server")
            advice = f"fine if that is the {server}; otherwise give the {server} another port, or free this one"
            return Check(name, "warn", f"taken ({err.strerror})", advice)
    return Check(name, "ok", f"free for the {PORTS.get(port, 'server')}")


def check_ray_auth() -> Check:
    """Whether there is a token where Ray asks for one, and whether a shared cluster asks for one."""
    mode = os.environ.get("RAY_AUTH_MODE", "")
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token").expanduser()
    place = "RAY_AUTH_TOKEN" if os.environ.get("RAY_AUTH_TOKEN") else _token_file(path)
    address = os.environ.get("RAY_ADDRESS", "")
    where = f", RAY_ADDRESS={address}" if address else ""
    if mode == "token" and not place:
        advice = "set RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH to the cluster's token (an embedded Ray makes its own)"
        return Check("Ray token", "warn", f"RAY_AUTH_MODE=token and no token{where}", advice)
    if address and mode != "token":
        advice = "a cluster that others can reach needs RAY_AUTH_MODE=token on the head, the nodes and here"
        return Check("Ray token", "warn", f"no authentication{where}", advice)
    return Check("Ray token", "ok", _token_use(mode, place) + where)


def _token_file(path: Path) -> str:
    """Variable or path that names the token file; "" if the file does not exist."""
    if not path.is_file():
        return ""
    return "RAY_AUTH_TOKEN_PATH" if os.environ.get("RAY_AUTH_TOKEN_PATH") else str(path)


def _token_use(mode: str, place: str) -> str:
    """Sentence on how Ray 2.60 finds its token. An embedded Ray always uses one, a cluster if mode or file is set."""
    if mode == "token":
        return f"RAY_AUTH_MODE=token, with the token in {place}"
    if mode:
        return f"RAY_AUTH_MODE is {mode}: a cluster asks for no token"
    if place:
        return f"RAY_AUTH_MODE is not set; the token in {place} is used"
    return "RAY_AUTH_MODE is not set; an embedded Ray makes a token of its own"


def check_prefect() -> Check:
    """Whether the Prefect server of PREFECT_API_URL answers, if one is set."""
    url = os.environ.get("PREFECT_API_URL")
    if not url:
        return Check("Prefect server", "ok", "none set: flows start a temporary one")
    return _server("Prefect server", "PREFECT_API_URL", url, url.rstrip("/") + "/health")


def check_prefect_leases() -> Check:
    """Whether the Prefect server of PREFECT_API_URL stores the leases of concurrency slots outside its memory.

    In memory, its default, they are lost with a restart, and the server ends every run that holds one.
    """
    name, url = "Prefect leases", os.environ.get("PREFECT_API_URL")
    if not url:
        return Check(name, "ok", "no server set: the temporary one ends with its command")
    request = urllib.request.Request(url.rstrip("/") + "/admin/settings")
    if password := os.environ.get("PREFECT_API_AUTH_STRING"):
        request.add_header("Authorization", f"Basic {base64.b64encode(password.encode()).decode()}")
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
            storage_module = json.load(answer)["server"]["concurrency"]["lease_storage"]
    except (OSError, ValueError, KeyError) as err:
        return Check(name, "warn", f"unknown: the server does not show its settings ({err})", LEASE_ADVICE)
    if storage_module == MEMORY_LEASES:
        return Check(name, "warn", "in memory: a restart of the server ends every run that holds a slot", LEASE_ADVICE)
    return Check(name, "ok", f"kept by {storage_module}: runs survive a restart of the server")


def check_mlflow(root: str) -> Check:
    """Whether the MLflow server of MLFLOW_TRACKING_URI answers, if one is set."""
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        if storage.is_local(root):
            return Check("MLflow", "ok", "none set: an SQLite file under the root")
        return Check(
            "MLflow", "fail", "the root is remote and MLFLOW_TRACKING_URI is not set", "set it to an MLflow server"
        )
    if not uri.startswith("http"):
        return Check("MLflow", "ok", _without_password(uri))
    return _server("MLflow", "MLFLOW_TRACKING_URI", uri, uri.rstrip("/") + "/health")


def _server(name: str, variable: str, address: str, url: str) -> Check:
    address = _without_password(address)
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S):
            return Check(name, "ok", f"{address} answers")
    except urllib.error.HTTPError as err:
        if err.code in (401, 403):
            return Check(name, "warn", f"{address} wants credentials", "set its user and password in the environment")
        return Check(name, "fail", f"{address} answers {err.code}", f"is {variable} right?")
    except (OSError, ValueError) as err:
        reason = getattr(err, "reason", None) or err
        return Check(name, "fail", f"{address} does not answer: {reason}", f"start it, or unset {variable}")


def _without_password(uri: str) -> str:
    return re.sub(r"//[^/@]*@", "//…@", uri)
