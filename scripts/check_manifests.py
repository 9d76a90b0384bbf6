"""Validates every manifest of the repository, unknown fields rejected. Called by check-manifests.sh, which says what for.

Arguments: the Kubernetes version of the core schemas, and the folder of the CRDs (may be empty).
Three kinds of things are checked: every file by itself, every kustomize target, every component laid over the default target.
"""

import glob
import os
import subprocess
import sys
import tempfile

import jsonschema
import kubernetes_validate
import yaml

# Kinds that no schema here describes, and who checks them instead.
UNCHECKED = {
    "monitoring.coreos.com": "PodMonitor of the Prometheus operator: by nobody here",
    "install.istio.io": "IstioOperator is no resource of a cluster: istioctl reads it at install",
}
CRD_GROUPS = ("istio.io", "gateway.networking.k8s.io", "cert-manager.io")
NOT_MANIFESTS = {"kustomization.yaml", "config.yaml"}

kubernetes_version, crds_dir = sys.argv[1], sys.argv[2]
errors, checked, unchecked = [], {"core": 0, "crd": 0}, {}


def strict(schema):
    """The schema of a CRD, with fields refused that it does not name."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    result = {}
    for key, value in schema.items():
        if key == "properties":
            result[key] = {name: strict(sub) for name, sub in value.items()}
        elif key in ("format", "description", "default", "example", "title") and not isinstance(value, dict):
            continue
        else:
            result[key] = strict(value)
    if schema.get("x-kubernetes-int-or-string"):
        result.pop("type", None)
        result["type"] = ["integer", "string"]
    if schema.get("nullable") and isinstance(result.get("type"), str):
        result["type"] = [result["type"], "null"]
    names_fields = "properties" in schema and "additionalProperties" not in schema and schema.get("type") == "object"
    if names_fields and not schema.get("x-kubernetes-preserve-unknown-fields"):
        result["additionalProperties"] = False
    return result


def load_crds(folder):
    """(group, version, kind) -> strict schema, of every CRD below the folder. The standard channel of the Gateway API only."""
    schemas = {}
    for path in sorted(glob.glob(os.path.join(folder, "**", "*.yaml"), recursive=True)):
        if "experimental" in path:
            continue
        with open(path) as file:
            for document in yaml.load_all(file, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
                if not document or document.get("kind") != "CustomResourceDefinition":
                    continue
                spec = document["spec"]
                for version in spec["versions"]:
                    schema = strict(version["schema"]["openAPIV3Schema"])
                    schema.setdefault("properties", {})
                    for name, kind in (("apiVersion", "string"), ("kind", "string"), ("metadata", "object")):
                        schema["properties"][name] = {"type": kind}
                    schemas[spec["group"], version["name"], spec["names"]["kind"]] = schema
    return schemas


CRDS = load_crds(crds_dir) if crds_dir else {}


def check(where, document):
    """One object: against the schema of its kind, or counted as unchecked."""
    api, kind = document.get("apiVersion", ""), document.get("kind", "")
    name = f"{where}: {kind}/{document.get('metadata', {}).get('name')}"
    group, _, version = api.rpartition("/")
    if group in UNCHECKED:
        unchecked[group] = UNCHECKED[group]
        return
    if any(group == known or group.endswith("." + known) for known in CRD_GROUPS):
        if not CRDS:
            unchecked[group] = "no CRDS_DIR"
            return
        schema = CRDS.get((group, version, kind))
        if schema is None:
            errors.append(f"{name}: no such kind: {api} {kind}")
            return
        checked["crd"] += 1
        for error in jsonschema.Draft202012Validator(schema).iter_errors(document):
            errors.append(f"{name}: {'.'.join(map(str, error.path))}: {error.message[:300]}")
        return
    checked["core"] += 1
    try:
        kubernetes_validate.validate(document, kubernetes_version, strict=True)
    except Exception as error:  # it has a class for each way to be wrong; each is an error of the manifest
        errors.append(f"{name}: {' '.join(str(error).split())[:300]}")


def check_text(where, text):
    try:
        documents = [document for document in yaml.safe_load_all(text) if document is not None]
    except yaml.YAMLError as error:
        errors.append(f"{where}: not YAML: {error}")
        return
    for document in documents:
        check(where, document)


def kustomize(folder, where):
    run = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True)
    if run.returncode:
        errors.append(f"{where}: kustomize: {run.stderr.strip()}")
    else:
        check_text(where, run.stdout)


def refuses(document):
    """True if the check finds fault with the object; leaves no trace of having looked."""
    before = len(errors), dict(checked)
    check("self-test", document)
    found = len(errors) > before[0]
    del errors[before[0]:]
    checked.update(before[1])
    return found


# A check that lets everything pass looks like a tidy repository: show first that it can fail.
route = {"apiVersion": "networking.istio.io/v1", "kind": "VirtualService", "metadata": {"name": "x"}, "spec": {"hosts": ["x"]}}
service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "x"}, "spec": {"ports": [{"port": 80}]}}
for good in [service] + ([route] if CRDS else []):
    bad = {**good, "spec": {**good["spec"], "unknownField": 1}}
    if refuses(good) or not refuses(bad):
        sys.exit(f"the check itself is broken: {good['kind']} with an unknown field passes, or without one does not")

targets, components, files = [], [], []
for path in sorted(glob.glob("k8s/**/*.yaml", recursive=True) + glob.glob("istio/**/*.yaml", recursive=True)):
    if path.startswith("istio/local/"):
        continue
    if os.path.basename(path) == "kustomization.yaml":
        with open(path) as file:
            kind = yaml.safe_load(file)["kind"]
        (components if kind == "Component" else targets).append(os.path.dirname(path))
    elif os.path.basename(path) not in NOT_MANIFESTS:
        files.append(path)

for path in files:
    with open(path) as file:
        check_text(path, file.read())
for target in targets:
    kustomize(target, f"kustomize {target}")
# One by one, and all together, so that no two of them fight over a field.
os.makedirs("target", exist_ok=True)
for chosen in [[component] for component in components] + [components]:
    with tempfile.TemporaryDirectory(dir="target") as folder:
        with open(os.path.join(folder, "kustomization.yaml"), "w") as file:
            yaml.safe_dump({"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization", "resources": ["../../k8s"],
                            "components": [f"../../{component}" for component in chosen]}, file)
        kustomize(folder, "kustomize k8s with " + (chosen[0] if len(chosen) == 1 else "every component"))

for error in errors:
    print(error, file=sys.stderr)
print(f"{len(files)} files, {len(targets)} kustomize targets, {len(components)} components: "
      f"{checked['core']} core objects (Kubernetes {kubernetes_version}), {checked['crd']} objects of CRDs checked, {len(errors)} errors")
for group, reason in sorted(unchecked.items()):
    print(f"not checked: {group}: {reason}")
if not CRDS:
    print("WARNING: no CRDs (CRDS_DIR): nothing of Istio, the Gateway API and cert-manager was checked", file=sys.stderr)
sys.exit(1 if errors else 0)
