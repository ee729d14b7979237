"""The chart: rendered by Helm's own library, every manifest against Kubernetes' schemas, every pod's arguments by the
program's parser, and the config maps laid out as a kubelet does and read by the program."""

import json

import helm_python as helm
import pytest
import yaml
from conftest import ROOT, icestream, parses, run
from schemas import problems

CHART = ROOT / "deploy/kubernetes/icestream"
ROLE = "arn:aws:iam::123456789012:role/icestream-shop"


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """The sample project with the settings for AWS, as values."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("catalog", "transforms", "sql"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "icestream.yaml").write_text((ROOT / "deploy/compose/glue.yaml").read_text())
    ended = run([ROOT / "deploy/kubernetes/project_values.py", folder])
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


def rendered(values):
    with helm.Chart.load(str(CHART)) as chart:
        chart.validate_schema(values)
        texts = chart.render(values=values, name="shop", namespace="lake")
    texts = texts.values() if isinstance(texts, dict) else [texts]
    manifests = [manifest for text in texts for manifest in yaml.safe_load_all(text) if manifest]
    return {(manifest["kind"], manifest["metadata"]["name"]): manifest for manifest in manifests}


def pod_of(manifest):
    spec = manifest["spec"]
    return (spec["jobTemplate"]["spec"] if manifest["kind"] == "CronJob" else spec)["template"]["spec"]


def test_the_linter_finds_nothing(project):
    report = helm.lint(str(CHART), values=project)
    assert "[ERROR]" not in str(report) and "[WARNING]" not in str(report), report


def test_the_manifests(project):
    everything = {
        **project,
        "serviceAccount": {"annotations": {"eks.amazonaws.com/role-arn": ROLE}},
        "secrets": ["kafka", "catalog"],
        "environment": {"BUCKET": "lake"},
        "imagePullSecrets": [{"name": "registry"}],
        "podAnnotations": {"team": "data"},
        "nodeSelector": {"kubernetes.io/arch": "amd64"},
        "tolerations": [{"key": "batch", "operator": "Exists"}],
        "extraVolumes": [{"name": "ca", "secret": {"secretName": "ca"}}],
        "extraVolumeMounts": [{"name": "ca", "mountPath": "/ca", "readOnly": True}],
    }
    for values in (project, everything, {"project": {"inImage": True}}):
        manifests = rendered(values)
        for name, manifest in manifests.items():
            assert problems(manifest) == [], name
        kinds = {"Deployment", "PodDisruptionBudget", "CronJob", "ServiceAccount", "NetworkPolicy"}
        assert {kind for kind, _ in manifests} - {"ConfigMap"} == kinds
        for name in (("Deployment", "shop-run"), ("CronJob", "shop-maintain")):
            pod = pod_of(manifests[name])
            [container] = pod["containers"]
            assert parses(container["args"]) is None, container["args"]
            assert "command" not in container, "the image's entry point is the program"
            assert container["securityContext"]["readOnlyRootFilesystem"] and pod["securityContext"]["runAsNonRoot"]
            assert pod["serviceAccountName"] == "shop" and not pod["automountServiceAccountToken"]
            assert pod["terminationGracePeriodSeconds"] == 120
            volumes = {volume["name"] for volume in pod["volumes"]}
            assert {mount["name"] for mount in container["volumeMounts"]} == volumes
            mapped = {volume["configMap"]["name"] for volume in pod["volumes"] if "configMap" in volume}
            made = {name for kind, name in manifests if kind == "ConfigMap"}
            assert made <= mapped and bool(made) == bool(values["project"].get("files"))
    assert rendered(everything)["ServiceAccount", "shop"]["metadata"]["annotations"]["eks.amazonaws.com/role-arn"] == ROLE
    [container] = pod_of(rendered(everything)["Deployment", "shop-run"])["containers"]
    assert container["envFrom"] == [{"secretRef": {"name": "kafka"}}, {"secretRef": {"name": "catalog"}}]


def test_the_probes_ask_where_the_program_listens(project):
    manifests = rendered(project)
    template = manifests["Deployment", "shop-run"]["spec"]["template"]
    [container] = template["spec"]["containers"]
    assert container["ports"] == [{"name": "metrics", "containerPort": 9464}]
    [listen] = [of["value"] for of in container["env"] if of["name"] == "ICESTREAM_METRICS__LISTEN"]
    assert listen == "0.0.0.0:9464"
    paths = {"startupProbe": "/livez", "livenessProbe": "/livez", "readinessProbe": "/readyz"}
    for probe, path in paths.items():
        assert container[probe]["httpGet"] == {"path": path, "port": "metrics"}
        assert container[probe]["failureThreshold"] >= 3 and container[probe]["timeoutSeconds"] >= 5
    marks = template["metadata"]["annotations"]
    assert (marks["prometheus.io/scrape"], marks["prometheus.io/port"]) == ("true", "9464")
    [rule] = manifests["NetworkPolicy", "shop"]["spec"]["ingress"]
    assert rule == {"from": [{"namespaceSelector": {}}], "ports": [{"protocol": "TCP", "port": 9464}]}
    [container] = pod_of(manifests["CronJob", "shop-maintain"])["containers"]
    assert not {"ports", *paths} & container.keys() and "METRICS" not in str(container["env"])


def test_metrics_as_the_values_say(project):
    monitor = {"enabled": True, "interval": "15s", "labels": {"release": "prometheus"}}
    values = {**project, "metrics": {"port": 9999, "podMonitor": monitor}, "networkPolicy": {"metricsFrom": []}}
    manifests = rendered(values)
    template = manifests["Deployment", "shop-run"]["spec"]["template"]
    labels = template["metadata"]["labels"]
    monitor = manifests["PodMonitor", "shop-run"]
    assert monitor["metadata"]["labels"]["release"] == "prometheus"
    assert monitor["spec"]["selector"]["matchLabels"].items() <= labels.items()
    [endpoint] = monitor["spec"]["podMetricsEndpoints"]
    assert endpoint == {"port": "metrics", "path": "/metrics", "interval": "15s"}
    assert template["spec"]["containers"][0]["ports"] == [{"name": "metrics", "containerPort": 9999}]
    assert "prometheus.io/scrape" not in template["metadata"]["annotations"], "it would be scraped twice"
    assert manifests["NetworkPolicy", "shop"]["spec"]["ingress"] == []
    manifests = rendered({**project, "metrics": {"enabled": False, "podMonitor": {"enabled": True}}})
    [container] = pod_of(manifests["Deployment", "shop-run"])["containers"]
    assert not {"ports", "livenessProbe", "readinessProbe", "startupProbe"} & container.keys()
    assert manifests["NetworkPolicy", "shop"]["spec"]["ingress"] == []
    assert ("PodMonitor", "shop-run") not in manifests


def test_what_is_switched_off(project):
    off = {"run": {"enabled": False}, "maintain": {"enabled": False}, "networkPolicy": {"enabled": False}}
    kinds = {kind for kind, _ in rendered({**project, **off, "serviceAccount": {"create": False}})}
    assert kinds == {"ConfigMap"}


@pytest.mark.parametrize(
    "values, told",
    [
        ({}, "no icestream.yaml"),
        ({"project": {"files": {"icestream.yml": ""}}}, "icestream.yml"),
        ({"run": {"replica": 2}}, "replica"),
        ({"metrics": {"port": 80}}, "port"),
        ({"probes": {"liveness": {"failureTreshold": 3}}}, "failureTreshold"),
    ],
)
def test_wrong_values_are_refused(values, told):
    with pytest.raises(helm.HelmError, match=told):
        rendered(values)


def test_a_wrong_manifest_is_found(project):
    deployment = rendered(project)["Deployment", "shop-run"]
    pod_of(deployment)["containers"][0]["readinesProbe"] = {}
    pod_of(deployment)["terminationGracePeriodSeconds"] = "soon"
    assert len(problems(deployment)) == 2
    assert problems({"apiVersion": "policy/v1beta1", "kind": "PodDisruptionBudget"})


def test_a_changed_project_is_a_new_pod(project):
    changed = {"project": {"files": {**project["project"]["files"], "catalog/orders.yaml": "topic: x\n"}}}
    marks = [
        rendered(values)["Deployment", "shop-run"]["spec"]["template"]["metadata"]["annotations"]["checksum/project"]
        for values in (project, project, changed)
    ]
    assert marks[0] == marks[1] != marks[2]


def test_the_program_reads_what_is_mounted(project, tmp_path):
    manifests = rendered({**project, "environment": {"BUCKET": "lake"}})
    pod = pod_of(manifests["Deployment", "shop-run"])
    maps = {volume["name"]: volume["configMap"]["name"] for volume in pod["volumes"] if "configMap" in volume}
    for mount in pod["containers"][0]["volumeMounts"]:
        data = manifests.get(("ConfigMap", maps.get(mount["name"])), {"data": {}})["data"]
        target = tmp_path / mount["mountPath"].lstrip("/")
        if "subPath" in mount:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(data[mount["subPath"]])
            continue
        # A kubelet writes a version's files into a hidden folder, and links to them.
        version = target / "..2025_01_01"
        version.mkdir(parents=True)
        (target / "..data").symlink_to(version.name)
        for name, text in data.items():
            (version / name).write_text(text)
            (target / name).symlink_to(f"..data/{name}")
    environment = {"BUCKET": "lake", "AWS_REGION": "eu-central-1", "KAFKA_BROKERS": "broker:9092"}
    checked = icestream("--project", tmp_path / "project", "check", "--offline", env=environment)
    assert checked.returncode == 0, checked.stderr
    assert f"{len(project['project']['files'])} files, no problem" in checked.stdout
