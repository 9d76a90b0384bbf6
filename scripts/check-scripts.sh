#!/usr/bin/env bash
# Calls the scripts as somebody who is wrong would: --help works with nothing installed, a wrong call exits with 2 and names what is accepted, and a
# cluster that does not answer is called that, and nothing of it is left behind. Needs kubectl and openssl; asks no cluster.
#
#   scripts/check-scripts.sh
#
# Exit: 0 all answer as they should, 1 one does not, 2 something needed is missing.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"
parse "" "" "$@"
need kubectl openssl
cd "$top"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# Nobody listens there.
printf 'apiVersion: v1\nkind: Config\ncurrent-context: dead\ncontexts: [{name: dead, context: {cluster: dead, user: dead}}]\nclusters: [{name: dead, cluster: {server: "http://127.0.0.1:1"}}]\nusers: [{name: dead, user: {token: secret}}]\n' >"$work/dead"
export KUBECONFIG=$work/dead
status=0
# said CODE WORDS COMMAND...: its exit code, and words of what it says
said() {
  local want=$1 words=$2 code=0 out
  shift 2
  out=$("$@" 2>&1 </dev/null) || code=$?
  [ $code = "$want" ] && [[ $out == *"$words"* ]] || { say "wanted $want and \"$words\": $* : $code, ${out:0:300}"; status=1; }
}

for script in scripts/*.sh; do
  [ $script = scripts/lib.sh ] || said 0 "scripts/${script##*/}" "$script" --help
done
said 2 "--days is a whole number above 0, not: abc" scripts/certificate.sh --local --days abc --dir "$work/certs"
said 2 "not: 0" scripts/certificate.sh --local --days 0 --dir "$work/certs"
said 2 "--minutes is a whole number above 0, not: 1h" scripts/lane-token.sh --minutes=1h --dir "$work/certs"
said 2 "--parallel is a whole number above 0, not: x" scripts/send-requests.sh --parallel=x
said 2 "--port is a whole number above 0, not: x" scripts/open-jaeger.sh --port x
said 2 "kind, minikube or k3d, not: docker" scripts/mesh-up.sh --with=docker
said 2 "leave out --with k3d" scripts/mesh-up.sh --use-existing --with k3d
said 2 "--ambient takes no value" scripts/mesh-up.sh --ambient=yes
said 2 "NAME:TAG, not: a/b" scripts/mesh-up.sh --image=a/b
said 2 "--memory is a whole number above 0, not: 128MiB" scripts/attack.sh --memory 128MiB
said 2 "--share is above 0 and at most 1, not: 2" scripts/attack.sh --share=2
said 2 "--runs is a whole number above 0, not: many" scripts/fuzz.sh --runs many
said 2 "there are tutorials,traces" scripts/e2e-cluster.sh --only trace
said 2 "no value is called TRACR" istio/local/render.sh gateway TRACR=otel
said 2 "ADMIN_PORT is the number of a port, not: x" istio/local/render.sh gateway ADMIN_PORT=x
said 2 "not host:port: collector:otlp" istio/local/render.sh gateway NAME=x TRACER=otel COLLECTOR=collector:otlp
said 2 "unknown option: --wiht" scripts/mesh-up.sh --wiht=kind
mkdir "$work/folder"
touch "$work/file"
said 1 "File exists" scripts/certificate.sh --local --dir "$work/file"
mkdir -p "$work/certs/tls.key"
said 1 "openssl req" scripts/certificate.sh --local --dir "$work/certs"
for script in "open-jaeger.sh" "gateway-address.sh" "certificate.sh --dir $work/other"; do
  # shellcheck disable=SC2086
  said 1 "no answer from the cluster of kubectl's context 'dead'" scripts/$script
done
# A tree of its own: `up` may have recorded a cluster in this one.
mkdir "$work/tree"
cp -R scripts Cargo.toml "$work/tree"
said 1 "no answer from the cluster" "$work/tree/scripts/mesh-up.sh" --use-existing
said 0 "nothing to take away" "$work/tree/scripts/mesh-up.sh" down
[ ! -e "$work/tree/target" ] || [ -z "$(find "$work/tree/target" -type f)" ] || { say "a call of mesh-up.sh that failed left files: $(find "$work/tree/target" -type f)"; status=1; }
exit $status
