"""sweep() on a Ray cluster of two nodes on this machine, one of which dies in mid-sweep.

Ray starts many processes of its own, so all of it happens in one script, in one process group that
is ended afterwards.
"""

import os
import signal
import subprocess
import sys
from contextlib import suppress

import pytest

pytest.importorskip("ray")

SCRIPT = """
import os, threading, time
os.environ["RAY_agent_register_timeout_ms"] = "120000"
os.environ["RAY_AUTH_MODE"] = "disabled"
import pandas as pd
import ray
from ray.cluster_utils import Cluster
import softar_lab as lab

def cell(a, log):
    node = ray.get_runtime_context().get_node_id()
    with open(log, "a") as file:
        file.write(f"{a} {node}\\n")
    time.sleep(0.05)
    if a == 7:
        raise RuntimeError("unlucky")
    return {"third": a / 3}

def plain(a, log):
    return {"third": a / 3} if a != 7 else 1 / 0

if __name__ == "__main__":
    import sys
    folder = sys.argv[1]
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    second = cluster.add_node(num_cpus=1)
    ray.init(cluster.address, log_to_driver=False, logging_level="ERROR")
    log, grid = folder + "/log", {"a": range(60)}

    def kill():
        while not (os.path.exists(log) and len(set(l.split()[1] for l in open(log))) == 2):
            time.sleep(0.02)
        cluster.remove_node(second, allow_graceful=False)

    threading.Thread(target=kill, daemon=True).start()
    frame = lab.sweep(cell, grid, common={"log": log}, out=folder, backend="ray", progress=False)
    ran = [line.split() for line in open(log)]
    here = lab.sweep(plain, grid, common={"log": log}, progress=False)
    with open(folder + "/answer", "w") as answer:  # standard output is Ray's, too: findings/
        print("nodes", len({node for _, node in ran}), file=answer)
        print("equal", frame.third.equals(here.third), list(frame.a) == list(range(60)), file=answer)
        print("problems", frame.problem[frame.problem != ""].to_dict(), file=answer)
        print("again", len(ran) - 60 <= 4, file=answer)
"""


@pytest.mark.slow
def test_a_node_that_dies_costs_only_what_it_was_doing(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    run = subprocess.Popen(
        [sys.executable, script, tmp_path],
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        run.wait(timeout=600)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(run.pid, signal.SIGKILL)
    assert (tmp_path / "answer").read_text().splitlines() == [
        "nodes 2",
        "equal True True",
        "problems {7: 'RuntimeError: unlucky'}",
        "again True",
    ]
