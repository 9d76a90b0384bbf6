# `make` lists the targets. The tag of the image is the version in Cargo.toml, unless REL_VERSION says otherwise.
REL_VERSION ?= $(shell sed -n 's/^version = "\(.*\)"$$/\1/p' Cargo.toml | head -n 1)
IMAGE ?= httpserver
REVISION ?= $(shell git describe --always --dirty --abbrev=12 2>/dev/null || echo unknown)
COMPOSE ?= docker compose

.DEFAULT_GOAL := help
.PHONY: help build test check demo docker-build docker-push docker-load compose-up compose-down deploy undeploy e2e e2e-docker e2e-cluster reproducible

help: ## list the targets
	@sed -n 's/^\([a-z0-9-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | awk -F '\t' '{printf "  %-14s %s\n", $$1, $$2}'

build: ## the binary: target/release/httpserver
	cargo build --release --locked

test: ## every test of the crate
	cargo test --locked

check: ## format, lints of Rust and of the shell, the schemas of every manifest, and the chart
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings
	shellcheck --external-sources --severity=warning $$(git ls-files '*.sh' .ci/run)
	scripts/check-scripts.sh
	scripts/check-manifests.sh

demo: ## the whole chain in one process, with its traces: http://127.0.0.1:9411
	cargo run --release --locked -- demo

docker-build: ## the image IMAGE:REL_VERSION
	docker build --build-arg VERSION=$(REL_VERSION) --build-arg REVISION=$(REVISION) -t $(IMAGE):$(REL_VERSION) .

docker-push: ## push it: make docker-push IMAGE=registry.example.org/you/httpserver
	docker push $(IMAGE):$(REL_VERSION)

docker-load: ## hand it to a local cluster (kind, minikube, k3d)
	scripts/load-image.sh $(IMAGE):$(REL_VERSION)

compose-up: ## three hops, an HTTPS gateway and Jaeger by Docker Compose
	scripts/certificate.sh --local --dir target/compose/certs
	istio/local/render.sh --compose target/compose
	HTTPSERVER_IMAGE=$(IMAGE):$(REL_VERSION) COMPOSE_USER=$$(id -u):$$(id -g) $(COMPOSE) up --detach --wait

compose-down: ## stop them
	HTTPSERVER_IMAGE=$(IMAGE):$(REL_VERSION) $(COMPOSE) --profile store down

deploy: ## to the cluster of kubectl: the hops, Jaeger, the certificate, the gateway and its routes
	kubectl apply -k k8s
	kubectl apply -k k8s/jaeger
	scripts/certificate.sh
	kubectl apply -k istio
	kubectl -n httpserver rollout status deployment --timeout=120s

undeploy: ## take all of that away again; traces on disk, the secrets and certs/, too
	kubectl delete -k istio --ignore-not-found
	kubectl delete -k k8s/jaeger --ignore-not-found
	kubectl delete -k k8s --ignore-not-found
	for name in cncamp-credential cncamp-mtls-credential; do kubectl delete secret -A --field-selector metadata.name=$$name; done
	rm -rf certs

e2e: ## the whole thing without containers (an Envoy from a Python package)
	scripts/e2e.sh

e2e-docker: ## the image and Compose, for real
	scripts/e2e-docker.sh

e2e-cluster: ## a cluster with Istio, for real: the one of kubectl
	scripts/e2e-cluster.sh

# Panic messages name source files: by their place in the sources and in cargo's home, not on this machine. The image is always built in
# the same place.
reproducible: ## build the image's binary twice, in two places, and compare the bytes (ten minutes)
	set -eu; work=$$(mktemp -d); trap 'rm -rf "$$work"' EXIT; image=$$(sed -n 's/.*RUSTFLAGS="\([^"]*\)".*/\1/p' Dockerfile); \
	target=$$(rustc -vV | sed -n 's/^host: //p'); test -n "$$image"; \
	for build in one two; do \
	  mkdir "$$work/$$build"; git archive HEAD | tar -x -C "$$work/$$build"; cd "$$work/$$build"; \
	  REVISION=$(REVISION) RUSTFLAGS="$$image --remap-path-prefix=$$work/$$build=. --remap-path-prefix=$${CARGO_HOME:-$$HOME/.cargo}=cargo" \
	    cargo build --quiet --release --locked --bin httpserver --target "$$target" --target-dir target; \
	  cp "target/$$target/release/httpserver" "$$work/binary-$$build"; cd - >/dev/null; \
	done; \
	rustc --version; stat -c '%s bytes' "$$work/binary-one"; sha256sum "$$work"/binary-*; cmp "$$work/binary-one" "$$work/binary-two"
