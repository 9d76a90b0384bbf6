#!/usr/bin/env python3
"""Prints which attributes OpenTelemetry's semantic conventions give to the spans, resources and metrics of a hop.

usage: scripts/semconv-table.py CHECKOUT [TAG] > tests/hop/semconv.txt

CHECKOUT is a clone of github.com/open-telemetry/semantic-conventions, TAG the version that is read. A line is a group, an
attribute's name and its requirement level; `tests/hop/conventions.rs` holds what a hop exports to it. Needs PyYAML and git.
"""

import subprocess
import sys

import yaml

GROUPS = [
    "span.http.server",
    "span.http.client",
    "entity.service",
    "entity.service.instance",
    "entity.telemetry.sdk",
    "metric.http.server.request.duration",
    "metric.http.server.active_requests",
    "metric.http.client.request.duration",
    "span.rpc.grpc.call.server",
    "span.rpc.grpc.call.client",
    "metric.rpc.server.call.duration",
    "metric.rpc.client.call.duration",
]


def git(checkout, *args):
    return subprocess.run(["git", "-C", checkout, *args], check=True, capture_output=True, text=True).stdout


def read_groups(checkout, tag):
    groups = {}
    for path in git(checkout, "ls-tree", "-r", "--name-only", tag, "model").splitlines():
        if path.endswith(".yaml") and "/deprecated/" not in path:
            document = yaml.safe_load(git(checkout, "show", f"{tag}:{path}")) or {}
            groups |= {group["id"]: group for group in document.get("groups") or []}
    return groups


def level(attribute):
    level = attribute.get("requirement_level")
    return next(iter(level)) if isinstance(level, dict) else level


def attributes(groups, name):
    """Name to level; a group overrides what it extends."""
    group = groups[name]
    levels = attributes(groups, group["extends"]) if "extends" in group else {}
    for attribute in group.get("attributes") or []:
        key = attribute.get("ref") or attribute["id"]
        levels[key] = level(attribute) or levels.get(key) or "recommended"
    return levels


def main():
    if not 2 <= len(sys.argv) <= 3:
        sys.exit(__doc__)
    checkout, tag = sys.argv[1], (sys.argv[2:] or ["HEAD"])[0]
    groups = read_groups(checkout, tag)
    print(f"# Semantic conventions {tag}, by scripts/semconv-table.py: group, attribute, requirement level.")
    for name in GROUPS:
        for attribute, level in sorted(attributes(groups, name).items()):
            print(name, attribute, level)


if __name__ == "__main__":
    main()
