# Gradients of a call: what it returned and what the loss makes of it, memory for the gradients, the run. Included by
# _core.pyx.

QKV = ("query", "key", "value")
DIFFERENTIABLE = (*QKV, "bias", "sink_logits", "alibi_slopes")
OF_ADDITIVE = (*DIFFERENTIABLE, "score_weight", "score_bias")
OF_LOCAL = (*DIFFERENTIABLE, "centers")


cdef bint has_reals(object name):
    """Whether its gradient is computed in what C computes in; others are float64."""
    return name in QKV or name == "bias"


cdef cnp.npy_intp whole_lines(cnp.ndarray a, cnp.npy_intp line):
    """As many elements as it has, up to the next multiple of `line`."""
    return (cnp.PyArray_SIZE(a) + line - 1) // line * line


cdef cnp.ndarray part_of(cnp.ndarray whole, cnp.npy_intp begin, cnp.ndarray like):
    """An array of this shape on the memory of a contiguous one."""
    cdef char *first = cnp.PyArray_BYTES(whole) + begin * cnp.PyArray_ITEMSIZE(whole)
    cdef cnp.ndarray a = cnp.PyArray_SimpleNewFromData(
        cnp.PyArray_NDIM(like), cnp.PyArray_DIMS(like), cnp.PyArray_TYPE(whole), first
    )
    cnp.set_array_base(a, whole)
    return a


cdef object rounded(object total, cnp.ndarray operand):
    """A gradient in the dtype of its operand, if that is one of attnfast."""
    cdef int number = cnp.PyArray_TYPE(operand)
    if number == cnp.PyArray_TYPE(total) or dtype_of(operand) < 0:
        return total
    if number == cnp.NPY_FLOAT:
        return as_floats(total)
    with np.errstate(over="ignore", invalid="ignore"):
        return total.astype(operand.dtype.newbyteorder("="))


