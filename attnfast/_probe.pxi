# The kernels' pieces one by one and the machine's limits, for tests and benchmarks. Included by _core.pyx.

from libc.string cimport memset

import threading
import time

cdef extern from "kernels.h" nogil:
    ctypedef struct af_probe:
        void (*exp2)(const void *, void *, int64_t) noexcept nogil
        void (*tanh)(const void *, void *, int64_t) noexcept nogil
        void (*log2)(const void *, void *, int64_t) noexcept nogil
        void (*exp_twice)(const void *, void *, int64_t) noexcept nogil
        void (*exp_twice_fast)(const void *, void *, int64_t) noexcept nogil
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


def _apply(str name, x):
    cdef cnp.ndarray a = np.ascontiguousarray(x), y = np.empty_like(a)
    cdef const af_probe *probe = table(a.dtype.name).probe
    cdef void (*f)(const void *, void *, int64_t) noexcept nogil
    if name == "exp2":
        f = probe.exp2
    elif name == "tanh":
        f = probe.tanh
    elif name == "log2":
        f = probe.log2
    elif name == "exp_twice":
        f = probe.exp_twice
    else:
        f = probe.exp_twice_fast
    f(cnp.PyArray_DATA(a), cnp.PyArray_DATA(y), cnp.PyArray_SIZE(a))
    return y


def probe_exp2(x):
    """2**x by the kernels' vector function; float32 or float64."""
    return _apply("exp2", x)


def probe_tanh(x):
    """tanh(x) by the kernels' vector function; float32 or float64."""
    return _apply("tanh", x)


def probe_log2(x):
    """log2(x) for positive normal x by the kernels' vector function; float32 or float64."""
    return _apply("log2", x)


def probe_exp_twice(x):
    """exp(2 x) as additive scores take it of queries and keys; float32 or float64."""
    return _apply("exp_twice", x)


def probe_exp_twice_fast(x):
    """exp(2 x) as additive scores take it of their sum; float32 or float64."""
    return _apply("exp_twice_fast", x)


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


cdef cnp.ndarray whole_numbers(x):
    return None if x is None else np.ascontiguousarray(x, np.int64)


cdef int64_t *first_number(cnp.ndarray a) noexcept:
    return NULL if a is None else <int64_t *>cnp.PyArray_DATA(a)


def probe_visibility(
    int64_t lq, int64_t lk, window, blocks, bint causal=False, q_offset=None, q_length=None, kv_length=None,
    centers=None, query_order=None, key_position=None,
):
    """What plan/ says of one head, as pairs (begin, end): the keys that each query sees; the queries that can see any
    key of each block of keys; those that see all of it. blocks are pairs too."""
    cdef cnp.ndarray spans = whole_numbers(blocks), order = whole_numbers(query_order)
    cdef cnp.ndarray offset = whole_numbers(q_offset), queries = whole_numbers(q_length)
    cdef cnp.ndarray keys = whole_numbers(kv_length), position = whole_numbers(key_position)
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
    call.visible.kv_length, call.subset.key_position = first_number(keys), first_number(position)
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


def _rate(step, double seconds, int num_threads=1):
    """Sum over threads of what step(which thread) does a second, all of them at the same time."""
    if num_threads < 1:
        raise ValueError(f"num_threads must be at least 1, got {num_threads}")
    rates = [0.0] * num_threads
    barrier = threading.Barrier(num_threads)

    def worker(int which):
        step(which)
        barrier.wait()
        done, elapsed, start = 0.0, 0.0, time.perf_counter()
        while elapsed < seconds:
            done += step(which)
            elapsed = time.perf_counter() - start
        rates[which] = done / elapsed

    threads = [threading.Thread(target=worker, args=(i,)) for i in range(num_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(rates)


def measure_fma_peak(int num_threads, double seconds, str dtype="float32"):
    """GFLOP/s of independent fused multiply-adds in registers."""
    cdef const af_kernels *t = table(dtype)

    def step(which):
        cdef double flops
        with nogil:
            flops = t.probe.fma_peak(20000)
        return flops

    return _rate(step, seconds, num_threads) * 1e-9


def measure_read_bandwidth(int num_threads, int64_t nbytes, double seconds):
    """GB/s of reading nbytes in order, each thread its own share."""
    cdef const af_kernels *t = table("float32")
    cdef int64_t share = max(4096, nbytes // max(1, num_threads))
    arrays = [np.ones(share // 4, np.float32) for _ in range(num_threads)]

    def step(which):
        cdef cnp.ndarray a = arrays[which]
        cdef void *data = cnp.PyArray_DATA(a)
        with nogil:
            t.probe.read(data, share)
        return <double>share

    return _rate(step, seconds, num_threads) * 1e-9


def time_tile(int64_t k, double seconds, str dtype="float32"):
    """GFLOP/s of the register tile: 64 rows, k steps, data in cache, one thread."""
    cdef const af_kernels *t = table(dtype)
    cdef cnp.ndarray a = np.ones((64, k), dtype), b = np.ones((k, t.nr), dtype), c = np.ones((64, t.nr), dtype)

    def step(which):
        cdef void *x = cnp.PyArray_DATA(a)
        cdef void *y = cnp.PyArray_DATA(b)
        cdef void *z = cnp.PyArray_DATA(c)
        cdef int i
        with nogil:
            for i in range(200):
                t.probe.tile(False, 64, k, x, k, y, z)
        return 200 * 2.0 * 64 * k * t.nr

    return _rate(step, seconds) * 1e-9


def time_exp2(double seconds, str dtype="float32"):
    """Billions of exp2 a second: 4096 values in cache, one thread."""
    cdef const af_kernels *t = table(dtype)
    cdef cnp.ndarray a = np.linspace(-20, 0, 4096).astype(dtype), b = np.empty_like(a)

    def step(which):
        cdef void *x = cnp.PyArray_DATA(a)
        cdef void *y = cnp.PyArray_DATA(b)
        cdef int i
        with nogil:
            for i in range(100):
                t.probe.exp2(x, y, 4096)
        return 100 * 4096.0

    return _rate(step, seconds) * 1e-9


def time_softmax(double seconds, str dtype="float32"):
    """Billions of modified scores a second through the online softmax of 128 keys, one thread."""
    cdef const af_kernels *t = table(dtype)
    cdef cnp.ndarray s = np.zeros((128, t.nr), dtype), m = np.zeros(t.nr, dtype), total = np.zeros(t.nr, dtype)

    def step(which):
        cdef void *x = cnp.PyArray_DATA(s)
        cdef void *y = cnp.PyArray_DATA(m)
        cdef void *z = cnp.PyArray_DATA(total)
        cdef int i
        with nogil:
            for i in range(100):
                t.probe.softmax(x, 128, y, z)
        return 100 * 128.0 * t.nr

    return _rate(step, seconds) * 1e-9
