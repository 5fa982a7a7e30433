# The DICOM node on a CPU, without torch: docker build -t zoomseg-node .
FROM python:3.12-slim AS build
COPY pyproject.toml hatch_build.py README.md LICENSE /source/
COPY src /source/src
RUN pip install --no-cache-dir --no-compile --prefix=/installed "/source[pacs]"

FROM python:3.12-slim
COPY --from=build /installed /usr/local
RUN useradd --system --uid 10001 --create-home zoomseg && install -d -o zoomseg -m 700 /var/lib/zoomseg
USER zoomseg
VOLUME /var/lib/zoomseg
EXPOSE 11112 8080
HEALTHCHECK CMD ["python", "-c", "import socket; socket.create_connection(('127.0.0.1', 11112), 5)"]
ENTRYPOINT ["zoomseg", "node"]
CMD ["/etc/zoomseg/node.yaml"]
