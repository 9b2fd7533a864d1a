# From what callers pass to what C may read: arrays of legal dtype and strides. Included by _core.pyx.

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


cdef cnp.ndarray array_of(object x, str name):
    return x if cnp.PyArray_CheckExact(x) else as_array(x, name)


cdef bint has_legal_strides(cnp.ndarray a, bint columns=False):
    """Whether C may use the array in place: native, aligned, whole strides, the last one 1 unless it takes columns."""
    cdef int k, nd = cnp.PyArray_NDIM(a)
    cdef cnp.npy_intp size = cnp.PyArray_ITEMSIZE(a)
    cdef cnp.npy_intp *shape = cnp.PyArray_DIMS(a)
    cdef cnp.npy_intp *strides = cnp.PyArray_STRIDES(a)
    if not cnp.PyArray_ISBEHAVED_RO(a):
        return False
    for k in range(nd):
        if shape[k] > 1 and strides[k] % size != 0:
            return False
    return nd == 0 or shape[nd - 1] <= 1 or columns or strides[nd - 1] == size


cdef cnp.ndarray operand(object x, str name, int *dtype, bint bytes=False, bint columns=False):
    """Query, key or value: one of the four dtypes, or bytes, legal strides; copied where that is needed. With `columns`
    the elements of a row may be apart, unless they are bytes."""
    cdef cnp.ndarray a = array_of(x, name)
    dtype[0] = dtype_of(a)
    if dtype[0] < 0 and not (bytes and storage_of(a)):
        raise wrong_operand(a, x, name)
    if cnp.PyArray_NDIM(a) < 2:
        raise ValueError(f"{name} must have at least 2 axes (length, head size), got shape {shape_of(a)}")
    if not has_legal_strides(a, columns and dtype[0] >= 0):
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


cdef bint share_memory(cnp.ndarray a, cnp.ndarray b):
    """Whether there is a byte of both between the first and the last of each."""
    cdef char *first_a
    cdef char *first_b
    cdef char *end_a = extent(a, &first_a)
    cdef char *end_b = extent(b, &first_b)
    return first_a < end_b and first_b < end_a


cdef char *extent(cnp.ndarray a, char **first):
    """The end of the memory of an array, and its first byte, which is the end if there is no element."""
    cdef int k
    cdef cnp.npy_intp n, stride
    cdef char *end = cnp.PyArray_BYTES(a)
    first[0] = end
    if cnp.PyArray_SIZE(a) == 0:
        return end
    for k in range(cnp.PyArray_NDIM(a)):
        n, stride = cnp.PyArray_DIMS(a)[k], cnp.PyArray_STRIDES(a)[k]
        if stride < 0:
            first[0] += stride * (n - 1)
        else:
            end += stride * (n - 1)
    return end + cnp.PyArray_ITEMSIZE(a)


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


cdef void find_places(cnp.ndarray a, cnp.npy_intp *place) noexcept:
    """Where each axis of `a` is when its outer ones are in the order of their strides; those of length 1 and of stride
    0 and the last stay where they are."""
    cdef int axes[MAX_DIMS]
    cdef int free[MAX_DIMS]
    cdef cnp.npy_intp *strides = cnp.PyArray_STRIDES(a)
    cdef int k, i, n = 0, nd = cnp.PyArray_NDIM(a)
    for k in range(nd):
        place[k] = k
        if k == nd - 1 or strides[k] == 0 or cnp.PyArray_DIMS(a)[k] <= 1:
            continue
        free[n], i = k, n
        while i > 0 and is_shorter(strides[axes[i - 1]], strides[k]):
            axes[i] = axes[i - 1]
            i -= 1
        axes[i] = k
        n += 1
    for i in range(n):
        place[axes[i]] = free[i]


cdef bint is_shorter(cnp.npy_intp a, cnp.npy_intp b) noexcept:
    """Of strides, whatever their signs."""
    return (-a if a < 0 else a) < (-b if b < 0 else b)


cdef bint repeats_itself(cnp.ndarray a):
    """Whether two elements share memory; also where axes are interleaved, which may not."""
    cdef cnp.npy_intp stride[MAX_DIMS]
    cdef cnp.npy_intp length[MAX_DIMS]
    cdef cnp.npy_intp step, reach = cnp.PyArray_ITEMSIZE(a)
    cdef int k, i, n = 0
    if cnp.PyArray_SIZE(a) == 0:
        return False
    for k in range(cnp.PyArray_NDIM(a)):
        if cnp.PyArray_DIMS(a)[k] == 1:
            continue
        step = cnp.PyArray_STRIDES(a)[k]
        step = -step if step < 0 else step
        i = n
        while i > 0 and stride[i - 1] > step:
            stride[i], length[i] = stride[i - 1], length[i - 1]
            i -= 1
        stride[i], length[i] = step, cnp.PyArray_DIMS(a)[k]
        n += 1
    for k in range(n):
        if stride[k] < reach:
            return True
        reach += stride[k] * (length[k] - 1)
    return False


cdef int check_out(object out, tuple shape, af_dtype dtype, str like) except -1:
    """Whether results of that shape can be written there; `like` is the argument that has their dtype."""
    if not cnp.PyArray_Check(out):
        raise TypeError(f"out must be a NumPy array, got {type(out).__name__}")
    if dtype_of(out) != dtype:
        raise TypeError(f"out must have the dtype of {like}, {DTYPES[dtype]}, got {out.dtype}")
    if shape_of(out) != shape:
        raise ValueError(f"out must have shape {shape}, got {out.shape}")
    if not cnp.PyArray_ISWRITEABLE(out):
        raise ValueError("out must be writable, got a read-only array")
    if not cnp.PyArray_CheckExact(out) and isinstance(out, np.ma.MaskedArray):
        raise TypeError("out must be a plain array, got a masked array, whose mask is not written: write out.data")
    if repeats_itself(out):
        raise ValueError(f"out must have memory of its own for each element, got elements that share it: "
                         f"shape {out.shape}, strides {out.strides}")
    return 0
