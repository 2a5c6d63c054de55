"""MNIST and CIFAR from files as they are distributed, written here with known content."""

import gzip
import struct

import numpy
import pytest
import torch
from PIL import Image

from pfa_convert import UserError
from pfa_convert.data import load_data
from pfa_convert.data.base import DATASETS, DeviceSplit, Normalisation, Shard, hold_out


def write_idx(path, array):
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    path.write_bytes(header + array.tobytes())


@pytest.fixture
def mnist(tmp_path):
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    generator = numpy.random.default_rng(0)
    content = {}
    for part, count in (("train", 50), ("t10k", 20)):
        images = generator.integers(0, 256, (count, 28, 28), dtype=numpy.uint8)
        labels = generator.integers(0, 10, count, dtype=numpy.uint8)
        write_idx(folder / f"{part}-images-idx3-ubyte", images)
        write_idx(folder / f"{part}-labels-idx1-ubyte", labels)
        content[part] = images, labels
    return tmp_path, content


def load(name, root, validation=0, **options):
    return load_data(
        name, root, validation=validation, device=torch.device("cpu"), workers=0, options=options
    )


def test_mnist_is_normalised_by_its_mean_and_standard_deviation(mnist):
    root, content = mnist
    images, labels = next(iter(load("mnist", root).evaluation.batches(20, Shard())))
    expected = (torch.from_numpy(content["t10k"][0]).unsqueeze(1) / 255 - 0.1307) / 0.3081
    assert torch.allclose(images, expected, atol=1e-5)
    assert labels.tolist() == content["t10k"][1].tolist()


def test_held_out_images_are_the_same_in_every_run_and_not_trained_on(mnist):
    root, _ = mnist
    first, second = load("mnist", root, validation=15), load("mnist", root, validation=15)
    assert (len(first.train), len(first.evaluation), len(first.test)) == (35, 15, 20)
    assert first.evaluation_name == "validation"
    one, two = (next(iter(data.evaluation.batches(15, Shard())))[0] for data in (first, second))
    assert torch.equal(one, two)
    trained = next(iter(first.train.batches(35, Shard(), order_seed=0)))[0].flatten(1)
    assert not any((trained == image).all(1).any() for image in one.flatten(1))


def test_where_the_files_are_mixed_the_last_images_are_held_out():
    images = torch.arange(20, dtype=torch.uint8).view(20, 1, 1, 1)
    train = DeviceSplit(images, torch.arange(20), Normalisation((0.0,), (1 / 255,)))
    by_index = hold_out(train, train, 5, num_classes=20, mixed=True)
    assert next(by_index.evaluation.batches(5, Shard()))[1].tolist() == [15, 16, 17, 18, 19]
    assert next(by_index.train.batches(15, Shard()))[1].tolist() == list(range(15))
    random = hold_out(train, train, 5, num_classes=20)
    assert next(random.evaluation.batches(5, Shard()))[1].tolist() != [15, 16, 17, 18, 19]


def test_a_truncated_mnist_file_is_refused(mnist):
    root, _ = mnist
    path = root / "MNIST" / "raw" / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match="MNIST"):
        load("mnist", root)
    path.write_bytes(gzip.compress(b"something else"))
    with pytest.raises(UserError, match="MNIST"):
        load("mnist", root)


@pytest.fixture
def cifar(tmp_path):
    for part, count in (("train", 3), ("test", 2)):
        for label in range(10):
            folder = tmp_path / "cifar10" / part / f"class{label}"
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = numpy.full((32, 32, 3), 20 * label + index, dtype=numpy.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.png")
    return tmp_path


def test_cifar_from_a_folder_is_decoded_once_and_again_when_the_files_change(cifar):
    data = load("cifar10", cifar)
    assert (len(data.train), len(data.evaluation)) == (30, 20)
    images, labels = next(iter(data.evaluation.batches(20, Shard())))
    mean, std = torch.tensor([0.4914, 0.4822, 0.4465]), torch.tensor([0.2470, 0.2435, 0.2616])
    assert torch.allclose(images[3, :, 0, 0], (21 / 255 - mean) / std, atol=1e-5)
    assert labels.tolist() == [label for label in range(10) for _ in range(2)]
    (cifar / "cifar10" / "test" / "class0" / "0.png").unlink()
    assert len(load("cifar10", cifar).evaluation) == 19


def test_fewer_images_are_always_the_same_ones_of_all_classes(cifar):
    data = load("cifar10", cifar, images=20, validation=5)
    again = load("cifar10", cifar, images=20, validation=5)
    assert (len(data.train), len(data.evaluation), len(data.test)) == (20, 5, 20)
    assert torch.equal(data.train.images, again.train.images)
    whole = load("cifar10", cifar, validation=5)
    assert {bytes(i.numpy()) for i in data.train.images} <= {bytes(i.numpy()) for i in whole.train.images}
    assert len(set(data.train.labels.tolist())) > 6
    with pytest.raises(UserError, match="30 are more than the 25"):
        load("cifar10", cifar, images=30, validation=5)


def test_a_damaged_cache_is_made_anew(cifar):
    load("cifar10", cifar)
    cache = cifar / "cifar10" / "train.safetensors"
    cache.write_bytes(cache.read_bytes()[:100])
    assert len(load("cifar10", cifar).train) == 30


@pytest.mark.parametrize("size", [(32, 31), (64, 64)])
def test_an_image_of_another_size_is_named(cifar, size):
    path = cifar / "cifar10" / "train" / "class3" / "1.png"
    Image.new("RGB", size).save(path)
    with pytest.raises(UserError, match=f"{path}: has the size {size[0]} x {size[1]}"):
        load("cifar10", cifar)


@pytest.mark.parametrize("images", [1, 3])
def test_even_the_smallest_synthetic_set_has_an_image_to_be_judged_by(images):
    data = DATASETS["synthetic"](images=images, validation=0, device=torch.device("cpu"))
    assert (len(data.train), len(data.evaluation)) == (images, 1)


@pytest.mark.parametrize("shape", [(), (64,), (8, 8), (1, 1, 8, 8)])
def test_a_shape_that_is_no_images_is_refused(shape):
    with pytest.raises(UserError, match="channels, height and width"):
        DATASETS["synthetic"](shape=shape, validation=0, device=torch.device("cpu"))
