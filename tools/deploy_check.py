"""Check the files in deploy/ offline: python tools/deploy_check.py [FOLDER]

Standard objects and all pods are compared with the schemas of Kubernetes, the RayJob and the
cluster's config with the fields they have, and all with what the KubeRay operator refuses besides
(its rules, at version 1.5, stand at each check) and with each other: image, Ray's version, service
account, node labels, taints. What only a cluster can tell is not checked: quotas, names in the
registry, the rights of the person who starts it.
"""

import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
KUBERNETES = "1.34"
NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")  # a DNS-1035 label
LONGEST_NAME = 47  # KubeRay: a RayJob's name, so that the names made from it fit

JOB = {
    "activeDeadlineSeconds", "authOptions", "backoffLimit", "clusterSelector", "deletionStrategy",
    "entrypoint", "entrypointNumCpus", "entrypointNumGpus", "entrypointResources", "jobId",
    "managedBy", "metadata", "preRunningDeadlineSeconds", "rayClusterSpec", "runtimeEnvYAML",
    "shutdownAfterJobFinishes", "submissionMode", "submitterConfig", "submitterPodTemplate",
    "suspend", "ttlSecondsAfterFinished",
}  # fmt: skip
CLUSTER = {
    "authOptions", "autoscalerOptions", "enableInTreeAutoscaling", "gcsFaultToleranceOptions",
    "headGroupSpec", "headServiceAnnotations", "managedBy", "rayVersion", "suspend",
    "upgradeStrategy", "workerGroupSpecs",
}  # fmt: skip
GROUP = {"labels", "rayStartParams", "resources", "template"}
HEAD = GROUP | {"enableIngress", "headService", "serviceType"}
WORKER = GROUP | {
    "groupName", "idleTimeoutSeconds", "maxReplicas", "minReplicas", "numOfHosts", "replicas",
    "scaleStrategy", "suspend",
}  # fmt: skip
EKSCTL = {
    "addons", "apiVersion", "availabilityZones", "cloudWatch", "iam", "kind", "managedNodeGroups",
    "metadata", "vpc",
}  # fmt: skip
NODES = {
    "amiFamily", "availabilityZones", "desiredCapacity", "iam", "instanceType", "instanceTypes",
    "labels", "maxSize", "minSize", "name", "privateNetworking", "spot", "tags", "taints",
    "volumeSize",
}  # fmt: skip


def problems(folder: Path) -> list[str]:
    """What is wrong with a folder's files, one sentence each; none where all is right."""
    try:
        objects = [
            (path.name, one)
            for path in sorted(folder.glob("*.yaml"))
            for one in yaml.safe_load_all(path.read_text(encoding="utf-8"))
        ]
    except yaml.YAMLError as error:
        return [f"no YAML: {error}"]
    found = [f"{file}: {problem}" for file, one in objects for problem in _object(one)]
    kinds = {one.get("kind"): one for _, one in objects}
    if missing := [
        kind for kind in ("RayJob", "ServiceAccount", "ClusterConfig") if kind not in kinds
    ]:
        return [*found, f"no object of kind {', '.join(missing)}"]
    if found:  # what the files say about each other can be read only in right ones
        return found
    image = (folder / "Containerfile").read_text(encoding="utf-8")
    return list(_together(kinds["RayJob"], kinds["ServiceAccount"], kinds["ClusterConfig"], image))


def _object(one: dict[str, Any]) -> Iterator[str]:
    match one.get("kind"):
        case "RayJob":
            yield from _job(one)
        case "ClusterConfig":
            yield from _eksctl(one)
        case _:
            yield from _standard(one)


def _standard(one: dict[str, Any]) -> Iterator[str]:
    """An object of Kubernetes' own, by its schema."""
    import kubernetes_validate

    try:
        kubernetes_validate.validate(one, KUBERNETES, strict=True)
    except kubernetes_validate.SchemaNotFoundError as error:
        yield error.message
    except kubernetes_validate.ValidationError as error:
        place = ".".join(str(part) for part in error.path)
        yield f"{one.get('kind')} {place}: {error.message}"


def _unknown(where: str, given: dict[str, Any], known: set[str]) -> Iterator[str]:
    for name in sorted(set(given) - known):
        yield f"{where} has no field {name!r}"


