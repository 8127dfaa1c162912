"""Arrays on a device: one copy, from the device to where the viewers read, and none on the host."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import openhcs_stream
from openhcs_stream.errors import InvalidItem
from openhcs_stream.pixels import Copier, PixelPool, Slot
from openhcs_stream.stream._device import ADAPTERS, DeviceArray, copy_into, on_device
from openhcs_stream.stream._payload import as_array, as_table, with_axes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy.typing as npt

    from tests.stream.conftest import Served

MIB = 1 << 20


@dataclass
class Device:
    """A device whose memory nobody can read but by a copy, and that counts these."""

    copies: list[npt.NDArray[Any]] = field(default_factory=list)
    pinned: dict[int, int] = field(default_factory=dict)
    unpinned: list[int] = field(default_factory=list)
    refuses: bool = False
    asked: int = 0

    @property
    def nbytes(self) -> int:
        return sum(out.nbytes for out in self.copies)

    def register(self, address: int, nbytes: int) -> Callable[[], object] | None:
        self.asked += 1
        if self.refuses:
            return None
        assert address not in self.pinned
        self.pinned[address] = nbytes
        return lambda: self.unpinned.append(address)


class Tensor:
    """An array on that device. It has no `__array__`: numpy can't come by its values."""

    def __init__(self, device: Device, values: npt.NDArray[Any]) -> None:
        self.device = device
        self.values = values


class Adapted(DeviceArray):
    def __init__(self, tensor: Tensor) -> None:
        super().__init__(tensor.values.shape, tensor.values.dtype)
        self.tensor = tensor
        self.register = tensor.device.register

    def _of(self, values: npt.NDArray[Any]) -> Adapted:
        return Adapted(Tensor(self.tensor.device, values))

    def __getitem__(self, index: int | slice) -> Adapted:
        return self._of(self.tensor.values[index])

    def transpose(self, order: tuple[int, ...]) -> Adapted:
        return self._of(self.tensor.values.transpose(order))

    def copy_to(self, out: npt.NDArray[Any]) -> None:
        assert (out.shape, out.dtype) == (self.shape, self.dtype)
        assert out.flags.c_contiguous
        self.tensor.device.copies.append(out)
        out[...] = self.tensor.values


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    """A device whose arrays are known as torch's and cupy's are."""
    monkeypatch.setitem(sys.modules, "fake_device", ModuleType("fake_device"))
    monkeypatch.setitem(
        ADAPTERS,
        "fake_device",
        lambda _, data: Adapted(data) if isinstance(data, Tensor) else None,
    )
    return Device()


@pytest.fixture
def slots(monkeypatch: pytest.MonkeyPatch) -> list[Slot]:
    """All slots that were taken, of all streams: this is where pixels have to be."""
    taken: list[Slot] = []
    acquire = PixelPool.acquire

    def noted(self: PixelPool, *args: Any, **options: Any) -> Slot | None:
        slot = acquire(self, *args, **options)
        if slot is not None:
            taken.append(slot)
        return slot

    monkeypatch.setattr(PixelPool, "acquire", noted)
    return taken


def all_planes(served: Served, name: str) -> dict[Any, npt.NDArray[Any]]:
    layer = next(each for each in served.viewer.layers.values() if each.key.name == name)
    return {coords: np.asarray(plane) for coords, plane in layer.stack.planes.items()}


def numbers(*shape: int, dtype: str = "uint16") -> npt.NDArray[Any]:
    return np.random.default_rng(7).integers(0, 200, shape).astype(dtype)


# --- one copy ---------------------------------------------------------------------------------


@pytest.mark.parametrize("side_lane", [True, False], ids=["shared-memory", "zeromq"])
@pytest.mark.parametrize("dtype", ["bool", "uint8", "uint16", "uint32", "float32"])
def test_an_image_is_copied_once_straight_into_a_slot(
    served: Served, device: Device, slots: list[Slot], dtype: str, side_lane: bool
) -> None:
    pixels = numbers(50, 70, dtype=dtype)
    with openhcs_stream.connect(served.address, side_lane=side_lane) as stream:
        stream.image(Tensor(device, pixels), name="it").wait()
        np.testing.assert_array_equal(all_planes(served, "it")[()], pixels)
        (out,) = device.copies
        (slot,) = slots
        assert out.__array_interface__["data"][0] == slot.address


