# hookflat in a container, on the CPU:
#   docker build -t hookflat .
#   mkdir -p runs && docker run --rm --user "$(id -u):$(id -g)" -v "$PWD/runs:/data/runs" hookflat run trades
# With CUDA, its libraries come with PyPI's torch; the host needs the NVIDIA driver and its container toolkit:
#   docker build -t hookflat:cuda --build-arg TORCH_INDEX=https://pypi.org/simple .
#   docker run --rm --user "$(id -u):$(id -g)" --gpus all --ipc=host -v "$PWD/runs:/data/runs" hookflat:cuda \
#     run trades --with scales/cifar10
# Another base, as PyTorch's with torch in it:
#   docker build -t hookflat:cuda --build-arg BASE=pytorch/pytorch:2.9.0-cuda12.8-cudnn9-runtime .

ARG BASE=python:3.13-slim
FROM ${BASE}

# An index with the torch of the base: CPU builds by default. A release that a base has already stays; over a pre-release, as
# NVIDIA's bases have, pip puts one of the index.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu

COPY pyproject.toml README.md LICENSE NOTICE /src/
COPY hookflat /src/hookflat
COPY hookflat_plugins /src/hookflat_plugins
COPY recipes /src/recipes
COPY templates /src/templates
# Some bases mark their Python as the distribution's.
ENV PIP_BREAK_SYSTEM_PACKAGES=1
RUN python -m pip install --no-cache-dir --extra-index-url "${TORCH_INDEX}" "/src[pandas,tensorboard]"

# Nobody's rights beyond /data, which is the home of whoever runs it: --user decides who owns what it writes there.
RUN useradd hookflat && mkdir -p /data/runs && chmod -R 777 /data
USER hookflat
WORKDIR /data
ENV HOME=/data USER=hookflat

ENTRYPOINT ["hookflat"]
CMD ["--help"]
