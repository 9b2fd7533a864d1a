# Sequences packed one after the other. Included by _core.pyx.


cdef class PackedCall(Call):

    cdef int64_t sequences
    cdef bint apart  # what has one entry for each batch row has one for each sequence
    cdef const int64_t *first_query
    cdef const int64_t *first_key
    cdef bint same_lengths

    cdef tuple batch_shape(self):
        return (self.sequences,) if self.apart else ()

    cdef cnp.ndarray bounds(self, object x, str name, int64_t total, str what):
        cdef cnp.ndarray a = as_array(x, name)
        if a.dtype.kind not in "iu":
            raise wrong_integers(a, x, name)
        if cnp.PyArray_NDIM(a) != 1 or a.size == 0:
            raise ValueError(f"{name} must have shape (sequences + 1,), got {shape_of(a)}")
        wanted = f"{name} must rise from 0 to {total}, the rows of {what}"
        if a[0] != 0 or a[a.size - 1] != total:
            raise ValueError(f"{wanted}, got {a[0]} .. {a[a.size - 1]}")
        falls = np.flatnonzero(a[1:] < a[:-1])
        if falls.size:
            raise ValueError(f"{wanted}, got {a[falls[0]]} before {a[falls[0] + 1]}")
        a = np.ascontiguousarray(a.astype(np.int64))
        self.keep.append(a)
        return a

    cdef int set_bounds(self, object cu_q, object cu_k) except -1:
        cdef cnp.ndarray q = self.bounds(cu_q, "cu_q", self.p.Lq, "query")
        cdef cnp.ndarray k = self.bounds(cu_k, "cu_k", self.p.Lk, "key")
        if q.size != k.size:
            raise ValueError(f"cu_k must have as many entries as cu_q, {q.size}, got {k.size}")
        self.sequences = q.size - 1
        self.first_query = <const int64_t *>cnp.PyArray_DATA(q)
        self.first_key = <const int64_t *>cnp.PyArray_DATA(k)
        self.same_lengths = bool((q == k).all())
        return 0

    cdef int set_packed(self, object is_causal, object window_size, object q_offset, object scale, object softcap,
                        object alibi_slopes, object sink_logits) except -1:
        cdef int64_t whole = self.p.B, Lq = self.p.Lq, Lk = self.p.Lk
        self.set_window(is_causal, window_size)
        self.apart = True
        self.p.B = self.sequences
        if alibi_slopes is not None:
            self.set_alibi(alibi_slopes)
        self.set_offsets(q_offset)
        self.apart = False
        self.p.B = whole
        self.set_scale(scale, softcap)
        if sink_logits is not None:
            self.set_sink(sink_logits)
        return 0

    cdef int set_offsets(self, object q_offset) except -1:
        cdef cnp.ndarray a
        if q_offset is None:
            if self.positioned and not self.same_lengths:
                raise ValueError(
                    "q_offset must be given when is_causal, window_size or alibi_slopes need positions and cu_q and "
                    "cu_k differ: q_offset=0 lines up the first query of a sequence with its first key, "
                    "q_offset=\"end\" the last query with the last key"
                )
            return 0
        if isinstance(q_offset, str):
            if q_offset != "end":
                raise ValueError(f"q_offset must be an int, one for each sequence, or \"end\", got {q_offset!r}")
            a = np.array([self.first_key[s + 1] - self.first_key[s] - self.first_query[s + 1] + self.first_query[s]
                          for s in range(self.sequences)], np.int64)
        else:
            a = self.whole_rows(q_offset, "q_offset", True)
        self.keep.append(a)
        self.visible.q_offset = <const int64_t *>cnp.PyArray_DATA(a)
        return 0

    cdef af_status computed(self, const af_run *how) noexcept nogil:
        return af_attention_packed(&self.p, self.sequences, self.first_query, self.first_key, how)

    cdef af_status described(
        self, const af_run *how, af_report *report, af_rectangle *rectangles, int64_t room,
    ) noexcept nogil:
        return af_describe_packed(&self.p, self.sequences, self.first_query, self.first_key, how, report, rectangles,
                                  room)


def attention_varlen(
    query, key, value, cu_q, cu_k, is_causal, window_size, q_offset, scale, softcap, alibi_slopes, sink_logits,
    return_lse, out, num_threads, return_blocks=None,
):
    """Output (rows, H, Dv) and lse (rows, H) or None."""
    cdef PackedCall call = PackedCall.__new__(PackedCall)
    arrays = [as_array(x, name) for x, name in ((query, "query"), (key, "key"), (value, "value"))]
    for a, name in zip(arrays, ("query", "key", "value")):
        if a.ndim != 3:
            raise ValueError(f"{name} must have 3 axes (rows, heads, head size), got shape {a.shape}")
    shapes = [a.shape for a in arrays]
    if shapes[1][:2] != shapes[2][:2]:
        raise ValueError(f"value must have the rows and heads of key: value {shapes[2]}, key {shapes[1]}")
    if shapes[0][2] != shapes[1][2]:
        raise ValueError(f"key must have the head size of query: key {shapes[1]}, query {shapes[0]}")
    if shapes[0][1] % max(shapes[1][1], 1) or (shapes[0][1] and not shapes[1][1]):
        raise ValueError(f"key must have heads that divide those of query: key {shapes[1]}, query {shapes[0]}")
    heads_first = [a.swapaxes(0, 1) for a in arrays]
    call.set_operands(heads_first[0], heads_first[1], heads_first[2], True)
    call.set_bounds(cu_q, cu_k)
    call.set_packed(is_causal, window_size, q_offset, scale, softcap, alibi_slopes, sink_logits)
    target = out
    if isinstance(out, np.ndarray):
        if out.shape != (call.p.Lq, call.p.H, call.p.Dv):
            raise ValueError(f"out must have shape {(call.p.Lq, call.p.H, call.p.Dv)}, got {out.shape}")
        target = out.swapaxes(0, 1)
    if return_blocks is not None:
        return call.attend(heads_first[0], return_lse, False, target, num_threads, return_blocks)
    output, lse, _ = call.attend(heads_first[0], return_lse, False, target, num_threads, None)
    return output.swapaxes(0, 1) if out is None else out, None if lse is None else lse.T
