"""The files in deploy/: right as they are, and each deliberate mistake named; a sweep whose journal
lives in a bucket.
"""

import shutil
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from softar_lab.core.cells import load_results

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tools"))
deploy_check = pytest.importorskip("deploy_check")
pytest.importorskip("kubernetes_validate")


def test_the_files_are_right():
    assert deploy_check.problems(ROOT / "deploy") == []


MISTAKES = [
    (
        "rayjob.yaml",
        "shutdownAfterJobFinishes: true",
        "shutdownAfterJobFinishes: false",
        "would stay, and cost",
    ),
    (
        "rayjob.yaml",
        "  ttlSecondsAfterFinished",
        "  deletionStrategy: {onSuccess: {policy: DeleteCluster}}\n  ttlSecondsAfterFinished",
        "exclude each other",
    ),
    (
        "rayjob.yaml",
        "ttlSecondsAfterFinished",
        "ttlSecondsAfterFinish",
        "no field 'ttlSecondsAfterFinish'",
    ),
    (
        "rayjob.yaml",
        "name: softar-sweep\n  namespace",
        "name: Softar_Sweep\n  namespace",
        "must be a DNS label",
    ),
    (
        "rayjob.yaml",
        'rayVersion: "2.60.0"',
        'rayVersion: "2.51.0"',
        "needs rayVersion 2.52.0 or later",
    ),
    (
        "rayjob.yaml",
        "      mode: token",
        "      mode: token\n      enableK8sTokenAuth: true",
        "is refused for a RayJob",
    ),
    ("rayjob.yaml", "groupName: spot\n        replicas", "replicas", "lacks groupName"),
    (
        "rayjob.yaml",
        "maxReplicas: 100",
        "maxReplicas: -1",
        "minReplicas <= replicas <= maxReplicas",
    ),
    ("rayjob.yaml", 'num-cpus: "0"', "num-cpus: 0", "must be a text: quote 0"),
    (
        "rayjob.yaml",
        "terminationGracePeriodSeconds: 60",
        "terminationGracePeriod: 60",
        "terminationGracePeriod",
    ),
    (
        "rayjob.yaml",
        "- {key: softar-lab/spot, operator: Exists, effect: NoSchedule}",
        "[]",
        "does not tolerate the taints",
    ),
    (
        "rayjob.yaml",
        "softar-lab/role: head",
        "softar-lab/role: worker",
        "no node group has its labels",
    ),
    (
        "rayjob.yaml",
        "serviceAccountName: softar-sweep\n          nodeSelector",
        "nodeSelector",
        "serviceAccountName must be",
    ),
    (
        "rayjob.yaml",
        "activeDeadlineSeconds: 86400",
        "activeDeadlineSeconds: 0",
        "at least 1, not 0",
    ),
    ("Containerfile", "ray[default]==2.60.0", "ray[default]==2.59.0", "the image installs 2.59.0"),
    ("cluster.yaml", 'version: "1.34"', "version: 1.34", "must be a text: quote it"),
    (
        "cluster.yaml",
        "labels: {softar-lab/role: head}",
        "labels: {softar-lab/role: head}\n    spot: true",
        "needs several instanceTypes",
    ),
    (
        "cluster.yaml",
        "serviceAccountName: softar-sweep",
        "serviceAccountName: another",
        "gives no rights",
    ),
    ("namespace.yaml", "  name: softar-sweep", "  nam: softar-sweep", "Additional properties"),
]


@pytest.mark.parametrize(
    ("file", "right", "wrong", "named"), MISTAKES, ids=[m[3] for m in MISTAKES]
)
def test_a_mistake_is_named(tmp_path, file, right, wrong, named):
    folder = shutil.copytree(ROOT / "deploy", tmp_path / "deploy")
    text = (folder / file).read_text()
    assert right in text
    (folder / file).write_text(text.replace(right, wrong, 1))
    found = deploy_check.problems(folder)
    assert any(named in problem for problem in found), found


@pytest.fixture
def storage(monkeypatch):
    """A stand-in for S3 on this machine: (its address, what it holds by path)."""
    held = {}

    class Handler(BaseHTTPRequestHandler):
        def do_PUT(self):
            size = int(self.headers["Content-Length"])
            held[self.path] = self.rfile.read(size)
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def do_GET(self):
            content = held.get(self.path)
            missing = b"<Error><Code>NoSuchKey</Code><Message>none</Message></Error>"
            self.send_response(404 if content is None else 200)
            body = missing if content is None else content
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *words):
            pass

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "nothing")
    monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", held
    server.shutdown()
    server.server_close()


CALLS = []


def counted(a):
    CALLS.append(a)
    return {"square": a * a}


GRID, MORE = {"a": [1, 2]}, {"a": [1, 2, 3]}


def test_a_journal_in_a_bucket_goes_on(storage, tmp_path):
    pytest.importorskip("botocore")
    from softar_studies import cluster

    address, held = storage
    bucket = cluster.Bucket("s3://tables/widths", endpoint_url=address, region_name="eu-central-1")
    options = {"version": "1", "progress": False}
    CALLS.clear()
    cluster.run(f"{__name__}:counted", f"{__name__}:GRID", bucket, **options)
    cluster.run(f"{__name__}:counted", f"{__name__}:MORE", bucket, **options)
    assert CALLS == [1, 2, 3]
    assert {path.rpartition("/")[2] for path in held} == set(cluster.FILES)
    for path, content in held.items():
        (tmp_path / path.rpartition("/")[2]).write_bytes(content)
    assert load_results(tmp_path / "table.csv")[0].square.tolist() == [1, 4, 9]


def test_what_is_no_bucket_is_refused():
    from softar_studies.cluster import Bucket

    with pytest.raises(ValueError, match="must look like s3://bucket/prefix, not 'gs://x'"):
        Bucket("gs://x")
