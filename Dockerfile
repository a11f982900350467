# The broker's image: one static program on nothing. No shell, no package manager, no root.
#
#   docker build -t bulla .
#       compiles in the Go project's image, then keeps only the program.
#   CGO_ENABLED=0 go build -trimpath -o dist/bulla ./cmd/bulla && docker build -t bulla --target prebuilt .
#       takes a program that was built here, and pulls nothing.
#
# Both are stage "base" and one COPY, so what is tested with the second holds for the first.

FROM scratch AS base
# Two empty folders that belong to the broker's user, so that volumes mounted there are writable by it: the
# ledger, and the key that encrypts it, which should not lie on one disk. (.dockerignore drops the .keep
# that git wants.)
COPY --chown=65532:65532 deploy/empty/ /var/lib/bulla/
COPY --chown=65532:65532 deploy/empty/ /var/lib/bulla-kek/
COPY LICENSE /LICENSE
USER 65532:65532
ENTRYPOINT ["/bulla"]
CMD ["server", "run", "--config", "/etc/bulla/server.yaml"]
HEALTHCHECK --interval=10s --timeout=5s --start-period=10s --retries=3 CMD ["/bulla", "server", "healthcheck"]

# The pattern may match nothing: builders without BuildKit come through here on their way to the last stage,
# and then dist/bulla need not exist.
FROM base AS prebuilt
COPY LICENSE dist/bull[a] /

FROM golang:1.26.8 AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
RUN CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags=-s -o /out/bulla ./cmd/bulla

# For the one-shot jobs of docker-compose.yaml, which need a shell: the programs of Bulla and of the SPIRE
# server beside it. Never the image of a service.
FROM ghcr.io/spiffe/spire-server:1.15.3 AS spire
FROM busybox:1.37.0-musl AS toolbox
RUN mkdir -p /run/spire/bootstrap && chown 1000:1000 /run/spire/bootstrap
COPY --from=spire /opt/spire/bin/spire-server /usr/local/bin/spire-server
COPY --from=build /out/bulla /usr/local/bin/bulla

FROM base AS broker
COPY --from=build /out/bulla /bulla
