# One call: every argument checked in the order of the signature, memory for the results, and the run. Included by
# _core.pyx.

cdef int64_t position(object x):
    """A whole number of any size as a position that C can add to."""
    return max(-AF_MAX_POSITION, min(AF_MAX_POSITION, int(x)))


cdef tuple window_sides(object window_size):
    if isinstance(window_size, (tuple, list)):
        if len(window_size) != 2:
            raise ValueError(f"window_size must be an int or a pair (left, right), got {window_size!r}")
        return tuple(window_size)
    if isinstance(window_size, np.ndarray):
        sides = window_size.ravel().tolist()
        write = ""
        if window_size.dtype.kind in "iu" and len(sides) in (1, 2):
            write = f": write {sides[0] if len(sides) == 1 else tuple(sides)}"
        raise TypeError(f"window_size must be an int or a pair (left, right), got an array{write}")
    return window_size, window_size


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


cdef int check_signals() except -1:
    return PyErr_CheckSignals()


cdef int interrupted() noexcept nogil:
    with gil:
        return PyErr_CheckSignals() < 0


cdef int finished(af_status status) except -1:
    if status == AF_NO_MEMORY:
        raise MemoryError("attnfast could not allocate its working memory")
    if status == AF_INTERRUPTED:
        return -1  # the exception is set
    return 0


cdef af_run run_with(int threads) noexcept:
    cdef af_run how
    how.threads = threads
    how.interrupted = interrupted
    return how


