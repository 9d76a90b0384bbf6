#!/usr/bin/env bash
# From nothing to the chain in a mesh, on a laptop: a cluster, Istio, the image, the hops, Jaeger, the HTTPS gateway; then the curl that asks it,
# and a run of `httpserver check`. What is there already is used as it is and left as it is.
#
#   scripts/mesh-up.sh [up] [--with kind|minikube|k3d] [--use-existing] [--ambient] [--image IMAGE]
#   scripts/mesh-up.sh down
#
#   --with          what makes the cluster, which is called httpserver; default: kind
#   --use-existing  no new cluster: the one that kubectl talks to (Docker Desktop's, or any other); not beside --with
#   --ambient       no sidecars: Istio's ambient mode, and the Gateway API
#   --image         NAME:TAG that the cluster can pull; default: the one of `make docker-build`, built if need be and loaded into the cluster
#
#   down            takes away what `up` has created, in the reverse order, and nothing that was there before: also the image, if `up` built it,
#                   and the certificate in certs/; a copy of the image that was loaded into a cluster that stays, stays in it
#
# Needs kubectl, curl, openssl, the maker of the cluster, docker (not with --image where minikube makes the cluster, or nobody), istioctl (not where
# Istio is there); says how to get what is missing, before anything is changed. What was created is recorded in
# target/mesh-up, which also has the access to the cluster that was meant: to call another one the current one changes nothing here.
#
# Exit: 0 the chain answers and check finds it healthy, 1 something failed (run it again, or `down`), 2 the call is wrong
# or something needed is missing.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"

with="" use_existing=no ambient=no image=""
parse "with image ..." "use-existing ambient" "$@"
[[ -z $image || ${image##*/} == ?*:?* ]] || usage_error "--image needs NAME:TAG, not: $image"
command=up
[ ${#arguments[@]} -eq 0 ] || command=${arguments[0]}
case $command:${#arguments[@]} in up:[01] | down:1) ;; *) usage_error "up or down, not: ${arguments[*]}" ;; esac
[ -z "$with" ] || [ $use_existing = no ] || usage_error "--use-existing makes no cluster, so leave out --with $with"
with=${with:-kind}
case $with in kind | minikube | k3d) ;; *) usage_error "--with kind, minikube or k3d, not: $with" ;; esac

cd "$top"
state=$top/target/mesh-up created=$top/target/mesh-up/created
# The version of the Gateway API that Istio 1.31 is made for.
gateway_api=https://github.com/kubernetes-sigs/gateway-api/releases/download/v1.4.0/standard-install.yaml
secret=cncamp-credential

# how TOOL: how to get it
how() {
  case $1 in
    docker) echo "https://docs.docker.com/get-docker" ;;
    kubectl) echo "https://kubernetes.io/docs/tasks/tools, or: brew install kubectl" ;;
    istioctl) echo "curl -L https://istio.io/downloadIstio | sh -, and its bin/ on the PATH; or: brew install istioctl" ;;
    kind) echo "go install sigs.k8s.io/kind@latest, or: brew install kind. Another cluster: --with minikube, --with k3d, --use-existing" ;;
    minikube) echo "https://minikube.sigs.k8s.io/docs/start, or: brew install minikube" ;;
    k3d) echo "https://k3d.io, or: brew install k3d" ;;
    *) echo "the system's package $1" ;;
  esac
}
# needs TOOL...: all that are missing at once, each with the way to get it
needs() {
  local tool complete=yes
  for tool; do
    command -v "$tool" >/dev/null 2>&1 || { say "missing: $tool: $(how "$tool")"; complete=no; }
  done
  [ $complete = yes ] || exit 2
}
# record WHAT...: before it is created, so that half of it is taken away, too
record() { mkdir -p "$state"; grep -qxF "$*" "$created" 2>/dev/null || echo "$*" >>"$created"; }
recorded() { grep -qxF "$*" "$created" 2>/dev/null; }
# is_there NAMESPACE KIND NAME
is_there() { kubectl -n "$1" get "$2" "$3" >/dev/null 2>&1; }
# From here on kubectl and istioctl know one cluster, whatever becomes the current one.
settle() {
  mkdir -p "$state"
  (umask 077 && kubectl config view --raw --minify --flatten >"$state/kubeconfig")
  export KUBECONFIG=$state/kubeconfig
}

