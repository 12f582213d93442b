"""What a task takes, and what it refuses."""

from collections import UserDict

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from fxsurgery.errors import DataError
from fxsurgery.inputs import Inputs
from fxsurgery.training import Task, steps_for
from fxsurgery.training.array_loader import samples
from fxsurgery.training.batches import set_epoch
from fxsurgery.training.invocation import predict
from fxsurgery.training.task import accuracy, cross_entropy


def arrays(samples=10):
    x = torch.arange(samples * 3, dtype=torch.float32).reshape(samples, 3)
    return x, torch.arange(samples) % 2


def order(task, epoch):
    set_epoch(task.train_data, epoch)
    return torch.cat([x[:, 0] for x, _ in task.train_data]).tolist()


def test_shuffle_depends_on_seed_and_epoch_alone():
    task, again = (Task.of(arrays(), arrays(), batch_size=4, seed=3) for _ in range(2))
    first = order(task, 0)
    assert sorted(first) == arrays()[0][:, 0].tolist()
    assert order(task, 1) != first
    assert order(again, 1) == order(task, 1)
    assert order(task, 0) == first
    assert order(Task.of(arrays(), arrays(), batch_size=4, seed=4), 0) != first


def test_validation_data_keep_their_order():
    task = Task.of(arrays(), arrays(), batch_size=4)
    assert torch.equal(torch.cat([x for x, _ in task.val_data]), arrays()[0])


@pytest.mark.parametrize(
    "data",
    [
        arrays(),
        tuple(t.numpy() for t in arrays()),
        TensorDataset(*arrays()),
        DataLoader(TensorDataset(*arrays()), batch_size=4),
    ],
    ids=["tensors", "arrays", "dataset", "loader"],
)
def test_takes_tensors_arrays_datasets_and_loaders(data):
    task = Task.of(data, data, test_data=data, batch_size=4)
    assert [len(y) for _, y in task.val_data] == [4, 4, 2]
    assert task.examples().tensors[0].shape == (2, 3)
    assert len(task.test_data) == 3


def test_a_task_by_itself_wants_loaders():
    loader = DataLoader(TensorDataset(*arrays()))
    for wrong in ({"train_data": arrays()}, {"val_data": [arrays()]}, {"test_data": TensorDataset(*arrays())}):
        with pytest.raises(DataError, match=rf"{next(iter(wrong))} of a Task is a DataLoader.*Task\.of"):
            Task(**{"train_data": loader, "val_data": loader, **wrong})


def test_numpy_doubles_and_short_integers_become_what_torch_expects():
    task = Task.of((np.zeros((4, 3)), np.zeros(4, np.int32)), arrays())
    x, y = next(iter(task.train_data))
    assert (x.dtype, y.dtype) == (torch.float32, torch.int64)


def test_examples_span_batches_of_one():
    loader = DataLoader(TensorDataset(*arrays()), batch_size=1)
    assert torch.equal(Task(loader, loader).examples(3).tensors[0], arrays()[0][:3])


def texts(samples=10):
    return {
        "input_ids": torch.arange(samples * 4).reshape(samples, 4) % 7,
        "attention_mask": torch.arange(4) <= torch.arange(samples)[:, None] % 4,
        "labels": torch.arange(samples) % 2,
    }


class Rows(Dataset):
    """Samples that are dicts."""

    def __len__(self):
        return 10

    def __getitem__(self, index):
        return {key: value[index] for key, value in texts().items()}


@pytest.mark.parametrize(
    "data",
    [
        texts(),
        {key: value.numpy() for key, value in texts().items()},
        UserDict(texts()),
        ({key: texts()[key] for key in ("input_ids", "attention_mask")}, texts()["labels"]),
        Rows(),
        DataLoader(Rows(), batch_size=4),
    ],
    ids=["dict", "arrays", "user dict", "dict and target", "dataset", "loader"],
)
def test_inputs_in_a_dict_go_by_name(data):
    task = Task.of(data, data, batch_size=4)
    batch = next(iter(task.val_data))
    inputs, target = task.take_apart(batch)
    assert (inputs.args, list(inputs.kwargs)) == ((), ["input_ids", "attention_mask"])
    assert torch.equal(inputs.kwargs["input_ids"], texts()["input_ids"][:4])
    assert target.tolist() == [0, 1, 0, 1]
    assert samples(batch) == 4
    found = task.examples().kwargs
    assert [(k, v.shape, v.dtype) for k, v in found.items()] == [
        ("input_ids", (2, 4), torch.int64),
        ("attention_mask", (2, 4), torch.bool),
    ]