cdef class Call(Operands):
    """One call's problem with its options."""

    cdef bint positioned  # is something relative to the query's position on the key axis?

    cdef int set_options(
        self, object mask, object bias, object is_causal, object window_size, object q_offset, object q_lengths,
        object kv_lengths, object scale, object softcap, object alibi_slopes, object sink_logits,
    ) except -1:
        if mask is not None:
            self.set_mask(mask)
        if bias is not None:
            self.set_bias(bias)
        self.set_window(is_causal, window_size)
        self.set_places()
        if alibi_slopes is not None:
            self.set_alibi(alibi_slopes)
        self.set_lengths(q_offset, q_lengths, kv_lengths)
        self.set_scale(scale, softcap)
        if sink_logits is not None:
            self.set_sink(sink_logits)
        return 0

    cdef bint broadcasts(self, cnp.ndarray a, int64_t rows, int64_t columns):
        """Whether an array goes over (..., H, rows, columns), and can only be meant for these axes."""
        cdef int k, nd = cnp.PyArray_NDIM(a)
        cdef int64_t wanted, n
        if nd > self.batch_ndim + 3:
            return False
        for k in range(1, nd + 1):
            n = axis(a, k)
            if k > 3:
                wanted = self.batch[self.batch_ndim + 3 - k]
            else:
                wanted = columns if k == 1 else rows if k == 2 else self.p.H
            if n != 1 and n != wanted:
                return False
        if self.p.B == 1 or nd <= self.batch_ndim or nd == self.batch_ndim + 3:
            return True
        return cnp.PyArray_DIMS(a)[0] != self.batch[0]  # an array for each batch row has the batch axes

    cdef cnp.ndarray grid(self, cnp.ndarray a, str name, int64_t rows, int64_t columns, bint blocks):
        """An array over (..., H, rows, columns), any axis of length 1 broadcast; repeated axes are cut to that."""
        if not self.broadcasts(a, rows, columns):
            check_axes(name, shape_of(a), self.batch_shape(), (self.p.H, rows, columns), blocks=blocks)
        return without_repeats(a, 0)

    cdef int set_pairs(self, af_tensor *t, cnp.ndarray a) except -1:
        if not has_legal_strides(a):
            a = np.array(a, dtype=a.dtype.newbyteorder("="), order="C", copy=True)
        self.keep.append(a)
        self.set_strides(t, a)
        return 0

    cdef int set_blocks(self, object mask) except -1:
        cdef int64_t rows, columns
        self.visible.block_q = min(mask.block_size[0], max(self.p.Lq, 1))
        self.visible.block_k = min(mask.block_size[1], max(self.p.Lk, 1))
        rows = (self.p.Lq + self.visible.block_q - 1) // self.visible.block_q
        columns = (self.p.Lk + self.visible.block_k - 1) // self.visible.block_k
        if mask.blocks.shape[-2:] != (rows, columns):
            raise ValueError(
                f"mask has {mask.blocks.shape[-2:]} blocks of {mask.block_size} queries and keys; "
                f"Lq = {self.p.Lq} and Lk = {self.p.Lk} make {(rows, columns)}"
            )
        return self.set_pairs(&self.visible.blocks, self.grid(mask.blocks, "mask", rows, columns, True))

    cdef int set_mask(self, object mask) except -1:
        if isinstance(mask, BlockMask) and mask.block_size != (1, 1):
            return self.set_blocks(mask)
        cdef bint blocks = isinstance(mask, BlockMask)  # one pair a block: an elementwise mask
        cdef cnp.ndarray a = mask.blocks if blocks else as_array(mask, "mask")
        if cnp.PyArray_TYPE(a) != cnp.NPY_BOOL:
            raise wrong_mask(a, mask, "mask")
        return self.set_pairs(&self.visible.mask, self.grid(a, "mask", self.p.Lq, self.p.Lk, blocks))

    cdef int set_bias(self, object bias) except -1:
        cdef cnp.ndarray a = as_array(bias, "bias")
        cdef int dtype = dtype_of(a), wanted = AF_F64 if self.p.dtype == AF_F64 else AF_F32
        if dtype < 0:
            raise wrong_bias(a, bias)
        a = self.grid(a, "bias", self.p.Lq, self.p.Lk, False)
        if dtype == AF_F64 and wanted == AF_F32:
            a = narrow(a)
        elif dtype != wanted:
            a = a.astype(np.float64 if wanted == AF_F64 else np.float32)
        return self.set_pairs(&self.score.bias, a)

    cdef int set_window(self, object is_causal, object window_size) except -1:
        cdef bint causal = flag(is_causal, "is_causal")
        self.visible.left = self.visible.right = AF_FAR
        if window_size is not None:
            left, right = window_sides(window_size)
            self.visible.left = window_bound(left)
            self.visible.right = window_bound(right)
        self.positioned = causal or self.visible.left < AF_FAR or self.visible.right < AF_FAR
        self.visible.causal = causal
        return 0

    cdef int set_places(self) except -1:
        """What else a window is made of, in calls that have more than its two sides."""
        return 0

    cdef int set_alibi(self, object alibi_slopes) except -1:
        cdef cnp.ndarray a = real_array(alibi_slopes, "alibi_slopes")
        heads, full = (self.p.H,), self.batch_shape() + (self.p.H,)
        if shape_of(a) != heads and shape_of(a) != full and shape_of(a) != (self.p.B, self.p.H):
            raise ValueError(f"alibi_slopes must have shape {heads} or {full}, got {shape_of(a)}")
        a = self.within_reals(a)
        self.score.alibi_b = self.p.H if cnp.PyArray_NDIM(a) > 1 else 0
        self.keep.append(a)
        self.score.alibi = <const double *>cnp.PyArray_DATA(a)
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
        self.score.sink = <const double *>cnp.PyArray_DATA(a)
        return 0

    cdef cnp.ndarray whole_rows(self, object x, str name, bint one_for_all):
        """One whole number for each batch row."""
        shape = self.batch_shape()
        if isinstance(x, numbers.Integral) and not isinstance(x, (bool, np.bool_, np.timedelta64)):
            x = np.array(position(x))
        cdef cnp.ndarray a = as_array(x, name)
        if a.dtype.kind not in "iu" and a.size:
            raise wrong_integers(a, x, name)
        a = whole_array(a)
        if shape_of(a) == () and (one_for_all or self.p.B == 1):
            return np.full(self.p.B, a, np.int64)
        if shape_of(a) != shape and shape_of(a) != (self.p.B,):
            if shape == ():
                raise ValueError(f"{name} must be one number, got shape {shape_of(a)}: {self.one_row()}")
            raise ValueError(f"{name} must have one entry for each batch row, shape {shape}, got {shape_of(a)}")
        return np.ascontiguousarray(a.ravel())

    cdef str one_row(self):
        if self.ndim == 2:
            return "arrays of rank 2 are one head of one batch row"
        return ("arrays of rank 3 are (heads, length, head size) of one batch row, write query[:, None] (key and "
                "value alike) if they are (batch, length, head size)")

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
            self.visible.q_length = <const int64_t *>cnp.PyArray_DATA(a)
        if kv_lengths is not None:
            a = self.length_rows(kv_lengths, "kv_lengths", self.p.Lk)
            self.visible.kv_length = <const int64_t *>cnp.PyArray_DATA(a)
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
        self.visible.q_offset = <const int64_t *>cnp.PyArray_DATA(a)
        return 0

    cdef int set_scale(self, object scale, object softcap) except -1:
        if scale is None:
            self.score.scale = 1 / sqrt(<double>self.p.D) if self.p.D else 1
        else:
            self.score.scale = real_number(scale, "scale")
            if not isfinite(self.score.scale):
                raise ValueError(f"scale must be finite, got {self.score.scale}")
        self.score.softcap = 0
        if softcap is not None:
            self.score.softcap = real_number(softcap, "softcap")
            if not (isfinite(self.score.softcap) and self.score.softcap > 0):
                raise ValueError(f"softcap must be finite and above 0, got {self.score.softcap}")
            limit = 1e300 if self.p.dtype == AF_F64 else 1e30  # its inverse has to be a real too
            self.score.softcap = max(1 / limit, min(limit, self.score.softcap))
        return 0

    # ---- results ----

    cdef cnp.ndarray checked_out(self, object out):
        shape = self.outer_shape() + (self.p.Dv,)
        if not isinstance(out, np.ndarray):
            raise TypeError(f"out must be a NumPy array, got {type(out).__name__}")
        cdef cnp.ndarray a = out
        if dtype_of(a) != self.p.dtype:
            raise TypeError(f"out must have the dtype of query, {DTYPES[self.p.dtype]}, got {a.dtype}")
        if out.shape != shape:
            raise ValueError(f"out must have shape {shape}, got {out.shape}")
        if not out.flags.writeable:
            raise ValueError("out must be writable, got a read-only array")
        if isinstance(out, np.ma.MaskedArray):
            raise TypeError("out is a masked array, whose mask is not written: write out.data")
        extent = out.itemsize
        for stride, n in sorted((abs(s), n) for n, s in zip(out.shape, out.strides) if n > 1):
            if stride < extent and out.size:
                raise ValueError(f"out must have memory of its own for each element, got elements that share it: "
                                 f"shape {out.shape}, strides {out.strides}")
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

    cdef tuple attend(
        self, object query, object return_lse, object return_weights, object out, object num_threads,
        object return_blocks,
    ):
        """Output, lse, weights; the latter two None where they are not wanted. Or a plan of that."""
        cdef cnp.ndarray result = None, target, lse = None, weights = None
        cdef bint want_lse = flag(return_lse, "return_lse"), want_weights = flag(return_weights, "return_weights")
        cdef int threads = thread_count(num_threads)
        if out is not None:
            result = self.checked_out(out)
        if return_blocks is not None:
            self.results.output.data = WANTED
            self.results.lse.data = WANTED if want_lse else NULL
            self.results.weights.data = WANTED if want_weights else NULL
            return self.describe(threads, return_blocks)
        target = result if result is not None and self.can_write(result) else self.new_output(query)
        self.set_strides(&self.results.output, target)
        if want_lse:
            lse = self.new_lse()
        if want_weights:
            weights = self.new_array(self.p.Lk)
            self.set_strides(&self.results.weights, weights)
        self.run(threads)
        if result is not None and target is not result:
            np.copyto(result, target)
        return (target if result is None else out), lse, weights

    # What C does of the call; packed sequences have functions of their own.

    cdef af_status computed(self, const af_run *how) noexcept nogil:
        return af_attention(&self.p, how)

    cdef af_status described(
        self, const af_run *how, af_report *report, af_rectangle *rectangles, int64_t room,
    ) noexcept nogil:
        return af_describe(&self.p, how, report, rectangles, room)

    cdef int run(self, int threads) except -1:
        cdef af_run how = run_with(threads)
        cdef af_status status
        with nogil:
            status = self.computed(&how)
        return finished(status)

    cdef int report(self, int threads, af_report *report, cnp.ndarray blocks) except -1:
        """What the call would do; with `blocks`, its rectangles."""
        cdef af_run how = run_with(threads)
        cdef af_status status
        cdef af_rectangle *rectangles = NULL
        cdef int64_t room = 0
        if blocks is not None:
            rectangles, room = <af_rectangle *>cnp.PyArray_DATA(blocks), cnp.PyArray_DIMS(blocks)[0]
        with nogil:
            status = self.described(&how, report, rectangles, room)
        return finished(status)

    cdef tuple describe(self, int threads, object return_blocks):
        """The values of a Plan."""
        cdef af_report report
        cdef cnp.ndarray blocks = None
        cdef bint want_blocks = flag(return_blocks, "return_blocks")
        if <double>self.p.B * self.p.H * self.p.Lq * max(self.p.Lk, 1) > 2.0 ** 62:
            raise ValueError(f"query and key make more pairs than can be counted, "
                             f"got shapes {shape_of(self.query)} and {shape_of(self.key)}")
        self.report(threads, &report, None)
        if want_blocks:
            blocks = np.empty((report.rectangles, 7), np.int64)
            self.report(threads, &report, blocks)
        return (report.visible_pairs, report.visited_pairs, int(report.flops), int(report.bytes), report.tasks,
                report.threads, report.isa.decode(), report.kernel.decode(), blocks)
