# From what callers pass to what C may read: arrays of legal dtype and strides, plain numbers. Included by _core.pyx.

cdef int dtype_of(cnp.ndarray a) except -2:
    """The af_dtype of an array, or -1."""
    global bfloat16_number
    cdef int number = cnp.PyArray_TYPE(a)
    if number == cnp.NPY_FLOAT:
        return AF_F32
    if number == cnp.NPY_DOUBLE:
        return AF_F64
    if number == cnp.NPY_FLOAT16:
        return AF_F16
    if number == bfloat16_number:
        return AF_BF16
    if number > 255 and a.dtype.name == "bfloat16" and a.dtype.itemsize == 2:
        bfloat16_number = number
        return AF_BF16
    return -1


cdef bint has_legal_strides(cnp.ndarray a):
    """Whether C may use the array in place: native, aligned, whole strides, the last one 1."""
    cdef int k, nd = cnp.PyArray_NDIM(a)
    cdef cnp.npy_intp size = cnp.PyArray_ITEMSIZE(a)
    cdef cnp.npy_intp *shape = cnp.PyArray_DIMS(a)
    cdef cnp.npy_intp *strides = cnp.PyArray_STRIDES(a)
    if not cnp.PyArray_ISBEHAVED_RO(a):
        return False
    for k in range(nd):
        if shape[k] > 1 and strides[k] % size != 0:
            return False
    return nd == 0 or shape[nd - 1] <= 1 or strides[nd - 1] == size


cdef cnp.ndarray operand(object x, str name, int *dtype):
    """Query, key or value: one of the four dtypes, legal strides; copied where that is needed."""
    cdef cnp.ndarray a = x if cnp.PyArray_CheckExact(x) else as_array(x, name)
    dtype[0] = dtype_of(a)
    if dtype[0] < 0:
        raise wrong_operand(a, x, name)
    if cnp.PyArray_NDIM(a) < 2:
        raise ValueError(f"{name} must have at least 2 axes (length, head size), got shape {shape_of(a)}")
    if not has_legal_strides(a):
        shape, a = shape_of(a), without_repeats(a, 1)
        a = np.array(a, dtype=a.dtype.newbyteorder("="), order="C", copy=True, subok=False)
        a = np.broadcast_to(a, shape)
    return a


cdef cnp.ndarray without_repeats(cnp.ndarray a, int kept):
    """Axes that repeat themselves (stride 0) cut to length 1, so that a copy costs no more than what is there; the
    last `kept` axes stay."""
    cdef int k, nd = cnp.PyArray_NDIM(a)
    cdef bint repeats = False
    for k in range(nd - kept):
        repeats = repeats or (cnp.PyArray_STRIDES(a)[k] == 0 and cnp.PyArray_DIMS(a)[k] > 1)
    if not repeats:
        return a
    strides, shape = (<object>a).strides, shape_of(a)
    cut = [slice(0, 1) if k < nd - kept and strides[k] == 0 and shape[k] > 1 else slice(None) for k in range(nd)]
    return a[tuple(cut)]


cdef tuple shape_of(cnp.ndarray a):
    return (<object>a).shape


cdef int64_t axis(cnp.ndarray a, int k):
    """Length of the k-th axis from the end; 1 beyond the first."""
    cdef int nd = cnp.PyArray_NDIM(a)
    return cnp.PyArray_DIMS(a)[nd - k] if k <= nd else 1


cdef double real_number(object x, str name) except? -1.0:
    if type(x) is float:
        return x
    scalar_array = isinstance(x, np.ndarray) and x.ndim == 0 and x.dtype.kind in "fiu"
    if isinstance(x, (bool, np.bool_, np.timedelta64)) or not (isinstance(x, numbers.Real) or scalar_array):
        raise TypeError(f"{name} must be a real number, got {type(x).__name__}")
    try:
        return float(x)
    except OverflowError:
        return float("inf") if x > 0 else float("-inf")


cdef object whole_number(object x, str name):
    if isinstance(x, (bool, np.bool_, np.timedelta64)) or not isinstance(x, numbers.Integral):
        raise TypeError(f"{name} must be an int, got {type(x).__name__}")
    return int(x)


cdef bint flag(object x, str name) except -1:
    if x is True or x is False:
        return x
    if isinstance(x, np.bool_):
        return bool(x)
    raise TypeError(f"{name} must be True or False, got {type(x).__name__}")


cdef cnp.ndarray real_array(object x, str name):
    cdef cnp.ndarray a = as_array(x, name)
    if dtype_of(a) < 0 and a.dtype.kind not in "fiu":
        raise wrong_dtype(a, x, name, "real numbers", "write {0}.astype(np.float32)")
    return np.asarray(a, dtype=np.float64, order="C")


cdef cnp.ndarray whole_array(cnp.ndarray a):
    """Whole numbers of any dtype as positions that C can add to."""
    if a.dtype.kind == "u":
        a = np.asarray(np.minimum(a.astype(np.uint64), np.uint64(AF_MAX_POSITION)))
    return np.asarray(np.clip(a.astype(np.int64), -AF_MAX_POSITION, AF_MAX_POSITION))


cdef cnp.ndarray narrow(cnp.ndarray a):
    """float64 to float32 where finite values stay finite: -inf excludes a key, a large value does not."""
    limit = np.finfo(np.float32).max
    return np.where(np.isinf(a), a, np.clip(a, -limit, limit)).astype(np.float32)


cdef bint falls(cnp.ndarray a):
    """Whether the strides of the outer axes fall from the first to the last, as in C order."""
    cdef cnp.npy_intp last = 0, here
    cdef int k
    for k in range(cnp.PyArray_NDIM(a) - 1):
        here = cnp.PyArray_STRIDES(a)[k]
        here = -here if here < 0 else here  # abs() would make a Python int of it
        if here == 0 or cnp.PyArray_DIMS(a)[k] <= 1:
            continue
        if last != 0 and here > last:
            return False
        last = here
    return True