def test_a_batch_within_an_unregistered_mapping_is_counted_and_split():
    task = Task.of(texts(), texts())
    inputs, target = task.take_apart(UserDict(texts(6)))
    assert samples(UserDict(texts(6))) == inputs.batch == len(target) == 6


def test_examples_stop_where_the_padding_changes():
    loader = DataLoader([{"ids": torch.arange(n), "y": n} for n in (3, 3, 5)], batch_size=1)
    assert Task(loader, loader).examples(3).kwargs["ids"].shape == (2, 3)


def test_examples_slice_only_what_is_batched():
    task = Task.of(arrays(), arrays(), batch_size=4, split=lambda b: ((b[0], torch.eye(3), 2.0, "mean"), b[1]))
    x, table, factor, how = task.examples().args
    assert (x.shape, table.shape, factor, how) == ((2, 3), (3, 3), 2.0, "mean")


def test_inputs_without_a_batch_are_refused():
    task = Task.of(arrays(), arrays(), split=lambda b: ({"temperature": torch.tensor(1.0)}, b[1]))
    with pytest.raises(DataError, match=r"no tensor .* has a batch dimension: \(temperature=\(\) float32\)"):
        task.examples()


def test_metric_is_accuracy_for_the_default_loss_and_else_the_loss():
    plain = Task.of(arrays(), arrays())
    assert (plain.metric_name, plain.higher_is_better) == ("accuracy", True)
    regression = Task.of(arrays(), arrays(), loss=nn.MSELoss())
    assert (regression.metric_name, regression.higher_is_better, regression.metric) == ("loss", False, None)

    def f1(output, target):
        return 0.5

    assert Task.of(arrays(), arrays(), metric=f1).metric_name == "f1"


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (None, "Task needs train_data="),
        ((torch.zeros(0, 3), torch.zeros(0)), "train_data has no samples"),
        ((torch.zeros(3, 3), torch.zeros(2)), "different numbers of samples"),
        ({"x": torch.zeros(3, 3), "y": torch.zeros(2)}, "different numbers of samples"),
        ({"x": ["a", "b"], "y": torch.zeros(2)}, "must hold tensors or arrays of samples, not list"),
        ((torch.zeros(3, 3),), "inputs and a target"),
        ([(torch.zeros(3, 3), torch.zeros(3))] * 2, "several inputs go as"),
        (7, "must be a DataLoader, a Dataset, or a tuple"),
    ],
)
def test_refuses_data_that_it_cannot_use(train, message):
    with pytest.raises(DataError, match=message):
        Task.of(train, arrays())


def test_batch_that_cannot_be_split_says_how_to():
    loader = DataLoader([{"image": torch.zeros(3), "class": 1}] * 4, batch_size=2)
    with pytest.raises(
        DataError, match=r"dict\(image=\(2, 3\) float32, class=\(2,\) int64\).*build the data with Task\.of"
    ):
        Task.of(loader, loader).examples()


def test_a_batch_without_a_known_target_names_the_key_that_is_there():
    batch = {"image": torch.zeros(2, 3), "cls": torch.zeros(2), "table": torch.zeros(2, 4)}
    with pytest.raises(DataError) as caught:
        Task.of(texts(), texts()).take_apart(batch)
    assert "split=lambda batch: ({'image': batch['image'], 'table': batch['table']}, batch['cls'])" in str(caught.value)


class TwoInputs(nn.Module):
    def forward(self, image, table, scale=1.0):
        return (image + table) * scale


