"""What every run must survive: `kills.py`, and what is asked of its report."""

import json
import subprocess
import sys
from pathlib import Path


def killed_and_resumed(folder: Path, what: str) -> None:
    """Kill trainings in `folder`, and hold them to the bits of one that nobody killed.

    Args:
        folder: where they save.
        what: an objective, or "rewards".
    """
    command = [sys.executable, str(Path(__file__).with_name("kills.py")), "training"]
    done = subprocess.run(
        [*command, str(folder), what], capture_output=True, text=True, check=False, timeout=900
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert report["kills"] >= 10
    assert report["file_kills"] >= 20
    assert report["different"] == []
    assert report["saved_is_trained"]
