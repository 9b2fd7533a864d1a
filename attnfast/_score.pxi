# What the scores are: the kind, its scale, and what is added. Included by _core.pyx.


@cython.no_gc
cdef class Score(Visible):
    """The options that scores are made of. None is the same as an option that is left out."""

    cdef int set_additive(self, object score_weight, object score_bias) except -1:
        self.score.additive = True
        self.set_vectors(&self.score.score_weight, np.ones(self.p.D) if score_weight is None else score_weight,
                         "score_weight")
        if score_bias is not None:
            self.set_vectors(&self.score.score_bias, score_bias, "score_bias")
        return 0

    cdef int set_vectors(self, af_tensor *t, object x, str name) except -1:
        """(D,) for all heads or (H, D)."""
        cdef cnp.ndarray a = real_array(x, name)
        shared, own = (self.p.D,), (self.p.H, self.p.D)
        if shape_of(a) != shared and shape_of(a) != own:
            raise ValueError(f"{name} must have shape {shared} or {own}, got {shape_of(a)}")
        t.h = self.p.D if cnp.PyArray_NDIM(a) == 2 else 0
        a = a if self.p.dtype == AF_F64 else as_floats(a, True)
        t.data = self.kept(a if a.size else np.zeros(1, a.dtype))
        t.j = 1
        return 0

    cdef int set_bias(self, object bias) except -1:
        cdef cnp.ndarray a
        cdef int dtype, wanted = AF_F64 if self.p.dtype == AF_F64 else AF_F32
        if bias is None:
            return 0
        a = array_of(bias, "bias")
        dtype = dtype_of(a)
        if dtype < 0:
            raise wrong_bias(a, bias)
        self.check_pairs(a, "bias", self.p.Lq, self.p.Lk, False)
        a = without_repeats(a, 0)
        if dtype == AF_F64 and wanted == AF_F32:
            a = as_floats(a, True)
        elif dtype != wanted:
            a = a.astype(np.float64 if wanted == AF_F64 else np.float32)
        return self.set_pairs(&self.score.bias, a)

    cdef cnp.ndarray reals(self, object x, str name, tuple shapes):
        """Real numbers of one of these shapes; finite values stay finite in what C computes in."""
        cdef cnp.ndarray a = real_array(x, name)
        if shape_of(a) not in shapes:
            raise ValueError(f"{name} must have shape {' or '.join([str(s) for s in shapes[:2]])}, got {shape_of(a)}")
        return a if self.p.dtype == AF_F64 else finite_as_floats(a)

    cdef int set_alibi(self, object alibi_slopes) except -1:
        cdef cnp.ndarray a
        if alibi_slopes is None:
            return 0
        a = self.reals(alibi_slopes, "alibi_slopes",
                       ((self.p.H,), self.rows_shape() + (self.p.H,), (self.rows, self.p.H)))
        self.score.alibi_b = self.p.H if cnp.PyArray_NDIM(a) > 1 else 0
        self.score.alibi = <const double *>self.kept(a)
        self.positioned = True
        return 0

    cdef int set_sink(self, object sink_logits) except -1:
        if sink_logits is not None:
            self.score.sink = <const double *>self.kept(self.reals(sink_logits, "sink_logits", ((self.p.H,),)))
        return 0

    cdef int set_dropout(self, object dropout, object seed) except -1:
        self.score.dropout = real_number(dropout, "dropout")
        if not 0 <= self.score.dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, got {self.score.dropout}")
        number = 0 if seed is None else whole_number(seed, "dropout_seed")
        if not 0 <= number < 1 << 64:
            raise ValueError(f"dropout_seed must be within 0 .. 2**64 - 1, got {number}")
        self.score.dropout_seed = number
        return 0

    cdef int set_scale(self, object scale) except -1:
        if scale is None:
            self.score.scale = 1 / sqrt(<double>self.p.D) if self.p.D else 1
            return 0
        self.score.scale = real_number(scale, "scale")
        if not isfinite(self.score.scale):
            raise ValueError(f"scale must be finite, got {self.score.scale}")
        return 0

    cdef int set_softcap(self, object softcap) except -1:
        if softcap is None:
            return 0
        self.score.softcap = real_number(softcap, "softcap")
        if not (isfinite(self.score.softcap) and self.score.softcap > 0):
            raise ValueError(f"softcap must be finite and above 0, got {self.score.softcap}")
        limit = 1e300 if self.p.dtype == AF_F64 else 1e30  # its inverse has to be a real too
        self.score.softcap = max(1 / limit, min(limit, self.score.softcap))
        return 0
