"""An embedded Ray leaves nothing behind."""

import os
import subprocess
import sys

import pytest

SCRIPT = """
from tasks.running.cluster import connect
from tasks.running.run import RayConfig
import ray
connect(RayConfig(num_cpus=1))
print(ray._private.worker._global_node.get_session_dir_path(), flush=True)
"""


@pytest.mark.ray
def test_the_folder_of_an_embedded_ray_goes_with_its_driver():
    result = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=300, check=True)
    folder = result.stdout.strip().splitlines()[-1]
    assert "session_" in folder
    assert not os.path.exists(folder)
