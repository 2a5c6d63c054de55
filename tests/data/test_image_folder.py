"""Folders of real image files: what is read, how it is cut, and what happens to damaged ones."""

import itertools
import warnings

import numpy
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from pfa_convert import UserError, load_recipe, train
from pfa_convert.data import load_data
from pfa_convert.data.base import Shard

MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


@pytest.fixture
def root(tmp_path):
    """Two classes of 12 training and 6 test images, of several sizes and kinds."""
    torch.manual_seed(0)
    for part, count in (("train", 12), ("val", 6)):
        for name in ("cat", "dög with space"):
            folder = tmp_path / "imagenette" / part / name
            folder.mkdir(parents=True)
            for index in range(count):
                height, width = 40 + 3 * index, 70 - 2 * index
                pixels = torch.randint(256, (height, width, 3), dtype=torch.uint8).numpy()
                image = Image.fromarray(pixels).convert("L" if index == 1 else "RGB")
                image.save(folder / f"{index:03d}.{'png' if index % 2 else 'JPEG'}")
    return tmp_path


def load(root, workers=0, **options):
    return load_data(
        "imagenet",
        root,
        validation=0,
        device=torch.device("cpu"),
        workers=workers,
        options={"image_size": 24, "resize": 32, **options},
    )


def test_evaluation_is_torchvisions_resize_and_centre_crop(root):
    data = load(root)
    assert (len(data.train), len(data.evaluation), data.num_classes) == (24, 12, 2)
    images, labels = next(iter(data.evaluation.batches(12, Shard())))
    cut = v2.Compose([v2.Resize(32), v2.CenterCrop(24), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
    paths = sorted((root / "imagenette" / "val").glob("*/*"), key=lambda path: (path.parent.name, path.name))
    for path, image in zip(paths, images, strict=True):
        expected = v2.Normalize(MEAN, STD)(cut(Image.open(path).convert("RGB")))
        assert torch.allclose(image, expected, atol=1e-5)
    assert labels.tolist() == [0] * 6 + [1] * 6


def test_the_number_of_workers_changes_nothing(root):
    def epoch(workers, shard=None):
        return list(load(root, workers).train.batches(8, shard or Shard(), order_seed=5))

    for (one, labels), (two, others) in zip(epoch(0), epoch(2), strict=True):
        assert torch.equal(one, two) and torch.equal(labels, others)
    halves = [epoch(0, Shard(rank, 2)) for rank in (0, 1)]
    for (whole, _), (first, _), (second, _) in zip(epoch(0), *halves, strict=True):
        assert torch.equal(whole[0::2], first) and torch.equal(whole[1::2], second)
    again = load(root).train.batches(8, Shard(), order_seed=6)
    assert not torch.equal(next(iter(again))[0], epoch(0)[0][0])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_image_is_named(root, workers):
    damaged = root / "imagenette" / "train" / "cat" / "004.JPEG"
    damaged.write_bytes(damaged.read_bytes()[:200])
    with pytest.raises(UserError) as error:
        list(load(root, workers).train.batches(8, Shard(), order_seed=0))
    assert str(damaged) in str(error.value)


def test_what_a_reading_process_raises_arrives_with_its_traceback(root, monkeypatch):
    def fail(path):
        raise ZeroDivisionError(f"no way to read {path}")

    monkeypatch.setattr("pfa_convert.data.image_folder.decode", fail)
    with pytest.raises(ZeroDivisionError, match=r"(?s)worker process 0.*Traceback.*no way to read"):
        list(load(root, workers=2).train.batches(8, Shard(), order_seed=0))


def test_a_damaged_image_is_skipped_where_the_recipe_says_so(root):
    damaged = root / "imagenette" / "val" / "cat" / "002.JPEG"
    damaged.write_text("not an image")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        images, _ = next(iter(load(root, skip_unreadable=True).evaluation.batches(12, Shard())))
    assert torch.equal(images[2], images[3])  # the next one takes its place
    assert [str(damaged) in str(warning.message) for warning in caught] == [True]
    for path in (root / "imagenette" / "val").glob("*/*"):
        path.write_text("not an image")
    with warnings.catch_warnings(), pytest.raises(UserError, match="no image can be read"):
        warnings.simplefilter("ignore")
        next(iter(load(root, skip_unreadable=True).evaluation.batches(12, Shard())))


def test_the_imagenet_recipe_runs_on_such_a_folder(root, tmp_path):
    settings = ["train.epochs=1", "data.batch_size=24", "data.workers=0"]
    settings += ["data.options={image_size: 32, resize: 40}"]
    result = train(load_recipe("imagenet-resnet18-pfa-o", settings), data_root=root, output=tmp_path / "run")
    assert result.evaluated_on == "test" and result.epochs == 1
    assert len(result.angle_deg) == 21


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: (root / "imagenette" / "val").rename(root / "gone"), "train and val"),
        (lambda root: (root / "imagenette" / "val" / "cow").mkdir(), "no training images"),
        (lambda root: [p.unlink() for p in (root / "imagenette" / "train").glob("*/*")], "has no images"),
    ],
)
def test_a_folder_that_is_not_one_is_refused(root, change, message):
    change(root)
    with pytest.raises(UserError, match=message):
        load(root)


def test_mnist_and_cifar_say_where_their_files_should_be(tmp_path):
    for name, options in itertools.product(("mnist", "fashion_mnist", "cifar10", "cifar100"), ({},)):
        with pytest.raises(UserError, match="--data"):
            load_data(name, tmp_path, validation=0, device=torch.device("cpu"), workers=0, options=options)


def test_an_evaluation_crop_larger_than_what_it_is_cut_from_is_refused(root):
    with pytest.raises(UserError, match=r"resize: 32 .* 48"):
        load(root, image_size=48)


@pytest.mark.parametrize(("kind", "mode"), [("uint16", "I;16"), ("float32", "F")])
def test_images_of_more_than_8_bits_are_named_and_not_clipped(root, kind, mode):
    path = root / "imagenette" / "train" / "cat" / "deep.tiff"
    Image.fromarray(numpy.arange(1600).reshape(40, 40).astype(kind)).save(path)
    with pytest.raises(UserError, match=rf"deep.tiff.*more than 8 bits \(mode {mode}"):
        list(load(root).train.batches(8, Shard(), 0))


def test_hidden_files_are_no_images(root):
    before = len(load(root).train)
    (root / "imagenette" / "train" / "cat" / "._000.JPEG").write_bytes(b"resource fork")
    assert len(load(root).train) == before


def test_reading_images_draws_none_of_the_runs_random_numbers(root):
    state = torch.get_rng_state()
    next(iter(load(root).train.batches(4, Shard(), 0)))
    assert torch.equal(torch.get_rng_state(), state)