def _job(job: dict[str, Any]) -> Iterator[str]:
    """A RayJob, as the operator checks it (ValidateRayJobMetadata, ValidateRayJobSpec)."""
    spec, name = job.get("spec", {}), job.get("metadata", {}).get("name", "")
    if job.get("apiVersion") != "ray.io/v1":
        yield f"apiVersion must be ray.io/v1, not {job.get('apiVersion')}"
    if not NAME.fullmatch(name) or len(name) > LONGEST_NAME:
        yield f"the name {name!r} must be a DNS label of at most {LONGEST_NAME} characters"
    yield from _unknown("RayJob.spec", spec, JOB)
    if not spec.get("entrypoint"):
        yield "RayJob.spec.entrypoint is missing"
    ends = spec.get("shutdownAfterJobFinishes", False)
    if not ends:
        yield "shutdownAfterJobFinishes must be true: the cluster would stay, and cost, for ever"
    if spec.get("ttlSecondsAfterFinished", 0) and not ends:
        yield "ttlSecondsAfterFinished needs shutdownAfterJobFinishes"
    if ends and spec.get("deletionStrategy"):
        yield "shutdownAfterJobFinishes and deletionStrategy exclude each other"
    for field, least in (
        ("ttlSecondsAfterFinished", 0),
        ("activeDeadlineSeconds", 1),
        ("backoffLimit", 0),
    ):
        value = spec.get(field, least)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            yield f"{field} must be a whole number of at least {least}, not {value!r}"
    try:
        yaml.safe_load(spec.get("runtimeEnvYAML", ""))
    except yaml.YAMLError:
        yield "runtimeEnvYAML is no YAML"
    if "rayClusterSpec" not in spec:
        yield "RayJob.spec.rayClusterSpec is missing"
    else:
        yield from _cluster(spec["rayClusterSpec"])


def _cluster(spec: dict[str, Any]) -> Iterator[str]:
    """A RayCluster's spec (ValidateRayClusterSpec) and the pods it describes."""
    yield from _unknown("rayClusterSpec", spec, CLUSTER)
    auth, version = spec.get("authOptions", {}), spec.get("rayVersion", "")
    if "enableK8sTokenAuth" in auth:
        yield "authOptions.enableK8sTokenAuth is refused for a RayJob"
    if auth.get("mode") == "token" and not _at_least(version, (2, 52)):
        yield f"authOptions.mode 'token' needs rayVersion 2.52.0 or later, not {version!r}"
    head, workers = spec.get("headGroupSpec", {}), spec.get("workerGroupSpecs", [])
    yield from _unknown("headGroupSpec", head, HEAD)
    yield from _pod("headGroupSpec", head, spec)
    names = [group.get("groupName") for group in workers]
    if len(set(names)) < len(names):
        yield "two worker groups have one name"
    for group in workers:
        where = f"worker group {group.get('groupName')!r}"
        yield from _unknown(where, group, WORKER)
        if missing := {"groupName", "minReplicas", "maxReplicas", "template"} - set(group):
            yield f"{where} lacks {', '.join(sorted(missing))}"
        elif (
            not 0
            <= group["minReplicas"]
            <= group.get("replicas", group["minReplicas"])
            <= group["maxReplicas"]
        ):
            yield f"{where}: minReplicas <= replicas <= maxReplicas does not hold"
        yield from _pod(where, group, spec)


def _pod(where: str, group: dict[str, Any], spec: dict[str, Any]) -> Iterator[str]:
    """A group's pod, as Kubernetes and the operator check it."""
    start, pod = group.get("rayStartParams", {}), group.get("template", {}).get("spec", {})
    if not pod.get("containers"):
        yield f"{where} should have at least one container"
        return
    for name, value in start.items():
        if not isinstance(value, str):
            yield f"{where}: rayStartParams[{name!r}] must be a text: quote {value!r}"
    if "labels" in start:
        yield f"{where}: labels belong to the group, not to rayStartParams"
    if group.get("resources") and set(start) & {"num-cpus", "num-gpus", "memory", "resources"}:
        yield f"{where}: resources stand in rayStartParams and in resources: use one"
    if spec.get("enableInTreeAutoscaling") and pod.get("restartPolicy", "Never") != "Never":
        yield f"{where}: restartPolicy must be Never or unset with autoscaling"
    limits = pod["containers"][0].get("resources", {})
    if not limits.get("requests") or not limits.get("limits"):
        yield f"{where}: its container needs resource requests and limits, by which Ray counts"
    whole = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": pod}
    yield from (f"{where}: {problem}" for problem in _standard(whole))


