"""Run a sweep on a Ray cluster, its journal in a bucket: python -m softar_studies.cluster

    python -m softar_studies.cluster MODULE:CELL MODULE:GRID --out s3://BUCKET/PREFIX

The driver works in a folder of its own. Before it begins it takes the journal from the bucket, and
while it works it puts the journal back about once a minute, and at the end the table. So a driver
that is lost with its node loses a minute at most, and the same command goes on. The rights come
from the pod's identity, or from wherever botocore finds them. `--out FOLDER` works without a bucket.
"""

import argparse
import importlib
import threading
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from softar_lab import sweep

FILES = ("cells.jsonl", "table.csv", "table.json")


class Bucket:
    """A place in S3 that holds the files of one sweep.

    Args:
        address: "s3://bucket/prefix".
        options: those of botocore's client, such as endpoint_url.

    Raises:
        ValueError: where the address is none.
    """

    def __init__(self, address: str, **options: Any):
        from botocore.session import get_session

        scheme, _, rest = address.partition("://")
        self.name, _, prefix = rest.partition("/")
        if scheme != "s3" or not self.name:
            raise ValueError(f"the place must look like s3://bucket/prefix, not {address!r}")
        self.prefix = prefix.strip("/")
        self.client = get_session().create_client("s3", **options)

    def fetch(self, folder: Path) -> None:
        """Take the journal, where there is one."""
        try:
            found = self.client.get_object(Bucket=self.name, Key=self._key(FILES[0]))
        except self.client.exceptions.NoSuchKey:
            return
        folder.mkdir(parents=True, exist_ok=True)
        (folder / FILES[0]).write_bytes(found["Body"].read())

    def store(self, folder: Path) -> None:
        """Put back the files that there are."""
        for name in FILES:
            if (folder / name).exists():
                content = (folder / name).read_bytes()
                self.client.put_object(Bucket=self.name, Key=self._key(name), Body=content)

    def _key(self, name: str) -> str:
        return f"{self.prefix}/{name}" if self.prefix else name


def named(path: str) -> Any:
    """What "module:name" names."""
    module, _, name = path.partition(":")
    return vars(importlib.import_module(module))[name]


def run(cell: str, grid: str, bucket: Bucket, every: float = 60.0, **options: Any) -> None:
    """Sweep with the journal in a bucket; it is stored while the sweep runs, and after an error."""
    with TemporaryDirectory() as folder:
        folder, done = Path(folder), threading.Event()
        bucket.fetch(folder)

        def store() -> None:
            while not done.wait(every):
                bucket.store(folder)

        thread = threading.Thread(target=store, daemon=True)
        thread.start()
        try:
            sweep(named(cell), named(grid), out=folder, **options)
        finally:
            done.set()
            thread.join()
            bucket.store(folder)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cell", metavar="MODULE:CELL")
    parser.add_argument("grid", metavar="MODULE:GRID")
    parser.add_argument("--out", required=True, help="s3://BUCKET/PREFIX or a folder")
    parser.add_argument("--backend", default="ray", choices=["here", "cores", "ray"])
    parser.add_argument("--address", default="auto", help="the Ray cluster; auto: the one around")
    given = parser.parse_args(arguments)
    options = {"backend": given.backend}
    if given.backend == "ray":
        options["address"] = given.address
    if given.out.startswith("s3:"):
        run(given.cell, given.grid, Bucket(given.out), **options)
    else:
        sweep(named(given.cell), named(given.grid), out=given.out, **options)


if __name__ == "__main__":
    main()
