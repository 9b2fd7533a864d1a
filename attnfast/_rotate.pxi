# Rotary embedding: the checks of one call. Included by _core.pyx.

@cython.final
@cython.no_gc
cdef class Rotation(Operands):
    """One call. Its rows are those of a query, whose results have its shape."""

    cdef af_rotation r
    cdef cnp.ndarray out, target

    cdef int set_rows(self, object x) except -1:
        cdef int k, dtype
        cdef int64_t rows = 1
        self.query = operand(x, "x", &dtype)
        self.layout = x if cnp.PyArray_Check(x) else self.query
        self.ndim = cnp.PyArray_NDIM(self.query)
        self.batch_ndim = max(0, self.ndim - 3)
        for k in range(self.batch_ndim):
            self.batch[k] = cnp.PyArray_DIMS(self.query)[k]
            rows *= self.batch[k]  # an array has fewer elements than 2^63
        self.p.dtype, self.p.B = <af_dtype>dtype, rows
        self.p.H, self.p.Lq = axis(self.query, 3), axis(self.query, 2)
        self.p.D = self.p.Dv = axis(self.query, 1)
        self.r.size, self.r.dtype = sizeof(af_rotation), self.p.dtype
        self.r.B, self.r.H, self.r.L, self.r.D = rows, self.p.H, self.p.Lq, self.p.D
        return self.set_strides(&self.r.source, self.query)

    cdef cnp.ndarray set_positions(self, object given):
        """One for each row of x, or for each batch row and row."""
        cdef cnp.ndarray a
        cdef int k, nd
        if isinstance(given, numbers.Integral) and not isinstance(given, (bool, np.bool_, np.timedelta64)):
            given = np.array(position(given))
        a = as_array(given, "positions")
        if a.dtype.kind not in "iu" and a.size:
            raise wrong_integers(a, given, "positions")
        nd = cnp.PyArray_NDIM(a)
        if nd == 0 and self.p.Lq == 1:
            a, nd = a.reshape(1), 1
        shape = self.batch_shape() + (self.p.Lq,)
        fits = nd > 0 and (nd == 1 or nd == self.batch_ndim + 1) and axis(a, 1) == self.p.Lq
        for k in range(nd - 1):
            fits = fits and cnp.PyArray_DIMS(a)[k] in (1, self.batch[k])
        if not fits:
            raise ValueError(self.positions_advice(a, shape))
        if cnp.PyArray_TYPE(a) != cnp.NPY_INT64 or not has_legal_strides(a):
            a = positions(a)
        self.kept(a)
        self.set_strides(&self.r.position, a.reshape(shape_of(a)[:-1] + (1, self.p.Lq, 1)))
        return a

    cdef str positions_advice(self, cnp.ndarray a, tuple shape):
        wanted = f"{(self.p.Lq,)} or {shape}" if self.batch_ndim else f"{shape}"
        write = ""
        if cnp.PyArray_NDIM(a) == 0:
            write = f": write positions + np.arange({self.p.Lq}) if it is the position of the first row"
        elif cnp.PyArray_NDIM(a) == self.ndim - 1 and axis(a, 2) == 1 and self.ndim > 2:
            write = ": write positions[..., 0, :], heads share their positions"
        return f"positions must have shape {wanted}, one for each row of x, got {shape_of(a)}{write}"

    cdef int set_angles(self, object base, object cos_sin, cnp.ndarray positions) except -1:
        cdef cnp.ndarray cosine, sine
        self.r.base = real_number(base, "base")
        if not (isfinite(self.r.base) and self.r.base > 0):
            raise ValueError(f"base must be finite and above 0, got {self.r.base}")
        if cos_sin is None:
            self.r.pairs = self.p.D // 2
            if self.p.D % 2:
                raise ValueError(f"x must have an even head size, got {self.p.D}: write x[..., :{self.p.D - 1}] if the "
                                 "last element is not to be rotated")
            return 0
        if self.r.base != 10000:
            raise ValueError(f"base must be left out beside cos_sin, which has the angles, got {self.r.base}")
        if not isinstance(cos_sin, (tuple, list)) or len(cos_sin) != 2:
            raise TypeError(f"cos_sin must be a pair of arrays (cos, sin), got {type(cos_sin).__name__}")
        cosine, sine = self.cos_sin_table(cos_sin[0], "cos_sin[0]"), self.cos_sin_table(cos_sin[1], "cos_sin[1]")
        if shape_of(cosine) != shape_of(sine):
            raise ValueError(f"cos_sin must be two arrays of one shape, got {shape_of(cosine)} and {shape_of(sine)}")
        self.r.pairs = axis(cosine, 1)
        if self.r.pairs > self.p.D // 2:
            raise ValueError(f"cos_sin must have at most {self.p.D // 2} columns, one for each pair of the "
                             f"{self.p.D} elements of x, got {self.r.pairs}: write cos[:, :{self.p.D // 2}] if its "
                             f"halves are equal, cos[:, ::2] if its columns are in twos")
        if positions.size and not 0 <= positions.min() <= positions.max() < axis(cosine, 2):
            raise ValueError(f"positions must be within 0 .. {axis(cosine, 2) - 1}, the rows of cos_sin, "
                             f"got {positions.min()} .. {positions.max()}")
        self.set_strides(&self.r.cosine, cosine)
        return self.set_strides(&self.r.sine, sine)

    cdef cnp.ndarray cos_sin_table(self, object x, str name):
        cdef cnp.ndarray a = as_array(x, name)
        if dtype_of(a) < 0:
            raise wrong_dtype(a, x, name, "floating point", "write {0}.astype(np.float32)")
        if cnp.PyArray_NDIM(a) != 2:
            raise ValueError(f"{name} must have 2 axes (positions, pairs), got shape {shape_of(a)}: write "
                             "cos.reshape(-1, cos.shape[-1]) and positions that count its rows if there is a row for "
                             "each token")
        a = np.asarray(a, np.float64 if self.p.dtype == AF_F64 else np.float32)
        if not cnp.PyArray_ISBEHAVED_RO(a) or not has_legal_strides(a.T) and not has_legal_strides(a):
            a = np.array(a, order="C")
        self.kept(a)
        return a

    cdef int set_target(self, object out) except -1:
        """`out` itself where C may write to it; else new memory, which is copied to it."""
        cdef cnp.ndarray a
        if out is not None:
            check_out(out, shape_of(self.query), self.p.dtype, "x")
            self.out = a = out
            if self.can_write(a):
                self.target = a
        if self.target is None:
            self.target = self.new_output()
        return self.set_strides(&self.r.to, self.target)

    cdef bint can_write(self, cnp.ndarray a):
        """Whether it is apart from everything that is read, or is x, of which a row is read before it is written."""
        if not has_legal_strides(a) or share_memory(a, self.query) and not self.is_query(a):
            return False
        for read in self.keep:  # positions and tables
            if share_memory(a, read):
                return False
        return True

    cdef bint is_query(self, cnp.ndarray a):
        same_strides = (<object>a).strides == (<object>self.query).strides
        return cnp.PyArray_DATA(a) == cnp.PyArray_DATA(self.query) and same_strides


def rotate(x, positions, base, interleaved, cos_sin, out, num_threads):
    cdef Rotation call = Rotation.__new__(Rotation)
    cdef af_run how
    cdef af_status status
    call.set_rows(x)
    places = call.set_positions(positions)
    call.r.interleaved = flag(interleaved, "interleaved")
    call.set_angles(base, cos_sin, places)
    how.threads, how.interrupted = thread_count(num_threads), interrupted
    call.set_target(out)
    with nogil:
        status = af_rotate(&call.r, &how)
    finished(status)
    if out is None:
        return call.target
    if call.target is not call.out:
        np.copyto(call.out, call.target)
    return out
