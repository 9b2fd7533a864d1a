# Numbers of a call, one or an array of them, as C takes them. What is an int, a float, a list of ints or an array of
# NumPy costs no call of Python; everything else is made one of these first. Included by _core.pyx.

cdef extern from "Python.h":
    int64_t PyLong_AsLongLongAndOverflow(object, int *) except? -1

cdef extern from "float.h":
    const float FLT_MAX


# ---- one number ----

cdef double real_number(object x, str name) except? -1.0:
    if type(x) is float:
        return x
    if type(x) is not int:
        scalar_array = isinstance(x, np.ndarray) and x.ndim == 0 and x.dtype.kind in "fiu"
        if isinstance(x, (bool, np.bool_, np.timedelta64)) or not (isinstance(x, numbers.Real) or scalar_array):
            raise TypeError(f"{name} must be a real number, got {type(x).__name__}")
    try:
        return float(x)
    except OverflowError:
        return float("inf") if x > 0 else float("-inf")


cdef bint is_whole(object x) except -1:
    """Whether it is one whole number, no array of one."""
    if type(x) is int:
        return True
    if cnp.PyArray_CheckExact(x) or type(x) is list:
        return False
    return isinstance(x, numbers.Integral) and not isinstance(x, (bool, np.bool_, np.timedelta64))


cdef object whole_number(object x, str name):
    if not is_whole(x):
        raise TypeError(f"{name} must be an int, got {type(x).__name__}")
    return x if type(x) is int else int(x)


cdef int64_t position(object x) except? -1:
    """A whole number of any size as a position that C can add to."""
    cdef int beyond = 0
    cdef int64_t n = PyLong_AsLongLongAndOverflow(x if type(x) is int else int(x), &beyond)
    return beyond * AF_MAX_POSITION if beyond else max(-AF_MAX_POSITION, min(AF_MAX_POSITION, n))


cdef bint flag(object x, str name) except -1:
    if x is True or x is False:
        return x
    if isinstance(x, np.bool_):
        return bool(x)
    raise TypeError(f"{name} must be True or False, got {type(x).__name__}")


# ---- arrays of whole numbers ----

cdef cnp.ndarray own_integers(cnp.ndarray a):
    """A copy of whole numbers of any dtype: what was checked stays as it is during the call."""
    cdef cnp.npy_intp k, size = cnp.PyArray_ITEMSIZE(a)
    cdef bint simple = cnp.PyArray_ISSIGNED(a) and (size == 8 or size == 4) and cnp.PyArray_ISCARRAY_RO(a)
    cdef cnp.ndarray own
    cdef int64_t *n
    if not simple:
        if cnp.PyArray_ISUNSIGNED(a) and size == 8:
            a = np.minimum(a, np.uint64(AF_MAX_POSITION))
        return cnp.PyArray_FROM_OTF(
            a, cnp.NPY_INT64, cnp.NPY_ARRAY_CARRAY | cnp.NPY_ARRAY_ENSURECOPY | cnp.NPY_ARRAY_FORCECAST
        )
    own = cnp.PyArray_EMPTY(cnp.PyArray_NDIM(a), cnp.PyArray_DIMS(a), cnp.NPY_INT64, 0)
    n = first_number(own)
    for k in range(cnp.PyArray_SIZE(a)):
        n[k] = (<int64_t *>cnp.PyArray_DATA(a))[k] if size == 8 else (<int32_t *>cnp.PyArray_DATA(a))[k]
    return own


cdef cnp.ndarray positions(cnp.ndarray a):
    """A copy of whole numbers of any dtype as positions that C can add to."""
    cdef cnp.ndarray own = own_integers(a)
    cdef int64_t *n = first_number(own)
    cdef cnp.npy_intp k
    for k in range(cnp.PyArray_SIZE(own)):
        n[k] = max(-AF_MAX_POSITION, min(AF_MAX_POSITION, n[k]))
    return own


cdef cnp.ndarray listed(object x):
    """A list of ints of at most 64 bits as NumPy's int64, without the detour that np.asarray makes; None for others."""
    cdef cnp.npy_intp k, size
    cdef int beyond = 0
    cdef cnp.ndarray a
    if type(x) is not list:
        return None
    size = len(<list>x)
    a = cnp.PyArray_EMPTY(1, &size, cnp.NPY_INT64, 0)
    for k in range(size):
        if type((<list>x)[k]) is not int:
            return None
        first_number(a)[k] = PyLong_AsLongLongAndOverflow((<list>x)[k], &beyond)
        if beyond:
            return None
    return a