has_cluster() {
  case $with in
    kind) kind get clusters 2>/dev/null | grep -x httpserver >/dev/null ;;
    minikube) minikube profile list -o json 2>/dev/null | grep '"Name":"httpserver"' >/dev/null ;;
    k3d) k3d cluster list httpserver >/dev/null 2>&1 ;;
  esac
}

up_cluster() {
  if [ -s "$created" ] && [ -s "$state/kubeconfig" ]; then
    export KUBECONFIG=$state/kubeconfig
    say "going on with the cluster of the last time: $(kubectl config current-context) (scripts/mesh-up.sh down ends that)"
  elif [ $use_existing = yes ]; then
    kubectl config current-context >/dev/null 2>&1 || die "kubectl has no current context: kubectl config use-context NAME, or leave out --use-existing"
    settle
  else
    ! has_cluster || recorded cluster "$with" || die "there is a cluster httpserver of $with already: make it the current one of kubectl, and say --use-existing"
    say "a cluster httpserver with $with"
    record cluster "$with"
    case $with in
      kind) has_cluster || kind create cluster --name httpserver --wait 120s ;;
      minikube) minikube start --profile httpserver ;;
      k3d) has_cluster || k3d cluster create httpserver --wait ;;
    esac
    settle
  fi
  cluster_answers
}

has_istio() { is_there istio-system configmap istio && ! recorded istio; }

up_istio() {
  if has_istio; then
    say "Istio is there already"
    kubectl -n istio-system get configmap istio -o jsonpath='{.data.mesh}' | grep 'name: jaeger$' >/dev/null ||
      say "WARNING: it has no tracing provider called jaeger, so its proxies report nothing: see istio/install.yaml"
    [ $ambient = no ] || is_there istio-system daemonset ztunnel || die "this Istio has no ztunnel, so no ambient mode: leave out --ambient"
  else
    record istio
    if [ $ambient = yes ]; then istioctl install -y -f istio/install.yaml --set profile=ambient; else istioctl install -y -f istio/install.yaml; fi
  fi
  if [ $ambient = yes ] && { ! kubectl get crd gateways.gateway.networking.k8s.io >/dev/null 2>&1 || recorded gateway-api; }; then
    record gateway-api
    kubectl apply --server-side -f "$gateway_api" >/dev/null
  fi
}

ours=httpserver:$(release_version)
# Never grep -q behind a pipe: it ends it early, and pipefail takes that for a failure.
has_image() { kubectl get nodes -o jsonpath='{range .items[*].status.images[*]}{.names}{"\n"}{end}' | grep -E "[\"/]$ours\"" >/dev/null; }

up_image() {
  [ -z "$image" ] || return 0
  local context
  context=$(kubectl config current-context)
  if has_image; then
    say "$ours is in the cluster already"
    return 0
  fi
  docker image inspect "$ours" >/dev/null 2>&1 || { say "building $ours: some minutes"; record image "$ours"; make docker-build >&2; }
  case $context in
    # It has the images of Docker itself.
    docker-desktop) ;;
    kind-* | k3d-*) scripts/load-image.sh "$ours" ;;
    *)
      # A profile's context is called as the profile is.
      if command -v minikube >/dev/null && minikube profile list -o json 2>/dev/null | grep "\"Name\":\"$context\"" >/dev/null; then
        scripts/load-image.sh "$ours" --into minikube --cluster "$context"
      else
        die "$ours cannot be loaded into '$context': push it where the cluster can pull it, and name it with --image"
      fi ;;
  esac
}

