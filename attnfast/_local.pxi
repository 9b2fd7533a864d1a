# Local attention: windows about centers, dilated windows, global tokens. Included by _core.pyx.
#
# A window of dilation d is a plain window among the queries and keys of one residue class mod d. The classes become
# batch rows with strides d times as long, so the kernels need not know. Global tokens are a second run over the few
# pairs that the windows leave out, whose results are added to those of the first.


cdef class LocalCall(Call):

    cdef object global_tokens, dilation, centers, sigma  # as given
    cdef bint simple  # neither dilation nor global tokens

    cdef int set_places(self) except -1:
        self.simple = True
        if self.centers is not None:
            return self.set_centers()
        if self.sigma is not None:
            raise ValueError("sigma needs centers of a floating dtype")
        self.set_dilation()
        if self.global_tokens is not None:
            self.set_global_tokens()
        self.positioned = self.positioned or not self.simple
        return 0

    cdef int set_dilation(self) except -1:
        cdef cnp.ndarray a = as_array(self.dilation, "dilation")
        if a.dtype.kind not in "iu":
            raise TypeError(f"dilation must be integers, got {a.dtype}")
        if shape_of(a) != () and shape_of(a) != (self.p.H,):
            raise ValueError(f"dilation must be an int or have shape {(self.p.H,)}, got {shape_of(a)}")
        if a.size and a.min() < 1:
            raise ValueError(f"dilation must be at least 1, got {a.min()}")
        a = np.ascontiguousarray(np.broadcast_to(whole_array(a), (self.p.H,)))
        self.simple = self.simple and bool((a == 1).all())
        self.keep.append(a)
        self.p.dilation = <const int64_t *>cnp.PyArray_DATA(a)
        return 0

    cdef int set_global_tokens(self) except -1:
        cdef cnp.ndarray a = as_array(self.global_tokens, "global_tokens"), tokens
        cdef int64_t Lk = self.p.Lk
        kind, last = a.dtype.kind, "Lk" if a.dtype.kind == "b" else "n"
        if kind not in "biu" and a.size:
            raise TypeError(f"global_tokens must be indices or bool, got {a.dtype}")
        whole = [(n,) for n in (shape_of(a)[-1:] if cnp.PyArray_NDIM(a) else ())]
        if cnp.PyArray_NDIM(a) == 0 or shape_of(a)[:-1] not in ((), self.batch_shape(), (self.p.B,)):
            raise ValueError(
                f"global_tokens must have shape ({last},) or {self.batch_shape()} + ({last},), got {shape_of(a)}"
            )
        if kind == "b" and whole[0] != (Lk,):
            raise ValueError(f"global_tokens must have one bool for each of the {Lk} keys, got shape {shape_of(a)}")
        if kind != "b" and a.size and (a.min() < 0 or a.max() >= Lk):
            raise ValueError(f"global_tokens must be within 0 .. {Lk - 1}, got {a.min()} .. {a.max()}")
        rows = np.broadcast_to(a, (self.p.B,) + whole[0]) if cnp.PyArray_NDIM(a) == 1 else a.reshape(
            (self.p.B,) + whole[0])
        tokens = np.zeros((self.p.B, Lk), np.bool_)
        if kind == "b":
            tokens[...] = rows
        elif a.size:
            np.put_along_axis(tokens, rows.astype(np.int64), True, axis=1)
        if tokens.any():
            self.simple = False
            self.keep.append(tokens)
            self.p.global_tokens = <const uint8_t *>cnp.PyArray_DATA(tokens)
        return 0

    cdef int set_centers(self) except -1:
        cdef cnp.ndarray a = as_array(self.centers, "centers")
        if self.global_tokens is not None:
            raise ValueError("centers cannot be combined with global_tokens")
        if np.any(np.asarray(self.dilation) != 1):
            raise ValueError("centers cannot be combined with dilation")
        if a.dtype.kind not in "iu" and dtype_of(a) < 0:
            raise TypeError(f"centers must be whole or real numbers, got {a.dtype}")
        smooth = a.dtype.kind not in "iu"
        places = a.astype(np.float64)
        if not np.isfinite(places).all():
            raise ValueError("centers must be finite")
        self.set_spread(smooth)
        try:
            self.set_rows(&self.p.center, places)
        except ValueError:
            full = self.batch_shape() + (self.p.H, self.p.Lq)
            raise ValueError(f"centers has shape {shape_of(a)}, which does not broadcast to {full}") from None
        if cnp.PyArray_NDIM(a) and np.any(places[..., 1:] < places[..., :-1]):
            self.set_rows(&self.p.order, np.argsort(places, axis=-1, kind="stable").astype(np.int64))
        self.p.right = self.window_right
        self.p.causal = self.causal
        self.positioned = self.causal
        return 0

    cdef int set_rows(self, af_tensor *t, object a) except -1:
        """Numbers over (..., H, Lq)."""
        return self.set_pairs(t, self.grid(np.ascontiguousarray(a)[..., None], "centers", self.p.Lq, 1))

    cdef int set_spread(self, bint smooth) except -1:
        if not smooth:
            if self.sigma is not None:
                raise ValueError("sigma needs centers of a floating dtype")
            return 0
        if self.sigma is None:
            width = self.p.left + self.window_right
            if width == 0 or self.p.left >= AF_FAR or self.window_right >= AF_FAR:
                raise ValueError("sigma must be given for a window without width or bounds")
            sigma = width / 4
        else:
            sigma = real_number(self.sigma, "sigma")
            if not (isfinite(sigma) and sigma > 0):
                raise ValueError(f"sigma must be finite and above 0, got {sigma}")
        limit = 1e300 if self.p.dtype == AF_F64 else 1e30
        self.p.spread = min(limit, 0.5 / sigma / sigma) if sigma > 1e-150 else limit
        return 0

    # ---- runs ----

    cdef int run(self, int threads) except -1:
        cdef af_problem rest
        cdef af_tensor weights = self.p.weights
        cdef cnp.ndarray lse = None
        if self.simple or self.p.H == 0 or self.p.B == 0:
            self.p.global_tokens = NULL
            return run_problem(&self.p, threads)
        if self.p.lse.data == NULL:
            lse = self.new_lse()  # what joins the two runs
        self.p.weights.data = NULL
        if self.p.global_tokens == NULL:
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
        cdef cnp.ndarray query = self.query.astype(np.float32), key = self.key.astype(np.float32)
        cdef cnp.ndarray value = self.value.astype(np.float32), output = np.empty(shape_of(self.output), np.float32)
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
        """The pairs of global tokens that are in no window."""
        cdef af_problem rest = self.p
        rest.hole_left, rest.hole_right = rest.left, rest.right
        rest.left = AF_FAR
        rest.right = 0 if self.causal else AF_FAR
        rest.sink = NULL
        rest.resume = True
        self.gather_global_rows(&rest)
        return run_problem(&rest, threads)

    cdef int gather_global_rows(self, af_problem *rest) except -1:
        """Rows that see every key come first, so that few blocks hold them all."""
        cdef cnp.ndarray order
        places = per_row(rest.q_offset, rest.B, 0)[:, None] + np.arange(rest.Lq)
        tokens = borrowed(<char *>rest.global_tokens, 1, 0, rest.B, rest.Lk, rest.Lk, np.bool_)[0]
        inside = (places >= 0) & (places < rest.Lk)
        seeing = inside & np.take_along_axis(tokens, np.clip(places, 0, max(rest.Lk - 1, 0)), axis=1)
        if not np.any(seeing[:, 1:] & ~seeing[:, :-1]):
            return 0
        order = np.argsort(~seeing, axis=1, kind="stable").astype(np.int64)
        self.keep.append(order)
        rest.order.data = cnp.PyArray_DATA(order)
        rest.order.batch = NULL
        rest.order.b, rest.order.h, rest.order.i = rest.Lq, 0, 1
        return 0

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
        j = np.arange(p.Lk)
        places = per_row(p.q_offset, p.B, 0)[:, None] + np.arange(p.Lq)
        step = np.array([p.dilation[h] for h in range(p.H)], np.int64)[:, None, None]
        ahead = (j - places[:, :, None])[:, None]
        visible = ahead % step == 0
        visible &= (-p.left <= ahead // step) & (ahead // step <= p.right)
        if p.global_tokens != NULL:
            tokens = borrowed(<char *>p.global_tokens, 1, 0, p.B, p.Lk, p.Lk, np.bool_)[0]
            inside = (places >= 0) & (places < p.Lk)
            rows = inside & np.take_along_axis(tokens, np.clip(places, 0, p.Lk - 1), axis=1)
            visible |= tokens[:, None, None, :] | rows[:, None, :, None]
        if self.mask is not None:
            full = self.batch_shape() + (p.H, p.Lq, p.Lk)
            visible &= np.broadcast_to(self.mask, full).reshape((p.B, p.H, p.Lq, p.Lk))
        return np.ascontiguousarray(visible)

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
        cdef int64_t group = p.H // p.Hk, real_size = 8 if p.dtype == AF_F64 else 4
        cdef int64_t size = 2 if p.dtype in (AF_F16, AF_BF16) else real_size
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
        cdef cnp.ndarray own, other, offset, q_length, kv_length, places
        cdef int64_t Lq = (p.Lq - first + step - 1) // step
        if Lq <= 0 or first == end:
            return 0
        own = np.arange(first, end)
        places = own + per_row(p.q_offset, p.B, 0)[:, None]
        other = places % step
        offset = np.ascontiguousarray(places // step)
        q_length = class_lengths(per_row(p.q_length, p.B, p.Lq)[:, None], own, step)
        kv_length = class_lengths(per_row(p.kv_length, p.B, p.Lk)[:, None], other, step)
        held = [offset, q_length, kv_length]  # alive until the run is over
        self.split_rows(&p.query, p.B, own, step, held)
        self.split_rows(&p.output, p.B, own, step, held)
        self.split_rows(&p.lse, p.B, own, step, held)
        self.split_rows(&p.key, p.B, other, step, held)
        self.split_rows(&p.value, p.B, other, step, held)
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
        p.Lk = (p.Lk + step - 1) // step
        return run_problem(&p, threads)

    cdef int split_rows(self, af_tensor *t, int64_t B, cnp.ndarray residues, int64_t step, list held) except -1:
        """Every step-th row from a residue on, a batch row for each."""
        if t.data == NULL:
            return 0
        table = np.ascontiguousarray((batch_offsets(t, B)[:, None] + residues * t.i).ravel())
        held.append(table)
        t.batch = <const int64_t *>cnp.PyArray_DATA(table)
        t.i *= step
        return 0

    cdef int split_pairs(
        self, af_tensor *t, object dtype, af_problem p, cnp.ndarray own, cnp.ndarray other, int64_t step, list held,
    ) except -1:
        """The same for pairs; their columns are gathered, because kernels want them side by side."""
        if t.j == 0:
            return self.split_rows(t, p.B, own, step, held)
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
    """Output, lse, weights; weights only where windows have centers of their own or nothing but two sides."""
    cdef LocalCall call = LocalCall.__new__(LocalCall)
    call.global_tokens, call.dilation, call.centers, call.sigma = global_tokens, dilation, centers, sigma
    call.set_operands(query, key, value, True)
    call.set_options(mask, bias, is_causal, window_size, q_offset, q_lengths, kv_lengths, scale, softcap,
                     alibi_slopes, sink_logits)
    return call.attend(query, return_lse, return_weights, out, num_threads)
