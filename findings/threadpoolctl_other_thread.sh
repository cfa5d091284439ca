#!/usr/bin/env bash
# threadpoolctl 3.8.0 with OpenBLAS (NumPy's wheel): limits belong to one Python thread. The first thread that sets a
# limit becomes the one OpenBLAS listens to while it lives; what another thread sets, or *restores*, does nothing, and
# says nothing. So a limit object made in one thread and restored in another (a server's or a panel's worker) leaves
# BLAS at one thread for good, and `threadpool_limits(1)` in a worker has no effect while another thread holds a limit.
# `with` on the thread that made the limit restores it.
#
# Seen with numpy 2.4.2 and threadpoolctl 3.8.0 on two processors: 2 threads before, 1 inside, 1 after a restore by
# another thread, 2 after a restore by the same thread.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "numpy==2.4.2" "threadpoolctl==3.8.0"
OPENBLAS_NUM_THREADS=2 "$folder/venv/bin/python" - <<'PY'
import threading

import numpy  # noqa: F401  (brings OpenBLAS)
from threadpoolctl import ThreadpoolController

controller = ThreadpoolController()

def count():
    return [pool["num_threads"] for pool in controller.info() if pool["user_api"] == "blas"][0]

before = count()
limit = controller.limit(limits=1, user_api="blas")
inside = count()
other = threading.Thread(target=limit.restore_original_limits)
other.start()
other.join()
by_other = count()
limit.restore_original_limits()
by_same = count()
print(f"before {before}, limited {inside}, restored by another thread {by_other}, by the same thread {by_same}")
assert before > 1, "needs two processors"
assert (inside, by_other, by_same) == (1, 1, before), "a limit can now be restored by another thread"
PY