# The hops with the image that was named.
hops() {
  local overlay=k8s/overlays/sidecar
  [ $ambient = no ] || overlay=k8s/overlays/ambient
  [ -n "$image" ] || { echo "$overlay"; return; }
  mkdir -p "$state/k8s"
  printf 'apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources: [../../../%s]\nimages: [{name: httpserver, newName: "%s", newTag: "%s"}]\n' \
    "$overlay" "${image%:*}" "${image##*:}" >"$state/k8s/kustomization.yaml"
  echo "$state/k8s"
}

up_chain() {
  local mode=sidecar other=ambient
  [ $ambient = no ] || { mode=ambient other=sidecar; }
  ! recorded "chain $other" || die "the chain is there, in $other mode: scripts/mesh-up.sh down first"
  if is_there default namespace httpserver && ! recorded "chain $mode"; then
    die "the namespace httpserver is there already, and not of this script: not touching it"
  fi
  record "chain $mode"
  [ -e certs ] || record certs
  kubectl apply -k "$(hops)" >/dev/null
  if is_there istio-system service jaeger-collector && ! recorded jaeger; then
    say "there is a collector of traces already: Service jaeger-collector"
  else
    record jaeger
    kubectl apply -k k8s/jaeger >/dev/null
  fi
  if [ $ambient = yes ]; then
    scripts/certificate.sh --namespace httpserver
    kubectl apply -f istio/telemetry.yaml >/dev/null
    kubectl apply -k istio/gateway-api >/dev/null
  else
    # A certificate that is there is somebody's, and the one in certs/ would not belong to it.
    if [ -z "$(kubectl get secret -A --field-selector metadata.name=$secret -o name)" ] || recorded secret; then
      record secret
      scripts/certificate.sh
    fi
    kubectl apply -k istio >/dev/null
  fi
  say "waiting for the pods"
  local namespace
  for namespace in httpserver istio-system; do
    kubectl -n "$namespace" rollout status deployment --timeout=300s >/dev/null || { kubectl -n "$namespace" get deployments,pods >&2; die "not every pod in $namespace is ready"; }
  done
}

up() {
  local tools=(kubectl curl openssl)
  # A cluster that is made now has no Istio.
  if [ $use_existing = no ] && [ ! -s "$created" ]; then
    tools+=("$with" istioctl)
    [ -n "$image" ] && [ "$with" = minikube ] || tools+=(docker)
  fi
  needs "${tools[@]}"
  # The copy of the access has credentials in it: it stays for `down` alone.
  trap '[ -s "$created" ] || rm -rf "$state"' EXIT
  up_cluster
  # What is there says what else is needed; nothing in the cluster is changed before that.
  tools=(kubectl)
  has_istio || tools+=(istioctl)
  [ -n "$image" ] || has_image || tools+=(docker)
  needs "${tools[@]}"
  up_istio
  up_image
  up_chain

  local gateway=(--namespace istio-system --service istio-ingressgateway) service=istio-ingressgateway.istio-system verify=(--cacert certs/ca.crt) address
  [ $ambient = no ] || { gateway=(--namespace httpserver --service httpserver-istio) service=httpserver-istio.httpserver; }
  [ $ambient = yes ] || recorded secret || verify=(--insecure)
  address=$(scripts/gateway-address.sh "${gateway[@]}" --forward)
  eval "$address"
  # shellcheck disable=SC2153 # gateway-address.sh has just set them
  local ask=(curl -sS "${verify[@]}" --resolve "service1.cncamp.io:$SECURE_INGRESS_PORT:$INGRESS_HOST" "https://service1.cncamp.io:$SECURE_INGRESS_PORT/hello/service1")
  eventually 60 "the chain behind the gateway" "${ask[@]}" --fail
  printf '%s\n' "$address"
  printf '\n%s\n\n' "${ask[*]}"
  "${ask[@]}"
  echo

  # From within the cluster, so that no binary is needed here; outside the mesh, as users are.
  say "httpserver check"
  local code
  kubectl -n default delete pod httpserver-check --ignore-not-found >/dev/null
  kubectl -n default run httpserver-check --restart=Never --image="${image:-httpserver:$(release_version)}" --image-pull-policy=IfNotPresent \
    --labels=sidecar.istio.io/inject=false -- check https://httpsserver.cncamp.io/http/service0 --insecure \
    --resolve="httpsserver.cncamp.io:443:$service" --expect=service1,service2,service3 --traces=http://tracing.istio-system --count=20 >/dev/null
  # Not by --attach, which has what is printed from then on.
  eventually 120 "the log of its pod" kubectl -n default logs httpserver-check
  kubectl -n default logs --follow httpserver-check
  code=$(kubectl -n default wait --for=jsonpath='{.status.containerStatuses[0].state.terminated}' --timeout=60s pod/httpserver-check >/dev/null &&
    kubectl -n default get pod httpserver-check -o jsonpath='{.status.containerStatuses[0].state.terminated.exitCode}')
  kubectl -n default delete pod httpserver-check >/dev/null
  [ "$code" = 0 ] || die "check is not content: exit code $code"
  [ -z "$image" ] || say "the files of the lessons name $ours: sed 's|image: httpserver:.*|image: $image|' FILE | kubectl apply -f -"
  say "the traces: scripts/open-jaeger.sh; go on with docs/course/07-the-gateway.md; end it with scripts/mesh-up.sh down"
  # A cluster that is not the current one of kubectl.
  [ "$(kubectl config current-context)" = "$(env -u KUBECONFIG kubectl config current-context 2>/dev/null)" ] || say "in your shell: export KUBECONFIG=$state/kubeconfig"
}