def test_an_image_larger_than_a_slot_is_copied_piece_by_piece(
    served: Served, device: Device, slots: list[Slot]
) -> None:
    pixels = numbers(12, 512, 512)
    with openhcs_stream.connect(served.address, quota_nbytes=8 * MIB) as stream:
        limit = stream._pool.chunk_limit
        assert pixels.nbytes > 2 * limit
        stream.image(Tensor(device, pixels), name="it", axes="ZYX").wait()
        for z, plane in enumerate(pixels):
            np.testing.assert_array_equal(all_planes(served, "it")[(z,)], plane)
        assert device.nbytes == pixels.nbytes  # each byte once
        assert len(device.copies) == len(slots) == -(-pixels.nbytes // limit)
        where = [out.__array_interface__["data"][0] for out in device.copies]
        assert where == [slot.address for slot in slots]


@pytest.mark.parametrize(
    ("axes", "view"),
    [
        ("XY", lambda values: values),
        ("YX", lambda values: values[::3, ::-1]),
        ("SYX", lambda values: values[:3]),
    ],
    ids=["transposed", "strided", "samples-first"],
)
def test_a_view_is_copied_once(
    served: Served, device: Device, axes: str, view: Callable[[Any], Any]
) -> None:
    pixels = view(numbers(*(6, 20, 30)[-len(axes) :], dtype="uint8"))
    with openhcs_stream.connect(served.address) as stream:
        stream.image(Tensor(device, pixels), name="it", axes=axes).wait()
        shown = pixels.transpose([axes.index(letter) for letter in "YXS"[: len(axes)]])
        np.testing.assert_array_equal(all_planes(served, "it")[()], shown)
        assert len(device.copies) == 1


def test_labels_and_batches_are_copied_once_each(served: Served, device: Device) -> None:
    first, second = numbers(9, 9, dtype="uint32"), numbers(9, 9, dtype="int16")
    with openhcs_stream.connect(served.address) as stream:
        with stream.batch():
            stream.labels(Tensor(device, first), name="labels")
            stream.image(Tensor(device, second), name="image")
        stream.flush()
        np.testing.assert_array_equal(all_planes(served, "labels")[()], first)
        np.testing.assert_array_equal(all_planes(served, "image")[()], second)
        assert len(device.copies) == 2


def test_what_is_wrong_is_told_before_anything_is_copied(served: Served, device: Device) -> None:
    with openhcs_stream.connect(served.address) as stream:
        for wrong, axes in (
            (numbers(4, 4, dtype="complex64"), "YX"),
            (numbers(4, 4), "ZYX"),
            (numbers(0, 4), "YX"),
        ):
            with pytest.raises(InvalidItem):
                stream.image(Tensor(device, wrong), axes=axes)
        with pytest.raises(InvalidItem, match="labels"):
            stream.labels(Tensor(device, numbers(4, 4, dtype="float32")))
        assert not device.copies


def test_a_copy_that_fails_gives_its_slot_back(served: Served, device: Device) -> None:
    class Broken(Adapted):
        def copy_to(self, out: npt.NDArray[Any]) -> None:
            raise RuntimeError("an illegal memory access was encountered")

    with openhcs_stream.connect(served.address) as stream:
        array, axes = with_axes(Broken(Tensor(device, numbers(4, 4))), "YX")
        with pytest.raises(RuntimeError, match="illegal"):
            stream._send("image", array, "it", axes, {}, openhcs_stream.stream._layers.PLAIN, {})
        assert stream._pool.stats().used_nbytes == 0


def test_points_on_a_device_are_a_table(device: Device) -> None:
    points = numbers(5, 2, dtype="float32")
    table, axes = as_table(Tensor(device, points), kind="points", axes=None)
    np.testing.assert_array_equal(table, points)
    assert (axes, len(device.copies)) == ("YX", 1)


# --- pinned memory ----------------------------------------------------------------------------


@pytest.fixture
def pool() -> Iterator[PixelPool]:
    with PixelPool(quota_nbytes=MIB) as pool:
        yield pool


def fill(pool: PixelPool, tensor: Tensor) -> Slot:
    slot = pool.acquire(tensor.values.nbytes)
    assert slot is not None
    copy_into(slot, as_array(tensor), tensor.values.dtype.str, Copier())
    np.testing.assert_array_equal(
        slot.array(tensor.values.shape, tensor.values.dtype), tensor.values
    )
    return slot


def test_a_slot_is_pinned_once_however_often_it_is_used(pool: PixelPool, device: Device) -> None:
    used = set()
    for _ in range(20):
        slot = fill(pool, Tensor(device, numbers(30, 30)))
        used.add((slot.address, slot.capacity))
        pool.cancel(slot)
    assert used == set(device.pinned.items())
    assert not device.unpinned


def test_an_array_of_the_host_pins_nothing(pool: PixelPool, device: Device) -> None:
    slot = pool.acquire(8)
    assert slot is not None
    copy_into(slot, np.arange(4, dtype=">u2"), "<u2", Copier())
    np.testing.assert_array_equal(slot.array(4, "<u2"), np.arange(4))
    assert not device.asked


def test_what_was_pinned_is_not_any_more_when_the_pool_is_closed(device: Device) -> None:
    with PixelPool(quota_nbytes=MIB) as pool:
        for side in (10, 100, 300):
            fill(pool, Tensor(device, numbers(side, side)))
        assert len(device.pinned) == 3
    assert sorted(device.unpinned) == sorted(device.pinned)


def test_what_was_pinned_is_not_any_more_when_its_arena_is_retired(
    pool: PixelPool, device: Device
) -> None:
    pool.cancel(fill(pool, Tensor(device, numbers(100, 100))))
    address = next(iter(device.pinned))
    taken = []
    while not device.unpinned:  # other sizes need its room
        taken.append(pool.acquire(pool.chunk_limit))
        assert taken[-1] is not None, "the arena was not retired"
    assert device.unpinned == [address]


def test_a_device_that_refuses_to_pin_is_not_asked_again(pool: PixelPool, device: Device) -> None:
    device.refuses = True
    for _ in range(3):
        pool.cancel(fill(pool, Tensor(device, numbers(30, 30))))
    assert (device.asked, len(device.copies)) == (1, 3)


def test_a_forked_child_leaves_what_is_pinned_alone(pool: PixelPool, device: Device) -> None:
    slot = fill(pool, Tensor(device, numbers(30, 30)))
    child = os.fork()
    if child == 0:
        pool.close()
        slot.arena.close()
        os._exit(len(device.unpinned))
    assert os.waitpid(child, 0)[1] == 0


# --- cupy: its interface, as documented -------------------------------------------------------


class CupyStream:
    def __init__(self) -> None:
        self.done: list[str] = []

    def synchronize(self) -> None:
        self.done.append("synchronised")


class CupyArray(Tensor):
    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.values.dtype

    def __getitem__(self, index: Any) -> CupyArray:
        return CupyArray(self.device, self.values[index])

    def transpose(self, order: tuple[int, ...]) -> CupyArray:
        return CupyArray(self.device, self.values.transpose(order))

    def get(self, stream: CupyStream, order: str = "C", out: Any = None) -> Any:
        self.device.copies.append(out)
        stream.done.append("enqueued")
        out[...] = self.values
        return out


def test_cupy_copies_on_the_current_stream_and_waits_for_it(
    pool: PixelPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Entered(Device):
        def __enter__(self) -> None:
            stream.done.append("device")

        def __exit__(self, *_: object) -> None: ...

    stream, device = CupyStream(), Entered()
    cupy = SimpleNamespace(
        ndarray=CupyArray,
        cuda=SimpleNamespace(
            get_current_stream=lambda: stream,
            runtime=SimpleNamespace(
                hostRegister=lambda address, nbytes, flags: device.register(address, nbytes),
                hostUnregister=device.unpinned.append,
                CUDARuntimeError=RuntimeError,
            ),
        ),
    )
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    pixels = numbers(8, 9)
    slot = fill(pool, CupyArray(device, pixels))
    assert stream.done == ["device", "enqueued", "synchronised"]
    assert device.pinned == {slot.address: slot.capacity}
    pool.close()
    assert device.unpinned == [slot.address]


# --- torch and jax, where they are installed --------------------------------------------------


@pytest.fixture
def torch() -> Any:
    return pytest.importorskip("torch")


def test_torch_on_the_host_is_a_view(torch: Any) -> None:
    tensor = torch.arange(12, dtype=torch.float32).reshape(3, 4).requires_grad_()
    for each in (tensor, tensor.detach().T, tensor.detach()[::2]):
        array = as_array(each)
        assert isinstance(array, np.ndarray)
        assert array.__array_interface__["data"][0] == each.data_ptr()
        assert array.shape == tuple(each.shape)


def test_bfloat16_is_shown_as_float32(torch: Any, served: Served) -> None:
    tensor = torch.linspace(-3, 3, 120, requires_grad=True).to(torch.bfloat16).reshape(2, 6, 10)
    assert isinstance(as_array(tensor), DeviceArray)
    with openhcs_stream.connect(served.address) as stream:
        stream.image(tensor, name="it", axes="ZYX").wait()
        stream.image(tensor, name="turned", axes="ZXY").wait()
        expected = tensor.detach().float().numpy()
        for z in range(2):
            np.testing.assert_array_equal(all_planes(served, "it")[(z,)], expected[z])
            np.testing.assert_array_equal(all_planes(served, "turned")[(z,)], expected[z].T)


@pytest.mark.parametrize(
    ("make", "cure"),
    [
        (lambda torch: torch.zeros(3, 3).to_sparse(), "to_dense"),
        (lambda torch: torch.empty(3, 3, device="meta"), "has memory"),
        (lambda torch: torch.zeros(3, 3).to(torch.float8_e4m3fn), "float32"),
        (
            lambda torch: torch.quantize_per_tensor(torch.zeros(3, 3), 0.1, 0, torch.quint8),
            "dequantize",
        ),
    ],
    ids=["sparse", "meta", "float8", "quantised"],
)
@pytest.mark.filterwarnings("ignore:.*quantiz.*")  # it is going to leave torch
def test_torch_refused_with_the_cure(torch: Any, make: Callable[[Any], Any], cure: str) -> None:
    with pytest.raises(InvalidItem, match=cure):
        as_array(make(torch))


def test_complex_torch_is_refused(torch: Any, served: Served) -> None:
    with openhcs_stream.connect(served.address) as stream, pytest.raises(InvalidItem, match=r"abs"):
        stream.image(torch.zeros(3, 3, dtype=torch.complex64).conj())


def test_jax_on_the_host_is_a_view() -> None:
    jax = pytest.importorskip("jax")
    array = jax.numpy.arange(12, dtype="uint16").reshape(3, 4)
    taken = as_array(array)
    assert isinstance(taken, np.ndarray)
    assert taken.__array_interface__["data"][0] == array.unsafe_buffer_pointer()
    np.testing.assert_array_equal(taken, np.asarray(array))


# --- whose arrays -----------------------------------------------------------------------------


def test_no_package_is_imported_to_find_out() -> None:
    before = {"torch", "cupy", "jax"} & {*sys.modules}
    assert on_device([[1]]) is None
    assert on_device(object()) is None
    assert {"torch", "cupy", "jax"} & {*sys.modules} == before


def test_anothers_cuda_array_comes_through_the_dlpack_of_a_package_that_is_in_use(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Foreign:
        device, values = Device(), numbers(3, 4)

        def __dlpack_device__(self) -> tuple[int, int]:
            return 2, 0

    foreign = Foreign()
    with pytest.raises(InvalidItem):
        as_array(foreign)  # nobody can read it
    cupy = SimpleNamespace(
        ndarray=CupyArray, from_dlpack=lambda each: CupyArray(each.device, each.values)
    )
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    array = on_device(foreign)
    assert array is not None
    assert (array.shape, array.dtype, array.nbytes) == ((3, 4), np.dtype("uint16"), 24)
    assert not foreign.device.copies


def test_a_device_that_only_its_own_package_can_read_from() -> None:
    class Elsewhere:
        """As jax on a TPU: it can't be exported, and copies itself when numpy asks."""

        def __dlpack_device__(self) -> tuple[int, int]:
            return 12, 0

        def __dlpack__(self, **_: Any) -> Any:
            raise BufferError("not on this device")

        def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
            return pixels.copy()

    pixels = numbers(3, 4)
    np.testing.assert_array_equal(as_array(Elsewhere()), pixels)
