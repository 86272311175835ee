# One image for a machine with an NVIDIA GPU and its container toolkit (CUDA 13 driver, 580 or newer).
#
#   docker build -t qlora-finetune .
#   docker run --gpus all --init -e HF_TOKEN -v hf-cache:/cache/huggingface -v outputs:/home/finetune/outputs \
#     qlora-finetune sft recipes/mistral_alpaca.yaml --resume
#
# Weights and runs live in the two volumes and outlive the container. A folder of the host in their place must be
# writable for user id 10001. The exec-form entrypoint hands SIGTERM to the run itself, which saves a checkpoint
# and ends with 143: give it time (docker stop --time 120).
FROM nvidia/cuda:13.0.1-runtime-ubuntu24.04

# gcc and the headers: Triton compiles its launchers at run time.
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends \
        gcc libc6-dev python3.12 python3.12-dev python3.12-venv \
    && rm -rf /var/lib/apt/lists/*

RUN python3.12 -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PYTHONUNBUFFERED=1

# torch first and alone, in a layer of its own: it is the big one, and nothing else decides which torch comes.
WORKDIR /opt/build
COPY constraints.txt ./
RUN python -m pip install --constraint constraints.txt torch

COPY pyproject.toml README.md LICENSE ./
COPY finetune ./finetune
RUN python -m pip install --constraint constraints.txt .

RUN useradd --create-home --uid 10001 finetune
WORKDIR /home/finetune
COPY --chown=finetune:finetune recipes ./recipes
COPY --chown=finetune:finetune data ./data
RUN mkdir -p /cache/huggingface outputs && chown -R finetune:finetune /cache/huggingface outputs

USER finetune
ENV HF_HOME=/cache/huggingface
VOLUME ["/cache/huggingface", "/home/finetune/outputs"]
ENTRYPOINT ["python", "-m", "finetune"]