cdef cnp.ndarray repeated(int64_t number, cnp.npy_intp times):
    cdef cnp.ndarray a = cnp.PyArray_EMPTY(1, &times, cnp.NPY_INT64, 0)
    cdef int64_t *n = first_number(a)
    cdef cnp.npy_intp k
    for k in range(times):
        n[k] = number
    return a


cdef int64_t *first_number(cnp.ndarray a) noexcept:
    """Of contiguous int64; NULL if there is no array."""
    return NULL if a is None else <int64_t *>cnp.PyArray_DATA(a)


cdef bint are_within(cnp.ndarray a, int64_t least, int64_t most):
    """Whether all of contiguous int64 are least .. most."""
    cdef int64_t *n = first_number(a)
    cdef cnp.npy_intp k
    for k in range(cnp.PyArray_SIZE(a)):
        if n[k] < least or n[k] > most:
            return False
    return True


# ---- arrays of real numbers ----

cdef cnp.ndarray real_array(object x, str name, int number=cnp.NPY_DOUBLE):
    """Contiguous, of NumPy's type of this number; no copy if it is that already."""
    cdef cnp.ndarray a = array_of(x, name)
    if dtype_of(a) < 0 and not (cnp.PyArray_ISINTEGER(a) or cnp.PyArray_ISFLOAT(a)):
        raise wrong_dtype(a, x, name, "real numbers", "write {0}.astype(np.float32)")
    if cnp.PyArray_ISCARRAY_RO(a):
        if cnp.PyArray_TYPE(a) == number:
            return a
        if number == cnp.NPY_DOUBLE and cnp.PyArray_TYPE(a) == cnp.NPY_FLOAT:
            return widened(a)
    return cnp.PyArray_FROM_OTF(a, number, cnp.NPY_ARRAY_CARRAY_RO | cnp.NPY_ARRAY_FORCECAST)


cdef cnp.ndarray widened(cnp.ndarray a):
    """Contiguous float32 to float64."""
    cdef cnp.ndarray b = cnp.PyArray_EMPTY(cnp.PyArray_NDIM(a), cnp.PyArray_DIMS(a), cnp.NPY_DOUBLE, 0)
    cdef float *x = <float *>cnp.PyArray_DATA(a)
    cdef double *y = <double *>cnp.PyArray_DATA(b)
    cdef cnp.npy_intp k
    for k in range(cnp.PyArray_SIZE(a)):
        y[k] = x[k]
    return b


cdef cnp.ndarray as_floats(cnp.ndarray a, bint keep_finite=False):
    """float64 to float32, with `keep_finite` the nearest finite number for one beyond: -inf in a bias excludes a key, a
    large value does not."""
    cdef cnp.ndarray wide = cnp.PyArray_FROM_OTF(a, cnp.NPY_DOUBLE, cnp.NPY_ARRAY_CARRAY_RO)
    cdef cnp.ndarray b = cnp.PyArray_EMPTY(cnp.PyArray_NDIM(a), cnp.PyArray_DIMS(a), cnp.NPY_FLOAT, 0)
    cdef double *x = <double *>cnp.PyArray_DATA(wide)
    cdef float *y = <float *>cnp.PyArray_DATA(b)
    cdef cnp.npy_intp k, size = cnp.PyArray_SIZE(a)
    with nogil:
        for k in range(size):
            y[k] = <float>(limited(x[k]) if keep_finite and not isinf(x[k]) else x[k])
    return b


cdef inline double limited(double x) noexcept nogil:
    """The nearest number that is finite as a float; NaN stays."""
    return FLT_MAX if x > FLT_MAX else -FLT_MAX if x < -FLT_MAX else x


cdef bint are_finite(cnp.ndarray a):
    """Whether all of contiguous float64 are."""
    cdef cnp.npy_intp k
    for k in range(cnp.PyArray_SIZE(a)):
        if not isfinite((<double *>cnp.PyArray_DATA(a))[k]):
            return False
    return True


cdef cnp.ndarray finite_as_floats(cnp.ndarray a):
    """A copy of contiguous float64 in which what is finite is so as a float too."""
    cdef cnp.ndarray own = cnp.PyArray_NewCopy(a, cnp.NPY_CORDER)
    cdef double *x = <double *>cnp.PyArray_DATA(own)
    cdef cnp.npy_intp k
    for k in range(cnp.PyArray_SIZE(own)):
        x[k] = x[k] if isinf(x[k]) else limited(x[k])
    return own
