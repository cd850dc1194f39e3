# Training on a machine with an NVIDIA card: docs/training.md, "In a container", says how to build and run it.
# PyPI's torch for Linux brings CUDA's libraries, so the host gives no more than its driver.
FROM python:3.12-slim-bookworm

# torch.compile needs a C compiler at run time.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*

ARG UID=1000
RUN useradd --create-home --uid "$UID" flexip \
    && mkdir /data /runs \
    && chown flexip /data /runs

WORKDIR /opt/flexip
# Before the code, so that a change of it does not install torch anew.
COPY requirements.txt requirements-train.txt ./
RUN pip install --no-cache-dir torch==2.11.0 torchvision==0.26.0 -r requirements.txt -r requirements-train.txt
COPY . .
RUN pip install --no-cache-dir --no-deps --editable .

USER ${UID}
ENV PYTHONUNBUFFERED=1
WORKDIR /runs
VOLUME ["/data", "/runs"]
ENTRYPOINT ["python", "-m", "flexip_model"]
CMD ["--help"]