# What `up` made on this machine. Who has put something of his own into certs/ keeps it.
down_here() {
  local what
  if recorded certs; then
    rm -f certs/{ca,tls}.{crt,key} certs/ca.srl
    rmdir certs 2>/dev/null || true
  fi
  if what=$(grep '^image ' "$created"); then
    docker image rm "${what#image }" >/dev/null 2>&1 || say "the image ${what#image } is in use, or gone: left as it is"
  fi
  rm -rf "$state"
}

down() {
  [ -s "$created" ] || { rm -rf "$state"; say "nothing is recorded in target/mesh-up: nothing to take away"; exit 0; }
  needs kubectl
  scripts/gateway-address.sh --stop
  if [ -s "$state/kubeconfig" ]; then export KUBECONFIG=$state/kubeconfig; fi
  local what
  if what=$(grep '^cluster ' "$created"); then
    # With it goes everything in it.
    say "deleting the cluster httpserver (${what#cluster })"
    unset KUBECONFIG
    case ${what#cluster } in
      kind) kind delete cluster --name httpserver ;;
      minikube) minikube delete --profile httpserver ;;
      k3d) k3d cluster delete httpserver ;;
    esac
    down_here
    return
  fi
  kubectl get --raw /readyz >/dev/null || die "the cluster does not answer: nothing was taken away, and what \`up\` made stays recorded in $state"
  if recorded "chain sidecar" || recorded "chain ambient"; then
    say "deleting the chain, its routes and its namespace"
    if recorded "chain ambient"; then
      kubectl delete -f istio/telemetry.yaml --ignore-not-found >/dev/null
    else
      kubectl delete -k istio --ignore-not-found >/dev/null
    fi
    kubectl delete namespace httpserver --ignore-not-found >/dev/null
  fi
  if recorded secret; then
    say "deleting the secret $secret"
    kubectl delete secret -A --field-selector metadata.name=$secret >/dev/null
  fi
  if recorded jaeger; then
    say "deleting Jaeger"
    kubectl delete -k k8s/jaeger --ignore-not-found >/dev/null
  fi
  if recorded gateway-api; then
    say "deleting the Gateway API"
    kubectl delete -f "$gateway_api" --ignore-not-found >/dev/null
  fi
  if recorded istio; then
    needs istioctl
    say "uninstalling Istio"
    istioctl uninstall -y --purge >/dev/null
    kubectl delete namespace istio-system --ignore-not-found >/dev/null
  fi
  down_here
}

$command
