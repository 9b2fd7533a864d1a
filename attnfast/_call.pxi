# One call: its options in the order of the signature, memory for the results, the run. Included by _core.pyx.

cdef int thread_count(object num_threads) except -1:
    """0: the default, which C looks up where it matters."""
    if num_threads is None:
        return 0
    number = whole_number(num_threads, "num_threads")
    cdef int64_t n = position(number)
    if n < 1:
        raise ValueError(f"num_threads must be at least 1, got {number}")
    return <int>min(n, 1024)


cdef int interrupted() noexcept nogil:
    with gil:
        return PyErr_CheckSignals() < 0


cdef int finished(af_status status) except -1:
    if status == AF_NO_MEMORY:
        raise MemoryError("attnfast could not allocate its working memory")
    if status == AF_INTERRUPTED:
        return -1  # the exception is set
    return 0


@cython.final
@cython.no_gc
cdef class Call(Score):
    """One call. A result is wanted where its field of `results` has data: first `WANTED`, then its memory."""

    cdef cnp.ndarray out, output, lse, weights, top_index, top_weight, importance
    cdef object plan  # in place of results
    cdef dict options  # None: all are left out

    cdef object option(self, str name, object default=None):
        return default if self.options is None else self.options.get(name, default)

    cdef int set_keys(self, object query, object key) except -1:
        """The operands of a function without values, in whatever keys are stored."""
        self.stores = True
        self.set_table(self.option("block_table"))
        return self.set_operands(query, key, None, False)

    cdef int set_options(self) except -1:
        """Everything but operands, what is wanted, and what only one function has."""
        if not self.packed:
            self.rows = self.p.B
        self.set_mask(self.option("mask"))
        self.set_bias(self.option("bias"))
        self.set_window(self.option("is_causal", False), self.option("window_size"))
        if self.local:
            self.set_places(self.option("centers"), self.option("sigma"), self.option("global_tokens"),
                            self.option("dilation", 1))
        self.set_lengths(self.option("q_lengths"), self.option("kv_lengths"))
        self.set_starts(self.option("kv_starts"))
        self.check_pages()
        if self.stores and (self.operands.storage or self.options is not None):
            self.set_stored(self.option("key_scale"), self.option("value_scale"), self.option("key_zero_point"),
                            self.option("value_zero_point"))
        self.set_scale(self.option("scale"))
        self.set_softcap(self.option("softcap"))
        self.set_alibi(self.option("alibi_slopes"))
        self.set_sink(self.option("sink_logits"))
        dropout = self.option("dropout")
        if dropout is not None:
            self.set_dropout(dropout, self.option("dropout_seed"))
        self.set_offset(self.option("q_offset"))
        return 0

    cdef int set_stage(self, object stage) except -1:
        if not isinstance(stage, str) or stage not in STAGES:
            raise ValueError(f"stage must be one of {', '.join(STAGES)}, got {stage!r}")
        self.results.stage = <af_stage><int>STAGES.index(stage)
        if self.results.stage == AF_SCORES:
            self.score.softcap = 0
        return 0

    cdef int set_topk(self, object k) except -1:
        heaviest = whole_number(k, "k")
        if not 0 <= heaviest <= self.p.Lk:
            raise ValueError(f"k must be within 0 .. {self.p.Lk}, the number of keys, got {heaviest}")
        if self.p.dtype != AF_F64 and self.p.Lk >= 1 << 32:
            raise ValueError(f"key must have fewer than 2**32 keys here, got {self.p.Lk}")
        self.results.topk = heaviest
        self.results.top_index.data = self.results.top_weight.data = WANTED
        return 0

    cdef int set_out(self, object out) except -1:
        if out is None:
            return 0
        shape = self.outer_shape() + (self.p.Dv,)
        if self.packed:
            shape = (self.p.Lq, self.p.H, self.p.Dv)
        check_out(out, shape, self.p.dtype, "query")
        self.out = cnp.PyArray_SwapAxes(out, 0, 1) if self.packed else out
        return 0

    cdef bint can_write(self, cnp.ndarray out):
        """Whether C may write to `out` while it reads the inputs."""
        if not has_legal_strides(out) or share_memory(out, self.query) or share_memory(out, self.key):
            return False
        if share_memory(out, self.value):
            return False
        for a in self.keep or ():
            if share_memory(out, a):
                return False
        return True

    cdef int take_memory(self) except -1:
        if self.value is not None:
            writes = self.out is not None and self.can_write(self.out)
            self.output = self.out if writes else self.new_output()
            self.set_strides(&self.results.output, self.output)
        if self.results.lse.data != NULL:
            self.lse = self.new_numbers(self.p.Lq)
            self.results.lse.data = cnp.PyArray_DATA(self.lse)
            self.results.lse.b, self.results.lse.h, self.results.lse.i = self.p.H * self.p.Lq, self.p.Lq, 1
        if self.results.weights.data != NULL:
            self.weights = self.new_array(self.p.Lk)
            self.set_strides(&self.results.weights, self.weights)
        if self.results.top_index.data != NULL:
            self.top_weight = self.new_array(self.results.topk)
            self.top_index = cnp.PyArray_EMPTY(self.ndim, cnp.PyArray_DIMS(self.top_weight), cnp.NPY_INT64, 0)
            self.set_strides(&self.results.top_index, self.top_index)
            self.set_strides(&self.results.top_weight, self.top_weight)
        if self.results.importance != NULL:
            self.importance = self.new_numbers(self.p.Lk)
            self.results.importance = cnp.PyArray_DATA(self.importance)
        return 0

    cdef bint computes(self):
        """False for plan()."""
        return self.options is None or "return_blocks" not in self.options

    cdef bint has_run(self) except -1:
        """Compute what is wanted; or, for plan(), describe that and return False."""
        cdef af_run how
        cdef af_status status
        how.threads, how.interrupted = thread_count(self.option("num_threads")), interrupted
        if not self.computes():
            self.describe(&how, NULL)
            return False
        self.take_memory()
        with nogil:
            if self.packed:
                status = af_attention_packed(&self.p, &self.packing, &how)
            else:
                status = af_attention(&self.p, &how)
        finished(status)
        if self.out is not None and self.out is not self.output:
            np.copyto(self.out, self.output)
        return True

    cdef int describe(self, const af_run *how, const af_gradients *gradients) except -1:
        """The values of a Plan, of the call or of its gradients: counted first, then listed."""
        cdef af_report report
        cdef af_status status
        cdef af_rectangle *listed = NULL
        cdef int64_t room = 0
        cdef cnp.ndarray blocks = None
        cdef bint want_blocks = flag(self.options["return_blocks"], "return_blocks")
        if <double>self.p.B * self.p.H * self.p.Lq * max(self.p.Lk, 1) > 2.0 ** 62:
            raise ValueError(f"query and key make more pairs than can be counted, "
                             f"got shapes {shape_of(self.query)} and {shape_of(self.key)}")
        for _ in range(1 + want_blocks):
            with nogil:
                if gradients != NULL and self.packed:
                    status = af_describe_packed_backward(&self.p, &self.packing, gradients, how, &report, listed, room)
                elif gradients != NULL:
                    status = af_describe_backward(&self.p, gradients, how, &report, listed, room)
                elif self.packed:
                    status = af_describe_packed(&self.p, &self.packing, how, &report, listed, room)
                else:
                    status = af_describe(&self.p, how, &report, listed, room)
            finished(status)
            if want_blocks and blocks is None:
                room, blocks = report.rectangles, np.empty((report.rectangles, 7), np.int64)
                listed = <af_rectangle *>cnp.PyArray_DATA(blocks)
        self.plan = (report.visible_pairs, report.visited_pairs, int(report.flops), int(report.bytes), report.tasks,
                     report.threads, report.isa.decode(), report.kernel.decode(), int(report.memory), blocks)
        return 0

    cdef object attend(self):
        """Compute output, and lse and weights where they are wanted."""
        self.set_options()
        self.results.output.data = WANTED
        if flag(self.option("return_lse", False), "return_lse"):
            self.results.lse.data = WANTED
        if flag(self.option("return_weights", False), "return_weights"):
            self.results.weights.data = WANTED
        self.set_out(self.option("out"))
        if not self.has_run():
            return self.plan
        if self.out is not None:
            output = self.options["out"]
        else:
            output = self.output.swapaxes(0, 1) if self.packed else self.output
        if self.lse is None and self.weights is None:
            return output
        # What AttentionResult() does, without calling Python for it.
        return tuple.__new__(AttentionResult, (output, self.lse.T if self.packed else self.lse, self.weights))


cdef Call new_call(dict options):
    cdef Call call = Call.__new__(Call)
    call.options = options if options else None
    return call
