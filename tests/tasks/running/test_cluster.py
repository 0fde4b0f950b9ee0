"""An embedded Ray leaves nothing behind."""

import os
import subprocess
import sys

import pytest

SCRIPT = """
from tasks.running.cluster import connect
from tasks.running.run import RayConfig
import os, ray
connect(RayConfig(num_cpus=1))
folder = ray._private.worker._global_node.get_session_dir_path()
assert ray.get(ray.remote(lambda: 7).remote()) == 7
print(oct(os.stat(folder).st_mode)[-3:], folder, flush=True)
"""


@pytest.mark.ray
def test_the_folder_of_an_embedded_ray_is_for_its_owner_and_goes_with_its_driver():
    result = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=300, check=True)
    mode, folder = result.stdout.strip().splitlines()[-1].split()
    assert mode == "700"
    assert "session_" in folder
    assert not os.path.exists(folder)


LISTENERS = """
import psutil
from tasks.running.cluster import connect
from tasks.running.run import RayConfig
connect(RayConfig(num_cpus=1))
me = psutil.Process()
sockets = [socket for process in [me, *me.children(recursive=True)] for socket in process.net_connections("inet")]
print("LISTENS", *{socket.laddr.ip for socket in sockets if socket.status == psutil.CONN_LISTEN}, flush=True)
"""


@pytest.mark.ray
def test_an_embedded_ray_listens_on_loopback_alone():
    result = subprocess.run([sys.executable, "-c", LISTENERS], capture_output=True, text=True, timeout=300, check=True)
    addresses = result.stdout.split("LISTENS")[1].split()
    assert addresses
    assert all(address.removeprefix("::ffff:").startswith("127.") or address == "::1" for address in addresses)
