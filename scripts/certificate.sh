#!/usr/bin/env bash
# Makes a root certificate and, signed by it, the server certificate of the gateway, and hands it to the cluster as a secret beside
# the gateway's pods. Run again, it keeps the root and renews the rest.
#
#   scripts/certificate.sh [--dir certs] [--namespace NS] [--selector istio=ingressgateway] [--client] [--local] [--days 365]
#
#   --dir        where ca.crt, tls.crt, tls.key (and client.crt, client.key) go; ignored by git
#   --namespace  put the secret there; default: where the pods with the selector's label run
#   --selector   the label of the gateway's pods; a gateway installed by Helm often has istio=ingress
#   --client     also make a client certificate and the secret cncamp-mtls-credential (istio/scenarios/gateway-mtls.yaml)
#   --local      files only: ask no cluster (Docker Compose)
#
# The certificate names *.cncamp.io as a SAN: today's clients look at nothing else. Then:
#   curl --cacert certs/ca.crt --resolve "service1.cncamp.io:$SECURE_INGRESS_PORT:$INGRESS_HOST" ...
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"

dir=certs namespace="" selector=istio=ingressgateway client=no local=no days=365
parse "dir namespace selector days" "client local" "$@"
whole days "$days"
need openssl
[ $local = yes ] || need kubectl
umask 077
mkdir -p "$dir"

# quiet COMMAND...: what it says matters only when it fails
quiet() { local said; said=$("$@" 2>&1) || die "$1 $2: $said"; }

if [ ! -s "$dir/ca.key" ] || ! openssl x509 -checkend 86400 -noout -in "$dir/ca.crt" >/dev/null 2>&1; then
  quiet openssl req -x509 -newkey rsa:2048 -sha256 -nodes -days 3650 -subj "/O=cncamp Inc./CN=cncamp root" \
    -keyout "$dir/ca.key" -out "$dir/ca.crt"
fi

# issue NAME SUBJECT USAGE [SAN]
issue() {
  quiet openssl req -newkey rsa:2048 -sha256 -nodes -subj "$2" -keyout "$dir/$1.key" -out "$dir/$1.csr"
  quiet openssl x509 -req -sha256 -days "$days" -in "$dir/$1.csr" -CA "$dir/ca.crt" -CAkey "$dir/ca.key" -CAcreateserial -out "$dir/$1.crt" \
    -extfile <(printf 'basicConstraints=CA:FALSE\nextendedKeyUsage=%s\n%s' "$3" "${4:+subjectAltName=$4}")
  rm -f "$dir/$1.csr"
}
issue tls "/O=cncamp Inc./CN=*.cncamp.io" serverAuth "DNS:*.cncamp.io"
if [ $client = yes ]; then issue client "/O=cncamp Inc./CN=a tester" clientAuth; fi
say "$dir/tls.crt for *.cncamp.io, signed by $dir/ca.crt"
[ $local = no ] || exit 0

cluster_answers
if [ -z "$namespace" ]; then
  namespace=$(kubectl get pods --all-namespaces -l "$selector" -o jsonpath='{.items[0].metadata.namespace}' 2>/dev/null) ||
    die "no gateway pod with the label $selector: name another with --selector, or the place with --namespace"
fi
# apply NAME KUBECTL-ARGUMENTS...: a secret, made or changed
apply() {
  kubectl -n "$namespace" create secret "${@:2}" --dry-run=client -o yaml | kubectl apply -f - >/dev/null
  say "secret $1 in the namespace $namespace"
}
apply cncamp-credential tls cncamp-credential --cert="$dir/tls.crt" --key="$dir/tls.key"
if [ $client = yes ]; then
  apply cncamp-mtls-credential generic cncamp-mtls-credential \
    --from-file=tls.crt="$dir/tls.crt" --from-file=tls.key="$dir/tls.key" --from-file=ca.crt="$dir/ca.crt"
fi
