"""Devices: by the names of the command line, and by what their drivers call them."""

import pytest

from finetune.budget.devices import DEVICES, find_device, find_device_by_model
from finetune.errors import PlaceError


@pytest.mark.parametrize("device", DEVICES, ids=lambda device: device.name)
def test_every_device_says_what_of_it_is_assumed(device):
    assert find_device(device.name.upper()) is device
    assert any(line.startswith("products: ") for line in device.assumptions)
    assert any(f"${device.price_per_hour:.2f}" in line for line in device.assumptions)


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("Tesla T4", "t4"),
        ("NVIDIA L4", "l4"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("NVIDIA A100-SXM4-40GB", "a100-40gb"),
        ("NVIDIA A100 80GB PCIe", "a100-80gb"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
    ],
)
def test_a_driver_s_name_leads_to_its_device(model, name):
    found = find_device_by_model(model)
    assert found is not None
    assert found.name == name


def test_a_gpu_that_is_not_in_the_table_is_none_of_it():
    for model in (
        "NVIDIA L40S",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA GeForce RTX 4090 D",
        "NVIDIA A100-SXM4-40GB MIG 1g.5gb",
        "NVIDIA H100 PCIe",
        "NVIDIA H100 NVL",
    ):
        assert find_device_by_model(model) is None, model
    with pytest.raises(PlaceError, match="--device needs a name"):
        find_device("")
    with pytest.raises(PlaceError, match="--device h300: no such device is in the table") as told:
        find_device("h300")
    assert "Did you mean h100?" in str(told.value)


def test_a_price_of_one_s_own_takes_the_place_of_the_table_s():
    listed, own = find_device("t4"), find_device("t4").with_price(2.0)
    assert own.price_per_hour == 2.0
    assert own.assumptions[-1] == "price: $2.00 a device and hour, as given by --price"
    assert (len(own.assumptions), own.assumptions[0]) == (len(listed.assumptions), listed.assumptions[0])
