#!/usr/bin/env bash
# Ray 2.60.0: a driver that asked for silence, ray.init(…, log_to_driver=False, logging_level="ERROR"), gets other text on
# its standard OUTPUT when a node of the cluster is lost: "(raylet) Raylet is terminated …" and the last lines of the
# raylet's log, in colour, beside whatever the driver prints. One would expect standard error, or nothing. So a program
# that prints its result for another program to read cannot do that from a Ray driver on machines that may be taken
# away: the work itself goes on (every task is done), and the answer arrives between lines of a log.
#
# Needs about two minutes. Exit code 1 if the behaviour is another one.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -q ray==2.60.0
cat >"$place/driver.py" <<'PY'
import os, time
os.environ["RAY_agent_register_timeout_ms"] = "120000"
os.environ["RAY_AUTH_MODE"] = "disabled"
import ray
from ray.cluster_utils import Cluster

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
second = cluster.add_node(num_cpus=1)
ray.init(cluster.address, log_to_driver=False, logging_level="ERROR")

@ray.remote(num_cpus=1)
def square(number):
    time.sleep(0.5)
    return number * number

waiting = [square.remote(number) for number in range(8)]
ray.get(waiting[:2])
cluster.remove_node(second, allow_graceful=False)  # a machine that is taken away
found = ray.get(waiting)
time.sleep(5)
print("RESULT", found, flush=True)
os._exit(0)
PY
cd "$place"
"$place/venv/bin/python" driver.py >out 2>err || true
grep -c . out | sed 's/^/lines on standard output: /'
grep -o 'RESULT.*' out
if grep -q 'raylet.*Raylet is terminated' out; then where="standard output"; else where="elsewhere, or nowhere"; fi
echo "the raylet's log went to: $where"
[ "$where" = "standard output" ] && grep -q 'RESULT \[0, 1, 4, 9, 16, 25, 36, 49\]' out
