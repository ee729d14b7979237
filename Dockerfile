# syntax=docker/dockerfile:1
#
# icestream as a small image: one binary, certificates, no shell, no root.
#
#     docker build --tag icestream:dev .
#     docker run --rm icestream:dev --help
#
# The project is mounted at /project, or copied there by an image of your own:
#
#     FROM icestream:dev
#     COPY icestream.yaml catalog transforms sql /project/

FROM rust:1.95.0-bookworm AS build
WORKDIR /build
COPY . .
# What cargo fetched and compiled stays in the builder's cache: after a change of the sources only they are compiled. The
# binary is copied out, because the caches are no part of the image.
RUN --mount=type=cache,target=/usr/local/cargo/registry,sharing=locked \
    --mount=type=cache,target=/build/target,sharing=locked \
    cargo build --release --locked --bin icestream \
    && cp target/release/icestream /usr/local/bin/icestream

# The C library, libgcc, certificates and time zones; the user is 65532.
FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=build /usr/local/bin/icestream /usr/local/bin/icestream
ENV ICESTREAM_PROJECT=/project
WORKDIR /project
USER 65532:65532
# SIGTERM commits what is read and ends.
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/local/bin/icestream"]
CMD ["run"]
