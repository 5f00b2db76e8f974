# The service's own image: API, worker and migrations are the same image with other commands. No compiler, no torch.
FROM python:3.13-slim AS build
WORKDIR /src
RUN python -m venv /opt/retort
COPY requirements-s3.lock ./
RUN /opt/retort/bin/pip install --no-cache-dir --disable-pip-version-check \
    --require-hashes --only-binary :all: -r requirements-s3.lock
COPY pyproject.toml README.md LICENSE ./
COPY app app
COPY workers workers
COPY migrations migrations
RUN /opt/retort/bin/pip install --no-cache-dir --disable-pip-version-check --no-deps --no-index --no-build-isolation .

FROM python:3.13-slim
RUN useradd --create-home --uid 10001 retort && install --directory --owner retort --group retort /var/lib/retort
COPY --from=build /opt/retort /opt/retort
ENV PATH=/opt/retort/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    RETORT_DATA_DIR=/var/lib/retort
WORKDIR /var/lib/retort
USER retort
VOLUME /var/lib/retort
EXPOSE 8321
STOPSIGNAL SIGTERM
ENTRYPOINT ["retort"]
CMD ["serve"]
