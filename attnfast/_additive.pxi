# Additive attention. Included by _core.pyx.


cdef class AdditiveCall(Call):

    cdef int set_additive(self, object score_weight, object score_bias) except -1:
        if score_weight is None:
            score_weight = np.ones(self.p.D)
        self.set_vectors(&self.score.score_weight, score_weight, "score_weight")
        if score_bias is not None:
            self.set_vectors(&self.score.score_bias, score_bias, "score_bias")
        self.score.additive = True
        return 0

    cdef int set_vectors(self, af_tensor *t, object x, str name) except -1:
        """(D,) for all heads or (H, D)."""
        cdef cnp.ndarray a = real_array(x, name)
        shared, own = (self.p.D,), (self.p.H, self.p.D)
        if shape_of(a) != shared and shape_of(a) != own:
            raise ValueError(f"{name} must have shape {shared} or {own}, got {shape_of(a)}")
        t.h = self.p.D if cnp.PyArray_NDIM(a) == 2 else 0
        a = a if self.p.dtype == AF_F64 else narrow(a)
        if a.size == 0:
            a = np.zeros(1, a.dtype)
        self.keep.append(a)
        t.data = cnp.PyArray_DATA(a)
        t.j = 1
        return 0


def additive_attention(
    query, key, value, score_weight, score_bias, mask, bias, is_causal, window_size, q_offset, q_lengths, kv_lengths,
    softcap, alibi_slopes, sink_logits, return_lse, return_weights, out, num_threads,
    return_blocks=None,
):
    cdef AdditiveCall call = AdditiveCall.__new__(AdditiveCall)
    call.set_operands(query, key, value, True)
    call.set_additive(score_weight, score_bias)
    call.set_options(mask, bias, is_causal, window_size, q_offset, q_lengths, kv_lengths, None, softcap,
                     alibi_slopes, sink_logits)
    return call.attend(query, return_lse, return_weights, out, num_threads, return_blocks)
