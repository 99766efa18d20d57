# medar in a container. How to use it: docs/how-to/docker.md.
#   docker build -t medar .   for NVIDIA GPUs (driver and toolkit on the host)
#   docker build -t medar --build-arg TORCH_INDEX=INDEX .   with an index of CPU builds: without a GPU, smaller
FROM python:3.11.13-slim-bookworm

# An index of torch builds besides the default one, whose builds for Linux bring CUDA's libraries.
ARG TORCH_INDEX=
# Extras of medar: dicom for the demo and daily use, dev for `make test`.
ARG EXTRAS=dicom

RUN apt-get update \
    && apt-get install --yes --no-install-recommends make \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home medar \
    && install --directory --owner medar /opt/medar /opt/medar/runs
USER medar
WORKDIR /opt/medar

COPY --chown=medar . .
# The last command tells `make` that the environment is ready.
RUN python -m venv .venv \
    && .venv/bin/pip install --no-cache-dir ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} \
        -c constraints.txt -e ".[$EXTRAS]" \
    && touch .venv/.ready
ENV PATH=/opt/medar/.venv/bin:$PATH
VOLUME /opt/medar/runs
CMD ["medar", "--help"]
