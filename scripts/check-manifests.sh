#!/usr/bin/env bash
# Checks every manifest against published schemas, unknown fields rejected, and builds every kustomize target.
#
#   scripts/check-manifests.sh [--install]
#
#   --install   make the Python environment it needs under target/ (once)
#
#   CRDS_DIR    folder with the CRDs of Istio, the Gateway API and cert-manager, searched in depth; default: ../shared/crds, when it
#               is there. Without one the kinds of those three are NOT checked, and the last line says so.
#   KUBERNETES  version of the Kubernetes schemas, default 1.32.0: the oldest that Istio 1.31 supports
#
# Exit: 0 all valid, 1 a manifest is wrong, 2 something needed is missing.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"

venv=$top/target/venv-manifests
packages=(kubernetes-validate==1.34.1 jsonschema==4.25.1 PyYAML==6.0.3)

case ${1:-} in
  -h | --help) help "$0"; exit 0 ;;
  --install)
    need python3
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check "${packages[@]}"
    ;;
  "") ;;
  *) usage_error "unknown option: $1" ;;
esac

missing=()
command -v kubectl >/dev/null || missing+=("kubectl, for its kustomize")
[ -x "$venv/bin/python" ] || missing+=("${packages[*]} in target/venv-manifests: scripts/check-manifests.sh --install makes it")
if [ ${#missing[@]} -gt 0 ]; then
  printf 'check-manifests.sh: missing: %s\n' "${missing[@]}" >&2
  exit 2
fi

crds=${CRDS_DIR-$top/../shared/crds}
[ -d "$crds" ] || crds=""

cd "$top"
exec "$venv/bin/python" scripts/check_manifests.py "${KUBERNETES:-1.32.0}" "$crds"
