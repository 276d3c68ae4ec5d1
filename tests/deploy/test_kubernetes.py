"""The manifests: valid by Kubernetes' own schemas, and of one mind with the image and the server."""

import shutil
import subprocess
from typing import Any

import kubernetes_validate
import pytest
import recipes
import yaml

from daguerre.http.routes import ROUTES
from daguerre.settings import Settings

LABELS = {"app.kubernetes.io/name": "daguerre"}
#: Kinds that are not Kubernetes' own.
FOREIGN = {"ScaledObject"}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("version", ["1.30", "1.33"])
def test_by_the_schemas(version: str) -> None:
    """Every object is valid in these versions, strictly: a field that is not known is an error."""
    own = [found for _, found in recipes.manifests() if found["kind"] not in FOREIGN]
    assert len(own) >= 12
    for found in own:
        kubernetes_validate.validate(found, version, strict=True)
    spoilt = own[0] | {"sepc": {}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(spoilt, version, strict=True)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.skipif(shutil.which("kubectl") is None, reason="needs kubectl")
@pytest.mark.parametrize("folder", ["single", "scaled", "hpa", "keda"])
def test_what_would_be_applied(folder: str) -> None:
    """kustomize builds each folder: what lies in it and in base, each object once, valid still."""
    command = ["kubectl", "kustomize", str(recipes.K8S / folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    built = list(yaml.safe_load_all(done.stdout))
    names = [(found["kind"], found["metadata"]["name"]) for found in built]
    assert len(set(names)) == len(names)
    wanted = [
        found
        for each in {"base", folder, "single" if folder == "single" else "scaled"}
        for _, found in recipes.manifests(each)
    ]
    assert sorted(names) == sorted((found["kind"], found["metadata"]["name"]) for found in wanted)
    for found in built:
        if found["kind"] not in FOREIGN:
            kubernetes_validate.validate(found, "1.33", strict=True)


def _pods() -> dict[str, Any]:
    (deployment,), (several,) = recipes.objects("Deployment"), recipes.objects("StatefulSet")
    return {"Deployment": deployment["spec"], "StatefulSet": several["spec"]}


PODS = _pods()


@pytest.mark.parametrize("spec", PODS.values(), ids=PODS)
def test_pods(spec: Any) -> None:
    """Not run by root, nothing to write to but volumes, the image's own paths, probes that are routes, time to end."""
    template = spec["template"]
    assert spec["selector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
    pod = template["spec"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["terminationGracePeriodSeconds"] > Settings().grace_timeout + 10
    stage = dict(recipes.last_stage())
    assert f"{pod['securityContext']['runAsUser']}:{pod['securityContext']['runAsGroup']}" == stage["USER"]
    (container,) = pod["containers"]
    for each in (container, *pod["initContainers"]):
        context = each["securityContext"]
        assert context["readOnlyRootFilesystem"]
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert context["allowPrivilegeEscalation"] is False
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    assert set(yaml.safe_load(stage["VOLUME"])) <= set(mounts)
    assert container["ports"][0]["containerPort"] == int(stage["EXPOSE"])
    paths = {getattr(route, "path", "") for route in ROUTES}
    assert container["livenessProbe"]["httpGet"] == {"path": "/livez", "port": "http"}
    assert container["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "http"}
    assert {"/livez", "/readyz"} <= paths
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    volumes = {volume["name"] for volume in pod["volumes"]}
    volumes |= {claim["metadata"]["name"] for claim in spec.get("volumeClaimTemplates", ())}
    assert set(mounts.values()) == volumes


def test_one_and_several_are_the_same_but_for_their_volumes() -> None:
    """What is changed in one is changed in the other."""
    one, several = (PODS[kind]["template"]["spec"] | {"volumes": None} for kind in PODS)
    assert one == several


@pytest.mark.parametrize("folder", ["single", "scaled"])
def test_names_lead_somewhere(folder: str) -> None:
    """Claims, configurations, selectors and scale targets."""
    kind = "Deployment" if folder == "single" else "StatefulSet"
    pod = PODS[kind]["template"]["spec"]
    claims = {claim["metadata"]["name"] for claim in recipes.objects("PersistentVolumeClaim", folder)}
    wanted = [v["persistentVolumeClaim"]["claimName"] for v in pod["volumes"] if "persistentVolumeClaim" in v]
    assert set(wanted) == claims
    (config,) = recipes.objects("ConfigMap", "base")
    (container,) = pod["containers"]
    assert [source["configMapRef"]["name"] for source in container["envFrom"]] == [config["metadata"]["name"]]
    for service in recipes.objects("Service", folder):
        assert service["spec"]["selector"] == LABELS
        assert service["spec"]["ports"][0]["targetPort"] == container["ports"][0]["name"]
    if folder == "scaled":
        names = {service["metadata"]["name"] for service in recipes.objects("Service", folder)}
        assert PODS[kind]["serviceName"] in names


def test_who_scales_names_the_set() -> None:
    """The HPA and KEDA, within the same bounds, for the same reasons."""
    (hpa,), (keda,), (several,) = (
        recipes.objects(k) for k in ("HorizontalPodAutoscaler", "ScaledObject", "StatefulSet")
    )
    for scaler in (hpa, keda):
        target = scaler["spec"]["scaleTargetRef"]
        assert target == {"apiVersion": "apps/v1", "kind": "StatefulSet", "name": several["metadata"]["name"]}
    assert "replicas" not in several["spec"]  # they would contend for it
    assert (hpa["spec"]["minReplicas"], hpa["spec"]["maxReplicas"]) == (
        keda["spec"]["minReplicaCount"],
        keda["spec"]["maxReplicaCount"],
    )
    asked = [metric["pods"]["target"]["averageValue"] for metric in hpa["spec"]["metrics"]]
    assert asked == [trigger["metadata"]["threshold"] for trigger in keda["spec"]["triggers"]]


def test_the_hpa_asks_for_what_the_adapter_makes() -> None:
    """By its name, or by the series' own."""
    (hpa,) = recipes.objects("HorizontalPodAutoscaler")
    rules = yaml.safe_load((recipes.K8S / "hpa" / "prometheus-adapter.yaml").read_text())["rules"]["custom"]
    made = {rule.get("name", {}).get("as") or rule["seriesQuery"].partition("{")[0] for rule in rules}
    assert {metric["pods"]["metric"]["name"] for metric in hpa["spec"]["metrics"]} == made


def test_the_network_policy_is_of_the_pods() -> None:
    """And lets through to the port that they listen on."""
    (policy,) = recipes.objects("NetworkPolicy")
    assert policy["spec"]["podSelector"]["matchLabels"] == LABELS
    assert policy["spec"]["ingress"][0]["ports"] == [{"protocol": "TCP", "port": Settings().port}]
    assert set(policy["spec"]["policyTypes"]) == {"Ingress", "Egress"}


def test_kustomizations_name_every_file() -> None:
    """And none that is not there; the adapter's rules are for its own chart."""
    named = set()
    for path in recipes.K8S.rglob("kustomization.yaml"):
        for resource in yaml.safe_load(path.read_text())["resources"]:
            place = (path.parent / resource).resolve()
            assert place.exists(), place
            named.add(place)
    for path in recipes.K8S.rglob("*.yaml"):
        if path.name not in ("kustomization.yaml", "prometheus-adapter.yaml"):
            assert path.resolve() in named, path