def _eksctl(config: dict[str, Any]) -> Iterator[str]:
    yield from _unknown("ClusterConfig", config, EKSCTL)
    if config.get("apiVersion") != "eksctl.io/v1alpha5":
        yield f"apiVersion must be eksctl.io/v1alpha5, not {config.get('apiVersion')}"
    if not isinstance(config.get("metadata", {}).get("version"), str):
        yield "metadata.version must be a text: quote it, or 1.30 becomes 1.3"
    for group in config.get("managedNodeGroups", []):
        where = f"node group {group.get('name')!r}"
        yield from _unknown(where, group, NODES)
        if (
            not group.get("minSize", 0)
            <= group.get("desiredCapacity", 0)
            <= group.get("maxSize", 0)
        ):
            yield f"{where}: minSize <= desiredCapacity <= maxSize does not hold"
        if group.get("spot") and len(group.get("instanceTypes", [])) < 2:
            yield f"{where}: spot capacity needs several instanceTypes to choose from"


def _together(
    job: dict[str, Any], account: dict[str, Any], config: dict[str, Any], image: str
) -> Iterator[str]:
    """What the files say about each other."""
    spec = job.get("spec", {}).get("rayClusterSpec", {})
    groups = {"headGroupSpec": spec.get("headGroupSpec", {})}
    groups |= {f"worker group {g.get('groupName')!r}": g for g in spec.get("workerGroupSpecs", [])}
    pods = {where: g.get("template", {}).get("spec", {}) for where, g in groups.items()}
    # 1) versions: the image's Ray is the one that the job names, and one the project allows
    named = re.search(r"ray\[default\]==([\d.]+)", image)
    if not named or named[1] != spec.get("rayVersion"):
        yield f"rayVersion is {spec.get('rayVersion')}, and the image installs {named and named[1]}"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (wanted,) = project["optional-dependencies"]["cluster"]
    if not _at_least(spec.get("rayVersion", ""), tuple(map(int, re.findall(r"\d+", wanted)[:2]))):
        yield f"rayVersion is {spec.get('rayVersion')}, and the project asks for {wanted}"
    images = {c.get("image") for pod in pods.values() for c in pod.get("containers", [])}
    if len(images) > 1:
        yield f"head and workers have different images: {sorted(map(str, images))}"
    # 2) the pods' identity
    for where, pod in pods.items():
        if pod.get("serviceAccountName") != account["metadata"]["name"]:
            yield f"{where}: serviceAccountName must be {account['metadata']['name']!r}"
    place = (account["metadata"].get("namespace"), account["metadata"]["name"])
    bound = [
        (one.get("namespace"), one.get("serviceAccountName"))
        for one in config.get("iam", {}).get("podIdentityAssociations", [])
    ]
    if place not in bound:
        yield f"the cluster gives no rights to the service account {'/'.join(map(str, place))}"
    if job.get("metadata", {}).get("namespace") != place[0]:
        yield "the job and its service account are in different namespaces"
    # 3) each pod finds nodes that take it; the head's are not spot
    for where, pod in pods.items():
        fitting = [
            nodes
            for nodes in config.get("managedNodeGroups", [])
            if pod.get("nodeSelector", {}).items() <= nodes.get("labels", {}).items()
            and all(_tolerated(t, pod) for t in nodes.get("taints", []))
        ]
        if not fitting:
            yield f"{where}: no node group has its labels, or it does not tolerate the taints"
        elif where == "headGroupSpec" and any(nodes.get("spot") for nodes in fitting):
            yield "headGroupSpec may land on spot capacity: the sweep would end with its node"


def _tolerated(taint: dict[str, str], pod: dict[str, Any]) -> bool:
    return any(
        one.get("key") == taint["key"] and one.get("effect") in (None, taint["effect"])
        for one in pod.get("tolerations", [])
    )


def _at_least(version: str, least: tuple[int, ...]) -> bool:
    return tuple(int(part) for part in re.findall(r"\d+", version)[: len(least)]) >= least


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "deploy"
    found = problems(folder)
    print("\n".join(found) or f"{folder.name}/: all files are right, as far as can be told offline")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
