"""Writes the JSON schemas that check-manifests.sh validates with: schemas.py KUBERNETES_VERSION FOLDER [CRDS].

Kubernetes' own come with the Python package kubernetes-validate; they name each other by a path of its server. Those of CRDs are made from
the CRDs below the folder CRDS, with fields refused that they do not name, as FOLDER/crds/GROUP_KIND_VERSION.json.
"""

import glob
import json
import os
import sys

import kubernetes_validate
import yaml

version, folder, crds = (sys.argv + [""])[1:4]


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
        elif key not in ("format", "description", "default", "example", "title") or isinstance(value, dict):
            result[key] = strict(value)
    if schema.get("x-kubernetes-int-or-string"):
        result["type"] = ["integer", "string"]
    if schema.get("nullable") and isinstance(result.get("type"), str):
        result["type"] = [result["type"], "null"]
    names_fields = "properties" in schema and "additionalProperties" not in schema and schema.get("type") == "object"
    if names_fields and not schema.get("x-kubernetes-preserve-unknown-fields"):
        result["additionalProperties"] = False
    return result


source = os.path.join(os.path.dirname(kubernetes_validate.__file__), "kubernetes-json-schema", f"{version}-local-strict")
if not os.path.isdir(source):
    sys.exit(f"no schemas of Kubernetes {version}")
for path in glob.glob(f"{source}/*.json"):
    with open(path) as file:
        text = file.read().replace("/api/_definitions.json#", "_definitions.json#").replace('"$schema":', '"$comment":')
    with open(os.path.join(folder, os.path.basename(path)), "w") as file:
        file.write(text)
for path in glob.glob(f"{crds}/**/*.yaml", recursive=True) if crds else []:
    if "experimental" in path:  # the standard channel of the Gateway API only
        continue
    with open(path) as file:
        documents = list(yaml.load_all(file, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))
    for spec in (document["spec"] for document in documents if document and document.get("kind") == "CustomResourceDefinition"):
        for one in spec["versions"]:
            schema = strict(one["schema"]["openAPIV3Schema"])
            schema.setdefault("properties", {}).update(apiVersion={"type": "string"}, kind={"type": "string"}, metadata={"type": "object"})
            with open(f"{folder}/crds/{spec['group']}_{spec['names']['kind'].lower()}_{one['name']}.json", "w") as file:
                json.dump(schema, file)
