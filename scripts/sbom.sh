#!/usr/bin/env bash
# The bill of materials of the binary as CycloneDX 1.5 JSON on stdout: every crate that is linked or that builds it, with version,
# licence, checksum and what it depends on. It comes from Cargo.lock alone: the same lock file, the same bytes. (cargo-cyclonedx gives every
# document a random serial number, and is one more tool to build.)
#
#   scripts/sbom.sh > sbom.json
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"
parse "" "" "$@"
need cargo python3
cd "$top"
cargo metadata --format-version 1 --locked --filter-platform "${TARGET:-x86_64-unknown-linux-gnu}" | python3 -c '
import json, sys, tomllib

metadata = json.load(sys.stdin)
with open("Cargo.lock", "rb") as lock:
    checksums = {(p["name"], p["version"]): p.get("checksum") for p in tomllib.load(lock)["package"]}
packages = {package["id"]: package for package in metadata["packages"]}
nodes = {node["id"]: node for node in metadata["resolve"]["nodes"]}
below = {
    id: sorted({dep["pkg"] for dep in node["deps"] if any(kind["kind"] != "dev" for kind in dep["dep_kinds"])})
    for id, node in nodes.items()
}
root = metadata["resolve"]["root"]
found, waiting = set(), [root]
while waiting:
    id = waiting.pop()
    if id not in found:
        found.add(id)
        waiting += below[id]


def purl(id):
    return "pkg:cargo/{name}@{version}".format(**packages[id])


def component(id):
    package = packages[id]
    told = {"type": "application" if id == root else "library", "bom-ref": purl(id), "name": package["name"]}
    told |= {"version": package["version"], "purl": purl(id)}
    if package.get("license"):
        told["licenses"] = [{"expression": package["license"].replace("/", " OR ").replace("  ", " ")}]
    checksum = checksums.get((package["name"], package["version"]))
    if checksum:
        told["hashes"] = [{"alg": "SHA-256", "content": checksum}]
    return told


ordered = sorted(found, key=purl)
json.dump(
    {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"component": component(root)},
        "components": [component(id) for id in ordered if id != root],
        "dependencies": [{"ref": purl(id), "dependsOn": sorted(purl(other) for other in below[id])} for id in ordered],
    },
    sys.stdout,
    indent=1,
)
print()
'
