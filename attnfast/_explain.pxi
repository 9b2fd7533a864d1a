# The heaviest keys of queries, and the weight that keys receive. Included by _core.pyx.

cdef enum:
    LISTED = 64  # entries that the kernels keep lists of; more are chosen from whole rows of scores
    ROW_PAIRS = 1 << 21  # scores in memory at a time


cdef class TopCall(Call):

    cdef int run_long(self, cnp.ndarray index, cnp.ndarray weight, int threads) except -1:
        """For many keys a query: some queries of one head at a time."""
        cdef int64_t b, h, i, rows = max(1, ROW_PAIRS // self.p.Lk)
        indices = index.reshape((self.p.B, self.p.H, self.p.Lq, index.shape[index.ndim - 1]))
        weights = weight.reshape(indices.shape)
        if self.p.dtype in (AF_F16, AF_BF16):
            self.p.dtype = AF_F32
            self.query, self.key = self.query.astype(np.float32, order="C"), self.key.astype(np.float32, order="C")
            self.set_strides(&self.p.query, self.query)
            self.set_strides(&self.p.key, self.key)
        for b in range(self.p.B):
            for h in range(self.p.H):
                for i in range(0, self.p.Lq, rows):
                    self.choose(b, h, i, min(rows, self.p.Lq - i), indices, weights, threads)
                    check_signals()
        return 0

    cdef int choose(self, int64_t b, int64_t h, int64_t i, int64_t rows, object indices, object weights,
                    int threads) except -1:
        cdef af_problem p = self.p
        cdef int64_t offset = i + (p.q_offset[b] if p.q_offset != NULL else 0)
        cdef int64_t length = max(0, min(rows, p.q_length[b] - i)) if p.q_length != NULL else rows
        cdef int64_t zero = 0, real_size = real_bytes(p.dtype)
        cdef cnp.ndarray scores = np.empty((rows, p.Lk), np.float64 if p.dtype == AF_F64 else np.float32)
        cdef cnp.ndarray lse = np.empty((rows, 1), scores.dtype)
        p.B = p.H = p.Hk = 1
        p.Lq = rows
        start(&p.query, b, h, i, real_size)
        start(&p.key, b, h // (self.p.H // self.p.Hk), 0, real_size)
        start(&p.mask, b, h, i, 1)
        start(&p.bias, b, h, i, real_size)
        start(&p.blocks, b, h, 0, 1)
        p.block_step = 1
        p.block_first_query, p.block_first_key = &i, &zero
        p.q_offset, p.q_length = &offset, &length
        if p.kv_length != NULL:
            p.kv_length += b
        if p.alibi != NULL:
            p.alibi += b * p.alibi_b + h
        if p.sink != NULL:
            p.sink += h
        p.topk = 0
        self.set_strides(&p.lse, lse)
        run_problem(&p, threads)
        p.lse.data = NULL
        self.set_strides(&p.weights, scores)
        p.stage = AF_BIASED
        run_problem(&p, threads)
        k = indices.shape[3]
        chosen, heaviest = most(scores, k)
        with np.errstate(invalid="ignore", over="ignore"):
            exact = np.exp(heaviest - lse)
            there = heaviest != -np.inf
            indices[b, h, i : i + rows] = np.where(there, chosen, -1)
            weights[b, h, i : i + rows] = np.where(there, exact, 0)
        return 0


cdef tuple most(cnp.ndarray scores, int64_t k):
    """Places and scores of the k largest of each row, falling, equal ones in order; NaN counts as +inf."""
    ranked = np.where(np.isnan(scores), np.inf, scores)
    least = -np.partition(-ranked, k - 1, axis=1)[:, k - 1 : k]
    above, level = ranked > least, ranked == least
    room = k - above.sum(axis=1, keepdims=True)
    places = np.nonzero(above | (level & (np.cumsum(level, axis=1) <= room)))[1].reshape(len(ranked), k)
    order = np.argsort(-np.take_along_axis(ranked, places, axis=1), axis=1, kind="stable")
    places = np.take_along_axis(places, order, axis=1)
    return places, np.take_along_axis(scores, places, axis=1)


def attention_topk(
    query, key, k, mask, bias, is_causal, window_size, q_offset, q_lengths, kv_lengths, scale, softcap, alibi_slopes,
    sink_logits, num_threads,
):
    """Keys and weights."""
    cdef TopCall call = TopCall.__new__(TopCall)
    cdef cnp.ndarray index, weight
    cdef int threads
    call.set_operands(query, key, None, False)
    heaviest = whole_number(k, "k")
    if not 0 <= heaviest <= call.p.Lk:
        raise ValueError(f"k must be within 0 .. {call.p.Lk}, the number of keys, got {heaviest}")
    if call.p.dtype != AF_F64 and call.p.Lk >= 1 << 32:
        raise ValueError(f"key must have fewer than 2**32 keys here, got {call.p.Lk}")
    call.set_options(mask, bias, is_causal, window_size, q_offset, q_lengths, kv_lengths, scale, softcap,
                     alibi_slopes, sink_logits)
    threads = thread_count(num_threads)
    weight = call.new_array(heaviest)
    index = np.empty(shape_of(weight), np.int64)
    call.set_strides(&call.p.top_index, index)
    call.set_strides(&call.p.top_weight, weight)
    if heaviest > LISTED:
        call.run_long(index, weight, threads)
    elif heaviest:
        call.p.topk = heaviest
        call.run(threads)
    return index, weight


def key_importance(
    query, key, per_kv_head, mask, bias, is_causal, window_size, q_offset, q_lengths, kv_lengths, scale, softcap,
    alibi_slopes, sink_logits, num_threads,
):
    cdef Call call = Call.__new__(Call)
    cdef cnp.ndarray total
    cdef int threads
    call.set_operands(query, key, None, False)
    grouped = flag(per_kv_head, "per_kv_head")
    call.set_options(mask, bias, is_causal, window_size, q_offset, q_lengths, kv_lengths, scale, softcap,
                     alibi_slopes, sink_logits)
    threads = thread_count(num_threads)
    batch, H, Hk, Lk = call.batch_shape(), call.p.H, call.p.Hk, call.p.Lk
    total = np.zeros(batch + (H, Lk), np.float64 if call.p.dtype == AF_F64 else np.float32)
    call.p.importance = cnp.PyArray_DATA(total)
    call.run(threads)
    if grouped:
        total = total.reshape(batch + (Hk, H // max(Hk, 1), Lk)).sum(axis=-2)
    return total[0] if call.ndim == 2 else total
