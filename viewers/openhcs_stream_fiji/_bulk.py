"""The same with many of ImageJ's ROIs in one call: the loop runs inside Java.

A call from Python into Java takes some microseconds, so 100 000 ROIs with ten calls each take
seconds. Java's own streams go over them in milliseconds; what they call is put together of method
handles, for which no Java has to be compiled.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from openhcs_stream_fiji._java import Java

__all__ = ["Bulk"]

#: What a ROI's digest is made of: all that commands and mice change without making a new object.
#: A moved vertex is found in the length. Properties are told by their number: their text is put
#: together anew at each call, which takes as long as all the rest.
_DIGEST: Final = (
    "getXBase", "getYBase", "getFloatWidth", "getFloatHeight", "getLength", "getCornerDiameter",
    "getType", "getGroup", "getStrokeWidth", "getStrokeColor", "getFillColor", "getName",
    "getPropertyCount", "getPosition", "getCPosition", "getZPosition", "getTPosition",
)  # fmt: skip
#: To put a loop together takes as long as this many calls from Python.
_FEW: Final = 300


class Bulk:
    """Reads, changes and makes arrays of `ij.gui.Roi`.

    Parameters
    ----------
    java : Java
    """

    def __init__(self, java: Java) -> None:
        self._java = java
        jpype = java.jpype
        self._rois = jpype.JArray(java.Roi)
        self._objects = jpype.JArray(java.Object)
        self._texts = jpype.JArray(jpype.JString)
        self._handles = java.MethodHandles
        self._lookup = java.MethodHandles.publicLookup()
        self._int = jpype.JInt.class_
        self._void = jpype.JClass("java.lang.Void").TYPE
        self._digest = self._function("ToIntFunction", self._combined())
        self._identity = self._function(
            "ToIntFunction",
            self._lookup.findStatic(
                java.System.class_,
                "identityHashCode",
                self._type(self._int, java.Object.class_),
            ),
        )
        self._columns: dict[str, tuple[str, Any]] = {}

    # --- arrays ---------------------------------------------------------------------------------

    def array(self, natives: Sequence[Any] | Any) -> Any:
        """A Java array of ROIs."""
        return self._rois(natives)

    def texts(self, texts: Sequence[str]) -> Any:
        """A Java array of texts."""
        return self._texts(texts)

    def join(self, arrays: Sequence[Any]) -> Any:
        """Several Java arrays of ROIs as one."""
        joined = self._rois(sum(len(array) for array in arrays))
        at = 0
        for array in arrays:
            self._java.System.arraycopy(array, 0, joined, at, len(array))
            at += len(array)
        return joined

    def take(self, natives: Any, indices: Sequence[int] | npt.NDArray[np.intp]) -> Any:
        """The ROIs at these indices, as an array of its own."""
        taken = self._rois(len(indices))
        ends = np.flatnonzero(np.diff(indices) != 1) + 1
        for run in np.split(np.arange(len(indices)), ends):
            if len(run):
                self._java.System.arraycopy(
                    natives, int(indices[run[0]]), taken, int(run[0]), len(run)
                )
        return taken

    # --- reading --------------------------------------------------------------------------------

    def digests(self, natives: Any, start: int = 0, stop: int | None = None) -> npt.NDArray[Any]:
        """A number for each ROI that changes when it is changed: (N,) int32."""
        return self._ints(natives, self._digest, start, stop)

    def identities(self, natives: Any) -> npt.NDArray[Any]:
        """A number for each ROI that another object has only by a rare chance: (N,) int32.

        Of 100 000 objects two or three share theirs with another.
        """
        return self._ints(natives, self._identity, 0, None)

    def places(self, known: Any, given: Any) -> npt.NDArray[np.intp]:
        """Where in `known` each ROI of `given` is, the very object; -1 where it is not."""
        java, handles = self._java, self._handles
        jint, plain = java.jpype.JClass("java.lang.Integer").class_, java.Object.class_
        table = java.IdentityHashMap(2 * len(known) + 1)
        put = self._lookup.findVirtual(
            java.IdentityHashMap.class_, "put", self._type(plain, plain, plain)
        ).bindTo(table)
        boxed = self._lookup.findStatic(jint, "valueOf", self._type(jint, self._int))
        put = handles.filterArguments(
            put,
            0,
            self._item(known).asType(self._type(plain, self._int)),
            boxed.asType(self._type(plain, self._int)),
        )
        put = self._repeat(put, self._int).asType(self._type(self._void, self._int))
        java.IntStream.range(0, len(known)).forEach(self._function("IntConsumer", put))
        get = self._lookup.findVirtual(
            java.IdentityHashMap.class_, "getOrDefault", self._type(plain, plain, plain)
        ).bindTo(table)
        get = handles.insertArguments(get, 1, java.jpype.JInt(-1))
        found = java.Arrays.stream(given).mapToInt(
            self._function("ToIntFunction", get.asType(self._type(self._int, plain)))
        )
        return np.array(found.toArray(), np.intp)

    def numbers(self, natives: Any, getter: str, owner: Any = None) -> npt.NDArray[Any]:
        """What a getter gives for each: (N,) int32 or float64; the hash of what is no number.

        Colours have their ARGB value for a hash, None has 0. "getImage.getID" asks what the first
        gives. `owner` is the class of all these ROIs, where the getter is not one of `ij.gui.Roi`.
        """
        kind, function = self._getter(getter, owner or self._java.Roi)
        stream = self._java.Arrays.stream(natives)
        if kind == "ToDoubleFunction":
            return np.array(stream.mapToDouble(function).toArray(), np.float64)
        return np.array(stream.mapToInt(function).toArray(), np.int32)

    def vertices(self, natives: Any) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float32]]:
        """Number of vertices of each ROI, and x, y of all of them: (M,) and (N, 2)."""
        java, jpype = self._java, self._java.jpype
        polygon = jpype.JClass("ij.process.FloatPolygon").class_
        make = self._lookup.unreflect(java.Roi.class_.getMethod("getFloatPolygon"))
        found = java.Arrays.stream(natives).map(self._function("Function", make)).toArray()
        count = self._lookup.findGetter(polygon, "npoints", self._int)
        counting = count.asType(self._type(self._int, java.Object.class_))
        counts = np.array(
            java.Arrays.stream(found).mapToInt(self._function("ToIntFunction", counting)).toArray(),
            np.intp,
        )
        columns = np.empty((2, int(counts.sum())), np.float32)
        numbers = java.floats.class_
        for name, column in zip(("xpoints", "ypoints"), columns, strict=True):
            if not len(column):
                continue
            buffer = jpype.nio.convertToDirectBuffer(column.data.cast("B"))
            buffer = buffer.order(java.ByteOrder.nativeOrder()).asFloatBuffer()
            put = self._lookup.findVirtual(
                jpype.JClass("java.nio.FloatBuffer").class_, "put",
                self._type(jpype.JClass("java.nio.FloatBuffer").class_, numbers, self._int,
                           self._int),
            ).bindTo(buffer)  # fmt: skip
            put = self._handles.insertArguments(put, 1, jpype.JInt(0))
            put = self._handles.filterArguments(
                put, 0, self._lookup.findGetter(polygon, name, numbers), count
            )
            put = self._repeat(put, polygon).asType(self._type(self._void, java.Object.class_))
            java.Arrays.stream(found).forEach(self._function("Consumer", put))
        return counts, np.ascontiguousarray(columns.T)

    def _ints(self, natives: Any, function: Any, start: int, stop: int | None) -> npt.NDArray[Any]:
        end = len(natives) if stop is None else min(stop, len(natives))
        stream = self._java.Arrays.stream(natives, start, end)
        # A Java array's memory may move: the numbers are copied out.
        return np.array(stream.mapToInt(function).toArray(), np.int32)

    def _getter(self, path: str, owner: Any) -> tuple[str, Any]:
        found = self._columns.get(path)
        if found is None:
            handle = None
            asked = owner.class_
            for name in path.split("."):
                method = asked.getMethod(name)
                step = self._lookup.unreflect(method)
                handle = step if handle is None else self._handles.filterReturnValue(handle, step)
                asked = method.getReturnType()
            kind, plain = {
                "int": ("ToIntFunction", self._int),
                "float": ("ToDoubleFunction", self._java.jpype.JDouble.class_),
                "double": ("ToDoubleFunction", self._java.jpype.JDouble.class_),
            }.get(str(asked.getName()), ("", self._java.Object.class_))
            assert handle is not None
            handle = handle.asType(self._type(plain, self._java.Roi.class_))
            if not kind:
                kind = "ToIntFunction"
                handle = self._handles.filterReturnValue(
                    handle,
                    self._lookup.findStatic(
                        self._java.Objects.class_,
                        "hashCode",
                        self._type(self._int, self._java.Object.class_),
                    ),
                )
            found = self._columns[path] = (kind, self._function(kind, handle))
        return found

    def _combined(self) -> Any:
        """(Roi) -> int, by `java.util.Objects.hash` of all that `_DIGEST` names."""
        java, handles = self._java, self._handles
        roi, every = java.Roi.class_, self._objects.class_
        plain = self._type(java.Object.class_, roi)
        getters = [self._lookup.unreflect(roi.getMethod(name)).asType(plain) for name in _DIGEST]
        combined = self._lookup.findStatic(
            java.Objects.class_, "hash", self._type(self._int, every)
        ).asCollector(every, len(getters))
        return self._repeat(handles.filterArguments(combined, 0, *getters), roi)

    # --- changing -------------------------------------------------------------------------------

    def each(self, natives: Any, method: str, *arguments: Any) -> None:
        """Call a method of each ROI with the same arguments: bool, int or str."""
        java = self._java
        if len(natives) < _FEW:
            for native in natives:
                getattr(native, method)(*arguments)
            return
        types = {bool: java.jpype.JBoolean, int: java.jpype.JInt, str: java.jpype.JString}
        boxed = [types[type(each)](each) for each in arguments]
        kinds = [types[type(each)].class_ for each in arguments]
        handle = self._lookup.findVirtual(java.Roi.class_, method, self._type(self._void, *kinds))
        self._for_each(natives, self._handles.insertArguments(handle, 1, *boxed))

    def feed(self, natives: Any, receiver: Any, method: str) -> None:
        """Pass each ROI to a method of `receiver` that takes one."""
        handle = self._lookup.findVirtual(
            receiver.getClass(), method, self._type(self._void, self._java.Roi.class_)
        )
        self._for_each(natives, handle.bindTo(receiver))

    def name(self, natives: Any, names: Sequence[str]) -> None:
        """Give each ROI its own name."""
        java = self._java
        if len(natives) < _FEW:
            for native, text in zip(natives, names, strict=True):
                native.setName(text)
            return
        roi, text = java.Roi.class_, java.jpype.JString.class_
        handle = self._lookup.findVirtual(roi, "setName", self._type(self._void, text))
        handle = self._handles.filterArguments(
            handle, 0, self._item(natives), self._item(self.texts(names))
        )
        consumer = self._function("IntConsumer", self._repeat(handle, self._int))
        java.IntStream.range(0, len(natives)).forEach(consumer)

    def clones(self, natives: Any) -> Any:
        """A copy of each."""
        java = self._java
        handle = self._lookup.findVirtual(java.Roi.class_, "clone", self._type(java.Object.class_))
        made = java.Arrays.stream(natives).map(self._function("Function", handle)).toArray()
        return self._cast(made)

    def _for_each(self, natives: Any, handle: Any) -> None:
        self._java.Arrays.stream(natives).forEach(self._function("Consumer", handle))

    # --- making ---------------------------------------------------------------------------------

    def outlines(
        self,
        xy: npt.NDArray[np.float64],
        counts: npt.NDArray[np.intp],
        kinds: npt.NDArray[np.int32],
        *,
        whole: bool,
    ) -> Any:
        """Make a `PolygonRoi` of each run of vertices.

        Parameters
        ----------
        xy : (N, 2)
            All vertices.
        counts : (M,)
            How many of them each has.
        kinds : (M,)
            ImageJ's numbers of their types.
        whole : bool
            With whole numbers, as ImageJ makes them of the wand; else with floats.
        """
        java = self._java
        make = java.ints if whole else java.floats
        dtype = np.int32 if whole else np.float32
        x, y = (make(np.ascontiguousarray(column, dtype)) for column in xy.T)
        stops = np.cumsum(counts)
        starts = stops - counts
        column, number = x.getClass(), self._int
        first, last = (self._item(java.ints(each.astype(np.int32))) for each in (starts, stops))
        copy = self._lookup.findStatic(
            java.Arrays.class_, "copyOfRange", self._type(column, column, number, number)
        )
        parts = []
        for each in (x, y):
            bound = self._handles.insertArguments(copy, 0, each)
            parts.append(self._repeat(self._handles.filterArguments(bound, 0, first, last), number))
        if whole:
            parts.append(self._item(java.ints(counts.astype(np.int32))))
        parts.append(self._item(java.ints(kinds)))
        signature = [column, column, *[number] * (len(parts) - 2)]
        handle = self._lookup.findConstructor(
            java.PolygonRoi.class_, self._type(self._void, *signature)
        )
        handle = self._repeat(self._handles.filterArguments(handle, 0, *parts), number)
        function = self._function("IntFunction", handle)
        return self._cast(java.IntStream.range(0, len(counts)).mapToObj(function).toArray())

    # --- method handles -------------------------------------------------------------------------

    def _type(self, returned: Any, *taken: Any) -> Any:
        return self._java.MethodType.methodType(returned, self._classes(taken))

    def _classes(self, classes: Sequence[Any]) -> Any:
        jpype = self._java.jpype
        return jpype.JArray(jpype.JClass("java.lang.Class"))(list(classes))

    def _item(self, array: Any) -> Any:
        """(int) -> the array's item there."""
        return self._handles.arrayElementGetter(array.getClass()).bindTo(array)

    def _repeat(self, handle: Any, taken: Any) -> Any:
        """Of a handle that takes several of one type: the one that takes it once, for all."""
        once = self._type(handle.type().returnType(), taken)
        places = self._java.ints([0] * int(handle.type().parameterCount()))
        return self._handles.permuteArguments(handle, once, places)

    def _function(self, interface: str, handle: Any) -> Any:
        found = self._java.jpype.JClass(f"java.util.function.{interface}")
        return self._java.MethodHandleProxies.asInterfaceInstance(found.class_, handle)

    def _cast(self, objects: Any) -> Any:
        return self._java.Arrays.copyOf(objects, len(objects), self._rois.class_)
