# A container that trains:
#   docker build -t diptych .
#   docker run --gpus all --shm-size 16g -v "$PWD/shards:/diptych/shards" -v "$PWD/runs:/diptych/runs" \
#       diptych train configs/vit_b_32.yaml
# More than one GPU: `--entrypoint launch/one_node.sh`. To stop: `docker stop --time 120`, then the same command goes on.
#
# One that builds shards, without torch:
#   docker build --target shards -t diptych-shards .
#   docker run -v "$PWD:/data" diptych-shards build /data/table.parquet /data/shards
#
# One that tests itself:
#   docker build --target test -t diptych-test . && docker run --shm-size 1g diptych-test
#
# Any base with Python >= 3.10 will do. On the default one pip brings torch with its CUDA libraries; a base that has torch
# already (an image of pytorch/pytorch) keeps its own.
ARG BASE=python:3.12-slim-bookworm

FROM ${BASE} AS source
ENV PATH=/opt/diptych/bin:$PATH \
    PIP_NO_CACHE_DIR=1 \
    PYTHONUNBUFFERED=1
RUN python3 -m venv --system-site-packages /opt/diptych \
    && useradd --create-home --uid 10001 diptych \
    && mkdir -p /diptych/runs \
    && chown -R diptych /diptych
WORKDIR /diptych
COPY setup.cfg pyproject.toml README.md LICENSE ./
COPY src src
COPY data_prep data_prep

FROM source AS shards
# setup.cfg says which versions.
# hadolint ignore=DL3013
RUN pip install './data_prep[heic,ray]' && rm -rf data_prep/build data_prep/*.egg-info
USER 10001
ENTRYPOINT ["diptych-shards"]
CMD ["--help"]

FROM source AS installed
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
# torch.compile (machine.compile_blocks) needs a compiler, which slim images lack.
# hadolint ignore=DL3008
RUN command -v g++ || ! command -v apt-get \
    || (apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*)
# hadolint ignore=DL3013
RUN pip install '.[clip,demo]' && rm -rf build ./*.egg-info
COPY configs configs
COPY launch launch

FROM installed AS test
# hadolint ignore=DL3013
RUN pip install '.[test]' && rm -rf build ./*.egg-info
COPY . .
ENV OMP_NUM_THREADS=1
USER 10001
ENTRYPOINT ["python", "-m", "pytest", "-p", "no:cacheprovider"]

FROM installed AS run
USER 10001
# Exec form: `docker stop` reaches the trainer, which saves a checkpoint and ends.
ENTRYPOINT ["diptych"]
CMD ["--help"]
