# The kernels' pieces one by one, for tests and benchmarks. Included by _core.pyx.

from libc.string cimport memset

ctypedef void (*af_vector_function)(const void *, void *, int64_t) noexcept nogil

cdef extern from "kernels.h" nogil:
    enum:
        AF_CPU_REQUESTS, AF_CPU_LOOKS_UP
    ctypedef struct af_probe:
        af_vector_function exp2, tanh, log2, exp_twice, exp_twice_fast
        void (*tile)(bint, int64_t, int64_t, const void *, int64_t, const void *, void *) noexcept nogil
        void (*softmax)(void *, int, void *, void *) noexcept nogil
        double (*fma_peak)(int64_t) noexcept nogil
        double (*read)(const void *, int64_t) noexcept nogil
    ctypedef struct af_kernels:
        int vl, nr
        const af_probe *probe

cdef extern from "runtime/dispatch.h" nogil:
    const af_kernels *af_kernels_for(af_dtype)

cdef extern from "plan/visible_queries.h" nogil:
    ctypedef struct af_interval:
        int64_t begin, end
    ctypedef struct af_subset:
        af_tensor query_order
        const int64_t *key_position
    ctypedef struct af_call:
        int64_t B, H, Lq, Lk
        af_visible visible
        af_subset subset
    af_interval af_visible_keys(const af_call *, int64_t b, int64_t h, int64_t i)
    af_interval af_visible_queries(const af_call *, int64_t b, int64_t h, af_interval keys)
    af_interval af_queries_seeing_all(const af_call *, int64_t b, int64_t h, af_interval keys)


cdef const af_kernels *table(str dtype) except NULL:
    if dtype not in ("float32", "float64"):
        raise ValueError(f"dtype must be float32 or float64, got {dtype!r}")
    return af_kernels_for(AF_F32 if dtype == "float32" else AF_F64)


def probe(str name, x):
    """By a vector function of the kernels: exp2, tanh, log2 (of positive normal x), exp_twice and exp_twice_fast, which
    are exp(2 x) as additive scores take it of queries and keys, and of their sum. float32 or float64."""
    cdef cnp.ndarray a = np.ascontiguousarray(x), y = np.empty_like(a)
    cdef const af_probe *t = table(a.dtype.name).probe
    names = ("exp2", "tanh", "log2", "exp_twice", "exp_twice_fast")
    cdef af_vector_function *functions = [t.exp2, t.tanh, t.log2, t.exp_twice, t.exp_twice_fast]
    functions[<int>names.index(name)](cnp.PyArray_DATA(a), cnp.PyArray_DATA(y), cnp.PyArray_SIZE(a))
    return y


def probe_tile(a, b, c=None):
    """a @ b by the register tile; with c, a.T @ b + c. b has as many columns as a block has query lanes."""
    cdef cnp.ndarray x = np.ascontiguousarray(a), y = np.ascontiguousarray(b), z
    cdef const af_kernels *t = table(x.dtype.name)
    cdef int64_t k = x.shape[0] if c is not None else x.shape[1], rows = x.shape[1] if c is not None else x.shape[0]
    if c is not None and np.shape(c) != (rows, t.nr):
        raise ValueError(f"c must have shape {(rows, t.nr)}")
    if y.dtype != x.dtype or (<object>y).shape != (k, t.nr):
        raise ValueError(f"b must have shape {(k, t.nr)} and the dtype of a")
    z = np.zeros((rows, t.nr), x.dtype) if c is None else np.array(c, x.dtype, order="C")
    t.probe.tile(c is not None, rows, k, cnp.PyArray_DATA(x), x.shape[1], cnp.PyArray_DATA(y), cnp.PyArray_DATA(z))
    return z


def query_lanes(str dtype="float32"):
    """Query rows in a block."""
    return table(dtype).nr


def request_lines(choice):
    """Whether decoding requests each line of memory ahead; None: as this CPU wants it. Changes no result."""
    af_cpu_choose(AF_CPU_REQUESTS, -1 if choice is None else bool(choice))


def look_up_bytes(bint wanted):
    """Whether few queries look 8-bit keys and values up in a table, where this CPU has that. Changes no result."""
    af_cpu_choose(AF_CPU_LOOKS_UP, -1 if wanted else 0)


cdef cnp.ndarray whole_numbers(x):
    return None if x is None else np.ascontiguousarray(x, np.int64)


