# The image holds one statically linked file: no shell, no libc, no certificates (the roots for TLS are in the binary).
#   docker build -t httpserver:dev .        or: make docker-build
FROM rust:1.95-slim-bookworm AS build
# The allocator is built with make, which the slim image lacks.
RUN command -v make || { apt-get update && apt-get install -y --no-install-recommends make; }
WORKDIR /src
COPY Cargo.toml Cargo.lock ./
COPY proto proto
COPY src src
ARG REVISION=unknown
# The target is named although it is the host's own: without a name the flags would also hit build scripts and macros, which cannot
# be static. A static glibc resolves container names in an empty image. Nothing is relocated
# at the start, which also makes the file smaller.
RUN target=$(rustc -vV | sed -n 's/^host: //p') \
 && REVISION="$REVISION" RUSTFLAGS="-C target-feature=+crt-static -C relocation-model=static" \
    cargo build --release --locked --bin httpserver --target "$target" \
 && cp "target/$target/release/httpserver" /httpserver

FROM scratch
ARG VERSION=dev
ARG REVISION=unknown
LABEL org.opencontainers.image.title="httpserver" \
      org.opencontainers.image.description="The traced demo microservice chain for a service mesh" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION"
COPY --from=build /httpserver /httpserver
USER 65532:65532
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=3s --start-period=1s --retries=3 CMD ["/httpserver", "health"]
ENTRYPOINT ["/httpserver"]
