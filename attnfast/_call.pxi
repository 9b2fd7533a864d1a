# One call: every argument checked in the order of the signature, memory for the results, and the run. Included by
# _core.pyx.

cdef int64_t position(object x):
    """A whole number of any size as a position that C can add to."""
    return max(-AF_MAX_POSITION, min(AF_MAX_POSITION, int(x)))


cdef int64_t window_bound(object x) except? -2:
    if x is None:
        return AF_FAR
    n = whole_number(x, "window_size")
    if n < -1:
        raise ValueError(f"window_size bounds must be -1 (unbounded) or more, got {n}")
    return AF_FAR if n == -1 or n >= AF_MAX_POSITION else n


cdef int thread_count(object num_threads) except -1:
    """0: the default, which C looks up where it matters."""
    if num_threads is None:
        return 0
    n = whole_number(num_threads, "num_threads")
    if n < 1:
        raise ValueError(f"num_threads must be at least 1, got {n}")
    return min(n, 1024)


cdef int interrupted() noexcept nogil:
    with gil:
        return PyErr_CheckSignals() < 0


cdef class Call:
    """One call's problem, with everything it points to kept alive."""

    cdef af_problem p
    cdef list keep
    cdef cnp.ndarray query, key, value
    cdef int batch_ndim, ndim
    cdef cnp.npy_intp batch[MAX_DIMS]
    cdef bint positioned  # is something relative to the query's position on the key axis?

    # ---- operands ----

    cdef int set_operands(self, object query, object key, object value, bint has_value) except -1:
        cdef int dq, dk, dv
        self.keep = []
        self.query = operand(query, "query", &dq)
        self.key = operand(key, "key", &dk)
        self.value = operand(value, "value", &dv) if has_value else None
        self.check_dtype("key", self.key, dq, dk)
        if has_value:
            self.check_dtype("value", self.value, dq, dv)
        self.p.dtype = <af_dtype>dq
        self.p.stage = AF_WEIGHTS
        self.set_shape()
        return 0

    cdef int check_dtype(self, str name, cnp.ndarray a, int dq, int da) except -1:
        if da != dq:
            wanted = DTYPES[dq]
            spelled = f"np.{wanted}" if dq != AF_BF16 else "ml_dtypes.bfloat16"
            raise TypeError(f"{name} has dtype {a.dtype} but query has {wanted}: write {name}.astype({spelled})")
        return 0

    cdef int set_shape(self) except -1:
        cdef af_problem *p = &self.p
        p.H, p.Lq, p.D = axis(self.query, 3), axis(self.query, 2), axis(self.query, 1)
        p.Hk, p.Lk = axis(self.key, 3), axis(self.key, 2)
        if axis(self.key, 1) != p.D:
            raise ValueError(
                f"key has head size {axis(self.key, 1)} but query has {p.D} (last axis): "
                f"key {shape_of(self.key)}, query {shape_of(self.query)}"
            )
        if self.value is not None:
            p.Dv = axis(self.value, 1)
            if axis(self.value, 2) != p.Lk or axis(self.value, 3) != p.Hk:
                raise ValueError(
                    f"value must have the heads and length of key, ({p.Hk}, {p.Lk}, ...): "
                    f"value {shape_of(self.value)}, key {shape_of(self.key)}"
                )
        if (p.Hk == 0 and p.H != 0) or (p.Hk != 0 and p.H % p.Hk != 0):
            raise ValueError(
                f"key has {p.Hk} heads, which does not divide the {p.H} heads of query: "
                f"key {shape_of(self.key)}, query {shape_of(self.query)}"
            )
        self.ndim = max(cnp.PyArray_NDIM(self.query), cnp.PyArray_NDIM(self.key))
        if self.value is not None:
            self.ndim = max(self.ndim, cnp.PyArray_NDIM(self.value))
        if self.ndim > MAX_DIMS:
            raise ValueError(f"query, key and value may have at most {MAX_DIMS} axes")
        self.batch_ndim = max(0, self.ndim - 3)
        self.set_batch()
        self.set_strides(&p.query, self.query)
        self.set_strides(&p.key, self.key)
        if self.value is not None:
            self.set_strides(&p.value, self.value)
        return 0

    cdef int join_batch(self, str name, cnp.ndarray a) except -1:
        cdef int k
        cdef int64_t n
        for k in range(self.batch_ndim):
            n = axis(a, self.batch_ndim - k + 3)
            if n == 1 or n == self.batch[k]:
                continue
            if self.batch[k] != 1:
                raise ValueError(
                    f"the batch axes of {name} do not broadcast: {name} {shape_of(a)}, "
                    f"query {shape_of(self.query)}, key {shape_of(self.key)}"
                )
            self.batch[k] = n
        return 0

    cdef int set_batch(self) except -1:
        cdef int k
        cdef int64_t total = 1
        for k in range(self.batch_ndim):
            self.batch[k] = 1
        self.join_batch("query", self.query)
        self.join_batch("key", self.key)
        if self.value is not None:
            self.join_batch("value", self.value)
        for k in range(self.batch_ndim):
            if self.batch[k] != 0 and total > AF_FAR // self.batch[k]:
                raise ValueError("the batch axes have too many elements")
            total *= self.batch[k]
        self.p.B = total
        return 0

    cdef tuple batch_shape(self):
        return tuple([self.batch[k] for k in range(self.batch_ndim)])

    cdef int set_strides(self, af_tensor *t, cnp.ndarray a) except -1:
        """Strides of an array whose last three axes are (heads, rows, elements), broadcast where they are 1."""
        cdef int nd = cnp.PyArray_NDIM(a)
        cdef cnp.npy_intp size = cnp.PyArray_ITEMSIZE(a)
        cdef cnp.npy_intp *shape = cnp.PyArray_DIMS(a)
        cdef cnp.npy_intp *strides = cnp.PyArray_STRIDES(a)
        t.data = cnp.PyArray_DATA(a)
        t.batch = NULL
        t.b = 0
        t.h = strides[nd - 3] // size if nd > 2 and shape[nd - 3] != 1 else 0
        t.i = strides[nd - 2] // size if nd > 1 and shape[nd - 2] != 1 else 0
        t.j = strides[nd - 1] // size if nd > 0 and shape[nd - 1] != 1 else 0
        if self.p.B > 1 and nd > 3:
            self.set_batch_strides(t, a, size)
        return 0

    cdef int set_batch_strides(self, af_tensor *t, cnp.ndarray a, cnp.npy_intp size) except -1:
        """One stride for all batch axes where they collapse, else a table of offsets."""
        cdef cnp.npy_intp step[MAX_DIMS]
        cdef int k, own, missing = self.batch_ndim - (cnp.PyArray_NDIM(a) - 3)
        cdef bint collapses = True
        cdef int64_t span = -1
        for k in range(self.batch_ndim):
            own = k - missing
            step[k] = cnp.PyArray_STRIDES(a)[own] // size if own >= 0 and cnp.PyArray_DIMS(a)[own] != 1 else 0
        for k in range(self.batch_ndim - 1, -1, -1):
            if self.batch[k] == 1:
                continue
            if span == -1:
                t.b = step[k]
            elif step[k] != span:
                collapses = False
            span = step[k] * self.batch[k]
        if collapses:
            return 0
        cdef cnp.ndarray offsets = np.zeros(1, np.int64)
        for k in range(self.batch_ndim):
            offsets = np.add.outer(offsets, np.arange(self.batch[k], dtype=np.int64) * step[k]).ravel()
        self.keep.append(offsets)
        t.batch = <const int64_t *>cnp.PyArray_DATA(offsets)
        return 0

    # ---- options ----

    cdef int set_options(
        self, object mask, object bias, object is_causal, object window_size, object q_offset, object q_lengths,
        object kv_lengths, object scale, object softcap, object alibi_slopes, object sink_logits,
    ) except -1:
        if mask is not None:
            self.set_mask(mask)
        if bias is not None:
            self.set_bias(bias)
        self.set_window(is_causal, window_size)
        if alibi_slopes is not None:
            self.set_alibi(alibi_slopes)
        self.set_lengths(q_offset, q_lengths, kv_lengths)
        self.set_scale(scale, softcap)
        if sink_logits is not None:
            self.set_sink(sink_logits)
        return 0

    cdef cnp.ndarray pairs(self, cnp.ndarray a, str name):
        """An array over (..., H, Lq, Lk), any axis of length 1 broadcast; repeated axes are cut to that."""
        cdef int k, nd = cnp.PyArray_NDIM(a)
        cdef int64_t wanted, n
        for k in range(1, nd + 1):
            n = axis(a, k)
            if k > self.batch_ndim + 3:
                wanted = -1
            elif k > 3:
                wanted = self.batch[self.batch_ndim + 3 - k]
            else:
                wanted = self.p.Lk if k == 1 else self.p.Lq if k == 2 else self.p.H
            if wanted == -1 or (n != 1 and n != wanted):
                full = self.batch_shape() + (self.p.H, self.p.Lq, self.p.Lk)
                raise ValueError(f"{name} has shape {shape_of(a)}, which does not broadcast to {full}")
        return without_repeats(a, 0)

    cdef int set_pairs(self, af_tensor *t, cnp.ndarray a) except -1:
        if not has_legal_strides(a):
            a = np.array(a, dtype=a.dtype.newbyteorder("="), order="C", copy=True)
        self.keep.append(a)
        self.set_strides(t, a)
        return 0

    cdef int set_mask(self, object mask) except -1:
        cdef cnp.ndarray a = as_array(mask, "mask")
        if cnp.PyArray_TYPE(a) != cnp.NPY_BOOL:
            if a.dtype.kind in "iu":
                advice = "write mask != 0 (True = may attend)"
            else:
                advice = "additive values go to bias=; for a boolean mask write, say, mask == 0"
            raise TypeError(f"mask must be bool, got {a.dtype}: {advice}")
        return self.set_pairs(&self.p.mask, self.pairs(a, "mask"))

    cdef int set_bias(self, object bias) except -1:
        cdef cnp.ndarray a = as_array(bias, "bias")
        cdef int dtype = dtype_of(a), wanted = AF_F64 if self.p.dtype == AF_F64 else AF_F32
        if dtype < 0:
            advice = "a boolean mask goes to mask=" if a.dtype.kind == "b" else "write bias.astype(np.float32)"
            raise TypeError(f"bias must be floating point, got {a.dtype}: {advice}")
        a = self.pairs(a, "bias")
        if dtype == AF_F64 and wanted == AF_F32:
            a = narrow(a)
        elif dtype != wanted:
            a = a.astype(np.float64 if wanted == AF_F64 else np.float32)
        return self.set_pairs(&self.p.bias, a)

    cdef int set_window(self, object is_causal, object window_size) except -1:
        cdef bint causal = flag(is_causal, "is_causal")
        self.p.left = self.p.right = AF_FAR
        if window_size is not None:
            if isinstance(window_size, (tuple, list)):
                if len(window_size) != 2:
                    raise ValueError(f"window_size must be an int or a pair (left, right), got {window_size!r}")
                left, right = window_size
            else:
                left = right = window_size
            self.p.left = window_bound(left)
            self.p.right = window_bound(right)
        self.positioned = causal or self.p.left < AF_FAR or self.p.right < AF_FAR
        if causal:
            self.p.right = min(self.p.right, 0)
        return 0

    cdef int set_alibi(self, object alibi_slopes) except -1:
        cdef cnp.ndarray a = real_array(alibi_slopes, "alibi_slopes")
        heads, full = (self.p.H,), self.batch_shape() + (self.p.H,)
        if shape_of(a) != heads and shape_of(a) != full and shape_of(a) != (self.p.B, self.p.H):
            raise ValueError(f"alibi_slopes must have shape {heads} or {full}, got {shape_of(a)}")
        a = self.within_reals(a)
        self.p.alibi_b = self.p.H if cnp.PyArray_NDIM(a) > 1 else 0
        self.keep.append(a)
        self.p.alibi = <const double *>cnp.PyArray_DATA(a)
        self.positioned = True
        return 0

    cdef cnp.ndarray within_reals(self, cnp.ndarray a):
        """Finite values stay finite in what C computes in."""
        if self.p.dtype == AF_F64:
            return a
        limit = np.finfo(np.float32).max
        return np.where(np.isinf(a), a, np.clip(a, -limit, limit))

    cdef int set_sink(self, object sink_logits) except -1:
        cdef cnp.ndarray a = real_array(sink_logits, "sink_logits")
        if shape_of(a) != (self.p.H,):
            raise ValueError(f"sink_logits must have shape {(self.p.H,)}, got {shape_of(a)}")
        a = self.within_reals(a)
        self.keep.append(a)
        self.p.sink = <const double *>cnp.PyArray_DATA(a)
        return 0

    cdef cnp.ndarray whole_rows(self, object x, str name, bint one_for_all):
        """One whole number for each batch row."""
        shape = self.batch_shape()
        if isinstance(x, numbers.Integral) and not isinstance(x, (bool, np.bool_, np.timedelta64)):
            x = np.array(position(x))
        cdef cnp.ndarray a = as_array(x, name)
        if a.dtype.kind not in "iu" and a.size:
            raise TypeError(f"{name} must be integers, got {a.dtype}")
        if a.dtype.kind == "u":
            a = np.asarray(np.minimum(a.astype(np.uint64), np.uint64(AF_MAX_POSITION)))
        a = np.asarray(np.clip(a.astype(np.int64), -AF_MAX_POSITION, AF_MAX_POSITION))
        if shape_of(a) == () and (one_for_all or self.p.B == 1):
            return np.full(self.p.B, a, np.int64)
        if shape_of(a) != shape and shape_of(a) != (self.p.B,):
            raise ValueError(f"{name} must have one entry for each batch row, shape {shape}, got {shape_of(a)}")
        return np.ascontiguousarray(a.ravel())

    cdef cnp.ndarray length_rows(self, object x, str name, int64_t longest):
        cdef cnp.ndarray a = self.whole_rows(x, name, False)
        if a.size and (a.min() < 0 or a.max() > longest):
            raise ValueError(f"{name} must be within 0 .. {longest}, got {a.min()} .. {a.max()}")
        self.keep.append(a)
        return a

    cdef int set_lengths(self, object q_offset, object q_lengths, object kv_lengths) except -1:
        cdef cnp.ndarray a
        if q_lengths is not None:
            a = self.length_rows(q_lengths, "q_lengths", self.p.Lq)
            self.p.q_length = <const int64_t *>cnp.PyArray_DATA(a)
        if kv_lengths is not None:
            a = self.length_rows(kv_lengths, "kv_lengths", self.p.Lk)
            self.p.kv_length = <const int64_t *>cnp.PyArray_DATA(a)
        if q_offset is None:
            if self.positioned and self.p.Lq != self.p.Lk:
                raise ValueError(
                    f"q_offset must be given when is_causal, window_size or alibi_slopes need positions and the "
                    f"lengths differ (Lq = {self.p.Lq}, Lk = {self.p.Lk}): q_offset=0 lines up the first query with "
                    f"the first key, q_offset=\"end\" the last query with the last key"
                )
            return 0
        if isinstance(q_offset, str):
            if q_offset != "end":
                raise ValueError(f"q_offset must be an int, one for each batch row, or \"end\", got {q_offset!r}")
            a = np.empty(self.p.B, np.int64)
            a[:] = self.p.Lk if kv_lengths is None else self.length_rows(kv_lengths, "kv_lengths", self.p.Lk)
            a -= self.p.Lq if q_lengths is None else self.length_rows(q_lengths, "q_lengths", self.p.Lq)
        else:
            a = self.whole_rows(q_offset, "q_offset", True)
        self.keep.append(a)
        self.p.q_offset = <const int64_t *>cnp.PyArray_DATA(a)
        return 0

    cdef int set_scale(self, object scale, object softcap) except -1:
        if scale is None:
            self.p.scale = 1 / sqrt(<double>self.p.D) if self.p.D else 1
        else:
            self.p.scale = real_number(scale, "scale")
            if not isfinite(self.p.scale):
                raise ValueError(f"scale must be finite, got {self.p.scale}")
        self.p.softcap = 0
        if softcap is not None:
            self.p.softcap = real_number(softcap, "softcap")
            if not (isfinite(self.p.softcap) and self.p.softcap > 0):
                raise ValueError(f"softcap must be finite and above 0, got {self.p.softcap}")
            limit = 1e300 if self.p.dtype == AF_F64 else 1e30  # its inverse has to be a real too
            self.p.softcap = max(1 / limit, min(limit, self.p.softcap))
        return 0

    # ---- results ----

    cdef tuple outer_shape(self):
        """The shape of the results without their last axis."""
        if self.ndim == 2:
            return (self.p.Lq,)
        return self.batch_shape() + (self.p.H, self.p.Lq)

    cdef cnp.ndarray new_array(self, int64_t last):
        """An array (..., H, Lq, last) in the dtype of query."""
        cdef cnp.npy_intp shape[MAX_DIMS]
        cdef int k
        for k in range(self.batch_ndim):
            shape[k] = self.batch[k]
        if self.ndim > 2:
            shape[self.ndim - 3] = self.p.H
        shape[self.ndim - 2] = self.p.Lq
        shape[self.ndim - 1] = last
        if self.p.dtype == AF_BF16:
            return np.empty([shape[k] for k in range(self.ndim)], self.query.dtype)
        return cnp.PyArray_EMPTY(self.ndim, shape, cnp.PyArray_TYPE(self.query), 0)

    cdef cnp.ndarray new_output(self, object query):
        """An output whose memory has the axis order of the caller's query."""
        if isinstance(query, np.ndarray) and query.ndim == self.ndim and not falls(query):
            return self.reordered_output(query)
        return self.new_array(self.p.Dv)

    cdef cnp.ndarray reordered_output(self, object query):
        strides = query.strides
        clear = [k for k in range(self.ndim - 1) if strides[k] != 0 and query.shape[k] > 1]
        order = list(range(self.ndim))
        for place, k in zip(clear, sorted(clear, key=lambda k: -abs(strides[k]))):
            order[place] = k
        shape = self.outer_shape() + (self.p.Dv,)
        return np.empty([shape[k] for k in order], self.query.dtype).transpose(np.argsort(order))

    cdef cnp.ndarray checked_out(self, object out):
        shape = self.outer_shape() + (self.p.Dv,)
        if not isinstance(out, np.ndarray):
            raise TypeError(f"out must be an array, got {type(out).__name__}")
        cdef cnp.ndarray a = out
        if dtype_of(a) != self.p.dtype:
            raise TypeError(f"out must have the dtype of query, {DTYPES[self.p.dtype]}, got {a.dtype}")
        if out.shape != shape:
            raise ValueError(f"out must have shape {shape}, got {out.shape}")
        if not out.flags.writeable:
            raise ValueError("out is read-only")
        if isinstance(out, np.ma.MaskedArray):
            raise TypeError("out is a masked array; pass its .data")
        extent = out.itemsize
        for stride, n in sorted((abs(s), n) for n, s in zip(out.shape, out.strides) if n > 1):
            if stride < extent and out.size:
                raise ValueError(f"out has elements that share memory: shape {out.shape}, strides {out.strides}")
            extent += stride * (n - 1)
        return a

    cdef bint can_write(self, cnp.ndarray out):
        """Whether C may write to `out` while it reads the inputs."""
        if not has_legal_strides(out):
            return False
        for a in [self.query, self.key, self.value, *self.keep]:
            if a is not None and np.may_share_memory(out, a):
                return False
        return True

    cdef int run(self, int threads) except -1:
        cdef af_run how
        cdef af_status status
        how.threads = threads
        how.interrupted = interrupted
        with nogil:
            status = af_attention(&self.p, &how)
        if status == AF_NO_MEMORY:
            raise MemoryError("attnfast could not allocate its working memory")
        if status == AF_INTERRUPTED:
            return -1  # the exception is set
        return 0