@pytest.mark.parametrize(
    ("names", "steps", "taken"),
    [
        (("img", "table"), "rename 'img' to 'image'", "{'image': batch['img'], 'table': batch['table']}"),
        (("pixels", "table"), "rename 'pixels' to 'image'", "{'image': batch['pixels'], 'table': batch['table']}"),
        (("image", "table", "idx"), "leave out 'idx'", "{'image': batch['image'], 'table': batch['table']}"),
        (("img", "table", "idx"), "rename 'img' to 'image' and leave out 'idx'", "{'image': batch['img'], 'table': "),
        (("image", "first", "zzz"), "add 'table' and leave out 'first', 'zzz'", "{'image': batch['image']}"),
    ],
)
def test_names_that_forward_does_not_take_are_renamed_before_they_are_left_out(names, steps, taken):
    inputs = Inputs((), {name: torch.zeros(2, 4) for name in names})
    with pytest.raises(DataError) as caught:
        predict(TwoInputs(), inputs)
    assert f"it takes image, table, scale; in the data, {steps}. Or build the data" in str(caught.value)
    assert taken in str(caught.value)


@pytest.mark.parametrize("function", [cross_entropy, accuracy])
def test_a_target_that_is_a_dict_asks_for_another_function(function):
    with pytest.raises(TypeError, match="takes a tensor of class numbers as target"):
        function({"logits": torch.zeros(2, 3), "box": torch.zeros(2, 4)}, {"cls": torch.zeros(2).long()})


def test_a_dict_with_two_keys_for_the_target_is_not_guessed():
    batch = {**texts(), "label": texts()["labels"]}
    with pytest.raises(DataError, match="cannot tell inputs from target"):
        Task.of(texts(), texts()).take_apart(batch)


def test_split_that_fails_is_told_with_the_batch():
    task = Task.of(arrays(), arrays(), split=lambda batch: batch["x"])
    with pytest.raises(DataError, match=r"split must turn a batch into \(inputs, target\); on tuple"):
        task.examples()


class Stream(IterableDataset):
    def __iter__(self):
        return iter(zip(*arrays(), strict=True))


def test_steps_are_bounded_both_ways():
    task = Task.of(arrays(), arrays(), batch_size=1)
    assert steps_for(task, 3, min_steps=1) == 30
    assert steps_for(task, 3, min_steps=50) == 50
    assert steps_for(task, 3, max_steps=20, min_steps=1) == 20
    assert steps_for(task, 0) == 0


def test_steps_of_data_without_a_length_are_counted():
    assert steps_for(Task.of(Stream(), arrays(), batch_size=4), 2, min_steps=1) == 6


X = torch.linspace(-1, 2, 12).reshape(4, 3)


@pytest.mark.parametrize(
    ("output", "target", "message"),
    [
        (X[:, :1], X[:, :1], "two classes at least"),
        (X[:, 0], X[:, 0], "two classes at least"),
        (X, X, "class numbers, or probabilities"),
        (X, X.abs(), "class numbers, or probabilities"),
    ],
)
def test_what_is_no_classification_wants_a_loss_of_its_own(output, target, message):
    """PyTorch's cross-entropy takes every one of these."""
    nn.functional.cross_entropy(output, target)
    with pytest.raises(ValueError, match=rf"{message}.*give its loss, such as loss=nn\.MSELoss\(\)"):
        cross_entropy(output, target)


@pytest.mark.parametrize(
    "output", [{"out": torch.zeros(2, 3)}, (torch.zeros(2, 3), torch.zeros(2))], ids=["dict", "tuple"]
)
def test_an_output_of_parts_wants_to_be_told_which_is_the_classes(output):
    for function in (cross_entropy, accuracy):
        with pytest.raises(TypeError, match=r"`logits`; for any other output, .*loss=lambda output, target"):
            function(output, torch.tensor([0, 1]))


def test_soft_labels_are_classification():
    target = X.softmax(1)
    assert cross_entropy(X, target) == nn.functional.cross_entropy(X, target)
    assert accuracy(X, target) == 1
