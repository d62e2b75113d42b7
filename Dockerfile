# The environment of a run; the checkout is mounted beside it:
#   docker build -t semivariogram . && docker run --gpus all -v "$PWD:/work" semivariogram ./run_all.sh
# The base has NVIDIA's settings for containers; torch brings its own CUDA libraries, of the same version.
FROM nvidia/cuda:13.0.1-base-ubuntu24.04
RUN apt-get update && apt-get install --yes --no-install-recommends ca-certificates git python3-venv \
    && rm -rf /var/lib/apt/lists/* && git config --system --add safe.directory '*'
ENV UV_PYTHON_INSTALL_DIR=/opt/python UV_PYTHON_BIN_DIR=/usr/local/bin UV_NO_CACHE=1 UV_COMPILE_BYTECODE=1
RUN python3 -m venv /opt/uv && /opt/uv/bin/pip install --no-cache-dir uv==0.13.9 \
    && ln -s /opt/uv/bin/uv /usr/local/bin/uv && uv python install 3.11
ENV SEMIVARIOGRAM_ENV=/opt/semivariogram
COPY setup_environment.sh requirements.txt requirements.lock /opt/setup/
RUN cd /opt/setup && bash -euo pipefail -c '. ./setup_environment.sh'
ENV PATH=/opt/semivariogram/bin:$PATH
WORKDIR /work
