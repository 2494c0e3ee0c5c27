# The tracking server with the MLflow of requirements.txt, PostgreSQL and S3.
#   docker build -f cluster/mlflow.Dockerfile -t MLFLOW_IMAGE cluster
ARG PYTHON_VERSION=3.11
FROM python:${PYTHON_VERSION}-slim
ARG MLFLOW_VERSION=3.17.2
RUN pip install --no-cache-dir mlflow==${MLFLOW_VERSION} boto3 psycopg2-binary==2.9.13 && useradd --create-home --uid 1000 mlflow
USER 1000
ENV MLFLOW_DISABLE_TELEMETRY=true
EXPOSE 5000
ENTRYPOINT ["mlflow", "server"]
