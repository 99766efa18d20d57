# medar in a container. How to use it: docs/how-to/docker.md.
#   docker build -t medar .                              without a GPU
#   docker build -t medar:cuda --build-arg DEVICE=cuda . for NVIDIA GPUs (driver and toolkit on the host)
FROM python:3.11.13-slim-bookworm

# cpu or cuda: which build of torch is installed. The CUDA build brings its own libraries.
ARG DEVICE=cpu
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
RUN case "$DEVICE" in \
      cpu) index="--extra-index-url https://download.pytorch.org/whl/cpu" ;; \
      cuda) index="" ;; \
      *) echo "DEVICE must be cpu or cuda, got $DEVICE"; exit 1 ;; \
    esac \
    && python -m venv .venv \
    && .venv/bin/pip install --no-cache-dir $index -c constraints.txt -e ".[$EXTRAS]" \
    && touch .venv/.ready
ENV PATH=/opt/medar/.venv/bin:$PATH
VOLUME /opt/medar/runs
CMD ["medar", "--help"]
