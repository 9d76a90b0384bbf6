"""Compares two streams of Kubernetes objects: same-objects.py WANTED GOT. Prints the differences, or how many objects there are.

Not differences: the order of objects, and that of variables which do not fill in others; the hash in the name of a generated ConfigMap (the chart has an annotation with a checksum for that); a
route to a delegate that is not there, which Istio leaves out.
"""

import json
import re
import sys

import yaml


def in_order(variables):
    """Those that fill in others or are filled in, in their order; then the others by name."""
    filled = set(re.findall(r"\$\((\w+)\)", json.dumps(variables)))
    tied = lambda variable: variable["name"] in filled or "$(" in variable.get("value", "")
    return [v for v in variables if tied(v)] + sorted((v for v in variables if not tied(v)), key=lambda v: v["name"])


def objects(path):
    with open(path) as file:
        text = re.sub(r"\b(\w[\w-]*-(?:configuration|dashboard))-[a-z0-9]{10}\b", r"\1", file.read())
    found = {}
    for value in yaml.load_all(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
        if value:
            metadata = value["metadata"]
            name = f"{value['kind']} {metadata.get('namespace', '')}/{metadata['name']}"
            if name in found and found[name] != value:
                print(f"{path}: {name} is there twice")
                sys.exit(1)
            found[name] = value
    for value in found.values():
        for annotations in (value["metadata"], value.get("spec", {}).get("template", {}).get("metadata", {})):
            annotations.get("annotations", {}).pop("checksum/configuration", None)
            if annotations.get("annotations") == {}:
                del annotations["annotations"]
        for container in value.get("spec", {}).get("template", {}).get("spec", {}).get("containers", []):
            container["env"] = in_order(container.get("env", []))
        if value["kind"] == "VirtualService":
            there = lambda rule: "delegate" not in rule or f"VirtualService {rule['delegate']['namespace']}/{rule['delegate']['name']}" in found
            value["spec"]["http"] = [rule for rule in value["spec"]["http"] if there(rule)]
    return found


def differences(wanted, got, at=""):
    if isinstance(wanted, dict) and isinstance(got, dict):
        for key in sorted(wanted.keys() | got.keys()):
            yield from differences(wanted.get(key), got.get(key), f"{at}/{key}")
    elif isinstance(wanted, list) and isinstance(got, list) and len(wanted) == len(got):
        for index, (one, other) in enumerate(zip(wanted, got)):
            yield from differences(one, other, f"{at}/{index}")
    elif wanted != got or type(wanted) is not type(got):
        yield f"{at}: wanted {json.dumps(wanted)}, got {json.dumps(got)}"


wanted, got = map(objects, sys.argv[1:3])
found = [f"{name}: {'not wanted' if name in got else 'missing'}" for name in sorted(wanted.keys() ^ got.keys())]
found += [name + difference for name in sorted(wanted.keys() & got.keys()) for difference in differences(wanted[name], got[name])]
if len(found) > 20:
    found[20:] = [f"and {len(found) - 20} more"]
print("\n".join(found) or f"{len(wanted)} objects")
sys.exit(1 if found else 0)
