# syntax=docker/dockerfile:1
# Daguerre for NVIDIA cards. torch's wheels bring CUDA's libraries themselves, so the base is a slim Python: on top of one
# of NVIDIA's images the same libraries would lie there twice.
#
#   docker build -t daguerre .
#   docker build -t daguerre --build-arg TORCH_INDEX=https://… .    torch from an index of your own: another CUDA, or none
ARG PYTHON=3.11-slim-bookworm

FROM python:${PYTHON} AS build
ARG TORCH_INDEX=
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /build
RUN python -m venv /opt/daguerre
# The dependencies first: they change less often than the sources, and weigh a thousand times as much.
COPY tools/requirements.py pyproject.toml ./
RUN python requirements.py > requirements.txt \
    && /opt/daguerre/bin/pip install ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} --requirement requirements.txt
COPY README.md LICENSE ./
COPY src src
RUN /opt/daguerre/bin/pip install --no-deps . && /opt/daguerre/bin/pip uninstall --yes pip

FROM python:${PYTHON}
# What torch.compile (setting `compile`) calls: Triton builds a small launcher for each kernel.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 10001 daguerre \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /var/lib/daguerre --shell /usr/sbin/nologin daguerre \
    && install --directory --owner daguerre --group daguerre /var/lib/daguerre \
       /var/lib/daguerre/data /var/lib/daguerre/outputs /var/lib/daguerre/logs \
       /var/lib/daguerre/weights /var/lib/daguerre/cache
COPY --from=build /opt/daguerre /opt/daguerre
# A new volume begins with what lies here: the embedded model and the catalogue.
COPY --chown=daguerre:daguerre weights /var/lib/daguerre/weights
ENV PATH=/opt/daguerre/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    DAGUERRE_HOST=0.0.0.0 \
    DAGUERRE_PORT=8000 \
    DAGUERRE_DATA=/var/lib/daguerre/data \
    DAGUERRE_OUTPUTS=/var/lib/daguerre/outputs \
    MODEL_CACHE_DIR=/var/lib/daguerre/weights \
    HF_HOME=/var/lib/daguerre/cache/huggingface \
    TORCH_HOME=/var/lib/daguerre/cache/torch \
    TRITON_CACHE_DIR=/var/lib/daguerre/cache/triton \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
WORKDIR /var/lib/daguerre
USER 10001:10001
VOLUME ["/var/lib/daguerre/data", "/var/lib/daguerre/outputs", "/var/lib/daguerre/logs", \
    "/var/lib/daguerre/weights", "/var/lib/daguerre/cache"]
EXPOSE 8000
# Alive, not ready: a server that loads a large model is not to be restarted for it.
HEALTHCHECK --interval=15s --timeout=5s --start-period=30s \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/livez', timeout=4)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["daguerre"]
CMD ["serve"]