@cython.final
@cython.no_gc
cdef class Backward:
    """The gradients of one call. They come in what C computes in and are rounded once to the dtype of an operand."""

    cdef Call call
    cdef af_gradients g
    cdef tuple wanted

    cdef tuple names(self):
        """What there may be gradients of."""
        if self.call.local:
            return OF_LOCAL
        return OF_ADDITIVE if self.call.score.additive else DIFFERENTIABLE

    cdef int set_wanted(self, object wanted) except -1:
        if isinstance(wanted, str) or not isinstance(wanted, (tuple, list)):
            raise TypeError(f"wanted must be a tuple of names, got {wanted!r}"
                            + (f": write wanted=({wanted!r},)" if isinstance(wanted, str) else ""))
        self.wanted = tuple(wanted)
        for name in self.wanted:
            if not isinstance(name, str) or name not in self.names():
                raise ValueError(f"wanted may name {', '.join(self.names())}, got {name!r}")
            if name not in QKV and self.call.option(name) is None:
                raise ValueError(f"wanted names {name}, which the call does not have: "
                                 f"pass {name}= as in the forward call")
            if name == "centers" and self.call.score.gaussian == 0:
                raise ValueError("wanted names centers, but integer centers have no gradient: "
                                 "pass real ones with sigma, or leave it out of wanted")
        return 0

    cdef cnp.ndarray of_queries(self, cnp.ndarray a, str name, tuple last):
        """An array with something for every query of every head, as C takes it."""
        shape = self.call.outer_shape()
        if self.call.packed:
            shape = shape[::-1]
        if shape_of(a) != shape + last:
            raise ValueError(f"{name} must have shape {shape + last}, got {shape_of(a)}")
        return a.swapaxes(0, 1) if self.call.packed else a

    cdef int set_rows(self, af_tensor *t, object x, str name, int64_t width) except -1:
        """Rows of the dtype of query, for every query of every head."""
        cdef int dtype
        cdef cnp.ndarray a = operand(x, name, &dtype)
        self.call.check_dtype(name, x, a, self.call.p.dtype, dtype)
        return self.set_reals(t, self.of_queries(a, name, (width,)))

    cdef int set_reals(self, af_tensor *t, cnp.ndarray a) except -1:
        """Gradients are computed from float32 or float64: a copy of 16-bit operands costs little beside them."""
        if self.call.p.dtype > AF_F64:
            a = a.astype(np.float32, order="C")
        self.call.kept(a)
        return self.call.set_strides(t, a)

    cdef int widen(self) except -1:
        if self.call.p.dtype <= AF_F64:
            return 0
        self.set_reals(&self.call.operands.query, self.call.query)
        self.set_reals(&self.call.operands.key, self.call.key)
        self.set_reals(&self.call.operands.value, self.call.value)
        self.call.p.dtype = AF_F32
        return 0

    cdef int set_numbers(self, af_tensor *t, object x, str name) except -1:
        """A real number for every query of every head."""
        cdef int number = self.call.number_of_reals()
        cdef cnp.ndarray a = self.of_queries(real_array(x, name, number), name, ())
        t.data = self.call.kept(cnp.PyArray_FROM_OTF(a, number, cnp.NPY_ARRAY_CARRAY_RO))
        t.b, t.h, t.i = self.call.p.H * self.call.p.Lq, self.call.p.Lq, 1
        return 0

    cdef int set_loss(self, object grad_output, object output, object lse) except -1:
        """For plan() the three may be absent: None."""
        cdef bint needed = self.call.computes()
        self.g.size = sizeof(af_gradients)
        if needed or grad_output is not None:
            self.set_rows(&self.g.grad_output, grad_output, "grad_output", self.call.p.Dv)
        self.g.output.data = WANTED
        if needed or output is not None:
            self.set_rows(&self.g.output, output, "output", self.call.p.Dv)
        if needed or lse is not None:
            self.set_numbers(&self.g.lse, lse, "lse")
        if self.call.option("grad_lse") is not None:
            self.set_numbers(&self.g.grad_lse, self.call.option("grad_lse"), "grad_lse")
        if self.call.option("grad_weights") is not None:
            self.set_rows(&self.g.grad_weights, self.call.option("grad_weights"), "grad_weights", self.call.p.Lk)
        return 0

    cdef dict zeros(self, dict given):
        """Where gradients go, in the shapes of their operands as C takes them: one piece of memory, as large ones cost
        fewer page faults. 8x12x128x64 takes 18 ms instead of 27 for forward and backward (Zen 4, a virtual machine)."""
        cdef int number = self.call.number_of_reals()
        cdef cnp.npy_intp line = 8 if number == cnp.NPY_DOUBLE else 16  # reals in a cache line
        cdef cnp.npy_intp size = 0, begin = 0
        cdef cnp.ndarray whole, a
        cdef dict totals = {}
        for name in self.wanted:
            if has_reals(name) and name not in totals:
                totals[name] = None
                size += whole_lines(given[name], line)
        whole = cnp.PyArray_ZEROS(1, &size, number, 0)
        for name in self.wanted:
            a = given[name]
            if not has_reals(name):
                totals[name] = cnp.PyArray_ZEROS(cnp.PyArray_NDIM(a), cnp.PyArray_DIMS(a), cnp.NPY_DOUBLE, 0)
            elif totals[name] is None:
                totals[name] = part_of(whole, begin, a)
                begin += whole_lines(a, line)
        for name, total in totals.items():
            self.set_gradient(name, total)
        return totals

    cdef int set_gradient(self, str name, cnp.ndarray total) except -1:
        if name == "query":
            self.call.set_strides(&self.g.query, total)
        elif name == "key":
            self.call.set_strides(&self.g.key, total)
        elif name == "value":
            self.call.set_strides(&self.g.value, total)
        elif name == "bias":
            self.call.set_strides(&self.g.bias, total)
        elif name == "alibi_slopes":
            self.g.alibi = <double *>cnp.PyArray_DATA(total)
        elif name == "sink_logits":
            self.g.sink = <double *>cnp.PyArray_DATA(total)
        elif name == "score_weight":
            self.g.score_weight = <double *>cnp.PyArray_DATA(total)
        elif name == "centers":
            self.call.set_strides(&self.g.center, total[..., None])
        else:
            self.g.score_bias = <double *>cnp.PyArray_DATA(total)
        return 0

    cdef dict operands(self):
        """What gradients are wanted of, by name."""
        given = {"query": self.call.query, "key": self.call.key, "value": self.call.value}
        return given | {name: array_of(self.call.option(name), name) for name in self.wanted if name not in QKV}

    cdef object plan(self):
        """The values of a Plan, for which no gradient has memory."""
        cdef af_run how
        how.threads, how.interrupted = thread_count(self.call.option("num_threads")), interrupted
        given = self.operands()
        for name in self.wanted:
            shape, real = shape_of(given[name]), np.dtype(np.float64 if self.call.p.dtype == AF_F64 else np.float32)
            steps = [real.itemsize * math.prod(shape[k + 1:]) for k in range(len(shape))]
            self.set_gradient(name, as_strided(np.zeros(1, real), shape, steps))
        if self.call.p.dtype > AF_F64:
            self.call.p.dtype = AF_F32
        self.call.describe(&how, &self.g)
        return self.call.plan

    cdef tuple gradients(self):
        """One for each of `names`, None where it is not wanted."""
        cdef af_run how
        cdef af_status status
        given = self.operands()
        how.threads, how.interrupted = thread_count(self.call.option("num_threads")), interrupted
        totals = self.zeros(given)
        self.widen()
        with nogil:
            if self.call.packed:
                status = af_attention_packed_backward(&self.call.p, &self.call.packing, &self.g, &how)
            else:
                status = af_attention_backward(&self.call.p, &self.g, &how)
        finished(status)
        for name, total in totals.items():
            totals[name] = rounded(total, given[name])
            if self.call.packed and name in QKV:
                totals[name] = totals[name].swapaxes(0, 1)
        return tuple([totals.get(name) for name in self.names()])

    cdef object differentiate(self, object grad_output, object output, object lse):
        """Everything after the operands."""
        self.call.set_options()
        self.set_loss(grad_output, output, lse)
        self.set_wanted(self.call.option("wanted", QKV))
        return self.gradients() if self.call.computes() else self.plan()


cdef Backward new_backward(dict options):
    cdef Backward backward = Backward.__new__(Backward)
    backward.call = new_call(options)
    return backward
