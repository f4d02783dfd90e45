# Loggos in a container: built from this checkout, runs as an ordinary user, keeps everything under /data.
FROM docker.io/library/rust:1.95-bookworm AS build
WORKDIR /src
COPY . .
RUN cargo build --release --locked --bin loggos

FROM docker.io/library/debian:bookworm-slim
COPY --from=build /src/target/release/loggos /usr/local/bin/loggos
RUN useradd --system --home-dir /data --create-home loggos
USER loggos
WORKDIR /data
VOLUME /data
# Every option of `loggos serve` has a variable like these; `docker run --rm loggos serve --help` names them.
ENV LOGGOS_DATA_DIR=/data \
    LOGGOS_LISTEN=0.0.0.0:9092 \
    LOGGOS_COORDINATOR_LISTEN=0.0.0.0:2181 \
    LOGGOS_PEER_LISTEN=0.0.0.0:2888 \
    LOGGOS_HTTP_LISTEN=0.0.0.0:9644
EXPOSE 9092 2181 2888 9644
HEALTHCHECK --interval=2s --timeout=2s --start-period=60s --retries=5 \
  CMD ["/bin/bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/9644 && printf 'GET /readyz HTTP/1.0\\r\\n\\r\\n' >&3 && read -r status <&3 && [[ $status == *' 200 '* ]]"]
ENTRYPOINT ["loggos"]
CMD ["serve"]
