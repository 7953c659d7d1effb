# A model behind HTTP: docker build -t manyviews . && docker run -p 127.0.0.1:8000:8000 -v ./models/clothes:/model:ro manyviews
FROM python:3.13-slim
WORKDIR /app
COPY pyproject.toml README.md LICENSE ./
COPY manyviews manyviews
# PyTorch's wheels without CUDA are a tenth of the size.
RUN pip install --no-cache-dir --extra-index-url https://download.pytorch.org/whl/cpu ".[serve]" \
    && useradd --create-home serving
USER serving
EXPOSE 8000
# Published to other machines, it needs their names for it, too: docker run ... manyviews --name photos.example.org
ENTRYPOINT ["manyviews", "serve", "/model", "--host", "0.0.0.0", "--name", "localhost", "--name", "127.0.0.1"]
