"""Arrays that live on a device, such as a GPU: copied once, straight to where viewers read them.

No package of such arrays is imported: who has an array of it has imported it.
"""

from __future__ import annotations

import ctypes
import logging
import math
import sys
from abc import ABC, abstractmethod
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from openhcs_stream.errors import InvalidItem
from openhcs_stream.pixels import HELPED_NBYTES
from openhcs_stream.stream._uninterrupted import Uninterrupted

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    from openhcs_stream.pixels import Copier, Slot

__all__ = ["ADAPTERS", "DeviceArray", "copy_into", "on_device"]

logger = logging.getLogger(__name__)

#: kDLCUDA and kDLCUDAManaged, DLPack's dlpack.h: what torch and cupy take from others.
_DLPACK_CUDA: Final = (2, 13)
#: cudaHostRegisterPortable: pinned for every device of this process.
_PORTABLE: Final = 1


class DeviceArray(ABC):
    """What a stream needs to know of an array that is not in the host's memory.

    Parameters
    ----------
    shape : tuple of int
    dtype : numpy.dtype
        That `copy_to` writes.

    Attributes
    ----------
    shape, dtype, ndim, size, nbytes
        As of a numpy array.
    base : None
        It is never an array from `Stream.allocate`.
    """

    base: Final = None

    def __init__(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> None:
        self.shape = shape
        self.dtype = np.dtype(dtype)
        self.ndim = len(shape)
        self.size = math.prod(shape)
        self.nbytes = self.size * self.dtype.itemsize

    @abstractmethod
    def __getitem__(self, index: int | slice) -> DeviceArray:
        """Return a part along the first axis; nothing is copied to the host."""

    @abstractmethod
    def transpose(self, order: tuple[int, ...]) -> DeviceArray:
        """Return it with its axes in another order; nothing is copied to the host."""

    @abstractmethod
    def copy_to(self, out: npt.NDArray[Any]) -> None:
        """Copy it to the host once, in the order of its own stream of work, and wait for that.

        Parameters
        ----------
        out : ndarray
            Of its shape and dtype, in C order, writable.
        """

    #: Pins memory for its device: called with an address and a number of bytes, it gives what
    #: undoes that, or None where the device refuses. None: there is no such thing.
    register: Callable[[int, int], Callable[[], object] | None] | None = None

    def to_host(self) -> npt.NDArray[Any]:
        """Return a numpy array with its values."""
        out = np.empty(self.shape, self.dtype)
        self.copy_to(out)
        return out


def on_device(data: Any) -> DeviceArray | None:
    """Describe an array that is on a device; None: it is on the host, or no array.

    Arrays of torch and cupy are known. Others, such as jax's, are taken through DLPack by
    whichever of the two is in use; where neither is, numpy has to ask the array's own package for
    a copy, and there will be two.

    Raises
    ------
    InvalidItem
        It has no pixels as such: it is sparse, say.
    """
    for package, adapter in ADAPTERS.items():
        module = sys.modules.get(package)
        if module is not None:
            found = adapter(module, data)
            if found is not None:
                return found
    device = getattr(data, "__dlpack_device__", None)
    if device is None:
        return None
    try:
        number, _ = device()
    except (BufferError, RuntimeError, TypeError, ValueError):
        return None  # jax: it is spread over several devices, and only numpy can collect it
    return _through_others(data) if int(number) in _DLPACK_CUDA else None


def copy_into(slot: Slot, array: Any, dtype: str, copier: Copier) -> None:
    """Copy an array to a slot's beginning: the only copy on this side.

    Parameters
    ----------
    slot : Slot
        Of as many bytes at least.
    array : ndarray or DeviceArray
        What to copy.
    dtype : str
        Its name on the wire; a big-endian ndarray is swapped on the way.
    copier : Copier
        Copies large ndarrays.
    """
    out = slot.array(array.shape, dtype)
    if type(array) is np.ndarray or not isinstance(array, DeviceArray):
        if out.nbytes < HELPED_NBYTES:
            np.copyto(out, array)
        else:
            with Uninterrupted():  # the slot must not be given back while somebody writes to it
                copier.copy(out, array)
        return
    if array.register is not None:
        slot.pin(array.register)
    array.copy_to(out)


def _through_others(data: Any) -> DeviceArray | None:
    """Take a CUDA array of another package by the DLPack of one that is known."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return _from_torch(torch, torch.from_dlpack(data))
    cupy = sys.modules.get("cupy")
    if cupy is not None:
        return _from_cupy(cupy, cupy.from_dlpack(data))
    return None


# --- torch ------------------------------------------------------------------------------------


class _TorchArray(DeviceArray):
    """A torch tensor: on a GPU, or on the host in a form that numpy has no view of."""

    def __init__(self, torch: Any, tensor: Any, dtype: np.dtype[Any]) -> None:
        super().__init__(tuple(tensor.shape), dtype)
        self._torch = torch
        self._tensor = tensor
        if tensor.is_cuda:
            self.register = partial(_register_by_torch, torch)

    def __getitem__(self, index: int | slice) -> _TorchArray:
        return _TorchArray(self._torch, self._tensor[index], self.dtype)

    def transpose(self, order: tuple[int, ...]) -> _TorchArray:
        return _TorchArray(self._torch, self._tensor.permute(order), self.dtype)

    def copy_to(self, out: npt.NDArray[Any]) -> None:
        # What is not contiguous, or of another dtype, torch brings in order on the device.
        target = self._torch.from_numpy(out)
        if not self._tensor.is_cuda:
            target.copy_(self._tensor)
            return
        # The copy follows on the work that the caller has given to this stream.
        target.copy_(self._tensor, non_blocking=True)
        self._torch.cuda.current_stream(self._tensor.device).synchronize()


def _from_torch(torch: Any, data: Any) -> DeviceArray | None:
    """Describe a tensor; None: it is none, or numpy can have a view of it."""
    kind = getattr(torch, "Tensor", None)
    if kind is None or not isinstance(data, kind):
        return None
    tensor = data.detach()  # what records gradients does not give its memory away
    if tensor.is_quantized:
        raise _refused(tensor, "quantised", "tensor.dequantize() or tensor.int_repr()")
    if tensor.layout != torch.strided:
        raise _refused(tensor, "not dense", "tensor.to_dense()")
    if tensor.device.type == "meta":
        raise _refused(tensor, "without data", "a tensor on a device that has memory")
    name = str(tensor.dtype).removeprefix("torch.")
    plain = True
    if name == "bfloat16":
        name, plain = "float32", False  # each of its values is one of float32's
    try:
        dtype = np.dtype(name)
    except TypeError:
        cure = "tensor.to(torch.float32)"
        raise _refused(tensor, "of a dtype that no viewer knows", cure) from None
    if tensor.device.type == "cpu" and plain and not (tensor.is_neg() or tensor.is_conj()):
        return None
    return _TorchArray(torch, tensor, dtype)


def _refused(tensor: Any, problem: str, cure: str) -> InvalidItem:
    return InvalidItem(
        f"a tensor of {tensor.dtype} on {tensor.device} is {problem}.", cure=f"Send {cure}."
    )


def _register_by_torch(torch: Any, address: int, nbytes: int) -> Callable[[], object] | None:
    cudart = torch.cuda.cudart()
    error = int(cudart.cudaHostRegister(address, nbytes, _PORTABLE))
    if error:
        logger.debug("%d bytes are not pinned: CUDA error %d", nbytes, error)
        _forget_last_error()
        return None
    return partial(cudart.cudaHostUnregister, address)


def _forget_last_error() -> None:
    """Take CUDA's last error away, which torch would find after its next kernel and raise."""
    forget = getattr(ctypes.CDLL(None), "cudaGetLastError", None)
    if forget is not None:
        forget()


# --- cupy -------------------------------------------------------------------------------------


class _CupyArray(DeviceArray):
    """A cupy array."""

    def __init__(self, cupy: Any, array: Any) -> None:
        super().__init__(array.shape, array.dtype)
        self._cupy = cupy
        self._array = array
        self.register = partial(_register_by_cupy, cupy)

    def __getitem__(self, index: int | slice) -> _CupyArray:
        return _CupyArray(self._cupy, self._array[index])

    def transpose(self, order: tuple[int, ...]) -> _CupyArray:
        return _CupyArray(self._cupy, self._array.transpose(order))

    def copy_to(self, out: npt.NDArray[Any]) -> None:
        with self._array.device:
            stream = self._cupy.cuda.get_current_stream()
            self._array.get(stream=stream, out=out)
            stream.synchronize()


def _from_cupy(cupy: Any, data: Any) -> DeviceArray | None:
    kind = getattr(cupy, "ndarray", None)
    if kind is None or not isinstance(data, kind):
        return None
    return _CupyArray(cupy, data)


def _register_by_cupy(cupy: Any, address: int, nbytes: int) -> Callable[[], object] | None:
    runtime = cupy.cuda.runtime
    try:
        runtime.hostRegister(address, nbytes, _PORTABLE)
    except runtime.CUDARuntimeError as error:
        logger.debug("%d bytes are not pinned: %s", nbytes, error)
        return None
    return partial(runtime.hostUnregister, address)


#: Who describes the arrays of a package, by its name in `sys.modules`: called with the module and
#: an object, it gives a `DeviceArray`, or None where the object is not its own or on the host.
ADAPTERS: Final[dict[str, Callable[[Any, Any], DeviceArray | None]]] = {
    "torch": _from_torch,
    "cupy": _from_cupy,
}
