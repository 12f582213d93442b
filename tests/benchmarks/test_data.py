import gzip

import numpy as np
import pytest
import torch

from benchmarks.data import ROOT_VARIABLE, fashion_mnist, installed_folder

installed = pytest.mark.skipif(
    not installed_folder().is_dir(), reason="Fashion-MNIST is not installed: apt-get install dataset-fashion-mnist"
)


@pytest.fixture
def folder(tmp_path):
    """Eight training images, image i all of value i with label i, and two test images."""
    for part, count in (("train", 8), ("t10k", 2)):
        labels = np.arange(count, dtype=np.uint8)
        images = np.broadcast_to(labels[:, None, None], (count, 28, 28))
        header = bytes([0, 0, 8, 3]) + np.array(images.shape, ">u4").tobytes()
        (tmp_path / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(header + images.tobytes()))
        header = bytes([0, 0, 8, 1]) + np.array(labels.shape, ">u4").tobytes()
        (tmp_path / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(header + labels.tobytes()))
    return tmp_path


def test_validation_follows_train_and_shares_no_image_with_it(folder):
    splits = fashion_mnist(folder, train=5, validation=3, test=2)
    assert splits.train.labels.tolist() == [0, 1, 2, 3, 4]
    assert splits.validation.labels.tolist() == [5, 6, 7]
    assert splits.test.labels.tolist() == [0, 1]


def test_all_splits_are_normalized_by_the_train_split(folder):
    splits = fashion_mnist(folder, train=5, validation=3, test=2)
    assert splits.train.images.mean().item() == pytest.approx(0, abs=1e-6)
    assert splits.train.images.std(correction=0).item() == pytest.approx(1)
    assert splits.validation.images[0, 0, 0, 0].item() == pytest.approx((5 - 2) / np.sqrt(2))
    assert splits.test.images[0, 0, 0, 0].item() == pytest.approx((0 - 2) / np.sqrt(2))


def test_the_environment_names_the_folder(folder, monkeypatch):
    monkeypatch.setenv(ROOT_VARIABLE, str(folder))
    assert len(fashion_mnist(train=4, validation=1, test=1).train) == 4


def test_more_images_than_there_are_is_an_error(folder):
    with pytest.raises(ValueError, match="9 images asked for, but train has 8"):
        fashion_mnist(folder, train=8, validation=1, test=1)


def test_a_missing_data_set_tells_how_to_install_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="apt-get install dataset-fashion-mnist"):
        fashion_mnist(tmp_path)


def test_a_file_of_another_format_is_an_error(folder):
    (folder / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(b"not images"))
    with pytest.raises(ValueError, match="not an IDX file"):
        fashion_mnist(folder, train=1, validation=1, test=1)


@pytest.mark.dataset
@installed
def test_the_installed_set_has_the_expected_shapes_and_labels():
    splits = fashion_mnist()
    for split, count in ((splits.train, 10_000), (splits.validation, 2_000), (splits.test, 10_000)):
        assert split.images.shape == (count, 1, 28, 28)
        assert split.images.dtype == torch.float32
        assert split.labels.shape == (count,)
        assert split.labels.dtype == torch.long
        assert split.labels.unique().tolist() == list(range(10))
    assert splits.test.labels.bincount().tolist() == [1_000] * 10
