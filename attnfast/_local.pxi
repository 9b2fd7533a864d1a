# Local attention: the runs that a call is made of. Included by _core.pyx.
#
# A window of dilation d is a plain window among the queries and keys of one residue class mod d. The classes become
# batch rows with strides d times as long, so the kernels need not know. Global tokens are further runs over the few
# pairs that the windows leave out, whose results are added to those of the first.


cdef class LocalCall(PlacedCall):

    cdef int run(self, int threads) except -1:
        cdef af_tensor weights = self.p.weights
        cdef cnp.ndarray lse = None
        if self.simple or self.p.H == 0 or self.p.B == 0:
            self.p.global_tokens = NULL
            return run_problem(&self.p, threads)
        if self.p.lse.data == NULL:
            lse = self.new_lse()  # what joins the two runs
        self.p.weights.data = NULL
        if self.global_tokens is None:
            self.run_windows(threads)
        elif self.p.dtype in (AF_F16, AF_BF16):
            self.run_wide(threads)
        else:
            self.run_windows(threads)
            self.run_rest(threads)
        if weights.data != NULL:
            self.run_weights(weights, threads)
        return 0

    cdef int run_wide(self, int threads) except -1:
        """16-bit types in float32, so that what joins the two runs is not rounded."""
        cdef af_problem narrow = self.p
        # In C order, for the last axis must be contiguous: by itself NumPy puts axes that repeat themselves last.
        cdef cnp.ndarray query = self.query.astype(np.float32, order="C")
        cdef cnp.ndarray key = self.key.astype(np.float32, order="C")
        cdef cnp.ndarray value = self.value.astype(np.float32, order="C")
        cdef cnp.ndarray output = np.empty(shape_of(self.output), np.float32)
        self.p.dtype = AF_F32
        self.set_strides(&self.p.query, query)
        self.set_strides(&self.p.key, key)
        self.set_strides(&self.p.value, value)
        self.set_strides(&self.p.output, output)
        try:
            self.run_windows(threads)
            self.run_rest(threads)
        finally:
            self.p = narrow
        with np.errstate(over="ignore"):
            np.copyto(self.output, output, casting="unsafe")
        return 0

    cdef int run_rest(self, int threads) except -1:
        """The pairs of global tokens that are in no window, in one batch row after the other."""
        cdef int64_t b
        for b in range(self.p.B if self.p.global_tokens != NULL else 0):
            if self.p.global_starts[b + 1] > self.p.global_starts[b]:
                self.run_tokens(b, threads)
        return 0

    cdef int run_tokens(self, int64_t b, int threads) except -1:
        cdef af_problem rest = self.p
        cdef int64_t size = elem_bytes(rest.dtype), real_size = real_bytes(rest.dtype)
        cdef int64_t first, seeing, starts[2]
        cdef cnp.ndarray order, places, length
        start(&rest.query, b, 0, 0, size)
        start(&rest.key, b, 0, 0, size)
        start(&rest.value, b, 0, 0, size)
        start(&rest.output, b, 0, 0, size)
        start(&rest.lse, b, 0, 0, real_size)
        start(&rest.mask, b, 0, 0, 1)
        start(&rest.blocks, b, 0, 0, 1)
        start(&rest.bias, b, 0, 0, real_size)
        first = rest.q_offset[b] if rest.q_offset != NULL else 0
        rest.B = 1
        rest.q_offset = &first
        rest.q_length = rest.q_length + b if rest.q_length != NULL else NULL
        rest.kv_length = rest.kv_length + b if rest.kv_length != NULL else NULL
        rest.alibi = rest.alibi + b * rest.alibi_b if rest.alibi != NULL else NULL
        rest.global_tokens += b * rest.Lk
        rest.global_places += rest.global_starts[b]
        starts[0], starts[1] = 0, rest.global_starts[b + 1] - rest.global_starts[b]
        rest.global_starts = starts
        rest.hole_left, rest.hole_right = rest.left, rest.right
        rest.left = AF_FAR
        rest.right = 0 if self.causal else AF_FAR
        rest.sink = NULL
        rest.resume = True
        # Rows that see every key come first, so that few blocks hold them all.
        places = np.array([rest.global_places[k] for k in range(starts[1])], np.int64)
        rows = places - first
        rows = rows[(rows >= 0) & (rows < rest.Lq)]
        order = np.concatenate([rows, np.delete(np.arange(rest.Lq), rows)])
        rest.order.data = cnp.PyArray_DATA(order)
        rest.order.batch = NULL
        rest.order.b, rest.order.h, rest.order.i = 0, 0, 1
        if rest.mask.data != NULL or rest.bias.data != NULL or rest.blocks.data != NULL or rest.alibi != NULL:
            return run_problem(&rest, threads)
        # The others see the tokens only, whose keys are gathered where nothing else depends on which keys they are.
        seeing, rest.Lq = rows.size, rows.size
        if seeing:
            run_problem(&rest, threads)
        rest.Lq = self.p.Lq - seeing
        rest.order.data = <int64_t *>rest.order.data + seeing
        key, value = self.gather(&rest.key, rest.D, places, size), self.gather(&rest.value, rest.Dv, places, size)
        length = np.array([self.p.Lk if rest.kv_length == NULL else rest.kv_length[0]], np.int64)
        rest.kv_length = <const int64_t *>cnp.PyArray_DATA(length)
        rest.global_tokens = NULL
        rest.place = <const int64_t *>cnp.PyArray_DATA(places)
        rest.Lk = places.size
        return run_problem(&rest, threads) if rest.Lq else 0

    cdef cnp.ndarray gather(self, af_tensor *t, int64_t width, cnp.ndarray places, int64_t size):
        """Some rows of each key/value head side by side, to which the tensor then points."""
        dtype = np.dtype(f"u{size}")
        heads = borrowed(<char *>t.data, self.p.Hk, t.h, self.p.Lk, t.i, width, dtype)
        cdef cnp.ndarray rows = np.ascontiguousarray(heads[:, places])
        t.data = cnp.PyArray_DATA(rows)
        t.h, t.i = places.size * width, width
        return rows

    cdef int run_weights(self, af_tensor weights, int threads) except -1:
        """All weights at once, under a mask that shows every pair of windows and global tokens."""
        cdef af_problem p = self.p
        cdef cnp.ndarray visible = self.visible_pairs()
        p.weights = weights
        p.value.data = p.output.data = p.lse.data = NULL
        p.global_tokens = NULL
        p.left = AF_FAR
        p.right = 0 if self.causal else AF_FAR
        p.mask.data = cnp.PyArray_DATA(visible)
        p.mask.batch = NULL
        p.mask.b, p.mask.h, p.mask.i, p.mask.j = p.H * p.Lq * p.Lk, p.Lq * p.Lk, p.Lk, 1
        return run_problem(&p, threads)

    cdef cnp.ndarray visible_pairs(self):
        """Bool (B, H, Lq, Lk), without what causality, lengths and block masks hide."""
        cdef af_problem *p = &self.p
        visible = np.zeros((p.B, p.H, p.Lq, p.Lk), np.bool_)
        mask = None
        if self.mask is not None:
            full = self.batch_shape() + (p.H, p.Lq, p.Lk)
            mask = np.broadcast_to(self.mask, full)
        tokens = None
        if p.global_tokens != NULL:
            tokens = borrowed(<char *>p.global_tokens, 1, 0, p.B, p.Lk, p.Lk, np.bool_)[0]
        first = per_row(p.q_offset, p.B, 0)
        rows = max(1, (1 << 20) // max(1, p.Lk))
        j = np.arange(p.Lk)
        for b in range(p.B):
            for h in range(p.H):
                for i in range(0, p.Lq, rows):
                    here = visible[b, h, i : i + rows]
                    places = first[b] + np.arange(i, i + len(here))[:, None]
                    steps, rest = np.divmod(j - places, p.dilation[h])
                    np.logical_and(rest == 0, (-p.left <= steps) & (steps <= p.right), out=here)
                    if tokens is not None:
                        inside = (places >= 0) & (places < p.Lk)
                        here |= tokens[b] | (inside & tokens[b, np.clip(places, 0, p.Lk - 1)])
                    if mask is not None:
                        here &= mask[np.unravel_index(b, self.batch_shape()) + (h,)][i : i + rows]
                    check_signals()
        return visible

    cdef int run_windows(self, int threads) except -1:
        """Heads of one dilation together, as long as they begin and end with a group."""
        cdef int64_t h = 0, end, group = self.p.H // self.p.Hk
        while h < self.p.H:
            end = h + 1
            while end < self.p.H and self.p.dilation[end] == self.p.dilation[h]:
                end += 1
            if h % group != 0:
                end = min(end, (h // group + 1) * group)
            elif end - h > group:
                end = end // group * group
            self.run_heads(h, end, threads)
            h = end
        return 0

    cdef int run_heads(self, int64_t h, int64_t end, int threads) except -1:
        cdef af_problem p = self.p
        cdef int64_t group = p.H // p.Hk, size = elem_bytes(p.dtype), real_size = real_bytes(p.dtype)
        cdef int64_t step = p.dilation[h]
        p.H = end - h
        p.Hk = max(1, p.H // group)
        p.global_tokens = NULL
        move(&p.query, h * p.query.h * size)
        move(&p.key, h // group * p.key.h * size)
        move(&p.value, h // group * p.value.h * size)
        move(&p.output, h * p.output.h * size)
        move(&p.lse, h * p.lse.h * real_size)
        move(&p.mask, h * p.mask.h)
        move(&p.blocks, h * p.blocks.h)
        move(&p.bias, h * p.bias.h * real_size)
        if p.alibi != NULL:
            p.alibi += h
        if p.sink != NULL:
            p.sink += h
        if step == 1:
            return run_problem(&p, threads)
        # Residue classes of one length together: no row past the end is read or written.
        cdef int64_t longer = p.Lq % step
        self.run_classes(p, step, 0, longer, threads)
        return self.run_classes(p, step, longer, step, threads)

    cdef int run_classes(self, af_problem p, int64_t step, int64_t first, int64_t end, int threads) except -1:
        """Queries i = r (mod step), first <= r < end; keys of the class of their positions."""
        cdef cnp.ndarray own, other, offset, q_length, kv_length, places, block_query, block_key
        cdef int64_t Lq = (p.Lq - first + step - 1) // step, Lk = (p.Lk + step - 1) // step
        if Lq <= 0 or first == end:
            return 0
        own = np.arange(first, end)
        places = own + per_row(p.q_offset, p.B, 0)[:, None]
        other = places % step
        offset = np.ascontiguousarray(places // step)
        q_length = class_lengths(per_row(p.q_length, p.B, p.Lq)[:, None], own, step)
        kv_length = class_lengths(per_row(p.kv_length, p.B, p.Lk)[:, None], other, step)
        held = [offset, q_length, kv_length]  # alive until the run is over
        self.split_rows(&p.query, p.B, own, step, Lq, held)
        self.split_rows(&p.output, p.B, own, step, Lq, held)
        self.split_rows(&p.lse, p.B, own, step, Lq, held)
        self.split_rows(&p.key, p.B, other, step, Lk, held)
        self.split_rows(&p.value, p.B, other, step, Lk, held)
        if p.blocks.data != NULL:
            block_query = np.ascontiguousarray(np.broadcast_to(own, (p.B, len(own))).ravel())
            block_key = np.ascontiguousarray(other.ravel())
            held += [block_query, block_key]
            p.block_step = step
            p.block_first_query = <const int64_t *>cnp.PyArray_DATA(block_query)
            p.block_first_key = <const int64_t *>cnp.PyArray_DATA(block_key)
            self.split_rows(&p.blocks, p.B, np.zeros(len(own), np.int64), 1, 2, held)
        if p.mask.data != NULL:
            self.split_pairs(&p.mask, np.bool_, p, own, other, step, held)
        if p.bias.data != NULL:
            self.split_pairs(&p.bias, np.float64 if p.dtype == AF_F64 else np.float32, p, own, other, step, held)
        if p.alibi != NULL:
            slopes = np.array([[p.alibi[b * p.alibi_b + h] for h in range(p.H)] for b in range(p.B)])
            slopes = np.repeat(slopes * float(step), len(own), axis=0)
            held.append(slopes)
            p.alibi = <const double *>cnp.PyArray_DATA(slopes)
            p.alibi_b = p.H
        p.q_offset = <const int64_t *>cnp.PyArray_DATA(offset)
        p.q_length = <const int64_t *>cnp.PyArray_DATA(q_length)
        p.kv_length = <const int64_t *>cnp.PyArray_DATA(kv_length)
        p.B *= len(own)
        p.Lq = Lq
        p.Lk = Lk
        return run_problem(&p, threads)

    cdef int split_rows(
        self, af_tensor *t, int64_t B, cnp.ndarray residues, int64_t step, int64_t rows, list held,
    ) except -1:
        """Every step-th row from a residue on, a batch row for each."""
        if t.data == NULL:
            return 0
        table = np.ascontiguousarray((batch_offsets(t, B)[:, None] + residues * t.i).ravel())
        held.append(table)
        t.batch = <const int64_t *>cnp.PyArray_DATA(table)
        t.i = t.i * step if rows > 1 else 0
        return 0

    cdef int split_pairs(
        self, af_tensor *t, object dtype, af_problem p, cnp.ndarray own, cnp.ndarray other, int64_t step, list held,
    ) except -1:
        """The same for pairs; their columns are gathered, because kernels want them side by side."""
        if t.j == 0:
            return self.split_rows(t, p.B, own, step, (p.Lq - own[0] + step - 1) // step, held)
        cdef int64_t size = np.dtype(dtype).itemsize, plane
        heads = p.H if t.h else 1
        rows = (p.Lq - own[0] + step - 1) // step if t.i else 1
        columns = np.minimum(other[:, :, None] + step * np.arange((p.Lk + step - 1) // step), p.Lk - 1)
        i = own[:, None] + step * np.arange(rows) if t.i else np.zeros((len(own), 1), np.int64)
        apart = t.b != 0 or t.batch != NULL or bool((other != other[:1]).any())
        gathered = np.empty((p.B if apart else 1, len(own), heads, rows, columns.shape[-1]), dtype)
        for b, offset in enumerate(batch_offsets(t, len(gathered)).tolist()):
            flat = borrowed(<char *>t.data + <int64_t>offset * size, heads, t.h, p.Lq if t.i else 1, t.i, p.Lk, dtype)
            for r in range(len(own)):
                gathered[b, r] = flat[:, i[r][:, None], columns[b if apart else 0, r]]
        plane = heads * rows * columns.shape[-1]
        table = np.arange(len(gathered) * len(own), dtype=np.int64) * plane
        table = np.ascontiguousarray(np.resize(table, p.B * len(own)))
        held += [gathered, table]
        t.data = cnp.PyArray_DATA(gathered)
        t.batch = <const int64_t *>cnp.PyArray_DATA(table)
        t.h = rows * columns.shape[-1] if t.h else 0
        t.i = columns.shape[-1] if t.i else 0
        return 0


cdef int move(af_tensor *t, int64_t bytes) except -1:
    if t.data != NULL:
        t.data = <char *>t.data + bytes
    return 0


cdef cnp.ndarray per_row(const int64_t *numbers, int64_t B, int64_t otherwise):
    """One number for each batch row."""
    return np.array([otherwise if numbers == NULL else numbers[b] for b in range(B)], np.int64)


cdef cnp.ndarray batch_offsets(af_tensor *t, int64_t B):
    return np.array([b * t.b if t.batch == NULL else t.batch[b] for b in range(B)], np.int64)


cdef cnp.ndarray class_lengths(object lengths, cnp.ndarray residues, int64_t step):
    """How many of the numbers below each length are of each residue class."""
    return np.ascontiguousarray(np.maximum(0, (lengths - residues + step - 1) // step).ravel())


cdef cnp.ndarray borrowed(char *data, int64_t heads, int64_t h, int64_t rows, int64_t i, int64_t columns, object dtype):
    """An array over memory that somebody else keeps; strides count elements."""
    cdef cnp.npy_intp shape[3]
    cdef cnp.npy_intp strides[3]
    cdef int64_t size = np.dtype(dtype).itemsize
    shape[0], shape[1], shape[2] = heads, rows, columns
    strides[0], strides[1], strides[2] = h * size, i * size, size
    number = np.dtype(dtype).num
    return cnp.PyArray_New(np.ndarray, 3, shape, number, strides, data, 0, 0, <object>NULL)


def local_attention(
    query, key, value, window_size, global_tokens, dilation, centers, sigma, mask, bias, is_causal, q_offset,
    q_lengths, kv_lengths, scale, softcap, alibi_slopes, sink_logits, return_lse, return_weights, out, num_threads,
):
    """Output, lse, weights; the latter two None where they are not wanted."""
    cdef LocalCall call = LocalCall.__new__(LocalCall)
    call.global_tokens, call.dilation, call.centers, call.sigma = global_tokens, dilation, centers, sigma
    call.set_operands(query, key, value, True)
    call.set_options(mask, bias, is_causal, window_size, q_offset, q_lengths, kv_lengths, scale, softcap,
                     alibi_slopes, sink_logits)
    return call.attend(query, return_lse, return_weights, out, num_threads)
