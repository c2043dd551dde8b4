"""Real images, and a cache of their own for what `datasets` prepares."""

import datasets
import pytest


@pytest.fixture(scope="session")
def photographs(shared, tmp_path_factory) -> list[bytes]:
    """The 120 JPEG files of the ImageNet sample."""
    path = str(shared / "data" / "imagenet_sample" / "test-00000-of-00001.parquet")
    dataset = datasets.Dataset.from_parquet(path, cache_dir=str(tmp_path_factory.mktemp("cache")))
    return [record["bytes"] for record in dataset.cast_column("image", datasets.Image(decode=False))["image"]]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Keep what `datasets` prepares out of the user's cache, and the tests off the network."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0.1, raising=False)  # 5 s a streamed pass
