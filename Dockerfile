# sam2_mem with its studio, for the CPU or for CUDA: the wheels of torch bring CUDA's libraries, so both start from the same image.
#
#   docker build -t sam2_mem .                                                        # CPU
#   docker build -t sam2_mem:cuda --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu126 .
#   docker run --rm -v "$PWD":/data sam2_mem segment --video clip.mp4 --box 100,80,300,260 --output out
#   docker run --rm --gpus all -v "$PWD":/data sam2_mem:cuda segment --sam2_checkpoint sam2.1_hiera_tiny.pt ...
FROM python:3.12-slim

ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG EXTRAS=studio,hub

ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1

WORKDIR /opt/sam2_mem
COPY constraints.txt setup.py pyproject.toml README.md LICENSE ./
RUN pip install -c constraints.txt --extra-index-url "$TORCH_INDEX" torch torchvision setuptools wheel

COPY configs configs
COPY checkpoints checkpoints
COPY sam2_mem sam2_mem
RUN pip install -c constraints.txt --extra-index-url "$TORCH_INDEX" --no-build-isolation ".[$EXTRAS]"

# The user's files; results belong to whoever runs the container (docker run --user "$(id -u):$(id -g)").
WORKDIR /data
ENV HOME=/tmp
ENTRYPOINT ["sam2-mem"]
CMD ["--help"]
