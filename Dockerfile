# CUDA 13 is in torch's own wheel (PyPI, Linux): an image of NVIDIA's would bring the same libraries a second time. From the
# host come the driver, 580 or newer, and the NVIDIA Container Toolkit.
FROM python:3.12.13-slim-trixie

ENV PYTHONUNBUFFERED=1 \
    PIP_NO_CACHE_DIR=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    QLORA_GUI_CACHE=/data/cache \
    QLORA_GUI_PAGE_ENDS_RUNS=1 \
    HF_HOME=/data/cache/huggingface

RUN useradd --create-home --uid 1000 trainer \
    && install --directory --owner trainer --group trainer /app /data /data/adapters /data/cache

WORKDIR /app
COPY requirements.txt ./
RUN pip install -r requirements.txt
COPY LICENSE README.md app.py ./
COPY qlora_gui ./qlora_gui

USER 1000
VOLUME ["/data/adapters", "/data/cache"]
EXPOSE 7860
# A login is always asked for on 0.0.0.0: one is made and printed unless QLORA_GUI_AUTH names it.
ENTRYPOINT ["python", "app.py", "--adapters-dir", "/data/adapters"]
CMD ["--host", "0.0.0.0", "--port", "7860", "--allow-dir", "/data/files"]