def probe_visibility(
    int64_t lq, int64_t lk, window, blocks, bint causal=False, q_offset=None, q_length=None, kv_length=None,
    kv_start=None, centers=None, query_order=None, key_position=None,
):
    """What plan/ says of one head, as pairs (begin, end): the keys that each query sees; the queries that can see any
    key of each block of keys; those that see all of it. blocks are pairs too."""
    cdef cnp.ndarray spans = whole_numbers(blocks), order = whole_numbers(query_order)
    cdef cnp.ndarray offset = whole_numbers(q_offset), queries = whole_numbers(q_length)
    cdef cnp.ndarray keys = whole_numbers(kv_length), start = whole_numbers(kv_start)
    cdef cnp.ndarray position = whole_numbers(key_position)
    cdef cnp.ndarray center = None if centers is None else np.ascontiguousarray(centers, np.float64)
    cdef cnp.ndarray seen = np.empty((lq, 2), np.int64), of_any = np.empty_like(spans), of_all = np.empty_like(spans)
    cdef af_interval *span = <af_interval *>cnp.PyArray_DATA(spans)
    cdef af_call call
    cdef int64_t i
    memset(&call, 0, sizeof(call))
    call.B, call.H, call.Lq, call.Lk = 1, 1, lq, lk
    call.visible.left, call.visible.right = [AF_FAR if bound is None else bound for bound in window]
    call.visible.causal = causal
    call.visible.q_offset, call.visible.q_length = first_number(offset), first_number(queries)
    call.visible.kv_length, call.visible.kv_start = first_number(keys), first_number(start)
    call.subset.key_position = first_number(position)
    if center is not None:
        call.visible.center.data, call.visible.center.i = cnp.PyArray_DATA(center), 1
    if order is not None:
        call.subset.query_order.data, call.subset.query_order.i = cnp.PyArray_DATA(order), 1
    for i in range(lq):
        (<af_interval *>cnp.PyArray_DATA(seen))[i] = af_visible_keys(&call, 0, 0, i)
    for i in range(spans.shape[0]):
        (<af_interval *>cnp.PyArray_DATA(of_any))[i] = af_visible_queries(&call, 0, 0, span[i])
        (<af_interval *>cnp.PyArray_DATA(of_all))[i] = af_queries_seeing_all(&call, 0, 0, span[i])
    return seen, of_any, of_all


# Loops to be timed, without the GIL; attnfast/bench/limits.py says of what.

def run_fma(int64_t rounds, str dtype):
    """Independent fused multiply-adds in registers; returns how many flops."""
    cdef const af_kernels *t = table(dtype)
    cdef double flops
    with nogil:
        flops = t.probe.fma_peak(rounds)
    return flops


def run_read(cnp.ndarray a):
    cdef const af_kernels *t = table("float32")
    cdef void *data = cnp.PyArray_DATA(a)
    cdef int64_t size = a.nbytes
    with nogil:
        t.probe.read(data, size)


def run_tile(cnp.ndarray a, cnp.ndarray b, cnp.ndarray c, int rounds):
    cdef const af_kernels *t = table(a.dtype.name)
    cdef void *x = cnp.PyArray_DATA(a)
    cdef void *y = cnp.PyArray_DATA(b)
    cdef void *z = cnp.PyArray_DATA(c)
    cdef int64_t rows = a.shape[0], k = a.shape[1]
    with nogil:
        for _ in range(rounds):
            t.probe.tile(False, rows, k, x, k, y, z)


def run_exp2(cnp.ndarray a, cnp.ndarray result, int rounds):
    cdef const af_kernels *t = table(a.dtype.name)
    cdef void *x = cnp.PyArray_DATA(a)
    cdef void *y = cnp.PyArray_DATA(result)
    cdef int64_t n = cnp.PyArray_SIZE(a)
    with nogil:
        for _ in range(rounds):
            t.probe.exp2(x, y, n)


def run_softmax(cnp.ndarray scores, cnp.ndarray most, cnp.ndarray total, int rounds):
    """The online softmax of modified scores, keys by query lanes."""
    cdef const af_kernels *t = table(scores.dtype.name)
    cdef void *x = cnp.PyArray_DATA(scores)
    cdef void *y = cnp.PyArray_DATA(most)
    cdef void *z = cnp.PyArray_DATA(total)
    cdef int keys = scores.shape[0]
    with nogil:
        for _ in range(rounds):
            t.probe.softmax(x, keys, y, z)
